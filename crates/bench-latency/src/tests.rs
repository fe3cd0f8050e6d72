//! Scripted traces in, exact figures out.

use crate::{SCHEDULE_LAG_LIMIT_MS, samples, study_rows, summarise, summary};
use bench_core::event::{Channel, CountSource, Event, EventKind, FailureKind, FinishReason};
use bench_core::metric::Metric;
use bench_core::plan::{Cell, Plan, Slo};
use bench_core::sample::{Stat, Summary};
use bench_core::spec::RunSpec;
use bench_core::trace::{RequestTrace, SteadyWindow, TrialTrace};
use bench_core::unit::Nanos;
use std::fmt::Write as _;

mod detail;
mod device;
mod load;
mod served;

/// A request in words: `i` intended, `s` sent, `b` first byte, `e` empty chunk, `t3` / `r3` 3 final / reasoning
/// tokens, `c16:4` counted 16 prompt and 4 output tokens, `k5` the same with 5 cached, `d` done, `x` failed;
/// each `word@nanoseconds`.
fn request(repeat: u32, slot: u32, script: &str) -> RequestTrace {
    let events = script.split_whitespace().map(|word| {
        let (what, at) = word.split_once('@').unwrap();
        let (kind, rest) = what.split_at(1);
        let number = || rest.parse().unwrap();
        let counted = |prompt_tokens, output_tokens, cached_prompt_tokens| EventKind::Counted {
            prompt_tokens,
            output_tokens,
            cached_prompt_tokens,
            source: CountSource::Usage,
        };
        let kind = match kind {
            "i" => EventKind::Intended,
            "s" => EventKind::Sent,
            "b" => EventKind::FirstByte,
            "e" => EventKind::EmptyChunk,
            "t" => EventKind::Tokens { count: number(), channel: Channel::Final },
            "r" => EventKind::Tokens { count: number(), channel: Channel::Reasoning },
            "c" => {
                let (prompt, output) = rest.split_once(':').unwrap();
                counted(prompt.parse().unwrap(), output.parse().unwrap(), None)
            }
            "k" => counted(16, 4, Some(number())),
            "d" => EventKind::Done { finish: FinishReason::Length },
            "x" => EventKind::Failed { failure: FailureKind::Timeout, message: "late".to_owned() },
            other => panic!("{other}"),
        };
        Event { at: Nanos(at.parse().unwrap()), kind }
    });
    RequestTrace {
        repeat,
        slot,
        prompt_hash: String::new(),
        asked: None,
        server: None,
        kv_allocated_bytes: None,
        events: events.collect(),
    }
}

fn trial(cell: &Cell, requests: Vec<RequestTrace>) -> TrialTrace {
    TrialTrace {
        schema_version: bench_core::SCHEMA_VERSION,
        trial: 0,
        cell: cell.id.clone(),
        round: 0,
        planned_requests: requests.len() as u32,
        complete: true,
        started_at_unix_ms: 0,
        warmup: vec![request(0, 0, "i@0 s@0 x@1")],
        requests,
        ..TrialTrace::default()
    }
}

fn plan(repeats: u32, batch: u32) -> Plan {
    let text = format!(
        "[run]\nrepeats = {repeats}\nrounds = 1\n[workload]\nprompt_tokens = [16]\noutput_tokens = [4]\n\
         batch = [{batch}]\n[[models]]\nid = \"org/m\"\n"
    );
    RunSpec::from_toml("t", &text).unwrap().resolve().unwrap()
}

fn values(metric: &str, script: &str, target: &str) -> Vec<Option<f64>> {
    let plan = plan(1, 1);
    let cell = &plan.cells[0];
    let trials = [trial(cell, vec![request(0, 0, script)])];
    let metric = Metric::from_key(metric).unwrap();
    samples(&plan, cell, &trials, target)
        .unwrap()
        .iter()
        .filter(|s| s.metric == metric)
        .map(|s| s.value)
        .collect()
}

