//! A study fully resolved: every default explicit, the grid expanded, the order shuffled by the seed.
//!
//! `ossbench plan` prints it, the results folder stores it, and `--resume` refuses another one.

use crate::load::Load;
use crate::spec::{
    ActivationDtype, Chat, DenseDtype, ExpertDtype, ExpertMode, KvDtype, MatmulPrecision, ModelTable,
    RunSpec, TargetKind,
};
use crate::{Error, SCHEMA_VERSION};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

mod dtypes;
mod energy;
mod names;
mod server;

pub use dtypes::{Dtypes, usual_activations, usual_matmul_precision};
use dtypes::{is_default, refuse_expert_mode};
pub use energy::{EnergyPlan, PowerSource};
use names::{default_label, is_date, is_file_name, resolve_name};
pub use server::{PromptPlan, ServerPlan, TracePlan, is_secret_name};

/// How the next token is chosen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// 0 is greedy.
    pub temperature: f64,
    pub top_k: Option<u32>,
    pub top_p: Option<f64>,
}

/// One model as it is to be run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelPlan {
    /// Unique within the plan; the `model` column.
    pub label: String,
    pub id: String,
    pub layers: Option<u32>,
    /// The model's own server, before `ServerPlan::base_url`.
    pub base_url: Option<String>,
    /// Where the tokenizer of a served model is.
    pub tokenizer: Option<String>,
    pub activation_dtype: ActivationDtype,
    pub expert_dtype: ExpertDtype,
    #[serde(default, skip_serializing_if = "is_default")]
    pub expert_mode: ExpertMode,
    #[serde(default, skip_serializing_if = "is_default")]
    pub dense_dtype: DenseDtype,
    #[serde(default, skip_serializing_if = "is_default")]
    pub matmul_precision: MatmulPrecision,
    /// `None`: that of the activations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_dtype: Option<KvDtype>,
    pub sampling: Sampling,
    /// Whose sizes a served model has.
    pub shape: Option<String>,
    /// lm-eval's JSON with its accuracy.
    pub accuracy: Option<String>,
    /// Cells beyond it are refused.
    pub max_context_tokens: Option<u32>,
}

/// The target with every setting.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TargetPlan {
    pub kind: TargetKind,
    pub device: String,
    pub activation_dtype: ActivationDtype,
    pub expert_dtype: ExpertDtype,
    #[serde(default, skip_serializing_if = "is_default")]
    pub expert_mode: ExpertMode,
    #[serde(default, skip_serializing_if = "is_default")]
    pub dense_dtype: DenseDtype,
    #[serde(default, skip_serializing_if = "is_default")]
    pub matmul_precision: MatmulPrecision,
    /// `None`: that of the activations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_dtype: Option<KvDtype>,
    /// `None`: all cores.
    pub threads: Option<u32>,
    /// Each compute thread on a core of its own.
    #[serde(default, skip_serializing_if = "is_default")]
    pub pin_threads: bool,
    pub prefill_chunk: u32,
    pub chat: Chat,
    pub date: String,
    pub sampling: Sampling,
    pub mock: Option<MockPlan>,
}

/// Script of the mock target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MockPlan {
    pub ttft_us: u64,
    pub gap_us: u64,
    pub tokens_per_chunk: u32,
}

/// Limits that a request must meet to count as good; at least one is set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Slo {
    pub ttft_ms: Option<f64>,
    pub tpot_ms: Option<f64>,
    pub e2el_ms: Option<f64>,
}

/// One point of the grid.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// Readable and unique: `gpt-oss-nano_p128_n32_b1`, `.._c64` in a closed loop; a folder name.
    pub id: String,
    pub model: String,
    /// The mean where lengths differ from request to request.
    pub prompt_tokens: u32,
    pub output_tokens: u32,
    /// Requests that run together in-process; 1 with a server.
    pub batch: u32,
    pub load: Load,
    /// Repeats over all rounds: batches in-process, requests (or conversations) with a server.
    pub repeats: u32,
    /// Requests of one repeat: the batch in-process, the turns of a conversation with a server.
    pub requests_per_repeat: u32,
}

impl Cell {
    /// Measured requests over all rounds.
    pub fn requests(&self) -> u32 {
        self.repeats.saturating_mul(self.requests_per_repeat)
    }
}

