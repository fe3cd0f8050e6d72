//! How late the loopback server writes, and what it costs, against a client that only drains.
//!
//! `cargo bench -p bench-http --bench loopback [-- CASE [RUNS]]`. Other work on the machine makes it worse
//! and never better, so the best of several runs is what the server can do; all runs are printed.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use bench_http::SystemClock;
use bench_http::loopback::{Loopback, LoopbackOptions, ServerError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

struct Case {
    name: &'static str,
    streams: u32,
    ttft_ms: u64,
    gap_ms: u64,
    tokens: u32,
    rounds: u32,
    spread: Spread,
}

/// Streams begin evenly over this time: all within one gap, so that every round begins with a burst of
/// requests, or over a request's whole life, so that requests come evenly.
#[derive(Clone, Copy)]
enum Spread {
    Gap,
    Life,
}
use Spread::{Gap, Life};

const CASES: [Case; 5] = [
    Case { name: "8x10", streams: 8, ttft_ms: 50, gap_ms: 10, tokens: 100, rounds: 2, spread: Gap },
    Case { name: "64x20", streams: 64, ttft_ms: 200, gap_ms: 20, tokens: 64, rounds: 2, spread: Gap },
    Case { name: "500x20", streams: 500, ttft_ms: 50, gap_ms: 20, tokens: 100, rounds: 2, spread: Gap },
    Case { name: "1000x10", streams: 1_000, ttft_ms: 50, gap_ms: 10, tokens: 100, rounds: 3, spread: Gap },
    Case { name: "even", streams: 1_000, ttft_ms: 50, gap_ms: 10, tokens: 100, rounds: 4, spread: Life },
];

struct Outcome {
    error: ServerError,
    wall_s: f64,
    server_cpu_s: Option<f64>,
    client_cpu_s: f64,
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let wanted = args.first().map(String::as_str);
    let runs: usize = args.get(1).map_or(5, |n| n.parse().unwrap());
    println!("case      tokens/s  error p50 us  p99 us  max us  server CPU s  client CPU s  wall s");
    for case in CASES.iter().filter(|case| wanted.is_none_or(|name| name == case.name)) {
        let mut outcomes: Vec<Outcome> = (0..runs).map(|_| run(case)).collect();
        for outcome in &outcomes {
            line(case, outcome, "");
        }
        outcomes.sort_by_key(|outcome| outcome.error.p99_ns);
        line(case, &outcomes[0], "  best by p99");
    }
}

fn line(case: &Case, outcome: &Outcome, note: &str) {
    let us = |ns: Option<u64>| ns.map_or("-".to_owned(), |ns| format!("{:.1}", ns as f64 / 1e3));
    let Outcome { error, wall_s, server_cpu_s, client_cpu_s } = outcome;
    println!(
        "{:9} {:8.0} {:>13} {:>7} {:>7} {:>13} {:13.2} {:7.2}{note}",
        case.name,
        error.n as f64 / wall_s,
        us(error.p50_ns),
        us(error.p99_ns),
        us(error.max_ns),
        server_cpu_s.map_or("-".to_owned(), |s| format!("{s:.2}")),
        client_cpu_s,
        wall_s,
    );
}

fn run(case: &Case) -> Outcome {
    let options = LoopbackOptions {
        ttft_ns: case.ttft_ms * 1_000_000,
        gap_ns: case.gap_ms * 1_000_000,
        log_cap: 0,
        ..LoopbackOptions::default()
    };
    let server = Loopback::start(options, Arc::new(SystemClock::default())).unwrap();
    let body = format!(r#"{{"prompt":"a b c","max_tokens":{},"stream":true}}"#, case.tokens);
    let request =
        format!("POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let request: Arc<[u8]> = request.into_bytes().into();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (addr, rounds) = (server.addr(), case.rounds);
    let spread_ms = match case.spread {
        Spread::Gap => case.gap_ms,
        Spread::Life => case.ttft_ms + case.gap_ms * u64::from(case.tokens),
    };
    let stagger = Duration::from_millis(spread_ms) / case.streams;
    let begin = Instant::now();
    runtime.block_on(async {
        let mut clients = Vec::new();
        for _ in 0..case.streams {
            clients.push(TcpStream::connect(addr).await.unwrap());
        }
        let zero = tokio::time::Instant::now();
        let tasks: Vec<_> = (0..)
            .zip(clients)
            .map(|(i, client)| tokio::spawn(drain(client, Arc::clone(&request), rounds, zero + stagger * i)))
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
    });
    let wall_s = begin.elapsed().as_secs_f64();
    let requests = u64::from(case.streams * case.rounds);
    while server.log().finished() < requests {
        std::thread::sleep(Duration::from_millis(1));
    }
    let server_cpu_s = server.cpu_ns().map(|ns| ns as f64 / 1e9);
    let error = server.server_error();
    assert_eq!(error.n, requests * u64::from(case.tokens));
    Outcome { error, wall_s, server_cpu_s, client_cpu_s: own_cpu_s() }
}

async fn drain(mut client: TcpStream, request: Arc<[u8]>, rounds: u32, start: tokio::time::Instant) {
    client.set_nodelay(true).unwrap();
    let mut buffer = vec![0; 4096];
    tokio::time::sleep_until(start).await;
    for _ in 0..rounds {
        client.write_all(&request).await.unwrap();
        loop {
            let n = client.read(&mut buffer).await.unwrap();
            assert!(n > 0, "the server closed the connection");
            if buffer[..n].ends_with(b"\r\n0\r\n\r\n") {
                break;
            }
        }
    }
}

/// CPU time of the calling thread since the last call.
fn own_cpu_s() -> f64 {
    thread_local!(static LAST: std::cell::Cell<u64> = const { std::cell::Cell::new(0) });
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let now: u64 = text.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0);
    (now - LAST.replace(now)) as f64 / 1e9
}
