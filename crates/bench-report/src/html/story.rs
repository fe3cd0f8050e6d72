//! What a study's run was, in sentences made from its plan, its provenance and its rows; nothing is judged here.

use super::words::{bytes, clean, command_line, count, grid_axis, list, parameters};
use crate::RunInput;
use crate::load::LoadText;
use crate::order::by_cell;
use bench_core::plan::Plan;
use bench_core::provenance::{Build, Provenance};
use bench_core::row::Row;
use bench_core::spec::TargetKind;
use serde::Serialize;

/// Models and reasons that are listed one by one, at most.
const MAX_LISTED: usize = 40;

#[derive(Debug, Serialize)]
pub(super) struct Story {
    pub sentences: Vec<String>,
    pub valid: usize,
    pub invalid: usize,
    pub facts: Vec<Fact>,
    pub models: Vec<ModelLine>,
    pub more_models: usize,
}

/// A line of the run's record.
#[derive(Debug, Serialize)]
pub(super) struct Fact {
    pub name: &'static str,
    pub text: String,
    /// Set as code.
    pub code: bool,
}

#[derive(Debug, Serialize)]
pub(super) struct ModelLine {
    pub label: String,
    pub id: String,
    pub architecture: String,
    pub total: String,
    pub active: String,
    pub weights: String,
    pub dtypes: String,
}

pub(super) fn story(run: &RunInput, cells: &[&[&Row]]) -> Story {
    let valid = cells.iter().filter(|rows| rows.iter().all(|r| r.verdict == "VALID")).count();
    let models = models(run, cells);
    let mut sentences = vec![what(run, cells)];
    sentences.extend(run.plan.as_ref().map(how));
    sentences.push(verdicts(valid, cells.len()));
    Story {
        sentences,
        valid,
        invalid: cells.len() - valid,
        facts: facts(run),
        more_models: models.len().saturating_sub(MAX_LISTED),
        models: models.into_iter().take(MAX_LISTED).collect(),
    }
}

/// Models, target and grid.
fn what(run: &RunInput, cells: &[&[&Row]]) -> String {
    let first: Vec<&Row> = cells.iter().map(|rows| rows[0]).collect();
    if first.is_empty() {
        return "No cell of this run has a figure.".to_owned();
    }
    let mut models: Vec<&str> = first.iter().map(|r| r.model.as_str()).collect();
    models.sort_unstable();
    models.dedup();
    let mut loads: Vec<String> = first.iter().map(|r| LoadText::of(r).to_string()).collect();
    // Rows come in order of level; that of text would put c=16 before c=4.
    let mut seen = Vec::new();
    loads.retain(|load| {
        !seen.contains(load) && {
            seen.push(load.clone());
            true
        }
    });
    let loads = if loads.len() > 8 { count(loads.len(), "load") } else { list(&loads) };
    let verb = if models.len() == 1 { "was" } else { "were" };
    format!(
        "{} {verb} measured {}, at {} prompt and {} output tokens, {loads}: {}.",
        capitalized(&count(models.len(), "model")),
        target(run, first[0]),
        grid_axis(first.iter().map(|r| r.prompt_tokens).collect()),
        grid_axis(first.iter().map(|r| r.output_tokens).collect()),
        count(cells.len(), "cell"),
    )
}

fn target(run: &RunInput, row: &Row) -> String {
    let kind = run.plan.as_ref().map_or(row.target.as_str(), |plan| plan.target.kind.key());
    match (kind, &run.plan) {
        ("engine", Some(plan)) => {
            format!("in-process by ossbench's own engine on {}", clean(&plan.target.device))
        }
        ("engine", None) => "in-process by ossbench's own engine".to_owned(),
        ("http", plan) => {
            let url = plan.as_ref().and_then(|p| p.server.as_ref()?.base_url.clone());
            url.map_or_else(|| "over HTTP".to_owned(), |url| format!("over HTTP at {}", clean(&url)))
        }
        ("mock", _) => "with a scripted target (times are the script's, not a model's)".to_owned(),
        ("null", _) => "with a target that answers at once (what is left is the harness itself)".to_owned(),
        (other, _) => format!("with target {}", clean(other)),
    }
}

/// Repeats, order and isolation.
fn how(plan: &Plan) -> String {
    let requests: Vec<u32> = plan.cells.iter().map(bench_core::plan::Cell::requests).collect();
    let each = grid_axis(requests);
    let isolated = if plan.isolate { ", and each ran in a process of its own" } else { "" };
    format!(
        "{each} requests were planned for each cell, in {}, after {} of each trial; the order of the trials was shuffled \
         with seed {}{isolated}.",
        count(plan.rounds as usize, "round"),
        count(plan.warmup as usize, "warm-up repeat"),
        plan.seed
    )
}

fn verdicts(valid: usize, all: usize) -> String {
    match (valid, all) {
        (_, 0) => "There is no verdict.".to_owned(),
        (1, 1) => "The cell is VALID.".to_owned(),
        (valid, all) if valid == all => format!("All {all} cells are VALID."),
        (0, all) => format!("None of {} is VALID; the reasons stand below.", count(all, "cell")),
        (valid, all) => format!(
            "{valid} of {} are VALID, {} INVALID: their reasons stand below, and their figures are marked.",
            count(all, "cell"),
            all - valid
        ),
    }
}

