//! HTTP/1.1 as far as the loopback server needs it: one request at a time off a byte buffer, answers' heads.
//!
//! Knows no route and no socket; the connection feeds it bytes and asks whether a request is whole.

use std::io::Write as _;

/// The head of a request may be this long, its body [`MAX_BODY_BYTES`].
const MAX_HEAD_BYTES: usize = 64 << 10;
const MAX_BODY_BYTES: usize = 64 << 20;
const MAX_HEADERS: usize = 100;

/// A request, whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) method: String,
    /// Without the query.
    pub(super) path: String,
    /// `x-request-id`, if it can be repeated in a header and in JSON as it is.
    pub(super) id: Option<String>,
    pub(super) keep_alive: bool,
    pub(super) body: Vec<u8>,
}

/// A request that cannot be answered on its own terms; the connection ends after this status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) status: u16,
    pub(super) why: String,
}

fn refused(status: u16, why: impl Into<String>) -> Refused {
    Refused { status, why: why.into() }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    Length(usize),
    Chunked,
}

struct Head {
    request: Request,
    framing: Framing,
    /// Bytes of the head.
    length: usize,
    expects_continue: bool,
}

/// Bytes that have arrived and are not yet a request.
#[derive(Default)]
pub(super) struct Inlet {
    bytes: Vec<u8>,
    head: Option<Head>,
    /// How far a chunked body has been decoded.
    decoded_to: usize,
}

impl Inlet {
    /// Where more bytes go.
    pub(super) fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Whether the client waits for `100 Continue` now; asked after [`Inlet::request`] gave nothing.
    pub(super) fn take_continue(&mut self) -> bool {
        self.head.as_mut().is_some_and(|head| std::mem::take(&mut head.expects_continue))
    }

    /// The request, once all its bytes are there.
    pub(super) fn request(&mut self) -> Result<Option<Request>, Refused> {
        if self.head.is_none() {
            self.head = parse_head(&self.bytes)?;
            self.decoded_to = self.head.as_ref().map_or(0, |head| head.length);
        }
        let Some(head) = &mut self.head else { return Ok(None) };
        let end = match head.framing {
            Framing::Length(length) => {
                let end = head.length + length;
                if self.bytes.len() < end {
                    return Ok(None);
                }
                head.request.body = self.bytes[head.length..end].to_vec();
                end
            }
            Framing::Chunked => {
                if !decode_chunks(&self.bytes, &mut self.decoded_to, &mut head.request.body)? {
                    return Ok(None);
                }
                self.decoded_to
            }
        };
        self.bytes.drain(..end);
        Ok(self.head.take().map(|head| head.request))
    }
}

fn parse_head(bytes: &[u8]) -> Result<Option<Head>, Refused> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Request::new(&mut headers);
    let length = match parsed.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if bytes.len() > MAX_HEAD_BYTES => {
            return Err(refused(431, format!("the head is longer than {MAX_HEAD_BYTES} bytes")));
        }
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(e) => return Err(refused(400, format!("the head is no HTTP: {e}"))),
    };
    if parsed.version != Some(1) {
        return Err(refused(505, "only HTTP/1.1 is spoken here"));
    }
    let target = parsed.path.unwrap_or("/");
    let mut head = Head {
        request: Request {
            method: parsed.method.unwrap_or_default().to_owned(),
            path: target.split('?').next().unwrap_or_default().to_owned(),
            id: None,
            keep_alive: true,
            body: Vec::new(),
        },
        framing: Framing::Length(0),
        length,
        expects_continue: false,
    };
    for header in parsed.headers.iter() {
        read_header(&mut head, header.name, header.value)?;
    }
    Ok(Some(head))
}

