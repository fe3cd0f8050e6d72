//! `ossbench doctor`: what this machine has, what is missing, and whether a model fits.

use crate::args::DoctorArgs;
use crate::{CliError, Io};
use bench_core::provenance::{Build, Machine};
use bench_engine::config::ExpertDtype;
use bench_engine::model::{ActivationDtype, LoadOptions};
use bench_engine::place::{self, Place};
use bench_engine::preflight::{self, Need, Preflight, check, gib};
use bench_engine::source::ModelRef;
use bench_engine::system::{available_memory, free_disk};
use bench_runner::provenance;
use serde::Serialize;
use std::io::Write;
use std::path::Path;

/// Everything that doctor found out.
#[derive(Serialize)]
struct Findings {
    build: Build,
    machine: Machine,
    /// What this process may still take, control groups heeded.
    available_memory_bytes: Option<u64>,
    free_disk_bytes: Option<u64>,
    nvidia_driver: Option<String>,
    /// GPUs that models can run on.
    gpus: Vec<String>,
    kernels: String,
    model: Option<ModelFindings>,
    remarks: Vec<String>,
}

#[derive(Serialize)]
struct ModelFindings {
    model: String,
    /// `cpu`, `cuda:0`.
    device: String,
    available_bytes: Option<u64>,
    context_tokens: u32,
    batch: u32,
    fits: Vec<Fit>,
}

#[derive(Serialize)]
struct Fit {
    expert_dtype: &'static str,
    activation_dtype: &'static str,
    #[serde(flatten)]
    preflight: Preflight,
}

pub(crate) fn run(args: &DoctorArgs, io: &mut Io<'_>) -> Result<(), CliError> {
    let findings = examine(args)?;
    if args.json {
        let json = serde_json::to_string_pretty(&findings).map_err(|e| CliError::Failed(e.to_string()))?;
        writeln!(io.out, "{json}")?;
    } else {
        print(&findings, io.out)?;
    }
    match &findings.model {
        Some(model) if model.fits.iter().all(|f| !f.preflight.fits) => {
            let place = if model.device == "cpu" { "this machine" } else { model.device.as_str() };
            Err(CliError::Gate(format!("{} does not fit on {place}", model.model)))
        }
        _ => Ok(()),
    }
}

fn examine(args: &DoctorArgs) -> Result<Findings, CliError> {
    let machine = provenance::machine();
    let build = provenance::build();
    let nvidia_driver = std::fs::read_to_string("/proc/driver/nvidia/version").ok().and_then(|text| {
        text.lines().next().map(|l| l.trim_start_matches("NVRM version:").trim().to_owned())
    });
    let model = args.model.as_deref().map(|name| fit(name, args)).transpose()?;
    let gpus = place::gpus();
    Ok(Findings {
        remarks: remarks(&machine, &build, nvidia_driver.as_deref(), &gpus),
        gpus: gpus.unwrap_or_default(),
        available_memory_bytes: available_memory(),
        free_disk_bytes: free_disk(Path::new(".")),
        kernels: bench_engine::system::kernel_variant().to_owned(),
        nvidia_driver,
        machine,
        build,
        model,
    })
}

/// The model in every combination of dtypes that it has.
fn fit(name: &str, args: &DoctorArgs) -> Result<ModelFindings, CliError> {
    let model = ModelRef::parse(name)?;
    let config = model.config()?;
    let place = Place::open(args.device())?;
    let available = preflight::available(&place);
    let mut experts = vec![("native", ExpertDtype::Native)];
    if config.mxfp4 {
        experts.push(("bf16", ExpertDtype::Bf16));
    }
    let mut fits = Vec::new();
    for (expert_dtype, expert) in experts {
        for activation in [ActivationDtype::Bf16, ActivationDtype::F32] {
            let options = LoadOptions {
                expert_dtype: expert,
                activation_dtype: activation,
                place: place.clone(),
                ..LoadOptions::default()
            };
            let need = Need {
                context_tokens: args.context as usize,
                batch: args.batch as usize,
                prefill_chunk: 512,
                mapped: !matches!(model, ModelRef::Dummy(_)),
                ..Need::of(&options)
            };
            let preflight = check(&config, &need, available);
            fits.push(Fit { expert_dtype, activation_dtype: activation.name(), preflight });
        }
    }
    Ok(ModelFindings {
        model: name.to_owned(),
        device: args.device().to_owned(),
        available_bytes: available,
        context_tokens: args.context,
        batch: args.batch,
        fits,
    })
}