/// Times in ns: exact after rounding to the nanosecond.
fn check_ns(script: &str, expected: &[(&str, &[Option<u64>])]) {
    for (metric, expected) in expected {
        let ns: Vec<_> =
            values(metric, script, "http").iter().map(|v| v.map(|ms| (ms * 1e6).round() as u64)).collect();
        assert_eq!(ns, *expected, "{metric} of {script}");
    }
}

/// Rates in tokens per second: tokens, nanoseconds.
fn check_rate(script: &str, target: &str, expected: &[(&str, Option<(f64, f64)>)]) {
    for (metric, expected) in expected {
        let value = values(metric, script, target).first().copied().flatten();
        assert_eq!(value, expected.map(|(tokens, ns)| tokens * 1e9 / ns), "{metric} of {script}");
    }
}

const ROLE_FIRST: &str = "i@1000000007 s@1000000010 b@1200000001 e@1200000003 t1@1300000009 t1@1310000012 t2@1330000018 c16:4@1330000019 d@1330000020";

#[test]
fn role_chunk_is_no_token_and_a_chunk_of_two_gives_two_gaps() {
    check_ns(
        ROLE_FIRST,
        &[
            ("schedule_lag_ms", &[Some(3)]),
            ("ttft_ms", &[Some(299_999_999)]),
            ("ttft_from_schedule_ms", &[Some(300_000_002)]),
            ("ttft_role_ms", &[Some(199_999_993)]),
            ("ttfb_ms", &[Some(199_999_991)]),
            ("ttfo_ms", &[Some(299_999_999)]),
            ("tpot_ms", &[Some(10_000_003)]),
            ("itl_ms", &[Some(10_000_003), Some(10_000_003), Some(10_000_003)]),
            ("icl_ms", &[Some(10_000_003), Some(20_000_006)]),
            ("e2el_ms", &[Some(330_000_008)]),
            ("e2el_from_schedule_ms", &[Some(330_000_011)]),
            ("ntpot_ms", &[Some(82_500_002)]),
        ],
    );
    check_rate(
        ROLE_FIRST,
        "http",
        &[
            ("decode_tok_s", Some((3.0, 30_000_009.0))),
            ("request_tok_s", Some((4.0, 330_000_008.0))),
            ("prefill_tok_s", None),
        ],
    );
    check_rate(ROLE_FIRST, "engine", &[("prefill_tok_s", Some((16.0, 299_999_999.0))), ("ttfb_ms", None)]);
}

#[test]
fn what_is_missing_is_missing() {
    // One token: no gap, no time per token. (`itl` has no samples at all.)
    let single = "i@0 s@5 t1@1005 d@1006";
    check_ns(
        single,
        &[
            ("ttft_ms", &[Some(1000)]),
            ("e2el_ms", &[Some(1000)]),
            ("ntpot_ms", &[Some(1000)]),
            ("tpot_ms", &[None]),
            ("itl_ms", &[]),
            ("ttfb_ms", &[]),
        ],
    );
    check_rate(single, "http", &[("decode_tok_s", None)]);
    // All tokens in one chunk: no time between them, so no rate.
    check_rate("i@0 s@5 t4@1005 d@1006", "http", &[("decode_tok_s", None)]);
    // Reasoning first: the final channel is a metric of its own; without it there is none.
    check_ns("i@0 s@0 r1@10 r1@20 t1@30 t1@40 d@41", &[("ttft_ms", &[Some(10)]), ("ttfo_ms", &[Some(30)])]);
    check_ns("i@0 s@0 r1@10 r1@20 d@41", &[("ttft_ms", &[Some(10)]), ("ttfo_ms", &[])]);
    // Failures mid-stream, without an end, without a token: late or not, never a latency.
    for failed in ["i@0 s@3 t1@10 t1@20 x@30", "i@0 s@3 t1@10 t1@20", "i@0 s@3 e@10 d@20"] {
        check_ns(
            failed,
            &[("schedule_lag_ms", &[Some(3)]), ("ttft_ms", &[None]), ("e2el_ms", &[None]), ("itl_ms", &[])],
        );
    }
    // The target counts more than was seen: its count is n, the gaps are those that were seen.
    check_ns(
        "i@0 s@0 t1@100 t1@700 c16:4@701 d@702",
        &[("tpot_ms", &[Some(200)]), ("itl_ms", &[Some(600)]), ("ntpot_ms", &[Some(175)])],
    );
}