fn read_header(head: &mut Head, name: &str, value: &[u8]) -> Result<(), Refused> {
    let text = std::str::from_utf8(value).unwrap_or_default().trim();
    if name.eq_ignore_ascii_case("content-length") {
        let length =
            text.parse().map_err(|_| refused(400, format!("content-length `{text}` is no number")))?;
        if length > MAX_BODY_BYTES {
            return Err(refused(
                413,
                format!("a body of {length} bytes, at most {MAX_BODY_BYTES} are taken"),
            ));
        }
        if head.framing != Framing::Chunked {
            head.framing = Framing::Length(length);
        }
    } else if name.eq_ignore_ascii_case("transfer-encoding") {
        if !text.eq_ignore_ascii_case("chunked") {
            return Err(refused(501, format!("transfer-encoding `{text}`, only chunked is known")));
        }
        head.framing = Framing::Chunked;
    } else if name.eq_ignore_ascii_case("connection") {
        head.request.keep_alive = !text.split(',').any(|word| word.trim().eq_ignore_ascii_case("close"));
    } else if name.eq_ignore_ascii_case("expect") {
        head.expects_continue = text.eq_ignore_ascii_case("100-continue");
    } else if name.eq_ignore_ascii_case("x-request-id") && is_plain(text) {
        head.request.id = Some(text.to_owned());
    }
    Ok(())
}

/// Whether an id needs no escape in a header or in a JSON string.
fn is_plain(id: &str) -> bool {
    (1..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic() && b != b'"' && b != b'\\')
}

/// Decodes as many whole chunks as are there; true once the last one and the trailer have been read.
fn decode_chunks(bytes: &[u8], at: &mut usize, body: &mut Vec<u8>) -> Result<bool, Refused> {
    let malformed = || refused(400, "the chunked body is malformed");
    loop {
        let Ok(status) = httparse::parse_chunk_size(&bytes[*at..]) else { return Err(malformed()) };
        let httparse::Status::Complete((line, size)) = status else { return Ok(false) };
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        if size > MAX_BODY_BYTES - body.len() {
            return Err(refused(413, format!("a body of more than {MAX_BODY_BYTES} bytes")));
        }
        let start = *at + line;
        if size == 0 {
            // The trailer: header lines up to an empty one.
            let rest = &bytes[start..];
            let end = if rest.starts_with(b"\r\n") {
                Some(2)
            } else {
                memchr::memmem::find(rest, b"\r\n\r\n").map(|i| i + 4)
            };
            return match end {
                Some(end) => {
                    *at = start + end;
                    Ok(true)
                }
                None if rest.len() > MAX_HEAD_BYTES => Err(malformed()),
                None => Ok(false),
            };
        }
        let Some(chunk) = bytes.get(start..start + size + 2) else { return Ok(false) };
        if !chunk.ends_with(b"\r\n") {
            return Err(malformed());
        }
        body.extend_from_slice(&chunk[..size]);
        *at = start + size + 2;
    }
}

/// A status and the words that go with it.
fn status_line(status: u16) -> String {
    let words =
        http::StatusCode::from_u16(status).ok().and_then(|s| s.canonical_reason()).unwrap_or("Unnamed");
    format!("HTTP/1.1 {status} {words}\r\n")
}

/// A whole answer with its length; `more` are header lines, each with its line end.
pub(super) fn whole_answer(status: u16, content_type: &str, more: &str, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(body.len() + 200);
    out.extend_from_slice(status_line(status).as_bytes());
    let _ = write!(out, "content-type: {content_type}\r\ncontent-length: {}\r\n{more}\r\n", body.len());
    out.extend_from_slice(body);
    out
}

