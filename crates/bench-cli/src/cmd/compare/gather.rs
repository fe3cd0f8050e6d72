//! One cell of one side, from stored lines to what the comparison needs: samples by repeat, figures, verdict.
//!
//! A line at a time, and of long runs bounded amounts; a cell's samples are dropped before the next one is
//! read.

use super::sides::{Places, Side};
use crate::CliError;
use crate::args::Wanted;
use crate::cmd::join::Readers;
use bench_core::metric::{Metric, Per};
use bench_core::plan::{Cell, derive_seed};
use bench_core::sample::{Estimate, Stat, Summary, TokenSource};
use bench_core::stats::{Collector, Measured};
use bench_core::trace::{RequestTrace, SteadyWindow};
use bench_latency::Analyzed;
use bench_runner::store::{RunFolder, Stored};
use std::collections::BTreeMap;

/// A cell in all runs of a side.
#[derive(Default)]
pub(super) struct CellSide {
    /// By metric and scope, one entry for each run that has it.
    measured: BTreeMap<(Metric, String), Vec<Measured>>,
    /// Why it is INVALID, with the run where there are several.
    pub(super) invalid: Vec<String>,
    pub(super) notes: Vec<String>,
    pub(super) token_sources: Vec<&'static str>,
}

impl CellSide {
    pub(super) fn scopes(&self, metric: Metric) -> impl Iterator<Item = &String> {
        self.measured.keys().filter(move |key| key.0 == metric).map(|key| &key.1)
    }

    pub(super) fn measured(&self, metric: Metric, scope: &str) -> &[Measured] {
        self.measured.get(&(metric, scope.to_owned())).map(Vec::as_slice).unwrap_or_default()
    }
}

pub(super) fn cell(side: &Side, places: &Places, wanted: &[Wanted]) -> Result<CellSide, CliError> {
    let mut found = CellSide::default();
    if places.len() < side.runs.len() {
        found.notes.push(format!("in {} of {} runs", places.len(), side.runs.len()));
    }
    for (index, id) in places {
        let run = &side.runs[*index];
        let Some(cell) = run.plan().cell(id) else { continue };
        let read = read(run, cell, wanted)?;
        let named =
            |text: String| if side.runs.len() > 1 { format!("{text} (run {})", run.run_id()) } else { text };
        let (verdict, text) = (&read.summary.verdict, read.summary.verdict.reason_text());
        if verdict.is_valid() {
            found.notes.extend(Some(text).filter(|t| !t.is_empty()).map(named));
        } else {
            found.invalid.push(named(text));
        }
        let source = read.summary.token_source.map_or("nobody", TokenSource::key);
        if !found.token_sources.contains(&source) {
            found.token_sources.push(source);
        }
        for (key, measured) in read.measured {
            found.measured.entry(key).or_default().push(measured);
        }
    }
    Ok(found)
}

/// What was measured of a metric and a scope.
type Figure = ((Metric, String), Measured);

/// A cell in one run.
struct Read {
    measured: Vec<Figure>,
    summary: Summary,
}

fn read(run: &RunFolder, cell: &Cell, wanted: &[Wanted]) -> Result<Read, CliError> {
    let idle = run.idle()?;
    let mut readers = Readers::new(run, cell, idle.as_ref());
    let mut samples = Sampler::new(run, cell, wanted);
    for trial in run.streams(&cell.id) {
        for line in trial? {
            let line = line?;
            readers.take(&line)?;
            match &line {
                Stored::Header(header) => samples.round = header.round,
                Stored::Request(request) => samples.request(request)?,
                _ => {}
            }
        }
    }
    let Readers { latency, memory, energy, .. } = readers;
    let calibration = run.calibration(&cell.id)?;
    let debug = run.provenance().build.debug;
    let Analyzed { summary, steady, .. } = latency.finish(debug, calibration.as_ref())?;
    let mut measured = samples.finish()?;
    let (memory, energy) = (memory.finish().estimates, energy.finish(&steady)?);
    let estimates: Vec<&Estimate> =
        summary.estimates.iter().chain(&memory).chain(&energy.estimates).collect();
    for metric in metrics(wanted, |per| matches!(per, Per::Window | Per::Cell)) {
        measured.extend(of_estimates(metric, &estimates, &steady));
    }
    Ok(Read { measured, summary })
}

