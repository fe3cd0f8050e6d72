//! HTTP/1.1 as a client needs it, on byte slices: a request's head out, an answer's head in, body framing.
//!
//! It does no I/O and keeps no body: what one read brought is decoded in place, so that an open stream costs
//! no buffer and a byte's stamp is that of its own read. What is not HTTP/1.1 is refused and never repaired.

use http::header::{HeaderMap, HeaderName};
use http::{Request, StatusCode};

/// The longest head of an answer. Gateways send cookies and policies of several kilobytes.
pub(crate) const HEAD_BYTES: usize = 64 * 1024;
const HEADERS: usize = 128;

/// Chunk extensions and trailers are read over; more of them than this is no answer.
const IGNORED_BYTES: u64 = 16 * 1024;

/// The head of a request as it goes out; a length is stated where there is a body, and for each POST.
pub(crate) fn encode<B: AsRef<[u8]>>(request: &Request<B>) -> Vec<u8> {
    let mut out = Vec::with_capacity(512);
    out.extend_from_slice(request.method().as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(request.uri().path_and_query().map_or("/", |path| path.as_str()).as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\n");
    for (name, value) in request.headers() {
        line(&mut out, name, value.as_bytes());
    }
    let length = request.body().as_ref().len();
    if length > 0 || request.method() == http::Method::POST {
        line(&mut out, &http::header::CONTENT_LENGTH, length.to_string().as_bytes());
    }
    out.extend_from_slice(b"\r\n");
    out
}

fn line(out: &mut Vec<u8>, name: &HeaderName, value: &[u8]) {
    out.extend_from_slice(name.as_str().as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// The head of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) framing: Framing,
    /// Whether the server means to keep the connection.
    pub(crate) keep_alive: bool,
}

/// How the end of a body is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    Length(u64),
    Chunked,
    /// The server closes.
    ToEnd,
}

/// Looks for a head at the beginning of the bytes: the head and its length, or `None` if more are needed.
/// Interim answers (100 Continue and the like) are passed over.
pub(crate) fn parse(bytes: &[u8]) -> Result<Option<(Head, usize)>, String> {
    let mut from = 0;
    loop {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS];
        let mut response = httparse::Response::new(&mut headers);
        let length = match response.parse(&bytes[from..]) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) if bytes.len() >= HEAD_BYTES => {
                return Err(format!("the head is longer than {HEAD_BYTES} bytes"));
            }
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(httparse::Error::TooManyHeaders) => return Err(format!("more than {HEADERS} headers")),
            Err(error) => return Err(error.to_string()),
        };
        from += length;
        let code = response.code.unwrap_or_default();
        // 101 is final: the connection speaks something else from here on.
        if (100..200).contains(&code) && code != 101 {
            continue;
        }
        return head(code, response.version.unwrap_or_default(), response.headers)
            .map(|head| Some((head, from)));
    }
}

fn head(code: u16, minor_version: u8, raw: &[httparse::Header<'_>]) -> Result<Head, String> {
    let status = StatusCode::from_u16(code).map_err(|_| format!("status {code}"))?;
    let mut headers = HeaderMap::with_capacity(raw.len());
    for header in raw {
        let name = HeaderName::from_bytes(header.name.as_bytes());
        let value = http::HeaderValue::from_bytes(header.value);
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    let (framing, certain) = framing(status, &headers)?;
    let keeps = tokens(&headers, &http::header::CONNECTION);
    let keep_alive = match minor_version {
        0 => keeps.iter().any(|token| token == "keep-alive"),
        _ => !keeps.iter().any(|token| token == "close"),
    };
    let keep_alive = keep_alive && certain && framing != Framing::ToEnd && code != 101;
    Ok(Head { status, headers, framing, keep_alive })
}

/// RFC 9112, section 6.3. The flag says that both ends agree for certain where the next answer begins.
fn framing(status: StatusCode, headers: &HeaderMap) -> Result<(Framing, bool), String> {
    let lengths = tokens(headers, &http::header::CONTENT_LENGTH);
    let codings = tokens(headers, &http::header::TRANSFER_ENCODING);
    if status.is_informational() || matches!(status.as_u16(), 204 | 304) {
        return Ok((Framing::Length(0), true));
    }
    match codings.as_slice() {
        [] => {}
        [coding] if coding == "chunked" => return Ok((Framing::Chunked, lengths.is_empty())),
        _ => return Err(format!("transfer-encoding '{}', expected chunked", codings.join(", "))),
    }
    let Some(first) = lengths.first() else { return Ok((Framing::ToEnd, true)) };
    if lengths.iter().any(|other| other != first) || !first.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!("content-length '{}'", lengths.join(", ")));
    }
    let length = first.parse().map_err(|_| format!("content-length '{first}'"))?;
    Ok((Framing::Length(length), true))
}

