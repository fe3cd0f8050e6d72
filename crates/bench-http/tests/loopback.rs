//! The loopback server from outside: raw bytes in, raw bytes out, and its log held against them.
//!
//! Times are zero here, or only bounded from below: how late the server is, is for its benchmark.
#![allow(clippy::unwrap_used)]

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bench_http::loopback::{
    Fault, Loopback, LoopbackHandle, LoopbackOptions, Outcome, RoleChunk, UsagePolicy, faults_in_order,
};
use bench_http::{Clock, SystemClock};

fn serve(options: LoopbackOptions) -> LoopbackHandle {
    Loopback::start(options, Arc::new(SystemClock::default())).unwrap()
}

fn faulty(fault: Fault) -> LoopbackHandle {
    serve(LoopbackOptions { faults: Some(faults_in_order(vec![Some(fault)])), ..LoopbackOptions::default() })
}

/// A connection that reads what its script of tests expects, and no further.
struct Client {
    socket: TcpStream,
    read: Vec<u8>,
}

impl Client {
    fn new(server: &LoopbackHandle) -> Self {
        let socket = TcpStream::connect(server.addr()).unwrap();
        // Only ends a test that would hang.
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Self { socket, read: Vec::new() }
    }

    fn send(&mut self, bytes: &str) {
        self.socket.write_all(bytes.as_bytes()).unwrap();
    }

    fn get(&mut self, path: &str) -> String {
        self.send(&format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n"));
        self.answer()
    }

    fn send_post(&mut self, path: &str, headers: &str, body: &str) {
        let length = body.len();
        self.send(&format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\n{headers}content-length: {length}\r\n\r\n{body}"
        ));
    }

    fn post(&mut self, path: &str, body: &str) -> String {
        self.send_post(path, "", body);
        self.answer()
    }

    /// Adds one read; false at the end of the connection.
    fn more(&mut self) -> bool {
        let mut buffer = [0; 16_384];
        match self.socket.read(&mut buffer) {
            Ok(n) => {
                self.read.extend_from_slice(&buffer[..n]);
                n > 0
            }
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => false,
            Err(e) => panic!("{e}; so far: {}", String::from_utf8_lossy(&self.read)),
        }
    }

    /// One answer, its end as its head says; with `<eof>` where the connection ended before.
    fn answer(&mut self) -> String {
        loop {
            let length = answer_length(&self.read);
            if let Some(length) = length.filter(|length| self.read.len() >= *length) {
                let rest = self.read.split_off(length);
                return plain(&std::mem::replace(&mut self.read, rest));
            }
            if !self.more() {
                return plain(&std::mem::take(&mut self.read)) + "<eof>";
            }
        }
    }

    /// Everything up to the end of the connection.
    fn rest(&mut self) -> String {
        while self.more() {}
        plain(&std::mem::take(&mut self.read))
    }
}

/// Bytes of the first answer, once that can be told. The last chunk of a body has no bytes.
fn answer_length(bytes: &[u8]) -> Option<usize> {
    let text = String::from_utf8_lossy(bytes);
    let head = text.find("\r\n\r\n")? + 4;
    if text[..head].contains("transfer-encoding: chunked") {
        return text[head..].find("\r\n0\r\n\r\n").map(|end| head + end + 7);
    }
    let (_, length) = text[..head].split_once("content-length: ")?;
    length.split_once("\r\n")?.0.parse::<usize>().ok().map(|length| head + length)
}

/// Without carriage returns, and with the server's start replaced by 0.
fn plain(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes).replace('\r', "");
    let mut parts = text.split("\"created\":");
    let mut out = parts.next().unwrap().to_owned();
    for part in parts {
        out += "\"created\":0";
        out += part.trim_start_matches(|c: char| c.is_ascii_digit());
    }
    out
}

