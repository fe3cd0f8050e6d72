//! The study's memory, energy and efficiency tables of what was measured here.
//!
//! Their columns know no batch, load or scope: they hold the cells with one request at a time, and of
//! energy that of GPU boards. What was not measured is empty, and of memory or energy a row without any is
//! left out.

use super::derive::{Ape, Energy, Memory, Mib};
use crate::RunInput;
use crate::wide::csv_line;
use bench_core::load::Load;
use bench_core::metric::Metric;
use bench_core::power::PowerScope;
use bench_core::row::{STUDY_APE_COLUMNS, STUDY_ENERGY_COLUMNS, STUDY_MEMORY_COLUMNS, StudyCell};
use bench_core::shape::ModelFacts;
use serde_json::{Value, json};

const MIB: f64 = 1_048_576.0;

/// One cell of one run.
#[derive(Clone, Copy)]
pub(super) struct Single<'a> {
    run: &'a RunInput,
    study: &'a StudyCell,
}

/// Cells with one request at a time: by run, model, prompt and output tokens.
pub(super) fn cells(runs: &[RunInput]) -> Vec<Single<'_>> {
    let alone = |study: &&StudyCell| match study.cell.load {
        Load::Batch => study.cell.batch == 1,
        Load::Closed { concurrency } => concurrency == 1,
        Load::Open { .. } => false,
    };
    let mut cells = Vec::new();
    for run in runs {
        cells.extend(run.study_cells.iter().filter(alone).map(|study| Single { run, study }));
    }
    cells.sort_by(|a, b| a.key().cmp(&b.key()));
    cells
}

pub(super) fn memory(cells: &[Single<'_>]) -> String {
    table(STUDY_MEMORY_COLUMNS, cells, |cell| {
        let memory = cell.memory()?;
        let device = cell.run.provenance.as_ref().map(|p| p.machine.cpu.as_str());
        Some((vec![cell.short(), cell.id(), json!(device)], memory.values().to_vec()))
    })
}

pub(super) fn energy(cells: &[Single<'_>]) -> String {
    table(STUDY_ENERGY_COLUMNS, cells, |cell| {
        Some((vec![cell.short(), cell.id()], cell.energy()?.values().to_vec()))
    })
}

pub(super) fn ape(cells: &[Single<'_>]) -> String {
    table(STUDY_APE_COLUMNS, cells, |cell| {
        let facts = cell.facts();
        let kind = facts.map(|f| if f.shape.experts.is_some() { "MoE" } else { "Dense" });
        let names =
            vec![cell.short(), cell.id(), json!(kind), json!(organization(&cell.study.latency.model))];
        let energy = cell.energy();
        let ape = Ape {
            context_length: cell.study.latency.context_length,
            total_b: facts.map(|f| f.parameters as f64 / 1e9),
            active_b: facts.map(|f| f.active_parameters as f64 / 1e9),
            ttft_ms: cell.study.latency.ttft_ms,
            request_tok_s: cell.study.latency.tpot_tokps,
            peak_mb: cell.memory().and_then(|m| m.peak.alloc),
            per_1k_j: energy.and_then(|e| e.per_1k_j()),
            tok_per_j: energy.and_then(|e| e.tok_per_j()),
        };
        Some((names, ape.values().to_vec()))
    })
}

impl<'a> Single<'a> {
    fn key(&self) -> (&'a str, &'a str, u32, u32, &'a str) {
        let StudyCell { cell, latency, .. } = self.study;
        (&self.run.run_id, &latency.model_short, cell.prompt_tokens, cell.output_tokens, &cell.id)
    }

    fn short(&self) -> Value {
        json!(self.study.latency.model_short)
    }

    fn id(&self) -> Value {
        json!(self.study.latency.model)
    }

    fn facts(&self) -> Option<&'a ModelFacts> {
        self.run.provenance.as_ref()?.models.get(&self.study.cell.model)
    }

    /// By the engine's allocator, which reserves nothing that it does not hand out; the heap was not read before
    /// the prompt was tokenized.
    fn memory(&self) -> Option<Memory> {
        let measured = self.study.memory?;
        let mib = |bytes: f64| Mib { alloc: Some(bytes / MIB), reserved: None };
        Some(Memory {
            context_length: self.study.latency.context_length,
            gen_tokens: self.study.latency.gen_tokens,
            baseline: Mib::default(),
            after_tokenize: mib(measured.before_bytes),
            after_generate: mib(measured.held_bytes),
            peak: mib(measured.peak_bytes),
            total_gpu_mb: measured.device_bytes.map(|bytes| bytes / MIB),
        })
    }

    /// `None` where no board told its power.
    fn energy(&self) -> Option<Energy> {
        let avg_w = self.figure(Metric::AvgPower)?;
        let latency = &self.study.latency;
        Some(Energy {
            context_length: latency.context_length,
            gen_tokens: latency.gen_tokens,
            ttft_ms: latency.ttft_ms,
            ttft_j: self.figure(Metric::EnergyPrefill),
            request_tok_s: latency.tpot_tokps,
            avg_w: Some(avg_w),
            baseline_w: self.figure(Metric::IdlePower),
            util_gpu_pct: self.figure(Metric::UtilGpu),
            util_mem_pct: self.figure(Metric::UtilMem),
        })
    }

    /// Of all boards together: the mean of what there are several of, the one figure else.
    fn figure(&self, metric: Metric) -> Option<f64> {
        let cell = &self.study.cell;
        let load = cell.load.key();
        let row = self.run.rows.iter().find(|row| {
            row.metric == metric.def().key
                && row.scope == PowerScope::GpuBoard.key()
                && matches!(row.stat.as_str(), "mean" | "value")
                && row.model == cell.model
                && (row.prompt_tokens, row.output_tokens, row.batch)
                    == (cell.prompt_tokens, cell.output_tokens, cell.batch)
                && (row.load.as_str(), row.concurrency) == (load.as_str(), cell.load.concurrency())
        });
        row.and_then(|row| row.value).filter(|value| value.is_finite())
    }
}

/// Who published a model, as far as its name on the hub says.
fn organization(id: &str) -> Option<&str> {
    let (owner, name) = id.split_once('/')?;
    let plain = |text: &str| {
        !text.is_empty()
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
            && text.bytes().any(|b| b.is_ascii_alphanumeric())
    };
    (plain(owner) && plain(name)).then_some(owner)
}

/// A header, and a line of each cell that `line` makes one of: its texts, then its numbers.
fn table(
    columns: &[&str],
    cells: &[Single<'_>],
    line: impl Fn(&Single<'_>) -> Option<(Vec<Value>, Vec<Option<f64>>)>,
) -> String {
    let mut text = csv_line(columns.iter().map(|c| json!(c)));
    for (names, numbers) in cells.iter().filter_map(line) {
        let whole = |name: &str| matches!(name, "context_length" | "gen_tokens" | "total_tokens");
        let numbers = columns[names.len()..].iter().zip(numbers).map(|(column, number)| match number {
            Some(tokens) if whole(column) => json!(tokens as u64),
            number => json!(number),
        });
        text.push_str(&csv_line(names.into_iter().chain(numbers)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_organization_is_an_owner_on_the_hub_and_nothing_else() {
        for (id, expected) in [
            ("openai/gpt-oss-20b", Some("openai")),
            ("01-ai/Yi-34B", Some("01-ai")),
            ("dummy:gpt-oss-nano", None),
            ("./models/a", None),
            ("/srv/models/a", None),
            ("../a", None),
            ("a", None),
        ] {
            assert_eq!(organization(id), expected, "{id}");
        }
    }
}