/// What would make figures better, or is not there.
fn remarks(
    machine: &Machine,
    build: &Build,
    nvidia: Option<&str>,
    gpus: &Result<Vec<String>, bench_engine::Error>,
) -> Vec<String> {
    let mut remarks = Vec::new();
    if build.debug {
        remarks.push("this is a debug build: its figures mean nothing, build with --release".to_owned());
    }
    match machine.load_average {
        Some([one, ..]) if one > 0.5 * f64::from(machine.cores) => {
            remarks
                .push(format!("other programs are running (load {one:.1}): close them before you measure"));
        }
        _ => {}
    }
    match machine.governor.as_deref() {
        Some("performance") => {}
        Some(other) => {
            remarks.push(format!("frequency governor is {other}: set it to performance to measure"));
        }
        None => remarks.push("the frequency governor cannot be read (virtual machine?)".to_owned()),
    }
    remarks.push(match (gpus, nvidia) {
        (Ok(gpus), _) => {
            format!("models run on the CPU unless a GPU is asked for by --device: {}", gpus.join(", "))
        }
        (Err(_), None) => "no NVIDIA driver found: models run on the CPU".to_owned(),
        (Err(error), Some(_)) => format!("models run on the CPU, no GPU can be used: {error}"),
    });
    remarks
}

fn print(findings: &Findings, out: &mut dyn Write) -> Result<(), CliError> {
    let (machine, build) = (&findings.machine, &findings.build);
    let bytes = |b: Option<u64>| b.map_or("unknown".to_owned(), gib);
    let commit = build.commit.as_deref().map_or("unknown commit", |c| &c[..c.len().min(12)]);
    writeln!(out, "build   ossbench {}, {commit}, {}, {}", build.version, build.rustc, build.target_triple)?;
    writeln!(out, "cpu     {}, {} cores, kernels {}", machine.cpu, machine.cores, findings.kernels)?;
    writeln!(out, "        {}", notable(&machine.cpu_features))?;
    let available = bytes(findings.available_memory_bytes);
    writeln!(out, "memory  {}, {available} available", bytes(machine.memory_bytes))?;
    writeln!(out, "disk    {} free here", bytes(findings.free_disk_bytes))?;
    let gpus = if machine.gpus.is_empty() { "none".to_owned() } else { machine.gpus.join(", ") };
    writeln!(
        out,
        "gpu     {gpus}{}",
        findings.nvidia_driver.as_deref().map_or(String::new(), |d| format!(", {d}"))
    )?;
    writeln!(
        out,
        "clock   steps of {} ns, {:.0} ns a reading",
        machine.clock.smallest_step_ns, machine.clock.reading_ns
    )?;
    for remark in &findings.remarks {
        writeln!(out, "note    {remark}")?;
    }
    findings.model.as_ref().map_or(Ok(()), |model| print_model(model, out))
}

fn print_model(model: &ModelFindings, out: &mut dyn Write) -> Result<(), CliError> {
    writeln!(
        out,
        "\n{} with {} tokens of context, batch {}, on {} ({} free)",
        model.model,
        model.context_tokens,
        model.batch,
        model.device,
        model.available_bytes.map_or("unknown".to_owned(), gib)
    )?;
    writeln!(
        out,
        "{:<8} {:<11} {:>10} {:>10} {:>11} {:>10}  {:<4} {:>11}",
        "experts", "activations", "weights", "KV cache", "activations", "needed", "fits", "max context"
    )?;
    for fit in &model.fits {
        let p = &fit.preflight;
        writeln!(
            out,
            "{:<8} {:<11} {:>10} {:>10} {:>11} {:>10}  {:<4} {:>11}",
            fit.expert_dtype,
            fit.activation_dtype,
            gib(p.weights_bytes),
            gib(p.kv_bytes),
            gib(p.activation_bytes_estimate),
            gib(p.required_bytes),
            if p.fits { "yes" } else { "no" },
            p.max_context_tokens
        )?;
    }
    for fit in model.fits.iter().filter(|f| f.preflight.fits).take(1) {
        if let Some(rows) = fit.preflight.pass_rows {
            writeln!(
                out,
                "prompts of a batch run in parts of at most {rows} tokens: more do not fit at once"
            )?;
        }
    }
    for suggestion in model.fits.iter().filter_map(|f| f.preflight.suggestion.as_ref()).take(1) {
        writeln!(out, "{suggestion}")?;
    }
    Ok(())
}

/// The features that the kernels or a reader care about.
fn notable(features: &[String]) -> String {
    const NOTABLE: [&str; 11] = [
        "avx2",
        "fma",
        "f16c",
        "avx512f",
        "avx512_vnni",
        "avx512_bf16",
        "avx512_vbmi",
        "amx_bf16",
        "asimd",
        "asimddp",
        "bf16",
    ];
    let found: Vec<_> = NOTABLE.into_iter().filter(|n| features.iter().any(|f| f == n)).collect();
    if found.is_empty() { "no vector extensions known to the kernels".to_owned() } else { found.join(" ") }
}
