//! Answers and failures over real loopback sockets, scripted to the byte.

use std::sync::{Arc, Barrier};
use std::time::Duration;

use crate::support::{
    Asked, STREAM_HEAD, Server, Step, ask, chunked, content, dialer, dialer_for, events, open, quick,
    request, send, with_length, words,
};
use bench_http::{Ahead, Endpoint, EventKind, Pool, PoolCounts, Route, Stop, Timeouts, TlsOptions, plain};

const GOOD: &str = "Sent FirstByte Tokens Tokens EmptyChunk Done(Stop)";

/// One connection with this script; what came of one exchange on it.
async fn against(script: Vec<Step>, asked: &Asked) -> (String, bool, String) {
    let server = Server::start(vec![script]);
    let exchange = ask(&dialer(&server.base()), asked).await;
    server.heads();
    (words(&exchange), exchange.reusable, content(&exchange).to_owned())
}

async fn check(script: Vec<Step>, expected: &str) {
    let (said, reusable, _) = against(script, &Asked::stream()).await;
    assert!(said.contains(expected), "expected '{expected}' in '{said}'");
    assert!(!reusable, "{said}");
}

#[tokio::test]
async fn every_framing_of_http_brings_the_same_answer() {
    let pieces = events(&["a", "b"]);
    let body = pieces.concat();
    let head_10 = "HTTP/1.0 200 OK\r\ncontent-type: text/event-stream\r\n";
    for (name, bytes, reusable) in [
        ("chunked", chunked(&pieces), true),
        ("one chunk", chunked(std::slice::from_ref(&body)), true),
        ("content length", with_length(STREAM_HEAD, &body), true),
        ("interim answer", format!("HTTP/1.1 100 Continue\r\n\r\n{}", chunked(&pieces)), true),
        ("connection: close", with_length(&format!("{STREAM_HEAD}connection: close\r\n"), &body), false),
        ("close-delimited", format!("{STREAM_HEAD}\r\n{body}"), false),
        ("HTTP/1.0 close-delimited", format!("{head_10}\r\n{body}"), false),
        ("HTTP/1.0 with length", with_length(head_10, &body), false),
        ("no content type", with_length("HTTP/1.1 200 OK\r\n", &body), true),
    ] {
        let got = against(vec![Step::Request, send(bytes)], &Asked::stream()).await;
        // The server is gone by now, so that only what was seen in time counts.
        assert_eq!((got.0.as_str(), got.2.as_str()), (GOOD, "ab"), "{name}");
        assert!(reusable || !got.1, "{name}");
    }
}

#[tokio::test]
async fn a_kept_connection_carries_the_next_request() {
    let answer = chunked(&events(&["a", "b"]));
    let refusal =
        with_length("HTTP/1.1 503 Service Unavailable\r\nretry-after: 2\r\n", "{\"error\":\"busy\"}");
    let whole = "{\"choices\":[{\"text\":\"ab\",\"finish_reason\":\"stop\"}]}";
    let whole = with_length("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n", whole);
    let script = [&answer, &refusal, &whole, &answer].map(|bytes| [Step::Request, send(bytes)]).concat();
    let server = Server::start(vec![[script, vec![Step::Stall]].concat()]);
    let dialer = dialer(&server.base());
    let asked = Asked::stream();
    let mut connection = open(&dialer).await;
    let mut said = Vec::new();
    for _ in 0..4 {
        let exchange = connection.exchange(request(&dialer), &asked.terms()).await;
        assert!(exchange.reusable, "{}", words(&exchange));
        assert!(exchange.reads.reads >= 1 && exchange.reads.bytes > 50);
        said.push(words(&exchange));
    }
    drop(connection);
    assert_eq!(said[0], GOOD);
    assert_eq!(said[1], "Sent FirstByte Status: status 503 Service Unavailable, retry-after 2: busy");
    assert!(said[2].starts_with("Sent FirstByte Tokens") && said[2].ends_with("Done(Stop)"), "{}", said[2]);
    assert_eq!(said[3], GOOD);

    let heads = server.heads();
    assert_eq!(heads.len(), 4);
    assert!(heads[0].starts_with("POST /v1/completions HTTP/1.1\r\n"), "{}", heads[0]);
    for line in ["host: 127.0.0.1:", "accept-encoding: identity\r\n", "content-type: application/json\r\n"] {
        assert!(heads[0].contains(line), "{line} in {}", heads[0]);
    }
}

