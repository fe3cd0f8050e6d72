//! What a plan says of a server, of its prompts and of its load, resolved from `[server]`, `[load]` and the
//! server's part of `[workload]`.

use super::{at_least_one, axis, value};
use crate::Error;
use crate::load::{Arrival, Growth, Load};
use crate::spec::{
    ArrivalKind, Dataset, Endpoint, LoadTable, ModelTable, RunSpec, ServerTable, TargetKind, TraceFormat,
    WorkloadTable,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The server and the client's behaviour towards it, every default explicit.
// Each is a key of the study, and a key that is yes or no is a bool.
#[allow(clippy::struct_excessive_bools)]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServerPlan {
    /// `None` where each model has its own.
    pub base_url: Option<String>,
    pub endpoint: Endpoint,
    pub api_key_env: String,
    pub headers: BTreeMap<String, String>,
    pub extra_body: serde_json::Map<String, serde_json::Value>,
    pub stream: bool,
    pub fixed_length: bool,
    pub connect_timeout_s: f64,
    pub first_token_timeout_s: f64,
    pub gap_timeout_s: f64,
    pub request_timeout_s: f64,
    pub ready_timeout_s: f64,
    pub insecure: bool,
    pub ca_file: Option<String>,
    /// `None`: by the number of requests in flight.
    pub client_threads: Option<u32>,
    /// Cores are kept from sleeping while a trial runs.
    pub keep_awake: bool,
    pub metrics: bool,
    pub metrics_url: Option<String>,
    pub metrics_interval_ms: f64,
    pub calibrate: bool,
    pub prompts: PromptPlan,
    /// The recorded trace that `replay` follows.
    pub trace: Option<TracePlan>,
}

/// Where prompts come from and what they share.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PromptPlan {
    pub dataset: Dataset,
    pub dataset_path: Option<String>,
    pub dataset_hash: Option<String>,
    pub length_range: f64,
    pub shared_prefix_tokens: u32,
    pub turns: u32,
    pub think_time_ms: f64,
    pub salt: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TracePlan {
    pub path: String,
    pub hash: Option<String>,
    pub format: TraceFormat,
    pub speed: f64,
    pub limit: Option<u32>,
}

impl PromptPlan {
    /// Whether every request of a cell asks for the cell's own lengths.
    pub fn fixed_lengths(&self) -> bool {
        self.dataset == Dataset::Random && self.length_range == 0.0 && self.turns == 1
    }

    /// Whether a cached prefix is what the study asks for.
    pub fn shares_prefix(&self) -> bool {
        self.shared_prefix_tokens > 0 || self.turns > 1 || !self.salt || self.dataset != Dataset::Random
    }
}

/// `None` unless the target is a server; then keys that only a server has are errors.
pub(super) fn resolve(spec: &RunSpec, kind: TargetKind) -> Result<Option<ServerPlan>, Error> {
    if kind != TargetKind::Http {
        refuse_server_keys(spec)?;
        return Ok(None);
    }
    let s = spec.server.clone().unwrap_or_default();
    base_urls(&s, &spec.models)?;
    for (name, _) in s.headers.iter().flatten() {
        if is_secret_name(name) {
            let expected =
                "no secret: it would be stored with the results; use --header, or api_key_env".to_owned();
            return Err(value("server.headers", name, expected));
        }
    }
    if let Some(threads) = s.client_threads {
        at_least_one("server.client_threads", threads)?;
    }
    let load = spec.load.clone().unwrap_or_default();
    Ok(Some(ServerPlan {
        connect_timeout_s: seconds("server.connect_timeout_s", s.connect_timeout_s, 10.0)?,
        first_token_timeout_s: seconds("server.first_token_timeout_s", s.first_token_timeout_s, 600.0)?,
        gap_timeout_s: seconds("server.gap_timeout_s", s.gap_timeout_s, 120.0)?,
        request_timeout_s: seconds("server.request_timeout_s", s.request_timeout_s, 3600.0)?,
        ready_timeout_s: not_negative("server.ready_timeout_s", s.ready_timeout_s.unwrap_or(0.0))?,
        metrics_interval_ms: seconds("server.metrics_interval_ms", s.metrics_interval_ms, 1000.0)?,
        base_url: s.base_url,
        endpoint: s.endpoint.unwrap_or(Endpoint::Auto),
        api_key_env: s.api_key_env.unwrap_or_else(|| "OPENAI_API_KEY".to_owned()),
        headers: s.headers.unwrap_or_default(),
        extra_body: s.extra_body.unwrap_or_default(),
        stream: s.stream.unwrap_or(true),
        fixed_length: s.fixed_length.unwrap_or(true),
        insecure: s.insecure.unwrap_or(false),
        ca_file: s.ca_file,
        client_threads: s.client_threads,
        keep_awake: s.keep_awake.unwrap_or(false),
        metrics: s.metrics.unwrap_or(true),
        metrics_url: s.metrics_url,
        calibrate: s.calibrate.unwrap_or(true),
        prompts: prompts(&spec.workload)?,
        trace: trace(&load)?,
    }))
}

