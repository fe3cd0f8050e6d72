//! The result file of `vllm bench serve` for one cell: its keys with its definitions, and ours under
//! `ossbench`.
//!
//! A view for tools that read that file; METRICS.md and the unified CSV stay the truth. Where its
//! definitions differ from ours: time to first token is to the first chunk of any kind (our
//! `ttft_role_ms`), and gaps and time per token begin there; a chunk of several tokens is one gap; standard
//! deviations divide by n; rates are over the whole duration, ramp and drain included. Where it writes 0 for
//! what is missing, null stands here; a stream without a finish reason has failed, and a last chunk without
//! a token does not lengthen a request.

use super::vllm::wrong;
use crate::args::{LatencyArgs, SaveArgs};
use crate::{CliError, Io};
use bench_core::load::{Arrival, Growth, Load};
use bench_core::plan::{Cell, ModelPlan, Plan, Slo};
use bench_core::provenance::Provenance;
use bench_core::sample::{Estimate, Summary};
use bench_core::spec::Endpoint;
use bench_core::stats::Distribution;
use bench_core::trace::{Outcome, RequestTrace, Timeline, TrialTrace};
use bench_core::unit::Nanos;
use bench_report::Format;
use bench_runner::store::RunFolder;
use serde_json::{Map, Value, json};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// vLLM's names of per-request metrics.
const METRICS: [&str; 6] =
    ["ttft", "tpot", "itl", "e2el", "client_queue_time", "e2el_including_client_queue"];

/// What is written, and where.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    metrics: Vec<&'static str>,
    percentiles: Vec<f64>,
    backend: Option<String>,
    metadata: Vec<(String, String)>,
    file: Option<SaveArgs>,
}

impl Options {
    /// `None` where neither the file nor its summary is asked for.
    pub(crate) fn new(args: &LatencyArgs) -> Result<Option<Self>, CliError> {
        let save = &args.save;
        let to_file = save.save_result || save.append_result;
        let of_the_file = [
            ("--save-detailed", save.save_detailed),
            ("--result-dir", save.result_dir.is_some()),
            ("--result-filename", save.result_filename.is_some()),
            ("--label", save.label.is_some()),
            ("--metadata", !save.metadata.is_empty()),
        ];
        if let Some((flag, _)) = of_the_file.iter().find(|(_, given)| *given && !to_file) {
            return Err(wrong(flag, "only with --save-result or --append-result"));
        }
        if !to_file && save.percentile_metrics.is_empty() && save.metric_percentiles.is_empty() {
            return Ok(None);
        }
        if let Some(p) = save.metric_percentiles.iter().find(|p| !(0.0..=100.0).contains(*p)) {
            return Err(wrong("--metric-percentiles", format!("{p} is not in [0, 100]")));
        }
        let percentiles =
            if save.metric_percentiles.is_empty() { vec![99.0] } else { save.metric_percentiles.clone() };
        Ok(Some(Self {
            metrics: metrics(&save.percentile_metrics)?,
            percentiles,
            backend: args.server.backend.as_ref().map(|b| b.name.clone()),
            metadata: save.metadata.iter().map(|text| metadata(text)).collect::<Result<_, _>>()?,
            file: to_file.then(|| save.clone()),
        }))
    }
}

fn metrics(names: &[String]) -> Result<Vec<&'static str>, CliError> {
    if names.is_empty() {
        return Ok(METRICS[..3].to_vec());
    }
    let known = |name: &String| {
        let found = METRICS.into_iter().find(|metric| metric == name);
        found.ok_or_else(|| {
            wrong("--percentile-metrics", format!("\"{name}\" is unknown; valid: {}", METRICS.join(", ")))
        })
    };
    names.iter().map(known).collect()
}

fn metadata(text: &str) -> Result<(String, String), CliError> {
    let pair = text.split_once('=').filter(|(key, _)| !key.trim().is_empty());
    let (key, value) = pair.ok_or_else(|| wrong("--metadata", format!("\"{text}\": expected KEY=VALUE")))?;
    Ok((key.trim().to_owned(), value.trim().to_owned()))
}

