//! What the flags of `ossbench latency` for a server mean: tables of a study, and notes where a known name
//! means something that its user may not expect.
//!
//! Values in, values out; keys are checked by the study itself.

use crate::CliError;
use crate::args::{LatencyArgs, LoadArgs, Pattern, PromptArgs, ServerArgs};
use bench_core::load::Growth;
use bench_core::spec::{
    ArrivalKind, Chat, Dataset, Endpoint, LoadTable, ModelTable, ServerTable, SloTable, WorkloadTable,
};
use serde_json::{Map, Value};

/// What the user should know of how the flags were understood.
pub(crate) type Notes = Vec<String>;

pub(crate) fn wrong(flag: &str, expected: impl std::fmt::Display) -> CliError {
    CliError::Usage(format!("{flag}: {expected}"))
}

/// The first flag of a server that is given, if any.
pub(crate) fn first_server_flag(args: &LatencyArgs) -> Option<&'static str> {
    let (s, p, l) = (&args.server, &args.prompts, &args.load);
    let given = [
        ("--base-url", s.base_url.is_some()),
        ("--host", s.host.is_some()),
        ("--port", s.port.is_some()),
        ("--backend", s.backend.is_some()),
        ("--endpoint", s.endpoint.is_some()),
        ("--served-model-name", !s.served_model_name.is_empty()),
        ("--tokenizer", s.tokenizer.is_some()),
        ("--skip-tokenizer-init", s.skip_tokenizer_init),
        ("--api-key", s.secrets.api_key.is_some()),
        ("--header", !s.secrets.header.is_empty()),
        ("--extra-body", s.extra_body.is_some()),
        ("--min-p", s.min_p.is_some()),
        ("--frequency-penalty", s.frequency_penalty.is_some()),
        ("--presence-penalty", s.presence_penalty.is_some()),
        ("--repetition-penalty", s.repetition_penalty.is_some()),
        ("--insecure", s.insecure),
        ("--ready-check-timeout-sec", s.ready_check_timeout_sec.is_some()),
        ("--request-timeout-seconds", s.request_timeout_seconds.is_some()),
        ("--streaming", s.streaming.is_some()),
        ("--no-calibrate", s.no_calibrate),
        ("--dataset-name", p.dataset_name.is_some()),
        ("--dataset-path", p.dataset_path.is_some()),
        ("--random-range-ratio", p.random_range_ratio.is_some()),
        ("--random-prefix-len", p.random_prefix_len.is_some()),
        ("--custom-output-len", p.custom_output_len.is_some()),
        ("--sharegpt-output-len", p.sharegpt_output_len.is_some()),
        ("--ignore-eos", p.ignore_eos),
        ("--num-prompts", l.num_prompts.is_some()),
        ("--request-count", l.request_count.is_some()),
        ("--max-concurrency", !l.max_concurrency.is_empty()),
        ("--request-rate", !l.request_rate.is_empty()),
        ("--burstiness", l.burstiness.is_some()),
        ("--arrival-pattern", l.arrival_pattern.is_some()),
        ("--benchmark-duration", l.benchmark_duration.is_some()),
        ("--ramp-up-strategy", l.ramp_up_strategy.is_some()),
        ("--trace", l.trace.is_some()),
    ];
    given.into_iter().find(|(_, given)| *given).map(|(flag, _)| flag)
}

/// The first flag of the engine that is given, if any.
pub(crate) fn first_engine_flag(args: &LatencyArgs) -> Option<&'static str> {
    let batch = (!args.batch.is_empty()).then_some("--batch");
    batch.or_else(|| args.engine.given().first().map(|(flag, _)| *flag))
}

pub(crate) fn models(args: &LatencyArgs) -> Result<Vec<ModelTable>, CliError> {
    let s = &args.server;
    let table = |id: &String, tokenizer: Option<String>| ModelTable {
        layers: args.engine.layers,
        tokenizer,
        ..ModelTable::new(id.clone())
    };
    if s.served_model_name.is_empty() {
        return Ok(args.models.iter().map(|id| table(id, s.tokenizer.clone())).collect());
    }
    if s.served_model_name.len() != args.models.len() {
        let (names, models) = (s.served_model_name.len(), args.models.len());
        return Err(wrong("--served-model-name", format!("{names} names for {models} models; one for each")));
    }
    let pairs = s.served_model_name.iter().zip(&args.models);
    Ok(pairs
        .map(|(name, model)| {
            let own = (!s.skip_tokenizer_init).then(|| s.tokenizer.clone().unwrap_or_else(|| model.clone()));
            table(name, own)
        })
        .collect())
}

