//! Stamps to the nanosecond: a scripted stream moves a scripted clock at each read and write.
//!
//! The stream is always ready, so that a client that reads ahead of what it has handed on would show.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, Waker};

use bench_http::{Clock, Connection, EventKind, Exchange};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::support::{Asked, STREAM_HEAD, dialer, events, request, words};

#[derive(Debug, Default)]
struct ScriptClock(AtomicU64);

impl Clock for ScriptClock {
    fn now_ns(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Each read brings one piece at its instant; after the last one the stream is at its end.
struct Scripted {
    clock: Arc<ScriptClock>,
    write_ns: u64,
    written: usize,
    reader: Option<Waker>,
    reads: VecDeque<(u64, Vec<u8>)>,
}

impl AsyncRead for Scripted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.written == 0 {
            self.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        if let Some((at_ns, bytes)) = self.reads.pop_front() {
            self.clock.0.store(at_ns, Relaxed);
            buf.put_slice(&bytes);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Scripted {
    fn poll_write(mut self: Pin<&mut Self>, _cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        // The kernel takes its time: a stamp after the write would be this one.
        let after_ns = self.write_ns + 7;
        self.clock.0.store(after_ns, Relaxed);
        self.written += bytes.len();
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

async fn exchange(reads: Vec<(u64, String)>) -> Exchange {
    let clock = Arc::new(ScriptClock::default());
    clock.0.store(100, Relaxed);
    let reads = reads.into_iter().map(|(at_ns, text)| (at_ns, text.into_bytes())).collect();
    let stream = Scripted { clock: clock.clone(), write_ns: 100, written: 0, reader: None, reads };
    let mut connection = Connection::over(stream, clock);
    connection.exchange(request(&dialer("http://scripted")), &Asked::stream().terms()).await
}

/// `100 Sent` and so on, one event per word pair.
fn stamped(exchange: &Exchange) -> Vec<String> {
    let word = |kind: &EventKind| match kind {
        EventKind::Tokens { .. } => "Tokens".to_owned(),
        EventKind::Done { .. } => "Done".to_owned(),
        other => format!("{other:?}"),
    };
    exchange.events.iter().map(|event| format!("{} {}", event.at_ns, word(&event.kind))).collect()
}

async fn check(name: &str, reads: Vec<(u64, String)>, expected: &[&str], shared: u64) {
    let count = reads.len() as u64;
    let bytes: usize = reads.iter().map(|(_, text)| text.len()).sum();
    let got = exchange(reads).await;
    assert_eq!(stamped(&got), expected, "{name}: {}", words(&got));
    assert_eq!((got.reads.reads, got.reads.bytes, got.reads.shared), (count, bytes as u64, shared), "{name}");
}

fn chunk(text: &str) -> String {
    format!("{:x}\r\n{text}\r\n", text.len())
}

const END: &str = "0\r\n\r\n";

#[tokio::test]
async fn a_chunk_has_the_stamp_of_the_read_that_completed_it() {
    let head = format!("{STREAM_HEAD}transfer-encoding: chunked\r\n\r\n");
    let pieces = events(&["a", "b", "c"]);
    let [a, b, c, stop, done] = [0, 1, 2, 3, 4].map(|at| chunk(&pieces[at]));
    let (b_begin, b_end) = b.split_at(b.len() / 2);
    let (c_data, c_line_end) = c.split_at(c.len() - 2);
    check(
        "one read each",
        vec![
            (200, head.clone()),
            (300, a.clone()),
            (400, b.clone()),
            (500, c.clone()),
            (600, stop.clone() + &done + END),
        ],
        &[
            "100 Sent",
            "200 FirstByte",
            "300 Tokens",
            "400 Tokens",
            "500 Tokens",
            "600 EmptyChunk",
            "600 Done",
        ],
        1,
    )
    .await;
    check(
        "two in one read, one in two, the line end of the third in the next",
        vec![
            (200, head[..20].to_owned()),
            (210, head[20..].to_owned() + &a + b_begin),
            (400, b_end.to_owned() + c_data),
            (500, c_line_end.to_owned() + &stop + &done + END),
        ],
        &[
            "100 Sent",
            "200 FirstByte",
            "210 Tokens",
            "400 Tokens",
            "400 Tokens",
            "500 EmptyChunk",
            "500 Done",
        ],
        2,
    )
    .await;
    check(
        "everything in one read",
        vec![(200, head + &a + &b + &c + &stop + &done + END)],
        &[
            "100 Sent",
            "200 FirstByte",
            "200 Tokens",
            "200 Tokens",
            "200 Tokens",
            "200 EmptyChunk",
            "200 Done",
        ],
        4,
    )
    .await;
}

#[tokio::test]
async fn a_body_of_known_length_is_stamped_alike() {
    let pieces = events(&["a", "b"]);
    let body = pieces.concat();
    let head = format!("{STREAM_HEAD}content-length: {}\r\n\r\n", body.len());
    let cut = pieces[0].len() + 10;
    check(
        "the second event is split",
        vec![(200, head.clone() + &body[..cut]), (300, body[cut..].to_owned())],
        &["100 Sent", "200 FirstByte", "200 Tokens", "300 Tokens", "300 EmptyChunk", "300 Done"],
        2,
    )
    .await;
    check(
        "an interim answer is a first byte",
        vec![(150, "HTTP/1.1 100 Continue\r\n\r\n".to_owned()), (200, head), (300, body)],
        &["100 Sent", "150 FirstByte", "300 Tokens", "300 Tokens", "300 EmptyChunk", "300 Done"],
        3,
    )
    .await;
}
