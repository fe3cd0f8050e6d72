//! `ossbench logits`: what the model computes for given ids, as a safetensors file.

use super::model::{PREFILL_CHUNK, load_options_of, open_options, say};
use crate::args::LogitsArgs;
use crate::progress::Waiting;
use crate::{CliError, Io};
use bench_core::plan::Dtypes;
use bench_engine::inspect::{Inspection, inspect, save};
use bench_engine::session::open_model;

pub(crate) fn run(args: &LogitsArgs, io: &mut Io<'_>) -> Result<(), CliError> {
    let context = args.ids.len() + args.greedy as usize;
    let dtypes = args.engine.dtypes();
    // What is held against another implementation is exact unless the flags say otherwise.
    let matmul = args.engine.matmul_precision.unwrap_or_default();
    let load = load_options_of(&args.engine, Dtypes { matmul, ..dtypes })?;
    let options = open_options(load, args.seed, context);
    let mut bar = Waiting::new(&format!("loading {}", args.model), io.err);
    let model = open_model(&args.model, &options, &mut |p| bar.set(p.done, p.total, p.unit))?;
    drop(bar);
    say(&model, &options.load.place, io)?;
    let sites: Vec<&str> = args.sites.iter().map(String::as_str).collect();
    let inspection = Inspection {
        ids: &args.ids,
        greedy: args.greedy as usize,
        sites: &sites,
        prefill_chunk: PREFILL_CHUNK,
    };
    let tensors = inspect(&model, &inspection)?;
    save(&tensors, &args.out)?;
    for (name, tensor) in &tensors {
        writeln!(io.out, "{name} {:?} {:?}", tensor.dtype(), tensor.dims())?;
    }
    writeln!(io.err, "written to {}", args.out.display())?;
    Ok(())
}