/// The data of a stream's events, its framing taken off and checked.
fn events(answer: &str) -> Vec<String> {
    let (_, mut body) = answer.split_once("\n\n").unwrap();
    let mut events = Vec::new();
    loop {
        let (size, rest) = body.split_once('\n').unwrap();
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            assert_eq!(rest, "\n");
            return events;
        }
        // The start of the server has ten digits on the wire and one here.
        let shown = rest.find("\n\n").unwrap() + 2;
        let removed = if rest[..shown].contains("\"created\":0") { 9 } else { 0 };
        assert_eq!(size, shown + removed, "{rest}");
        events.push(rest[..shown].strip_prefix("data: ").unwrap().trim_end().to_owned());
        body = rest[shown..].strip_prefix('\n').unwrap();
    }
}

/// Returns once the server has seen the end of `requests` requests.
fn wait_for(server: &LoopbackHandle, requests: u64) {
    let begin = Instant::now();
    while server.log().finished() < requests {
        assert!(begin.elapsed() < Duration::from_secs(20), "the server does not finish");
        std::thread::sleep(Duration::from_millis(1));
    }
}

const COMPLETE: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

fn text_chunk(text: &str, finish: &str) -> String {
    format!(
        concat!(
            r#"{{"id":"cmpl-0","object":"text_completion","created":0,"model":"loopback","#,
            r#""choices":[{{"index":0,"text":"{}","logprobs":null,"finish_reason":{},"#,
            r#""stop_reason":null}}]}}"#
        ),
        text, finish
    )
}

#[test]
fn a_completion_is_streamed_as_vllm_does() {
    let server = serve(LoopbackOptions::default());
    let answer = Client::new(&server).post(
        COMPLETE,
        r#"{"prompt":"a b c","max_tokens":2,"stream":true,"stream_options":{"include_usage":true}}"#,
    );
    let head = "HTTP/1.1 200 OK\ncontent-type: text/event-stream; charset=utf-8\ncache-control: no-cache\n\
                x-request-id: 0\ntransfer-encoding: chunked\n\n";
    assert!(answer.starts_with(head), "{answer}");
    let usage = concat!(
        r#"{"id":"cmpl-0","object":"text_completion","created":0,"model":"loopback","choices":[],"#,
        r#""usage":{"prompt_tokens":3,"total_tokens":5,"completion_tokens":2,"#,
        r#""prompt_tokens_details":null}}"#
    );
    let expected = [
        text_chunk(" word", "null"),
        text_chunk(" word", "\"length\""),
        usage.to_owned(),
        "[DONE]".to_owned(),
    ];
    assert_eq!(events(&answer), expected);
}

#[test]
fn a_chat_begins_with_its_role_where_it_is_asked_to() {
    let role = concat!(
        r#"{"id":"chatcmpl-0","object":"chat.completion.chunk","created":0,"model":"loopback","#,
        r#""choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"#,
        r#""finish_reason":null}]}"#
    );
    let token = concat!(
        r#"{"id":"chatcmpl-0","object":"chat.completion.chunk","created":0,"model":"loopback","#,
        r#""choices":[{"index":0,"delta":{"content":" word"},"logprobs":null,"#,
        r#""finish_reason":"length","stop_reason":null}]}"#
    );
    for (role_chunk, expected) in [
        (RoleChunk::Never, vec![token, "[DONE]"]),
        (RoleChunk::AtOnce, vec![role, token, "[DONE]"]),
        (RoleChunk::WithFirstToken, vec![role, token, "[DONE]"]),
    ] {
        let server = serve(LoopbackOptions { role_chunk, ..LoopbackOptions::default() });
        let body = r#"{"messages":[{"role":"user","content":"hi"}],"max_completion_tokens":1,"stream":true}"#;
        assert_eq!(events(&Client::new(&server).post(CHAT, body)), expected, "{role_chunk:?}");
    }
}