fn refuse_server_keys(spec: &RunSpec) -> Result<(), Error> {
    let w = &spec.workload;
    let workload = [
        ("workload.dataset", w.dataset.is_some()),
        ("workload.dataset_path", w.dataset_path.is_some()),
        ("workload.length_range", w.length_range.is_some()),
        ("workload.shared_prefix_tokens", w.shared_prefix_tokens.is_some()),
        ("workload.turns", w.turns.is_some()),
        ("workload.think_time_ms", w.think_time_ms.is_some()),
        ("workload.salt", w.salt.is_some()),
    ];
    let tables = [("server", spec.server.is_some()), ("load", spec.load.is_some())];
    let models = [
        ("models.base_url", spec.models.iter().any(|m| m.base_url.is_some())),
        ("models.tokenizer", spec.models.iter().any(|m| m.tokenizer.is_some())),
    ];
    match tables.into_iter().chain(workload).chain(models).find(|(_, set)| *set) {
        None => Ok(()),
        Some((key, _)) => {
            Err(value(key, "..", "only with target.kind = \"http\"; set that, or remove it".to_owned()))
        }
    }
}

fn base_urls(server: &ServerTable, models: &[ModelTable]) -> Result<(), Error> {
    let missing = server.base_url.is_none() && models.iter().any(|m| m.base_url.is_none());
    let written = server.base_url.iter().chain(models.iter().filter_map(|m| m.base_url.as_ref()));
    if written.clone().any(|u| u.split_once("://").is_some_and(|(_, rest)| authority(rest).contains('@'))) {
        let expected = "no user or password: they would be stored with the results; use --header".to_owned();
        return Err(value("server.base_url", "..@..", expected));
    }
    let malformed = written.into_iter().find(|u| !(u.starts_with("http://") || u.starts_with("https://")));
    match malformed {
        Some(url) => Err(value("server.base_url", url, "http://host:port or https://host".to_owned())),
        None if missing => {
            let expected = "the server's address, e.g. \"http://127.0.0.1:8000\"".to_owned();
            Err(value("server.base_url", "(absent)", expected))
        }
        None => Ok(()),
    }
}

/// User, host and port of an address without its scheme.
fn authority(rest: &str) -> &str {
    rest.split(['/', '?', '#']).next().unwrap_or(rest)
}

/// Names of headers that usually hold a secret.
pub fn is_secret_name(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ["authorization", "cookie", "key", "token", "secret", "password"].iter().any(|s| name.contains(s))
}