fn capitalized(text: &str) -> String {
    let words =
        [("1 ", "One "), ("2 ", "Two "), ("3 ", "Three "), ("4 ", "Four "), ("5 ", "Five "), ("6 ", "Six ")];
    let found = words.iter().find_map(|(digit, word)| Some(format!("{word}{}", text.strip_prefix(digit)?)));
    found.unwrap_or_else(|| text.to_owned())
}

fn models(run: &RunInput, cells: &[&[&Row]]) -> Vec<ModelLine> {
    let mut labels: Vec<&str> = cells.iter().map(|rows| rows[0].model.as_str()).collect();
    labels.extend(run.plan.iter().flat_map(|plan| &plan.models).map(|m| m.label.as_str()));
    labels.sort_unstable();
    labels.dedup();
    labels.into_iter().map(|label| model(run, label)).collect()
}

fn model(run: &RunInput, label: &str) -> ModelLine {
    let planned = run.plan.as_ref().and_then(|plan| plan.model(label));
    let facts = run.provenance.as_ref().and_then(|p| p.models.get(label));
    let dtypes = facts.map(|f| {
        let experts = (f.expert_dtype != "none").then(|| format!("experts {}", f.expert_dtype));
        let all = [f.activation_dtype.clone()].into_iter().chain(experts).chain(f.shortcuts());
        all.collect::<Vec<_>>().join(", ")
    });
    ModelLine {
        label: clean(label),
        id: planned.map_or_else(String::new, |m| clean(&m.id)),
        architecture: facts.map_or_else(String::new, |f| clean(&f.architecture)),
        total: facts.map_or_else(String::new, |f| parameters(f.parameters)),
        active: facts.map_or_else(String::new, |f| parameters(f.active_parameters)),
        weights: facts.map_or_else(String::new, |f| bytes(f.weights_bytes)),
        dtypes: dtypes.map_or_else(String::new, |d| clean(&d)),
    }
}

fn facts(run: &RunInput) -> Vec<Fact> {
    let fact = |name, text: String| Fact { name, text: clean(&text), code: false };
    let code = |name, text: String| Fact { name, text: clean(&text), code: true };
    let mut facts = vec![code("Run", run.run_id.clone())];
    if let Some(p) = &run.provenance {
        facts.push(fact("Started", p.started_at.clone()));
        facts.push(Fact { name: "Command", text: command_line(&p.command), code: true });
    }
    facts.push(code("Plan hash", run.plan_hash.clone()));
    let Some(p) = &run.provenance else {
        facts.push(fact("Machine", run.machine.clone()));
        return facts;
    };
    facts.extend(machine(p).map(|(name, text)| fact(name, text)));
    facts.push(fact("ossbench", build(&p.build)));
    for (label, server) in &p.servers {
        let text = serde_json::to_value(server).unwrap_or_default();
        facts.push(fact("Server", format!("{label}: {}", flat(&text))));
    }
    for (label, ways) in &p.loads {
        facts.extend(ways.iter().map(|how| fact("Loaded", format!("{label}: {how}"))));
    }
    for resumed in &p.resumptions {
        facts.push(fact("Resumed", format!("{}, {}", resumed.started_at, build(&resumed.build))));
    }
    facts
}

fn machine(p: &Provenance) -> impl Iterator<Item = (&'static str, String)> {
    let m = &p.machine;
    let memory = m.memory_bytes.map_or_else(String::new, |b| format!(", {} memory", bytes(b)));
    let cpu = ("Machine", format!("{}, {}{memory}", m.cpu, count(m.cores as usize, "core")));
    let gpus = if m.gpus.is_empty() { "none found".to_owned() } else { m.gpus.join(", ") };
    let governor = m.governor.as_ref().map(|g| format!(", governor {g}")).unwrap_or_default();
    let load =
        m.load_average.map(|[one, ..]| format!(", load average {one:.2} at the start")).unwrap_or_default();
    let system = ("System", format!("{}{governor}{load}", m.kernel));
    [cpu, ("GPU", gpus), system].into_iter()
}

fn build(b: &Build) -> String {
    let commit = match (&b.commit, b.dirty) {
        (None, _) => "built outside of a checkout".to_owned(),
        (Some(commit), Some(true)) => format!("commit {} with uncommitted changes", short(commit)),
        (Some(commit), _) => format!("commit {}", short(commit)),
    };
    let kind = if b.debug { "debug build" } else { "release build" };
    format!("{}, {commit}, {kind}, {}, {}", b.version, b.rustc, b.target_triple)
}

fn short(commit: &str) -> String {
    commit.chars().take(12).collect()
}

/// The values of a JSON object that are there, in one line.
fn flat(value: &serde_json::Value) -> String {
    use serde_json::Value;
    match value {
        Value::Object(map) => {
            let known = map.iter().filter(|(_, v)| !v.is_null() && !flat(v).is_empty());
            known.map(|(k, v)| format!("{} {}", k.replace('_', " "), flat(v))).collect::<Vec<_>>().join(", ")
        }
        Value::Array(items) => items.iter().map(flat).collect::<Vec<_>>().join(", "),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Whether the run's figures are a model's at all.
pub(super) fn is_scripted(run: &RunInput) -> bool {
    let kind = run.plan.as_ref().map(|p| p.target.kind);
    matches!(kind, Some(TargetKind::Mock | TargetKind::Null))
}

/// Rows of each cell; `sorted` is what `order::sorted` gives.
pub(super) fn by_cells<'a, 'r>(sorted: &'a [&'r Row]) -> Vec<&'a [&'r Row]> {
    sorted.chunk_by(|a, b| by_cell(a, b).is_eq()).collect()
}