fn summary(repeats: u32, batch: u32, scripts: &[(u32, u32, &str)]) -> Summary {
    let plan = plan(repeats, batch);
    let cell = &plan.cells[0];
    let requests = scripts.iter().map(|(repeat, slot, script)| request(*repeat, *slot, script)).collect();
    summarise(&plan, cell, &[trial(cell, requests)], false, "mock", None).unwrap()
}

fn estimate(summary: &Summary, metric: Metric, stat: Stat) -> Option<f64> {
    summary.estimates.iter().find(|e| e.metric == metric && e.stat == stat).and_then(|e| e.value)
}

#[test]
fn steady_window_leaves_out_ramp_and_drain() {
    // Two slots: both in flight from 100 to 400; the second ends at 600.
    let s = summary(
        1,
        2,
        &[
            (0, 0, "i@0 s@0 t1@150 t1@200 t1@300 t1@400 d@400"),
            (0, 1, "i@100 s@100 t1@200 t1@300 t1@400 t1@600 d@600"),
        ],
    );
    let value = |metric| estimate(&s, metric, Stat::Value).unwrap();
    assert_eq!(value(Metric::SteadyWindow), 300.0 / 1e6);
    assert_eq!(value(Metric::SteadyWindowShare), 0.5);
    assert_eq!(value(Metric::SystemTokenRate), 7.0 * 1e9 / 300.0);
    assert_eq!(value(Metric::SystemRequestRate), 1e9 / 300.0);
    assert_eq!(value(Metric::PeakConcurrency), 2.0);
    assert_eq!(value(Metric::MeanConcurrency), 900.0 / 600.0);
    assert_eq!(value(Metric::SuccessRate), 1.0);
}

#[test]
fn each_round_hands_out_its_steady_window() {
    let plan = plan(2, 2);
    let script = [
        (0, 0, "i@0 s@0 t1@150 t1@200 t1@300 t1@400 d@400"),
        (0, 1, "i@100 s@100 t1@200 t1@300 t1@400 t1@600 d@600"),
    ];
    let round = |repeat, begin: u64| {
        let shifted = |text: &str| {
            let word = |w: &str| {
                let (what, at) = w.split_once('@').unwrap();
                format!("{what}@{}", at.parse::<u64>().unwrap() + begin)
            };
            text.split(' ').map(word).collect::<Vec<_>>().join(" ")
        };
        trial(
            &plan.cells[0],
            script.iter().map(|(_, slot, text)| request(repeat, *slot, &shifted(text))).collect(),
        )
    };
    // The round between them was never full.
    let lone = trial(&plan.cells[0], vec![request(2, 0, "i@700 s@700 t4@800 d@800")]);
    let trials = [round(0, 0), lone, round(1, 1000)];
    let analyzed =
        summary::taken_in(&plan, &plan.cells[0], &trials, "http").unwrap().finish(false, None).unwrap();
    let window =
        |trial, from, to| SteadyWindow { trial, from: Nanos(from), to: Nanos(to), output_tokens: 7.0 };
    assert_eq!(analyzed.steady, [window(0, 100, 400), window(2, 1100, 1400)]);
}

#[test]
fn failures_are_counted_by_kind() {
    let s = summary(
        4,
        1,
        &[
            (0, 0, "i@0 s@0 t1@1 t3@2 c16:4@3 d@3"),
            (1, 0, "i@10 s@10 t1@11 x@12"),
            (2, 0, "i@20 s@20 t1@21 x@22"),
            (3, 0, "i@30 s@30 d@32"),
        ],
    );
    let count = |kind| estimate(&s, Metric::Failures, Stat::Count(kind));
    assert_eq!(count(FailureKind::Timeout), Some(2.0));
    assert_eq!(count(FailureKind::EmptyAnswer), Some(1.0));
    assert_eq!(count(FailureKind::Connect), None);
    assert_eq!((s.requests, s.succeeded), (4, 1));
    let ttft = s.estimates.iter().find(|e| e.metric == Metric::Ttft).unwrap();
    assert_eq!((ttft.n, ttft.missing), (1, 3));
    assert_eq!(estimate(&s, Metric::Ttft, Stat::Quantile(0.5)), None, "one sample supports no median");
    assert!(s.verdict.is_valid(), "{:?}", s.verdict);
}

