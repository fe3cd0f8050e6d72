//! A million requests in one cell: how much memory and time it takes to store and to analyse them.
//!
//! `cargo bench -p tests --bench million [-- REQUESTS TOKENS]`. Each phase is a process of its own, so that its
//! largest resident size is its own; the goal is 200 MB.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use bench_core::event::{Channel, CountSource, Event, EventKind, FinishReason};
use bench_core::plan::Plan;
use bench_core::spec::RunSpec;
use bench_core::trace::RequestTrace;
use bench_core::unit::Nanos;
use bench_latency::Analysis;
use bench_runner::RunFolder;
use bench_runner::store::{Stored, TrialHeader};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let number = |i: usize, default: u32| args.get(i).map_or(default, |a| a.parse().unwrap());
    if let ["write" | "analyse", ..] = args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        let (folder, requests, tokens) = (Path::new(&args[1]), number(2, 0), number(3, 0));
        if args[0] == "write" {
            write(folder, requests, tokens);
        } else {
            analyse(folder);
        }
        return;
    }
    let (requests, tokens) = (number(0, 1_000_000), number(1, 32));
    let dir = tempfile::tempdir().unwrap();
    for phase in ["write", "analyse"] {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.arg(phase).arg(dir.path()).args([requests, tokens].map(|n| n.to_string()));
        assert!(command.status().unwrap().success());
    }
}

fn plan(requests: u32, tokens: u32) -> (String, Plan) {
    let text = format!(
        "[target]\nkind = \"http\"\n[server]\nbase_url = \"http://h:1\"\n[load]\nconcurrency = [64]\n\
         requests = {requests}\n[workload]\nprompt_tokens = [8]\noutput_tokens = [{tokens}]\n[[models]]\n\
         id = \"org/m\"\n"
    );
    let plan = RunSpec::from_toml("million", &text).unwrap().resolve().unwrap();
    (text, plan)
}

fn write(results: &Path, requests: u32, tokens: u32) {
    let started = Instant::now();
    let (text, plan) = plan(requests, tokens);
    let provenance = bench_runner::provenance::gather(&plan, &[]);
    let folder = RunFolder::create(results, &text, &plan, &provenance).unwrap();
    let trial = &plan.trials[0];
    let header = TrialHeader {
        schema_version: bench_core::SCHEMA_VERSION,
        trial: trial.index,
        cell: trial.cell.clone(),
        round: trial.round,
        planned_requests: requests,
        started_at_unix_ms: 0,
    };
    let mut writer = folder.begin_trial(trial, &header).unwrap();
    for repeat in 0..requests {
        writer.request(&request(repeat, tokens)).unwrap();
    }
    let path = writer.finish(true).unwrap();
    let bytes = std::fs::metadata(path).unwrap().len();
    println!(
        "write    {requests} requests x {tokens} tokens: {:.1} s, {:.0} MB on disk, {}",
        started.elapsed().as_secs_f64(),
        bytes as f64 / 1e6,
        peak()
    );
}

fn analyse(results: &Path) {
    let started = Instant::now();
    let path = bench_runner::store::list_runs(results).unwrap().remove(0);
    let folder = RunFolder::open(&path).unwrap();
    let cell = &folder.plan().cells[0];
    let mut analysis = Analysis::new(folder.plan(), cell, "http");
    for line in folder.streams(&cell.id).flat_map(Result::unwrap) {
        match line.unwrap() {
            Stored::Header(header) => analysis.trial(header.trial, &header.cell).unwrap(),
            Stored::Request(request) => analysis.request(&request).unwrap(),
            _ => {}
        }
    }
    let (read, held) = (started.elapsed().as_secs_f64(), analysis.heap_bytes());
    let summary = analysis.finish(false, None).unwrap().summary;
    println!(
        "analyse  {} requests, {} estimates: {read:.1} s to take in, {:.1} s in all, {:.0} MB held, {}",
        summary.requests,
        summary.estimates.len(),
        started.elapsed().as_secs_f64(),
        held as f64 / 1e6,
        peak()
    );
}

/// 64 in flight; times differ from request to request and from gap to gap, the same in every run.
fn request(repeat: u32, tokens: u32) -> RequestTrace {
    let noise = |salt: u64| {
        let x = (u64::from(repeat) << 20 ^ salt).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        (x ^ x >> 29).wrapping_mul(0xBF58_476D_1CE4_E5B9) >> 44
    };
    let start = u64::from(repeat) * 5_000_000;
    let event = |at, kind| Event { at: Nanos(at), kind };
    let mut at = start + 20_000_000 + 10 * noise(1);
    let mut events = vec![
        event(start, EventKind::Intended),
        event(start + noise(2) / 100, EventKind::Sent),
        event(at, EventKind::FirstByte),
    ];
    for token in 0..tokens {
        events.push(event(at, EventKind::Tokens { count: 1, channel: Channel::Final }));
        at += 9_000_000 + noise(3 + u64::from(token));
    }
    let source = CountSource::Usage;
    let (prompt_tokens, output_tokens, cached_prompt_tokens) = (8, tokens, None);
    events.push(event(at, EventKind::Counted { prompt_tokens, output_tokens, cached_prompt_tokens, source }));
    events.push(event(at, EventKind::Done { finish: FinishReason::Length }));
    RequestTrace {
        repeat,
        slot: 0,
        prompt_hash: "0123456789abcdef".to_owned(),
        asked: None,
        server: None,
        kv_allocated_bytes: None,
        events,
    }
}

/// Largest resident size of this process so far, where the system says it.
fn peak() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    let kib = line.and_then(|l| l.trim().trim_end_matches("kB").trim().parse::<f64>().ok());
    kib.map_or_else(
        || "peak memory unknown".to_owned(),
        |kib| format!("{:.0} MB at most", kib * 1024.0 / 1e6),
    )
}
