//! May the cell be believed: every rule in one place, every reason with its values.

use crate::life::Life;
use crate::window::Growth;
use bench_core::event::FailureKind;
use bench_core::load::Load;
use bench_core::plan::{Cell, Plan};
use bench_core::spec::ExpertMode;
use bench_core::verdict::{ClientBound, ClientVerdict, Reason, Verdict};

/// A 99th percentile of sent - intended above this means that the generator could not keep up. Two ticks of a
/// 4 ms scheduler slice fit below it, so that a busy laptop passes and a saturated generator does not.
pub const SCHEDULE_LAG_LIMIT_MS: f64 = 10.0;

/// Largest deviation of a length from what was asked, on average and of any request.
const LENGTH_TOLERANCE: f64 = 0.01;

/// An open loop is told to be overloaded if half as many requests again are in flight in the last quarter of its
/// schedule as in the second, and the difference is more than three standard deviations of two counts by
/// Poisson's law: a queue that fluctuates is none that grows.
const GROWTH_LIMIT: f64 = 0.5;
const GROWTH_DEVIATIONS: f64 = 3.0;

/// What the verdict needs of the requests, gathered as they come.
#[derive(Debug, Default)]
pub(crate) struct Evidence {
    requests: u32,
    succeeded: u32,
    interrupted: u32,
    cached_tokens: u64,
    output: Lengths,
    prompt: Lengths,
}

/// Lengths of one kind, asked for and found.
#[derive(Debug, Default)]
struct Lengths {
    n: u64,
    sum: u64,
    off: u64,
    worst: Option<Length>,
    /// Requests asked for lengths of their own.
    own: bool,
}

#[derive(Debug, Clone, Copy)]
struct Length {
    asked: u32,
    actual: u64,
    /// What was asked is the most: the server may end an answer by itself.
    at_most: bool,
}

impl Length {
    fn deviation(self) -> f64 {
        let more = self.actual as f64 - f64::from(self.asked);
        if self.at_most { more.max(0.0) } else { more.abs() }
    }

    /// As a share of what was asked.
    fn relative(self) -> f64 {
        self.deviation() / f64::from(self.asked.max(1))
    }

    fn is_off(self) -> bool {
        self.deviation() > f64::from(self.asked) * LENGTH_TOLERANCE
    }
}

impl Lengths {
    fn add(&mut self, length: Length, own: bool) {
        self.n += 1;
        self.sum += length.actual;
        self.own |= own;
        self.off += u64::from(length.is_off());
        if self.worst.is_none_or(|w| length.relative() >= w.relative()) {
            self.worst = Some(length);
        }
    }

    fn mean(&self) -> f64 {
        self.sum as f64 / self.n as f64
    }
}

/// What the verdict needs of the whole cell.
#[derive(Debug, Default)]
pub(crate) struct Whole<'a> {
    pub(crate) build_is_debug: bool,
    pub(crate) lag_p99_ms: Option<f64>,
    pub(crate) growth: Option<Growth>,
    pub(crate) client: Option<&'a ClientVerdict>,
    /// Host and device differ.
    pub(crate) device: Option<Reason>,
}

impl Evidence {
    pub(crate) fn add(&mut self, plan: &Plan, cell: &Cell, life: &Life) {
        self.requests += 1;
        self.interrupted += u32::from(life.failure() == Some(FailureKind::Interrupted));
        self.cached_tokens += life.timeline.cached_prompt_tokens.map_or(0, u64::from);
        if !life.succeeded() {
            return;
        }
        self.succeeded += 1;
        let (asked, own) = (life.asked, life.asked.is_some());
        let output_asked = asked.map_or(cell.output_tokens, |a| a.output_tokens);
        let actual = life.timeline.token_count();
        let at_most = plan.server.as_ref().is_some_and(|s| !s.fixed_length);
        self.output.add(Length { asked: output_asked, actual, at_most }, own);
        if let Some(actual) = life.timeline.prompt_tokens.map(u64::from) {
            let asked = asked.map_or(cell.prompt_tokens, |a| a.prompt_tokens);
            self.prompt.add(Length { asked, actual, at_most: false }, own);
        }
    }

