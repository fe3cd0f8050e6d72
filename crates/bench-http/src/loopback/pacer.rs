//! Writes tokens when they are due: one heap of instants for all streams of a thread, and sleep in between.
//!
//! An async timer's millisecond is too coarse here, so this is a plain thread that writes to the sockets
//! itself. It parks until the earliest instant and does not spin while there is time to sleep; it reads
//! nothing.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Thread;
use std::time::Duration;

use tokio::sync::oneshot;

use super::script::Script;
use crate::Clock;

/// A full socket is looked at again after this long: its client does not keep up, so precision is lost
/// anyway.
const RETRY_NS: u64 = 1_000_000;
/// Sleeping costs about this much, so that a nearer instant is waited for awake.
const AWAKE_NS: u64 = 5_000;
/// After this many writes newcomers are let in, although more are due.
const TURN_WRITES: usize = 64;

/// Where the bytes go; a socket, or a test's record.
pub(super) trait Sink {
    /// As `write` of a socket that never blocks.
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize>;
}

impl Sink for Arc<tokio::net::TcpStream> {
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        tokio::net::TcpStream::try_write(self, bytes)
    }
}

/// Told of every write with tokens, as it happens.
pub(super) trait Progress {
    fn wrote(&self, tokens: u32);
}

/// What came of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Delivered {
    /// Stamp of each write, taken before its system call.
    pub(super) written_ns: Vec<u64>,
    /// All writes went out whole; else the connection broke.
    pub(super) whole: bool,
}

/// One answer on its way: write i is due at `first_due_ns + i · step_ns`.
pub(super) struct Job<S> {
    pub(super) sink: S,
    pub(super) script: Script,
    pub(super) first_due_ns: u64,
    pub(super) step_ns: u64,
    pub(super) done: oneshot::Sender<Delivered>,
}

struct Stream<S> {
    job: Job<S>,
    written_ns: Vec<u64>,
    /// What the socket has not yet taken of the last write.
    rest: Vec<u8>,
}

enum Next {
    At(u64),
    Over { whole: bool },
}

impl<S: Sink> Stream<S> {
    fn due_ns(&self) -> u64 {
        let index = self.written_ns.len() as u64;
        self.job.first_due_ns.saturating_add(self.job.step_ns.saturating_mul(index))
    }

    /// Does what is due: the next write, or the rest of the last one.
    fn fire(&mut self, now_ns: u64, scratch: &mut Vec<u8>, progress: &impl Progress) -> Next {
        if !self.rest.is_empty() {
            return match self.job.sink.try_write(&self.rest) {
                Ok(0) => Next::Over { whole: false },
                Ok(taken) => {
                    self.rest.drain(..taken);
                    self.after_write(now_ns)
                }
                Err(e) => after_error(&e, now_ns),
            };
        }
        let index = self.written_ns.len() as u32;
        self.job.script.render(index, now_ns, scratch);
        match self.job.sink.try_write(scratch) {
            Ok(0) => Next::Over { whole: false },
            Ok(taken) => {
                self.written_ns.push(now_ns);
                let script = &self.job.script;
                progress.wrote(script.tokens_after(index + 1) - script.tokens_after(index));
                self.rest.extend_from_slice(&scratch[taken..]);
                self.after_write(now_ns)
            }
            Err(e) => after_error(&e, now_ns),
        }
    }

    fn after_write(&self, now_ns: u64) -> Next {
        if !self.rest.is_empty() {
            Next::At(now_ns + RETRY_NS)
        } else if self.written_ns.len() == self.job.script.writes as usize {
            Next::Over { whole: true }
        } else {
            Next::At(self.due_ns())
        }
    }
}

fn after_error(error: &io::Error, now_ns: u64) -> Next {
    match error.kind() {
        io::ErrorKind::WouldBlock => Next::At(now_ns + RETRY_NS),
        io::ErrorKind::Interrupted => Next::At(now_ns),
        _ => Next::Over { whole: false },
    }
}