/// Repeats `first_repeat .. first_repeat + repeats` of one cell, run without a break after their warm-up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trial {
    /// Position in the run's order.
    pub index: u32,
    pub cell: String,
    pub round: u32,
    pub first_repeat: u32,
    pub repeats: u32,
}

/// A point of the grid that is not run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    pub cell: String,
    pub reason: String,
}

/// A resolved study.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    pub schema_version: u32,
    pub name: String,
    pub seed: u64,
    pub repeats: u32,
    pub rounds: u32,
    pub warmup: u32,
    /// Each trial in a process of its own.
    pub isolate: bool,
    pub target: TargetPlan,
    /// `None` unless the target is a server.
    pub server: Option<ServerPlan>,
    /// `None`: no goodput.
    pub slo: Option<Slo>,
    pub energy: EnergyPlan,
    /// Bytes per second for the roofline; `None`: measured.
    pub bandwidth_bytes_s: Option<f64>,
    pub models: Vec<ModelPlan>,
    pub cells: Vec<Cell>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<Refused>,
    /// In the order in which they run.
    pub trials: Vec<Trial>,
}

/// Each use of randomness has its own seed, so that a change of one leaves the others alone.
pub fn derive_seed(seed: u64, purpose: &str) -> u64 {
    let mut hasher = Sha256::new();
    hasher.update(seed.to_le_bytes());
    hasher.update(purpose.as_bytes());
    let digest = hasher.finalize();
    u64::from_le_bytes(std::array::from_fn(|i| digest[i]))
}

/// First 16 hex digits of the SHA-256 of `bytes`.
pub fn short_hash(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    let first: [u8; 8] = std::array::from_fn(|i| digest[i]);
    format!("{:016x}", u64::from_be_bytes(first))
}

impl RunSpec {
    /// Fills every default and expands the grid.
    pub fn resolve(&self) -> Result<Plan, Error> {
        let run = &self.run;
        let repeats = at_least_one("run.repeats", run.repeats.unwrap_or(20))?;
        let target = self.resolve_target()?;
        let usual = if target.kind == TargetKind::Http { 1 } else { 2 };
        let rounds = at_least_one("run.rounds", run.rounds.unwrap_or(usual.min(repeats)))?;
        if rounds > repeats {
            return Err(value("run.rounds", rounds, format!("at most run.repeats, which is {repeats}")));
        }
        let seed = run.seed.unwrap_or(42);
        let models = resolve_models(&self.models, &target)?;
        let loads = server::loads(self, target.kind, repeats)?;
        let (refused, cells) = refuse(self.expand(&models, &loads)?, &models)?;
        Ok(Plan {
            schema_version: SCHEMA_VERSION,
            name: resolve_name(run.name.as_deref())?,
            seed,
            repeats,
            rounds,
            warmup: run.warmup.unwrap_or(2),
            isolate: resolve_isolate(run.isolate, target.kind)?,
            energy: energy::resolve(self, target.kind)?,
            bandwidth_bytes_s: energy::bandwidth(self)?,
            server: server::resolve(self, target.kind)?,
            target,
            slo: self.resolve_slo()?,
            trials: order(&models, &cells, seed, rounds),
            models,
            cells,
            refused,
        })
    }

