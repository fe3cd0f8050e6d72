//! `ossbench memory`: memory over context, each trial in a process of its own; what does not fit is listed.

use super::{effective, print_study, study};
use crate::args::MemoryArgs;
use crate::{CliError, Io};
use bench_core::spec::{self, ModelTable, RunSpec, RunTable, WorkloadTable};
use bench_engine::LoadOptions;
use bench_engine::place::Place;
use bench_engine::preflight::{self, Gpu, Need, gib};
use bench_engine::source::ModelRef;
use bench_runner::shape::load_options;

pub(crate) fn run(args: &MemoryArgs, command: &[String], io: &mut Io<'_>) -> Result<(), CliError> {
    let mut notes = Vec::new();
    let spec = spec(args, Room::of(args.engine.device())?, &mut notes)?;
    if args.print_study {
        return print_study(&spec, &notes, io);
    }
    let (plan, spec_toml) = effective(spec, None, &notes, io)?;
    study::run(&study::Study::new(plan, spec_toml, &args.common, command), io)
}

/// The memory that models may take.
#[derive(Debug, Clone, Copy)]
struct Room {
    /// `None` where nobody tells.
    available_bytes: Option<u64>,
    /// `None`: of the host.
    gpu: Option<Gpu>,
}

impl Room {
    /// The device is closed again: each trial opens it in its own process.
    fn of(device: &str) -> Result<Self, CliError> {
        let place = Place::open(device)?;
        let available_bytes = preflight::available(&place);
        let gpu = Need::of(&LoadOptions { place, ..LoadOptions::default() }).gpu;
        Ok(Self { available_bytes, gpu })
    }
}

/// The study that the flags make, in so much memory.
fn spec(args: &MemoryArgs, room: Room, notes: &mut Vec<String>) -> Result<RunSpec, CliError> {
    let prompts = args
        .context_lengths
        .iter()
        .map(|context| {
            context.checked_sub(args.output_tokens).filter(|prompt| *prompt > 0).ok_or_else(|| {
                let output = args.output_tokens;
                CliError::Usage(format!(
                    "--context-lengths {context}: prompt and output together, and --output-tokens is {output}: \
                     ask for longer contexts or a shorter output"
                ))
            })
        })
        .collect::<Result<Vec<u32>, _>>()?;
    let mut spec = RunSpec {
        run: RunTable {
            name: Some(args.name.clone()),
            seed: Some(args.seed),
            repeats: Some(args.repeats),
            rounds: Some(1),
            warmup: Some(args.warmup),
            isolate: Some(true),
        },
        target: spec::TargetTable { prefill_chunk: args.prefill_chunk, ..args.engine.target() },
        workload: WorkloadTable {
            prompt_tokens: Some(prompts),
            output_tokens: Some(vec![args.output_tokens]),
            batch: Some(args.batch.clone()),
            ..WorkloadTable::default()
        },
        ..RunSpec::default()
    };
    for id in &args.models {
        let limit = largest_context(args, id, room)?;
        for context in args.context_lengths.iter().filter(|context| **context > limit.tokens) {
            notes.push(format!("{id}: a context of {context} tokens is refused: {}", limit.reason));
        }
        spec.models.push(ModelTable {
            layers: args.engine.layers,
            max_context_tokens: Some(limit.tokens.max(1)),
            ..ModelTable::new(id.clone())
        });
    }
    args.power.apply(&mut spec);
    Ok(spec)
}

/// Where a model's contexts end, and why.
struct Limit {
    tokens: u32,
    reason: String,
}

/// The largest context at the largest batch, by preflight: bounded by the model itself, or by memory.
fn largest_context(args: &MemoryArgs, id: &str, room: Room) -> Result<Limit, CliError> {
    let options = load_options(args.engine.dtypes(), args.engine.layers);
    let model = ModelRef::parse(id)?;
    let mut config = model.config()?;
    if let Some(layers) = options.num_layers {
        config = config.with_layers(layers)?;
    }
    options.expert_mode.check(&config)?;
    let need = Need {
        context_tokens: args.context_lengths.iter().copied().max().unwrap_or(1) as usize,
        batch: args.batch.iter().copied().max().unwrap_or(1) as usize,
        prefill_chunk: args.prefill_chunk.unwrap_or(512) as usize,
        mapped: !matches!(model, ModelRef::Dummy(_)),
        gpu: room.gpu,
        ..Need::of(&options)
    };
    let checked = preflight::check(&config, &need, room.available_bytes);
    let of_model = config.max_position_embeddings;
    let reason = if checked.max_context_tokens >= of_model {
        format!("the model has {of_model} positions (max_position_embeddings)")
    } else {
        let free = room.available_bytes.map_or_else(|| "unknown".to_owned(), gib);
        let most = checked.max_context_tokens;
        let whose = if room.gpu.is_some() { "the GPU's memory" } else { "memory" };
        format!("at most {most} tokens fit in the {free} of {whose} that are free, at batch {}", need.batch)
    };
    Ok(Limit { tokens: u32::try_from(checked.max_context_tokens).unwrap_or(u32::MAX), reason })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn made(flags: &str, available: u64) -> (Result<RunSpec, CliError>, Vec<String>) {
        let line = format!("ossbench memory {flags}");
        let cli = crate::args::Cli::try_parse_from(line.split(' ')).unwrap();
        let crate::args::Command::Memory(args) = cli.command else { panic!("memory") };
        let mut notes = Vec::new();
        let room = Room { available_bytes: Some(available), gpu: None };
        (spec(&args, room, &mut notes), notes)
    }

    #[test]
    fn contexts_end_where_memory_or_the_model_does() {
        let (spec, notes) = made("-m dummy:gpt-oss-20b,dummy:dense-nano -c 2k,128k,256k", 16 << 30);
        let plan = spec.unwrap().resolve().unwrap();
        assert!(plan.isolate);
        let cells: Vec<_> = plan.cells.iter().map(|c| c.id.as_str()).collect();
        assert!(cells.contains(&"gpt-oss-20b_p2016_n32_b1"), "{cells:?}");
        assert_eq!(plan.refused.len(), notes.len(), "{notes:?}");
        assert!(notes.iter().any(|n| n.contains("max_position_embeddings")), "{notes:?}");
        let (_, notes) = made("-m dummy:gpt-oss-20b -c 2k,128k --activation-dtype f32", 15 << 30);
        assert!(notes.iter().any(|n| n.contains("fit in the 15.0 GiB")), "{notes:?}");
    }

    #[test]
    fn a_context_has_room_for_its_output() {
        let (spec, _) = made("-m dummy:gpt-oss-tiny -c 32", 16 << 30);
        let error = spec.unwrap_err().to_string();
        assert!(error.contains("--output-tokens is 32"), "{error}");
    }
}
