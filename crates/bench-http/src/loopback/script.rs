//! The bytes of one answer, rendered before its first token is due; then only stamps and counts are patched.
//!
//! A script knows which bytes its i-th write has and how many writes there are; when they happen and on which
//! socket is the pacer's matter.

use std::fmt::Write as _;

/// Digits of the running counts: JSON allows spaces before a number, so that the width can stay the same.
const COUNT_WIDTH: usize = 10;
/// Digits of a stamp: all of `u64`.
const STAMP_WIDTH: usize = 20;

/// What becomes of the connection after the last write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    KeepAlive,
    Close,
    /// Open and silent until the client closes.
    Stall,
}

/// Bytes of one write with the places that change.
#[derive(Debug, Clone, Default)]
pub(super) struct Patched {
    bytes: Vec<u8>,
    stamp_at: Option<usize>,
    /// Places of `total_tokens` and `completion_tokens`.
    counts_at: Option<(usize, usize)>,
}

/// One answer: `lead` before the first write's own bytes, `chunk` for every write but the last, `tail` there.
#[derive(Debug, Clone, Default)]
pub(super) struct Script {
    pub(super) lead: Vec<u8>,
    pub(super) chunk: Patched,
    pub(super) tail: Patched,
    pub(super) writes: u32,
    /// Tokens of every write but the last.
    pub(super) tokens_per_write: u32,
    /// Tokens of all writes.
    pub(super) tokens: u32,
    pub(super) prompt_tokens: u32,
}

impl Script {
    /// Tokens that have gone out once `writes` writes have.
    pub(super) fn tokens_after(&self, writes: u32) -> u32 {
        if writes >= self.writes { self.tokens } else { writes * self.tokens_per_write }
    }

    /// Replaces `into` by the bytes of write `index`, stamped with `now_ns`.
    pub(super) fn render(&mut self, index: u32, now_ns: u64, into: &mut Vec<u8>) {
        into.clear();
        if index == 0 {
            into.extend_from_slice(&self.lead);
        }
        let tokens = self.tokens_after(index + 1);
        let prompt = self.prompt_tokens;
        let last = index + 1 == self.writes;
        let part = if last { &mut self.tail } else { &mut self.chunk };
        into.extend_from_slice(part.patch(tokens, prompt, now_ns));
    }
}

impl Patched {
    /// Bytes in which nothing changes.
    pub(super) fn fixed(bytes: Vec<u8>) -> Self {
        Self { bytes, ..Self::default() }
    }

    fn patch(&mut self, tokens: u32, prompt_tokens: u32, now_ns: u64) -> &[u8] {
        if let Some((total, completion)) = self.counts_at {
            put(&mut self.bytes[total..total + COUNT_WIDTH], u64::from(tokens + prompt_tokens), b' ');
            put(&mut self.bytes[completion..completion + COUNT_WIDTH], u64::from(tokens), b' ');
        }
        if let Some(at) = self.stamp_at {
            put(&mut self.bytes[at..at + STAMP_WIDTH], now_ns, b'0');
        }
        &self.bytes
    }
}

/// Writes `value` right-aligned into `field`.
fn put(field: &mut [u8], mut value: u64, fill: u8) {
    let mut at = field.len();
    while at > 0 {
        at -= 1;
        field[at] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            field[..at].fill(fill);
            return;
        }
    }
}

/// Which endpoint's objects an answer is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Completion,
    Chat,
}

/// What all chunks of one answer have in common.
pub(super) struct Dialect<'a> {
    pub(super) form: Form,
    pub(super) id: &'a str,
    pub(super) created_s: u64,
    /// A JSON string, quotes included.
    pub(super) model_json: &'a str,
    pub(super) prompt_tokens: u32,
    pub(super) cached_tokens: u32,
    pub(super) running_usage: bool,
    pub(super) stamped: bool,
    pub(super) token_ids: bool,
}

/// The word that every token is.
pub(super) const WORD: &str = " word";
/// The id that every token has.
pub(super) const WORD_ID: u32 = 1990;