#[tokio::test]
async fn refusals_say_what_the_server_said() {
    for (answer, expected) in [
        (
            with_length("HTTP/1.1 429 Too Many Requests\r\nretry-after: 7\r\n", "slow down\r\n\u{1b}[31m"),
            "Sent FirstByte Status: status 429 Too Many Requests, retry-after 7: slow down [31m",
        ),
        (
            with_length("HTTP/1.1 404 Not Found\r\n", "{\"error\":{\"message\":\"no model 'x'\"}}"),
            "Status: status 404 Not Found: no model 'x'",
        ),
        (
            with_length("HTTP/1.1 307 Temporary Redirect\r\nlocation: /elsewhere\r\n", ""),
            "Status: status 307 Temporary Redirect to '/elsewhere', which is not followed",
        ),
        (
            with_length(&format!("{STREAM_HEAD}content-encoding: gzip\r\n"), "\u{1f}"),
            "BadFrame: content encoding 'gzip' though identity was asked for",
        ),
        (
            with_length("HTTP/1.1 200 OK\r\ncontent-type: text/html\r\n", "<html>login</html>"),
            "BadFrame: content type 'text/html', expected text/event-stream: <html>login</html>",
        ),
        (
            with_length("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n", "{\"error\":\"no memory\"}"),
            "ErrorEvent: the server reports an error: no memory",
        ),
    ] {
        let (said, _, _) = against(vec![Step::Request, send(answer)], &Asked::stream()).await;
        assert!(said.contains(expected), "expected '{expected}' in '{said}'");
    }
}

#[tokio::test]
async fn bytes_that_are_no_answer_are_bad_frames() {
    let endless = format!("HTTP/1.1 200 OK\r\nx-long: {}", "x".repeat(100_000));
    let many = "x-some: y\r\n".repeat(500);
    for garbage in [
        "SSH-2.0-OpenSSH_9.6\r\n\r\n".to_owned(),
        "\u{15}\u{3}\u{1}\0\u{2}\u{2}P".to_owned(),
        "\r\n\r\nnonsense nonsense\r\n\r\n".to_owned(),
        endless,
        format!("HTTP/1.1 200 OK\r\n{many}\r\n"),
        "HTTP/1.1 200 OK\r\ncontent-length: many\r\n\r\n".to_owned(),
    ] {
        let begin: String = garbage.chars().take(30).collect();
        let (said, ..) = against(vec![Step::Request, send(garbage)], &Asked::stream()).await;
        assert!(said.contains("BadFrame: the answer is not HTTP/1.1"), "{begin:?}: {said}");
    }
    let bad_chunk = format!("{STREAM_HEAD}transfer-encoding: chunked\r\n\r\nzz\r\nabc");
    check(vec![Step::Request, send(bad_chunk)], "BadFrame: the body is not HTTP/1.1").await;

    let endless_line = format!("{STREAM_HEAD}\r\ndata: {}", "x".repeat(9 << 20));
    let (said, ..) = against(vec![Step::Request, send(endless_line)], &Asked::stream()).await;
    assert!(said.contains("BadFrame: "), "{said}");
}

