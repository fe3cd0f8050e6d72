//! `ossbench synth`: a generated checkpoint on disk.

use super::model::weights_seed;
use crate::args::SynthArgs;
use crate::progress::Waiting;
use crate::{CliError, Io};
use bench_engine::synth::{Synth, write};

pub(crate) fn run(args: &SynthArgs, io: &mut Io<'_>) -> Result<(), CliError> {
    let synth = Synth {
        preset: &args.preset,
        seed: weights_seed(args.seed),
        layers: args.layers.map(|n| n as usize),
        force: args.force,
    };
    let mut bar = Waiting::new(&format!("writing {}", args.out.display()), io.err);
    write(&synth, &args.out, &mut |p| bar.set(p.done, p.total, p.unit))?;
    drop(bar);
    writeln!(io.out, "{}", args.out.display())?;
    Ok(())
}
