//! `ossbench fidelity`: how far faster arithmetic is from f32 on one text, and whether that is within its bound.
//!
//! One model is in memory at a time: the reference leaves its logits, then each choice is loaded anew. What a
//! distance is stands in `bench_engine::fidelity`.

use super::model::{load_options_of, open_options, say, weights_seed};
use crate::args::{FidelityArgs, Gate};
use crate::progress::Waiting;
use crate::{CliError, Io};
use bench_core::plan::{Dtypes, derive_seed};
use bench_core::spec::{DenseDtype, ExpertMode, KvDtype, MatmulPrecision};
use bench_engine::fidelity::{Distance, Reference, Routing};
use bench_engine::session::{self, OpenOptions};
use bench_engine::source::ModelRef;
use bench_engine::text::{ChatFormat, PromptBuilder, Split};
use bench_engine::{LoadOptions, Model, heap};
use serde::Serialize;
use std::io::Write;

/// Largest mean divergence, nats: of what keeps at least 8 bits, and of 6-bit weights.
const KL_BOUND: f64 = 0.002;
const KL_BOUND_Q6: f64 = 0.005;
/// Least share of positions whose likeliest token stays.
const TOP1_BOUND: f64 = 0.99;

/// Everything that was found out.
#[derive(Serialize)]
struct Fidelity {
    model: String,
    layers: usize,
    positions: usize,
    seed: u64,
    kernels: &'static str,
    choices: Vec<Choice>,
}

/// One way to compute, against f32.
#[derive(Serialize)]
struct Choice {
    activation_dtype: &'static str,
    expert_dtype: &'static str,
    expert_mode: &'static str,
    dense_dtype: &'static str,
    matmul_precision: &'static str,
    kv_dtype: &'static str,
    weights_bytes: u64,
    kl_bound: f64,
    top1_bound: f64,
    /// Forced first; models without experts have only free ones.
    comparisons: Vec<Comparison>,
}

#[derive(Serialize)]
struct Comparison {
    routing: Routing,
    #[serde(flatten)]
    distance: Distance,
    /// Within both bounds.
    holds: bool,
}

pub(crate) fn run(args: &FidelityArgs, io: &mut Io<'_>) -> Result<(), CliError> {
    let ids = ids(args)?;
    let exact = Dtypes { expert: args.engine.dtypes().expert, ..Dtypes::default() };
    let model = open(args, exact, "f32, the reference", io)?;
    let layers = model.config().num_hidden_layers;
    let has_experts = model.config().moe.is_some();
    let asked = bench_runner::shape::load_options(args.engine.dtypes(), None);
    asked.expert_mode.check(model.config())?;
    let mut waiting = Waiting::new("running the reference", io.err);
    waiting.set(0, ids.len() as u64, "tokens");
    let reference = Reference::compute(&model, &ids, args.chunk as usize)?;
    drop(waiting);
    drop(model);
    heap::trim();
    let mut choices = Vec::new();
    for dtypes in wanted(args) {
        choices.push(choice(args, dtypes, has_experts, &reference, io)?);
        heap::trim();
    }
    let fidelity = Fidelity {
        model: args.model.clone(),
        layers,
        positions: ids.len(),
        seed: args.seed,
        kernels: bench_engine::system::kernel_variant(),
        choices,
    };
    if args.json {
        let json = serde_json::to_string_pretty(&fidelity).map_err(|e| CliError::Failed(e.to_string()))?;
        writeln!(io.out, "{json}")?;
    } else {
        print(&fidelity, io.out)?;
    }
    args.gate.map_or(Ok(()), |gate| check(&fidelity, gate))
}

/// A text of the measured prompts' kind, of as many tokens as positions.
fn ids(args: &FidelityArgs) -> Result<Vec<u32>, CliError> {
    let tokenizer = session::open_tokenizer(&ModelRef::parse(&args.model)?)?;
    let seed = derive_seed(args.seed, "prompts");
    let prompts = PromptBuilder::new(&tokenizer, &ChatFormat::Plain, seed, Split::Measured);
    let prompt = prompts.and_then(|p| p.build(0, args.positions as usize));
    Ok(prompt.map_err(bench_engine::Error::from)?.ids)
}

/// The choice of the flags, or all that there are: of weights and products together, of cache and activations each
/// alone.
fn wanted(args: &FidelityArgs) -> Vec<Dtypes> {
    if !args.all {
        return vec![args.engine.dtypes()];
    }
    let exact = Dtypes { expert: args.engine.dtypes().expert, ..Dtypes::default() };
    let mut all = Vec::new();
    for dense in [DenseDtype::Native, DenseDtype::Q8_0, DenseDtype::Q6_0] {
        for matmul in [MatmulPrecision::F32, MatmulPrecision::Int16, MatmulPrecision::Int8] {
            all.push(Dtypes { dense, matmul, ..exact });
        }
    }
    // The first is the reference.
    all.remove(0);
    all.extend([KvDtype::Bf16, KvDtype::Q8_0].map(|kv| Dtypes { kv: Some(kv), ..exact }));
    all.push(Dtypes { activation: bench_core::spec::ActivationDtype::Bf16, ..exact });
    all
}