fn tokens(headers: &HeaderMap, name: &HeaderName) -> Vec<String> {
    let values =
        headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    values
        .flat_map(|value| value.split(',').map(|token| token.trim().to_ascii_lowercase()).collect::<Vec<_>>())
        .collect()
}

/// Takes the framing off a body, piece by piece, and keeps none of it.
#[derive(Debug, Clone)]
pub(crate) struct Decoder {
    state: State,
    /// Bytes of extensions and trailers so far.
    ignored: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// In a chunk's size; whether a digit has been seen.
    Size {
        size: u64,
        digits: bool,
    },
    Extension {
        size: u64,
    },
    SizeLineFeed {
        size: u64,
    },
    Data {
        left: u64,
    },
    DataReturn,
    DataLineFeed,
    /// In a line after the last chunk; whether it is empty so far.
    Trailer {
        empty: bool,
    },
    TrailerLineFeed {
        empty: bool,
    },
    Length {
        left: u64,
    },
    ToEnd,
    End,
}

impl Decoder {
    pub(crate) fn new(framing: Framing) -> Self {
        let state = match framing {
            Framing::Length(0) => State::End,
            Framing::Length(left) => State::Length { left },
            Framing::Chunked => State::Size { size: 0, digits: false },
            Framing::ToEnd => State::ToEnd,
        };
        Self { state, ignored: 0 }
    }

    /// The whole body has been seen.
    pub(crate) fn is_end(&self) -> bool {
        self.state == State::End
    }

    /// Whether the body may end with the connection.
    pub(crate) fn may_close(&self) -> bool {
        matches!(self.state, State::ToEnd | State::End)
    }

    /// The next piece of the body within the bytes, which are shortened by what was read. `None` when they
    /// are used up, or the body is at its end: then what is left of them does not belong to it.
    pub(crate) fn next<'a>(&mut self, bytes: &mut &'a [u8]) -> Result<Option<&'a [u8]>, String> {
        while !bytes.is_empty() {
            match self.state {
                State::End => return Ok(None),
                State::ToEnd => return Ok(Some(std::mem::take(bytes))),
                State::Length { left } => {
                    let (piece, left) = take(bytes, left);
                    self.state = if left == 0 { State::End } else { State::Length { left } };
                    return Ok(Some(piece));
                }
                State::Data { left } => {
                    let (piece, left) = take(bytes, left);
                    self.state = if left == 0 { State::DataReturn } else { State::Data { left } };
                    return Ok(Some(piece));
                }
                _ => {
                    let byte = bytes[0];
                    *bytes = &bytes[1..];
                    self.state = self.line(byte)?;
                }
            }
        }
        Ok(None)
    }

    /// One byte of the lines around chunks.
    fn line(&mut self, byte: u8) -> Result<State, String> {
        let state = match (self.state, byte) {
            (State::Size { size, .. }, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                let digit = u64::from((byte as char).to_digit(16).unwrap_or_default());
                let size = size.checked_mul(16).ok_or("a chunk's size that overflows")? + digit;
                State::Size { size, digits: true }
            }
            (State::Size { size, digits: true } | State::Extension { size }, b'\r') => {
                State::SizeLineFeed { size }
            }
            (State::Size { size, digits: true }, b';' | b' ' | b'\t') => State::Extension { size },
            (State::Extension { size }, byte) if byte != b'\n' => {
                self.ignore()?;
                State::Extension { size }
            }
            (State::SizeLineFeed { size: 0 }, b'\n') => State::Trailer { empty: true },
            (State::SizeLineFeed { size }, b'\n') => State::Data { left: size },
            (State::DataReturn, b'\r') => State::DataLineFeed,
            (State::DataLineFeed, b'\n') => State::Size { size: 0, digits: false },
            (State::Trailer { empty }, b'\r') => State::TrailerLineFeed { empty },
            (State::Trailer { .. }, byte) if byte != b'\n' => {
                self.ignore()?;
                State::Trailer { empty: false }
            }
            (State::TrailerLineFeed { empty: true }, b'\n') => State::End,
            (State::TrailerLineFeed { .. }, b'\n') => State::Trailer { empty: true },
            (state, byte) => {
                return Err(format!("'{}' in {}", byte.escape_ascii(), place(state)));
            }
        };
        Ok(state)
    }

    fn ignore(&mut self) -> Result<(), String> {
        self.ignored += 1;
        if self.ignored > IGNORED_BYTES {
            return Err(format!("more than {IGNORED_BYTES} bytes of chunk extensions and trailers"));
        }
        Ok(())
    }
}

