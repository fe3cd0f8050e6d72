//! The search for the largest context or batch that really loads and runs, around the one that is predicted.
//!
//! Each attempt is a process of this program; it fits if it ends well and never had more in memory than allowed.

use super::attempt::Taken;
use super::{Largest, Question, size};
use crate::progress::Waiting;
use crate::{CliError, Io, signal};
use bench_core::target::StopFlag;
use bench_engine::preflight::MAX_BATCH;
use serde::Serialize;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The search ends when what fits and what does not are this close, in parts of what fits.
const TOLERANCE: f64 = 0.01;
/// First step away from the prediction, in parts of it; doubled until the answer lies between two attempts.
const FIRST_STEP: f64 = 0.02;
/// How often a child is asked whether it has ended.
const POLL: Duration = Duration::from_millis(5);

/// What was found.
#[derive(Debug, Serialize)]
pub(super) struct Verified {
    /// `context_tokens` or `batch`.
    what: &'static str,
    predicted: usize,
    /// The largest that ran in the memory; `None` if none did.
    found: Option<usize>,
    /// The smallest that did not; `None` at the limit of the model or the search.
    not_fitting: Option<usize>,
    /// By how much the predicted context or batch is above what was found. Where the cache is a small part of the
    /// memory, a small error in bytes is a large one here.
    deviation_pct: Option<f64>,
    /// By how much the bytes predicted for what was found are above those it took.
    bytes_deviation_pct: Option<f64>,
    /// Why the search ended before its answer.
    unfinished: Option<String>,
    #[serde(skip)]
    interrupted: bool,
    attempts: Vec<Attempt>,
}

#[derive(Debug, Serialize)]
struct Attempt {
    value: usize,
    fits: bool,
    seconds: f64,
    predicted_bytes: u64,
    #[serde(flatten)]
    taken: Option<Taken>,
    /// Why it did not end well.
    problem: Option<String>,
}

/// Why an attempt has no answer.
#[derive(Debug, PartialEq)]
enum Cut {
    Late,
    Interrupted,
    Cannot(String),
}

/// Finds the largest context of the prediction's batch.
pub(super) fn context(
    question: &Question<'_>,
    predicted: &Largest,
    io: &mut Io<'_>,
) -> Result<Verified, CliError> {
    let limit = question.config.max_position_embeddings;
    let shape = |context| (context, predicted.batch);
    verify(question, "context_tokens", predicted.context_tokens, limit, shape, io)
}

/// Finds the largest batch of the prediction's context.
pub(super) fn batch(
    question: &Question<'_>,
    predicted: &Largest,
    io: &mut Io<'_>,
) -> Result<Verified, CliError> {
    let shape = |batch| (predicted.context_tokens, batch);
    verify(question, "batch", predicted.batch, MAX_BATCH, shape, io)
}

fn verify(
    question: &Question<'_>,
    what: &'static str,
    predicted: usize,
    limit: usize,
    shape: impl Fn(usize) -> (usize, usize),
    io: &mut Io<'_>,
) -> Result<Verified, CliError> {
    let (memory, timeout_s) = (question.memory_bytes, question.args.verify_timeout);
    if let Some(available) = question.available_bytes.filter(|available| *available < memory) {
        let (memory, available) = (size(memory), size(available));
        return Err(CliError::Gate(format!(
            "--verify would fill {memory}, but only {available} are available here: give less --memory"
        )));
    }
    let deadline = Instant::now() + Duration::from_secs(u64::from(timeout_s));
    let mut attempts: Vec<Attempt> = Vec::new();
    let mut bar = Waiting::new("verifying", io.err);
    let (bracket, cut) = search(predicted, limit, |value| {
        bar.set(attempts.len() as u64, attempts.len() as u64 + 1, "attempts");
        let began = Instant::now();
        let (context, batch) = shape(value);
        let ended = question
            .command(context, batch)
            .map_err(|e| Cut::Cannot(format!("cannot start this program again: {e}")))
            .and_then(|command| run(command, deadline, signal::stop()))?;
        let (taken, problem) = ended.map_or_else(|e| (None, Some(e)), |taken| (Some(taken), None));
        let fits = taken.is_some_and(|taken| question.peak_bytes(&taken) <= memory);
        let predicted_bytes = question.predicted_bytes(context, batch);
        let seconds = began.elapsed().as_secs_f64();
        attempts.push(Attempt { value, fits, seconds, predicted_bytes, taken, problem });
        Ok(fits)
    });
    drop(bar);
    let unfinished = cut.as_ref().map(|cut| match cut {
        Cut::Late => format!(
            "attempts take too long: {} ended within {timeout_s} s; raise --verify-timeout, or ask for less \
             --memory",
            attempts.len()
        ),
        Cut::Interrupted => "interrupted".to_owned(),
        Cut::Cannot(problem) => problem.clone(),
    });
    let found = bracket.fits;
    let of_found = attempts.iter().find(|attempt| Some(attempt.value) == found);
    let peak = |taken| question.peak_bytes(&taken) as f64;
    let bytes = of_found.and_then(|a| Some((a.predicted_bytes as f64, a.taken.map(peak)?)));
    Ok(Verified {
        what,
        predicted,
        found,
        not_fitting: bracket.fails,
        deviation_pct: found.map(|found| (predicted as f64 / found as f64 - 1.0) * 100.0),
        bytes_deviation_pct: bytes.map(|(predicted, taken)| (predicted / taken - 1.0) * 100.0),
        unfinished,
        interrupted: cut == Some(Cut::Interrupted),
        attempts,
    })
}

