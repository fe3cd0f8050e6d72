//! From the bytes of one answer, with the stamps of their reads, to the events of one exchange.
//!
//! It holds the rules of "the life of one request": what a token is, what fails, when the answer is complete.
//! It reads no socket and no clock, so that every case can be scripted to the byte and the nanosecond.

mod count;

use self::count::TokenCounter;
use crate::openai::{self, Chunk, Kept, ParseError, Reason, Seen, Text};
use crate::record::{
    AnswerText, Event, EventKind, Exchange, Failure, Finish, ReadCounts, ServerTimings, Usage,
};
use crate::sse::{Decoder, Frame, Item, LIMIT_BYTES};

/// Text of a server that a message shows.
const SHOWN_CHARS: usize = 300;
/// Events that are given room beforehand at most: a request for a million tokens need not bring them.
const ROOM_EVENTS: usize = 4096;
/// Events of a stream beside those of its tokens: sent, first byte, role, finish, usage twice, timings, done.
const OTHER_EVENTS: usize = 8;

/// How the body of the answer is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnswerForm {
    /// Server-sent events, one chunk each.
    Stream,
    /// One JSON object; its tokens share the stamp of the last read.
    Whole,
}

/// What the reader is told beforehand.
#[derive(Debug, Clone)]
pub struct ReaderOptions {
    pub form: AnswerForm,
    /// Whether the answer's text is kept, for a next turn.
    pub keep_text: bool,
    /// Tokens that were asked for, to make room once.
    pub expected_tokens: usize,
    /// Bytes that one line, one event or a whole answer may have.
    pub limit_bytes: usize,
    /// Events that one answer may have, so that an endless stream of empty chunks ends.
    pub limit_events: usize,
}

impl Default for ReaderOptions {
    fn default() -> Self {
        Self {
            form: AnswerForm::Stream,
            keep_text: false,
            expected_tokens: 0,
            limit_bytes: LIMIT_BYTES,
            limit_events: 1 << 20,
        }
    }
}

/// How the body ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BodyEnd {
    /// As HTTP says that it should: last chunk, content length reached, or closed where that is the end.
    Clean,
    /// The connection broke before that; the words say how.
    Broken(String),
}

/// Where the answer stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// More bytes are needed.
    Reading,
    /// `Done` is the last event. More bytes are not looked at; the connection can be kept once the body's end
    /// was read.
    Complete,
    /// `Failed` is the last event. More bytes are not looked at.
    Failed,
}

/// Reads one answer with status 200.
///
/// Call [`sent`](Self::sent) and [`first_byte`](Self::first_byte) when these happen, [`feed`](Self::feed)
/// with the bytes of the body, then [`end`](Self::end) or [`fail`](Self::fail), and take the result by
/// [`into_exchange`](Self::into_exchange).
#[derive(Debug)]
pub struct AnswerReader {
    form: AnswerForm,
    decoder: Decoder,
    /// Body of a whole answer.
    body: Vec<u8>,
    limit_bytes: usize,
    answer: Answer,
}

impl AnswerReader {
    pub fn new(options: &ReaderOptions) -> Self {
        let expected = match options.form {
            AnswerForm::Stream => options.expected_tokens.min(ROOM_EVENTS),
            AnswerForm::Whole => 1,
        };
        Self {
            form: options.form,
            decoder: Decoder::new(options.limit_bytes),
            body: Vec::new(),
            limit_bytes: options.limit_bytes,
            answer: Answer {
                events: Vec::with_capacity(expected + OTHER_EVENTS),
                limit_events: options.limit_events,
                reads: ReadCounts::default(),
                read_ns: None,
                event_ns: None,
                text: options.keep_text.then(KeptText::default),
                counter: TokenCounter::default(),
                finish: None,
                has_tokens: false,
                usage: None,
                server: None,
                progress: Progress::Reading,
            },
        }
    }

    /// The first byte of the request was handed to the socket.
    pub fn sent(&mut self, at_ns: u64) {
        self.answer.push(at_ns, EventKind::Sent);
    }

    /// The first byte of the response was read, whatever it belongs to.
    pub fn first_byte(&mut self, at_ns: u64) {
        self.answer.push(at_ns, EventKind::FirstByte);
    }

