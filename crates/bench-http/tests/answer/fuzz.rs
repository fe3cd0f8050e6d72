//! A million broken streams: nothing panics, everything ends once, memory follows the bytes.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;

const STREAMS: u64 = 1_000_000;
/// Whole streams to start from: each kind of chunk and of line, short.
const SEEDS: &[&str] = &[
    concat!(
        "data: {\"choices\":[{\"delta\":{\"content\":\"Hi\"}}]}\n\n",
        "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n",
    ),
    concat!(
        ": ping\r\n\r\ndata:{\"choices\":[{\"text\":\"\u{e9}\\n\",\"token_ids\":[1,2],",
        "\"finish_reason\":\"length\"}],\"usage\":{\"completion_tokens\":2}}\r\n\r\n",
    ),
    concat!(
        "data: {\"choices\":[{\"delta\":{\"reasoning\":\"a\",\"reasoning_content\":\"a\"},\n",
        "data: \"logprobs\":{\"content\":[{}]}}]}\n\nevent: error\ndata: {\"message\":\"no\"}\n\n",
    ),
    concat!(
        "data: {\"choices\":[{\"delta\":{\"tool_calls\":[{\"function\":{\"arguments\":\"{\"}}]}}]}\r\r",
        "data: {\"choices\":[],\"timings\":{\"predicted_n\":1,\"prompt_ms\":0.5},",
        "\"metrics\":{\"queue_time_ms\":1e3}}\n\n",
    ),
    concat!(
        "{\"choices\":[{\"index\":0,\"message\":{\"content\":[{\"text\":\"x\"}]},",
        "\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":3}}",
    ),
];
const GARBAGE: &[&[u8]] = &[
    b"\n",
    b"\r",
    b"\n\n",
    b"\r\n",
    b"data: ",
    b"data:[DONE]\n\n",
    b"event: error\n",
    b":\n",
    b"\xef\xbb\xbf",
    b"\xff",
    b"\0",
    b"\"",
    b"{",
    b"}",
    b"[",
    b"[[[[[[[[[[[[[[[[[[[[",
    b"null",
    b"-1",
    b"1e999",
    b"\\ud800",
    b"\"error\":",
    b"99999999999999999999",
];

fn mutate(rng: &mut ChaCha8Rng, bytes: &mut Vec<u8>) {
    for _ in 0..rng.random_range(0..4) {
        let at = rng.random_range(0..=bytes.len());
        let to = rng.random_range(at..=bytes.len().min(at + 40));
        match rng.random_range(0..6) {
            0 if at < bytes.len() => bytes[at] ^= 1 << rng.random_range(0..8),
            1 => bytes.truncate(at),
            2 => drop(bytes.drain(at..to)),
            3 => {
                let copy = bytes[at..to].to_vec();
                bytes.splice(at..at, copy);
            }
            4 => {
                let from = SEEDS[rng.random_range(0..SEEDS.len())].as_bytes();
                let cut = rng.random_range(0..from.len());
                bytes.splice(at..at, from[cut..from.len().min(cut + 60)].iter().copied());
            }
            _ => {
                let garbage = GARBAGE[rng.random_range(0..GARBAGE.len())];
                bytes.splice(at..at, garbage.iter().copied());
            }
        }
    }
}

/// Reads the bytes in `pieces` reads at most and ends as `how` says.
fn read(rng: &mut ChaCha8Rng, options: &ReaderOptions, bytes: &[u8], pieces: u64, how: &BodyEnd) -> Exchange {
    let mut reader = AnswerReader::new(options);
    let mut rest = bytes;
    for at_ns in 1..pieces {
        let (head, tail) = rest.split_at(rng.random_range(0..=rest.len()));
        reader.feed(at_ns, head);
        rest = tail;
    }
    reader.feed(pieces, rest);
    reader.end(pieces + 1, how.clone());
    reader.into_exchange(true)
}

#[test]
fn a_million_streams_end_once_and_alike_however_they_are_cut() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let (mut done, mut failed) = (0_u64, 0_u64);
    let mut bytes = Vec::new();
    for i in 0..STREAMS {
        bytes.clear();
        bytes.extend_from_slice(SEEDS[rng.random_range(0..SEEDS.len())].as_bytes());
        mutate(&mut rng, &mut bytes);
        let options = ReaderOptions {
            form: if i % 8 == 0 { AnswerForm::Whole } else { AnswerForm::Stream },
            keep_text: i % 4 == 1,
            limit_bytes: if i % 16 == 2 { 60 } else { 1 << 20 },
            ..ReaderOptions::default()
        };
        let how = if i % 5 == 0 { BodyEnd::Broken("cut".to_owned()) } else { BodyEnd::Clean };
        let pieces = rng.random_range(2..6);
        let cut = read(&mut rng, &options, &bytes, pieces, &how);
        let whole = read(&mut rng, &options, &bytes, 1, &how);

        assert!(
            cut.events.iter().map(|e| &e.kind).eq(whole.events.iter().map(|e| &e.kind)),
            "stream {i}: {bytes:?}"
        );
        assert_eq!(cut.text, whole.text, "stream {i}: {bytes:?}");
        assert!(cut.events.is_sorted_by_key(|event| event.at_ns), "stream {i}: {bytes:?}");
        // A comment of two bytes is the shortest event; the end may add two facts and itself.
        assert!(cut.events.len() <= bytes.len() / 2 + 4, "stream {i}: {bytes:?}");
        let is_end = |event: &Event| matches!(event.kind, EventKind::Done { .. } | EventKind::Failed { .. });
        assert_eq!(cut.events.iter().filter(|event| is_end(event)).count(), 1, "stream {i}: {bytes:?}");
        match &cut.events.last().unwrap().kind {
            EventKind::Done { .. } => done += 1,
            EventKind::Failed { message, .. } => {
                assert!(message.len() < 2000, "stream {i}: {bytes:?}");
                failed += 1;
            }
            other => panic!("stream {i} ends with {other:?}: {bytes:?}"),
        }
    }
    assert_eq!(done + failed, STREAMS);
    assert!(done > STREAMS / 10 && failed > STREAMS / 10, "{done} done, {failed} failed");
}
