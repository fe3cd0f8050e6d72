//! How far a long command is: a bar with rate and time left on a terminal, a line now and then elsewhere.
//!
//! Nothing here is measured or stored. Everything goes to standard error, so that output can be piped.

use bench_core::plan::{Cell, Trial};
use bench_core::trace::RequestTrace;
use bench_runner::observer::{Observer, Progress};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Lines are no closer than this where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);
/// A bar appears once something has taken this long.
const BAR_AFTER: Duration = Duration::from_secs(2);

/// A fraction of one thing that takes long: loading, writing, downloading.
pub(crate) struct Waiting<'a> {
    err: &'a mut dyn Write,
    bar: Option<ProgressBar>,
    what: String,
    began: Instant,
    last_line: Instant,
    lines: u32,
}

impl<'a> Waiting<'a> {
    pub(crate) fn new(what: &str, err: &'a mut dyn Write) -> Self {
        let now = Instant::now();
        Self { err, bar: None, what: what.to_owned(), began: now, last_line: now, lines: 0 }
    }

    /// `done` of `total`, in `unit` (`B` is written as bytes).
    pub(crate) fn set(&mut self, done: u64, total: u64, unit: &str) {
        if self.began.elapsed() < BAR_AFTER {
            return;
        }
        if std::io::stderr().is_terminal() {
            let bar = self.bar.get_or_insert_with(|| bar(&self.what, unit));
            bar.set_length(total);
            bar.set_position(done);
        } else if self.lines == 0 || self.last_line.elapsed() >= LINE_INTERVAL {
            let percent = 100.0 * done as f64 / total.max(1) as f64;
            // A progress line that cannot be written is not worth a failure.
            let _ = writeln!(self.err, "{}: {percent:.0} % after {:.0?}", self.what, self.began.elapsed());
            self.last_line = Instant::now();
            self.lines += 1;
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn bar(what: &str, unit: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr_with_hz(10));
    let template = match unit {
        "B" => "{prefix} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta} left",
        _ => "{prefix} {wide_bar} {pos}/{len} {per_sec} {eta} left",
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_prefix(what.to_owned());
    bar
}

/// Watches a run.
pub(crate) struct RunProgress<'a> {
    err: &'a mut dyn Write,
    bar: Option<ProgressBar>,
    last_line: Instant,
}

impl<'a> RunProgress<'a> {
    pub(crate) fn new(err: &'a mut dyn Write) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr_with_hz(10));
            if let Ok(style) = ProgressStyle::with_template("{wide_bar} {percent}% {msg}") {
                bar.set_style(style);
            }
            bar
        });
        Self { err, bar, last_line: Instant::now() }
    }

    pub(crate) fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }

    fn say(&mut self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| _ = writeln!(self.err, "{text}")),
            None => _ = writeln!(self.err, "{text}"),
        }
    }

    fn line(&mut self, progress: &Progress, cell: &Cell) {
        if self.is_due() {
            let text = describe(progress, cell);
            self.say(&text);
        }
    }

    /// Whether the next line may come; if so, the time until the one after begins.
    fn is_due(&mut self) -> bool {
        let due = self.last_line.elapsed() >= LINE_INTERVAL;
        if due {
            self.last_line = Instant::now();
        }
        due
    }
}

fn describe(progress: &Progress, cell: &Cell) -> String {
    let rate = progress.tokens_per_second().map_or(String::new(), |r| format!(", {r:.0} tok/s"));
    let left = progress.time_left().map_or(String::new(), |t| format!(", {} s left", t.as_secs()));
    format!(
        "trial {}/{} {}: {}/{} requests{rate}{left}",
        (progress.trials_done + progress.trials_skipped + 1)
            .min(progress.trials_total + progress.trials_skipped),
        progress.trials_total + progress.trials_skipped,
        cell.id,
        progress.requests_done,
        progress.requests_total
    )
}

impl Observer for RunProgress<'_> {
    fn warning(&mut self, message: &str) {
        self.say(&format!("warning: {message}"));
    }

    fn model_loading(&mut self, model: &str, fraction: f64) {
        let text = format!("loading {model} {:.0} %", fraction * 100.0);
        if let Some(bar) = &self.bar {
            bar.set_message(text);
        } else if self.is_due() {
            self.say(&text);
        }
    }

    fn model_failed(&mut self, model: &str, message: &str) {
        self.say(&format!("{model} cannot be run: {message}"));
    }

    fn trial_started(&mut self, progress: &Progress, _trial: &Trial, cell: &Cell) {
        if self.bar.is_none() {
            self.line(progress, cell);
        }
    }

    fn request_done(&mut self, progress: &Progress, cell: &Cell, _request: &RequestTrace, _warmup: bool) {
        match &self.bar {
            Some(bar) => {
                bar.set_length(progress.tokens_total);
                bar.set_position(progress.tokens_done);
                bar.set_message(describe(progress, cell));
            }
            None => self.line(progress, cell),
        }
    }
}