fn open(args: &FidelityArgs, dtypes: Dtypes, what: &str, io: &mut Io<'_>) -> Result<Model, CliError> {
    let options = options(args, load_options_of(&args.engine, dtypes)?);
    let mut bar = Waiting::new(&format!("loading {} in {what}", args.model), io.err);
    let model = session::open_model(&args.model, &options, &mut |p| bar.set(p.done, p.total, p.unit))?;
    drop(bar);
    say(&model, &options.load.place, io)?;
    Ok(model)
}

fn options(args: &FidelityArgs, load: LoadOptions) -> OpenOptions {
    OpenOptions {
        seed: weights_seed(args.seed),
        prefill_chunk: args.chunk as usize,
        ..open_options(load, args.seed, args.positions as usize)
    }
}

fn choice(
    args: &FidelityArgs,
    dtypes: Dtypes,
    has_experts: bool,
    reference: &Reference,
    io: &mut Io<'_>,
) -> Result<Choice, CliError> {
    let load = bench_runner::shape::load_options(dtypes, args.engine.layers);
    let kl_bound = if dtypes.dense == DenseDtype::Q6_0 { KL_BOUND_Q6 } else { KL_BOUND };
    let mut choice = Choice {
        activation_dtype: load.activation_dtype.name(),
        expert_dtype: load.expert_dtype.name(),
        expert_mode: load.expert_mode.name(),
        dense_dtype: load.dense_dtype.name(),
        matmul_precision: load.matmul_precision.name(),
        kv_dtype: load.kv().name(),
        weights_bytes: 0,
        kl_bound,
        top1_bound: TOP1_BOUND,
        comparisons: Vec::new(),
    };
    let model = open(args, dtypes, &choice.name(), io)?;
    choice.weights_bytes = model.weights_bytes();
    let routings: &[Routing] = if has_experts { &[Routing::Forced, Routing::Free] } else { &[Routing::Free] };
    for &routing in routings {
        let waiting = Waiting::new(&format!("running {}, {}", choice.name(), word(routing)), io.err);
        let distance = reference.distance(&model, routing)?;
        drop(waiting);
        let holds = distance.kl_mean <= kl_bound && distance.top1_agreement >= TOP1_BOUND;
        choice.comparisons.push(Comparison { routing, distance, holds });
    }
    Ok(choice)
}

impl Choice {
    fn name(&self) -> String {
        let Self { activation_dtype, dense_dtype, matmul_precision, kv_dtype, .. } = self;
        let all = if self.expert_mode == ExpertMode::DenseAll.key() { ", all experts computed" } else { "" };
        format!(
            "dense {dense_dtype}, products {matmul_precision}, KV {kv_dtype}, activations {activation_dtype}{all}"
        )
    }
}

fn word(routing: Routing) -> &'static str {
    match routing {
        Routing::Free => "free",
        Routing::Forced => "forced",
    }
}

fn print(fidelity: &Fidelity, out: &mut dyn Write) -> Result<(), CliError> {
    let Fidelity { model, layers, positions, seed, kernels, choices } = fidelity;
    writeln!(out, "{model}, {layers} layers, {positions} positions, seed {seed}, kernels {kernels}")?;
    writeln!(
        out,
        "against dense bf16, products f32, KV f32, activations f32; top-1 is to be at least {} %\n",
        100.0 * TOP1_BOUND
    )?;
    writeln!(
        out,
        "{:<6} {:<8} {:<5} {:<11} {:<7} {:>10} {:>10} {:>7} {:>8} {:>11} {:>14}  holds",
        "dense",
        "products",
        "KV",
        "activations",
        "routing",
        "mean KL",
        "max KL",
        "bound",
        "top-1 %",
        "logits %",
        "other experts %"
    )?;
    for choice in choices {
        for Comparison { routing, distance: d, holds } in &choice.comparisons {
            let percent = |share: Option<f64>| share.map_or("-".to_owned(), |s| format!("{:.3}", 100.0 * s));
            writeln!(
                out,
                "{:<6} {:<8} {:<5} {:<11} {:<7} {:>10.3e} {:>10.3e} {:>7} {:>8.2} {:>11} {:>15}  {}",
                choice.dense_dtype,
                choice.matmul_precision,
                choice.kv_dtype,
                choice.activation_dtype,
                word(*routing),
                d.kl_mean,
                d.kl_max,
                choice.kl_bound,
                100.0 * d.top1_agreement,
                percent(d.logit_difference),
                percent(d.other_experts),
                if *holds { "yes" } else { "no" }
            )?;
        }
    }
    writeln!(
        out,
        "\nKL in nats; logits: mean difference over their standard deviation; forced: the experts that the \
         reference chose"
    )?;
    Ok(())
}

