//! `ossbench bench-kernels --device cuda:N`: a GPU's kernels beside its measured roofs, or held against plain arithmetic.

use crate::args::BenchKernelsArgs;
use crate::cmd::model::warn;
use crate::cmd::write_json;
use crate::{CliError, Io};
use bench_core::SCHEMA_VERSION;
use bench_core::provenance::{Build, Machine};
use bench_engine::place::Place;
use bench_engine::system::gpu::{self, CheckRow, GpuOptions, KernelTime, Line, Roofs};
use bench_engine::system::kernels::KernelsError;
use bench_runner::provenance;
use serde::Serialize;
use std::io::Write;

use super::{Rate, rate};

/// What both kinds of `--json` begin with.
#[derive(Serialize)]
struct Head {
    schema_version: u32,
    build: Build,
    machine: Machine,
    device: String,
    /// Name of the GPU and of its architecture.
    gpu: Option<String>,
}

#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    head: Head,
    model: String,
    seconds_per_kernel: f64,
    read_bytes_s: Rate,
    /// Bytes read and written.
    copy_bytes_s: Rate,
    /// bf16 by `mma`.
    matrix_ops_s: Rate,
    kernels: Vec<KernelRow>,
}

#[derive(Serialize)]
struct KernelRow {
    name: String,
    /// `None` where it could not be measured; then `error` says why.
    #[serde(flatten)]
    time: Option<TimeRow>,
    error: Option<String>,
}

/// Of one launch, by the device's events.
#[derive(Serialize)]
struct TimeRow {
    shape: String,
    median_us: f64,
    fastest_us: f64,
    slowest_us: f64,
    repeats: u32,
    /// Launches that a repeat is the mean of.
    launches: u32,
    bytes: u64,
    operations: u64,
    bytes_s: f64,
    ops_s: f64,
    /// Shortest time that the roofs allow over the median; which roof sets it.
    of_limit: f64,
    limit: &'static str,
}

#[derive(Serialize)]
#[allow(clippy::struct_field_names)] // names of the JSON
struct Checks {
    #[serde(flatten)]
    head: Head,
    seed: u64,
    cases: u32,
    holds: bool,
    checks: Vec<Check>,
    /// Groups of kernels that could not be run to their end.
    failures: Vec<Failed>,
}

#[derive(Serialize)]
struct Check {
    group: &'static str,
    kernel: String,
    case: String,
    difference: f64,
    allowed: f64,
    passed: bool,
}

#[derive(Serialize)]
struct Failed {
    group: &'static str,
    error: String,
}

pub(super) fn run(args: &BenchKernelsArgs, io: &mut Io<'_>) -> Result<(), CliError> {
    let machine = provenance::machine();
    let place = Place::open(&args.device)?;
    let head = Head {
        schema_version: SCHEMA_VERSION,
        build: provenance::build(),
        machine,
        device: args.device.clone(),
        gpu: place.title(),
    };
    writeln!(io.out, "{}: {}\n", args.device, head.gpu.as_deref().unwrap_or("unknown"))?;
    place.decide_products()?;
    warn(&place, io)?;
    if args.check { check(args, &place, head, io) } else { measure(args, &place, head, io) }
}

#[allow(clippy::needless_pass_by_value)] // as map_err gives it
fn failed(error: KernelsError) -> CliError {
    if error.is_usage() { CliError::Usage(error.to_string()) } else { CliError::Failed(error.to_string()) }
}

fn measure(args: &BenchKernelsArgs, place: &Place, head: Head, io: &mut Io<'_>) -> Result<(), CliError> {
    let options = GpuOptions {
        model: args.model.clone(),
        seconds_per_kernel: args.seconds_per_kernel,
        filter: args.filter.clone(),
    };
    let mut written = Ok(());
    let found = gpu::measure(place, &options, |roofs, line| {
        if written.is_ok() {
            written = match line {
                None => tell_roofs(roofs, io.out),
                Some(line) => tell_kernel(line, roofs, io.out),
            };
        }
    });
    written?;
    let (roofs, lines) = found.map_err(failed)?;
    let report = Report {
        head,
        model: args.model.clone(),
        seconds_per_kernel: args.seconds_per_kernel,
        read_bytes_s: rate(&roofs.memory.read_bytes_s, roofs.memory.read_median_bytes_s()),
        copy_bytes_s: rate(&roofs.memory.copy_bytes_s, roofs.memory.copy_median_bytes_s()),
        matrix_ops_s: rate(&roofs.matrix_ops_s, roofs.matrix_median_ops_s()),
        kernels: lines.into_iter().map(|line| kernel_row(line, &roofs)).collect(),
    };
    writeln!(io.out, "\nshapes of {}; times by the device's events", report.model)?;
    args.json.as_ref().map_or(Ok(()), |path| write_json(path, &report))
}

