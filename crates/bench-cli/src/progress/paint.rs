//! The thread that draws: it wakes ten times a second at most, takes a snapshot and shows it.
//!
//! The run never waits for it but to take the lock, which is held as long as a snapshot takes.

use super::bar::Bar;
use super::feed::{Feed, Shared};
use super::screen::Screen;
use super::state::{Snapshot, State};
use super::{Mode, text};
use crate::CliError;
use bench_core::plan::Plan;
use bench_core::target::StopFlag;
use bench_runner::observer::Observer;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, Thread};
use std::time::Duration;

/// Between two looks at the state.
const FRAME: Duration = Duration::from_millis(100);
/// Between two lines where there is no terminal, in the first minute and afterwards.
const FIRST_LINES: Duration = Duration::from_secs(5);
const LATER_LINES: Duration = Duration::from_secs(30);
const FIRST_MINUTE: Duration = Duration::from_mins(1);

/// Runs `work` with an observer whose run is shown as `mode` wants it. Standard error belongs to the view
/// until `work` has ended; what the run says is then on it, whatever the mode.
///
/// # Errors
/// The terminal cannot be taken, or no thread can be started; `work` has not begun then.
pub(crate) fn watch<T>(
    mode: Mode,
    plan: &Plan,
    err: &mut (dyn Write + Send),
    stop: &StopFlag,
    work: impl FnOnce(&mut dyn Observer) -> T,
) -> Result<T, CliError> {
    let shared = Shared::new(State::new(plan));
    let ended = AtomicBool::new(false);
    let canvas = Canvas::open(mode)?;
    let painter = Painter { shared: &shared, ended: &ended, stop };
    thread::scope(|scope| {
        let builder = thread::Builder::new().name("progress".to_owned());
        let drawing = builder
            .spawn_scoped(scope, move || painter.paint(canvas, err))
            .map_err(|e| CliError::Failed(format!("cannot start the thread that shows progress: {e}")))?;
        let end = End { ended: &ended, painter: drawing.thread().clone() };
        let value = work(&mut Feed { plan, shared: &shared });
        drop(end);
        // A view that panicked has said so; the results are there all the same.
        let _ = drawing.join();
        Ok(value)
    })
}

/// Ends the painter, also when the run panics: the scope would wait for it for ever.
struct End<'a> {
    ended: &'a AtomicBool,
    painter: Thread,
}

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        self.painter.unpark();
    }
}

/// What is drawn on.
enum Canvas {
    Bar(Bar),
    Screen(Box<Screen>),
    Plain(Lines),
    None,
}

impl Canvas {
    fn open(mode: Mode) -> Result<Self, CliError> {
        Ok(match mode {
            Mode::Bar => Self::Bar(Bar::new()),
            Mode::Screen => Self::Screen(Box::new(Screen::open().map_err(|e| {
                CliError::Failed(format!("cannot use the terminal for --ui tui: {e}; use --ui plain"))
            })?)),
            Mode::Plain => Self::Plain(Lines::default()),
            Mode::None => Self::None,
        })
    }
}

struct Painter<'a> {
    shared: &'a Shared,
    ended: &'a AtomicBool,
    stop: &'a StopFlag,
}

impl Painter<'_> {
    fn paint(&self, mut canvas: Canvas, err: &mut (dyn Write + Send)) {
        loop {
            let ended = self.ended.load(Ordering::SeqCst);
            let snapshot = self.look(&mut canvas, err);
            if ended {
                break;
            }
            canvas = Self::show(canvas, &snapshot, err);
            self.wait(&mut canvas);
        }
        canvas.close();
        // A screen is gone with what it showed; what was said stays.
        self.say(&mut Canvas::Plain(Lines::default()), err);
    }

    /// Prints what was said, where the canvas lets it, and takes a snapshot.
    fn look(&self, canvas: &mut Canvas, err: &mut (dyn Write + Send)) -> Snapshot {
        if !matches!(canvas, Canvas::Screen(_)) {
            self.say(canvas, err);
        }
        self.shared.state().snapshot(self.shared.now(), self.stop.is_set())
    }

    fn say(&self, canvas: &mut Canvas, err: &mut (dyn Write + Send)) {
        let quiet = matches!(canvas, Canvas::None);
        let said = self.shared.state().take_unprinted();
        let shown = said.iter().filter(|(level, _)| !quiet || *level == super::state::Level::Warning);
        for (level, text) in shown {
            let mut write = || _ = writeln!(err, "{}", text::said(*level, text));
            match canvas {
                Canvas::Bar(bar) => bar.above(write),
                _ => write(),
            }
        }
    }

    /// Shows the snapshot; a screen that fails gives way to lines.
    fn show(canvas: Canvas, snapshot: &Snapshot, err: &mut (dyn Write + Send)) -> Canvas {
        match canvas {
            Canvas::Bar(bar) => {
                bar.draw(snapshot);
                Canvas::Bar(bar)
            }
            Canvas::Screen(mut screen) => match screen.draw(snapshot) {
                Ok(()) => Canvas::Screen(screen),
                Err(error) => {
                    drop(screen);
                    let _ =
                        writeln!(err, "warning: the terminal is gone ({error}), progress goes on in lines");
                    Canvas::Plain(Lines::default())
                }
            },
            Canvas::Plain(mut lines) => {
                if let Some(text) = lines.next(snapshot) {
                    // A line that cannot be written is not worth a failure.
                    let _ = writeln!(err, "{text}");
                }
                Canvas::Plain(lines)
            }
            Canvas::None => Canvas::None,
        }
    }

    fn wait(&self, canvas: &mut Canvas) {
        match canvas {
            Canvas::Screen(screen) => screen.wait(FRAME, self.ended, self.stop),
            _ => thread::park_timeout(FRAME),
        }
    }
}

