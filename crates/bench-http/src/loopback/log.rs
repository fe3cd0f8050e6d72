//! What the server did, on its own clock: every stamp of the first requests, a histogram of all writes.
//!
//! It says how late the server was; what a client adds is the caller's difference.

use std::collections::HashMap;
use std::io::{BufWriter, Write};
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

/// How a request ended, as the server saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// All bytes of the answer went out.
    Complete,
    /// The client went away, or the connection broke, before that.
    Broken,
    /// A fault that was asked for cut the answer short.
    Cut,
}

/// One request with the stamps of its writes; nanoseconds on the clock that the server was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServedRequest {
    /// The client's `x-request-id`, else the index in decimal.
    pub id: String,
    /// In order of arrival, from 0.
    pub index: u64,
    /// Its last byte had been read.
    pub arrival_ns: u64,
    /// When the first write with tokens was due, and how far apart the writes were to be.
    pub first_due_ns: u64,
    pub step_ns: u64,
    /// Stamp of each write with tokens, taken before its system call. A whole answer is one write.
    pub written_ns: Vec<u64>,
    /// Tokens of every write but the last.
    pub tokens_per_write: u32,
    /// Tokens that went out.
    pub output_tokens: u32,
    pub prompt_tokens: u32,
    pub outcome: Outcome,
}

impl ServedRequest {
    /// When write `i` was due.
    pub fn due_ns(&self, i: usize) -> u64 {
        self.first_due_ns.saturating_add(self.step_ns.saturating_mul(i as u64))
    }

    /// How late each write was.
    pub fn errors_ns(&self) -> impl Iterator<Item = u64> + '_ {
        self.written_ns.iter().enumerate().map(|(i, at)| at.saturating_sub(self.due_ns(i)))
    }

    fn since_arrival_ms(&self, at_ns: Option<&u64>) -> Option<f64> {
        at_ns.map(|at| at.saturating_sub(self.arrival_ns) as f64 / 1e6)
    }

    fn line(&self) -> Line<'_> {
        let (first, last) = (self.written_ns.first(), self.written_ns.last());
        let tpot_ms = match (first, last) {
            (Some(first), Some(last)) if self.written_ns.len() > 1 => {
                Some((last - first) as f64 / 1e6 / f64::from(self.output_tokens - 1))
            }
            _ => None,
        };
        Line {
            request_id: &self.id,
            index: self.index,
            arrival_ns: self.arrival_ns,
            ttft_ms: self.since_arrival_ms(first),
            last_token_ms: self.since_arrival_ms(last),
            tpot_ms,
            output_tokens: self.output_tokens,
            prompt_tokens: self.prompt_tokens,
            worst_error_ms: self.errors_ns().max().map(|e| e as f64 / 1e6),
            outcome: self.outcome,
        }
    }
}

/// A request in the summary; times since arrival, to the moment before the write.
#[derive(Serialize)]
struct Line<'a> {
    request_id: &'a str,
    index: u64,
    arrival_ns: u64,
    ttft_ms: Option<f64>,
    last_token_ms: Option<f64>,
    tpot_ms: Option<f64>,
    output_tokens: u32,
    prompt_tokens: u32,
    worst_error_ms: Option<f64>,
    outcome: Outcome,
}

/// How late the server's writes were: stamp before the system call minus due instant. What the kernel needs
/// before a request reaches the server is not in it: nobody stamps that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ServerError {
    /// Writes.
    pub n: u64,
    /// Upper edge of the bucket, 1.6 % wide; empty unless n supports it: from 2 and from 100 writes.
    pub p50_ns: Option<u64>,
    pub p99_ns: Option<u64>,
    /// Exact.
    pub max_ns: Option<u64>,
}

/// Buckets below this are one nanosecond wide; above, each power of two has as many buckets as this.
const EXACT: u64 = 64;
const EXACT_BITS: u32 = 6;

/// Counts by magnitude, 1.6 % wide.
#[derive(Debug, Clone)]
struct Histogram {
    buckets: Vec<u64>,
    n: u64,
    max: u64,
}

