//! The observer that a run tells: it updates the shared state and draws nothing.

use super::state::{Level, Phase, State};
use bench_core::client::Calibration;
use bench_core::plan::{Cell, Plan, Trial};
use bench_core::shape::ModelFacts;
use bench_core::trace::RequestTrace;
use bench_runner::observer::{Observer, Progress};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What the run and its view share.
pub(super) struct Shared {
    state: Mutex<State>,
    began: Instant,
}

impl Shared {
    pub(super) fn new(state: State) -> Self {
        Self { state: Mutex::new(state), began: Instant::now() }
    }

    /// Since the view began.
    pub(super) fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// The state; a view that panicked must not end the run.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells the shared state what the run tells it.
pub(super) struct Feed<'a> {
    pub(super) plan: &'a Plan,
    pub(super) shared: &'a Shared,
}

impl Feed<'_> {
    fn note(&self, level: Level, text: String) {
        let now = self.shared.now();
        self.shared.state().note(now, level, text);
    }
}

impl Observer for Feed<'_> {
    fn warning(&mut self, message: &str) {
        self.note(Level::Warning, message.to_owned());
    }

    fn model_loading(&mut self, model: &str, fraction: f64) {
        self.shared.state().set_phase(Phase::Loading { model: model.to_owned(), fraction });
    }

    fn model_loaded(&mut self, model: &str, how: &str) {
        self.note(Level::Info, format!("{model}: {how}"));
    }

    fn model_ready(&mut self, _model: &str, _facts: Option<&ModelFacts>) {
        self.shared.state().set_phase(Phase::Starting);
    }

    fn model_failed(&mut self, model: &str, message: &str) {
        self.note(Level::Warning, format!("{model} cannot be run: {message}"));
    }

    fn trial_skipped(&mut self, trial: &Trial) {
        self.shared.state().trial_skipped(trial);
    }

    fn idle(&mut self, duration: Duration) {
        let text = format!("watching the idle machine for {:.0} s", duration.as_secs_f64());
        self.note(Level::Info, text);
    }

    fn calibrating(&mut self, cell: &Cell) {
        self.shared.state().set_phase(Phase::Calibrating { cell: cell.id.clone() });
    }

    fn calibrated(&mut self, cell: &Cell, calibration: &Calibration) {
        let (ttft, gap) = (calibration.ttft_added, calibration.gap_error);
        self.note(
            Level::Info,
            format!(
                "{}: the client adds {:.3} ms to TTFT at p50, {:.3} ms at p99; gaps are off by {:.3} ms \
                 at p99",
                cell.id, ttft.p50_ms, ttft.p99_ms, gap.p99_ms
            ),
        );
    }

    fn trial_started(&mut self, progress: &Progress, _trial: &Trial, cell: &Cell) {
        let now = self.shared.now();
        self.shared.state().trial_started(now, progress, cell);
    }

    fn in_flight(&mut self, requests: u32) {
        self.shared.state().set_in_flight(requests);
    }

    fn request_done(&mut self, progress: &Progress, cell: &Cell, request: &RequestTrace, warmup: bool) {
        let now = self.shared.now();
        // A trace that cannot be read is the analysis' matter; here it is a request without figures.
        let ended = bench_latency::ended(self.plan, &cell.id, request).unwrap_or_default();
        self.shared.state().request(now, progress, request, &ended, warmup);
    }

    fn trial_finished(&mut self, progress: &Progress, trial: &Trial, complete: bool) {
        let now = self.shared.now();
        self.shared.state().trial_finished(now, progress, trial, complete);
    }
}
