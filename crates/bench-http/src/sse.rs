//! Server-sent events out of bytes as they were read, each with the stamp of the read that brought it.
//!
//! An event that lies whole in one read is handed out as a slice of it; only what a read cuts is copied. It
//! knows nothing of JSON, and a line without end is an error, never memory.

use memchr::memchr2;

/// Bytes that one line, or the data of one event, may have unless the caller says otherwise.
pub(crate) const LIMIT_BYTES: usize = 8 << 20;
/// As much of a line that is no field as a message can show.
const SHOWN_BYTES: usize = 200;

/// A line or an event became longer than the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("endless line: more than {limit_bytes} bytes without the end of an event")]
pub(crate) struct Endless {
    limit_bytes: usize,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Item<'a> {
    /// A line that begins with a colon, outside of any event: servers send it to keep the connection open.
    Comment {
        at_ns: u64,
    },
    Event(Frame<'a>),
}

/// One event.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    /// Stamp of the read that brought the last byte of its data, even if the blank line came later.
    pub(crate) at_ns: u64,
    /// Value of the last `event` field, mostly empty.
    pub(crate) name: &'a [u8],
    /// Values of the `data` fields, joined by LF.
    pub(crate) data: &'a [u8],
    /// The stream ended within its last line.
    pub(crate) cut: bool,
}

/// Where the event at hand stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// No data field of it was read.
    Empty,
    Open,
    /// It was handed out, and the buffers are to be cleared before the next one.
    Given,
}

#[derive(Debug)]
pub(crate) struct Decoder {
    limit_bytes: usize,
    /// Begin of a line whose end has not been read.
    partial: Vec<u8>,
    /// When the last byte of `partial` was read.
    partial_ns: u64,
    /// The last line ended with CR: an LF that follows belongs to it.
    after_cr: bool,
    /// No line has ended yet, so that a byte order mark may come.
    at_start: bool,
    /// Data of the open event, as far as it does not lie in the read at hand.
    data: Vec<u8>,
    data_ns: u64,
    name: Vec<u8>,
    state: State,
    strange: Option<Vec<u8>>,
}

