//! Who watches a run: progress bars, logs, tests. The run never prints.

use bench_core::client::Calibration;
use bench_core::plan::{Cell, Trial};
use bench_core::shape::ModelFacts;
use bench_core::trace::RequestTrace;
use std::time::Duration;

/// How far the run is. Totals are what this process has to do: trials finished earlier are counted in
/// `trials_skipped` alone.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Progress {
    pub trials_total: u32,
    pub trials_done: u32,
    pub trials_skipped: u32,
    /// Requests, warm-up included.
    pub requests_total: u64,
    pub requests_done: u64,
    /// Prompt and output tokens, warm-up included: the measure of work for the rate and the time left.
    pub tokens_total: u64,
    pub tokens_done: u64,
    /// Since the run began, loading of models included.
    pub elapsed: Duration,
}

impl Progress {
    /// Work per second so far, `None` before the first request.
    pub fn tokens_per_second(&self) -> Option<f64> {
        let seconds = self.elapsed.as_secs_f64();
        (self.tokens_done > 0 && seconds > 0.0).then(|| self.tokens_done as f64 / seconds)
    }

    /// Time left if the rest goes as fast per token as what is done.
    pub fn time_left(&self) -> Option<Duration> {
        let left = self.tokens_total.saturating_sub(self.tokens_done) as f64;
        self.tokens_per_second().and_then(|rate| Duration::try_from_secs_f64(left / rate).ok())
    }
}

/// Is told what happens; never inside a measured window.
pub trait Observer {
    /// Something that the reader of the results should know.
    fn warning(&mut self, _message: &str) {}
    /// `fraction` of `model` is loaded, 0 to 1.
    fn model_loading(&mut self, _model: &str, _fraction: f64) {}
    /// How `model` came into memory; told once for each way.
    fn model_loaded(&mut self, _model: &str, _how: &str) {}
    fn model_ready(&mut self, _model: &str, _facts: Option<&ModelFacts>) {}
    fn model_failed(&mut self, _model: &str, _message: &str) {}
    /// An earlier process finished this trial; told before anything runs.
    fn trial_skipped(&mut self, _trial: &Trial) {}
    /// The idle machine is watched for so long, before the first trial.
    fn idle(&mut self, _duration: Duration) {}
    /// What the load generator adds at the load of `cell` is about to be measured.
    fn calibrating(&mut self, _cell: &Cell) {}
    fn trial_started(&mut self, _progress: &Progress, _trial: &Trial, _cell: &Cell) {}
    /// What the load generator adds at the load of `cell`, as measured before its first trial.
    fn calibrated(&mut self, _cell: &Cell, _calibration: &Calibration) {}
    /// Requests in flight now; while a trial under load goes on.
    fn in_flight(&mut self, _requests: u32) {}
    fn request_done(&mut self, _progress: &Progress, _cell: &Cell, _request: &RequestTrace, _warmup: bool) {}
    fn trial_finished(&mut self, _progress: &Progress, _trial: &Trial, _complete: bool) {}
}

/// Watches nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Quiet;

impl Observer for Quiet {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_left_follows_the_work_left() {
        let start = Progress { tokens_total: 300, ..Progress::default() };
        assert_eq!(start.time_left(), None);
        let later = Progress { tokens_done: 100, elapsed: Duration::from_secs(5), ..start };
        assert_eq!(later.tokens_per_second(), Some(20.0));
        assert_eq!(later.time_left(), Some(Duration::from_secs(10)));
    }
}
