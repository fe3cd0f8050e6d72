//! How fast this machine reads and copies host memory: the roof over every kernel that streams weights.
//!
//! Each thread owns a part of the arrays, touches it first and reads it in every repeat, so that pages lie
//! where they are read. Sizes are the caller's matter; nothing here knows caches or free memory.

use std::hint::black_box;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::host::{AlignedBytes, AllocError};
use crate::pool::{Pool, PoolOptions};

/// Parts end on whole cache lines.
const LINE_BYTES: usize = 64;
/// What the arrays are filled with.
const PATTERN: u64 = 0x0123_4567_89ab_cdef;

/// What cannot be measured.
#[derive(Debug, thiserror::Error)]
pub enum BandwidthError {
    #[error(transparent)]
    Alloc(#[from] AllocError),
    #[error(transparent)]
    Threads(#[from] crate::Error),
    #[error("{what} is {given}: expected {expected}")]
    Size { what: &'static str, given: usize, expected: String },
    #[error("{threads} threads read other words than were written: {found:#x}, expected {expected:#x}")]
    Sum { threads: usize, found: u64, expected: u64 },
}

/// Bytes per second of each repeat, slowest first.
#[derive(Debug, Clone, PartialEq)]
pub struct HostBandwidth {
    pub threads: usize,
    /// Of one array, all threads together; reading touches one, copying two.
    pub bytes: usize,
    /// Bytes read per second.
    pub read_bytes_s: Vec<f64>,
    /// Bytes read and written per second, each counted once; lines that the processor reads before it writes
    /// them are not counted.
    pub copy_bytes_s: Vec<f64>,
}

impl HostBandwidth {
    pub fn read_median_bytes_s(&self) -> f64 {
        median(&self.read_bytes_s)
    }

    pub fn copy_median_bytes_s(&self) -> f64 {
        median(&self.copy_bytes_s)
    }
}

/// Of sorted values; 0 of none, which [`measure`] never returns.
pub(crate) fn median(sorted: &[f64]) -> f64 {
    let at = |i: usize| sorted.get(i).copied().unwrap_or_default();
    f64::midpoint(at(sorted.len().saturating_sub(1) / 2), at(sorted.len() / 2))
}

/// Reads an array of `bytes` and copies it to a second one, `repeats` times each, on `threads` threads of
/// its own.
///
/// # Errors
/// No threads, no repeats or less than a cache line for each thread; no memory for two arrays.
pub fn measure(threads: usize, bytes: usize, repeats: usize) -> Result<HostBandwidth, BandwidthError> {
    let pool = Pool::new(PoolOptions { threads: Some(threads), pin: false })?;
    measure_on(&pool, bytes, repeats)
}

/// The same on threads that are there: of kernels that are to be held against it.
///
/// # Errors
/// As [`measure`].
pub fn measure_on(pool: &Pool, bytes: usize, repeats: usize) -> Result<HostBandwidth, BandwidthError> {
    let refuse = |what, given, expected: String| Err(BandwidthError::Size { what, given, expected });
    let threads = pool.threads();
    if repeats == 0 {
        return refuse("number of repeats", repeats, "at least 1".to_owned());
    }
    if bytes / threads < LINE_BYTES {
        return refuse("size of the array", bytes, format!("at least {} bytes", threads * LINE_BYTES));
    }
    let team = Team::new(pool, bytes)?;
    // One pass of each that is not timed: threads are awake, clocks are up, pages are mapped.
    team.check(team.read())?;
    team.copy();
    let bytes = team.bytes();
    let mut read_bytes_s = Vec::with_capacity(repeats);
    let mut copy_bytes_s = Vec::with_capacity(repeats);
    for _ in 0..repeats {
        let start = Instant::now();
        let sum = team.read();
        read_bytes_s.push(bytes as f64 / start.elapsed().as_secs_f64());
        team.check(sum)?;
        let start = Instant::now();
        team.copy();
        copy_bytes_s.push(2.0 * bytes as f64 / start.elapsed().as_secs_f64());
    }
    read_bytes_s.sort_by(f64::total_cmp);
    copy_bytes_s.sort_by(f64::total_cmp);
    Ok(HostBandwidth { threads, bytes, read_bytes_s, copy_bytes_s })
}

/// The parts of one thread.
struct Part {
    source: AlignedBytes,
    target: AlignedBytes,
}

/// Threads with the parts that they own. A lock is taken once a pass, by the one thread that ever takes it.
struct Team<'a> {
    pool: &'a Pool,
    parts: Vec<Mutex<Part>>,
}

impl<'a> Team<'a> {
    fn new(pool: &'a Pool, bytes: usize) -> Result<Self, BandwidthError> {
        let threads = pool.threads();
        let share = bytes / threads / LINE_BYTES * LINE_BYTES;
        let part = || {
            Ok(Mutex::new(Part {
                source: AlignedBytes::zeroed(share)?,
                target: AlignedBytes::zeroed(share)?,
            }))
        };
        let parts = (0..threads).map(|_| part()).collect::<Result<_, AllocError>>()?;
        let team = Self { pool, parts };
        // Pages are placed by the thread that writes them first.
        team.each(|part| {
            bytemuck::cast_slice_mut(part.source.as_bytes_mut()).fill(PATTERN);
            bytemuck::cast_slice_mut(part.target.as_bytes_mut()).fill(0_u64);
            0
        });
        Ok(team)
    }

    fn bytes(&self) -> usize {
        self.parts.iter().map(|p| p.lock().unwrap_or_else(PoisonError::into_inner).source.len()).sum()
    }

    /// Each thread works on its own part; the sum of what they return.
    fn each(&self, work: impl Fn(&mut Part) -> u64 + Sync) -> u64 {
        let sum = AtomicU64::new(0);
        self.pool.broadcast(&|thread| {
            let part = &self.parts[thread];
            sum.fetch_add(work(&mut part.lock().unwrap_or_else(PoisonError::into_inner)), Relaxed);
        });
        sum.into_inner()
    }

    /// Reads every word of the sources; returns their sum, so that no read can be left out.
    fn read(&self) -> u64 {
        self.each(|part| sum(bytemuck::cast_slice(black_box(part.source.as_bytes()))))
    }

    fn copy(&self) {
        self.each(|part| {
            part.target.as_bytes_mut().copy_from_slice(black_box(part.source.as_bytes()));
            black_box(part.target.as_bytes());
            0
        });
    }

    fn check(&self, found: u64) -> Result<(), BandwidthError> {
        let words = (self.bytes() / size_of::<u64>()) as u64;
        let expected = PATTERN.wrapping_mul(words);
        let threads = self.parts.len();
        if found == expected { Ok(()) } else { Err(BandwidthError::Sum { threads, found, expected }) }
    }
}

/// Wrapping sum of all words. Compilers turn this loop, and few others, into wide loads of several registers
/// whatever the processor; a load of 16 bytes is enough for one core to outrun its memory. Loops of 64-byte loads
/// with prefetches 512 to 8192 bytes ahead, in one, two or four streams, reached 0.80 to 0.98 of this one's bytes per
/// second with two threads of a Zen 4, and at most 1.01 with one.
fn sum(words: &[u64]) -> u64 {
    words.iter().fold(0, |sum, word| sum.wrapping_add(*word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_touches_both_arrays_whole() {
        let pool = Pool::new(PoolOptions { threads: Some(3), pin: false }).unwrap();
        let team = Team::new(&pool, 100_000).unwrap();
        // 100,000 / 3 = 33,333 bytes, of which 520 lines of 8 words are whole.
        assert_eq!(team.bytes(), 3 * 520 * 64);
        assert_eq!(team.read(), PATTERN.wrapping_mul(3 * 520 * 8));
        team.copy();
        for part in &team.parts {
            let part = part.lock().unwrap();
            assert_eq!(part.source.as_bytes(), part.target.as_bytes());
        }
        team.parts[1].lock().unwrap().source.as_bytes_mut()[777] ^= 1;
        assert!(team.check(team.read()).is_err());
    }

    #[test]
    fn repeats_are_sorted_rates_of_what_was_asked_for() {
        let measured = measure(2, 1 << 20, 3).unwrap();
        assert_eq!((measured.threads, measured.bytes), (2, 1 << 20));
        for rates in [&measured.read_bytes_s, &measured.copy_bytes_s] {
            assert!(rates.len() == 3 && rates.is_sorted() && rates[0] > 0.0 && rates[2].is_finite());
        }
        assert_eq!(measured.read_median_bytes_s(), measured.read_bytes_s[1]);
        assert_eq!(median(&[1.0, 2.0, 4.0, 9.0]), 3.0);
    }

    #[test]
    fn what_cannot_be_measured_is_an_error() {
        for (threads, bytes, repeats, says) in
            [(0, 4096, 1, "threads"), (1, 4096, 0, "repeats"), (2, 127, 1, "at least 128 bytes")]
        {
            let error = measure(threads, bytes, repeats).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        assert!(matches!(measure(1, usize::MAX / 4, 1), Err(BandwidthError::Alloc(_))));
    }
}