/// All answers of one thread, and the order in which they are due.
pub(super) struct Desk<S> {
    /// Instant and place; among equal instants the lower place comes first.
    agenda: BinaryHeap<Reverse<(u64, usize)>>,
    places: Vec<Option<Stream<S>>>,
    free: Vec<usize>,
    scratch: Vec<u8>,
}

impl<S: Sink> Desk<S> {
    pub(super) fn new() -> Self {
        Self { agenda: BinaryHeap::new(), places: Vec::new(), free: Vec::new(), scratch: Vec::new() }
    }

    pub(super) fn add(&mut self, job: Job<S>) {
        let writes = job.script.writes as usize;
        let stream = Stream { job, written_ns: Vec::with_capacity(writes), rest: Vec::new() };
        if writes == 0 {
            finish(stream, true);
            return;
        }
        let due = stream.due_ns();
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push(None);
            self.places.len() - 1
        });
        self.places[place] = Some(stream);
        self.agenda.push(Reverse((due, place)));
    }

    /// Fires what is due, at most `limit` times, each with a fresh stamp. Returns the earliest instant that
    /// is left, which may have passed.
    pub(super) fn turn(&mut self, clock: &dyn Clock, limit: usize, progress: &impl Progress) -> Option<u64> {
        for _ in 0..limit {
            let mut top = self.agenda.peek_mut()?;
            let Reverse((due, place)) = *top;
            let now = clock.now_ns();
            if due > now {
                return Some(due);
            }
            let Some(stream) = self.places[place].as_mut() else {
                PeekMut::pop(top);
                continue;
            };
            match stream.fire(now, &mut self.scratch, progress) {
                Next::At(at) => *top = Reverse((at, place)),
                Next::Over { whole } => {
                    PeekMut::pop(top);
                    self.free.push(place);
                    if let Some(stream) = self.places[place].take() {
                        finish(stream, whole);
                    }
                }
            }
        }
        self.agenda.peek().map(|Reverse((due, _))| *due)
    }
}

/// Lets go of the socket before the reader hears of it, so that dropping it there closes it.
fn finish<S>(stream: Stream<S>, whole: bool) {
    let Stream { job, written_ns, .. } = stream;
    drop(job.sink);
    let _ = job.done.send(Delivered { written_ns, whole });
}

/// The way in to a pacer's thread.
pub(super) struct Inbox<S> {
    jobs: Mutex<Vec<Job<S>>>,
    waiting: AtomicBool,
    stopped: AtomicBool,
}

impl<S: Sink> Inbox<S> {
    pub(super) fn new() -> Self {
        Self {
            jobs: Mutex::new(Vec::new()),
            waiting: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
        }
    }

    /// Hands a job over; it is dropped where the pacer has been stopped.
    pub(super) fn submit(&self, job: Job<S>, pacer: &Thread) {
        {
            let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
            if self.stopped.load(Ordering::Acquire) {
                return;
            }
            jobs.push(job);
        }
        self.waiting.store(true, Ordering::Release);
        pacer.unpark();
    }

    pub(super) fn stop(&self, pacer: &Thread) {
        self.stopped.store(true, Ordering::Release);
        pacer.unpark();
    }