impl Histogram {
    fn new() -> Self {
        let buckets = (64 - EXACT_BITS as usize + 1) * EXACT as usize;
        Self { buckets: vec![0; buckets], n: 0, max: 0 }
    }

    fn bucket(value: u64) -> usize {
        if value < EXACT {
            return value as usize;
        }
        let octave = value.ilog2() - EXACT_BITS;
        (u64::from(octave + 1) * EXACT + ((value >> octave) - EXACT)) as usize
    }

    /// The largest value of a bucket.
    fn upper(bucket: usize) -> u64 {
        let (row, column) = (bucket as u64 / EXACT, bucket as u64 % EXACT);
        if row == 0 { column } else { ((u128::from(EXACT + column + 1) << (row - 1)) - 1) as u64 }
    }

    fn add(&mut self, value: u64) {
        self.buckets[Self::bucket(value)] += 1;
        self.n += 1;
        self.max = self.max.max(value);
    }

    /// The value below which `part` of 100 lie.
    fn percentile(&self, part: u64) -> Option<u64> {
        if self.n * (100 - part) < 100 {
            return None;
        }
        let rank = (self.n * part).div_ceil(100);
        let mut seen = 0;
        let bucket = self.buckets.iter().position(|count| {
            seen += count;
            seen >= rank
        })?;
        Some(Self::upper(bucket).min(self.max))
    }
}

#[derive(Debug)]
struct Kept {
    requests: HashMap<String, ServedRequest>,
    errors: Histogram,
    finished: u64,
    beyond_cap: u64,
}

/// The record of one server; shared with its threads.
#[derive(Debug)]
pub struct Log {
    kept: Mutex<Kept>,
    cap: usize,
    lines: Mutex<Option<Sender<String>>>,
}

impl Log {
    pub(super) fn new(cap: usize, lines: Option<Sender<String>>) -> Self {
        let kept = Kept { requests: HashMap::new(), errors: Histogram::new(), finished: 0, beyond_cap: 0 };
        Self { kept: Mutex::new(kept), cap, lines: Mutex::new(lines) }
    }

    pub(super) fn add(&self, request: ServedRequest) {
        if let Some(lines) = &*self.lines.lock().unwrap_or_else(PoisonError::into_inner)
            && let Ok(line) = serde_json::to_string(&request.line())
        {
            let _ = lines.send(line);
        }
        let mut kept = self.kept();
        kept.finished += 1;
        for error in request.errors_ns() {
            kept.errors.add(error);
        }
        if kept.requests.len() < self.cap {
            kept.requests.insert(request.id.clone(), request);
        } else {
            kept.beyond_cap += 1;
        }
    }

