//! From stored events to rows: what a reader of the CSV can rely on.

use bench_core::event::{Channel, CountSource, Event, EventKind, FailureKind, FinishReason};
use bench_core::row::{Row, rows};
use bench_core::spec::RunSpec;
use bench_core::trace::{RequestTrace, TrialTrace};
use bench_core::unit::Nanos;
use bench_latency::Analysis;
use bench_runner::RunFolder;
use bench_runner::store::{Stored, TrialHeader};

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
        RequestTrace {
            repeat,
            slot: 0,
            prompt_hash: String::new(),
            asked: None,
            server: None,
            kv_allocated_bytes: None,
            events,
        }
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
        ..TrialTrace::default()
    };
    // Through the stored form, as the report reads it.
    let stored: TrialTrace = serde_json::from_str(&serde_json::to_string(&trial).unwrap()).unwrap();
    let summary = bench_latency::summarise(&plan, cell, &[stored], false, "mock", None).unwrap();
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

/// Of each request little is kept, and the figures are right.
#[test]
fn a_long_run_is_analysed_as_it_is_read() {
    const REQUESTS: u32 = 150_000;
    let text = format!(
        "[target]\nkind = \"http\"\n[server]\nbase_url = \"http://h:1\"\n[load]\nconcurrency = [8]\n\
         requests = {REQUESTS}\n[workload]\nprompt_tokens = [8]\noutput_tokens = [4]\n[[models]]\nid = \"org/m\"\n"
    );
    let plan = RunSpec::from_toml("t", &text).unwrap().resolve().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let provenance = bench_runner::provenance::gather(&plan, &[]);
    let folder = RunFolder::create(dir.path(), &text, &plan, &provenance).unwrap();
    let (cell, trial) = (&plan.cells[0], &plan.trials[0]);
    let header = TrialHeader {
        schema_version: bench_core::SCHEMA_VERSION,
        trial: trial.index,
        cell: cell.id.clone(),
        round: trial.round,
        planned_requests: REQUESTS,
        started_at_unix_ms: 0,
    };
    let mut writer = folder.begin_trial(trial, &header).unwrap();
    // Eight in flight, each 40 ms long: one starts each 5 ms. TTFT is 10 ms and up to 1 ms more.
    for repeat in 0..REQUESTS {
        writer.request(&steady_request(repeat)).unwrap();
    }
    let path = writer.finish(true).unwrap();
    let bytes = std::fs::metadata(path).unwrap().len();
    assert!(bytes < u64::from(REQUESTS) * 450, "{bytes} bytes");

    let mut analysis = Analysis::new(&plan, cell, "http");
    for line in folder.streams(&cell.id).flat_map(Result::unwrap) {
        match line.unwrap() {
            Stored::Header(header) => analysis.trial(header.trial, &header.cell).unwrap(),
            Stored::Request(request) => analysis.request(&request).unwrap(),
            _ => {}
        }
    }
    let held = analysis.heap_bytes();
    assert!(
        held < 40 << 20,
        "{held} bytes; the events alone would be {}",
        REQUESTS as usize * 9 * size_of::<Event>()
    );
    let analyzed = analysis.finish(false, None).unwrap();
    assert!(analyzed.summary.verdict.is_valid(), "{:?}", analyzed.summary.verdict);
    let rows = rows("r", "http", cell, &analyzed.summary);
    let row = |metric: &str, stat: &str| rows.iter().find(|r| r.metric == metric && r.stat == stat).unwrap();
    let near = |row: &Row, value: f64, share: f64| {
        assert!((row.value.unwrap() - value).abs() <= share * value, "{row:?} instead of {value}");
    };
    let ttft = row("ttft_ms", "p50");
    near(ttft, 10.5, 1e-3);
    assert_eq!((ttft.n, ttft.ci_method, ttft.bounded), (150_000, Some("order_statistic"), Some(true)));
    assert!(ttft.ci_low.unwrap() <= 10.5 && ttft.ci_high.unwrap() >= 10.5 - 0.011, "{ttft:?}");
    near(row("ttft_ms", "p99.9"), 10.999, 1e-3);
    near(row("e2el_ms", "mean"), 40.0, 1e-12);
    near(row("itl_ms", "mean"), (40.0 - 10.5) / 3.0, 1e-4);
    assert_eq!(
        (row("itl_ms", "p99").n, row("itl_ms", "p99").ci_method),
        (450_000, Some("cluster_bootstrap"))
    );
    near(row("system_tok_s", "value"), 800.0, 1e-3);
    near(row("mean_concurrency", "value"), 8.0, 1e-3);
    assert_eq!(analyzed.study.unwrap().p50_ms, Some(40.0));
}

fn steady_request(repeat: u32) -> RequestTrace {
    let start = u64::from(repeat) * 5_000_000;
    // Over a whole number of periods every thousandth of a millisecond comes as often.
    let first = start + 10_000_000 + u64::from(repeat) * 7 % 1_000 * 1_000;
    let (last, gap) = (start + 40_000_000, (start + 40_000_000 - first) / 3);
    let event = |at, kind| Event { at: Nanos(at), kind };
    let token = |at| event(at, EventKind::Tokens { count: 1, channel: Channel::Final });
    let counted = EventKind::Counted {
        prompt_tokens: 8,
        output_tokens: 4,
        cached_prompt_tokens: None,
        source: CountSource::Usage,
    };
    RequestTrace {
        repeat,
        slot: 0,
        prompt_hash: "0123456789abcdef".to_owned(),
        asked: None,
        server: None,
        kv_allocated_bytes: None,
        events: vec![
            event(start, EventKind::Intended),
            event(start, EventKind::Sent),
            event(first, EventKind::FirstByte),
            token(first),
            token(first + gap),
            token(first + 2 * gap),
            token(last),
            event(last, counted),
            event(last, EventKind::Done { finish: FinishReason::Length }),
        ],
    }
}