enum Line<'a> {
    Blank,
    Comment,
    Data(&'a [u8]),
    Name(&'a [u8]),
    /// llama.cpp until September 2025 sent errors as a field `error` of their own.
    Error(&'a [u8]),
    Ignored,
    /// No field that an event has; the begin of the line.
    Strange(&'a [u8]),
}

enum Step {
    More,
    Comment { at_ns: u64 },
    Dispatch { at_ns: u64 },
}

impl Decoder {
    pub(crate) fn new(limit_bytes: usize) -> Self {
        Self {
            limit_bytes,
            partial: Vec::new(),
            partial_ns: 0,
            after_cr: false,
            at_start: true,
            data: Vec::new(),
            data_ns: 0,
            name: Vec::new(),
            state: State::Empty,
            strange: None,
        }
    }

    /// The next item of `input`, which was read at `now_ns` and is shortened by what was used. `None` means
    /// that all of it was used.
    pub(crate) fn next<'s, 'i: 's>(
        &'s mut self,
        now_ns: u64,
        input: &mut &'i [u8],
    ) -> Result<Option<Item<'s>>, Endless> {
        self.forget_given();
        // Data of the open event, where one line of this read has all of it.
        let mut whole: Option<&'i [u8]> = None;
        loop {
            if self.after_cr && !input.is_empty() {
                self.after_cr = false;
                *input = input.strip_prefix(b"\n").unwrap_or(input);
            }
            let Some(end) = memchr2(b'\n', b'\r', input) else { break };
            let (head, tail) = input.split_at(end);
            self.after_cr = tail[0] == b'\r';
            *input = &tail[1..];
            let step = if self.partial.is_empty() && !self.at_start {
                self.check_length(head.len())?;
                match classify(head) {
                    Line::Data(value) if self.state == State::Empty => {
                        (self.state, self.data_ns, whole) = (State::Open, now_ns, Some(value));
                        continue;
                    }
                    Line::Blank => self.blank(now_ns),
                    line => {
                        self.data.extend_from_slice(whole.take().unwrap_or_default());
                        self.absorb(&line, now_ns)?
                    }
                }
            } else {
                self.keep_partial(head, now_ns)?;
                self.absorb_partial()?
            };
            match step {
                Step::More => {}
                Step::Comment { at_ns } => return Ok(Some(Item::Comment { at_ns })),
                Step::Dispatch { at_ns } => return Ok(Some(Item::Event(self.give(at_ns, whole, false)))),
            }
        }
        self.data.extend_from_slice(whole.unwrap_or_default());
        self.keep_partial(input, now_ns)?;
        *input = &[];
        Ok(None)
    }

    /// What the end of the stream leaves over: an event whose blank line, or even line end, never came.
    pub(crate) fn finish(&mut self, now_ns: u64) -> Result<Option<Item<'_>>, Endless> {
        self.forget_given();
        let cut = !self.partial.is_empty();
        let step = if cut { self.absorb_partial()? } else { Step::More };
        if let Step::Comment { at_ns } = step {
            return Ok(Some(Item::Comment { at_ns }));
        }
        Ok(match self.blank(now_ns) {
            Step::Dispatch { at_ns } => Some(Item::Event(self.give(at_ns, None, cut))),
            _ => None,
        })
    }

    /// Begin of the first line that is no field of an event: what came instead of a stream.
    pub(crate) fn strange(&self) -> Option<&[u8]> {
        self.strange.as_deref()
    }

    /// Bytes that are held because a read cut them, for tests of the bound.
    #[cfg(test)]
    fn held_bytes(&self) -> usize {
        self.partial.capacity() + self.data.capacity() + self.name.capacity()
    }

    fn forget_given(&mut self) {
        if self.state == State::Given {
            self.state = State::Empty;
            self.data.clear();
            self.name.clear();
        }
    }

    fn check_length(&self, bytes: usize) -> Result<(), Endless> {
        if bytes > self.limit_bytes { Err(Endless { limit_bytes: self.limit_bytes }) } else { Ok(()) }
    }

    /// Adds to the line that is not whole yet; a line end that comes alone leaves the stamp as it is.
    fn keep_partial(&mut self, bytes: &[u8], now_ns: u64) -> Result<(), Endless> {
        self.check_length(self.partial.len() + bytes.len())?;
        if !bytes.is_empty() || self.partial.is_empty() {
            self.partial.extend_from_slice(bytes);
            self.partial_ns = now_ns;
        }
        Ok(())
    }

    fn absorb_partial(&mut self) -> Result<Step, Endless> {
        let mut line = std::mem::take(&mut self.partial);
        let skipped = if self.at_start && line.starts_with(b"\xef\xbb\xbf") { 3 } else { 0 };
        self.at_start = false;
        let step = match classify(&line[skipped..]) {
            Line::Blank => Ok(self.blank(self.partial_ns)),
            kind => self.absorb(&kind, self.partial_ns),
        };
        line.clear();
        self.partial = line;
        step
    }

    /// Any line but a blank one.
    fn absorb(&mut self, line: &Line<'_>, at_ns: u64) -> Result<Step, Endless> {
        match *line {
            Line::Data(value) | Line::Error(value) => {
                self.check_length(self.data.len() + 1 + value.len())?;
                if self.state == State::Open {
                    self.data.push(b'\n');
                }
                self.data.extend_from_slice(value);
                (self.state, self.data_ns) = (State::Open, at_ns);
                if matches!(line, Line::Error(_)) {
                    self.name = b"error".to_vec();
                }
            }
            Line::Name(value) => {
                self.name.clear();
                self.name.extend_from_slice(value);
            }
            // Within an event a comment is no news: it would also stand before data that came earlier.
            Line::Comment if self.state == State::Empty => return Ok(Step::Comment { at_ns }),
            Line::Strange(start) => {
                self.strange.get_or_insert_with(|| start.to_vec());
            }
            Line::Comment | Line::Ignored | Line::Blank => {}
        }
        Ok(Step::More)
    }

    /// Closes the event, where there is one. An error without data is one, against the letter of the
    /// standard.
    fn blank(&mut self, at_ns: u64) -> Step {
        if self.state == State::Open {
            return Step::Dispatch { at_ns: self.data_ns };
        }
        if self.name == b"error" {
            return Step::Dispatch { at_ns };
        }
        self.name.clear();
        Step::More
    }

    fn give<'s>(&'s mut self, at_ns: u64, whole: Option<&'s [u8]>, cut: bool) -> Frame<'s> {
        self.state = State::Given;
        Frame { at_ns, name: &self.name, data: whole.unwrap_or(&self.data), cut }
    }
}

