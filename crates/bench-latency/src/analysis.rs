//! One cell, taken in request by request: what is kept of each is little, and no more than a fixed amount of
//! what each metric needs.
//!
//! The one way from requests to estimates: `summarise` and `study_rows` are this with everything at hand.

use crate::client::{Client, Measured, instrument_error};
use crate::device::DeviceClock;
use crate::life::{Known, Life};
use crate::sample::{self, OPTIONAL, Setting};
use crate::server::Server;
use crate::timelines::Timelines;
use crate::verdict::{self, Evidence, SCHEDULE_LAG_LIMIT_MS, Whole};
use crate::window::Windows;
use crate::{Error, Result, study, summary};
use bench_core::client::{Calibration, ClientHealth, Scrape};
use bench_core::detail::{Distribution, MAX_STEPS, TokenTimeline};
use bench_core::event::FailureKind;
use bench_core::memory::MemoryTrace;
use bench_core::metric::{Metric, Per};
use bench_core::plan::{Cell, Plan, derive_seed};
use bench_core::row::StudyLatencyRow;
use bench_core::sample::{Estimate, Summary, TokenSource};
use bench_core::stats::{Clustered, Tally};
use bench_core::trace::{RequestTrace, SteadyWindow};
use std::collections::BTreeMap;

/// Takes in the trials of one cell.
pub struct Analysis<'a> {
    plan: &'a Plan,
    cell: &'a Cell,
    setting: Setting,
    known: Known,
    /// By metric: its samples, and how many were missing.
    samples: BTreeMap<Metric, (Tally, u64)>,
    windows: Windows<'a>,
    evidence: Evidence,
    failures: BTreeMap<FailureKind, u64>,
    token_source: Option<TokenSource>,
    client: Client,
    server: Server,
    device: DeviceClock,
    timelines: Timelines,
}

/// Metrics whose distributions are shown.
const SHOWN: &[Metric] = &[
    Metric::ScheduleLag,
    Metric::Ttft,
    Metric::TtftFromSchedule,
    Metric::Ttfo,
    Metric::Tpot,
    Metric::Itl,
    Metric::E2el,
];

/// What a cell comes to.
#[derive(Debug, Clone, PartialEq)]
pub struct Analyzed {
    pub summary: Summary,
    /// By the formulas of the original study; `None` where no trial was taken in.
    pub study: Option<StudyLatencyRow>,
    /// Of each trial that has one: what joules per token are made from where requests overlap.
    pub steady: Vec<SteadyWindow>,
    /// Of times that have samples, in the order of metrics.
    pub distributions: Vec<Distribution>,
    /// The first request that succeeded, and the one with the longest gap where that is another.
    pub timelines: Vec<TokenTimeline>,
}

impl<'a> Analysis<'a> {
    /// `target` is the key of the target.
    pub fn new(plan: &'a Plan, cell: &'a Cell, target: &str) -> Self {
        let setting = Setting::new(plan, target);
        Self {
            plan,
            cell,
            setting,
            known: Known::new(cell),
            samples: BTreeMap::new(),
            windows: Windows::new(cell, plan.slo.as_ref(), setting),
            evidence: Evidence::default(),
            failures: BTreeMap::new(),
            token_source: None,
            client: Client::default(),
            server: Server::default(),
            device: DeviceClock::default(),
            timelines: Timelines::default(),
        }
    }

    /// Begins the next trial, which says that it is one of `cell`.
    ///
    /// # Errors
    /// A trial of another cell.
    pub fn trial(&mut self, trial: u32, cell: &str) -> Result<()> {
        if cell != self.cell.id {
            let (found, expected) = (cell.to_owned(), self.cell.id.clone());
            return Err(Error::OtherCell { trial, found, expected });
        }
        self.windows.round();
        self.server.round();
        self.timelines.round();
        Ok(())
    }

    /// Takes in a measured request of the present trial.
    ///
    /// # Errors
    /// A request that is there twice, events out of order.
    pub fn request(&mut self, request: &RequestTrace) -> Result<()> {
        self.known.insert(self.cell, request)?;
        let life = Life::read(&self.cell.id, request)?;
        let (repeats, per_repeat) = (self.cell.repeats, self.cell.requests_per_repeat);
        let samples = &mut self.samples;
        sample::of_life(&life, self.setting, |metric, value| {
            let single = metric.def().per == Per::Request && per_repeat == 1;
            let (tally, missing) = samples.entry(metric).or_insert_with(|| (Tally::new(repeats, single), 0));
            *missing += u64::from(value.is_none());
            value.map_or(Ok(()), |value| Ok(tally.push(request.repeat, value)?))
        })?;
        self.windows.add(&life);
        self.timelines.add(request.slot, &life);
        self.evidence.add(self.plan, self.cell, &life);
        self.device.add(&life);
        if let Some(kind) = life.failure() {
            *self.failures.entry(kind).or_default() += 1;
        } else {
            let source = life.timeline.count_source.map_or(TokenSource::Chunks, TokenSource::Counted);
            let same = self.token_source.is_none_or(|s| s == source);
            self.token_source = Some(if same { source } else { TokenSource::Mixed });
        }
        Ok(())
    }

    /// Takes in how the client fared in the present trial.
    pub fn client(&mut self, health: &ClientHealth) {
        self.client.add(health);
    }