#[test]
fn goodput_counts_requests_that_keep_every_limit() {
    let mut plan = plan(5, 1);
    plan.slo = Some(Slo { ttft_ms: Some(2.0), tpot_ms: Some(1.0), e2el_ms: None });
    let requests = [
        "i@0 s@0 t1@1000000 d@1000000",
        // At both limits.
        "i@1000000 s@1000000 t1@3000000 t3@6000000 d@6000000",
        "i@6000000 s@6000000 t1@8000001 t3@9000000 d@9000000",
        "i@9000000 s@9000000 t1@9100000 t3@12100001 d@12100001",
        "i@12100001 s@12100001 t1@12200000 x@20000000",
    ];
    let requests = requests.iter().enumerate().map(|(i, script)| request(i as u32, 0, script)).collect();
    let trials = [trial(&plan.cells[0], requests)];
    let of = |plan: &Plan| summarise(plan, &plan.cells[0], &trials, false, "mock", None).unwrap();
    assert_eq!(estimate(&of(&plan), Metric::Goodput, Stat::Value), Some(2.0 * 1e9 / 2e7));
    plan.slo = None;
    assert!(of(&plan).estimates.iter().all(|e| e.metric != Metric::Goodput));
}

fn check_verdict(repeats: u32, script: &str, expected: &str) {
    assert_eq!(summary(repeats, 1, &[(0, 0, script)]).verdict.reason_text(), expected, "{script}");
}

#[test]
fn verdicts_name_their_reasons() {
    let good = "i@0 s@0 t1@1 t3@2 c16:4@3 d@3";
    check_verdict(1, good, "");
    check_verdict(2, good, "1 of 2 requests");
    check_verdict(1, "i@0 s@0 x@5", "none of 1 requests succeeded");
    check_verdict(1, "i@0 s@0 t1@1 c16:1@3 d@3", "output length 1.0 on average, 1 at worst, instead of 4");
    check_verdict(1, "i@0 s@0 t4@1 c17:4@3 d@3", "prompt length 17.0 on average, 17 at worst, instead of 16");
    check_verdict(1, "i@0 s@0 t4@1 k5@3 d@3", "5 prompt tokens from a cache");
    let late = format!("schedule lag p99 11.000 ms over {SCHEDULE_LAG_LIMIT_MS} ms");
    check_verdict(1, "i@0 s@11000000 t4@11000001 c16:4@11000002 d@11000003", &late);
    let plan = plan(1, 1);
    let trials = [trial(&plan.cells[0], vec![request(0, 0, good)])];
    let debug = summarise(&plan, &plan.cells[0], &trials, true, "mock", None).unwrap();
    assert_eq!(debug.verdict.reason_text(), "debug build");
}

#[test]
fn a_cell_whose_experts_were_all_computed_says_so_and_may_be_believed() {
    let mut plan = plan(1, 1);
    plan.models[0].expert_mode = bench_core::spec::ExpertMode::DenseAll;
    let trials = [trial(&plan.cells[0], vec![request(0, 0, "i@0 s@0 t1@1 t3@2 c16:4@3 d@3")])];
    let verdict = summarise(&plan, &plan.cells[0], &trials, false, "mock", None).unwrap().verdict;
    assert_eq!(verdict.reason_text(), "all experts computed (ablation): not how the model is served");
    assert_eq!(verdict.key(), "VALID");
}