#[tokio::test]
async fn a_server_that_dies_is_told_by_when_it_died() {
    let pieces = events(&["a", "b"]);
    let answer = chunked(&pieces);
    let within = answer[..answer.find("\"b\"").unwrap()].to_owned();
    let no_connection = "Connect: the connection broke before the first byte of the answer";
    check(vec![], no_connection).await;
    check(vec![Step::Reset], no_connection).await;
    check(vec![Step::Request], no_connection).await;
    check(vec![Step::Request, send("HTTP/1.1 200 O")], "TruncatedStream: broken within the header").await;
    check(vec![Step::Request, send(&within)], "Tokens TruncatedStream: ").await;
    check(vec![Step::Head, send(&within), Step::Reset], "Tokens TruncatedStream: ").await;
    let short = with_length(STREAM_HEAD, &pieces.concat());
    check(vec![Step::Request, send(&short[..short.find("\"b\"").unwrap()])], "Tokens TruncatedStream: ")
        .await;
    let unfinished = with_length(STREAM_HEAD, &pieces[..2].concat());
    let (said, ..) = against(vec![Step::Request, send(unfinished)], &Asked::stream()).await;
    assert!(said.contains("Tokens Tokens TruncatedStream: "), "{said}");
}

#[tokio::test]
async fn a_closed_port_is_a_failure_to_connect() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let dialer = dialer(&format!("http://{closed}"));
    let failed = dialer.open(Duration::from_secs(5), &Stop::new()).await.err().unwrap();
    let said = format!("{:?}: {failed}", failed.failure);
    assert!(said.starts_with(&format!("Connect: cannot connect to http://{closed}: {closed}: ")), "{said}");
    assert!(said.ends_with("is the server running there?"), "{said}");
}

#[tokio::test]
async fn each_limit_is_named_with_its_value() {
    let one = chunked(&events(&["a"]));
    let one = one[..one.find("\"stop\"").unwrap()].to_owned();
    let short = Duration::from_millis(60);
    let cases = [
        (
            vec![Step::Request, Step::Stall],
            Timeouts { first_byte: short, ..quick() },
            "answer within 60ms (first-byte limit)",
        ),
        (
            vec![Step::Request, send(&one), Step::Stall],
            Timeouts { between_tokens: short, ..quick() },
            "Tokens Timeout: no further byte within 60ms (between-token limit)",
        ),
        (
            vec![Step::Request, send(&one), Step::Stall],
            Timeouts { total: short, ..quick() },
            "Tokens Timeout: not finished within 60ms (total limit)",
        ),
        (
            vec![Step::Request, Step::Stall],
            Timeouts { total: short, first_byte: Duration::from_millis(80), ..quick() },
            "Timeout: not finished within 60ms (total limit)",
        ),
    ];
    for (script, timeouts, expected) in cases {
        let asked = Asked { timeouts, ..Asked::stream() };
        let (said, reusable, _) = against(script, &asked).await;
        assert!(said.contains(expected), "expected '{expected}' in '{said}'");
        assert!(!reusable);
    }
}

#[tokio::test]
async fn a_tls_handshake_that_stalls_reaches_the_connect_limit() {
    let server = Server::start(vec![vec![Step::Stall]]);
    let dialer = dialer(&format!("https://{}", server.address));
    let failed = dialer.open(Duration::from_millis(60), &Stop::new()).await.err().unwrap();
    let said = format!("{:?}: {failed}", failed.failure);
    assert!(said.starts_with("Timeout: not connected to https://127.0.0.1:"), "{said}");
    assert!(said.ends_with("within 60ms (connect limit)"), "{said}");
    server.heads();
}

#[tokio::test]
async fn an_answer_may_come_before_the_request_was_read() {
    let server = Server::start(vec![vec![
        Step::Head,
        send(with_length("HTTP/1.1 413 Payload Too Large\r\n", "too long")),
        Step::Stall,
    ]]);
    let dialer = dialer(&server.base());
    let long = bytes::Bytes::from(vec![b' '; 32 << 20]);
    let request = dialer.endpoint().post(Route::Completions, long).unwrap();
    let mut connection = open(&dialer).await;
    let exchange = connection.exchange(request, &Asked::stream().terms()).await;
    assert_eq!(words(&exchange), "Sent FirstByte Status: status 413 Payload Too Large: too long");
    drop(connection);
    server.heads();
}