    /// Bytes of the body, without the transfer coding. What comes from one read has one stamp, in one call or
    /// in several; calls with different stamps are different reads.
    pub fn feed(&mut self, at_ns: u64, bytes: &[u8]) -> Progress {
        if self.answer.progress != Progress::Reading || bytes.is_empty() {
            return self.answer.progress;
        }
        self.answer.count_read(at_ns, bytes.len());
        match self.form {
            AnswerForm::Stream => self.feed_stream(at_ns, bytes),
            AnswerForm::Whole if self.body.len() + bytes.len() > self.limit_bytes => {
                let message = format!("endless answer: more than {} bytes", self.limit_bytes);
                self.answer.failed(at_ns, Failure::BadFrame, message);
            }
            AnswerForm::Whole => self.body.extend_from_slice(bytes),
        }
        self.answer.progress
    }

    /// The body is over. An answer that has its finish reason is done, `[DONE]` or not.
    pub fn end(&mut self, at_ns: u64, how: BodyEnd) -> Progress {
        self.flush(at_ns, &how);
        if self.answer.progress == Progress::Reading {
            self.answer.end(at_ns, how, self.decoder.strange());
        }
        self.answer.progress
    }

    /// The caller gives the answer up: a limit of time was reached, or the stop flag was raised. What had
    /// arrived is kept; an answer that was complete stays so.
    pub fn fail(&mut self, at_ns: u64, failure: Failure, message: String) -> Progress {
        self.flush(at_ns, &BodyEnd::Broken(String::new()));
        if self.answer.progress == Progress::Reading {
            self.answer.failed(at_ns, failure, message);
        }
        self.answer.progress
    }

    pub fn progress(&self) -> Progress {
        self.answer.progress
    }

    /// Whether the first token has arrived, so that the limit between tokens holds from here on.
    pub fn has_tokens(&self) -> bool {
        self.answer.has_tokens
    }

    /// What has arrived so far, without the server's counts and timings, which take their place at the end.
    pub fn events(&self) -> &[Event] {
        &self.answer.events
    }

    /// The exchange, whose last event is `Done` or `Failed`. Its `reads` are those of the body: a caller that
    /// reads the head from the same socket knows better and may replace them.
    pub fn into_exchange(mut self, reusable: bool) -> Exchange {
        if self.answer.progress == Progress::Reading {
            let at_ns = self.answer.events.last().map_or(0, |event| event.at_ns);
            self.fail(at_ns, Failure::TruncatedStream, "the answer was left before its end".to_owned());
        }
        let Answer { events, reads, text, progress, .. } = self.answer;
        Exchange {
            events,
            reads,
            text: text.map(KeptText::into_text),
            reusable: reusable && progress == Progress::Complete,
        }
    }

    fn feed_stream(&mut self, at_ns: u64, mut bytes: &[u8]) {
        let Self { decoder, answer, .. } = self;
        while answer.progress == Progress::Reading {
            match decoder.next(at_ns, &mut bytes) {
                Ok(Some(Item::Event(frame))) => answer.frame(&frame),
                Ok(Some(Item::Comment { at_ns })) => answer.empty_chunk(at_ns),
                Ok(None) => return,
                Err(endless) => answer.failed(at_ns, Failure::BadFrame, endless.to_string()),
            }
        }
    }

    /// What lies in the buffers when nothing more will come.
    fn flush(&mut self, at_ns: u64, how: &BodyEnd) {
        let Self { decoder, answer, body, .. } = self;
        if answer.progress != Progress::Reading {
            return;
        }
        match self.form {
            AnswerForm::Stream => match decoder.finish(at_ns) {
                Ok(Some(Item::Event(frame))) => answer.frame(&frame),
                Ok(Some(Item::Comment { at_ns })) => answer.empty_chunk(at_ns),
                Ok(None) => {}
                Err(endless) => answer.failed(at_ns, Failure::BadFrame, endless.to_string()),
            },
            AnswerForm::Whole if *how == BodyEnd::Clean => {
                let read_ns = answer.read_ns.unwrap_or(at_ns);
                answer.payload(read_ns, &std::mem::take(body), true);
            }
            AnswerForm::Whole => {}
        }
    }
}

/// A fact of which the last one counts, and where it stands among the events.
#[derive(Debug)]
struct Latest<T> {
    at_ns: u64,
    /// Events before it.
    index: usize,
    fact: T,
}

#[derive(Debug, Default)]
struct KeptText {
    content: Vec<u8>,
    reasoning: Vec<u8>,
}