/// Writes and prints the result of each cell of the run in folder `run`.
pub(crate) fn write(options: &Options, run: &Path, format: Format, io: &mut Io<'_>) -> Result<(), CliError> {
    let folder = RunFolder::open(run)?;
    let (plan, provenance) = (folder.plan(), folder.provenance());
    let mut trials = folder.read_trials()?;
    for cell in &plan.cells {
        let own: Vec<TrialTrace> = trials.extract_if(.., |trial| trial.cell == cell.id).collect();
        let target = plan.target.kind.key();
        let calibration = folder.calibration(&cell.id)?;
        let debug = provenance.build.debug;
        let summary = bench_latency::summarise(plan, cell, &own, debug, target, calibration.as_ref())?;
        let result = result(options, plan, provenance, cell, &own, &summary)?;
        let to_table = format == Format::Table;
        let stream: &mut dyn Write = if to_table { io.out } else { io.err };
        print(options, cell, &result, stream)?;
        if let Some(save) = &options.file {
            let path = path(save, options, plan, cell, &result);
            store(save, &path, &result)?;
            writeln!(stream, "{:<7} {}", "result", path.display())?;
        }
    }
    Ok(())
}

/// One cell's file.
fn result(
    options: &Options,
    plan: &Plan,
    provenance: &Provenance,
    cell: &Cell,
    trials: &[TrialTrace],
    summary: &Summary,
) -> Result<Value, CliError> {
    let model = plan.model(&cell.model);
    let mut result = Map::new();
    let mut set = |key: &str, value: Value| _ = result.insert(key.to_owned(), value);
    let backend = backend(options, plan);
    set("date", json!(compact(&provenance.started_at)));
    set("endpoint_type", json!(backend));
    set("backend", json!(backend));
    set("label", json!(options.file.as_ref().and_then(|f| f.label.as_ref())));
    set("model_id", json!(model.map(|m| &m.id)));
    set("tokenizer_id", json!(model.and_then(|m| m.tokenizer.as_ref())));
    set("num_prompts", json!(cell.requests()));
    for (key, value) in &options.metadata {
        set(key, json!(value));
    }
    traffic(&cell.load, &mut result);
    let lives = lives(cell, trials)?;
    figures(options, plan.slo.as_ref(), &lives, duration_s(trials), &mut result)?;
    if options.file.as_ref().is_some_and(|f| f.save_detailed) {
        detailed(&lives, &mut result);
    }
    result.insert("ossbench".to_owned(), ours(provenance, cell, summary));
    Ok(Value::Object(result))
}

/// As typed; else vLLM's name of the API that was used.
fn backend(options: &Options, plan: &Plan) -> String {
    let by_plan = match &plan.server {
        Some(server) if server.endpoint == Endpoint::Chat => "openai-chat",
        Some(_) => "openai",
        None => plan.target.kind.key(),
    };
    options.backend.clone().unwrap_or_else(|| by_plan.to_owned())
}

/// `2025-06-28T13:45:01Z` as `20250628-134501`.
fn compact(rfc3339: &str) -> String {
    rfc3339
        .chars()
        .filter(|c| c.is_ascii_digit() || *c == 'T')
        .map(|c| if c == 'T' { '-' } else { c })
        .collect()
}

/// `request_rate` is "inf" where requests are not held back by a schedule.
fn traffic(load: &Load, result: &mut Map<String, Value>) {
    let mut set = |key: &str, value: Value| _ = result.insert(key.to_owned(), value);
    let ramp = match load {
        Load::Open { arrival: Arrival::Ramp { from, to, growth }, .. } => Some((from, to, growth)),
        _ => None,
    };
    let rate = load.rate().filter(|_| ramp.is_none());
    set("request_rate", rate.map_or(json!("inf"), |rate| json!(rate)));
    let burstiness = match load {
        Load::Open { arrival: Arrival::Gamma { burstiness, .. }, .. } => json!(burstiness),
        Load::Open { arrival: Arrival::Constant { .. }, .. } => json!("inf"),
        _ => json!(1.0),
    };
    set("burstiness", burstiness);
    set("max_concurrency", json!(load.concurrency()));
    if let Some((from, to, growth)) = ramp {
        set("ramp_up_strategy", json!(strategy(*growth)));
        set("ramp_up_start_rps", json!(from));
        set("ramp_up_end_rps", json!(to));
    }
}

fn strategy(growth: Growth) -> &'static str {
    match growth {
        Growth::Linear => "linear",
        Growth::Exponential => "exponential",
    }
}