fn prompts(w: &WorkloadTable) -> Result<PromptPlan, Error> {
    let dataset = w.dataset.unwrap_or(Dataset::Random);
    match (dataset, &w.dataset_path) {
        (Dataset::Random, Some(path)) => {
            let expected = "only with workload.dataset = \"sharegpt\" or \"custom\"".to_owned();
            return Err(value("workload.dataset_path", path, expected));
        }
        (Dataset::Sharegpt | Dataset::Custom, None) => {
            let expected = "the file that `workload.dataset` is read from".to_owned();
            return Err(value("workload.dataset_path", "(absent)", expected));
        }
        _ => {}
    }
    let length_range = w.length_range.unwrap_or(0.0);
    if !(0.0..1.0).contains(&length_range) {
        return Err(value("workload.length_range", length_range, "in [0, 1)".to_owned()));
    }
    let turns = at_least_one("workload.turns", w.turns.unwrap_or(1))?;
    Ok(PromptPlan {
        dataset,
        dataset_path: w.dataset_path.clone(),
        dataset_hash: w.dataset_hash.clone(),
        length_range,
        shared_prefix_tokens: w.shared_prefix_tokens.unwrap_or(0),
        turns,
        think_time_ms: not_negative("workload.think_time_ms", w.think_time_ms.unwrap_or(0.0))?,
        salt: w.salt.unwrap_or(true),
    })
}

fn trace(load: &LoadTable) -> Result<Option<TracePlan>, Error> {
    match (load.arrival == Some(ArrivalKind::Replay), &load.trace) {
        (false, None) => Ok(None),
        (false, Some(path)) => {
            Err(value("load.trace", path, "only with load.arrival = \"replay\"".to_owned()))
        }
        (true, None) => Err(value("load.trace", "(absent)", "the trace to replay".to_owned())),
        (true, Some(path)) => Ok(Some(TracePlan {
            path: path.clone(),
            hash: load.trace_hash.clone(),
            format: load.trace_format.unwrap_or(TraceFormat::Auto),
            speed: seconds("load.trace_speed", load.trace_speed, 1.0)?,
            limit: load.trace_limit,
        })),
    }
}

/// The loads of a study, one cell each for every length, and how many requests each measures.
pub(super) fn loads(spec: &RunSpec, kind: TargetKind, repeats: u32) -> Result<Vec<(Load, u32)>, Error> {
    if kind != TargetKind::Http {
        return Ok(vec![(Load::Batch, repeats)]);
    }
    let table = spec.load.clone().unwrap_or_default();
    let closed = table.arrival.unwrap_or(ArrivalKind::Closed) == ArrivalKind::Closed;
    only_with(closed, "load.concurrency", table.concurrency.is_some(), "load.arrival = \"closed\"")?;
    only_with(!closed, "load.rate", table.rate.is_some(), "an open `load.arrival`, e.g. \"poisson\"")?;
    let open = "an open `load.arrival`";
    only_with(!closed, "load.max_concurrency", table.max_concurrency.is_some(), open)?;
    only_with(!closed, "load.duration_s", table.duration_s.is_some(), open)?;
    let written = if closed { closed_loads(&table)? } else { open_loads(&table)? };
    written
        .into_iter()
        .map(|load| Ok((load.clone(), requests(&table, &load, repeats, spec.workload.turns.unwrap_or(1))?)))
        .collect()
}

fn closed_loads(table: &LoadTable) -> Result<Vec<Load>, Error> {
    let levels = axis("load.concurrency", table.concurrency.as_deref(), &[1])?;
    Ok(levels.into_iter().map(|concurrency| Load::Closed { concurrency }).collect())
}

