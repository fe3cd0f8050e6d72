//! What must be known before a figure is quoted: verdicts with reasons, what is missing, and why.

use super::words::{clean, count, list};
use crate::RunInput;
use crate::view::{VIEWS, short_name};
use bench_core::metric::Metric;
use bench_core::plan::PowerSource;
use bench_core::row::Row;
use bench_core::sample::Stat;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// Notes of one kind, at most.
const MAX_OF_A_KIND: usize = 20;

/// One thing to know.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Note {
    /// `INVALID`, `Note`, `Missing`, `Energy`, `Client`, `Build`.
    pub head: &'static str,
    pub text: String,
}

/// Invalid cells first, then what is missing.
pub(super) fn notes(run: &RunInput, cells: &[&[&Row]], earlier: usize) -> Vec<Note> {
    let mut notes = Vec::new();
    let mut add = |head, texts: Vec<String>| {
        let more = texts.len().saturating_sub(MAX_OF_A_KIND);
        notes.extend(texts.into_iter().take(MAX_OF_A_KIND).map(|text| Note { head, text: clean(&text) }));
        if more > 0 {
            notes.push(Note { head, text: format!("{more} more of this kind stand in unified.csv.") });
        }
    };
    add("INVALID", reasons(cells, "INVALID"));
    add("Note", reasons(cells, "VALID"));
    add("Client", client(cells));
    add("Build", build(run));
    add("Note", run.notes.clone());
    add("Not run", planned(run, cells));
    add("Energy", energy(run, cells).into_iter().collect());
    add("Missing", quantiles(cells));
    add("Missing", codes(cells));
    if earlier > 0 {
        let verb = if earlier == 1 { "stands" } else { "stand" };
        let text = format!(
            "{} of this study {verb} in unified.csv only; this is the latest.",
            count(earlier, "earlier run")
        );
        add("Note", vec![text]);
    }
    notes
}

/// `in 2 of 6 cells`.
fn in_cells(n: usize, cells: &[&[&Row]]) -> String {
    format!("in {n} of {}", count(cells.len(), "cell"))
}

/// Texts with the number of cells that each holds for, in order of first appearance.
fn tally(texts: impl Iterator<Item = String>) -> Vec<(String, usize)> {
    let mut found: Vec<(String, usize)> = Vec::new();
    let mut index: BTreeMap<String, usize> = BTreeMap::new();
    for text in texts {
        let at = *index.entry(text.clone()).or_insert(found.len());
        match found.get_mut(at) {
            Some(entry) => entry.1 += 1,
            None => found.push((text, 1)),
        }
    }
    found
}

fn reasons(cells: &[&[&Row]], verdict: &str) -> Vec<String> {
    let of_cell = cells.iter().filter_map(|rows| {
        let worst = rows.iter().find(|r| r.verdict != "VALID").unwrap_or(&rows[0]);
        match (worst.verdict == verdict, worst.verdict_reason.as_str()) {
            (false, _) => None,
            (true, "") => (verdict == "INVALID").then(|| "no reason given".to_owned()),
            (true, reason) => Some(reason.to_owned()),
        }
    });
    tally(of_cell).into_iter().map(|(text, n)| format!("{text} ({}).", in_cells(n, cells))).collect()
}

fn client(cells: &[&[&Row]]) -> Vec<String> {
    let verdicts = cells.iter().map(|rows| rows[0].client_verdict.clone()).filter(|v| !v.is_empty());
    tally(verdicts).into_iter().map(|(text, n)| format!("{text} ({}).", in_cells(n, cells))).collect()
}

fn build(run: &RunInput) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some(p) = &run.provenance {
        if p.build.debug {
            notes.push("A debug build measured: its times mean nothing.".to_owned());
        }
        if p.build.dirty == Some(true) {
            notes.push("The program was built with changes that its commit does not hold.".to_owned());
        }
        if !p.resumptions.is_empty() {
            let n = count(p.resumptions.len(), "later process");
            notes.push(format!("{n} went on with the run; when and with what stands in its record."));
        }
    }
    if super::story::is_scripted(run) {
        notes.push("No model ran: the target is scripted, so that the harness can be checked.".to_owned());
    }
    notes
}

