//! `ossbench bench-kernels`: each kernel at a model's shapes, beside what this machine's memory and arithmetic allow.

use crate::args::BenchKernelsArgs;
use crate::{CliError, Io};
use bench_core::SCHEMA_VERSION;
use bench_core::provenance::{Build, Machine};
use bench_engine::system::kernels::{
    KernelFindings, KernelOptions, KernelTime, KernelsError, Line, Roofs, kernels,
};
use bench_runner::provenance;
use serde::Serialize;
use std::io::Write;

mod gpu;

/// What `--json` holds.
#[derive(Serialize)]
struct Report {
    schema_version: u32,
    build: Build,
    /// Before the first kernel ran, its load average too.
    machine: Machine,
    model: String,
    kernel_variant: &'static str,
    threads: u32,
    pinned: bool,
    seconds_per_kernel: f64,
    read_bytes_s: Rate,
    /// Bytes read and written.
    copy_bytes_s: Rate,
    /// Of the instructions that the variant has.
    peaks: Vec<PeakRow>,
    kernels: Vec<KernelRow>,
}

/// Of several repeats.
#[derive(Serialize)]
struct Rate {
    median: f64,
    slowest: f64,
    fastest: f64,
    repeats: u32,
}

#[derive(Serialize)]
struct PeakRow {
    kind: &'static str,
    ops_s: Rate,
}

#[derive(Serialize)]
struct KernelRow {
    name: String,
    /// `None` where the variant has no such kernel; then `error` says so.
    #[serde(flatten)]
    time: Option<TimeRow>,
    error: Option<String>,
}

#[derive(Serialize)]
struct TimeRow {
    median_ms: f64,
    fastest_ms: f64,
    slowest_ms: f64,
    repeats: u32,
    streamed_bytes: u64,
    operations: u64,
    bytes_s: Option<f64>,
    ops_s: f64,
    /// Shortest time that the roofs allow over the median; which roof sets it.
    of_limit: Option<f64>,
    limit: Option<&'static str>,
}

pub(crate) fn run(args: &BenchKernelsArgs, io: &mut Io<'_>) -> Result<(), CliError> {
    check(args)?;
    if args.device != "cpu" {
        return gpu::run(args, io);
    }
    let machine = provenance::machine();
    let options = KernelOptions {
        model: args.model.clone(),
        threads: args.threads.map(|t| t as usize),
        pin: args.pin,
        seconds_per_kernel: args.seconds_per_kernel,
        filter: args.filter.clone(),
    };
    let mut written = Ok(());
    let found = kernels(&options, |roofs, line| {
        if written.is_ok() {
            written = match line {
                None => tell_roofs(roofs, io.out),
                Some(line) => tell_kernel(line, roofs, io.out),
            };
        }
    });
    written?;
    let found = found.map_err(|e: KernelsError| {
        if e.is_usage() { CliError::Usage(e.to_string()) } else { CliError::Failed(e.to_string()) }
    })?;
    let (variant, threads) = (found.variant, found.threads);
    let report = report(args, machine, found);
    tell_machine(&report, variant, threads, io.out)?;
    if let Some(path) = &args.json {
        super::write_json(path, &report)?;
    }
    Ok(())
}

fn check(args: &BenchKernelsArgs) -> Result<(), CliError> {
    if args.check && args.device == "cpu" {
        let problem = "--check: expected --device cuda:N; the kernels of the CPU are held by `cargo test`";
        return Err(CliError::Usage(problem.to_owned()));
    }
    if args.device != "cpu" && (args.threads.is_some() || args.pin) {
        return Err(CliError::Usage(format!("--threads and --pin say nothing of {}", args.device)));
    }
    if args.threads == Some(0) {
        return Err(CliError::Usage("--threads 0: expected at least 1".to_owned()));
    }
    if !(0.0..=3600.0).contains(&args.seconds_per_kernel) {
        let given = args.seconds_per_kernel;
        return Err(CliError::Usage(format!("--seconds-per-kernel {given}: expected 0 to 3600")));
    }
    Ok(())
}

/// Of sorted values.
fn rate(sorted: &[f64], median: f64) -> Rate {
    let end = |at: Option<&f64>| at.copied().unwrap_or(median);
    Rate { median, slowest: end(sorted.first()), fastest: end(sorted.last()), repeats: sorted.len() as u32 }
}

