//! One cell through every metric crate: its stored lines go to each, and what they make of them comes together.
//!
//! Nothing is computed here. A figure that needs another crate's (a slope over cells, efficiency) is asked for when
//! all of a run's cells have been read.

use crate::CliError;
use bench_ape::{Accuracies, Inputs, Routing};
use bench_core::client::Calibration;
use bench_core::detail::CellDetail;
use bench_core::plan::Cell;
use bench_core::power::PowerTrace;
use bench_core::row::{Row, StudyCell, StudyLatencyRow, rows};
use bench_core::sample::{Estimate, Summary};
use bench_core::shape::ModelFacts;
use bench_memory::CellMemory;
use bench_runner::store::{RunFolder, Stored};
use std::collections::BTreeMap;

/// What the cells of a run share.
pub(crate) struct Run<'a> {
    pub(crate) folder: &'a RunFolder,
    target: &'static str,
    idle: Option<PowerTrace>,
    bandwidth_bytes_s: Option<f64>,
    accuracies: BTreeMap<&'a str, Accuracies>,
    /// What could not be used, and why.
    pub(crate) notes: Vec<String>,
}

/// Rows of a run, and its view by the formulas of the study.
pub(crate) struct Joined {
    pub(crate) rows: Vec<Row>,
    pub(crate) cells: Vec<CellDetail>,
    pub(crate) study_rows: Vec<StudyLatencyRow>,
    pub(crate) study_cells: Vec<StudyCell>,
}

/// One cell as it was read: what the rows are made of, and what goes past them.
struct Read<'a> {
    parts: Parts<'a>,
    memory: CellMemory,
    detail: CellDetail,
    study: Option<StudyLatencyRow>,
}

/// One cell, each crate's part for itself.
struct Parts<'a> {
    cell: &'a Cell,
    summary: Summary,
    energy: Vec<Estimate>,
    routing: Routing,
}

impl<'a> Run<'a> {
    pub(crate) fn new(folder: &'a RunFolder) -> Result<Self, CliError> {
        let plan = folder.plan();
        let measured = folder.bandwidth()?.map(|b| b.read_bytes_s);
        let mut notes = Vec::new();
        let mut accuracies = BTreeMap::new();
        for model in &plan.models {
            let Some(text) = folder.accuracy(&model.label)? else { continue };
            match Accuracies::parse(&format!("accuracy of {}", model.label), &text) {
                Ok(read) => _ = accuracies.insert(model.label.as_str(), read),
                Err(error) => notes.push(format!("{error}; the rows of accuracy are left out")),
            }
        }
        Ok(Self {
            folder,
            target: plan.target.kind.key(),
            idle: folder.idle()?,
            bandwidth_bytes_s: plan.bandwidth_bytes_s.or(measured),
            accuracies,
            notes,
        })
    }

    /// Reads and analyzes every cell.
    pub(crate) fn join(&self) -> Result<Joined, CliError> {
        let (mut parts, mut memories) = (Vec::new(), Vec::new());
        let (mut cells, mut study_rows, mut study_cells) = (Vec::new(), Vec::new(), Vec::new());
        for cell in &self.folder.plan().cells {
            let read = self.cell(cell)?;
            cells.extend(Some(read.detail).filter(|d| !d.raw.is_empty()));
            study_cells.extend(read.study.iter().map(|latency| StudyCell {
                cell: cell.clone(),
                latency: latency.clone(),
                memory: read.memory.study,
            }));
            parts.push(read.parts);
            memories.push(read.memory);
            study_rows.extend(read.study);
        }
        bench_memory::slopes(&mut memories);
        let of_cell = parts.into_iter().zip(memories);
        let rows = of_cell.flat_map(|(part, memory)| self.rows(part, memory)).collect();
        Ok(Joined { rows, cells, study_rows, study_cells })
    }

    fn cell(&self, cell: &'a Cell) -> Result<Read<'a>, CliError> {
        let mut readers = Readers::new(self.folder, cell, self.idle.as_ref());
        for trial in self.folder.streams(&cell.id) {
            for line in trial? {
                readers.take(&line?)?;
            }
        }
        let Readers { latency, memory, energy, routing } = readers;
        let calibration: Option<Calibration> = self.folder.calibration(&cell.id)?;
        let debug = self.folder.provenance().build.debug;
        let latency = latency.finish(debug, calibration.as_ref())?;
        let energy = energy.finish(&latency.steady)?;
        let detail = CellDetail {
            cell: cell.clone(),
            raw: self.folder.trial_files(&cell.id),
            distributions: latency.distributions,
            timelines: latency.timelines,
            power: energy.power,
        };
        let (summary, energy) = (latency.summary, energy.estimates);
        let parts = Parts { cell, summary, energy, routing };
        Ok(Read { parts, memory: memory.finish(), detail, study: latency.study })
    }

    fn facts(&self, cell: &Cell) -> Option<&'a ModelFacts> {
        self.folder.provenance().models.get(&cell.model)
    }

    fn rows(&self, part: Parts<'_>, memory: CellMemory) -> Vec<Row> {
        let Parts { cell, mut summary, energy, routing } = part;
        summary.estimates.extend(memory.estimates);
        summary.estimates.extend(energy);
        if let Some(facts) = self.facts(cell) {
            let accuracies = self.accuracies.get(cell.model.as_str());
            let derived = bench_ape::estimates(&Inputs {
                cell,
                facts,
                routing,
                bandwidth_bytes_s: self.bandwidth_bytes_s,
                accuracies: accuracies.map(|a| a.tasks.as_slice()).unwrap_or_default(),
                estimates: &summary.estimates,
            });
            summary.estimates.extend(derived);
        }
        rows(self.folder.run_id(), self.target, cell, &summary)
    }
}

/// What the metric crates make of one cell: each stored line goes to those that want it, one at a time, so that a
/// trial of any length fits.
pub(crate) struct Readers<'a> {
    pub(crate) latency: bench_latency::Analysis<'a>,
    pub(crate) memory: bench_memory::Analysis<'a>,
    pub(crate) energy: bench_energy::Analysis<'a>,
    pub(crate) routing: Routing,
}

impl<'a> Readers<'a> {
    pub(crate) fn new(run: &'a RunFolder, cell: &'a Cell, idle: Option<&'a PowerTrace>) -> Self {
        let plan = run.plan();
        let facts = run.provenance().models.get(&cell.model);
        Self {
            latency: bench_latency::Analysis::new(plan, cell, plan.target.kind.key()),
            memory: bench_memory::Analysis::new(plan, cell, facts),
            energy: bench_energy::Analysis::new(plan, cell, idle),
            routing: Routing::default(),
        }
    }

    pub(crate) fn take(&mut self, line: &Stored) -> Result<(), CliError> {
        let Self { latency, memory, energy, routing } = self;
        match line {
            Stored::Header(header) => {
                latency.trial(header.trial, &header.cell)?;
                memory.trial();
                energy.trial();
            }
            Stored::Request(request) => {
                latency.request(request)?;
                energy.request(request)?;
            }
            Stored::Client(health) => latency.client(health),
            Stored::Scrape(scrape) => {
                latency.scrape(scrape);
                memory.scrape(scrape);
            }
            Stored::Memory(trace) => {
                latency.memory(trace);
                memory.memory(trace);
            }
            Stored::Experts(experts) => routing.add(experts),
            Stored::Power(power) => {
                memory.power(power);
                energy.power(power);
            }
            Stored::Warmup(_) | Stored::End { .. } => {}
        }
        Ok(())
    }
}