pub(crate) fn server(args: &LatencyArgs) -> Result<ServerTable, CliError> {
    let s = &args.server;
    let dataset = args.prompts.dataset_name.unwrap_or(Dataset::Random);
    let (endpoint, prefix) = endpoint(s)?;
    Ok(ServerTable {
        base_url: Some(format!("{}{prefix}", base_url(s))),
        endpoint,
        extra_body: extra_body(s),
        stream: s.streaming,
        // vLLM: answers of random prompts are as long as asked, those of a file end by themselves.
        fixed_length: (dataset != Dataset::Random || args.prompts.ignore_eos)
            .then_some(args.prompts.ignore_eos),
        request_timeout_s: s.request_timeout_seconds,
        ready_timeout_s: s.ready_check_timeout_sec,
        insecure: s.insecure.then_some(true),
        calibrate: s.no_calibrate.then_some(false),
        ..ServerTable::default()
    })
}

/// aiperf's addresses have no scheme.
fn base_url(s: &ServerArgs) -> String {
    match &s.base_url {
        Some(url) if url.contains("://") => url.trim_end_matches('/').to_owned(),
        Some(address) => format!("http://{}", address.trim_end_matches('/')),
        None => {
            let host = s.host.as_deref().unwrap_or("127.0.0.1");
            let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
            format!("http://{host}:{}", s.port.unwrap_or(8000))
        }
    }
}

/// The API, and what stands before `/v1` in its path.
fn endpoint(s: &ServerArgs) -> Result<(Option<Endpoint>, String), CliError> {
    let by_backend = s.backend.as_ref().map(|b| b.endpoint);
    let Some(path) = &s.endpoint else { return Ok((by_backend, String::new())) };
    let rooted = format!("/{}", path.trim_start_matches('/'));
    let known = [("/v1/chat/completions", Endpoint::Chat), ("/v1/completions", Endpoint::Completions)];
    let Some((end, by_path)) = known.into_iter().find(|(end, _)| rooted.ends_with(end)) else {
        let expected = "expected a path that ends in /v1/completions or /v1/chat/completions";
        return Err(wrong("--endpoint", format!("\"{path}\": {expected}")));
    };
    if by_backend.is_some_and(|backend| backend != by_path) {
        let backend = s.backend.as_ref().map_or("", |b| b.name.as_str());
        return Err(wrong(
            "--endpoint",
            format!("\"{path}\" is not what --backend {backend} speaks; drop one"),
        ));
    }
    Ok((Some(by_path), rooted[..rooted.len() - end.len()].to_owned()))
}

/// Sampling members that only a server knows, then those of --extra-body, which win.
fn extra_body(s: &ServerArgs) -> Option<Map<String, Value>> {
    let named = [
        ("min_p", s.min_p),
        ("frequency_penalty", s.frequency_penalty),
        ("presence_penalty", s.presence_penalty),
        ("repetition_penalty", s.repetition_penalty),
    ];
    let mut body: Map<String, Value> =
        named.into_iter().filter_map(|(key, value)| Some((key.to_owned(), Value::from(value?)))).collect();
    body.extend(s.extra_body.clone().unwrap_or_default());
    (!body.is_empty()).then_some(body)
}

/// Lengths and prompts; without a server only the lengths can be set.
pub(crate) fn workload(args: &LatencyArgs, notes: &mut Notes) -> Result<WorkloadTable, CliError> {
    let p = &args.prompts;
    let dataset = p.dataset_name.unwrap_or(Dataset::Random);
    refuse_keys_of_other_datasets(p, dataset)?;
    let by_vllm = first_given([&p.random_input_len, &p.input_len]);
    let prefix = p.random_prefix_len.unwrap_or(0);
    let prompt_tokens = match (by_vllm, args.prompt_tokens.as_slice()) {
        (Some(lengths), _) => Some(lengths.iter().map(|n| n.saturating_add(prefix)).collect()),
        (None, []) => None,
        (None, own) => Some(own.to_vec()),
    };
    let of_file = match p.custom_output_len {
        None | Some(-1) => p.sharegpt_output_len.into_iter().collect(),
        Some(n) => vec![u32::try_from(n).map_err(|_| wrong("--custom-output-len", "at least 1, or -1"))?],
    };
    let output_tokens = first_given([&args.output_tokens, &p.random_output_len, &p.output_len, &of_file]);
    let output_tokens = output_tokens.map(<[u32]>::to_vec);
    let workload = WorkloadTable {
        prompt_tokens,
        output_tokens,
        batch: (!args.batch.is_empty()).then(|| args.batch.clone()),
        chat: p.skip_chat_template.then_some(Chat::Plain),
        temperature: Some(args.sampling.temperature),
        top_k: args.sampling.top_k,
        top_p: args.sampling.top_p,
        dataset: p.dataset_name,
        dataset_path: p.dataset_path.clone(),
        length_range: p.random_range_ratio,
        shared_prefix_tokens: p.random_prefix_len,
        ..WorkloadTable::default()
    };
    note_lengths(&workload, by_vllm.filter(|_| prefix > 0), prefix, notes);
    Ok(workload)
}

