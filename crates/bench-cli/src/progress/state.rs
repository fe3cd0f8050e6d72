//! What a run has told so far, in memory that does not grow with the number of requests.
//!
//! Every instant is handed in as time since the view began: a state is a function of what it was told.

use bench_core::event::{EventKind, FailureKind};
use bench_core::load::Load;
use bench_core::plan::{Cell, Plan, Trial};
use bench_core::stats::Running;
use bench_core::trace::RequestTrace;
use bench_latency::Ended;
use bench_runner::observer::Progress;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Notes that a screen can still show.
const NOTES_KEPT: usize = 100;
/// Slices of the chart over time, and the width that they begin with.
const SLICES: usize = 120;
const SLICE_WIDTH: Duration = Duration::from_millis(250);
/// Longest part of a failure's message that is shown.
const MESSAGE_CHARS: usize = 200;
/// The quantiles of every running figure.
pub(crate) const QUANTILES: [f64; 3] = [0.5, 0.95, 0.99];

/// What the run is doing.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Phase {
    Starting,
    Loading { model: String, fraction: f64 },
    Calibrating { cell: String },
    Running,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    Info,
    Warning,
    /// One request; counted, and shown where there is room.
    Failure,
}

/// Something to read, with how often it was said in a row.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Note {
    pub(crate) at: Duration,
    pub(crate) level: Level,
    pub(crate) text: String,
    pub(crate) times: u64,
}

/// Where a cell stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CellState {
    Waiting,
    Running,
    /// Some of its rounds are done.
    Between,
    Done,
    /// Nothing succeeded.
    Failed,
}

/// One cell as a table shows it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct CellLine {
    pub(crate) id: String,
    pub(crate) state: CellState,
    /// Measured requests that ended, those of an earlier process included.
    pub(crate) done: u64,
    pub(crate) planned: u64,
    pub(crate) failed: u64,
    pub(crate) ttft_p50_ms: Option<f64>,
}

/// Time to first token in one slice of time since the trial began.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Slice {
    /// Middle of the slice.
    pub(crate) at_s: f64,
    pub(crate) mean_ms: f64,
    pub(crate) max_ms: f64,
}

/// Running quantiles of the current cell; empty where n does not support them.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Quantiles {
    pub(crate) n: u64,
    /// In the order of `QUANTILES`.
    pub(crate) values_ms: [Option<f64>; 3],
}

impl Quantiles {
    fn of(running: &Running) -> Self {
        Self { n: running.n(), values_ms: QUANTILES.map(|p| running.quantile(p)) }
    }
}

/// Everything that a line, a bar or a screen is made from.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Snapshot {
    pub(crate) study: String,
    pub(crate) phase: Phase,
    /// The run was asked to stop.
    pub(crate) stopping: bool,
    pub(crate) elapsed: Duration,
    pub(crate) left: Option<Duration>,
    /// Work done, 0 to 1.
    pub(crate) fraction: f64,
    /// Trials begun, and all of them, those of an earlier process included.
    pub(crate) trial: u32,
    pub(crate) trials: u32,
    /// The current cell.
    pub(crate) cell: Option<String>,
    /// Requests of this process, warm-up included.
    pub(crate) requests_done: u64,
    pub(crate) requests_total: u64,
    pub(crate) in_flight: Option<u32>,
    /// Output tokens of the requests that ended in this trial / time from its begin to the last of them.
    pub(crate) output_tok_s: Option<f64>,
    pub(crate) ttft: Quantiles,
    pub(crate) tpot: Quantiles,
    /// Measured requests that failed, of all cells.
    pub(crate) errors: Vec<(FailureKind, u64)>,
    pub(crate) chart: Vec<Slice>,
    pub(crate) cells: Vec<CellLine>,
    /// The oldest first.
    pub(crate) notes: Vec<Note>,
}

/// What is kept of one cell.
struct CellTally {
    id: String,
    planned: u64,
    requests_per_repeat: u64,
    trials: u32,
    trials_done: u32,
    running: bool,
    done: u64,
    failed: u64,
    ttft: Running,
    tpot: Running,
}

/// The trial that goes on.
struct Current {
    cell: usize,
    began: Duration,
    last_end: Duration,
    output_tokens: u64,
    /// Measured requests that were told.
    told: u64,
    chart: Chart,
}

/// The state behind a view.
pub(crate) struct State {
    study: String,
    phase: Phase,
    progress: Progress,
    /// When `progress` was told.
    progress_at: Duration,
    cells: Vec<CellTally>,
    current: Option<Current>,
    in_flight: Option<u32>,
    errors: BTreeMap<FailureKind, u64>,
    notes: VecDeque<Note>,
    /// Said, not yet printed.
    unprinted: Vec<(Level, String)>,
}