    fn resolve_target(&self) -> Result<TargetPlan, Error> {
        let (t, w) = (&self.target, &self.workload);
        let kind = t.kind.unwrap_or(TargetKind::Engine);
        let date = w.date.clone().unwrap_or_else(|| "2025-06-28".to_owned());
        if !is_date(&date) {
            return Err(value("workload.date", date, "a date as YYYY-MM-DD".to_owned()));
        }
        if kind != TargetKind::Mock && self.mock.is_some() {
            return Err(value(
                "mock",
                "{..}",
                "only with target.kind = \"mock\"; remove the table".to_owned(),
            ));
        }
        if let Some(threads) = t.threads {
            at_least_one("target.threads", threads)?;
        }
        refuse_expert_mode(self, kind)?;
        let mock = self.mock.clone().unwrap_or_default();
        let device = t.device.clone().unwrap_or_else(|| "cpu".to_owned());
        Ok(TargetPlan {
            kind,
            activation_dtype: t.activation_dtype.unwrap_or(usual_activations(kind, &device)),
            expert_dtype: t.expert_dtype.unwrap_or(ExpertDtype::Native),
            expert_mode: t.expert_mode.unwrap_or_default(),
            dense_dtype: t.dense_dtype.unwrap_or_default(),
            matmul_precision: t.matmul_precision.unwrap_or(usual_matmul_precision(kind, &device)),
            kv_dtype: t.kv_dtype,
            device,
            threads: t.threads,
            pin_threads: t.pin_threads.unwrap_or(false),
            prefill_chunk: at_least_one("target.prefill_chunk", t.prefill_chunk.unwrap_or(512))?,
            chat: w.chat.unwrap_or(Chat::Auto),
            date,
            sampling: self.resolve_sampling()?,
            mock: (kind == TargetKind::Mock).then(|| MockPlan {
                ttft_us: mock.ttft_us.unwrap_or(50_000),
                gap_us: mock.gap_us.unwrap_or(10_000),
                tokens_per_chunk: mock.tokens_per_chunk.unwrap_or(1).max(1),
            }),
        })
    }

    fn resolve_slo(&self) -> Result<Option<Slo>, Error> {
        let Some(slo) = &self.slo else { return Ok(None) };
        let limits =
            [("slo.ttft_ms", slo.ttft_ms), ("slo.tpot_ms", slo.tpot_ms), ("slo.e2el_ms", slo.e2el_ms)];
        if limits.iter().all(|(_, limit)| limit.is_none()) {
            return Err(value("slo", "{}", "at least one limit; or remove the table".to_owned()));
        }
        for (key, limit) in limits {
            if let Some(limit) = limit.filter(|l| !(l.is_finite() && *l > 0.0)) {
                return Err(value(key, limit, "a number of milliseconds above 0".to_owned()));
            }
        }
        Ok(Some(Slo { ttft_ms: slo.ttft_ms, tpot_ms: slo.tpot_ms, e2el_ms: slo.e2el_ms }))
    }

    fn resolve_sampling(&self) -> Result<Sampling, Error> {
        let w = &self.workload;
        let keys = ["workload.temperature", "workload.top_k", "workload.top_p"];
        sampling(keys, w.temperature.unwrap_or(0.0), w.top_k, w.top_p)
    }

    fn expand(&self, models: &[ModelPlan], loads: &[(Load, u32)]) -> Result<Vec<Cell>, Error> {
        let w = &self.workload;
        let turns = w.turns.unwrap_or(1);
        if w.batch.is_some() && loads.iter().any(|(load, _)| *load != Load::Batch) {
            let expected = "only in-process; with a server use load.concurrency".to_owned();
            return Err(value("workload.batch", "..", expected));
        }
        let prompts = axis("workload.prompt_tokens", w.prompt_tokens.as_deref(), &[128])?;
        let outputs = axis("workload.output_tokens", w.output_tokens.as_deref(), &[32])?;
        let batches = axis("workload.batch", w.batch.as_deref(), &[1])?;
        let mut cells = Vec::new();
        for model in models {
            for &prompt_tokens in &prompts {
                for &output_tokens in &outputs {
                    for &batch in &batches {
                        cells.extend(loads.iter().map(|(load, number)| {
                            let label = &model.label;
                            let end = load.suffix(batch);
                            let per_repeat = if *load == Load::Batch { batch } else { turns };
                            let repeats = if *load == Load::Batch { *number } else { number / turns };
                            Cell {
                                id: format!("{label}_p{prompt_tokens}_n{output_tokens}_{end}"),
                                model: label.clone(),
                                prompt_tokens,
                                output_tokens,
                                batch,
                                load: load.clone(),
                                repeats,
                                requests_per_repeat: per_repeat,
                            }
                        }));
                    }
                }
            }
        }
        Ok(cells)
    }
}

impl Plan {
    /// SHA-256 over the plan as JSON: equal hashes mean equal runs.
    pub fn hash(&self) -> String {
        // A plan holds strings, numbers and lists only: it always has a JSON form.
        short_hash(serde_json::to_string(self).unwrap_or_default().as_bytes())
    }