/// One request with vLLM's definitions, in seconds.
struct Life {
    start_s: f64,
    end_s: Option<f64>,
    queue_s: f64,
    /// To the first chunk, to the last token; `None` if the request failed.
    ttft_s: Option<f64>,
    latency_s: Option<f64>,
    gaps_s: Vec<f64>,
    /// Arrivals of tokens, and how many.
    tokens: Vec<(f64, u32)>,
    input_len: u64,
    /// 0 if the request failed: its tokens are not counted.
    output_len: u64,
    error: String,
}

fn lives(cell: &Cell, trials: &[TrialTrace]) -> Result<Vec<Life>, CliError> {
    trials.iter().flat_map(|t| &t.requests).map(|request| life(cell, request)).collect()
}

fn life(cell: &Cell, request: &RequestTrace) -> Result<Life, CliError> {
    let t = Timeline::read(&cell.id, request)?;
    let asked = request.asked.map_or(cell.prompt_tokens, |asked| asked.prompt_tokens);
    let since_sent = |at: Nanos| at.since(t.sent).map(seconds);
    // A first chunk without a token opens the first gap.
    let before_tokens = t.first_chunk.filter(|first| Some(*first) != t.first_token());
    let arrivals: Vec<Nanos> = before_tokens.into_iter().chain(t.chunks.iter().map(|c| c.0)).collect();
    let ok = t.succeeded();
    let gaps = arrivals.windows(2).map(|w| seconds(w[1]) - seconds(w[0]));
    Ok(Life {
        start_s: seconds(t.sent),
        end_s: t.last_token().filter(|_| ok).map(seconds),
        queue_s: t.sent.since(t.intended).map_or(0.0, seconds),
        ttft_s: t.first_chunk.filter(|_| ok).and_then(since_sent),
        latency_s: t.last_token().filter(|_| ok).and_then(since_sent),
        gaps_s: if ok { gaps.collect() } else { vec![] },
        tokens: if ok { t.chunks.iter().map(|c| (seconds(c.0), c.1)).collect() } else { vec![] },
        input_len: t.prompt_tokens.map_or(u64::from(asked), u64::from),
        output_len: if ok { t.token_count() } else { 0 },
        error: match t.outcome {
            Outcome::Failed { failure, message } => format!("{}: {message}", failure.key()),
            Outcome::Finished(_) if ok => String::new(),
            Outcome::Finished(_) => "no token came".to_owned(),
        },
    })
}

fn seconds(at: Nanos) -> f64 {
    at.0 as f64 / 1e9
}

/// From the first intended start to the last event, summed over the trials.
fn duration_s(trials: &[TrialTrace]) -> f64 {
    let of_trial = |trial: &TrialTrace| {
        let first = trial.requests.iter().filter_map(|r| r.events.first()).map(|e| e.at).min();
        let last = trial.requests.iter().filter_map(|r| r.events.last()).map(|e| e.at).max();
        first.zip(last).map_or(0.0, |(first, last)| seconds(last) - seconds(first))
    };
    trials.iter().map(of_trial).sum()
}

fn figures(
    options: &Options,
    slo: Option<&Slo>,
    lives: &[Life],
    duration_s: f64,
    result: &mut Map<String, Value>,
) -> Result<(), CliError> {
    let mut set = |key: String, value: Value| _ = result.insert(key, value);
    let good: Vec<&Life> = lives.iter().filter(|l| l.latency_s.is_some()).collect();
    let inputs: u64 = good.iter().map(|l| l.input_len).sum();
    let outputs: u64 = good.iter().map(|l| l.output_len).sum();
    let per_second = |count: u64| json!((duration_s > 0.0).then(|| count as f64 / duration_s));
    let within_limits = |slo: &Slo| good.iter().filter(|l| meets(l, slo)).count() as u64;
    for (key, value) in [
        ("duration", json!(duration_s)),
        ("completed", json!(good.len())),
        ("failed", json!(lives.len() - good.len())),
        ("total_input_tokens", json!(inputs)),
        ("total_output_tokens", json!(outputs)),
        ("request_throughput", per_second(good.len() as u64)),
        ("request_goodput", slo.map_or(Value::Null, |slo| per_second(within_limits(slo)))),
        ("output_throughput", per_second(outputs)),
        ("total_token_throughput", per_second(inputs + outputs)),
        ("max_output_tokens_per_s", json!(most_tokens_in_a_second(&good))),
        ("max_concurrent_requests", json!(most_in_flight(&good))),
    ] {
        set(key.to_owned(), value);
    }
    for metric in &options.metrics {
        let values = Distribution::new(good.iter().flat_map(|l| values_ms(metric, l)).collect())?;
        let n = values.n() as f64;
        // numpy's default divides by n.
        let std = values.std_dev().map(|sd| sd * ((n - 1.0) / n).sqrt()).or(values.mean().map(|_| 0.0));
        set(format!("mean_{metric}_ms"), json!(values.mean()));
        set(format!("median_{metric}_ms"), json!(values.quantile(0.5)));
        set(format!("std_{metric}_ms"), json!(std));
        for p in &options.percentiles {
            set(format!("p{p}_{metric}_ms"), json!(values.quantile(p / 100.0)));
        }
    }
    Ok(())
}

