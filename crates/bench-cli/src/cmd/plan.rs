//! `ossbench plan`: what a study resolves to.

use crate::args::PlanArgs;
use crate::cmd::{effective, read_spec};
use crate::{CliError, Io};
use bench_core::plan::{Cell, Plan, TargetPlan};
use bench_core::spec::{DenseDtype, ExpertMode, MatmulPrecision};
use std::io::Write;

pub(crate) fn run(args: &PlanArgs, io: &mut Io<'_>) -> Result<(), CliError> {
    let (spec, text) = read_spec(&args.config)?;
    let plan = effective(spec, Some(text), &[], io)?.0;
    if args.json {
        let json = serde_json::to_string_pretty(&plan).map_err(|e| CliError::Failed(e.to_string()))?;
        writeln!(io.out, "{json}")?;
        return Ok(());
    }
    print(&plan, io.out)
}

fn print(plan: &Plan, out: &mut dyn Write) -> Result<(), CliError> {
    let target = &plan.target;
    writeln!(out, "study   {} (seed {}, plan {})", plan.name, plan.seed, plan.hash())?;
    writeln!(
        out,
        "target  {:?} on {}, activations {:?}, experts {:?}, prefill in chunks of {}{}",
        target.kind,
        target.device,
        target.activation_dtype,
        target.expert_dtype,
        target.prefill_chunk,
        shortcuts(target)
    )?;
    if plan.isolate {
        writeln!(out, "process one for each trial, which loads its model anew")?;
    }
    for model in &plan.models {
        let layers = model.layers.map_or(String::new(), |n| format!(", first {n} layers"));
        let ablation = match model.expert_mode {
            ExpertMode::Routed => "",
            ExpertMode::DenseAll => ", all experts computed (ablation)",
        };
        writeln!(out, "model   {} = {}{layers}{ablation}", model.label, model.id)?;
    }
    writeln!(
        out,
        "repeats {} per cell in {} rounds, {} to warm up before each; {} cells, {} trials\n",
        plan.repeats,
        plan.rounds,
        plan.warmup,
        plan.cells.len(),
        plan.trials.len()
    )?;
    writeln!(out, "{:>5} {:>5} {:>9}  cell", "order", "round", "repeats")?;
    for trial in &plan.trials {
        let last = trial.first_repeat + trial.repeats - 1;
        let range = format!("{}-{last}", trial.first_repeat);
        writeln!(out, "{:>5} {:>5} {range:>9}  {}", trial.index, trial.round, trial.cell)?;
    }
    let (prompt, output) = tokens(plan);
    for refused in &plan.refused {
        writeln!(out, "left out  {}: {}", refused.cell, refused.reason)?;
    }
    writeln!(out, "\nmeasured tokens: {prompt} of prompts, {output} of output")?;
    Ok(())
}

/// What is not the exact default.
fn shortcuts(target: &TargetPlan) -> String {
    let dense = (target.dense_dtype != DenseDtype::Native)
        .then(|| format!(", attention and unembedding {:?}", target.dense_dtype));
    let products = (target.matmul_precision != MatmulPrecision::F32)
        .then(|| format!(", products {:?}", target.matmul_precision));
    let cache = target.kv_dtype.map(|kv| format!(", KV cache {kv:?}"));
    [dense, products, cache].into_iter().flatten().collect()
}

/// Prompt and output tokens of all measured requests.
fn tokens(plan: &Plan) -> (u64, u64) {
    let sum = |of: fn(&Cell) -> u32| -> u64 {
        plan.cells.iter().map(|c| u64::from(of(c)) * u64::from(c.requests())).sum()
    };
    (sum(|c| c.prompt_tokens), sum(|c| c.output_tokens))
}
