//! Events per second of one core, from the bytes of a read to the events of an exchange.
//!
//! `cargo bench -p bench-http --bench parse`; the best of several runs, since neighbours only ever add time.

#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::hint::black_box;
use std::time::Instant;

use bench_http::{AnswerReader, Exchange, Progress, ReaderOptions};

const CHUNKS: usize = 2000;
const RUNS: usize = 40;

const VLLM_CHAT: &str = concat!(
    r#"{"id":"chatcmpl-9b0c6f2f5d7d4a31a2cf1c1c6f6c3a55","#,
    r#""object":"chat.completion.chunk","created":1763712345,"#,
    r#""model":"openai/gpt-oss-20b","choices":[{"index":0,"delta":{"content":"TEXT"},"#,
    r#""logprobs":null,"finish_reason":null}]}"#
);

/// The streams: name, chunk with `TEXT` for its text, whether the text is kept.
const STREAMS: &[(&str, &str, bool)] = &[
    ("vLLM chat", VLLM_CHAT, false),
    ("vLLM chat, text kept", VLLM_CHAT, true),
    (
        "vLLM chat, reasoning, ids, running usage",
        concat!(
            r#"{"id":"chatcmpl-9b0c6f2f5d7d4a31a2cf1c1c6f6c3a55","#,
            r#""object":"chat.completion.chunk","created":1763712345,"#,
            r#""model":"openai/gpt-oss-20b","choices":[{"index":0,"delta":{"reasoning":"TEXT","#,
            r#""reasoning_content":"TEXT"},"logprobs":null,"finish_reason":null,"#,
            r#""token_ids":[1234]}],"usage":{"prompt_tokens":1024,"total_tokens":1151,"#,
            r#""completion_tokens":127}}"#
        ),
        false,
    ),
    (
        "llama.cpp chat",
        concat!(
            r#"{"choices":[{"finish_reason":null,"index":0,"delta":{"content":"TEXT"}}],"#,
            r#""created":1763712345,"id":"chatcmpl-ZZdq0A6k7mJmCw2cJmVvDZb1r7p8hQ5E","#,
            r#""model":"gpt-oss-20b-mxfp4.gguf","system_fingerprint":"b7002-22cadc1","#,
            r#""object":"chat.completion.chunk"}"#
        ),
        false,
    ),
    (
        "llama.cpp chat, timings per token",
        concat!(
            r#"{"choices":[{"finish_reason":null,"index":0,"delta":{"content":"TEXT"}}],"#,
            r#""created":1763712345,"id":"chatcmpl-ZZdq0A6k7mJmCw2cJmVvDZb1r7p8hQ5E","#,
            r#""model":"gpt-oss-20b-mxfp4.gguf","system_fingerprint":"b7002-22cadc1","#,
            r#""object":"chat.completion.chunk","timings":{"cache_n":60,"prompt_n":8,"#,
            r#""prompt_ms":43.237,"prompt_per_token_ms":5.404625,"#,
            r#""prompt_per_second":185.02671323172282,"predicted_n":25,"predicted_ms":238.74,"#,
            r#""predicted_per_token_ms":9.5496,"predicted_per_second":104.71642791321104}}"#
        ),
        false,
    ),
    ("minimal completions", r#"{"choices":[{"index":0,"text":"TEXT"}]}"#, false),
];
const TEXTS: &[&str] = &[" the", " measure", "ment", ",", " of", " tokens", "\\n", " \\\"a", " größe"];

enum Reads {
    Events(usize),
    Bytes(usize),
}

/// The stream's bytes, cut into reads.
fn reads(chunk: &str, by: &Reads) -> Vec<Vec<u8>> {
    let mut events: Vec<String> =
        (0..CHUNKS).map(|i| format!("data: {}\n\n", chunk.replace("TEXT", TEXTS[i % TEXTS.len()]))).collect();
    events.push("data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"length\"}]}\n\n".to_owned());
    events.push("data: [DONE]\n\n".to_owned());
    match by {
        Reads::Events(n) => events.chunks(*n).map(|events| events.concat().into_bytes()).collect(),
        Reads::Bytes(n) => events.concat().into_bytes().chunks(*n).map(<[u8]>::to_vec).collect(),
    }
}

fn exchange(reads: &[Vec<u8>], keep_text: bool) -> Exchange {
    let options = ReaderOptions { keep_text, expected_tokens: CHUNKS, ..ReaderOptions::default() };
    let mut reader = AnswerReader::new(&options);
    for (at_ns, read) in (0..).zip(reads) {
        reader.feed(at_ns, read);
    }
    assert_eq!(reader.progress(), Progress::Complete);
    reader.into_exchange(true)
}

fn main() {
    println!("one core, best of {RUNS} runs of {} events", CHUNKS + 2);
    println!(
        "{:42} {:>6} {:>24} {:>24} {:>24}",
        "", "bytes", "1 event a read", "10 events a read", "4 KiB reads"
    );
    for (name, chunk, keep_text) in STREAMS {
        print!("{name:42} {:6}", chunk.replace("TEXT", TEXTS[0]).len() + 8);
        for by in [Reads::Events(1), Reads::Events(10), Reads::Bytes(4096)] {
            let reads = reads(chunk, &by);
            let best_ns = (0..RUNS)
                .map(|_| {
                    let start = Instant::now();
                    black_box(exchange(black_box(&reads), *keep_text));
                    start.elapsed().as_nanos() as f64 / (CHUNKS + 2) as f64
                })
                .fold(f64::INFINITY, f64::min);
            print!("   {:8.2} M/s {best_ns:5.0} ns", 1e3 / best_ns);
        }
        println!();
    }
}