fn kernel_row((name, line): Line, roofs: &Roofs) -> KernelRow {
    match line {
        Ok(kernel) => KernelRow { name, time: Some(time_row(&kernel, roofs)), error: None },
        Err(error) => KernelRow { name, time: None, error: Some(error) },
    }
}

fn time_row(kernel: &KernelTime, roofs: &Roofs) -> TimeRow {
    let (of_limit, bound) = kernel.of_limit(roofs);
    let us = |seconds: Option<&f64>| 1e6 * seconds.copied().unwrap_or_else(|| kernel.median_s());
    TimeRow {
        shape: kernel.shape.clone(),
        median_us: 1e6 * kernel.median_s(),
        fastest_us: us(kernel.seconds.first()),
        slowest_us: us(kernel.seconds.last()),
        repeats: kernel.seconds.len() as u32,
        launches: kernel.launches as u32,
        bytes: kernel.bytes,
        operations: kernel.operations,
        bytes_s: kernel.bytes_s(),
        ops_s: kernel.ops_s(),
        of_limit,
        limit: bound.name(),
    }
}

fn tell_roofs(roofs: &Roofs, out: &mut dyn Write) -> Result<(), CliError> {
    let told = |name: &str, sorted: &[f64], median: f64, unit: &str| {
        let Rate { slowest, fastest, .. } = rate(sorted, median);
        format!("{name:6} {:.1} {unit} ({:.1} to {:.1})", median / 1e9, slowest / 1e9, fastest / 1e9)
    };
    let memory = &roofs.memory;
    writeln!(out, "{}", told("read", &memory.read_bytes_s, memory.read_median_bytes_s(), "GB/s"))?;
    writeln!(out, "{}", told("copy", &memory.copy_bytes_s, memory.copy_median_bytes_s(), "GB/s"))?;
    writeln!(
        out,
        "{}",
        told("matrix", &roofs.matrix_ops_s, roofs.matrix_median_ops_s(), "GOP/s, bf16 by mma")
    )?;
    writeln!(
        out,
        "\n{:38} {:>22} {:>10} {:>10} {:>10} {:>8} {:>9} {:>15}",
        "kernel", "shape", "median us", "fastest", "slowest", "GB/s", "GOP/s", "of the limit"
    )?;
    Ok(())
}

fn tell_kernel((name, line): &Line, roofs: &Roofs, out: &mut dyn Write) -> Result<(), CliError> {
    let time = match line {
        Ok(kernel) => time_row(kernel, roofs),
        Err(error) => return Ok(writeln!(out, "{name:38} not measured: {error}")?),
    };
    writeln!(
        out,
        "{name:38} {:>22} {:10.2} {:10.2} {:10.2} {:8.1} {:9.1} {:>15}",
        time.shape,
        time.median_us,
        time.fastest_us,
        time.slowest_us,
        time.bytes_s / 1e9,
        time.ops_s / 1e9,
        format!("{:.2} of {}", time.of_limit, time.limit)
    )?;
    Ok(())
}