impl KeptText {
    fn into_text(self) -> AnswerText {
        let text = |bytes: Vec<u8>| {
            String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
        };
        AnswerText { content: text(self.content), reasoning: text(self.reasoning) }
    }
}

/// What is known of the answer.
#[derive(Debug)]
struct Answer {
    events: Vec<Event>,
    limit_events: usize,
    reads: ReadCounts,
    /// Stamp of the last read with bytes of the body.
    read_ns: Option<u64>,
    /// Stamp of the last server-sent event.
    event_ns: Option<u64>,
    text: Option<KeptText>,
    counter: TokenCounter,
    finish: Option<Finish>,
    has_tokens: bool,
    usage: Option<Latest<Usage>>,
    server: Option<Latest<ServerTimings>>,
    progress: Progress,
}

impl Answer {
    fn push(&mut self, at_ns: u64, kind: EventKind) {
        self.events.push(Event { at_ns, kind });
    }

    fn count_read(&mut self, at_ns: u64, bytes: usize) {
        self.reads.bytes += bytes as u64;
        if self.read_ns != Some(at_ns) {
            self.reads.reads += 1;
            self.read_ns = Some(at_ns);
        }
    }

    /// One server-sent event.
    fn frame(&mut self, frame: &Frame<'_>) {
        self.reads.events += 1;
        self.reads.shared += u64::from(self.event_ns == Some(frame.at_ns));
        self.event_ns = Some(frame.at_ns);
        if frame.name == b"error" {
            let said = openai::error_message(frame.data).unwrap_or_else(|| shown(frame.data));
            return self.error_event(frame.at_ns, &said);
        }
        match frame.data.trim_ascii() {
            cut if frame.cut && cut.len() < 6 && b"[DONE]".starts_with(cut) => {}
            b"[DONE]" => self.done(frame.at_ns, "[DONE]"),
            b"" => self.empty_chunk(frame.at_ns),
            _ => self.payload(frame.at_ns, frame.data, frame.cut),
        }
    }