#[tokio::test]
async fn the_stop_flag_ends_an_exchange_at_once() {
    let one = chunked(&events(&["a"]));
    let one = one[..one.find("\"stop\"").unwrap()].to_owned();
    let server = Server::start(vec![vec![Step::Request, send(one), Step::Stall]]);
    let dialer = dialer(&server.base());
    let asked = Asked::stream();
    let mut connection = open(&dialer).await;
    let stop = asked.stop.clone();
    let stopper = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(20));
        stop.stop();
    });
    let exchange = connection.exchange(request(&dialer), &asked.terms()).await;
    stopper.join().unwrap();
    assert!(words(&exchange).ends_with("Interrupted: stopped by the caller"), "{}", words(&exchange));
    assert!(!exchange.reusable);

    let unsent = connection.exchange(request(&dialer), &asked.terms()).await;
    assert_eq!(words(&unsent), "Interrupted: stopped by the caller before it was sent");
    assert!(dialer.open(Duration::from_secs(5), &asked.stop).await.is_err());
    drop(connection);
    server.heads();
}

#[tokio::test]
async fn a_body_that_does_not_end_after_done_costs_the_connection_and_not_the_answer() {
    let answer = chunked(&events(&["a", "b"]));
    let open_end = answer.strip_suffix("0\r\n\r\n").unwrap().to_owned();
    let (said, reusable, _) =
        against(vec![Step::Request, send(open_end), Step::Stall], &Asked::stream()).await;
    assert_eq!(said, GOOD);
    assert!(!reusable);
}

#[tokio::test]
async fn a_key_that_the_server_repeats_is_not_told() {
    let refusal = with_length("HTTP/1.1 401 Unauthorized\r\n", "bad key sk-very-secret, go away");
    let server = Server::start(vec![vec![Step::Request, send(refusal)]]);
    let endpoint = Endpoint::parse(&server.base()).unwrap();
    let endpoint = endpoint.with_api_key(&bench_http::ApiKey::new("sk-very-secret")).unwrap();
    let exchange = ask(&dialer_for(endpoint, &TlsOptions::default()), &Asked::stream()).await;
    assert!(words(&exchange).ends_with("Unauthorized: bad key ***, go away"), "{}", words(&exchange));
    assert!(server.heads()[0].contains("authorization: Bearer sk-very-secret\r\n"));
}