/// The metrics among `wanted`, each once.
fn metrics(wanted: &[Wanted], of: impl Fn(Per) -> bool) -> Vec<Metric> {
    let mut metrics: Vec<_> = wanted.iter().map(|w| w.metric).filter(|m| of(m.def().per)).collect();
    metrics.sort();
    metrics.dedup();
    metrics
}

/// Samples of requests by repeat.
struct Sampler<'a> {
    run: &'a RunFolder,
    cell: &'a Cell,
    round: u32,
    /// With the samples of the present request.
    collectors: BTreeMap<Metric, (Collector, Vec<f64>)>,
}

impl<'a> Sampler<'a> {
    fn new(run: &'a RunFolder, cell: &'a Cell, wanted: &[Wanted]) -> Self {
        let collector = |metric: Metric| {
            let single = metric.def().per == Per::Request && cell.requests_per_repeat == 1;
            (metric, (Collector::new(cell.repeats, single), Vec::new()))
        };
        let of_requests = metrics(wanted, |per| matches!(per, Per::Request | Per::Gap));
        Self { run, cell, round: 0, collectors: of_requests.into_iter().map(collector).collect() }
    }

    fn request(&mut self, request: &RequestTrace) -> Result<(), CliError> {
        let (plan, collectors) = (self.run.plan(), &mut self.collectors);
        bench_latency::each_sample(plan, self.cell, plan.target.kind.key(), request, |metric, value| {
            if let Some((_, values)) = collectors.get_mut(&metric) {
                values.push(value);
            }
        })?;
        for (collector, values) in collectors.values_mut() {
            collector.push(self.round, request.repeat, values)?;
            values.clear();
        }
        Ok(())
    }

    fn finish(self) -> Result<Vec<Figure>, CliError> {
        let mut measured = Vec::new();
        for (metric, (collector, _)) in self.collectors {
            let purpose = format!("bootstrap.{}.{}", self.cell.id, metric.def().key);
            let samples = collector.finish(derive_seed(self.run.plan().seed, &purpose))?;
            measured.extend(samples.map(|s| ((metric, String::new()), Measured::Samples(s))));
        }
        Ok(measured)
    }
}

/// What has no samples here: moments of windows, figures of the cell.
fn of_estimates(metric: Metric, estimates: &[&Estimate], steady: &[SteadyWindow]) -> Vec<Figure> {
    let own = || estimates.iter().filter(|e| e.metric == metric);
    let found = own().filter_map(|estimate| {
        let value = estimate.value?;
        let measured = match estimate.stat {
            Stat::Mean => {
                let spread = own().find(|e| e.stat == Stat::StdDev && e.scope == estimate.scope);
                Measured::Moments { mean: value, std_dev: spread.and_then(|e| e.value), n: estimate.n }
            }
            Stat::Value => Measured::Whole { value, rounds: rounds(metric, steady) },
            _ => return None,
        };
        Some(((metric, estimate.scope.clone().unwrap_or_default()), measured))
    });
    found.collect()
}

/// The same figure of each round, where rounds have one.
fn rounds(metric: Metric, steady: &[SteadyWindow]) -> Vec<f64> {
    let rate = |w: &SteadyWindow| w.to.since(w.from).map(|t| w.output_tokens * 1e9 / t.0 as f64);
    match metric {
        Metric::SystemTokenRate => steady.iter().filter_map(rate).filter(|r| r.is_finite()).collect(),
        _ => Vec::new(),
    }
}