fn values_ms(metric: &str, life: &Life) -> Vec<f64> {
    let one = |value: Option<f64>| value.map(|s| s * 1e3).into_iter().collect();
    match metric {
        "ttft" => one(life.ttft_s),
        "tpot" => one(tpot_s(life)),
        "itl" => life.gaps_s.iter().map(|s| s * 1e3).collect(),
        "client_queue_time" => one(Some(life.queue_s)),
        "e2el_including_client_queue" => one(life.latency_s.map(|s| s + life.queue_s)),
        _ => one(life.latency_s),
    }
}

/// From the first chunk, role-only or not; `None` below two tokens.
fn tpot_s(life: &Life) -> Option<f64> {
    let later = life.output_len.checked_sub(1).filter(|n| *n > 0)?;
    Some((life.latency_s? - life.ttft_s?) / later as f64)
}

/// A single token has no TPOT, and meets any limit of it.
fn meets(life: &Life, slo: &Slo) -> bool {
    let within = |limit_ms: Option<f64>, s: f64| limit_ms.is_none_or(|limit| s * 1e3 <= limit);
    within(slo.ttft_ms, life.ttft_s.unwrap_or(0.0))
        && within(slo.tpot_ms, tpot_s(life).unwrap_or(0.0))
        && within(slo.e2el_ms, life.latency_s.unwrap_or(0.0))
}

/// Most tokens in any second since the first request was sent.
fn most_tokens_in_a_second(lives: &[&Life]) -> Option<u64> {
    let start = lives.iter().map(|l| l.start_s).min_by(f64::total_cmp)?;
    let mut seconds = std::collections::BTreeMap::<u64, u64>::new();
    for (at, count) in lives.iter().flat_map(|l| &l.tokens) {
        *seconds.entry((at - start).max(0.0) as u64).or_default() += u64::from(*count);
    }
    seconds.into_values().max()
}

fn most_in_flight(lives: &[&Life]) -> i64 {
    let ends = |l: &&Life| Some([(l.start_s, 1), (l.end_s?, -1)]);
    let mut changes: Vec<(f64, i64)> = lives.iter().filter_map(ends).flatten().collect();
    // Who leaves at an instant leaves before another comes.
    changes.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let in_flight = changes.into_iter().scan(0, |now, (_, change)| {
        *now += change;
        Some(*now)
    });
    in_flight.max().unwrap_or(0)
}

/// Lists over all requests in their order, in seconds. The text of answers is not kept.
fn detailed(lives: &[Life], result: &mut Map<String, Value>) {
    let mut set = |key: &str, of: &dyn Fn(&Life) -> Value| {
        result.insert(key.to_owned(), lives.iter().map(of).collect());
    };
    set("input_lens", &|l| json!(l.input_len));
    set("output_lens", &|l| json!(l.output_len));
    set("start_times", &|l| json!(l.start_s));
    set("ttfts", &|l| json!(l.ttft_s));
    set("itls", &|l| json!(l.gaps_s));
    set("latencies", &|l| json!(l.latency_s));
    set("queue_times", &|l| json!(l.queue_s));
    set("generated_texts", &|_| json!(""));
    set("errors", &|l| json!(l.error));
}

/// What vLLM's file has no place for.
fn ours(provenance: &Provenance, cell: &Cell, summary: &Summary) -> Value {
    json!({
        "schema_version": bench_core::SCHEMA_VERSION,
        "run_id": provenance.run_id,
        "plan_hash": provenance.plan_hash,
        "cell": cell.id,
        "load": cell.load.key(),
        "requests": summary.requests,
        "succeeded": summary.succeeded,
        "verdict": summary.verdict.key(),
        "verdict_reason": summary.verdict.reason_text(),
        "client": summary.client.as_ref().map(ToString::to_string),
        "metrics": summary.estimates.iter().map(estimate).collect::<Vec<_>>(),
    })
}