    /// One JSON object; `last` says that nothing comes after it, so that it may be cut.
    fn payload(&mut self, at_ns: u64, data: &[u8], last: bool) {
        if self.text.is_some() {
            match openai::parse::<Kept<'_>>(data) {
                Ok(chunk) => self.chunk(at_ns, chunk),
                Err(e) => self.bad_payload(at_ns, data, last, &e),
            }
        } else {
            match openai::parse::<Seen>(data) {
                Ok(chunk) => self.chunk(at_ns, chunk),
                Err(e) => self.bad_payload(at_ns, data, last, &e),
            }
        }
    }

    fn bad_payload(&mut self, at_ns: u64, data: &[u8], last: bool, why: &ParseError) {
        // The end of the body is what is wrong with it then, and is told there.
        if !(last && why.cut) {
            self.failed(at_ns, Failure::BadFrame, format!("{why}, in {}", shown(data)));
        }
    }

    fn chunk<'a, T: Text<'a>>(&mut self, at_ns: u64, chunk: Chunk<T>) {
        if let Some(said) = chunk.error {
            return self.error_event(at_ns, &said);
        }
        let running = chunk.running_tokens();
        if let Some(channel) = chunk.channel() {
            let count = self.counter.text(running, chunk.ids, chunk.logprobs);
            if let Some(text) = &mut self.text {
                text.content.extend_from_slice(chunk.content.bytes());
                text.reasoning.extend_from_slice(chunk.reasoning.bytes());
            }
            self.has_tokens = true;
            self.bounded(at_ns, EventKind::Tokens { count, channel });
        } else {
            self.counter.empty(running, chunk.ids, chunk.logprobs);
            self.empty_chunk(at_ns);
        }
        let index = self.events.len();
        if let Some(fact) = chunk.usage {
            self.usage = Some(Latest { at_ns, index, fact });
        }
        if let Some(fact) = chunk.server {
            self.server = Some(Latest { at_ns, index, fact });
        }
        self.reason(at_ns, chunk.reason);
    }

    fn reason(&mut self, at_ns: u64, reason: Reason) {
        match reason {
            Reason::None => {}
            Reason::Finish(finish) => self.finish = Some(finish),
            Reason::Abandoned(word) => {
                let message = format!("the server gave the answer up with finish reason \"{word}\"");
                self.failed(at_ns, Failure::ErrorEvent, message);
            }
            Reason::Unknown(word) => {
                let known: Vec<_> = Reason::known().collect();
                let message =
                    format!("unknown finish reason {:?}; known are {}", shown_text(&word), known.join(", "));
                self.failed(at_ns, Failure::BadFrame, message);
            }
        }
    }

    fn error_event(&mut self, at_ns: u64, said: &str) {
        let said = if said.is_empty() { "without words" } else { said };
        self.failed(at_ns, Failure::ErrorEvent, format!("the server reports an error: {}", shown_text(said)));
    }

    fn empty_chunk(&mut self, at_ns: u64) {
        self.bounded(at_ns, EventKind::EmptyChunk);
    }

    /// An event of which a server can send any number.
    fn bounded(&mut self, at_ns: u64, kind: EventKind) {
        if self.progress != Progress::Reading {
            return;
        }
        if self.events.len() >= self.limit_events {
            let message = format!("endless stream: more than {} events", self.limit_events);
            return self.failed(at_ns, Failure::BadFrame, message);
        }
        self.push(at_ns, kind);
    }

    fn end(&mut self, at_ns: u64, how: BodyEnd, strange: Option<&[u8]>) {
        match (how, strange) {
            _ if self.finish.is_some() => self.done(at_ns, "the body"),
            (BodyEnd::Broken(how), _) => {
                let message = format!("the connection broke before a finish reason: {how}");
                self.failed(at_ns, Failure::TruncatedStream, message);
            }
            (BodyEnd::Clean, Some(line)) if self.reads.events == 0 => {
                let message = format!("no server-sent events in the answer; it begins with {}", shown(line));
                self.failed(at_ns, Failure::BadFrame, message);
            }
            (BodyEnd::Clean, _) => self.done(at_ns, "the body"),
        }
    }

    /// The answer says that it is over, by its last event or by the end of its body.
    fn done(&mut self, at_ns: u64, what: &str) {
        match self.finish {
            None => {
                let message = format!("{what} ended the answer without a finish reason");
                self.failed(at_ns, Failure::TruncatedStream, message);
            }
            Some(finish) if !self.has_tokens => {
                let message = format!("finished ({finish:?}) without a token");
                self.failed(at_ns, Failure::EmptyAnswer, message);
            }
            Some(finish) => {
                self.place_facts();
                self.push(at_ns, EventKind::Done { finish });
                self.progress = Progress::Complete;
            }
        }
    }

    fn failed(&mut self, at_ns: u64, failure: Failure, message: String) {
        if self.progress == Progress::Reading {
            self.place_facts();
            self.push(at_ns, EventKind::Failed { failure, message });
            self.progress = Progress::Failed;
        }
    }

    /// Puts the last counts and timings where they came, counts first.
    fn place_facts(&mut self) {
        let (usage, server) = (self.usage.take(), self.server.take());
        let usage = usage.map(|it| (it.index, Event { at_ns: it.at_ns, kind: EventKind::Usage(it.fact) }));
        let server = server
            .map(|it| (it.index, Event { at_ns: it.at_ns, kind: EventKind::Server(Box::new(it.fact)) }));
        let mut facts: Vec<_> = usage.into_iter().chain(server).collect();
        facts.sort_by_key(|(index, _)| *index);
        for (index, event) in facts.into_iter().rev() {
            self.events.insert(index, event);
        }
    }
}

/// Begin of what a server sent, on one line.
fn shown(bytes: &[u8]) -> String {
    shown_text(&String::from_utf8_lossy(&bytes[..bytes.len().min(4 * SHOWN_CHARS)]))
}

fn shown_text(text: &str) -> String {
    let mut shown: String =
        text.chars().take(SHOWN_CHARS).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().nth(SHOWN_CHARS).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Thousands of streams are held at once: what one costs before its first byte is this and its events.
    #[test]
    fn reader_is_small_and_makes_room_once() {
        assert!(size_of::<AnswerReader>() <= 512, "{}", size_of::<AnswerReader>());
        assert!(size_of::<Event>() <= 88, "{}", size_of::<Event>());
        let room = |form, expected_tokens| {
            let options = ReaderOptions { form, expected_tokens, ..ReaderOptions::default() };
            AnswerReader::new(&options).answer.events.capacity()
        };
        assert_eq!(room(AnswerForm::Stream, 128), 136);
        assert_eq!(room(AnswerForm::Stream, usize::MAX), ROOM_EVENTS + OTHER_EVENTS);
        assert_eq!(room(AnswerForm::Whole, 128), 1 + OTHER_EVENTS);
    }
}
