//! Tiny models against what another implementation computed for them: logits, greedy ids, experts, on any device.
//!
//! Runs the checkpoints of a folder of references (tests/golden) as a server would and holds the results to the bounds
//! that the references come with. It prints nothing, and it compares what models give out, not what is inside.

mod case;
mod golden;
mod row;
mod run;

use std::path::Path;

use crate::error::Result;
use crate::model::{ActivationDtype, LoadOptions, Model};
use crate::place::Place;

pub use case::{Case, MODELS, Prompt, batch_of_two};
pub use golden::Golden;
use row::Limit;
pub use row::{Bound, Difference, Measure, Row};
pub use run::{Routing, greedy, prefill, routed_steps, steps};

const README: &str = "tests/golden, suggested tolerances";
/// Largest difference of two logits in f32.
const F32_HOST: Limit = (Measure::MaxAbs, 5e-4, README);
/// Products on tensor cores sum in another order than the reference, in groups of their own.
const F32_DEVICE: Limit = (Measure::MaxAbs, 1e-3, "the CUDA backend's own bound: f32 within 1e-3");
/// In f32 every id and every choice of experts is the reference's: its seeds leave no near tie.
const SAME: &str = "tests/golden: an f32 engine must reproduce every id and every expert choice";
/// The means of bf16 with the experts of the f32 reference.
const BF16: [Limit; 2] = [(Measure::KlMean, 0.01, README), (Measure::MeanAbs, 0.15, README)];
/// The least that the reference's own bf16 has (qwen3-tiny).
const BF16_TOP1: Limit =
    (Measure::Top1Agreement, 0.88, "tests/golden, expected distances: top-1 of bf16 from 88 %");
/// On a device sums have another order: two more of 25 positions may be near ties.
const BF16_TOP1_DEVICE: Limit = (
    Measure::Top1Agreement,
    0.8,
    "tests/golden, expected distances: top-1 of bf16 from 88 %, and two of 25 positions for another order of sums",
);
/// With experts that bf16 chose itself.
const BF16_FREE: Limit = (Measure::KlMean, 0.1, README);

/// What is run, and where.
#[derive(Debug, Clone)]
pub struct Options<'a> {
    /// Folder of checkpoints and of `goldens/`.
    pub golden: &'a Path,
    pub models: &'a [&'static str],
    pub activations: &'a [ActivationDtype],
    pub place: Place,
}

/// A model that could not be run to its end; rows before the error stand.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Failure {
    pub model: &'static str,
    pub activation_dtype: &'static str,
    pub error: String,
}

/// Everything found.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize)]
pub struct Findings {
    pub rows: Vec<Row>,
    pub failures: Vec<Failure>,
}

impl Findings {
    /// Whether every comparison was made and holds.
    pub fn hold(&self) -> bool {
        !self.rows.is_empty() && self.failures.is_empty() && self.rows.iter().all(|row| row.holds)
    }
}

/// Compares each model in each dtype; `done` gets each row as soon as it is known. A model that fails does not keep
/// the next from being compared.
///
/// # Errors
/// Files of references that are missing or broken.
pub fn compare(options: &Options<'_>, mut done: impl FnMut(&Row)) -> Result<Findings> {
    let cases = options.models.iter().map(|model| Ok((*model, Case::open(options.golden, model)?)));
    let cases: Vec<(&'static str, Case)> = cases.collect::<Result<_>>()?;
    let mut findings = Findings::default();
    for &activation in options.activations {
        for (model, case) in &cases {
            let compare = Compare { model, case, activation, place: &options.place };
            let mut add = |row: Row| {
                done(&row);
                findings.rows.push(row);
            };
            if let Err(error) = compare.all(&mut add) {
                let (activation_dtype, error) = (activation.name(), error.to_string());
                findings.failures.push(Failure { model, activation_dtype, error });
            }
        }
    }
    Ok(findings)
}

/// One model in one dtype.
struct Compare<'a> {
    model: &'static str,
    case: &'a Case,
    activation: ActivationDtype,
    place: &'a Place,
}

/// From a row without numbers, reference and result to a row with them.
type Judge<'a> = dyn Fn(Row, &[f32], &[f32]) -> Row + 'a;
type Add<'a> = &'a mut dyn FnMut(Row);

