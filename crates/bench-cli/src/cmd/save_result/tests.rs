//! The result file from traces written by hand, where vLLM's definitions and ours part.

use super::*;
use bench_core::event::{Channel, CountSource, Event, EventKind, FailureKind, FinishReason};
use bench_core::spec::RunSpec;

fn plan(load: &str) -> Plan {
    let text = format!(
        "[target]\nkind = \"http\"\n[[models]]\nid = \"org/a\"\ntokenizer = \"t\"\n\
         [server]\nbase_url = \"http://h\"\n[slo]\nttft_ms = 10.0\ntpot_ms = 25.0\n[load]\n{load}"
    );
    RunSpec::from_toml("t", &text).unwrap().resolve().unwrap()
}

fn request(repeat: u32, events: Vec<(u64, EventKind)>) -> RequestTrace {
    RequestTrace {
        repeat,
        slot: 0,
        prompt_hash: String::new(),
        asked: None,
        server: None,
        kv_allocated_bytes: None,
        events: events.into_iter().map(|(ms, kind)| Event { at: Nanos(ms * 1_000_000), kind }).collect(),
    }
}

/// Sent 1 ms late; a role chunk after 10 ms, a token after 30 ms, two more after 60 ms.
fn answered() -> RequestTrace {
    let tokens = |count| EventKind::Tokens { count, channel: Channel::Final };
    let counted = EventKind::Counted {
        prompt_tokens: 10,
        output_tokens: 3,
        cached_prompt_tokens: None,
        source: CountSource::Usage,
    };
    request(
        0,
        vec![
            (0, EventKind::Intended),
            (1, EventKind::Sent),
            (9, EventKind::FirstByte),
            (11, EventKind::EmptyChunk),
            (31, tokens(1)),
            (61, tokens(2)),
            (70, counted),
            (70, EventKind::Done { finish: FinishReason::Length }),
        ],
    )
}

fn refused() -> RequestTrace {
    let failed = EventKind::Failed { failure: FailureKind::Status, message: "HTTP 503".to_owned() };
    request(1, vec![(0, EventKind::Intended), (2, EventKind::Sent), (100, failed)])
}

fn result_of(plan: &Plan, requests: Vec<RequestTrace>) -> Value {
    let options = Options {
        metrics: METRICS.to_vec(),
        percentiles: vec![50.0, 99.9],
        backend: None,
        metadata: vec![("tp".to_owned(), "2".to_owned())],
        file: Some(SaveArgs { save_detailed: true, ..SaveArgs::default() }),
    };
    let cell = &plan.cells[0];
    let trial = TrialTrace {
        schema_version: bench_core::SCHEMA_VERSION,
        trial: 0,
        cell: cell.id.clone(),
        round: 0,
        planned_requests: requests.len() as u32,
        complete: true,
        started_at_unix_ms: 0,
        warmup: vec![],
        requests,
        ..TrialTrace::default()
    };
    let trials = [trial];
    let provenance = bench_runner::provenance::gather(plan, &[]);
    let summary = bench_latency::summarise(plan, cell, &trials, false, "http", None).unwrap();
    result(&options, plan, &provenance, cell, &trials, &summary).unwrap()
}

fn check(result: &Value, expected: &[(&str, &str)]) {
    for (pointer, expected) in expected {
        let found =
            result.pointer(&format!("/{pointer}")).unwrap_or_else(|| panic!("no {pointer} in {result}"));
        let rounded = found.as_f64().map_or(found.to_string(), |x| format!("{}", (x * 1e6).round() / 1e6));
        assert_eq!(rounded, *expected, "{pointer}");
    }
}

#[test]
fn definitions_are_vllms_and_failures_are_counted() {
    let plan = plan("arrival = \"gamma\"\nrate = [4.0]\nburstiness = 0.5\nmax_concurrency = 7\nrequests = 2");
    check(
        &result_of(&plan, vec![answered(), refused()]),
        &[
            ("backend", "\"openai\""),
            ("model_id", "\"org/a\""),
            ("tokenizer_id", "\"t\""),
            ("tp", "\"2\""),
            ("request_rate", "4"),
            ("burstiness", "0.5"),
            ("max_concurrency", "7"),
            ("duration", "0.1"),
            ("completed", "1"),
            ("failed", "1"),
            ("total_input_tokens", "10"),
            ("total_output_tokens", "3"),
            ("request_throughput", "10"),
            ("request_goodput", "10"),
            ("output_throughput", "30"),
            ("total_token_throughput", "130"),
            ("max_output_tokens_per_s", "3"),
            ("max_concurrent_requests", "1"),
            // From the role chunk on, which is no token to us.
            ("mean_ttft_ms", "10"),
            ("mean_tpot_ms", "25"),
            ("mean_itl_ms", "25"),
            ("std_itl_ms", "5"),
            ("p50_itl_ms", "25"),
            ("mean_e2el_ms", "60"),
            ("std_e2el_ms", "0"),
            ("mean_client_queue_time_ms", "1"),
            ("mean_e2el_including_client_queue_ms", "61"),
            ("ttfts", "[0.01,null]"),
            ("output_lens", "[3,0]"),
            ("input_lens", "[10,128]"),
            ("itls/1", "[]"),
            ("errors", "[\"\",\"status: HTTP 503\"]"),
            ("ossbench/requests", "2"),
            ("ossbench/succeeded", "1"),
            ("ossbench/load", "\"gamma(0.5)\""),
        ],
    );
}

#[test]
fn what_is_missing_is_null() {
    let plan = plan("arrival = \"ramp\"\nrate = [1.0]\nramp_to = 9.0\nrequests = 1");
    check(
        &result_of(&plan, vec![refused()]),
        &[
            ("request_rate", "\"inf\""),
            ("ramp_up_strategy", "\"linear\""),
            ("ramp_up_start_rps", "1"),
            ("ramp_up_end_rps", "9"),
            ("burstiness", "1"),
            ("max_concurrency", "null"),
            ("completed", "0"),
            ("request_goodput", "0"),
            ("mean_ttft_ms", "null"),
            ("std_ttft_ms", "null"),
            ("p99.9_e2el_ms", "null"),
            ("max_output_tokens_per_s", "null"),
            ("ossbench/verdict", "\"INVALID\""),
        ],
    );
}