fn classify(line: &[u8]) -> Line<'_> {
    if let Some(value) = line.strip_prefix(b"data:") {
        return Line::Data(without_space(value));
    }
    let Some(colon) = line.iter().position(|&byte| byte == b':') else {
        return match line {
            b"" => Line::Blank,
            b"data" => Line::Data(b""),
            b"event" => Line::Name(b""),
            b"id" | b"retry" => Line::Ignored,
            _ => Line::Strange(shown(line)),
        };
    };
    let value = without_space(&line[colon + 1..]);
    match &line[..colon] {
        b"" => Line::Comment,
        b"event" => Line::Name(value),
        b"error" => Line::Error(value),
        b"id" | b"retry" => Line::Ignored,
        _ => Line::Strange(shown(line)),
    }
}

fn without_space(value: &[u8]) -> &[u8] {
    value.strip_prefix(b" ").unwrap_or(value)
}

fn shown(line: &[u8]) -> &[u8] {
    &line[..line.len().min(SHOWN_BYTES)]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Items as text, from reads that are stamped 1, 2, 3 …
    fn items(limit_bytes: usize, reads: &[&str]) -> Vec<String> {
        let mut decoder = Decoder::new(limit_bytes);
        let mut told = Vec::new();
        let mut tell = |item: Result<Option<Item<'_>>, Endless>| match item {
            Ok(None) => false,
            Ok(Some(Item::Comment { at_ns })) => {
                told.push(format!("{at_ns} comment"));
                true
            }
            Ok(Some(Item::Event(frame))) => {
                let [name, data] = [frame.name, frame.data].map(String::from_utf8_lossy);
                told.push(format!("{} {name}={data}{}", frame.at_ns, if frame.cut { " (cut)" } else { "" }));
                true
            }
            Err(endless) => {
                told.push(endless.to_string());
                false
            }
        };
        for (at_ns, read) in (1..).zip(reads) {
            let mut rest = read.as_bytes();
            while tell(decoder.next(at_ns, &mut rest)) {}
        }
        tell(decoder.finish(reads.len() as u64 + 1));
        told
    }

    #[test]
    fn names_belong_to_one_event_and_data_joins() {
        let text = "event: a\ndata: 1\ndata\ndata: 2\n\ndata: 3\n\nevent: b\n\ndata:  4\n";
        assert_eq!(items(99, &[text]), ["1 a=1\n\n2", "1 =3", "1 = 4"]);
    }

    #[test]
    fn slices_and_copies_give_the_same() {
        let text = ": c\ndata: 1\n\nevent: e\ndata: 2\r\n\r\ndata: 3\rdata: 4\r\r:";
        let whole: Vec<String> = items(99, &[text]);
        assert_eq!(whole, ["1 comment", "1 =1", "1 e=2", "1 =3\n4", "1 comment"]);
        let kinds = |items: &[String]| -> Vec<String> {
            items.iter().map(|item| item.split_once(' ').unwrap().1.to_owned()).collect()
        };
        for cut in 1..text.len() {
            assert_eq!(kinds(&items(99, &[&text[..cut], &text[cut..]])), kinds(&whole), "cut at {cut}");
        }
    }

    #[test]
    fn events_that_lie_in_one_read_are_not_copied() {
        let mut decoder = Decoder::new(LIMIT_BYTES);
        let mut first = &b":\n"[..];
        while decoder.next(1, &mut first).unwrap().is_some() {}
        let held = decoder.held_bytes();
        let read = format!("data: {}\n\n", "x".repeat(10_000));
        let mut rest = read.as_bytes();
        let Ok(Some(Item::Event(frame))) = decoder.next(2, &mut rest) else { panic!("no event") };
        assert_eq!(frame.data.as_ptr(), read[6..].as_ptr());
        assert_eq!(decoder.held_bytes(), held);
    }

    #[test]
    fn what_is_held_is_bounded_by_the_limit() {
        let mut decoder = Decoder::new(1000);
        let read = [b'x'; 64];
        let mut failed_after = None;
        for i in 0..100 {
            if decoder.next(i, &mut &read[..]).is_err() {
                failed_after.get_or_insert(i);
            }
        }
        assert_eq!(failed_after, Some(15));
        assert!(decoder.held_bytes() <= 2048, "{}", decoder.held_bytes());
    }

    #[test]
    fn last_line_is_marked_where_its_end_is_missing() {
        assert_eq!(items(99, &["data: 1\n", "dat", "a: 2"]), ["3 =1\n2 (cut)"]);
        assert_eq!(items(99, &["data: 1\n", "\n"]), ["1 =1"]);
        assert_eq!(items(99, &["event: error\n"]), ["2 error="]);
        assert_eq!(items(99, &["event: ping\n"]), Vec::<String>::new());
    }
}
