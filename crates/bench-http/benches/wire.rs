//! What one streamed event costs the client in CPU time, and one open stream in memory.
//!
//! `cargo bench -p bench-http --bench wire -- [streams] [tokens] [gap_ms]`. A thread of this process writes an
//! event to each stream in turn; the client's thread is measured alone, by the kernel's account of its time.
//! More than 500 streams need a higher limit of open files (`ulimit -n`).
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bench_http::{
    Ahead, Api, BodyTemplate, Dialer, Endpoint, Pool, Prompt, Stop, SystemClock, Terms, Timeouts, TlsOptions,
    Variable,
};

const HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";

/// About as long as the events of a server.
fn event(text: &str, finish: &str) -> String {
    let event = format!(
        "data: {{\"id\":\"cmpl-0123456789abcdef0123456789abcdef\",\"object\":\"text_completion\",\
         \"created\":1700000000,\"model\":\"openai/gpt-oss-20b\",\"choices\":[{{\"index\":0,\
         \"text\":\"{text}\",\"logprobs\":null,\"finish_reason\":{finish},\"stop_reason\":null}}],\
         \"usage\":null}}\n\n"
    );
    format!("{:x}\r\n{event}\r\n", event.len())
}

fn serve(listener: &TcpListener, streams: usize, tokens: usize, pause: Duration) {
    let mut sockets: Vec<TcpStream> = (0..streams)
        .map(|_| {
            let (socket, _) = listener.accept().unwrap();
            socket.set_nodelay(true).unwrap();
            socket
        })
        .collect();
    for socket in &mut sockets {
        let mut head = [0; 4096];
        let read = socket.read(&mut head).unwrap();
        assert!(read > 0);
        socket.write_all(HEAD.as_bytes()).unwrap();
    }
    let token = event(" the", "null");
    for _ in 0..tokens {
        let begun = Instant::now();
        for socket in &mut sockets {
            socket.write_all(token.as_bytes()).unwrap();
        }
        std::thread::sleep(pause.saturating_sub(begun.elapsed()));
    }
    let end = event("", "\"length\"") + "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n";
    for socket in &mut sockets {
        socket.write_all(end.as_bytes()).unwrap();
    }
}

fn thread_cpu_ns() -> u64 {
    let account = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    account.split(' ').next().and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn rss_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|text| text.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}

async fn run(pool: &Arc<Pool>, streams: usize, tokens: usize) {
    let template = BodyTemplate::new(Api::Completions, "m");
    let body = template.render(&Variable::new(&Prompt::Text("hello ".repeat(20)))).unwrap();
    let (timeouts, stop) = (Timeouts::default(), Stop::new());
    let ahead = Ahead { connections: streams, at_once: 64, warm: None, timeouts: &timeouts, stop: &stop };
    let opened = pool.open_ahead(&ahead).await;
    assert_eq!(opened.failed, 0, "{:?}", opened.failure);
    let idle_kib = rss_kib();

    let (begun, cpu) = (Instant::now(), thread_cpu_ns());
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..streams {
        let (pool, body, stop) = (pool.clone(), body.clone(), stop.clone());
        tasks.spawn(async move {
            let terms = Terms {
                streamed: true,
                keep_text: false,
                expected_tokens: 0,
                timeouts: &timeouts,
                stop: &stop,
            };
            let request = pool.dialer().endpoint().post(bench_http::Route::Completions, body).unwrap();
            let mut connection = pool.take(&timeouts, &stop).await.unwrap();
            let exchange = connection.exchange(request, &terms).await;
            (exchange.reads, exchange.events.len())
        });
    }
    let (mut reads, mut events, mut shared, mut bytes) = (0, 0, 0, 0);
    while let Some(joined) = tasks.join_next().await {
        let (counts, _) = joined.unwrap();
        reads += counts.reads;
        events += counts.events;
        shared += counts.shared;
        bytes += counts.bytes;
    }
    let (wall, cpu) = (begun.elapsed(), thread_cpu_ns() - cpu);
    println!(
        "{streams} streams x {tokens} tokens: {events} events, {reads} reads, {shared} shared, \
         {bytes} bytes, {:.2} s wall; client {:.2} s on CPU = {:.2} us per event, {:.2} us per read; \
         peak memory {:.1} MiB idle, {:.1} MiB streaming",
        wall.as_secs_f64(),
        cpu as f64 / 1e9,
        cpu as f64 / 1e3 / events as f64,
        cpu as f64 / 1e3 / reads as f64,
        idle_kib as f64 / 1024.0,
        rss_kib() as f64 / 1024.0,
    );
}

fn main() {
    let numbers: Vec<usize> = std::env::args().filter_map(|text| text.parse().ok()).collect();
    let streams = numbers.first().copied().unwrap_or(200);
    let tokens = numbers.get(1).copied().unwrap_or(200);
    let pause = Duration::from_millis(numbers.get(2).copied().unwrap_or(10) as u64);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let server = std::thread::spawn(move || serve(&listener, streams, tokens, pause));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let endpoint = Endpoint::parse(&base).unwrap();
    let clock = Arc::new(SystemClock::default());
    let dialer = Dialer::new(endpoint, &TlsOptions::default(), clock).unwrap();
    let pool = Arc::new(Pool::new(Arc::new(dialer)));
    runtime.block_on(run(&pool, streams, tokens));
    server.join().unwrap();
}