impl Dialect<'_> {
    fn head(&self, whole: bool) -> String {
        let (prefix, object) = match (self.form, whole) {
            (Form::Chat, false) => ("chatcmpl", "chat.completion.chunk"),
            (Form::Chat, true) => ("chatcmpl", "chat.completion"),
            (Form::Completion, _) => ("cmpl", "text_completion"),
        };
        let Self { id, created_s, model_json, .. } = self;
        format!(
            concat!(r#"{{"id":"{}-{}","object":"{}","created":{},"#, r#""model":{},"choices":["#),
            prefix, id, object, created_s, model_json
        )
    }

    fn choice(&self, tokens: u32, finish: Option<&str>, whole: bool) -> String {
        let words = WORD.repeat(tokens as usize);
        let text = match (self.form, whole) {
            (Form::Chat, false) => format!(r#""delta":{{"content":"{words}"}}"#),
            (Form::Chat, true) => format!(r#""message":{{"role":"assistant","content":"{words}"}}"#),
            (Form::Completion, _) => format!(r#""text":"{words}""#),
        };
        let finish = finish.map_or("null".to_owned(), |f| format!("\"{f}\""));
        let ids = if self.token_ids {
            let ids = vec![WORD_ID.to_string(); tokens as usize].join(",");
            format!(r#","token_ids":[{ids}]"#)
        } else {
            String::new()
        };
        format!(r#"{{"index":0,{text},"logprobs":null,"finish_reason":{finish},"stop_reason":null{ids}}}"#)
    }

    fn usage(&self, tokens: u32) -> String {
        let (prompt, cached) = (self.prompt_tokens, self.cached_tokens);
        let total = prompt + tokens;
        let details = if cached > 0 { format!(r#"{{"cached_tokens":{cached}}}"#) } else { "null".to_owned() };
        format!(
            concat!(
                r#"{{"prompt_tokens":{},"total_tokens":{},"completion_tokens":{},"#,
                r#""prompt_tokens_details":{}}}"#
            ),
            prompt, total, tokens, details
        )
    }

    /// The chunk with a role and no text.
    pub(super) fn role(&self) -> Vec<u8> {
        let head = self.head(false);
        event(&format!(
            concat!(
                r#"{}{{"index":0,"delta":{{"role":"assistant","content":""}},"#,
                r#""logprobs":null,"finish_reason":null}}]}}"#
            ),
            head
        ))
    }

    /// A chunk that brings `tokens` tokens, as one frame of the body.
    pub(super) fn chunk(&self, tokens: u32, finish: Option<&str>) -> Patched {
        let mut text = self.head(false);
        text += &self.choice(tokens, finish, false);
        text.push(']');
        let mut counts = None;
        if self.running_usage {
            let _ = write!(text, r#","usage":{{"prompt_tokens":{},"total_tokens":"#, self.prompt_tokens);
            let total = text.len();
            let _ = write!(text, r#"{:COUNT_WIDTH$},"completion_tokens":"#, 0);
            counts = Some((total, text.len()));
            let _ = write!(text, "{:COUNT_WIDTH$}}}", 0);
        }
        let mut stamp = None;
        if self.stamped {
            text += r#","sent_ns":""#;
            stamp = Some(text.len());
            let _ = write!(text, "{:0STAMP_WIDTH$}\"", 0);
        }
        text.push('}');
        let bytes = event(&text);
        let shift = bytes.len() - text.len() - "\n\n\r\n".len();
        Patched {
            bytes,
            stamp_at: stamp.map(|at| at + shift),
            counts_at: counts.map(|(a, b)| (a + shift, b + shift)),
        }
    }

    /// The chunk with counts and without choices.
    pub(super) fn usage_event(&self, tokens: u32) -> Vec<u8> {
        event(&format!(r#"{}],"usage":{}}}"#, self.head(false), self.usage(tokens)))
    }

    /// A whole answer's body.
    pub(super) fn whole(&self, tokens: u32, finish: Option<&str>, usage: bool) -> String {
        let usage = if usage { self.usage(tokens) } else { "null".to_owned() };
        format!(r#"{}{}],"usage":{usage}}}"#, self.head(true), self.choice(tokens, finish, true))
    }
}

impl Patched {
    pub(super) fn push(&mut self, more: &[u8]) {
        self.bytes.extend_from_slice(more);
    }
}

/// A server-sent event as one chunk of a chunked body.
pub(super) fn event(data: &str) -> Vec<u8> {
    frame(format!("data: {data}\n\n").as_bytes())
}

/// One chunk of a chunked body.
pub(super) fn frame(payload: &[u8]) -> Vec<u8> {
    let mut out = format!("{:x}\r\n", payload.len()).into_bytes();
    out.extend_from_slice(payload);
    out.extend_from_slice(b"\r\n");
    out
}

/// The end of a chunked body.
pub(super) const LAST_FRAME: &[u8] = b"0\r\n\r\n";

#[cfg(test)]
mod tests {
    use super::{Dialect, Form, LAST_FRAME, Patched, Script, event, put};

    fn dialect() -> Dialect<'static> {
        Dialect {
            form: Form::Completion,
            id: "7",
            created_s: 5,
            model_json: "\"m\"",
            prompt_tokens: 3,
            cached_tokens: 0,
            running_usage: false,
            stamped: false,
            token_ids: false,
        }
    }

    #[test]
    fn numbers_are_right_aligned_and_fit() {
        let mut field = *b"xxxxx";
        put(&mut field, 0, b' ');
        assert_eq!(&field, b"    0");
        put(&mut field, 90_417, b' ');
        assert_eq!(&field, b"90417");
        put(&mut field, 12, b'0');
        assert_eq!(&field, b"00012");
        let mut wide = [0; 20];
        put(&mut wide, u64::MAX, b'0');
        assert_eq!(&wide, b"18446744073709551615");
    }

    #[test]
    fn a_chunk_is_one_frame() {
        let text = String::from_utf8(dialect().chunk(2, Some("length")).bytes).unwrap();
        let data = concat!(
            r#"data: {"id":"cmpl-7","object":"text_completion","created":5,"model":"m","choices":"#,
            concat!(
                r#"[{"index":0,"text":" word word","logprobs":null,"finish_reason":"length","#,
                r#""stop_reason":null}]}"#
            ),
            "\n\n"
        );
        assert_eq!(text, format!("{:x}\r\n{data}\r\n", data.len()));
    }

    #[test]
    fn stamps_and_running_counts_are_patched_in_place() {
        let dialect = Dialect { running_usage: true, stamped: true, token_ids: true, ..dialect() };
        let mut script = Script {
            lead: b"lead".to_vec(),
            chunk: dialect.chunk(2, None),
            tail: dialect.chunk(1, Some("stop")),
            writes: 2,
            tokens_per_write: 2,
            tokens: 3,
            prompt_tokens: 3,
        };
        let mut bytes = Vec::new();
        script.render(0, 77, &mut bytes);
        let first = String::from_utf8(bytes.clone()).unwrap();
        assert!(first.starts_with("lead"), "{first}");
        script.render(1, 12_345_678_901, &mut bytes);
        let second = String::from_utf8(bytes).unwrap();
        let value = |text: &str| {
            let (_, data) = text.split_once("data: ").unwrap();
            serde_json::from_str::<serde_json::Value>(data.trim_end()).unwrap()
        };
        let (first, second) = (value(&first), value(&second));
        assert_eq!(first["usage"]["completion_tokens"], 2);
        assert_eq!(first["usage"]["total_tokens"], 5);
        assert_eq!(first["sent_ns"], "00000000000000000077");
        assert_eq!(first["choices"][0]["token_ids"], serde_json::json!([1990, 1990]));
        assert_eq!(second["usage"]["completion_tokens"], 3);
        assert_eq!(second["usage"]["total_tokens"], 6);
        assert_eq!(second["sent_ns"], "00000000012345678901");
        assert_eq!(second["choices"][0]["finish_reason"], "stop");
    }

    #[test]
    fn a_script_without_patches_repeats_its_bytes() {
        let mut tail = Patched::fixed(event("[DONE]"));
        tail.push(LAST_FRAME);
        let mut script = Script { tail, writes: 1, tokens: 4, ..Script::default() };
        let mut bytes = vec![1, 2, 3];
        script.render(0, 9, &mut bytes);
        assert_eq!(bytes, b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n");
        assert_eq!(script.tokens_after(1), 4);
    }
}
