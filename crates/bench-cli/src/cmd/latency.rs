//! `ossbench latency`: the same study as `run`, written with flags instead of a file.

use super::study;
use crate::args::LatencyArgs;
use crate::{CliError, Io};
use bench_core::spec::{ModelTable, RunSpec, RunTable, TargetTable, WorkloadTable};

pub(crate) fn run(args: &LatencyArgs, command: &[String], io: &mut Io<'_>) -> Result<(), CliError> {
    let spec = spec(args);
    let request = study::Study {
        plan: spec.resolve()?,
        spec_toml: spec.to_toml()?,
        resume: None,
        common: args.common.clone(),
        command: command.to_vec(),
    };
    study::run(&request, io)
}

fn spec(args: &LatencyArgs) -> RunSpec {
    RunSpec {
        run: RunTable {
            name: Some(args.name.clone()),
            seed: Some(args.seed),
            repeats: Some(args.repeats),
            rounds: args.rounds,
            warmup: Some(args.warmup),
        },
        target: TargetTable {
            kind: Some(args.target),
            device: None,
            activation_dtype: Some(args.engine.activation_dtype),
            expert_dtype: Some(args.engine.expert_dtype),
            threads: args.engine.threads,
            prefill_chunk: None,
        },
        models: args
            .models
            .iter()
            .map(|id| ModelTable { id: id.clone(), label: None, layers: args.engine.layers })
            .collect(),
        workload: WorkloadTable {
            prompt_tokens: Some(args.prompt_tokens.clone()),
            output_tokens: Some(args.output_tokens.clone()),
            batch: Some(args.batch.clone()),
            temperature: Some(args.sampling.temperature),
            top_k: args.sampling.top_k,
            top_p: args.sampling.top_p,
            ..WorkloadTable::default()
        },
        slo: None,
        mock: None,
    }
}
