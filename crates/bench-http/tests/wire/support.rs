//! What the tests of the wire share: a server that follows a script of bytes, and words for what came of it.
//!
//! It never sleeps: a server that stalls waits until the client goes away.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Barrier, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use bench_http::{
    Api, BodyTemplate, Connection, Dialer, Endpoint, Event, EventKind, Exchange, Prompt, Route, Stop,
    SystemClock, Terms, Timeouts, TlsOptions, Variable,
};
use bytes::Bytes;
use http::Request;

/// One thing that the server does on a connection.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    /// Reads a head and as much body as its content length says.
    Request,
    /// Reads a head and leaves the body where it is.
    Head,
    Send(Vec<u8>),
    /// Waits until the client closes.
    Stall,
    /// Waits until the test comes to the same gate.
    Gate(Arc<Barrier>),
    /// Closes so that the client sees a reset: with bytes of the request unread.
    Reset,
}

pub(crate) fn send(bytes: impl AsRef<[u8]>) -> Step {
    Step::Send(bytes.as_ref().to_vec())
}

/// A server with one script per connection, in the order of their coming; then it is gone.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    thread: Option<JoinHandle<Vec<String>>>,
}

impl Server {
    pub(crate) fn start(scripts: Vec<Vec<Step>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let thread = std::thread::spawn(move || {
            let heads = Mutex::new(Vec::new());
            std::thread::scope(|scope| {
                for script in scripts {
                    let (stream, _) = listener.accept().unwrap();
                    let heads = &heads;
                    scope.spawn(move || run(stream, script, heads));
                }
            });
            heads.into_inner().unwrap()
        });
        Self { address, thread: Some(thread) }
    }

    pub(crate) fn base(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The heads of all requests, once all scripts have run.
    pub(crate) fn heads(mut self) -> Vec<String> {
        self.thread.take().unwrap().join().unwrap()
    }
}

fn run(mut stream: TcpStream, script: Vec<Step>, heads: &Mutex<Vec<String>>) {
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    for step in script {
        match step {
            Step::Request => {
                let head = read_request(&mut stream, true);
                heads.lock().unwrap().push(head);
            }
            Step::Head => {
                let head = read_request(&mut stream, false);
                heads.lock().unwrap().push(head);
            }
            Step::Gate(gate) => {
                gate.wait();
            }
            // The client may have gone on purpose.
            Step::Send(bytes) => {
                let _ = stream.write_all(&bytes);
            }
            Step::Stall => {
                let mut sink = [0; 1024];
                while matches!(stream.read(&mut sink), Ok(1..)) {}
            }
            // Dropping a socket whose receive queue holds bytes sends RST.
            Step::Reset => {
                let mut one = [0; 1];
                let _ = stream.peek(&mut one);
                return;
            }
        }
    }
    let _ = stream.shutdown(Shutdown::Write);
}

pub(crate) fn read_request(stream: &mut impl Read, with_body: bool) -> String {
    let mut head = Vec::new();
    let mut byte = [0; 1];
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            Ok(_) => return "closed".to_owned(),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return "reset".to_owned(),
            Err(error) => panic!("no request: {error}"),
        }
    }
    let head = String::from_utf8(head).unwrap();
    if with_body {
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let mut body = vec![0; length.map_or(0, |text| text.parse().unwrap())];
        stream.read_exact(&mut body).unwrap();
    }
    head
}

/// A stream of completions with these tokens, finish reason and `[DONE]`.
pub(crate) fn events(tokens: &[&str]) -> Vec<String> {
    let mut events: Vec<String> = tokens
        .iter()
        .map(|text| {
            format!("data: {{\"choices\":[{{\"index\":0,\"text\":\"{text}\",\"finish_reason\":null}}]}}\n\n")
        })
        .collect();
    events
        .push("data: {\"choices\":[{\"index\":0,\"text\":\"\",\"finish_reason\":\"stop\"}]}\n\n".to_owned());
    events.push("data: [DONE]\n\n".to_owned());
    events
}

pub(crate) const STREAM_HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n";

/// Each piece as one chunk of its own, and the end.
pub(crate) fn chunked(pieces: &[String]) -> String {
    let chunks: Vec<String> =
        pieces.iter().map(|piece| format!("{:x}\r\n{piece}\r\n", piece.len())).collect();
    format!("{STREAM_HEAD}transfer-encoding: chunked\r\n\r\n{}0\r\n\r\n", chunks.concat())
}

pub(crate) fn with_length(head: &str, body: &str) -> String {
    format!("{head}content-length: {}\r\n\r\n{body}", body.len())
}

pub(crate) fn quick() -> Timeouts {
    Timeouts {
        connect: Duration::from_secs(5),
        first_byte: Duration::from_secs(5),
        between_tokens: Duration::from_secs(5),
        total: Duration::from_secs(8),
    }
}

pub(crate) fn dialer(base: &str) -> Dialer {
    dialer_for(Endpoint::parse(base).unwrap(), &TlsOptions::default())
}

pub(crate) fn dialer_for(endpoint: Endpoint, tls: &TlsOptions) -> Dialer {
    Dialer::new(endpoint, tls, Arc::new(SystemClock::default())).unwrap()
}

pub(crate) fn request(dialer: &Dialer) -> Request<Bytes> {
    let template = BodyTemplate::new(Api::Completions, "m");
    let body = template.render(&Variable::new(&Prompt::Text("hello".to_owned()))).unwrap();
    dialer.endpoint().post(Route::Completions, body).unwrap()
}

pub(crate) struct Asked {
    pub(crate) streamed: bool,
    pub(crate) timeouts: Timeouts,
    pub(crate) stop: Stop,
}

impl Asked {
    pub(crate) fn stream() -> Self {
        Self { streamed: true, timeouts: quick(), stop: Stop::new() }
    }

    pub(crate) fn terms(&self) -> Terms<'_> {
        Terms {
            streamed: self.streamed,
            keep_text: true,
            expected_tokens: 0,
            timeouts: &self.timeouts,
            stop: &self.stop,
        }
    }
}

/// One exchange on a connection of its own.
pub(crate) async fn ask(dialer: &Dialer, asked: &Asked) -> Exchange {
    let mut connection = open(dialer).await;
    connection.exchange(request(dialer), &asked.terms()).await
}

pub(crate) async fn open(dialer: &Dialer) -> Connection {
    dialer.open(Duration::from_secs(5), &Stop::new()).await.unwrap()
}

/// What happened, without times: `Sent FirstByte Tokens Done(Stop)`, or the failure with its message.
pub(crate) fn words(exchange: &Exchange) -> String {
    let word = |event: &Event| match &event.kind {
        EventKind::Tokens { .. } => "Tokens".to_owned(),
        EventKind::Done { finish } => format!("Done({finish:?})"),
        EventKind::Failed { failure, message } => format!("{failure:?}: {message}"),
        other => format!("{other:?}"),
    };
    exchange.events.iter().map(word).collect::<Vec<_>>().join(" ")
}

pub(crate) fn content(exchange: &Exchange) -> &str {
    exchange.text.as_ref().map_or("", |text| &text.content)
}