#[test]
fn traces_that_do_not_belong_together_are_refused() {
    let plan = plan(1, 1);
    let cell = &plan.cells[0];
    let good = || request(0, 0, "i@0 s@0 t4@1 d@3");
    let refuse = |trial: TrialTrace| samples(&plan, cell, &[trial], "mock").unwrap_err().to_string();
    assert!(refuse(trial(cell, vec![good(), good()])).contains("twice"));
    let other = Cell { id: "other".to_owned(), ..cell.clone() };
    assert!(refuse(trial(&other, vec![good()])).contains("belongs to cell other"));
    assert!(refuse(trial(cell, vec![request(0, 0, "i@5 s@4")])).contains("not in order"));
    assert!(refuse(trial(cell, vec![request(0, 0, "s@4 t1@5 d@6")])).contains("intended"));
}

#[test]
fn study_columns_follow_the_study() {
    let plan = plan(10, 1);
    // e2el of repeat i: 100 + i ms, ttft 10 + i ms.
    let one = |i: u32| {
        let (start, ms) = (u64::from(i) * 1_000_000_000, 1_000_000);
        let (first, last) = (start + (10 + u64::from(i)) * ms, start + (100 + u64::from(i)) * ms);
        request(i, 0, &format!("i@{start} s@{start} t1@{first} t3@{last} d@{last}"))
    };
    let trials = [trial(&plan.cells[0], (0..10).map(one).collect())];
    let rows = study_rows(&plan, &trials, "mock").unwrap();
    let [row] = rows.as_slice() else { panic!("{rows:?}") };
    assert_eq!((row.model_short.as_str(), row.model.as_str()), ("m", "org/m"));
    assert_eq!((row.prompt_tokens, row.gen_tokens, row.context_length), (16, 4, 16));
    assert_eq!((row.ttft_median_ms, row.ttft_ms), (Some(14.5), Some(14.5)));
    // With ten requests both are the maximum: ceil(0.95 * 9) = 9.
    assert_eq!((row.p50_ms, row.p95_ms, row.p99_ms), (Some(104.5), Some(109.0), Some(109.0)));
    assert_eq!(row.tpot_tokps, Some(4.0 / (104.5 / 1e3)));
}

proptest::proptest! {
    #[test]
    fn times_add_up(
        intended in 0_u64..1_000_000, lag in 0_u64..1_000, first in 1_u64..1_000_000_000,
        chunks in proptest::collection::vec((0_u64..100_000_000, 1_u32..5), 1..40)
    ) {
        let mut at = intended + lag + first;
        let mut script = format!("i@{intended} s@{} t1@{at}", intended + lag);
        for (gap, count) in &chunks {
            at += gap;
            write!(script, " t{count}@{at}").unwrap();
        }
        write!(script, " d@{at}").unwrap();
        let one = |metric| values(metric, &script, "mock")[0].unwrap();
        let sum = |metric| values(metric, &script, "mock").into_iter().flatten().sum::<f64>();
        let ns = |ms: f64| (ms * 1e6).round() as u64;
        proptest::prop_assert_eq!(ns(sum("itl_ms")), at - intended - lag - first);
        proptest::prop_assert_eq!(ns(sum("icl_ms")), at - intended - lag - first);
        proptest::prop_assert_eq!(ns(one("e2el_ms")), at - intended - lag);
        proptest::prop_assert!(one("ttft_from_schedule_ms") >= one("ttft_ms"));
        proptest::prop_assert!(one("e2el_from_schedule_ms") >= one("e2el_ms"));
    }

    #[test]
    fn order_of_requests_changes_nothing(ttft in proptest::collection::vec(1_u64..1_000_000, 12), by in 0_usize..12) {
        let plan = plan(12, 1);
        let cell = &plan.cells[0];
        let one = |(i, ttft): (usize, &u64)| {
            let start = i as u64 * 10_000_000;
            let first = start + ttft;
            request(i as u32, 0, &format!("i@{start} s@{start} t1@{first} t1@{} t2@{} d@{}",
                first + ttft, first + 3 * ttft, first + 3 * ttft))
        };
        let requests: Vec<_> = ttft.iter().enumerate().map(one).collect();
        let mut turned = requests.clone();
        turned.rotate_left(by);
        let a = summarise(&plan, cell, &[trial(cell, requests)], false, "mock", None).unwrap();
        let b = summarise(&plan, cell, &[trial(cell, turned)], false, "mock", None).unwrap();
        proptest::prop_assert_eq!(a, b);
    }
}