#[test]
fn whole_answers_state_their_usage() {
    let server = serve(LoopbackOptions { cached_prompt_tokens: 3, ..LoopbackOptions::default() });
    let mut client = Client::new(&server);
    let head = "HTTP/1.1 200 OK\ncontent-type: application/json\ncontent-length:";
    let answer = client.post(COMPLETE, r#"{"model":"loopback","prompt":[1,2],"max_tokens":3}"#);
    assert!(answer.starts_with(head), "{answer}");
    assert!(
        answer.ends_with(
            "\nx-request-id: 0\n\n{\"id\":\"cmpl-0\",\"object\":\"text_completion\",\"created\":0,\
             \"model\":\"loopback\",\"choices\":[{\"index\":0,\"text\":\" word word word\",\"logprobs\":null,\
             \"finish_reason\":\"length\",\"stop_reason\":null}],\"usage\":{\"prompt_tokens\":2,\
             \"total_tokens\":5,\"completion_tokens\":3,\"prompt_tokens_details\":{\"cached_tokens\":2}}}"
        ),
        "{answer}"
    );
    // Four words and four of the template; no length asked for, so the default and `stop`.
    let answer = client.post(CHAT, r#"{"messages":[{"role":"user","content":"a b c d"}]}"#);
    assert!(answer.contains(r#""message":{"role":"assistant","content":" word"#), "{answer}");
    assert!(answer.contains(r#""finish_reason":"stop""#), "{answer}");
    assert!(
        answer.ends_with(concat!(
            r#""usage":{"prompt_tokens":8,"total_tokens":24,"completion_tokens":16,"#,
            r#""prompt_tokens_details":{"cached_tokens":3}}}"#
        )),
        "{answer}"
    );
}

#[test]
fn several_tokens_share_a_chunk_with_running_counts_and_ids() {
    let server = serve(LoopbackOptions {
        tokens_per_chunk: 3,
        usage: UsagePolicy::Continuous,
        ..LoopbackOptions::default()
    });
    let body = r#"{"prompt":"a","max_tokens":7,"stream":true,"return_token_ids":true}"#;
    let events = events(&Client::new(&server).post(COMPLETE, body));
    let tokens: Vec<_> = events[..3]
        .iter()
        .map(|event| {
            let value: serde_json::Value = serde_json::from_str(event).unwrap();
            let ids = value["choices"][0]["token_ids"].as_array().unwrap().len() as u64;
            (ids, value["usage"]["completion_tokens"].as_u64(), value["usage"]["total_tokens"].as_u64())
        })
        .collect();
    assert_eq!(tokens, [(3, Some(3), Some(4)), (3, Some(6), Some(7)), (1, Some(7), Some(8))]);
    assert!(events[3].contains(r#""choices":[],"usage":{"prompt_tokens":1,"total_tokens":8,"#));
    assert_eq!(events[4], "[DONE]");

    let server = serve(LoopbackOptions { usage: UsagePolicy::Never, ..LoopbackOptions::default() });
    let body = r#"{"prompt":"a","max_tokens":1,"stream":true,"stream_options":{"include_usage":true}}"#;
    assert!(!Client::new(&server).post(COMPLETE, body).contains("usage"));
}

#[test]
fn the_other_endpoints_answer() {
    let server = serve(LoopbackOptions { max_model_len: 9, ..LoopbackOptions::default() });
    let mut client = Client::new(&server);
    let json = |length: usize, body: &str| {
        format!("HTTP/1.1 200 OK\ncontent-type: application/json\ncontent-length: {length}\n\n{body}")
    };
    assert_eq!(client.get("/health"), "HTTP/1.1 200 OK\ncontent-type: text/plain\ncontent-length: 0\n\n");
    assert!(client.get("/version?x=y").ends_with(concat!(
        "{\"version\":\"",
        env!("CARGO_PKG_VERSION"),
        "\"}"
    )));
    let models = concat!(
        r#"{"object":"list","data":[{"id":"loopback","object":"model","created":0,"#,
        r#""owned_by":"loopback","root":"loopback","max_model_len":9}]}"#
    );
    assert_eq!(client.get("/v1/models"), json(models.len() + 9, models));
    let tokens = r#"{"count":3,"max_model_len":9,"tokens":[2220,35077,2220]}"#;
    assert_eq!(client.post("/tokenize", r#"{"prompt":"a b  a"}"#), json(tokens.len(), tokens));
    let tokens = r#"{"tokens":[2220,35077]}"#;
    assert_eq!(client.post("/tokenize", r#"{"content":"a b"}"#), json(tokens.len(), tokens));
    let answer = client.post("/tokenize", r#"{"messages":[{"role":"user","content":"a b"}]}"#);
    assert!(answer.contains("\"count\":6,"), "{answer}");
}

#[test]
fn what_is_wrong_is_said() {
    let server = serve(LoopbackOptions { max_model_len: 9, ..LoopbackOptions::default() });
    let mut client = Client::new(&server);
    let mut check = |method: &str, path: &str, body: &str, status: &str, message: &str| {
        client.send(&format!("{method} {path} HTTP/1.1\r\ncontent-length: {}\r\n\r\n{body}", body.len()));
        let answer = client.answer();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
        let (_, body) = answer.split_once("\n\n").unwrap();
        let value: serde_json::Value = serde_json::from_str(body).unwrap();
        let error = &value["error"];
        assert!(error["message"].as_str().unwrap().contains(message), "{answer}");
        assert_eq!(error["code"].to_string(), status[..3]);
    };
    check("GET", "/v2/x", "", "404 Not Found", "nothing at `/v2/x`");
    check("GET", COMPLETE, "", "405 Method Not Allowed", "GET is not allowed");
    check("POST", COMPLETE, "{\"prompt", "400 Bad Request", "cannot be read");
    check("POST", COMPLETE, "{\"prompt\":{\"a\":1.5},\"max_tokens\":-1}", "400 Bad Request", "expected u32");
    check("POST", COMPLETE, "{\"messages\":[]}", "400 Bad Request", "`prompt` is missing");
    check("POST", CHAT, "{\"prompt\":\"a\"}", "400 Bad Request", "`messages` is missing");
    check("POST", COMPLETE, "{\"prompt\":\"a\",\"max_tokens\":0}", "400 Bad Request", "at least 1");
    check("POST", COMPLETE, "{\"prompt\":\"a\",\"max_tokens\":9}", "400 Bad Request", "the model's 9");
    let other = r#"{"model":"gpt","prompt":"a"}"#;
    check("POST", COMPLETE, other, "404 Not Found", "`gpt` does not exist; there is `loopback`");
    check("POST", "/tokenize", "{}", "400 Bad Request", "`prompt`, `messages`, `content`");
    assert_eq!(server.server_error().n, 0);
    // After this the connection cannot be understood any more.
    client.send("hello\r\n\r\n");
    assert!(client.rest().starts_with("HTTP/1.1 400 Bad Request\n"));
}

#[test]
fn a_connection_carries_requests_until_one_says_close() {
    let server = serve(LoopbackOptions::default());
    let mut client = Client::new(&server);
    client.send(
        "POST /v1/completions HTTP/1.1\r\nx-request-id: my-id\r\ntransfer-encoding: chunked\r\n\r\n\
         e\r\n{\"prompt\":\"a\",\r\n1d\r\n\"max_tokens\":1,\"stream\":true}\r\n0\r\n\r\n",
    );
    let answer = client.answer();
    assert!(answer.contains("\nx-request-id: my-id\n") && answer.contains("\"cmpl-my-id\""), "{answer}");
    client.send_post(COMPLETE, "expect: 100-continue\r\n", r#"{"prompt":"a","max_tokens":1}"#);
    // The body came with the head, so that nobody is kept waiting; a client must accept both.
    assert!(client.answer().contains("\"cmpl-1\""));
    client.send_post(COMPLETE, "connection: close\r\n", r#"{"prompt":"a","max_tokens":1,"stream":true}"#);
    assert!(client.rest().ends_with("data: [DONE]\n\n\n0\n\n"));
}

/// What a client sees of a stream of three tokens, up to the end of the answer or of the connection.
fn stream_with(fault: Fault) -> (String, LoopbackHandle, Client) {
    let server = faulty(fault);
    let mut client = Client::new(&server);
    let answer = client.post(COMPLETE, r#"{"prompt":"a","max_tokens":3,"stream":true}"#);
    (answer, server, client)
}

#[test]
fn answers_other_than_200() {
    for (fault, status, header) in [
        (Fault::Status(429), "429 Too Many Requests", "\nretry-after: 1\n"),
        (Fault::Status(503), "503 Service Unavailable", "\nretry-after: 1\n"),
        (Fault::Status(500), "500 Internal Server Error", "\nx-request-id: 0\n"),
        (Fault::Redirect, "307 Temporary Redirect", "\nlocation: /moved\n"),
        (Fault::Compressed, "200 OK", "\ncontent-encoding: gzip\n"),
    ] {
        let (answer, _server, mut client) = stream_with(fault);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}\n")), "{answer}");
        assert!(answer.contains(header), "{answer}");
        // The fault was for the first request only, and the connection is whole.
        let next = client.post(COMPLETE, r#"{"prompt":"a","max_tokens":1,"stream":true}"#);
        assert_eq!(events(&next).len(), 2);
    }
}

#[test]
fn streams_that_end_wrongly_but_properly_framed() {
    let (token, last) = (text_chunk(" word", "null"), text_chunk(" word", "\"length\""));
    let done = "[DONE]".to_owned();
    let error = concat!(
        r#"{"error":{"message":"the engine died, as was asked for","type":"InternalServerError","#,
        r#""param":null,"code":500}}"#
    );
    let broken = r#"{"id":"cmpl-","choices":[{"index":0,"te"#;
    for (fault, expected) in [
        (Fault::NoDone, vec![token.clone(), token.clone(), last]),
        (Fault::NoFinish, vec![token.clone(), token.clone(), token.clone(), done.clone()]),
        (Fault::ErrorEvent, vec![token.clone(), error.to_owned(), done.clone()]),
        (Fault::BrokenJson, vec![token, broken.to_owned(), done]),
    ] {
        let (answer, _server, mut client) = stream_with(fault);
        assert_eq!(events(&answer), expected, "{fault:?}");
        let next = client.post(COMPLETE, r#"{"prompt":"a","max_tokens":1,"stream":true}"#);
        assert_eq!(events(&next).len(), 2, "{fault:?}");
    }
}

#[test]
fn connections_that_end_where_they_should_not() {
    let chunks = |answer: &str| answer.matches("data: {").count();
    let (answer, server, _) = stream_with(Fault::DropAfterTokens(2));
    assert!(answer.ends_with("}\n\n\n<eof>") && chunks(&answer) == 2, "{answer}");
    let log = server.stop();
    let served = log.take("0").unwrap();
    assert_eq!((served.output_tokens, served.outcome), (2, Outcome::Cut));

    let (answer, ..) = stream_with(Fault::DropAfterTokens(0));
    assert!(answer.ends_with("chunked\n\n<eof>"), "{answer}");
    let (answer, ..) = stream_with(Fault::DropBeforeAnswer);
    assert_eq!(answer, "<eof>");
    let (answer, ..) = stream_with(Fault::Garbage);
    assert!(answer.starts_with("\u{16}\u{3}\u{1}") && answer.ends_with("<eof>"), "{answer:?}");
    let (answer, _server, mut client) = stream_with(Fault::CloseAfterAnswer);
    assert_eq!(events(&answer).len(), 4);
    assert_eq!(client.rest(), "");
}

#[test]
fn whole_answers_meet_faults_too() {
    let whole = |fault| {
        let server = faulty(fault);
        let mut client = Client::new(&server);
        let answer = client.post(COMPLETE, r#"{"prompt":"a","max_tokens":3}"#);
        (answer, server)
    };
    assert_eq!(whole(Fault::DropAfterTokens(2)).0, "<eof>");
    assert!(whole(Fault::NoFinish).0.contains(r#""finish_reason":null"#));
    assert!(whole(Fault::ErrorEvent).0.starts_with("HTTP/1.1 500 Internal Server Error\n"));
    let (answer, _server) = whole(Fault::BrokenJson);
    let (_, body) = answer.split_once("\n\n").unwrap();
    assert!(serde_json::from_str::<serde_json::Value>(body).is_err());
}

#[test]
fn silence_lasts_until_the_client_or_the_server_ends_it() {
    for fault in [Fault::StallBeforeAnswer, Fault::StallAfterTokens(1)] {
        let server = faulty(fault);
        let mut client = Client::new(&server);
        client.send_post(COMPLETE, "", r#"{"prompt":"a","max_tokens":3,"stream":true}"#);
        // Other connections are served meanwhile.
        assert!(Client::new(&server).get("/health").starts_with("HTTP/1.1 200"));
        if fault == Fault::StallAfterTokens(1) {
            while !plain(&client.read).ends_with("}\n\n\n") {
                assert!(client.more());
            }
        }
        client.socket.set_read_timeout(Some(Duration::from_millis(30))).unwrap();
        let error = client.socket.read(&mut [0; 9]).unwrap_err();
        assert!(matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut), "{error}");
        server.stop();
        client.socket.set_read_timeout(None).unwrap();
        assert!(!client.more());
    }
}

#[test]
fn an_endless_line_goes_on_as_long_as_it_is_read() {
    let server = faulty(Fault::EndlessLine);
    let mut client = Client::new(&server);
    client.send_post(COMPLETE, "", r#"{"prompt":"a","stream":true}"#);
    while client.read.len() < 1 << 20 {
        assert!(client.more());
    }
    let text = plain(&client.read);
    assert_eq!(text.matches("data: ").count(), 1);
    assert!(text.contains("data: {\"id\":\"\n4000\naaaa"));
    drop(client);
    assert!(Client::new(&server).get("/health").starts_with("HTTP/1.1 200"));
}

#[test]
fn after_a_refusal_nobody_gets_in() {
    let server = faulty(Fault::Refuse);
    let mut early = Client::new(&server);
    assert!(early.get("/health").starts_with("HTTP/1.1 200"));
    assert_eq!(Client::new(&server).post(COMPLETE, r#"{"prompt":"a"}"#), "<eof>");
    // The listener closes on another thread.
    let refused = (0..10_000).any(|_| {
        std::thread::sleep(Duration::from_millis(1));
        TcpStream::connect(server.addr()).is_err()
    });
    assert!(refused);
    assert!(early.get("/health").starts_with("HTTP/1.1 200"));
}

#[test]
fn stamps_in_the_payload_are_those_of_the_log_and_never_early() {
    let clock = Arc::new(SystemClock::default());
    let options = LoopbackOptions {
        ttft_ns: 3_000_000,
        gap_ns: 1_000_000,
        stamp_payload: true,
        ..LoopbackOptions::default()
    };
    let server = Loopback::start(options, Arc::<SystemClock>::clone(&clock)).unwrap();
    let mut client = Client::new(&server);
    let before = clock.now_ns();
    client.send_post(COMPLETE, "x-request-id: r7\r\n", r#"{"prompt":"a b","max_tokens":5,"stream":true}"#);
    let events = events(&client.answer());
    let after = clock.now_ns();
    let stamps: Vec<u64> = events
        .iter()
        .filter_map(|event| serde_json::from_str::<serde_json::Value>(event).ok())
        .map(|value| value["sent_ns"].as_str().unwrap().parse().unwrap())
        .collect();
    let log = server.stop();
    let served = log.take("r7").unwrap();
    assert_eq!(served.written_ns, stamps);
    assert!(before <= served.arrival_ns && stamps[4] <= after);
    assert_eq!(served.first_due_ns, served.arrival_ns + 3_000_000);
    for (i, at) in (0..).zip(&stamps) {
        assert!(*at >= served.arrival_ns + 3_000_000 + i * 1_000_000);
    }
    assert_eq!((served.prompt_tokens, served.output_tokens, served.outcome), (2, 5, Outcome::Complete));
    let error = log.server_error();
    assert_eq!((error.n, error.max_ns), (5, served.errors_ns().max()));
}

/// A writer whose bytes can be read by the test.
#[derive(Clone, Default)]
struct Page(Arc<Mutex<Vec<u8>>>);

impl Write for Page {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn many_streams_on_two_threads_are_all_served_logged_and_counted() {
    let page = Page::default();
    let server = serve(LoopbackOptions {
        threads: 2,
        ttft_ns: 1_000_000,
        gap_ns: 200_000,
        log_cap: 50,
        summary: Some(Box::new(page.clone())),
        ..LoopbackOptions::default()
    });
    let mut clients: Vec<Client> = (0..80).map(|_| Client::new(&server)).collect();
    for client in &mut clients {
        client.send_post(COMPLETE, "", r#"{"prompt":"a b c","max_tokens":20,"stream":true}"#);
    }
    for client in &mut clients {
        assert_eq!(events(&client.answer()).len(), 21);
    }
    wait_for(&server, 80);
    let metrics = clients[0].get("/metrics");
    for line in [
        "vllm:num_requests_running{engine=\"0\",model_name=\"loopback\"} 0.0",
        "vllm:prompt_tokens_total{engine=\"0\",model_name=\"loopback\"} 240.0",
        "vllm:generation_tokens_total{engine=\"0\",model_name=\"loopback\"} 1600.0",
        "vllm:request_success_total{engine=\"0\",model_name=\"loopback\"} 80.0",
        "vllm:time_to_first_token_seconds_count{engine=\"0\",model_name=\"loopback\"} 80",
    ] {
        assert!(metrics.lines().any(|l| l == line), "{line} is not in\n{metrics}");
    }
    let log = server.stop();
    assert_eq!((log.finished(), log.beyond_cap(), log.server_error().n), (80, 30, 1600));
    let all = log.take_all();
    assert_eq!(all.len(), 50);
    assert!(all.is_sorted_by_key(|served| served.index));
    let lines = String::from_utf8(page.0.lock().unwrap().clone()).unwrap();
    assert_eq!(lines.lines().count(), 80);
    assert!(lines.lines().all(|line| line.contains(r#""output_tokens":20,"prompt_tokens":3,"#)), "{lines}");
}

#[test]
fn a_client_that_does_not_read_gets_every_byte_later() {
    let server = serve(LoopbackOptions {
        max_model_len: 10_000_000,
        tokens_per_chunk: 1_000,
        ..LoopbackOptions::default()
    });
    let mut slow = Client::new(&server);
    slow.send_post(
        COMPLETE,
        "x-request-id: slow\r\n",
        r#"{"prompt":"a","max_tokens":4000000,"stream":true}"#,
    );
    // More than any socket buffers hold, so that the server cannot be done; others do not wait for it.
    let body = r#"{"prompt":"a","max_tokens":1000,"stream":true}"#;
    assert_eq!(events(&Client::new(&server).post(COMPLETE, body)).len(), 2);
    wait_for(&server, 1);
    assert_eq!(server.log().finished(), 1);
    let mut words = 0;
    loop {
        assert!(slow.more());
        let end = slow.read.ends_with(b"\r\n0\r\n\r\n");
        // Keep what may be half a word.
        let keep = if end { 0 } else { slow.read.len().min(64) };
        let cut = slow.read.len() - keep;
        let cut = slow.read[..cut].iter().rposition(|b| *b == b' ').filter(|_| !end).unwrap_or(cut);
        let rest = slow.read.split_off(cut);
        words += String::from_utf8_lossy(&std::mem::replace(&mut slow.read, rest)).matches(" word").count();
        if end {
            break;
        }
    }
    assert_eq!(words, 4_000_000);
    let served = server.stop().take("slow").unwrap();
    assert_eq!((served.output_tokens, served.written_ns.len()), (4_000_000, 4_000));
}

#[test]
fn a_client_that_goes_away_is_noticed() {
    let server = serve(LoopbackOptions { gap_ns: 1_000_000, ..LoopbackOptions::default() });
    let mut client = Client::new(&server);
    client.send_post(COMPLETE, "", r#"{"prompt":"a","max_tokens":100000,"stream":true}"#);
    assert!(client.more());
    drop(client);
    wait_for(&server, 1);
    let served = server.stop().take("0").unwrap();
    assert_eq!(served.outcome, Outcome::Broken);
    assert!(served.output_tokens < 100_000);
}

#[test]
fn an_address_in_use_is_named() {
    let server = serve(LoopbackOptions::default());
    let options = LoopbackOptions { bind: server.addr(), ..LoopbackOptions::default() };
    let error = Loopback::start(options, Arc::new(SystemClock::default())).err().unwrap().to_string();
    assert!(error.contains(&server.addr().to_string()) && error.contains("port 0"), "{error}");
}
