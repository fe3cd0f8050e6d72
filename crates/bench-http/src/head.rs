//! What the head of an answer promises: an answer that can be read, and in which form, or a refusal in words.
//!
//! It reads no body.

use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderName, LOCATION, RETRY_AFTER};
use http::{HeaderMap, StatusCode};

use crate::answer::AnswerForm;
use crate::error::Failed;
use crate::h1::Head;
use crate::record::Failure;

/// How much of a server's words is told, in characters.
const TOLD_CHARS: usize = 300;

/// How the body is to be read, or why it is no answer.
pub(crate) fn form(head: &Head, asked: AnswerForm) -> Result<AnswerForm, Failed> {
    if head.status != StatusCode::OK {
        return Err(Failed::new(Failure::Status, status_words(head.status, &head.headers)));
    }
    identity(&head.headers)?;
    let Some(content_type) = text(&head.headers, &CONTENT_TYPE) else { return Ok(asked) };
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match essence.as_str() {
        "text/event-stream" => Ok(AnswerForm::Stream),
        // A whole answer, or an error with status 200, where a stream was asked for.
        "application/json" => Ok(AnswerForm::Whole),
        // Servers that do not care what they state; the body will show.
        "" | "text/plain" | "application/octet-stream" => Ok(asked),
        other => {
            let expected = match asked {
                AnswerForm::Stream => "text/event-stream",
                AnswerForm::Whole => "application/json",
            };
            let message = format!("content type '{}', expected {expected}", told(other));
            Err(Failed::new(Failure::BadFrame, message))
        }
    }
}

/// A compressed body arrives in the compressor's blocks: its times would say nothing of tokens.
pub(crate) fn identity(headers: &HeaderMap) -> Result<(), Failed> {
    match text(headers, &CONTENT_ENCODING) {
        None => Ok(()),
        Some(encoding) if encoding.eq_ignore_ascii_case("identity") => Ok(()),
        Some(encoding) => {
            let message = format!("content encoding '{}' though identity was asked for", told(&encoding));
            Err(Failed::new(Failure::BadFrame, message))
        }
    }
}

fn status_words(status: StatusCode, headers: &HeaderMap) -> String {
    let mut words = format!("status {}", status.as_u16());
    if let Some(reason) = status.canonical_reason() {
        words.push(' ');
        words.push_str(reason);
    }
    if status.is_redirection()
        && let Some(location) = text(headers, &LOCATION)
    {
        words += " to '";
        words += &told(&location);
        words += "', which is not followed";
    }
    if let Some(after) = text(headers, &RETRY_AFTER) {
        words += ", retry-after ";
        words += &told(&after);
    }
    words
}

fn text(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).trim().to_owned())
}

/// The beginning of a server's words on one line, without control characters.
pub(crate) fn told(words: &str) -> String {
    let mut line = String::new();
    let mut chars =
        words.chars().map(|c| if c.is_whitespace() { ' ' } else { c }).filter(|c| !c.is_control());
    for c in chars.by_ref().take(TOLD_CHARS) {
        if !(c == ' ' && (line.is_empty() || line.ends_with(' '))) {
            line.push(c);
        }
    }
    let cut = chars.next().is_some();
    line.truncate(line.trim_end().len());
    if cut {
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(status: u16, headers: &[(&str, &str)], streamed: bool) -> String {
        let asked = if streamed { AnswerForm::Stream } else { AnswerForm::Whole };
        let lines: Vec<String> = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let (head, _) = crate::h1::parse(format!("HTTP/1.1 {status} X\r\n{}\r\n", lines.concat()).as_bytes())
            .unwrap()
            .unwrap();
        match form(&head, asked) {
            Ok(form) => format!("{form:?}"),
            Err(Failed { failure, message }) => format!("{failure:?}: {message}"),
        }
    }

    #[test]
    fn the_content_type_says_how_to_read() {
        for (content_type, streamed, expected) in [
            ("text/event-stream", true, "Stream"),
            ("text/event-stream; charset=utf-8", false, "Stream"),
            ("application/json", true, "Whole"),
            ("Application/JSON; charset=utf-8", false, "Whole"),
            ("text/plain", true, "Stream"),
            ("text/html", true, "BadFrame: content type 'text/html', expected text/event-stream"),
            ("text/html", false, "BadFrame: content type 'text/html', expected application/json"),
        ] {
            assert_eq!(head(200, &[("content-type", content_type)], streamed), expected);
        }
        assert_eq!(head(200, &[], true), "Stream");
        assert_eq!(head(200, &[], false), "Whole");
    }

    #[test]
    fn a_refusal_says_what_the_server_said() {
        assert_eq!(
            head(429, &[("retry-after", "7")], true),
            "Status: status 429 Too Many Requests, retry-after 7"
        );
        assert_eq!(head(599, &[], true), "Status: status 599");
        assert_eq!(head(204, &[], true), "Status: status 204 No Content");
        assert_eq!(
            head(307, &[("location", "https://other/v1")], true),
            "Status: status 307 Temporary Redirect to 'https://other/v1', which is not followed"
        );
        assert_eq!(
            head(200, &[("content-encoding", "gzip")], true),
            "BadFrame: content encoding 'gzip' though identity was asked for"
        );
        assert_eq!(head(200, &[("content-encoding", "Identity")], true), "Stream");
    }

    #[test]
    fn words_of_a_server_stay_on_one_line() {
        assert_eq!(told("  a\r\n\tb\u{1b}[31m\0 c  "), "a b[31m c");
        let long = told(&"x".repeat(1000));
        assert_eq!(long.chars().count(), 301);
        assert!(long.ends_with('…'));
    }
}