impl State {
    pub(crate) fn new(plan: &Plan) -> Self {
        let tally = |cell: &Cell| CellTally {
            id: cell.id.clone(),
            planned: u64::from(cell.requests()),
            requests_per_repeat: u64::from(cell.requests_per_repeat),
            trials: plan.trials.iter().filter(|t| t.cell == cell.id).count() as u32,
            trials_done: 0,
            running: false,
            done: 0,
            failed: 0,
            ttft: Running::default(),
            tpot: Running::default(),
        };
        Self {
            study: plan.name.clone(),
            phase: Phase::Starting,
            progress: Progress::default(),
            progress_at: Duration::ZERO,
            cells: plan.cells.iter().map(tally).collect(),
            current: None,
            in_flight: None,
            errors: BTreeMap::new(),
            notes: VecDeque::new(),
            unprinted: Vec::new(),
        }
    }

    pub(crate) fn set_phase(&mut self, phase: Phase) {
        self.phase = phase;
    }

    pub(crate) fn set_in_flight(&mut self, requests: u32) {
        self.in_flight = Some(requests);
    }

    pub(crate) fn note(&mut self, now: Duration, level: Level, text: String) {
        if level != Level::Failure {
            self.unprinted.push((level, text.clone()));
        }
        match self.notes.back_mut() {
            Some(last) if last.level == level && last.text == text => {
                (last.at, last.times) = (now, last.times + 1);
            }
            _ => self.notes.push_back(Note { at: now, level, text, times: 1 }),
        }
        if self.notes.len() > NOTES_KEPT {
            self.notes.pop_front();
        }
    }

    /// What was said since the last call, for those who print it.
    pub(crate) fn take_unprinted(&mut self) -> Vec<(Level, String)> {
        std::mem::take(&mut self.unprinted)
    }

    pub(crate) fn trial_skipped(&mut self, trial: &Trial) {
        if let Some(cell) = self.cells.iter_mut().find(|c| c.id == trial.cell) {
            cell.trials_done += 1;
            cell.done += cell.requests_of(trial);
        }
    }

    pub(crate) fn trial_started(&mut self, now: Duration, progress: &Progress, cell: &Cell) {
        self.told(now, progress);
        self.phase = Phase::Running;
        let Some(index) = self.cells.iter().position(|c| c.id == cell.id) else { return };
        self.cells[index].running = true;
        // In-process all of a batch run together; a target under load says how many do.
        self.in_flight = (cell.load == Load::Batch).then_some(cell.batch);
        let (began, last_end) = (now, now);
        let chart = Chart::default();
        self.current = Some(Current { cell: index, began, last_end, output_tokens: 0, told: 0, chart });
    }

    pub(crate) fn request(
        &mut self,
        now: Duration,
        progress: &Progress,
        request: &RequestTrace,
        ended: &Ended,
        warmup: bool,
    ) {
        self.told(now, progress);
        let Some(current) = &mut self.current else { return };
        current.output_tokens += ended.output_tokens;
        current.last_end = now;
        let cell = &mut self.cells[current.cell];
        if !warmup {
            current.told += 1;
            cell.done += 1;
            if let Some(ttft_ms) = ended.ttft_ms {
                cell.ttft.record(ttft_ms);
                current.chart.record(now.saturating_sub(current.began), ttft_ms);
            }
            if let Some(tpot_ms) = ended.tpot_ms {
                cell.tpot.record(tpot_ms);
            }
        }
        if let Some(kind) = ended.failure {
            if !warmup {
                cell.failed += 1;
                *self.errors.entry(kind).or_insert(0) += 1;
            }
            let during = if warmup { " (warm-up)" } else { "" };
            let text = format!("{}{during}: {}: {}", cell.id, kind.key(), message_of(request));
            self.note(now, Level::Failure, text);
        }
    }

    pub(crate) fn trial_finished(
        &mut self,
        now: Duration,
        progress: &Progress,
        trial: &Trial,
        complete: bool,
    ) {
        self.told(now, progress);
        self.in_flight = None;
        let Some(current) = &self.current else { return };
        let cell = &mut self.cells[current.cell];
        cell.running = false;
        if complete {
            cell.trials_done += 1;
            if current.told == 0 {
                // What could not run at all is stored as failed without being told request by request.
                let failed = cell.requests_of(trial);
                cell.done += failed;
                cell.failed += failed;
                *self.errors.entry(FailureKind::Engine).or_insert(0) += failed;
            }
        }
    }

    fn told(&mut self, now: Duration, progress: &Progress) {
        self.progress = progress.clone();
        self.progress_at = now;
    }