    pub(crate) fn requests(&self) -> u32 {
        self.requests
    }

    pub(crate) fn succeeded(&self) -> u32 {
        self.succeeded
    }

    /// The verdict over all requests of the cell.
    pub(crate) fn judge(&self, plan: &Plan, cell: &Cell, whole: &Whole) -> Verdict {
        let mut reasons = Vec::new();
        if self.succeeded == 0 {
            reasons.push(Reason::NoSuccess { requests: self.requests });
        }
        reasons.extend(off_lengths(&self.output, output_reason));
        reasons.extend(off_lengths(&self.prompt, prompt_reason));
        if whole.build_is_debug {
            reasons.push(Reason::DebugBuild);
        }
        let (have, planned) = (self.requests - self.interrupted, cell.requests());
        if have < planned {
            reasons.push(Reason::Incomplete { have, planned });
        }
        if self.cached_tokens > 0 && !plan.server.as_ref().is_some_and(|s| s.prompts.shares_prefix()) {
            reasons.push(Reason::CachedPrompt { tokens: self.cached_tokens });
        }
        let limit_ms = SCHEDULE_LAG_LIMIT_MS;
        reasons.extend(whole.lag_p99_ms.map(|p99_ms| Reason::ScheduleLag { p99_ms, limit_ms }));
        let bounds = whole.client.map(|c| c.bounds.as_slice()).unwrap_or_default();
        let is_lag = |b: &ClientBound| matches!(b, ClientBound::ScheduleLag { .. });
        let bounds: Vec<_> = bounds.iter().filter(|b| !is_lag(b)).cloned().collect();
        if !bounds.is_empty() {
            reasons.push(Reason::ClientBound { bounds });
        }
        reasons.extend(whole.growth.and_then(overloaded));
        let mode = plan.model(&cell.model).map(|model| model.expert_mode);
        reasons.extend((mode == Some(ExpertMode::DenseAll)).then_some(Reason::AllExperts));
        reasons.extend(whole.device.clone());
        Verdict { reasons }
    }
}

/// The 99th percentile of the schedule lag where it breaks the limit and is the client's: not where the plan
/// holds requests back and as many as it allows were in flight.
pub(crate) fn broken_lag(cell: &Cell, peak: u32, p99_ms: Option<f64>) -> Option<f64> {
    let held_back = matches!(
        cell.load,
        Load::Open { max_concurrency: Some(most), .. } if peak >= most
    );
    p99_ms.filter(|p99_ms| *p99_ms > SCHEDULE_LAG_LIMIT_MS && !held_back)
}

fn overloaded(Growth { early, late }: Growth) -> Option<Reason> {
    let much = late - early > GROWTH_LIMIT * early;
    let sure = late - early > GROWTH_DEVIATIONS * (early + late).sqrt();
    (much && sure).then_some(Reason::Overloaded { early, late })
}

/// The reason, if any request is off: neither the mean nor another request is further off than the worst one.
fn off_lengths(lengths: &Lengths, reason: fn(&Lengths, Length) -> Reason) -> Option<Reason> {
    lengths.worst.filter(|w| w.is_off()).map(|worst| reason(lengths, worst))
}

fn output_reason(all: &Lengths, worst: Length) -> Reason {
    let (requested, requests, off) = (worst.asked, all.n, all.off);
    if all.own {
        return Reason::OutputLengths { off, requests, requested, worst: worst.actual };
    }
    Reason::OutputLength { requested, actual_mean: all.mean(), worst: worst.actual }
}

fn prompt_reason(all: &Lengths, worst: Length) -> Reason {
    let (requested, requests, off) = (worst.asked, all.n, all.off);
    if all.own {
        return Reason::PromptLengths { off, requests, requested, worst: worst.actual };
    }
    Reason::PromptLength { requested, actual_mean: all.mean(), worst: worst.actual }
}