fn report(args: &BenchKernelsArgs, machine: Machine, found: KernelFindings) -> Report {
    let KernelFindings { variant, threads, roofs, lines } = found;
    let peaks = roofs.peaks.iter();
    Report {
        schema_version: SCHEMA_VERSION,
        build: provenance::build(),
        machine,
        model: args.model.clone(),
        kernel_variant: variant,
        threads: threads as u32,
        pinned: args.pin,
        seconds_per_kernel: args.seconds_per_kernel,
        read_bytes_s: rate(&roofs.read.read_bytes_s, roofs.read.read_median_bytes_s()),
        copy_bytes_s: rate(&roofs.read.copy_bytes_s, roofs.read.copy_median_bytes_s()),
        peaks: peaks
            .map(|p| PeakRow { kind: p.kind.name(), ops_s: rate(&p.ops_s, p.median_ops_s()) })
            .collect(),
        kernels: lines.into_iter().map(|line| kernel_row(line, &roofs)).collect(),
    }
}

fn kernel_row((name, line): Line, roofs: &Roofs) -> KernelRow {
    match line {
        Ok(kernel) => KernelRow { name, time: Some(time_row(&kernel, roofs)), error: None },
        Err(error) => KernelRow { name, time: None, error: Some(error) },
    }
}

fn time_row(kernel: &KernelTime, roofs: &Roofs) -> TimeRow {
    let limit = kernel.of_limit(roofs);
    let ms = |seconds: Option<&f64>| 1e3 * seconds.copied().unwrap_or_else(|| kernel.median_s());
    TimeRow {
        median_ms: 1e3 * kernel.median_s(),
        fastest_ms: ms(kernel.seconds.first()),
        slowest_ms: ms(kernel.seconds.last()),
        repeats: kernel.seconds.len() as u32,
        streamed_bytes: kernel.streamed_bytes,
        operations: kernel.operations,
        bytes_s: kernel.bytes_s(),
        ops_s: kernel.ops_s(),
        of_limit: limit.map(|(ratio, _)| ratio),
        limit: limit.map(|(_, bound)| bound.name()),
    }
}

fn tell_roofs(roofs: &Roofs, out: &mut dyn Write) -> Result<(), CliError> {
    let read = &roofs.read;
    let told = |rate: f64, slowest: Option<&f64>, fastest: Option<&f64>, unit| {
        let at = |v: Option<&f64>| v.copied().unwrap_or(rate) / 1e9;
        format!("{:.1} {unit} ({:.1} to {:.1})", rate / 1e9, at(slowest), at(fastest))
    };
    let read_rates = (read.read_bytes_s.first(), read.read_bytes_s.last());
    writeln!(out, "read   {}", told(read.read_median_bytes_s(), read_rates.0, read_rates.1, "GB/s"))?;
    let copy_rates = (read.copy_bytes_s.first(), read.copy_bytes_s.last());
    writeln!(out, "copy   {}", told(read.copy_median_bytes_s(), copy_rates.0, copy_rates.1, "GB/s"))?;
    for peak in &roofs.peaks {
        let told = told(peak.median_ops_s(), peak.ops_s.first(), peak.ops_s.last(), "GOP/s");
        writeln!(out, "{:6} {told}", peak.kind.name())?;
    }
    writeln!(
        out,
        "\n{:38} {:>10} {:>10} {:>10} {:>8} {:>8} {:>16}",
        "kernel", "median us", "fastest", "slowest", "GB/s", "GOP/s", "of the limit"
    )?;
    Ok(())
}

fn tell_kernel((name, line): &Line, roofs: &Roofs, out: &mut dyn Write) -> Result<(), CliError> {
    let kernel = match line {
        Ok(kernel) => time_row(kernel, roofs),
        Err(error) => return Ok(writeln!(out, "{name:38} not measured: {error}")?),
    };
    let bytes = kernel.bytes_s.map_or("-".to_owned(), |b| format!("{:.1}", b / 1e9));
    let limit = kernel.of_limit.zip(kernel.limit);
    let limit = limit.map_or("-".to_owned(), |(ratio, bound)| format!("{ratio:.2} of {bound}"));
    writeln!(
        out,
        "{name:38} {:10.1} {:10.1} {:10.1} {bytes:>8} {:8.1} {limit:>16}",
        1e3 * kernel.median_ms,
        1e3 * kernel.fastest_ms,
        1e3 * kernel.slowest_ms,
        kernel.ops_s / 1e9,
    )?;
    Ok(())
}

fn tell_machine(report: &Report, variant: &str, threads: usize, out: &mut dyn Write) -> Result<(), CliError> {
    let load = report.machine.load_average.map_or("unknown".to_owned(), |[one, ..]| format!("{one:.2}"));
    let commit = report.build.commit.as_deref().unwrap_or("unknown");
    let pinned = if report.pinned { ", pinned" } else { "" };
    writeln!(
        out,
        "\n{}, {threads} threads{pinned}, kernels {variant}, load {load} before the first; shapes of {}; ossbench {} \
         at {commit}",
        report.machine.cpu, report.model, report.build.version
    )?;
    Ok(())
}