impl Question<'_> {
    /// What an attempt took where its model ran: pages of the process, or of a GPU what was asked for and what its
    /// driver takes beside.
    fn peak_bytes(&self, taken: &Taken) -> u64 {
        taken.device_peak_bytes.map_or(taken.rss_peak_bytes, |bytes| bytes + self.program_bytes)
    }

    /// This program, asked to try one context and batch.
    fn command(&self, context: usize, batch: usize) -> std::io::Result<Command> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["fit-attempt", &self.args.model]);
        command.args(["--context", &context.to_string()]);
        command.args(["--batch", &batch.to_string()]);
        command.args(["--prefill-chunk", &self.args.prefill_chunk.to_string()]);
        for (flag, value) in self.args.engine.given() {
            command.arg(flag).args(value);
        }
        Ok(command)
    }
}

/// What is known to fit, and what not to.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Bracket {
    fits: Option<usize>,
    fails: Option<usize>,
}

/// Bisects 1 … `limit` from `first` on; hands over what it knows when `attempt` is cut.
fn search(
    first: usize,
    limit: usize,
    mut attempt: impl FnMut(usize) -> Result<bool, Cut>,
) -> (Bracket, Option<Cut>) {
    let mut known = Bracket { fits: None, fails: None };
    let mut step = FIRST_STEP;
    let mut away = |from: usize| {
        let by = (from as f64 * step).ceil() as usize;
        step *= 2.0;
        by.max(1)
    };
    loop {
        let value = match known {
            Bracket { fits: None, fails: None } => first.clamp(1, limit),
            Bracket { fits: Some(low), fails: None } if low >= limit => break,
            Bracket { fits: Some(low), fails: None } => (low + away(low)).min(limit),
            Bracket { fits: None, fails: Some(1) } => break,
            Bracket { fits: None, fails: Some(high) } => high.saturating_sub(away(high)).max(1),
            Bracket { fits: Some(low), fails: Some(high) } => {
                if high - low <= ((low as f64 * TOLERANCE) as usize).max(1) {
                    break;
                }
                low + (high - low) / 2
            }
        };
        match attempt(value) {
            Ok(true) => known.fits = Some(value),
            Ok(false) => known.fails = Some(value),
            Err(cut) => return (known, Some(cut)),
        }
    }
    (known, None)
}

/// A child that does not outlive its owner.
struct Owned(Child);

impl Drop for Owned {
    fn drop(&mut self) {
        // It may have ended already, which is as well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs an attempt to its end; the inner error says why it did not end well.
fn run(mut command: Command, deadline: Instant, stop: &StopFlag) -> Result<Result<Taken, String>, Cut> {
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = Owned(child.map_err(|e| Cut::Cannot(format!("cannot start an attempt: {e}")))?);
    let status = loop {
        match child.0.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if stop.is_set() => return Err(Cut::Interrupted),
            Ok(None) if Instant::now() >= deadline => return Err(Cut::Late),
            Ok(None) => std::thread::sleep(POLL),
            Err(e) => return Err(Cut::Cannot(format!("cannot wait for an attempt: {e}"))),
        }
    };
    // Both are shorter than what a pipe holds.
    let text = |stream: Option<&mut dyn Read>| {
        let mut text = String::new();
        stream.map(|s| s.read_to_string(&mut text));
        text
    };
    let out = text(child.0.stdout.as_mut().map(|s| s as &mut dyn Read));
    let err = text(child.0.stderr.as_mut().map(|s| s as &mut dyn Read));
    if stop.is_set() {
        return Err(Cut::Interrupted);
    }
    if !status.success() {
        let said = err.lines().last().unwrap_or_default().trim();
        return Ok(Err(if said.is_empty() { status.to_string() } else { said.to_owned() }));
    }
    Ok(serde_json::from_str(&out).map_err(|e| format!("an attempt answered \"{}\": {e}", out.trim())))
}

impl Verified {
    pub(super) fn print(&self, out: &mut dyn Write) -> Result<(), CliError> {
        let what = self.what.trim_end_matches("_tokens");
        let on_gpu = self.attempts.iter().any(|a| a.taken.is_some_and(|t| t.device_peak_bytes.is_some()));
        let peaks = if on_gpu { ["GPU peak", "RSS peak"] } else { ["RSS peak", "heap peak"] };
        writeln!(out, "\n{what:>8} {:>10} {:>10} {:>10} {:>8}", "predicted", peaks[0], peaks[1], "seconds")?;
        for attempt in &self.attempts {
            let bytes = |f: fn(&Taken) -> u64| attempt.taken.as_ref().map_or("-".to_owned(), |t| size(f(t)));
            let [first, second] = if on_gpu {
                [bytes(|t| t.device_peak_bytes.unwrap_or(0)), bytes(|t| t.rss_peak_bytes)]
            } else {
                [bytes(|t| t.rss_peak_bytes), bytes(|t| t.heap_peak_bytes)]
            };
            let verdict = if attempt.fits { "fits" } else { "does not fit" };
            let problem = attempt.problem.as_ref().map_or(String::new(), |p| format!(": {p}"));
            let (value, seconds, predicted) = (attempt.value, attempt.seconds, size(attempt.predicted_bytes));
            writeln!(
                out,
                "{value:>8} {predicted:>10} {first:>10} {second:>10} {seconds:>8.1}  {verdict}{problem}"
            )?;
        }
        let predicted = self.predicted;
        match (self.found, self.deviation_pct, self.not_fitting) {
            (Some(found), Some(deviation), fails) => {
                let fails = fails.map_or("its limit".to_owned(), |n| format!("{n} does not fit"));
                let line =
                    format!("{what} {found} fits, {fails}; {predicted} was predicted, {deviation:+.1} %");
                writeln!(out, "{line}")?;
            }
            _ => writeln!(out, "no {what} was found that fits; {predicted} was predicted")?,
        }
        Ok(())
    }

