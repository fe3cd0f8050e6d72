//! Gathers where a run came from: build, machine, command, with secrets left out.
//!
//! What a machine does not tell is `None`; no value is guessed.

use crate::targets::secrets::HIDDEN;
use crate::time::Utc;
use bench_core::SCHEMA_VERSION;
use bench_core::clock::{MonotonicClock, measure_precision};
use bench_core::plan::Plan;
use bench_core::provenance::{Build, Machine, Provenance};
use std::collections::BTreeMap;
use std::fs;

/// Readings of the clock for its precision: a millisecond or two.
const CLOCK_READINGS: u32 = 20_000;
const REDACTED: &str = HIDDEN;
/// Options whose value is a secret.
const SECRET_OPTIONS: [&str; 6] = ["--api-key", "--token", "--hf-token", "--auth", "--password", "--bearer"];
/// Options whose values are headers: all that follow, up to the next option.
const HEADER_OPTIONS: [&str; 2] = ["--header", "-H"];
/// How keys of hubs and services begin.
const SECRET_PREFIXES: [&str; 3] = ["hf_", "sk-", "Bearer "];

/// Provenance of a run of `plan` that begins now; its run id is `<name>-<UTC>-<plan hash>`.
pub fn gather(plan: &Plan, command: &[String]) -> Provenance {
    let now = Utc::now();
    let plan_hash = plan.hash();
    let short: String = plan_hash.chars().take(8).collect();
    Provenance {
        schema_version: SCHEMA_VERSION,
        run_id: format!("{}-{}-{short}", plan.name, now.compact()),
        started_at: now.rfc3339(),
        command: redact(command),
        plan_hash,
        build: build(),
        machine: machine(),
        models: BTreeMap::new(),
        servers: BTreeMap::new(),
        loads: BTreeMap::new(),
        resumptions: Vec::new(),
    }
}

/// This binary.
pub fn build() -> Build {
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    Build {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        commit: some(env!("OSSBENCH_COMMIT")),
        dirty: some(env!("OSSBENCH_DIRTY")).map(|d| d == "true"),
        rustc: env!("OSSBENCH_RUSTC").to_owned(),
        target_triple: env!("OSSBENCH_TARGET").to_owned(),
        features: env!("OSSBENCH_FEATURES").split(',').filter(|f| !f.is_empty()).map(str::to_owned).collect(),
        debug: cfg!(debug_assertions) || env!("OSSBENCH_OPT_LEVEL") == "0",
    }
}