impl Canvas {
    fn close(self) {
        if let Self::Bar(bar) = &self {
            bar.finish();
        }
    }
}

/// When a line is due.
#[derive(Default)]
struct Lines {
    last: Duration,
    /// Failures that were known at the last line.
    failures: u64,
}

impl Lines {
    /// The text to print now, if any: figures, and the last failure where there is a new one.
    fn next(&mut self, s: &Snapshot) -> Option<String> {
        let distance = if self.last < FIRST_MINUTE { FIRST_LINES } else { LATER_LINES };
        if s.elapsed < self.last + distance {
            return None;
        }
        self.last = s.elapsed;
        let mut text = text::line(s);
        let failures = s.errors.iter().map(|(_, n)| n).sum();
        if failures > std::mem::replace(&mut self.failures, failures)
            && let Some(note) = s.notes.iter().rev().find(|n| n.level == super::state::Level::Failure)
        {
            text.push_str("\n  last failure: ");
            text.push_str(&note.text);
        }
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::super::state::tests::{busy, fresh, plan};
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    #[test]
    fn lines_come_every_five_seconds_and_later_every_thirty() {
        let mut lines = Lines::default();
        let mut s = fresh();
        let mut printed = Vec::new();
        for tenth in 0..1_800 {
            s.elapsed = FRAME * tenth;
            if lines.next(&s).is_some() {
                printed.push(s.elapsed.as_secs());
            }
        }
        assert_eq!(printed, [5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60, 90, 120, 150]);
    }

    #[test]
    fn a_failure_is_told_once() {
        let mut lines = Lines::default();
        let mut s = busy();
        let first = lines.next(&s).unwrap();
        assert!(first.ends_with("\n  last failure: m_p8_n4_c64: status: 503 Service Unavailable"), "{first}");
        s.elapsed += FIRST_LINES;
        assert_eq!(lines.next(&s).unwrap(), text::line(&s));
        s.elapsed += FIRST_LINES;
        s.errors[0].1 += 1;
        assert!(lines.next(&s).unwrap().contains("last failure"));
    }

    #[test]
    fn what_a_run_says_is_printed_and_progress_only_where_it_is_wanted() {
        for (mode, info) in [(Mode::Plain, true), (Mode::None, false)] {
            let mut err = Vec::new();
            let stop = StopFlag::new();
            let value = watch(mode, &plan(), &mut err, &stop, |observer| {
                observer.warning("it is slow");
                observer.model_failed("m", "no such file");
                observer.calibrated(&plan().cells[0], &calibration());
                7
            });
            assert_eq!(value.unwrap(), 7);
            let err = String::from_utf8(err).unwrap();
            let warnings = "warning: it is slow\nwarning: m cannot be run: no such file\n";
            let added = "m_p8_n4_c1: the client adds 0.100 ms to TTFT at p50, 0.200 ms at p99; gaps are off by \
                         0.200 ms at p99\n";
            assert_eq!(err, if info { format!("{warnings}{added}") } else { warnings.to_owned() });
        }
    }

    #[test]
    fn a_run_that_panics_ends_its_view() {
        let mut err = Vec::new();
        let stop = StopFlag::new();
        let watched = catch_unwind(AssertUnwindSafe(|| {
            watch(Mode::Plain, &plan(), &mut err, &stop, |observer| {
                observer.warning("before");
                panic!("as wanted");
            })
        }));
        assert!(watched.is_err());
        assert_eq!(String::from_utf8(err).unwrap(), "warning: before\n");
    }

    #[test]
    fn a_stream_that_cannot_be_written_does_not_end_the_run() {
        struct Broken;
        impl Write for Broken {
            fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
                Err(std::io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let stop = StopFlag::new();
        let value = watch(Mode::Plain, &plan(), &mut Broken, &stop, |observer| {
            observer.warning("nobody hears this");
            1
        });
        assert_eq!(value.unwrap(), 1);
    }

    fn calibration() -> bench_core::client::Calibration {
        let bound = bench_core::client::ErrorBound { p50_ms: 0.1, p99_ms: 0.2 };
        bench_core::client::Calibration {
            concurrency: 1,
            rate: None,
            ttft_ms: 50.0,
            gap_ms: 10.0,
            output_tokens: 4,
            requests: 10,
            gaps: 30,
            ttft_added: bound,
            ttft_difference: bound,
            gap_error: bound,
            gap_error_sd_ms: 0.1,
            schedule_lag: bound,
            server_error: bound,
            token_rate: 100.0,
            health: bench_core::client::ClientHealth::default(),
        }
    }
}