/// The head of a stream of server-sent events; its body is chunked.
pub(super) fn stream_head(id: &str, more: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n\
         x-request-id: {id}\r\ntransfer-encoding: chunked\r\n{more}\r\n"
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::{Inlet, Refused, Request, whole_answer};

    /// Feeds the text byte by byte; the requests that came out.
    fn feed(text: &str) -> Result<Vec<Request>, Refused> {
        let (mut inlet, mut requests) = (Inlet::default(), Vec::new());
        for byte in text.bytes() {
            inlet.buffer().push(byte);
            requests.extend(inlet.request()?);
        }
        Ok(requests)
    }

    fn body(text: &str) -> String {
        String::from_utf8(feed(text).unwrap().remove(0).body).unwrap()
    }

    #[test]
    fn requests_come_out_one_after_another() {
        let text = "POST /a?b=c HTTP/1.1\r\nContent-Length: 3\r\nX-Request-Id: r-1\r\n\r\nabc\
                    GET /d HTTP/1.1\r\nconnection: keep-alive, Close\r\n\r\n";
        let requests = feed(text).unwrap();
        assert_eq!(requests.len(), 2);
        assert_eq!(requests[0].path, "/a");
        assert_eq!(requests[0].id.as_deref(), Some("r-1"));
        assert_eq!(requests[0].body, b"abc");
        assert!(requests[0].keep_alive);
        assert_eq!((requests[1].method.as_str(), requests[1].path.as_str()), ("GET", "/d"));
        assert!(!requests[1].keep_alive);
    }

    #[test]
    fn chunked_bodies_are_joined() {
        let head = "POST / HTTP/1.1\r\ntransfer-encoding: Chunked\r\n\r\n";
        assert_eq!(body(&format!("{head}3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\n\r\n")), "abc0123456789");
        assert_eq!(body(&format!("{head}1\r\nz\r\n0\r\nchecksum: 5\r\n\r\n")), "z");
        assert_eq!(feed(&format!("{head}3\r\nabcdef\r\n")).unwrap_err().status, 400);
        assert_eq!(feed(&format!("{head}fffffffff\r\n")).unwrap_err().status, 413);
        assert_eq!(feed(&format!("{head}ffffffffffffffff\r\n")).unwrap_err().status, 413);
        assert_eq!(feed(&format!("{head}xyz\r\n")).unwrap_err().status, 400);
    }

    #[test]
    fn what_is_no_request_is_refused() {
        let status = |text: &str| feed(text).unwrap_err().status;
        assert_eq!(status("\u{16}\u{3}\u{1}hello\r\n\r\n"), 400);
        assert_eq!(status("GET / HTTP/1.0\r\n\r\n"), 505);
        assert_eq!(status("POST / HTTP/1.1\r\ncontent-length: many\r\n\r\n"), 400);
        assert_eq!(status("POST / HTTP/1.1\r\ncontent-length: 99999999999\r\n\r\n"), 413);
        assert_eq!(status("POST / HTTP/1.1\r\ntransfer-encoding: gzip\r\n\r\n"), 501);
        let endless = format!("GET / HTTP/1.1\r\nx: {}", "y".repeat(70_000));
        let mut inlet = Inlet::default();
        inlet.buffer().extend_from_slice(endless.as_bytes());
        assert_eq!(inlet.request().unwrap_err().status, 431);
    }

    #[test]
    fn an_id_that_needs_escapes_is_not_repeated() {
        for id in ["a\"b", "a\\b", "a b", &"x".repeat(129)] {
            let requests = feed(&format!("GET / HTTP/1.1\r\nx-request-id: {id}\r\n\r\n")).unwrap();
            assert_eq!(requests[0].id, None, "{id}");
        }
    }

    #[test]
    fn a_client_may_wait_for_leave_to_send() {
        let mut inlet = Inlet::default();
        let head = b"POST / HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 1\r\n\r\n";
        inlet.buffer().extend_from_slice(head);
        assert_eq!(inlet.request(), Ok(None));
        assert!(inlet.take_continue());
        assert!(!inlet.take_continue());
        inlet.buffer().push(b'x');
        assert_eq!(inlet.request().unwrap().unwrap().body, b"x");
    }

    #[test]
    fn an_answer_states_its_length() {
        let text = String::from_utf8(whole_answer(404, "text/plain", "a: b\r\n", b"no")).unwrap();
        assert_eq!(
            text,
            "HTTP/1.1 404 Not Found\r\ncontent-type: text/plain\r\ncontent-length: 2\r\na: b\r\n\r\nno"
        );
    }
}