fn refuse_keys_of_other_datasets(p: &PromptArgs, dataset: Dataset) -> Result<(), CliError> {
    let random = dataset == Dataset::Random;
    let given = [
        ("--random-input-len", !random && !p.random_input_len.is_empty(), "random"),
        ("--random-output-len", !random && !p.random_output_len.is_empty(), "random"),
        ("--random-range-ratio", !random && p.random_range_ratio.is_some(), "random"),
        ("--random-prefix-len", !random && p.random_prefix_len.is_some(), "random"),
        ("--custom-output-len", dataset != Dataset::Custom && p.custom_output_len.is_some(), "custom"),
        (
            "--sharegpt-output-len",
            dataset != Dataset::Sharegpt && p.sharegpt_output_len.is_some(),
            "sharegpt",
        ),
    ];
    match given.into_iter().find(|(_, wrong, _)| *wrong) {
        Some((flag, _, name)) => Err(wrong(flag, format!("only with --dataset-name {name}"))),
        None => Ok(()),
    }
}

fn first_given<const N: usize>(lists: [&Vec<u32>; N]) -> Option<&[u32]> {
    lists.into_iter().map(Vec::as_slice).find(|list| !list.is_empty())
}

fn note_lengths(workload: &WorkloadTable, besides_prefix: Option<&[u32]>, prefix: u32, notes: &mut Notes) {
    if let Some(lengths) = besides_prefix {
        notes.push(format!("prompts of {lengths:?} tokens and {prefix} before them that all share"));
    }
    let Some(ratio) = workload.length_range.filter(|r| (0.0..1.0).contains(r) && *r > 0.0) else { return };
    let bounds = |lengths: &[u32]| {
        let of = |n: &u32| {
            let n = f64::from(*n);
            format!("[{}, {}]", ((1.0 - ratio) * n).floor(), ((1.0 + ratio) * n).ceil())
        };
        lengths.iter().map(of).collect::<Vec<_>>().join(" ")
    };
    let prompts = workload.prompt_tokens.as_deref().unwrap_or(&[128]);
    let outputs = workload.output_tokens.as_deref().unwrap_or(&[32]);
    notes.push(format!(
        "--random-range-ratio {ratio}: prompt tokens in {}, output tokens in {}, drawn evenly; \
         older vLLM drew from [r L, L]",
        bounds(prompts),
        bounds(outputs)
    ));
}

/// `of_file`: prompts come from a data set, whose size says how many there are.
pub(crate) fn load(l: &LoadArgs, of_file: bool, notes: &mut Notes) -> Result<LoadTable, CliError> {
    let rates: Vec<f64> = l.request_rate.iter().copied().filter(|r| r.is_finite()).collect();
    if !rates.is_empty() && rates.len() < l.request_rate.len() {
        return Err(wrong("--request-rate", "inf is a load of its own; measure it by itself"));
    }
    if l.request_rate.iter().any(|r| r.is_nan() || *r == f64::NEG_INFINITY) {
        return Err(wrong("--request-rate", "expected numbers above 0, or inf"));
    }
    let table = if let Some(trace) = &l.trace {
        replay(l, trace)?
    } else if let Some(growth) = l.ramp_up_strategy {
        ramp(l, growth)?
    } else if rates.is_empty() {
        without_rate(l, notes)?
    } else {
        with_rates(l, rates)?
    };
    let requests = l.num_prompts.or(l.request_count);
    if requests.is_none() && l.benchmark_duration.is_none() && l.trace.is_none() && !of_file {
        notes.push("requests: --repeats for each in flight, or per second; vLLM would send 1000".to_owned());
    }
    Ok(LoadTable { requests, duration_s: l.benchmark_duration, ..table })
}

fn replay(l: &LoadArgs, trace: &str) -> Result<LoadTable, CliError> {
    Ok(LoadTable {
        arrival: Some(ArrivalKind::Replay),
        trace: Some(trace.to_owned()),
        trace_format: l.trace_format,
        trace_speed: l.trace_speed,
        trace_limit: l.trace_limit,
        max_concurrency: cap(l)?,
        ..LoadTable::default()
    })
}