    /// What is wrong with a search that has no answer.
    pub(super) fn check(&self) -> Result<(), CliError> {
        match (&self.unfinished, self.found) {
            (Some(why), _) if self.interrupted => Err(CliError::Interrupted(why.clone())),
            (Some(why), _) => Err(CliError::Failed(format!("the search did not end: {why}"))),
            (None, None) => Err(CliError::Gate("nothing that was tried fits in the memory".to_owned())),
            (None, Some(_)) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Searches from `first` where `largest` fits; what was found and the number of attempts.
    fn check(first: usize, limit: usize, largest: usize) -> (Bracket, usize) {
        let mut attempts = 0;
        let (bracket, cut) = search(first, limit, |value| {
            attempts += 1;
            assert!((1..=limit).contains(&value));
            Ok(value <= largest)
        });
        assert_eq!(cut, None);
        (bracket, attempts)
    }

    #[test]
    fn the_answer_is_found_within_the_tolerance_in_few_attempts() {
        for largest in [1, 2, 17, 950, 10_000, 10_300, 131_071] {
            for first in [1, 10_000, 131_072] {
                let (bracket, attempts) = check(first, 131_072, largest);
                let (low, high) = (bracket.fits.unwrap(), bracket.fails.unwrap());
                assert!(low <= largest && high > largest, "{bracket:?}");
                assert!(high - low <= 1 || (high - low) as f64 <= low as f64 * TOLERANCE, "{bracket:?}");
                assert!(attempts < 40, "{attempts}");
            }
        }
        let (_, attempts) = check(10_000, 131_072, 10_050);
        assert!(attempts <= 4, "{attempts}");
    }

    #[test]
    fn the_limit_ends_the_search_and_so_does_nothing() {
        assert_eq!(check(4096, 4096, 9999), (Bracket { fits: Some(4096), fails: None }, 1));
        assert_eq!(check(3, 4096, 0).0, Bracket { fits: None, fails: Some(1) });
        let (bracket, cut) = search(10, 100, |value| if value == 10 { Ok(true) } else { Err(Cut::Late) });
        assert_eq!((bracket.fits, cut), (Some(10), Some(Cut::Late)));
    }

    #[cfg(unix)]
    #[test]
    fn children_that_fail_or_last_too_long_have_their_reasons() {
        let sh = |script: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            command
        };
        let (soon, stop) = (Instant::now() + Duration::from_mins(1), StopFlag::new());
        let failed = run(sh("echo no memory >&2; exit 1"), soon, &stop).unwrap();
        assert_eq!(failed.unwrap_err(), "no memory");
        let killed = run(sh("kill -9 $$"), soon, &stop).unwrap().unwrap_err();
        assert!(killed.contains("signal: 9"), "{killed}");
        assert!(run(sh("echo nonsense"), soon, &stop).unwrap().unwrap_err().contains("nonsense"));
        assert_eq!(run(sh("sleep 60"), Instant::now(), &stop).unwrap_err(), Cut::Late);
        stop.stop();
        assert_eq!(run(sh("sleep 60"), soon, &stop).unwrap_err(), Cut::Interrupted);
    }
}