    pub fn cell(&self, id: &str) -> Option<&Cell> {
        self.cells.iter().find(|c| c.id == id)
    }

    pub fn model(&self, label: &str) -> Option<&ModelPlan> {
        self.models.iter().find(|m| m.label == label)
    }
}

/// Takes out the cells that are beyond their model's largest context.
fn refuse(cells: Vec<Cell>, models: &[ModelPlan]) -> Result<(Vec<Refused>, Vec<Cell>), Error> {
    let mut refused = Vec::new();
    let mut kept = Vec::new();
    for cell in cells {
        let wanted = u64::from(cell.prompt_tokens) + u64::from(cell.output_tokens);
        let limit = models.iter().find(|m| m.label == cell.model).and_then(|m| m.max_context_tokens);
        match limit.filter(|limit| wanted > u64::from(*limit)) {
            Some(limit) => refused.push(Refused {
                reason: format!(
                    "{wanted} prompt and output tokens, and models.max_context_tokens is {limit}"
                ),
                cell: cell.id,
            }),
            None => kept.push(cell),
        }
    }
    if kept.is_empty()
        && let Some(first) = refused.first()
    {
        let expected = format!("no cell is left: cell {} has {}", first.cell, first.reason);
        return Err(value("models.max_context_tokens", "..", expected));
    }
    Ok((refused, kept))
}

/// Rounds one after another; within a round models in random order and each model's cells in random order,
/// so that a model is loaded once per round at most.
fn order(models: &[ModelPlan], cells: &[Cell], seed: u64, rounds: u32) -> Vec<Trial> {
    let mut rng = ChaCha8Rng::seed_from_u64(derive_seed(seed, "order"));
    let mut trials = Vec::with_capacity(cells.len() * rounds as usize);
    for round in 0..rounds {
        let mut models: Vec<_> = models.iter().collect();
        models.shuffle(&mut rng);
        for model in models {
            let mut own: Vec<_> = cells.iter().filter(|c| c.model == model.label).collect();
            own.shuffle(&mut rng);
            for cell in own {
                let first_repeat = share(cell.repeats, rounds, round);
                let count = share(cell.repeats, rounds, round + 1) - first_repeat;
                let index = trials.len() as u32;
                trials.push(Trial { index, cell: cell.id.clone(), round, first_repeat, repeats: count });
            }
        }
    }
    trials
}

/// First of `total` that belongs to part `part` of `parts`.
fn share(total: u32, parts: u32, part: u32) -> u32 {
    (u64::from(total) * u64::from(part) / u64::from(parts)) as u32
}