    /// The state as it is to be shown at `now`.
    pub(crate) fn snapshot(&self, now: Duration, stopping: bool) -> Snapshot {
        let progress = &self.progress;
        let current = self.current.as_ref();
        let cell = current.map(|c| &self.cells[c.cell]);
        let since = now.saturating_sub(self.progress_at);
        let trials = progress.trials_total + progress.trials_skipped;
        let begun = progress.trials_done + progress.trials_skipped + u32::from(current.is_some());
        Snapshot {
            study: self.study.clone(),
            phase: self.phase.clone(),
            stopping,
            elapsed: now,
            left: progress.time_left().map(|left| left.saturating_sub(since)),
            fraction: progress.tokens_done as f64 / progress.tokens_total.max(1) as f64,
            trial: begun.min(trials),
            trials,
            cell: cell.map(|c| c.id.clone()),
            requests_done: progress.requests_done,
            requests_total: progress.requests_total,
            in_flight: self.in_flight,
            output_tok_s: current.and_then(Current::output_tok_s),
            ttft: cell.map(|c| Quantiles::of(&c.ttft)).unwrap_or_default(),
            tpot: cell.map(|c| Quantiles::of(&c.tpot)).unwrap_or_default(),
            errors: self.errors.iter().map(|(kind, n)| (*kind, *n)).collect(),
            chart: current.map(|c| c.chart.slices()).unwrap_or_default(),
            cells: self.cells.iter().map(CellTally::line).collect(),
            notes: self.notes.iter().cloned().collect(),
        }
    }
}

impl Current {
    fn output_tok_s(&self) -> Option<f64> {
        let seconds = self.last_end.saturating_sub(self.began).as_secs_f64();
        (self.output_tokens > 0 && seconds > 0.0).then(|| self.output_tokens as f64 / seconds)
    }
}

impl CellTally {
    fn requests_of(&self, trial: &Trial) -> u64 {
        u64::from(trial.repeats) * self.requests_per_repeat
    }

    fn line(&self) -> CellLine {
        let all_failed = self.failed > 0 && self.failed == self.done;
        let state = match (self.running, self.trials_done) {
            (true, _) => CellState::Running,
            (false, 0) => CellState::Waiting,
            (false, done) if done < self.trials => CellState::Between,
            _ if all_failed => CellState::Failed,
            _ => CellState::Done,
        };
        CellLine {
            id: self.id.clone(),
            state,
            done: self.done,
            planned: self.planned,
            failed: self.failed,
            ttft_p50_ms: self.ttft.quantile(0.5),
        }
    }
}

/// Why a request failed, in one line that fits a screen.
fn message_of(request: &RequestTrace) -> String {
    let message = request.events.iter().rev().find_map(|event| match &event.kind {
        EventKind::Failed { message, .. } => Some(message.as_str()),
        _ => None,
    });
    let message = message.unwrap_or("it ended without a token");
    message.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MESSAGE_CHARS).collect()
}

/// Slices of equal width from the trial's begin on. When they are used up, neighbours are joined and the
/// width doubles, so that any time fits.
struct Chart {
    width: Duration,
    /// Samples, their sum, and the largest.
    slices: Vec<(u64, f64, f64)>,
}

impl Default for Chart {
    fn default() -> Self {
        Self { width: SLICE_WIDTH, slices: Vec::new() }
    }
}

impl Chart {
    fn record(&mut self, at: Duration, ms: f64) {
        let mut index = at.as_nanos() / self.width.as_nanos();
        while index >= SLICES as u128 {
            self.slices =
                self.slices.chunks(2).map(|pair| pair.iter().copied().fold((0, 0.0, 0.0), join)).collect();
            self.width *= 2;
            index /= 2;
        }
        let index = index as usize;
        if self.slices.len() <= index {
            self.slices.resize(index + 1, (0, 0.0, 0.0));
        }
        self.slices[index] = join(self.slices[index], (1, ms, ms));
    }

    fn slices(&self) -> Vec<Slice> {
        let width = self.width.as_secs_f64();
        let filled = self.slices.iter().enumerate().filter(|(_, slice)| slice.0 > 0);
        filled
            .map(|(i, &(n, sum, max_ms))| Slice {
                at_s: (i as f64 + 0.5) * width,
                mean_ms: sum / n as f64,
                max_ms,
            })
            .collect()
    }
}

fn join(a: (u64, f64, f64), b: (u64, f64, f64)) -> (u64, f64, f64) {
    (a.0 + b.0, a.1 + b.1, a.2.max(b.2))
}

#[cfg(test)]
pub(crate) mod tests;