fn estimate(e: &Estimate) -> Value {
    json!({
        "metric": e.metric.def().key,
        "unit": e.metric.def().unit,
        "stat": e.stat.key(),
        "value": e.value,
        "ci_low": e.interval.and_then(|i| i.low),
        "ci_high": e.interval.and_then(|i| i.high),
        "ci_method": e.interval.map(|i| i.method.key()),
        "n": e.n,
        "missing": e.missing,
        "bounded": e.bounded,
        "instrument_error": e.instrument_error,
    })
}

/// The figures that the flags chose, in a few lines.
fn print(options: &Options, cell: &Cell, result: &Value, out: &mut dyn Write) -> Result<(), CliError> {
    let number = |key: &str| result[key].as_f64().map_or("-".to_owned(), |x| format!("{x:.2}"));
    writeln!(out, "\n{}, by vLLM's definitions:", cell.id)?;
    writeln!(
        out,
        "  {} requests completed, {} failed in {} s; {} req/s, {} tok/s of output, {} tok/s in all",
        result["completed"],
        result["failed"],
        number("duration"),
        number("request_throughput"),
        number("output_throughput"),
        number("total_token_throughput")
    )?;
    let percentiles = options.percentiles.iter().map(|p| format!("p{p}"));
    let stats: Vec<String> =
        ["mean", "median", "std"].map(str::to_owned).into_iter().chain(percentiles).collect();
    let row = |name: &str, cells: Vec<String>| {
        let cells: Vec<_> = cells.iter().map(|c| format!("{c:>11}")).collect();
        format!("  {name:<28}{}", cells.join(""))
    };
    writeln!(out, "{}", row("ms", stats.clone()))?;
    for metric in &options.metrics {
        let cells = stats.iter().map(|stat| number(&format!("{stat}_{metric}_ms"))).collect();
        writeln!(out, "{}", row(metric, cells))?;
    }
    Ok(())
}

/// vLLM's name of the file unless there is one; several cells have their ids in it.
fn path(save: &SaveArgs, options: &Options, plan: &Plan, cell: &Cell, result: &Value) -> PathBuf {
    let given = save.result_filename.clone();
    let name = given.unwrap_or_else(|| PathBuf::from(usual_name(save, options, plan, cell, result)));
    let name = if plan.cells.len() > 1 && !save.append_result {
        let stem = name.file_stem().unwrap_or_default().to_string_lossy();
        let end = name.extension().map_or(String::new(), |e| format!(".{}", e.to_string_lossy()));
        name.with_file_name(format!("{stem}-{}{end}", cell.id))
    } else {
        name
    };
    save.result_dir.as_ref().map_or(name.clone(), |dir| dir.join(name))
}

fn usual_name(save: &SaveArgs, options: &Options, plan: &Plan, cell: &Cell, result: &Value) -> String {
    let label = save.label.clone().unwrap_or_else(|| backend(options, plan));
    // Cells that share a file share its name.
    let load = if save.append_result { &plan.cells.first().unwrap_or(cell).load } else { &cell.load };
    let rate = match load {
        Load::Open { arrival: Arrival::Ramp { from, to, growth }, .. } => {
            format!("ramp-up-{}-{from}qps-{to}qps", strategy(*growth))
        }
        load => load.rate().map_or("infqps".to_owned(), |rate| format!("{rate}qps")),
    };
    let concurrency = load.concurrency().map_or(String::new(), |c| format!("-concurrency{c}"));
    let last = |m: &ModelPlan| m.id.rsplit('/').next().unwrap_or_default().replace(':', "-");
    let model = plan.model(&cell.model).map_or_else(|| cell.model.clone(), last);
    format!("{label}-{rate}{concurrency}-{model}-{}.json", result["date"].as_str().unwrap_or_default())
}

fn store(save: &SaveArgs, path: &Path, result: &Value) -> Result<(), CliError> {
    let failed = |e: std::io::Error| CliError::Failed(format!("cannot write {}: {e}", path.display()));
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(failed)?;
    }
    let mut file = OpenOptions::new()
        .create(true)
        .write(!save.append_result)
        .append(save.append_result)
        .truncate(!save.append_result)
        .open(path)
        .map_err(failed)?;
    writeln!(file, "{result}").map_err(failed)
}

#[cfg(test)]
mod tests;