/// This machine, as it is now.
pub fn machine() -> Machine {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpu = parse_cpu(&read("/proc/cpuinfo"));
    let memory = read("/proc/meminfo");
    let system = rustix::system::uname();
    Machine {
        cpu: cpu.name.unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
        cores: std::thread::available_parallelism().map_or(1, |n| n.get() as u32),
        cpu_features: cpu.features,
        memory_bytes: parse_memory(&memory, "MemTotal"),
        memory_available_bytes: parse_memory(&memory, "MemAvailable"),
        kernel: format!("{} {}", system.sysname().to_string_lossy(), system.release().to_string_lossy()),
        governor: fs::read_to_string("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
            .ok()
            .map(|g| g.trim().to_owned()),
        load_average: parse_load(&read("/proc/loadavg")),
        gpus: gpus(),
        clock: measure_precision(&MonotonicClock::default(), CLOCK_READINGS),
    }
}

struct Cpu {
    name: Option<String>,
    features: Vec<String>,
}

/// Reads the first processor of `/proc/cpuinfo`; x86 and Arm name their fields differently.
fn parse_cpu(text: &str) -> Cpu {
    let field = |names: &[&str]| {
        let mut pairs = text.lines().filter_map(|l| l.split_once(':'));
        pairs.find(|(k, _)| names.contains(&k.trim())).map(|(_, v)| v.trim().to_owned())
    };
    let features = field(&["flags", "Features"]).unwrap_or_default();
    Cpu {
        name: field(&["model name", "Model", "Hardware"]),
        features: features.split_whitespace().map(str::to_owned).collect(),
    }
}

/// `MemTotal:       24689764 kB` in bytes.
fn parse_memory(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

fn parse_load(text: &str) -> Option<[f64; 3]> {
    let mut numbers = text.split_whitespace().map(str::parse::<f64>);
    let mut next = || numbers.next()?.ok();
    Some([next()?, next()?, next()?])
}

/// Models of the GPUs that NVIDIA's driver lists.
fn gpus() -> Vec<String> {
    let Ok(folders) = fs::read_dir("/proc/driver/nvidia/gpus") else { return Vec::new() };
    let mut found: Vec<_> = folders
        .filter_map(|f| fs::read_to_string(f.ok()?.path().join("information")).ok())
        .filter_map(|text| text.lines().find_map(|l| Some(l.strip_prefix("Model:")?.trim().to_owned())))
        .collect();
    found.sort();
    found
}

/// The command without its secrets: values of options that hold keys, values of headers, passwords in
/// addresses, and anything that begins like a key.
pub fn redact(command: &[String]) -> Vec<String> {
    let (mut previous, mut in_headers) = ("", false);
    let mut clean = Vec::with_capacity(command.len());
    for argument in command {
        let (option, value) = argument.split_once('=').unwrap_or((argument.as_str(), ""));
        in_headers = HEADER_OPTIONS.contains(&option) || (in_headers && !argument.starts_with('-'));
        let text = match argument.split_once('=') {
            _ if SECRET_OPTIONS.contains(&previous) => REDACTED.to_owned(),
            Some(_) if SECRET_OPTIONS.contains(&option) => format!("{option}={REDACTED}"),
            Some(_) if HEADER_OPTIONS.contains(&option) => format!("{option}={}", redact_header(value)),
            None if HEADER_OPTIONS.contains(&option) => argument.clone(),
            _ if in_headers => redact_header(argument),
            // clap takes a short option's value without a space.
            _ if argument.starts_with("-H") => format!("-H{}", redact_header(&argument[2..])),
            _ => redact_address(&redact_keys(argument)),
        };
        clean.push(text);
        previous = argument;
    }
    clean
}

/// `NAME=VALUE` or `NAME: VALUE`: any value may be a secret.
fn redact_header(header: &str) -> String {
    match header.find(['=', ':']) {
        Some(at) => format!("{}{REDACTED}", &header[..=at]),
        None => REDACTED.to_owned(),
    }
}

/// `https://user:password@host` keeps the host.
fn redact_address(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
    let host_end = rest.find('/').unwrap_or(rest.len());
    match rest[..host_end].rfind('@') {
        Some(at) => format!("{scheme}://{REDACTED}{}", &rest[at..]),
        None => text.to_owned(),
    }
}

/// Replaces every word that begins with a known prefix and is long enough to be a key.
fn redact_keys(text: &str) -> String {
    let mut clean = String::new();
    let mut rest = text;
    let mut at_word = true;
    while let Some(c) = rest.chars().next() {
        let prefix = SECRET_PREFIXES.iter().find(|p| at_word && rest.starts_with(**p));
        let tail = prefix.map_or("", |p| &rest[p.len()..]);
        let length =
            tail.find(|c: char| !(c.is_ascii_alphanumeric() || "_-.".contains(c))).unwrap_or(tail.len());
        if let Some(prefix) = prefix.filter(|_| length >= 8) {
            clean.push_str(REDACTED);
            rest = &rest[prefix.len() + length..];
            at_word = false;
            continue;
        }
        clean.push(c);
        at_word = !c.is_alphanumeric();
        rest = &rest[c.len_utf8()..];
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redacted(text: &str) -> String {
        let words: Vec<_> = text.split('|').map(str::to_owned).collect();
        redact(&words).join("|")
    }

    #[test]
    fn secrets_do_not_reach_the_results() {
        for (given, expected) in [
            ("run|--api-key|abc|x.toml", "run|--api-key|***|x.toml"),
            ("run|--api-key=abc", "run|--api-key=***"),
            ("-H|Authorization: Bearer abc", "-H|Authorization:***"),
            ("-HX-A=abc|-m|a=b", "-HX-A=***|-m|a=b"),
            ("--header=X-Api-Key: abc", "--header=X-Api-Key:***"),
            ("--header|X-A=a|X-B=b=c|--seed|1", "--header|X-A=***|X-B=***|--seed|1"),
            ("--header=X-A=a|X-B=b|-o|x=y", "--header=X-A=***|X-B=***|-o|x=y"),
            ("--header|abc", "--header|***"),
            ("--extra-body|{\"a\": 1}", "--extra-body|{\"a\": 1}"),
            ("--url|https://me:pw@host/v1", "--url|https://***@host/v1"),
            ("--model=hf_abcdefghij", "--model=***"),
            ("sk-abcdef0123456789 and|Bearer abcdefghij", "*** and|***"),
            ("disk-usage-0123456789|half_abcdefghijk", "disk-usage-0123456789|half_abcdefghijk"),
            ("-m|dummy:gpt-oss-nano|sk-1", "-m|dummy:gpt-oss-nano|sk-1"),
        ] {
            assert_eq!(redacted(given), expected);
        }
    }

    #[test]
    fn proc_files_are_read() {
        let cpu = parse_cpu("processor\t: 0\nmodel name\t: A CPU\nflags\t\t: fpu avx2\n\nprocessor\t: 1\n");
        assert_eq!((cpu.name.as_deref(), cpu.features.len()), (Some("A CPU"), 2));
        let memory = "MemTotal:       24689764 kB\nMemFree: 1 kB\nMemAvailable:   100 kB\n";
        assert_eq!(parse_memory(memory, "MemTotal"), Some(24_689_764 * 1024));
        assert_eq!(parse_memory(memory, "MemAvailable"), Some(102_400));
        assert_eq!(parse_memory("", "MemTotal"), None);
        assert_eq!(parse_load("0.50 1.25 2.00 1/200 4321"), Some([0.5, 1.25, 2.0]));
        assert_eq!(parse_load(""), None);
    }

    #[test]
    fn this_build_and_machine_are_described() {
        let (build, machine) = (build(), machine());
        assert!(build.rustc.starts_with("rustc 1."), "{build:?}");
        assert!(build.target_triple.contains(std::env::consts::ARCH), "{build:?}");
        assert!(machine.cores >= 1 && !machine.cpu.is_empty() && machine.clock.reading_ns > 0.0);
    }
}