fn check(args: &BenchKernelsArgs, place: &Place, head: Head, io: &mut Io<'_>) -> Result<(), CliError> {
    let (mut checks, mut failures, mut written) = (Vec::new(), Vec::new(), Ok(()));
    let filter = args.filter.as_deref();
    gpu::check(place, (args.seed, args.cases as usize), filter, |group, found| {
        if written.is_ok() {
            written = tell_checks(group, &found, io.out);
        }
        match found {
            Ok(rows) => checks.extend(rows.into_iter().map(|row| check_row(group, row))),
            Err(error) => failures.push(Failed { group, error }),
        }
    })
    .map_err(failed)?;
    written?;
    let wrong = checks.iter().filter(|check| !check.passed).count();
    let holds = wrong == 0 && failures.is_empty() && !checks.is_empty();
    let verdict = format!(
        "kernels: {wrong} of {} checks are beyond their bounds, {} groups were not run to their end; seed {}",
        checks.len(),
        failures.len(),
        args.seed
    );
    writeln!(io.out, "\n{verdict}")?;
    let report = Checks { head, seed: args.seed, cases: args.cases, holds, checks, failures };
    if let Some(path) = &args.json {
        write_json(path, &report)?;
    }
    if holds { Ok(()) } else { Err(CliError::Gate(verdict)) }
}

fn check_row(group: &'static str, row: CheckRow) -> Check {
    let passed = row.passed();
    let CheckRow { kernel, case, difference, allowed } = row;
    Check { group, kernel, case, difference, allowed, passed }
}

/// Each kernel with its worst case, and every case that is beyond its bound.
fn tell_checks(
    group: &str,
    found: &Result<Vec<CheckRow>, String>,
    out: &mut dyn Write,
) -> Result<(), CliError> {
    let rows = match found {
        Ok(rows) => rows,
        Err(error) => return Ok(writeln!(out, "{group}: not run to its end: {error}")?),
    };
    let mut names: Vec<&str> = rows.iter().map(|row| row.kernel.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    for name in names {
        let of_kernel = || rows.iter().filter(|row| row.kernel == name);
        let share = |row: &CheckRow| {
            if row.passed() { row.difference / row.allowed.max(f64::MIN_POSITIVE) } else { f64::INFINITY }
        };
        let Some(worst) = of_kernel().max_by(|a, b| share(a).total_cmp(&share(b))) else { continue };
        writeln!(
            out,
            "{name:34} {:4} cases, largest {:9.2e} of {:9.2e}  {}",
            of_kernel().count(),
            worst.difference,
            worst.allowed,
            if worst.passed() { "ok" } else { "BEYOND" }
        )?;
        for row in of_kernel().filter(|row| !row.passed()) {
            writeln!(out, "    {}: {:.3e}, allowed {:.3e}", row.case, row.difference, row.allowed)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use bench_engine::system::gpu::Bandwidth;

    #[test]
    fn each_kernel_shows_its_worst_case_and_all_that_failed() {
        let row = |kernel: &str, case: &str, difference| CheckRow {
            kernel: kernel.to_owned(),
            case: case.to_owned(),
            difference,
            allowed: 1e-3,
        };
        let rows =
            vec![row("b", "1", 1e-4), row("a", "2", 2e-3), row("b", "3", 5e-4), row("a", "4", f64::NAN)];
        let mut out = Vec::new();
        tell_checks("g", &Ok(rows), &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with('a') && lines[0].ends_with("BEYOND"), "{text}");
        assert!(lines[1].contains("2: 2.000e-3") && lines[2].contains("4: NaN"), "{text}");
        assert!(lines[3].starts_with('b') && lines[3].contains("5.00e-4") && lines[3].ends_with("ok"));
        let mut out = Vec::new();
        tell_checks("g", &Err("lost".to_owned()), &mut out).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "g: not run to its end: lost\n");
    }

    #[test]
    fn a_kernel_without_a_time_says_why() {
        let memory = Bandwidth { read_bytes_s: vec![1e9], copy_bytes_s: vec![1e9] };
        let roofs = Roofs { memory, matrix_ops_s: vec![1e9] };
        let row = kernel_row(("a".to_owned(), Err("no memory".to_owned())), &roofs);
        assert!(row.time.is_none() && row.error.as_deref() == Some("no memory"));
        let kernel = KernelTime {
            name: "a".to_owned(),
            shape: "1 x 1".to_owned(),
            seconds: vec![1.0, 2.0, 4.0],
            launches: 3,
            bytes: 1_000_000_000,
            operations: 10,
        };
        let time = time_row(&kernel, &roofs);
        assert_eq!((time.median_us, time.of_limit, time.limit), (2e6, 0.5, "read"));
    }
}
