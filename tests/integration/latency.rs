//! From stored events to rows: what a reader of the CSV can rely on.

use bench_core::event::{Channel, Event, EventKind, FailureKind, FinishReason};
use bench_core::row::{Row, rows};
use bench_core::spec::RunSpec;
use bench_core::trace::{RequestTrace, TrialTrace};
use bench_core::unit::Nanos;

/// Twenty-one requests of four tokens, 50 ms to the first and 10 ms between; the last one fails after a token.
fn scripted_rows() -> Vec<Row> {
    let text = "[run]\nrepeats = 21\nrounds = 1\n[target]\nkind = \"mock\"\n[workload]\nprompt_tokens = [8]\n\
                output_tokens = [4]\n[[models]]\nid = \"dummy:m\"\n";
    let plan = RunSpec::from_toml("t", text).unwrap().resolve().unwrap();
    let cell = &plan.cells[0];
    let requests = (0..21_u32).map(|repeat| {
        let start = u64::from(repeat) * 1_000;
        let event = |ms, kind| Event { at: Nanos::from_millis(start + ms), kind };
        let token = || EventKind::Tokens { count: 1, channel: Channel::Final };
        let mut events = vec![event(0, EventKind::Intended), event(0, EventKind::Sent), event(50, token())];
        if repeat == 20 {
            events.push(event(55, EventKind::Failed { failure: FailureKind::Engine, message: "x".into() }));
        } else {
            events.extend([60, 70, 80].map(|ms| event(ms, token())));
            events.push(event(80, EventKind::Done { finish: FinishReason::Length }));
        }
        RequestTrace { repeat, slot: 0, prompt_hash: String::new(), kv_allocated_bytes: None, events }
    });
    let trial = TrialTrace {
        schema_version: bench_core::SCHEMA_VERSION,
        trial: 0,
        cell: cell.id.clone(),
        round: 0,
        planned_requests: 21,
        complete: true,
        started_at_unix_ms: 0,
        warmup: Vec::new(),
        requests: requests.collect(),
    };
    // Through the stored form, as the report reads it.
    let stored: TrialTrace = serde_json::from_str(&serde_json::to_string(&trial).unwrap()).unwrap();
    let summary = bench_latency::summarise(&plan, cell, &[stored], false, "mock").unwrap();
    rows("r", "mock", cell, &summary)
}

#[test]
fn rows_carry_n_interval_verdict_and_failures() {
    let rows = scripted_rows();
    let row = |metric: &str, stat: &str| {
        rows.iter()
            .find(|r| r.metric == metric && r.stat == stat)
            .unwrap_or_else(|| panic!("{metric} {stat}"))
    };
    let ttft = row("ttft_ms", "p50");
    assert_eq!((ttft.value, ttft.ci_low, ttft.ci_high), (Some(50.0), Some(50.0), Some(50.0)));
    assert_eq!((ttft.n, ttft.missing, ttft.bounded), (20, 1, Some(true)));
    let p95 = row("ttft_ms", "p95");
    assert_eq!(
        (p95.value, p95.ci_low, p95.ci_high, p95.bounded),
        (Some(50.0), Some(50.0), None, Some(false))
    );
    let p99 = row("ttft_ms", "p99");
    assert_eq!((p99.value, p99.ci_low, p99.ci_high), (None, None, None));
    assert_eq!((row("itl_ms", "mean").value, row("itl_ms", "mean").n), (Some(10.0), 60));
    assert_eq!(row("itl_ms", "p50").ci_method, Some("cluster_bootstrap"));
    assert_eq!(row("failures", "engine").value, Some(1.0));
    let success = row("success_rate", "value");
    assert!(success.value == Some(20.0 / 21.0) && success.ci_method == Some("wilson"));
    assert!(
        rows.iter().all(|r| r.success_rate == Some(20.0 / 21.0) && r.verdict == "VALID"),
        "{:?}",
        rows[0]
    );
    let finite = |v: Option<f64>| v.is_none_or(f64::is_finite);
    assert!(rows.iter().all(|r| finite(r.value) && finite(r.ci_low) && finite(r.ci_high)));
}