/// Cells that were refused, or have no row.
fn planned(run: &RunInput, cells: &[&[&Row]]) -> Vec<String> {
    let Some(plan) = &run.plan else { return Vec::new() };
    let mut notes: Vec<String> =
        plan.refused.iter().map(|refused| format!("{}: {}.", refused.cell, refused.reason)).collect();
    if plan.cells.len() > cells.len() {
        let missing = count(plan.cells.len() - cells.len(), "planned cell");
        notes.push(format!("{missing} of {} without any figure.", plan.cells.len()));
    }
    notes
}

/// Why there is no energy, if there is none.
fn energy(run: &RunInput, cells: &[&[&Row]]) -> Option<String> {
    let keys = [Metric::JoulesPerToken, Metric::AvgPower, Metric::EnergyCounter, Metric::EnergyTrapz];
    let keys = keys.map(|m| m.def().key);
    if cells.iter().flat_map(|rows| rows.iter()).any(|r| keys.contains(&r.metric) && r.value.is_some()) {
        return None;
    }
    let why = match run.plan.as_ref().map(|p| &p.energy.source) {
        Some(PowerSource::None) => "the study did not ask for it",
        Some(PowerSource::Auto) => "no power meter of this machine could be read",
        Some(PowerSource::Nvml) => "NVML gave no power that can be used",
        Some(PowerSource::Rapl) => "the kernel's counters gave no power that can be used",
        Some(PowerSource::File(_)) => "the given trace holds no power that can be used",
        None => "no row holds any",
    };
    Some(format!("No energy source: {why}. Energy and tokens per joule are missing, not zero."))
}

/// Quantiles in the tables that n does not support.
fn quantiles(cells: &[&[&Row]]) -> Vec<String> {
    let shown = || VIEWS.iter().flat_map(|v| v.shown).filter(|s| s.printed);
    let mut stats: BTreeMap<String, (u64, Vec<String>, BTreeSet<usize>)> = BTreeMap::new();
    for shown in shown() {
        let Stat::Quantile(q) = shown.stat else { continue };
        let least = (1.0 / (1.0 - q) - 1e-6).ceil() as u64;
        let lacks = |rows: &&[&Row]| {
            let own = |r: &&&Row| r.metric == shown.metric.def().key && r.stat == shown.stat.key();
            rows.iter().find(own).is_some_and(|r| r.value.is_none() && r.n < least)
        };
        for (index, _) in cells.iter().enumerate().filter(|(_, rows)| lacks(rows)) {
            let entry = stats.entry(shown.stat.key()).or_insert((least, Vec::new(), BTreeSet::new()));
            let name = short_name(shown.metric);
            if !entry.1.contains(&name) {
                entry.1.push(name);
            }
            entry.2.insert(index);
        }
    }
    let told = stats.iter().map(|(stat, (least, metrics, of))| {
        let names = list(metrics);
        format!("{stat} of {names} {}: it needs n \u{2265} {least}.", in_cells(of.len(), cells))
    });
    told.collect()
}

/// Samples that should have been there, by the code that says why.
fn codes(cells: &[&[&Row]]) -> Vec<String> {
    let mut found: BTreeMap<(&str, String), BTreeSet<usize>> = BTreeMap::new();
    for (index, rows) in cells.iter().enumerate() {
        for row in rows.iter().filter(|r| r.value.is_none() && !r.missing_reason.is_empty()) {
            // Counts differ from cell to cell; the codes are what is to be told.
            let codes: Vec<&str> =
                row.missing_reason.split(", ").map(|part| part.split(':').next().unwrap_or(part)).collect();
            found.entry((row.metric, codes.join(", ").replace('_', " "))).or_default().insert(index);
        }
    }
    let title = |key: &str| Metric::from_key(key).map_or_else(|_| key.to_owned(), short_name);
    found
        .iter()
        .map(|((key, why), of)| format!("{} {}: {why}.", title(key), in_cells(of.len(), cells)))
        .collect()
}