fn open_loads(table: &LoadTable) -> Result<Vec<Load>, Error> {
    let kind = table.arrival.unwrap_or(ArrivalKind::Closed);
    let max_concurrency =
        table.max_concurrency.map(|most| at_least_one("load.max_concurrency", most)).transpose()?;
    let burstiness = seconds("load.burstiness", table.burstiness, 1.0)?;
    only_with(kind == ArrivalKind::Gamma, "load.burstiness", table.burstiness.is_some(), "`gamma`")?;
    only_with(kind == ArrivalKind::Ramp, "load.ramp_to", table.ramp_to.is_some(), "`ramp`")?;
    let arrivals = match kind {
        ArrivalKind::Burst => vec![Arrival::Burst],
        ArrivalKind::Replay => {
            vec![Arrival::Replay { hash: table.trace_hash.clone().unwrap_or_default() }]
        }
        _ => {
            let mut arrivals = Vec::new();
            for &rate in rates(table)? {
                arrivals.push(match kind {
                    ArrivalKind::Poisson => Arrival::Poisson { rate },
                    ArrivalKind::Gamma => Arrival::Gamma { rate, burstiness },
                    ArrivalKind::Ramp => Arrival::Ramp {
                        from: rate,
                        to: ramp_end(table)?,
                        growth: table.ramp_growth.unwrap_or(Growth::Linear),
                    },
                    _ => Arrival::Constant { rate },
                });
            }
            arrivals
        }
    };
    Ok(arrivals.into_iter().map(|arrival| Load::Open { arrival, max_concurrency }).collect())
}

fn ramp_end(table: &LoadTable) -> Result<f64, Error> {
    match table.ramp_to {
        Some(to) => seconds("load.ramp_to", Some(to), to),
        None => Err(value("load.ramp_to", "(absent)", "the rate at which the ramp ends".to_owned())),
    }
}

fn rates(table: &LoadTable) -> Result<&[f64], Error> {
    let rates = table.rate.as_deref().unwrap_or_default();
    if rates.is_empty() {
        return Err(value("load.rate", "(absent)", "at least one number of requests per second".to_owned()));
    }
    for (i, rate) in rates.iter().enumerate() {
        seconds("load.rate", Some(*rate), *rate)?;
        if rates[..i].contains(rate) {
            return Err(value("load.rate", format!("{rates:?}"), "each rate once".to_owned()));
        }
    }
    Ok(rates)
}

/// Measured requests of a cell, in whole conversations: as written, or as long as the schedule, or `repeats`
/// for each request in flight (or per second).
fn requests(table: &LoadTable, load: &Load, repeats: u32, turns: u32) -> Result<u32, Error> {
    let level = match load {
        Load::Batch => 1,
        Load::Closed { concurrency } => *concurrency,
        Load::Open { .. } => load.rate().map_or(1, |rate| rate.ceil().max(1.0) as u32),
    };
    let number = match (table.requests, table.duration_s) {
        (Some(_), Some(seconds)) => {
            return Err(value("load.duration_s", seconds, "either this or load.requests".to_owned()));
        }
        (Some(requests), None) => at_least_one("load.requests", requests)?,
        (None, Some(duration)) => {
            let duration = seconds("load.duration_s", Some(duration), duration)?;
            let Some(requests) = load.requests_in(duration) else {
                return Err(value("load.duration_s", duration, "only with a rate".to_owned()));
            };
            requests
        }
        (None, None) => repeats.saturating_mul(level).saturating_mul(turns),
    };
    Ok(number.div_ceil(turns) * turns)
}

fn only_with(met: bool, key: &'static str, set: bool, condition: &str) -> Result<(), Error> {
    if set && !met { Err(value(key, "..", format!("only with {condition}"))) } else { Ok(()) }
}

/// A finite number above 0.
fn seconds(key: &'static str, written: Option<f64>, default: f64) -> Result<f64, Error> {
    let number = written.unwrap_or(default);
    if number.is_finite() && number > 0.0 {
        Ok(number)
    } else {
        Err(value(key, number, "a finite number above 0".to_owned()))
    }
}

fn not_negative(key: &'static str, number: f64) -> Result<f64, Error> {
    if number.is_finite() && number >= 0.0 {
        Ok(number)
    } else {
        Err(value(key, number, "a finite number of at least 0".to_owned()))
    }
}
