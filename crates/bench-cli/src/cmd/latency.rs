//! `ossbench latency`: the same study as `run`, written with flags instead of a file.

use super::vllm::{self, Notes, wrong};
use super::{effective, print_study, save_result, study};
use crate::args::{FLAGS, Flag, LatencyArgs, Support};
use crate::{CliError, Io};
use bench_core::spec::{Dataset, RunSpec, RunTable, TargetKind, TargetTable};

pub(crate) fn run(args: &LatencyArgs, command: &[String], io: &mut Io<'_>) -> Result<(), CliError> {
    if args.vllm_flags {
        return list_flags(io);
    }
    if let Some(Flag(name, Support::Refused(why))) = args.refused.0.first() {
        return Err(wrong(&format!("--{name}"), why));
    }
    let save = save_result::Options::new(args)?;
    let mut notes = Notes::new();
    let spec = spec(args, &mut notes)?;
    if args.print_study {
        return print_study(&spec, &notes, io);
    }
    let (plan, spec_toml) = effective(spec, None, &notes, io)?;
    let request = study::Study {
        secrets: args.server.secrets.clone(),
        save,
        progress: !args.disable_tqdm,
        ..study::Study::new(plan, spec_toml, &args.common, command)
    };
    study::run(&request, io)
}

fn list_flags(io: &mut Io<'_>) -> Result<(), CliError> {
    for Flag(name, support) in FLAGS {
        let (word, text) = match support {
            Support::Supported(how) => ("works", how),
            Support::Refused(why) => ("refused", why),
        };
        writeln!(io.out, "--{name:<35} {word:<8} {text}")?;
    }
    Ok(())
}

/// The study that the flags make.
fn spec(args: &LatencyArgs, notes: &mut Notes) -> Result<RunSpec, CliError> {
    let kind = target(args)?;
    let http = kind == TargetKind::Http;
    let of_file = args.prompts.dataset_name.is_some_and(|name| name != Dataset::Random);
    let mut spec = RunSpec {
        run: RunTable {
            name: Some(args.name.clone()),
            seed: Some(args.seed),
            repeats: args.repeats,
            rounds: args.rounds,
            warmup: Some(args.warmup),
            isolate: None,
        },
        target: TargetTable { kind: Some(kind), ..args.engine.target() },
        models: vllm::models(args)?,
        workload: vllm::workload(args, notes)?,
        load: if http { Some(vllm::load(&args.load, of_file, notes)?) } else { None },
        server: if http { Some(vllm::server(args)?) } else { None },
        slo: vllm::slo(&args.save.goodput)?,
        energy: None,
        ape: None,
        mock: None,
    };
    args.power.apply(&mut spec);
    Ok(spec)
}

/// An address makes it a server; flags of the other kind are errors.
fn target(args: &LatencyArgs) -> Result<TargetKind, CliError> {
    let s = &args.server;
    let addressed = s.base_url.is_some() || s.host.is_some() || s.port.is_some();
    let kind = match args.target {
        Some(kind) => kind,
        None if addressed => TargetKind::Http,
        None => TargetKind::Engine,
    };
    if kind == TargetKind::Http {
        return match vllm::first_engine_flag(args) {
            Some(flag) => {
                Err(wrong(flag, "the server decides that; drop it, or measure in-process without --base-url"))
            }
            None => Ok(kind),
        };
    }
    match vllm::first_server_flag(args) {
        Some(flag) => Err(wrong(flag, "only with a server; name it with --base-url, or use --target http")),
        None => Ok(kind),
    }
}