fn ramp(l: &LoadArgs, growth: Growth) -> Result<LoadTable, CliError> {
    Ok(LoadTable {
        arrival: Some(ArrivalKind::Ramp),
        rate: l.ramp_up_start_rps.map(|rate| vec![rate]),
        ramp_to: l.ramp_up_end_rps,
        ramp_growth: Some(growth),
        max_concurrency: cap(l)?,
        ..LoadTable::default()
    })
}

/// No rate, or an infinite one: a closed loop, or all at once.
fn without_rate(l: &LoadArgs, notes: &mut Notes) -> Result<LoadTable, CliError> {
    if l.burstiness.is_some_and(|b| b != 1.0) {
        return Err(wrong("--burstiness", "only with a finite --request-rate"));
    }
    match l.arrival_pattern {
        Some(Pattern::ConcurrencyBurst) if l.max_concurrency.is_empty() => {
            return Err(wrong("--arrival-pattern", "concurrency_burst needs --concurrency"));
        }
        None | Some(Pattern::ConcurrencyBurst) => {}
        Some(_) => return Err(wrong("--arrival-pattern", "only with a finite --request-rate")),
    }
    if !l.max_concurrency.is_empty() {
        let concurrency = Some(l.max_concurrency.clone());
        return Ok(LoadTable { arrival: Some(ArrivalKind::Closed), concurrency, ..LoadTable::default() });
    }
    if l.request_rate.is_empty() && l.num_prompts.is_none() {
        return Ok(LoadTable { arrival: Some(ArrivalKind::Closed), ..LoadTable::default() });
    }
    notes.push(
        "all requests are sent at once; for another load use --max-concurrency or --request-rate".to_owned(),
    );
    Ok(LoadTable { arrival: Some(ArrivalKind::Burst), ..LoadTable::default() })
}

/// An open loop for each rate.
fn with_rates(l: &LoadArgs, rates: Vec<f64>) -> Result<LoadTable, CliError> {
    let shape = l.burstiness.unwrap_or(1.0);
    let (arrival, burstiness) = match l.arrival_pattern {
        Some(Pattern::ConcurrencyBurst) => {
            return Err(wrong("--arrival-pattern", "concurrency_burst has no --request-rate"));
        }
        Some(Pattern::Gamma) => (ArrivalKind::Gamma, l.burstiness),
        Some(pattern @ (Pattern::Constant | Pattern::Poisson)) => {
            if l.burstiness.is_some() {
                return Err(wrong("--burstiness", "only with --arrival-pattern gamma, or without a pattern"));
            }
            let constant = pattern == Pattern::Constant;
            (if constant { ArrivalKind::Constant } else { ArrivalKind::Poisson }, None)
        }
        None if shape == f64::INFINITY => (ArrivalKind::Constant, None),
        None if shape == 1.0 => (ArrivalKind::Poisson, None),
        None => (ArrivalKind::Gamma, Some(shape)),
    };
    let max_concurrency = cap(l)?;
    Ok(LoadTable {
        arrival: Some(arrival),
        rate: Some(rates),
        burstiness,
        max_concurrency,
        ..LoadTable::default()
    })
}

/// The most in flight of an open loop.
fn cap(l: &LoadArgs) -> Result<Option<u32>, CliError> {
    match l.max_concurrency.as_slice() {
        [] => Ok(None),
        [most] => Ok(Some(*most)),
        _ => Err(wrong(
            "--max-concurrency",
            "one number where there is a rate; several make a sweep of closed loops",
        )),
    }
}

/// `ttft:200`, and aiperf's long names; several may stand in one word.
pub(crate) fn slo(goodput: &[String]) -> Result<Option<SloTable>, CliError> {
    if goodput.is_empty() {
        return Ok(None);
    }
    let mut slo = SloTable::default();
    for pair in goodput.iter().flat_map(|words| words.split_whitespace()) {
        let malformed = || wrong("--goodput", format!("\"{pair}\": expected ttft:MS, tpot:MS or e2el:MS"));
        let (name, limit) = pair.split_once(':').ok_or_else(malformed)?;
        let limit: f64 = limit.parse().map_err(|_| malformed())?;
        let place = match name {
            "ttft" | "time_to_first_token" => &mut slo.ttft_ms,
            "tpot" | "inter_token_latency" => &mut slo.tpot_ms,
            "e2el" | "request_latency" => &mut slo.e2el_ms,
            _ => return Err(malformed()),
        };
        if place.replace(limit).is_some() {
            return Err(wrong("--goodput", format!("{name} stands there twice")));
        }
    }
    Ok(Some(slo))
}