fn sampling(
    [temperature_key, top_k_key, top_p_key]: [&'static str; 3],
    temperature: f64,
    top_k: Option<u32>,
    top_p: Option<f64>,
) -> Result<Sampling, Error> {
    if !(temperature.is_finite() && temperature >= 0.0) {
        return Err(value(temperature_key, temperature, "a number of at least 0".to_owned()));
    }
    if let Some(p) = top_p.filter(|p| !(*p > 0.0 && *p <= 1.0)) {
        return Err(value(top_p_key, p, "in (0, 1]".to_owned()));
    }
    if let Some(k) = top_k {
        at_least_one(top_k_key, k)?;
    }
    Ok(Sampling { temperature, top_k, top_p })
}

fn resolve_isolate(isolate: Option<bool>, kind: TargetKind) -> Result<bool, Error> {
    match isolate {
        Some(true) if kind != TargetKind::Engine => {
            let expected = "only with target.kind = \"engine\": nothing else has memory of its own here";
            Err(value("run.isolate", true, expected.to_owned()))
        }
        isolate => Ok(isolate.unwrap_or(false)),
    }
}

fn resolve_models(models: &[ModelTable], target: &TargetPlan) -> Result<Vec<ModelPlan>, Error> {
    if models.is_empty() {
        let expected = "at least one [[models]] table with an `id`, e.g. \"dummy:gpt-oss-nano\"".to_owned();
        return Err(value("models", "[]", expected));
    }
    let mut plans: Vec<ModelPlan> = Vec::new();
    for model in models {
        let expert_mode = model.expert_mode.unwrap_or(target.expert_mode);
        let label = model.label.clone().unwrap_or_else(|| default_label(&model.id, expert_mode));
        if !is_file_name(&label) {
            let expected = "letters, digits, `.`, `-`, at most 64; it becomes a folder name".to_owned();
            return Err(value("models.label", label, expected));
        }
        if plans.iter().any(|m| m.label == label) {
            return Err(value("models.label", label, "unique; give one of them another `label`".to_owned()));
        }
        if let Some(layers) = model.layers {
            at_least_one("models.layers", layers)?;
        }
        plans.push(ModelPlan {
            label,
            id: model.id.clone(),
            layers: model.layers,
            base_url: model.base_url.clone(),
            tokenizer: model.tokenizer.clone(),
            activation_dtype: model.activation_dtype.unwrap_or(target.activation_dtype),
            expert_dtype: model.expert_dtype.unwrap_or(target.expert_dtype),
            expert_mode,
            dense_dtype: model.dense_dtype.unwrap_or(target.dense_dtype),
            matmul_precision: model.matmul_precision.unwrap_or(target.matmul_precision),
            kv_dtype: model.kv_dtype.or(target.kv_dtype),
            sampling: sampling(
                ["models.temperature", "models.top_k", "models.top_p"],
                model.temperature.unwrap_or(target.sampling.temperature),
                model.top_k.or(target.sampling.top_k),
                model.top_p.or(target.sampling.top_p),
            )?,
            shape: model.shape.clone(),
            accuracy: model.accuracy.clone(),
            max_context_tokens: model.max_context_tokens,
        });
    }
    Ok(plans)
}

fn axis(key: &'static str, written: Option<&[u32]>, default: &[u32]) -> Result<Vec<u32>, Error> {
    let values = written.unwrap_or(default).to_vec();
    if values.is_empty() {
        return Err(value(key, "[]", "at least one number".to_owned()));
    }
    for (i, &v) in values.iter().enumerate() {
        at_least_one(key, v)?;
        if values[..i].contains(&v) {
            return Err(value(
                key,
                format!("{values:?}"),
                format!("each number once; {v} stands there twice"),
            ));
        }
    }
    Ok(values)
}

fn at_least_one(key: &'static str, number: u32) -> Result<u32, Error> {
    if number == 0 { Err(value(key, number, "at least 1".to_owned())) } else { Ok(number) }
}

fn value(key: &'static str, value: impl std::fmt::Display, expected: String) -> Error {
    Error::Value { key, value: value.to_string(), expected }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::collections::HashSet;

    fn plan(text: &str) -> Result<Plan, Error> {
        RunSpec::from_toml("t", text)?.resolve()
    }

    const TWO: &str = "[[models]]\nid = \"dummy:a\"\n[[models]]\nid = \"org/b\"\n";

    #[test]
    fn grid_is_expanded_and_shuffled_by_the_seed() {
        let text = format!("{TWO}[workload]\nprompt_tokens = [1, 2, 3]\noutput_tokens = [4, 5]\n");
        let one = plan(&text).unwrap();
        assert_eq!((one.cells.len(), one.trials.len()), (12, 24));
        let per_round: HashSet<_> = one.trials.iter().map(|t| (t.round, t.cell.clone())).collect();
        assert_eq!(per_round.len(), 24);
        for cell in &one.cells {
            let of_cell: Vec<_> = one.trials.iter().filter(|t| t.cell == cell.id).collect();
            assert_eq!(of_cell.iter().map(|t| t.repeats).sum::<u32>(), 20);
        }
        assert_eq!(one, plan(&text).unwrap());
        let other = plan(&format!("[run]\nseed = 7\n{text}")).unwrap();
        assert_ne!(one.trials, other.trials);
        assert_ne!(one.hash(), other.hash());
    }

    #[test]
    fn what_cannot_be_planned_is_refused_with_the_key() {
        for (text, key) in [
            ("", "models"),
            ("[run]\nrepeats = 0\n[[models]]\nid = \"a\"", "run.repeats"),
            ("[run]\nrepeats = 2\nrounds = 3\n[[models]]\nid = \"a\"", "run.rounds"),
            ("[[models]]\nid = \"a\"\n[[models]]\nid = \"x/a\"", "models.label"),
            ("[[models]]\nid = \"a\"\n[workload]\nprompt_tokens = [1, 1]", "workload.prompt_tokens"),
            ("[[models]]\nid = \"a\"\n[workload]\ntop_p = 1.5", "workload.top_p"),
            ("[[models]]\nid = \"a\"\n[workload]\ndate = \"today\"", "workload.date"),
            ("[run]\nname = \"../x\"\n[[models]]\nid = \"a\"", "run.name"),
            ("[[models]]\nid = \"a\"\n[mock]\nttft_us = 1", "mock"),
            ("[[models]]\nid = \"a\"\n[slo]\n", "slo"),
            ("[[models]]\nid = \"a\"\n[slo]\ntpot_ms = 0.0", "slo.tpot_ms"),
        ] {
            let error = plan(text).unwrap_err().to_string();
            assert!(error.starts_with(&format!("`{key}`")), "{text}: {error}");
        }
    }

    #[test]
    fn what_is_beyond_a_models_context_is_left_out_and_listed() {
        let text = format!("{TWO}max_context_tokens = 40\n[workload]\nprompt_tokens = [8, 16]\n");
        let plan = plan(&text).unwrap();
        let ids: Vec<_> = plan.cells.iter().map(|c| c.id.as_str()).collect();
        assert_eq!(ids, ["a_p8_n32_b1", "a_p16_n32_b1", "b_p8_n32_b1"]);
        let refused = &plan.refused[0];
        assert_eq!((plan.refused.len(), refused.cell.as_str()), (1, "b_p16_n32_b1"));
        assert!(refused.reason.starts_with("48 prompt and output tokens"), "{}", refused.reason);
        let none = self::plan("[[models]]\nid = \"a\"\nmax_context_tokens = 9\n").unwrap_err().to_string();
        assert!(none.starts_with("`models.max_context_tokens`"), "{none}");
    }

    fn served(rest: &str) -> Result<Plan, Error> {
        plan(&format!(
            "[[models]]\nid = \"a\"\n[target]\nkind = \"http\"\n[server]\nbase_url = \"http://h:1\"\n{rest}"
        ))
    }

    #[test]
    fn a_load_makes_one_cell_for_each_level() {
        let cells = |rest: &str| {
            let plan = served(rest).unwrap();
            let of = |c: &Cell| format!("{} {} {}", c.id, c.load.key(), c.requests());
            plan.cells.iter().map(of).collect::<Vec<_>>()
        };
        for (rest, expected) in [
            ("", vec!["a_p128_n32_c1 closed 20"]),
            ("[load]\nconcurrency = [1, 64]", vec!["a_p128_n32_c1 closed 20", "a_p128_n32_c64 closed 1280"]),
            ("[load]\nconcurrency = [8]\nrequests = 50", vec!["a_p128_n32_c8 closed 50"]),
            (
                "[load]\narrival = \"poisson\"\nrate = [2.5]\nduration_s = 4.0",
                vec!["a_p128_n32_r2.5 poisson 10"],
            ),
            (
                "[load]\narrival = \"gamma\"\nrate = [2.0]\nburstiness = 0.5\nmax_concurrency = 9",
                vec!["a_p128_n32_r2 gamma(0.5) 40"],
            ),
            (
                "[load]\narrival = \"ramp\"\nrate = [1.0]\nramp_to = 9.0\nrequests = 7",
                vec!["a_p128_n32_r1to9 ramp(1..9) 7"],
            ),
            ("[load]\narrival = \"burst\"", vec!["a_p128_n32_burst burst 20"]),
            (
                "[load]\nconcurrency = [2]\nrequests = 10\n[workload]\nturns = 4",
                vec!["a_p128_n32_c2 closed 12"],
            ),
        ] {
            assert_eq!(cells(rest), expected, "{rest}");
        }
        let plan = served("[load]\nconcurrency = [2]\nrequests = 10\n[workload]\nturns = 4").unwrap();
        assert_eq!((plan.cells[0].repeats, plan.rounds, plan.trials.len()), (3, 1, 1));
    }

    #[test]
    fn what_a_server_cannot_do_is_refused_with_the_key() {
        for (rest, key) in [
            ("[load]\nrate = [1.0]", "load.rate"),
            ("[load]\narrival = \"poisson\"", "load.rate"),
            ("[load]\narrival = \"poisson\"\nrate = [0.0]", "load.rate"),
            ("[load]\narrival = \"poisson\"\nrate = [1.0]\nconcurrency = [3]", "load.concurrency"),
            ("[load]\narrival = \"constant\"\nrate = [1.0]\nburstiness = 2.0", "load.burstiness"),
            ("[load]\narrival = \"ramp\"\nrate = [1.0]", "load.ramp_to"),
            ("[load]\narrival = \"replay\"", "load.trace"),
            ("[load]\nduration_s = 3.0", "load.duration_s"),
            ("[workload]\nbatch = [2]", "workload.batch"),
            ("[workload]\ndataset = \"custom\"", "workload.dataset_path"),
            ("[workload]\nlength_range = 1.0", "workload.length_range"),
            ("headers = { Authorization = \"Bearer x\" }", "server.headers"),
            ("connect_timeout_s = 0.0", "server.connect_timeout_s"),
        ] {
            let error = served(rest).unwrap_err().to_string();
            assert!(error.starts_with(&format!("`{key}`")), "{rest}: {error}");
        }
        for url in ["http://me:pw@h:1", "https://pw@h/v1"] {
            let text = format!("[[models]]\nid = \"a\"\nbase_url = \"{url}\"\n[target]\nkind = \"http\"");
            let error = plan(&text).unwrap_err().to_string();
            assert!(error.starts_with("`server.base_url`") && !error.contains("pw"), "{error}");
        }
        let error = plan("[[models]]\nid = \"a\"\n[target]\nkind = \"http\"").unwrap_err().to_string();
        assert!(error.starts_with("`server.base_url`"), "{error}");
        let error = plan("[[models]]\nid = \"a\"\n[load]\nconcurrency = [2]").unwrap_err().to_string();
        assert!(error.starts_with("`load`") && error.contains("http"), "{error}");
    }

    #[test]
    fn defaults_are_those_of_the_reference() {
        let plan = plan("[[models]]\nid = \"a\"\n[target]\nkind = \"mock\"").unwrap();
        let json = serde_json::to_value(&plan).unwrap();
        let http = self::plan(
            "[[models]]\nid = \"a\"\n[target]\nkind = \"http\"\n[server]\nbase_url = \"http://h\"",
        );
        let http = serde_json::to_value(http.unwrap()).unwrap();
        for crate::spec::Key(table, key, _, default, _) in crate::spec::KEYS {
            let found = match (*table, *key) {
                ("models" | "slo" | "load", _)
                | (_, "kind" | "prompt_tokens" | "output_tokens" | "batch" | "base_url") => continue,
                ("run", key) => json[key].clone(),
                ("mock", key) => json["target"]["mock"][key].clone(),
                ("server", key) => http["server"][key].clone(),
                ("energy", "source") => json!(http["energy"]["source"]["kind"]),
                ("energy", key) => http["energy"][key].clone(),
                ("ape", _) => json["bandwidth_bytes_s"].clone(),
                ("workload", key) if http["server"]["prompts"].get(key).is_some() => {
                    http["server"]["prompts"][key].clone()
                }
                (_, key @ ("temperature" | "top_k" | "top_p")) => json["target"]["sampling"][key].clone(),
                // Not written where it is the default; the mock multiplies nothing.
                (_, "dense_dtype") => json!(plan.target.dense_dtype),
                (_, "expert_mode") => json!(plan.target.expert_mode),
                (_, "matmul_precision") => json!(usual_matmul_precision(TargetKind::Engine, "cpu")),
                (_, "pin_threads") => json!(plan.target.pin_threads),
                (_, key) => json["target"][key].clone(),
            };
            let expected = if *default == "-" { "null" } else { default };
            assert_eq!(found.to_string(), expected, "{table}.{key}");
        }
        assert_eq!(plan.target.kind, TargetKind::Mock);
        let cell = &plan.cells[0];
        assert_eq!((cell.prompt_tokens, cell.output_tokens, cell.batch), (128, 32, 1));
        assert_eq!((&cell.load, cell.requests()), (&Load::Batch, 20));
    }
}