    /// Takes in a reading of the server's metrics during the present trial.
    pub fn scrape(&mut self, scrape: &Scrape) {
        self.server.add(scrape);
    }

    /// Takes in the readings around a measured batch, whose requests were taken in: of a GPU there are times too.
    pub fn memory(&mut self, trace: &MemoryTrace) {
        if let Some(device) = &trace.device {
            self.device.check(trace.repeat, device);
        }
    }

    /// Bytes that are held for what was taken in so far.
    pub fn heap_bytes(&self) -> usize {
        let samples = self.samples.values().map(|(tally, _)| tally.heap_bytes()).sum::<usize>();
        self.windows.heap_bytes() + samples + self.timelines.heap_bytes()
    }

    /// The figures of the whole cell.
    pub(crate) fn figures(mut self) -> Vec<(Metric, Option<f64>)> {
        let mut figures = self.windows.flights().figures;
        figures.extend(self.client.figures());
        figures.extend(self.server.figures());
        figures
    }

    /// All estimates with the verdict. `calibration` is the cell's.
    pub fn finish(mut self, build_is_debug: bool, calibration: Option<&Calibration>) -> Result<Analyzed> {
        let flights = self.windows.flights();
        // Their memory is the largest part, and it is no longer needed.
        self.windows = Windows::new(self.cell, None, self.setting);
        let mut figures: BTreeMap<Metric, Option<f64>> = flights.figures.into_iter().collect();
        figures.extend(self.client.figures());
        figures.extend(self.server.figures());
        let (requests, succeeded) = (self.evidence.requests(), self.evidence.succeeded());
        let mut estimates: Vec<_> = figures
            .into_iter()
            .map(|(metric, value)| summary::of_cell(metric, value, succeeded.into(), requests.into()))
            .collect();
        let (mut medians, mut distributions) = (Medians::default(), Vec::new());
        for (metric, (tally, missing)) in std::mem::take(&mut self.samples) {
            if tally.n() == 0 && OPTIONAL.contains(&metric) {
                continue;
            }
            let seed =
                derive_seed(self.plan.seed, &format!("bootstrap.{}.{}", self.cell.id, metric.def().key));
            let clustered = tally.clustered(seed)?;
            medians.take(metric, &clustered);
            distributions.extend(distribution(metric, &clustered));
            let error = calibration.and_then(|c| instrument_error(metric, self.cell, c));
            estimates.extend(summary::of_samples(metric, &clustered, missing, error));
        }
        estimates.sort_by_key(|e| e.metric);
        estimates.extend(self.failure_counts());
        let lag_p99_ms = verdict::broken_lag(self.cell, flights.peak, medians.lag_p99_ms);
        let measured = Measured {
            ttft_ms: medians.ttft_ms,
            gap_ms: [medians.itl_ms, medians.tpot_ms].into_iter().flatten().reduce(f64::max),
            lag: lag_p99_ms.map(|p99_ms| (p99_ms, SCHEDULE_LAG_LIMIT_MS)),
        };
        let client = self.client.judge(calibration, measured);
        let device = self.device.reason();
        let whole =
            Whole { build_is_debug, lag_p99_ms, growth: flights.growth, client: client.as_ref(), device };
        let verdict = self.evidence.judge(self.plan, self.cell, &whole);
        let token_source = self.token_source;
        Ok(Analyzed {
            summary: Summary { estimates, requests, succeeded, token_source, verdict, client },
            study: (requests > 0).then(|| study::row(self.plan, self.cell, &medians.study)),
            steady: flights.steady,
            distributions,
            timelines: self.timelines.finish(),
        })
    }

    /// One estimate per kind of failure that occurred.
    fn failure_counts(&self) -> impl Iterator<Item = Estimate> {
        let n = u64::from(self.evidence.requests());
        self.failures.iter().map(move |(kind, count)| summary::of_failures(*kind, *count, n))
    }
}

/// `None` of a metric that is not shown, and of no samples.
fn distribution(metric: Metric, samples: &Clustered) -> Option<Distribution> {
    let pooled = samples.pooled();
    let shown = SHOWN.contains(&metric) && pooled.n() > 0;
    shown.then(|| Distribution { metric, n: pooled.n(), steps: pooled.steps(MAX_STEPS) })
}

/// Figures of the samples that others are held against, whatever n supports.
#[derive(Default)]
struct Medians {
    lag_p99_ms: Option<f64>,
    ttft_ms: Option<f64>,
    itl_ms: Option<f64>,
    tpot_ms: Option<f64>,
    study: study::Times,
}

impl Medians {
    fn take(&mut self, metric: Metric, samples: &Clustered) {
        let all = samples.pooled();
        match metric {
            // With few requests this is nearly the largest lag: a warning must not wait for n.
            Metric::ScheduleLag => self.lag_p99_ms = all.quantile(0.99),
            Metric::Ttft => {
                self.ttft_ms = all.quantile(0.5);
                self.study.ttft_ms = self.ttft_ms;
            }
            Metric::Itl => self.itl_ms = all.quantile(0.5),
            Metric::Tpot => self.tpot_ms = all.quantile(0.5),
            Metric::E2el => self.study.take_e2el(all),
            _ => {}
        }
    }
}