    /// Ends the summary: its thread writes what it has and returns.
    pub(super) fn close(&self) {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Requests whose end the server has seen. It sees the end some microseconds after the client has the
    /// last byte: wait for this count, or stop the server, before taking the log.
    pub fn finished(&self) -> u64 {
        self.kept().finished
    }

    /// Requests whose stamps were not kept, because the log was full.
    pub fn beyond_cap(&self) -> u64 {
        self.kept().beyond_cap
    }

    /// Removes the request with this id, which makes room for another. Of requests with the same id the
    /// last is kept.
    pub fn take(&self, id: &str) -> Option<ServedRequest> {
        self.kept().requests.remove(id)
    }

    /// Removes all requests, in order of arrival.
    pub fn take_all(&self) -> Vec<ServedRequest> {
        let mut all: Vec<_> = self.kept().requests.drain().map(|(_, request)| request).collect();
        all.sort_unstable_by_key(|request| request.index);
        all
    }

    /// How late the writes of all finished requests were.
    pub fn server_error(&self) -> ServerError {
        let kept = self.kept();
        let errors = &kept.errors;
        ServerError {
            n: errors.n,
            p50_ns: errors.percentile(50),
            p99_ns: errors.percentile(99),
            max_ns: (errors.n > 0).then_some(errors.max),
        }
    }

    /// Forgets the writes counted so far, so that a warm-up leaves no trace in [`Log::server_error`].
    pub fn reset_error(&self) {
        self.kept().errors = Histogram::new();
    }
}

/// Writes lines as they come, and flushes whenever none is waiting.
pub(super) fn write_lines(lines: &Receiver<String>, out: Box<dyn Write + Send>) {
    let mut out = BufWriter::new(out);
    while let Ok(line) = lines.recv() {
        let mut failed = writeln!(out, "{line}").is_err();
        while let Ok(line) = lines.try_recv() {
            failed |= writeln!(out, "{line}").is_err();
        }
        if failed || out.flush().is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::{Histogram, Log, Outcome, ServedRequest};

    fn served(id: &str, index: u64, written_ns: Vec<u64>) -> ServedRequest {
        ServedRequest {
            id: id.to_owned(),
            index,
            arrival_ns: 1_000_000,
            first_due_ns: 3_000_000,
            step_ns: 1_000_000,
            tokens_per_write: 1,
            output_tokens: written_ns.len() as u32,
            written_ns,
            prompt_tokens: 8,
            outcome: Outcome::Complete,
        }
    }

    #[test]
    fn buckets_cover_all_values_without_gaps() {
        let mut last = 0;
        for bucket in 1..Histogram::new().buckets.len() {
            let upper = Histogram::upper(bucket);
            assert_eq!(Histogram::bucket(upper), bucket);
            assert_eq!(Histogram::bucket(last + 1), bucket);
            assert!(bucket < 64 || (upper - last) as f64 / last as f64 <= 1.0 / 63.0);
            last = upper;
        }
        assert_eq!(last, u64::MAX);
    }

    #[test]
    fn percentiles_need_their_n() {
        let mut histogram = Histogram::new();
        (1..=99).for_each(|v| histogram.add(v));
        assert_eq!(histogram.percentile(99), None);
        histogram.add(100);
        assert_eq!(histogram.percentile(50), Some(50));
        // 99 shares its bucket with 98.
        assert_eq!(histogram.percentile(99), Some(99));
        assert_eq!(histogram.max, 100);
    }

    #[test]
    fn errors_are_stamps_minus_due_instants() {
        let log = Log::new(10, None);
        log.add(served("a", 0, vec![3_000_007, 4_000_000, 5_000_300]));
        let error = log.server_error();
        assert_eq!((error.n, error.p50_ns, error.p99_ns, error.max_ns), (3, Some(7), None, Some(300)));
        log.reset_error();
        assert_eq!(log.server_error().max_ns, None);
    }

    #[test]
    fn beyond_the_cap_only_the_histogram_grows() {
        let log = Log::new(2, None);
        for index in 0..5 {
            log.add(served(&index.to_string(), index, vec![3_000_000]));
        }
        assert_eq!((log.finished(), log.beyond_cap(), log.server_error().n), (5, 3, 5));
        assert!(log.take("1").is_some());
        assert!(log.take("4").is_none());
        log.add(served("x", 9, vec![]));
        let order: Vec<_> = log.take_all().into_iter().map(|r| r.id).collect();
        assert_eq!(order, ["0", "x"]);
    }

    #[test]
    fn the_summary_has_a_line_per_request() {
        let (sender, receiver) = channel();
        let log = Log::new(0, Some(sender));
        log.add(served("r", 4, vec![3_000_000, 4_500_000, 6_000_000]));
        log.add(served("s", 5, vec![]));
        log.close();
        let lines: Vec<String> = receiver.iter().collect();
        assert_eq!(
            lines,
            [
                concat!(
                    r#"{"request_id":"r","index":4,"arrival_ns":1000000,"ttft_ms":2.0,"last_token_ms":5.0,"#,
                    r#""tpot_ms":1.5,"output_tokens":3,"prompt_tokens":8,"worst_error_ms":1.0,"#,
                    r#""outcome":"complete"}"#
                ),
                concat!(
                    r#"{"request_id":"s","index":5,"arrival_ns":1000000,"ttft_ms":null,"#,
                    r#""last_token_ms":null,"#,
                    r#""tpot_ms":null,"output_tokens":0,"prompt_tokens":8,"worst_error_ms":null,"#,
                    r#""outcome":"complete"}"#
                ),
            ]
        );
    }
}