#[tokio::test]
async fn the_pool_reuses_what_is_open_and_counts_what_is_not() {
    let answer = chunked(&events(&["a", "b"]));
    let warm = with_length("HTTP/1.1 404 Not Found\r\n", "nothing here");
    let gate = Arc::new(Barrier::new(2));
    let closing = vec![Step::Request, send(&warm), Step::Gate(gate.clone())];
    let kept = vec![
        Step::Request,
        send(&warm),
        Step::Request,
        send(&answer),
        Step::Request,
        send(&answer),
        Step::Stall,
    ];
    let server = Server::start(vec![closing, kept, vec![Step::Stall]]);
    let pool = Pool::new(Arc::new(dialer(&server.base())));
    let asked = Asked::stream();
    let (timeouts, stop) = (&asked.timeouts, &asked.stop);
    let ahead = Ahead { connections: 2, at_once: 1, warm: Some(Route::Health), timeouts, stop };
    let opened = pool.open_ahead(&ahead).await;
    assert_eq!((opened.opened, opened.failed, pool.idle()), (2, 0, 2));

    for _ in 0..2 {
        let mut last = pool.take(timeouts, stop).await.unwrap();
        let exchange = last.exchange(request(pool.dialer()), &asked.terms()).await;
        assert_eq!(words(&exchange), GOOD);
        pool.give_back(last, exchange.reusable);
    }
    let last = pool.take(timeouts, stop).await.unwrap();
    let mut first = pool.take(timeouts, stop).await.unwrap();
    assert_eq!(pool.counts().reused, 4);
    gate.wait();
    while first.is_open() {
        // Lets the runtime hear of the closing.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    pool.give_back(first, true);
    let late = pool.take(timeouts, stop).await.unwrap();
    drop((last, late));
    let expected = PoolCounts { opened: 3, reused: 4, closed_by_server: 1, opened_late: 1 };
    assert_eq!(pool.counts(), expected);
    assert_eq!(server.heads().len(), 4);
}

#[tokio::test]
async fn a_kept_connection_that_closes_under_a_request_is_no_silent_retry() {
    let answer = chunked(&events(&["a", "b"]));
    let script = vec![Step::Request, send(answer), Step::Request];
    let server = Server::start(vec![script]);
    let dialer = dialer(&server.base());
    let asked = Asked::stream();
    let mut connection = open(&dialer).await;
    assert!(connection.exchange(request(&dialer), &asked.terms()).await.reusable);
    let second = connection.exchange(request(&dialer), &asked.terms()).await;
    let said = words(&second);
    assert!(said.starts_with("Sent Connect: the server closed a kept-alive connection"), "{said}");
    assert!(!connection.is_open());
    server.heads();
}

#[tokio::test]
async fn plain_requests_are_bounded() {
    let json = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n";
    let models = with_length(json, "{\"data\":[{\"id\":\"m\"}]}");
    let long = format!("{json}\r\n{}", "x".repeat(5000));
    let broken = with_length(json, "<html>");
    let missing = with_length("HTTP/1.1 404 Not Found\r\n", "nope");
    let scripts = [models, long, broken, missing].map(|bytes| vec![Step::Request, send(bytes)]);
    let server = Server::start(scripts.to_vec());
    let dialer = dialer(&server.base());
    let (timeouts, stop) = (quick(), Stop::new());
    let terms = plain::PlainTerms { limit_bytes: 1000, timeouts: &timeouts, stop: &stop };
    let mut said = Vec::new();
    for _ in 0..4 {
        let got = plain::get(&dialer, Route::Models, &terms).await;
        said.push(match got.and_then(|got| plain::json(&dialer, Route::Models, &got)) {
            Ok(value) => value.to_string(),
            Err(failed) => format!("{:?}: {failed}", failed.failure),
        });
    }
    assert_eq!(said[0], "{\"data\":[{\"id\":\"m\"}]}");
    assert_eq!(said[1], "BadFrame: the body is longer than 1000 bytes");
    assert!(said[2].starts_with("BadFrame: no JSON from http://127.0.0.1:"), "{}", said[2]);
    assert!(said[2].ends_with("it begins: <html>"), "{}", said[2]);
    assert!(said[3].starts_with("Status: status 404 Not Found from http://127.0.0.1:"), "{}", said[3]);
    assert!(server.heads()[0].starts_with("GET /v1/models HTTP/1.1\r\n"));
}

#[tokio::test]
async fn an_answer_that_is_not_streamed_has_one_stamp() {
    let body =
        "{\"choices\":[{\"text\":\"ab\",\"finish_reason\":\"length\"}],\"usage\":{\"completion_tokens\":2}}";
    let answer = with_length("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n", body);
    let mut asked = Asked::stream();
    asked.streamed = false;
    let server = Server::start(vec![vec![Step::Request, send(answer)]]);
    let exchange = ask(&dialer(&server.base()), &asked).await;
    server.heads();
    let tokens: Vec<_> =
        exchange.events.iter().filter(|event| matches!(event.kind, EventKind::Tokens { .. })).collect();
    assert_eq!(tokens.len(), 1);
    assert!(words(&exchange).ends_with("Done(Length)"), "{}", words(&exchange));
    assert!(exchange.events.is_sorted_by_key(|event| event.at_ns));
}