    /// The thread's life: writes what is due until it is stopped, and then drops all jobs.
    pub(super) fn pace(&self, clock: &dyn Clock, progress: &impl Progress) {
        let mut desk = Desk::new();
        let mut fresh = Vec::new();
        while !self.stopped.load(Ordering::Acquire) {
            if self.waiting.swap(false, Ordering::AcqRel) {
                std::mem::swap(&mut fresh, &mut *self.jobs.lock().unwrap_or_else(PoisonError::into_inner));
                fresh.drain(..).for_each(|job| desk.add(job));
            }
            let Some(due) = desk.turn(clock, TURN_WRITES, progress) else {
                if !self.waiting.load(Ordering::Acquire) {
                    std::thread::park();
                }
                continue;
            };
            let wait = due.saturating_sub(clock.now_ns());
            if wait > AWAKE_NS {
                std::thread::park_timeout(Duration::from_nanos(wait));
            } else if wait > 0 {
                std::hint::spin_loop();
            }
        }
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::VecDeque;
    use std::io;
    use std::rc::Rc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use tokio::sync::oneshot;

    use super::{Delivered, Desk, Job, Progress, RETRY_NS, Sink};
    use crate::Clock;
    use crate::loopback::script::{Patched, Script};

    #[derive(Default)]
    struct Hand(AtomicU64);
    impl Clock for Hand {
        fn now_ns(&self) -> u64 {
            self.0.load(Ordering::Relaxed)
        }
    }
    impl Hand {
        fn set(&self, now_ns: u64) {
            self.0.store(now_ns, Ordering::Relaxed);
        }
    }

    #[derive(Default)]
    struct Count(AtomicU64);
    impl Progress for Count {
        fn wrote(&self, tokens: u32) {
            self.0.fetch_add(u64::from(tokens), Ordering::Relaxed);
        }
    }

    /// Takes what its script says per call, all of it once the script is over.
    #[derive(Clone, Default)]
    struct Tape {
        name: char,
        seen: Rc<RefCell<String>>,
        answers: Rc<RefCell<VecDeque<io::Result<usize>>>>,
    }
    impl Sink for Tape {
        fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
            let taken = self.answers.borrow_mut().pop_front().unwrap_or(Ok(bytes.len()))?;
            let mut seen = self.seen.borrow_mut();
            seen.push(self.name);
            seen.push_str(std::str::from_utf8(&bytes[..taken]).unwrap());
            seen.push(' ');
            Ok(taken)
        }
    }

    fn job(sink: Tape, first: u64, step: u64, writes: u32) -> (Job<Tape>, oneshot::Receiver<Delivered>) {
        let (done, result) = oneshot::channel();
        let script = Script {
            lead: b"<".to_vec(),
            chunk: Patched::fixed(b"+".to_vec()),
            tail: Patched::fixed(b"+>".to_vec()),
            writes,
            tokens_per_write: 1,
            tokens: writes,
            prompt_tokens: 0,
        };
        (Job { sink, script, first_due_ns: first, step_ns: step, done }, result)
    }

    #[test]
    fn streams_interleave_in_order_of_due_instants() {
        let (clock, count, mut desk) = (Hand::default(), Count::default(), Desk::new());
        let seen = Rc::new(RefCell::new(String::new()));
        let tape = |name| Tape { name, seen: Rc::clone(&seen), ..Tape::default() };
        let (a, mut of_a) = job(tape('a'), 100, 50, 3);
        let (b, mut of_b) = job(tape('b'), 120, 10, 2);
        desk.add(a);
        desk.add(b);
        assert_eq!(desk.turn(&clock, 9, &count), Some(100));
        assert_eq!(*seen.borrow(), "");
        clock.set(100);
        assert_eq!(desk.turn(&clock, 9, &count), Some(120));
        clock.set(149);
        assert_eq!(desk.turn(&clock, 9, &count), Some(150));
        assert_eq!(*seen.borrow(), "a<+ b<+ b+> ");
        // Late once: what follows keeps its instants.
        clock.set(199);
        assert_eq!(desk.turn(&clock, 9, &count), Some(200));
        clock.set(200);
        assert_eq!(desk.turn(&clock, 9, &count), None);
        assert_eq!(of_a.try_recv().unwrap(), Delivered { written_ns: vec![100, 199, 200], whole: true });
        assert_eq!(of_b.try_recv().unwrap(), Delivered { written_ns: vec![149, 149], whole: true });
        assert_eq!(count.0.load(Ordering::Relaxed), 5);
        assert_eq!(desk.free.len(), 2);
    }

    #[test]
    fn a_turn_ends_at_its_limit_and_says_what_is_overdue() {
        let (clock, count, mut desk) = (Hand::default(), Count::default(), Desk::new());
        clock.set(1_000);
        let (a, mut of_a) = job(Tape::default(), 10, 1, 4);
        desk.add(a);
        assert_eq!(desk.turn(&clock, 3, &count), Some(13));
        assert!(of_a.try_recv().is_err());
        assert_eq!(desk.turn(&clock, 3, &count), None);
        assert_eq!(of_a.try_recv().unwrap().written_ns.len(), 4);
    }

