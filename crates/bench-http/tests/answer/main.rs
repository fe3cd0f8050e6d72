//! Answers scripted to the byte and the nanosecond, whole, cut at every byte, and broken at random.

#![allow(clippy::unwrap_used)]

mod fuzz;
mod order;
mod shapes;
mod stream;

use std::fmt::Write;

use bench_http::{
    AnswerForm, AnswerReader, BodyEnd, Channel, Event, EventKind, Exchange, Progress, ReaderOptions,
};

/// Bytes that come with one stamp.
type Read<'a> = (u64, &'a [u8]);

fn options(form: AnswerForm) -> ReaderOptions {
    ReaderOptions { form, ..ReaderOptions::default() }
}

/// Feeds the reads and ends the body at `end_ns`.
fn replay(options: &ReaderOptions, reads: &[Read<'_>], end_ns: u64, how: BodyEnd) -> Exchange {
    let mut reader = AnswerReader::new(options);
    for (at_ns, bytes) in reads {
        reader.feed(*at_ns, bytes);
    }
    assert_ne!(reader.end(end_ns, how), Progress::Reading);
    reader.into_exchange(true)
}

/// One line per event: stamp, kind, values; `?` where something is not known.
fn told(exchange: &Exchange) -> String {
    lines(exchange.events.iter().map(|event| format!("{} {}", event.at_ns, kind(event))))
}

fn untimed(exchange: &Exchange) -> String {
    lines(exchange.events.iter().map(kind))
}

fn lines(lines: impl Iterator<Item = String>) -> String {
    lines.flat_map(|line| [line, "\n".to_owned()]).collect()
}

fn kind(event: &Event) -> String {
    let known = |count: Option<u32>| count.map_or("?".to_owned(), |count| count.to_string());
    let known_ms = |ms: Option<f64>| ms.map_or("?".to_owned(), |ms| ms.to_string());
    match &event.kind {
        EventKind::Sent => "sent".to_owned(),
        EventKind::FirstByte => "first byte".to_owned(),
        EventKind::EmptyChunk => "empty".to_owned(),
        EventKind::Tokens { count, channel } => {
            let channel = match channel {
                Channel::Final => "final",
                Channel::Reasoning => "reasoning",
                Channel::Tool => "tool",
            };
            format!("{channel} {}", known(*count))
        }
        EventKind::Usage(usage) => {
            let mut text = format!("usage {} {}", known(usage.prompt_tokens), known(usage.output_tokens));
            for (name, count) in
                [("cached", usage.cached_prompt_tokens), ("reasoning", usage.reasoning_tokens)]
            {
                if let Some(count) = count {
                    write!(text, " {name} {count}").unwrap();
                }
            }
            text
        }
        EventKind::Server(server) => {
            let times = [server.queue_ms, server.ttft_ms, server.decode_ms].map(known_ms).join(" ");
            let counts = [server.prompt_tokens, server.cached_prompt_tokens, server.output_tokens];
            format!("server {times} ms {}", counts.map(known).join(" "))
        }
        EventKind::Done { finish } => format!("done {finish:?}"),
        EventKind::Failed { failure, message } => format!("failed {failure:?}: {message}"),
    }
}

/// The reads as scripted give `expected`; so do, but for the stamps, the same bytes in one read, cut in two
/// at every byte, and byte by byte.
#[track_caller]
fn check_form(form: AnswerForm, reads: &[Read<'_>], end: (u64, BodyEnd), expected: &str) {
    let options = options(form);
    let expected = lines(expected.trim().lines().map(|line| line.trim().to_owned()));
    let exchange = replay(&options, reads, end.0, end.1.clone());
    assert_eq!(told(&exchange), expected);

    let expected = untimed(&exchange);
    let bytes: Vec<u8> = reads.iter().flat_map(|(_, bytes)| bytes.iter().copied()).collect();
    for cut in 0..=bytes.len() {
        let halves = [(1, &bytes[..cut]), (2, &bytes[cut..])];
        assert_eq!(untimed(&replay(&options, &halves, 3, end.1.clone())), expected, "cut at byte {cut}");
    }
    let single: Vec<Read<'_>> = bytes.chunks(1).enumerate().map(|(i, byte)| (i as u64, byte)).collect();
    assert_eq!(untimed(&replay(&options, &single, bytes.len() as u64, end.1)), expected, "byte by byte");
}

#[track_caller]
fn check(reads: &[(u64, &str)], end_ns: u64, expected: &str) {
    let reads: Vec<Read<'_>> = reads.iter().map(|(at, text)| (*at, text.as_bytes())).collect();
    check_form(AnswerForm::Stream, &reads, (end_ns, BodyEnd::Clean), expected);
}