/// # Errors
/// A gate that fails, with what is beyond its bound.
fn check(fidelity: &Fidelity, gate: Gate) -> Result<(), CliError> {
    let looked_at = |choice: &Choice, routing: Routing| match gate {
        Gate::Any => true,
        // Without experts there is one way only.
        Gate::Forced => routing == Routing::Forced || choice.comparisons.len() == 1,
        Gate::Free => routing == Routing::Free,
    };
    let beyond: Vec<String> = fidelity
        .choices
        .iter()
        .flat_map(|choice| choice.comparisons.iter().map(move |comparison| (choice, comparison)))
        .filter(|(choice, comparison)| !comparison.holds && looked_at(choice, comparison.routing))
        .map(|(choice, Comparison { routing, distance, .. })| {
            format!(
                "{} ({} routing): mean KL {:.2e} (bound {}), top-1 {:.2} % (bound {} %)",
                choice.name(),
                word(*routing),
                distance.kl_mean,
                choice.kl_bound,
                100.0 * distance.top1_agreement,
                100.0 * TOP1_BOUND
            )
        })
        .collect();
    if beyond.is_empty() {
        return Ok(());
    }
    Err(CliError::Gate(format!("beyond its bound: {}", beyond.join("; "))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command};
    use clap::Parser;

    fn parsed(flags: &str) -> Result<FidelityArgs, clap::Error> {
        let line = format!("ossbench fidelity -m a {flags}");
        let Command::Fidelity(args) = Cli::try_parse_from(line.split_whitespace())?.command else {
            panic!("fidelity")
        };
        Ok(*args)
    }

    #[test]
    fn one_choice_is_that_of_the_flags_and_all_are_all_but_the_reference() {
        let names = |flags: &str| {
            let args = parsed(flags).unwrap();
            let name = |d: &Dtypes| format!("{:?} {:?} {:?} {:?}", d.dense, d.matmul, d.kv, d.activation);
            wanted(&args).iter().map(name).collect::<Vec<_>>()
        };
        assert_eq!(names(""), ["Native Int16 None F32"]);
        assert_eq!(names("--dense-dtype q8_0 --kv-dtype q8_0"), ["Q8_0 Int16 Some(Q8_0) F32"]);
        let all = names("--all");
        assert_eq!(all.len(), 3 * 3 - 1 + 2 + 1, "{all:?}");
        assert!(!all.contains(&"Native F32 None F32".to_owned()), "{all:?}");
        for expected in ["Native Int16 None F32", "Q6_0 Int8 None F32", "Native F32 Some(Q8_0) F32"] {
            assert!(all.contains(&expected.to_owned()), "{expected}: {all:?}");
        }
        assert!(parsed("--all --dense-dtype q8_0").is_err());
    }

    #[test]
    fn a_gate_looks_at_what_it_is_told_to() {
        let distance = Distance {
            positions: 1,
            kl_mean: 0.003,
            kl_max: 0.003,
            top1_agreement: 1.0,
            logit_difference: None,
            other_experts: None,
        };
        let compared = |routing, holds| Comparison { routing, distance, holds };
        let with = |comparisons| Fidelity {
            model: "a".to_owned(),
            layers: 1,
            positions: 1,
            seed: 1,
            kernels: "scalar",
            choices: vec![Choice {
                activation_dtype: "f32",
                expert_dtype: "native",
                expert_mode: "routed",
                dense_dtype: "q8_0",
                matmul_precision: "int16",
                kv_dtype: "f32",
                weights_bytes: 1,
                kl_bound: KL_BOUND,
                top1_bound: TOP1_BOUND,
                comparisons,
            }],
        };
        let found = with(vec![compared(Routing::Forced, true), compared(Routing::Free, false)]);
        assert_eq!(
            [Gate::Forced, Gate::Free, Gate::Any].map(|g| check(&found, g).is_ok()),
            [true, false, false]
        );
        // Without experts the free one is the only one.
        let dense = with(vec![compared(Routing::Free, false)]);
        let error = check(&dense, Gate::Forced).unwrap_err().to_string();
        assert!(
            error.contains("dense q8_0, products int16") && error.contains("3.00e-3 (bound 0.002)"),
            "{error}"
        );
        assert_eq!(parsed("--gate").unwrap().gate, Some(Gate::Any));
        assert_eq!(parsed("").unwrap().gate, None);
    }
}