    #[test]
    fn a_full_socket_is_tried_again_and_its_token_stamped_when_it_goes() {
        let (clock, count, mut desk) = (Hand::default(), Count::default(), Desk::new());
        let tape = Tape { name: 'x', ..Tape::default() };
        let block = || Err(io::ErrorKind::WouldBlock.into());
        tape.answers.borrow_mut().extend([block(), Ok(1), block(), Ok(1)]);
        let (a, mut of_a) = job(tape.clone(), 10, 5, 2);
        desk.add(a);
        clock.set(10);
        assert_eq!(desk.turn(&clock, 9, &count), Some(10 + RETRY_NS));
        clock.set(10 + RETRY_NS);
        // Half of the first write goes; its rest blocks once more.
        assert_eq!(desk.turn(&clock, 9, &count), Some(10 + 2 * RETRY_NS));
        clock.set(10 + 2 * RETRY_NS);
        assert_eq!(desk.turn(&clock, 9, &count), Some(10 + 3 * RETRY_NS));
        clock.set(10 + 3 * RETRY_NS);
        assert_eq!(desk.turn(&clock, 9, &count), None);
        assert_eq!(*tape.seen.borrow(), "x< x+ x+> ");
        let delivered = of_a.try_recv().unwrap();
        assert_eq!(delivered.written_ns, [10 + RETRY_NS, 10 + 3 * RETRY_NS]);
    }

    #[test]
    fn a_broken_connection_ends_the_job_with_what_went_out() {
        let (clock, count, mut desk) = (Hand::default(), Count::default(), Desk::new());
        let tape = Tape::default();
        tape.answers.borrow_mut().extend([Ok(2), Err(io::ErrorKind::BrokenPipe.into())]);
        let (a, mut of_a) = job(tape, 0, 0, 5);
        desk.add(a);
        assert_eq!(desk.turn(&clock, 9, &count), None);
        assert_eq!(of_a.try_recv().unwrap(), Delivered { written_ns: vec![0], whole: false });
    }

    #[test]
    fn an_answer_without_writes_is_over_at_once() {
        let mut desk = Desk::new();
        let (a, mut of_a) = job(Tape::default(), 1_000, 5, 0);
        desk.add(a);
        assert_eq!(of_a.try_recv().unwrap(), Delivered { written_ns: vec![], whole: true });
        assert_eq!(desk.turn(&Hand::default(), 9, &Count::default()), None);
    }

    mod order {
        use proptest::prelude::*;

        use super::*;

        proptest! {
            /// Whatever the streams and however the clock jumps, no write is early, each stream has all of
            /// its own, and at any one look at the clock the earliest goes first.
            #[test]
            fn no_write_is_early(
                streams in prop::collection::vec((0u64..500, 0u64..60, 1u32..12), 1..12),
                jumps in prop::collection::vec(1u64..200, 1..40),
            ) {
                let (clock, count, mut desk) = (Hand::default(), Count::default(), Desk::new());
                let mut results = Vec::new();
                for &(first, step, writes) in &streams {
                    let (a, result) = job(Tape::default(), first, step, writes);
                    desk.add(a);
                    results.push(result);
                }
                let mut now = 0;
                for jump in jumps.iter().chain([&100_000]) {
                    now += jump;
                    clock.set(now);
                    if let Some(next) = desk.turn(&clock, usize::MAX, &count) {
                        prop_assert!(next > now);
                    }
                }
                for (mut result, (first, step, writes)) in results.into_iter().zip(streams) {
                    let written = result.try_recv().unwrap().written_ns;
                    prop_assert_eq!(written.len(), writes as usize);
                    for (i, at) in written.iter().enumerate() {
                        prop_assert!(*at >= first + step * i as u64);
                    }
                }
            }
        }
    }
}