impl Compare<'_> {
    fn all(&self, add: Add<'_>) -> Result<()> {
        let model = self.build(self.activation, self.place)?;
        match self.activation {
            ActivationDtype::F32 => self.f32(&model, add),
            ActivationDtype::Bf16 => self.bf16(&model, add),
        }
    }

    fn build(&self, activation_dtype: ActivationDtype, place: &Place) -> Result<Model> {
        self.case.build(&LoadOptions { activation_dtype, place: place.clone(), ..LoadOptions::default() })
    }

    fn row(&self, prompt: &'static str, what: &'static str) -> Row {
        Row {
            model: self.model,
            activation_dtype: self.activation.name(),
            prompt,
            what,
            difference: None,
            agreement: None,
            bounds: Vec::new(),
            holds: false,
        }
    }

    fn vocab(&self) -> usize {
        self.case.config.vocab_size
    }

    fn f32(&self, model: &Model, add: Add<'_>) -> Result<()> {
        let limit = [if self.place.is_host() { F32_HOST } else { F32_DEVICE }];
        let logits =
            |row: Row, reference: &[f32], found: &[f32]| row.logits(reference, found, self.vocab(), &limit);
        for prompt in &self.case.prompts {
            let Some(expected) = &prompt.prefill else { continue };
            let Prompt { name, ids, greedy: next, .. } = prompt;
            add(logits(self.row(name, "logits.prefill"), expected, &prefill(model, ids)?));
            let found = steps(model, &[ids], &[next], ids.len())?;
            add(logits(self.row(name, "logits.steps"), &prompt.steps, &found.concat()));
            let found = greedy(model, &[ids], next.len(), ids.len())?;
            add(self.row(name, "greedy ids").equal(next, &found.concat(), SAME));
            if let Some(expected) = &prompt.routing {
                let (_, used) = routed_steps(model, ids, next, None)?;
                let (expected, used) = (experts(expected)?, experts(&used)?);
                add(self.row(name, "experts").equal(&expected, &used, SAME));
            }
        }
        self.batch(model, &logits, add)
    }

    /// Two prompts of unequal length together.
    fn batch(&self, model: &Model, logits: &Judge<'_>, add: Add<'_>) -> Result<()> {
        const NAME: &str = "batch2";
        let both = self.case.batch();
        let prompts: Vec<&[u32]> = both.iter().map(|p| p.ids.as_slice()).collect();
        let fed: Vec<&[u32]> = both.iter().map(|p| p.greedy.as_slice()).collect();
        let longest = prompts.iter().map(|p| p.len()).max().unwrap_or(1);
        let expected: Vec<f32> = both.iter().flat_map(|p| p.steps.iter().copied()).collect();
        let found = steps(model, &prompts, &fed, longest)?;
        add(logits(self.row(NAME, "logits.steps"), &expected, &found.concat()));
        let n = fed.first().map_or(0, |fed| fed.len());
        let found = greedy(model, &prompts, n, longest)?;
        add(self.row(NAME, "greedy ids").equal(&fed.concat(), &found.concat(), SAME));
        Ok(())
    }

    fn bf16(&self, model: &Model, add: Add<'_>) -> Result<()> {
        let vocab = self.vocab();
        for prompt in &self.case.prompts {
            let Prompt { name, ids, greedy, .. } = prompt;
            let own = steps(model, &[ids], &[greedy], ids.len())?.concat();
            let top1 = if self.place.is_host() { BF16_TOP1 } else { BF16_TOP1_DEVICE };
            let strict = [BF16[0], BF16[1], top1];
            if self.case.config.moe.is_none() {
                add(self.row(name, "steps / f32").logits(&prompt.steps, &own, vocab, &strict));
                add(self.row(name, "steps / bf16").logits(&prompt.bf16, &own, vocab, &BF16));
                continue;
            }
            add(self.row(name, "steps / f32, own experts").logits(&prompt.steps, &own, vocab, &[BF16_FREE]));
            let routing = self.routing(prompt)?;
            let (forced, used) = routed_steps(model, ids, greedy, Some(&routing))?;
            add(self.row(name, "experts, forced").equal(&experts(&routing)?, &experts(&used)?, FORCED));
            add(self.row(name, "steps / f32, its experts").logits(&prompt.steps, &forced, vocab, &strict));
            add(self.row(name, "steps / bf16, its experts").logits(&prompt.bf16, &forced, vocab, &BF16));
        }
        Ok(())
    }

    /// The experts of the f32 reference; where no file has them, those of this engine in f32 on the host.
    fn routing(&self, prompt: &Prompt) -> Result<Routing> {
        if let Some(routing) = &prompt.routing {
            return Ok(routing.clone());
        }
        let host = self.build(ActivationDtype::F32, &Place::Host)?;
        Ok(routed_steps(&host, &prompt.ids, &prompt.greedy, None)?.1)
    }
}

/// What a forced choice must come out as.
const FORCED: &str = "the experts that were asked for";

/// All choices one after the other.
fn experts(routing: &Routing) -> Result<Vec<u32>> {
    let mut all = Vec::new();
    for pass in routing.iter().flatten() {
        all.extend(pass.flatten_all()?.to_dtype(candle_core::DType::U32)?.to_vec1::<u32>()?);
    }
    Ok(all)
}