fn place(state: State) -> &'static str {
    match state {
        State::Size { .. } | State::Extension { .. } | State::SizeLineFeed { .. } => {
            "the size line of a chunk"
        }
        State::DataReturn | State::DataLineFeed => "place of the line end after a chunk",
        _ => "the trailers",
    }
}

fn take<'a>(bytes: &mut &'a [u8], left: u64) -> (&'a [u8], u64) {
    let length = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
    let (piece, rest) = bytes.split_at(length);
    *bytes = rest;
    (piece, left - length as u64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(text: &str) -> String {
        match parse(text.as_bytes()) {
            Ok(Some((head, length))) => {
                let keeps = if head.keep_alive { "kept" } else { "closed" };
                format!("{} {:?} {keeps}, {} left", head.status.as_u16(), head.framing, text.len() - length)
            }
            Ok(None) => "more".to_owned(),
            Err(why) => format!("bad: {why}"),
        }
    }

    #[test]
    fn a_head_says_where_the_body_ends() {
        for (head, expected) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc", "200 Length(5) kept, 3 left"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\n", "200 Length(5) kept, 0 left"),
            ("HTTP/1.1 200\r\nTransfer-Encoding: Chunked\r\n\r\n", "200 Chunked kept, 0 left"),
            ("HTTP/1.1 200 OK\r\n\r\n", "200 ToEnd closed, 0 left"),
            ("HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\n", "200 Length(5) closed, 0 left"),
            (
                "HTTP/1.0 200 OK\r\nconnection: Keep-Alive\r\ncontent-length: 5\r\n\r\n",
                "200 Length(5) kept, 0 left",
            ),
            (
                "HTTP/1.1 200 OK\r\nconnection: x, close\r\ncontent-length: 5\r\n\r\n",
                "200 Length(5) closed, 0 left",
            ),
            // Two statements of one length: the coding wins, and the connection is not trusted any further.
            (
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n",
                "200 Chunked closed, 0 left",
            ),
            ("HTTP/1.1 204 No Content\r\n\r\n", "204 Length(0) kept, 0 left"),
            ("HTTP/1.1 101 Switching Protocols\r\n\r\n", "101 Length(0) closed, 0 left"),
            (
                concat!(
                    "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nlink: x\r\n\r\n",
                    "HTTP/1.1 404 No\r\ncontent-length: 0\r\n\r\n",
                ),
                "404 Length(0) kept, 0 left",
            ),
            ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 20", "more"),
            ("", "more"),
        ] {
            assert_eq!(parsed(head), expected, "{head:?}");
        }
    }

    #[test]
    fn a_head_that_contradicts_itself_is_refused() {
        for (head, expected) in [
            (
                "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
                "bad: content-length '5, 6'",
            ),
            ("HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n", "bad: content-length '-1'"),
            ("HTTP/1.1 200 OK\r\ncontent-length: +1\r\n\r\n", "bad: content-length '+1'"),
            ("HTTP/1.1 200 OK\r\ncontent-length:\r\n\r\n", "bad: content-length ''"),
            ("HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999\r\n\r\n", "bad: content-length '9"),
            (
                "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
                "bad: transfer-encoding 'gzip, chunked'",
            ),
            ("HTTP/2 200\r\n\r\n", "bad: "),
            ("HTTP/1.1 099 Low\r\n\r\n", "bad: status 99"),
        ] {
            let said = parsed(head);
            assert!(said.starts_with(expected), "{head:?}: {said}");
        }
        let long = format!("HTTP/1.1 200 OK\r\nx: {}", "y".repeat(HEAD_BYTES));
        assert_eq!(parsed(&long), "bad: the head is longer than 65536 bytes");
    }

    /// The body, in the pieces that it came in, until the decoder wants no more.
    fn decoded(framing: Framing, pieces: &[&[u8]]) -> Result<(Vec<u8>, bool, usize), String> {
        let (mut decoder, mut body, mut left) = (Decoder::new(framing), Vec::new(), 0);
        for piece in pieces {
            let mut bytes = *piece;
            while let Some(data) = decoder.next(&mut bytes)? {
                assert!(!data.is_empty());
                body.extend_from_slice(data);
            }
            left += bytes.len();
        }
        Ok((body, decoder.is_end(), left))
    }

    #[test]
    fn chunks_may_have_extensions_and_trailers_and_nothing_else() {
        for (text, expected) in [
            ("3\r\nabc\r\n2;x=\"y\"\r\nde\r\n0\r\n\r\n", "abcde true 0"),
            ("3 \r\nabc\r\n0;z\r\nExpires: never\r\nx: y\r\n\r\nHTTP", "abc true 4"),
            ("00000A\r\n0123456789\r\n000\r\n\r\n", "0123456789 true 0"),
            ("3\r\nab", "ab false 0"),
            ("\r\n", "'\\r' in the size line of a chunk"),
            ("x\r\n", "'x' in the size line of a chunk"),
            ("3\nabc", "'\\n' in the size line of a chunk"),
            ("3;x\nabc", "'\\n' in the size line of a chunk"),
            ("3\r\rabc", "'\\r' in the size line of a chunk"),
            ("3\r\nabcd", "'d' in place of the line end after a chunk"),
            ("0\r\nx\n", "'\\n' in the trailers"),
            ("11111111111111111\r\n", "a chunk's size that overflows"),
        ] {
            let said = match decoded(Framing::Chunked, &[text.as_bytes()]) {
                Ok((body, end, left)) => format!("{} {end} {left}", String::from_utf8(body).unwrap()),
                Err(why) => why,
            };
            assert_eq!(said, expected, "{text:?}");
        }
        let endless = format!("1;{}", "x".repeat(20_000));
        assert!(decoded(Framing::Chunked, &[endless.as_bytes()]).unwrap_err().contains("extensions"));
        let endless = format!("0\r\n{}", "x: y\r\n".repeat(5_000));
        assert!(decoded(Framing::Chunked, &[endless.as_bytes()]).unwrap_err().contains("trailers"));
    }

    proptest! {
        #[test]
        fn any_cut_of_a_chunked_body_gives_the_same_bytes(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..6),
            cuts in prop::collection::vec(0usize..300, 0..8),
        ) {
            let mut wire = Vec::new();
            for chunk in &chunks {
                wire.extend_from_slice(format!("{:X}\r\n", chunk.len()).as_bytes());
                wire.extend_from_slice(chunk);
                wire.extend_from_slice(b"\r\n");
            }
            wire.extend_from_slice(b"0\r\n\r\n");
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(wire.len())).collect();
            cuts.extend([0, wire.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|cut| &wire[cut[0]..cut[1]]).collect();
            prop_assert_eq!(decoded(Framing::Chunked, &pieces), Ok((chunks.concat(), true, 0)));
        }

        #[test]
        fn arbitrary_bytes_do_no_harm(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            length in 0u64..300,
        ) {
            let _ = parse(&bytes);
            let _ = parse(&[b"HTTP/1.1 200 OK\r\n", bytes.as_slice()].concat());
            let _ = decoded(Framing::Chunked, &[&bytes]);
            let (body, end, left) = decoded(Framing::Length(length), &[&bytes]).unwrap();
            prop_assert_eq!(body.len() + left, bytes.len());
            prop_assert_eq!(end, bytes.len() as u64 >= length);
        }
    }
}
