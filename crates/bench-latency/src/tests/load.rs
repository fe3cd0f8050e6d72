//! Windows, growth and lengths under a closed and an open loop.

use super::{estimate, request, trial};
use crate::summarise;
use bench_core::metric::Metric;
use bench_core::plan::Plan;
use bench_core::sample::{Stat, Summary};
use bench_core::spec::RunSpec;
use bench_core::trace::{Lengths, RequestTrace};

pub(super) fn served(load: &str, rest: &str) -> Plan {
    let text = format!(
        "[target]\nkind = \"http\"\n[server]\nbase_url = \"http://h:1\"\n[load]\n{load}\n[workload]\n\
         prompt_tokens = [16]\noutput_tokens = [4]\n{rest}\n[[models]]\nid = \"org/m\"\n"
    );
    RunSpec::from_toml("t", &text).unwrap().resolve().unwrap()
}

pub(super) fn of(plan: &Plan, requests: Vec<RequestTrace>) -> Summary {
    summarise(plan, &plan.cells[0], &[trial(&plan.cells[0], requests)], false, "http", None).unwrap()
}

/// Sent at once, `long` ms of it in flight; four tokens at its end.
fn ms(repeat: u32, at: u64, long: u64) -> RequestTrace {
    let (at, end) = (at * 1_000_000, (at + long) * 1_000_000);
    request(repeat, 0, &format!("i@{at} s@{at} t4@{end} c16:4@{end} d@{end}"))
}

fn value(summary: &Summary, metric: Metric) -> Option<f64> {
    estimate(summary, metric, Stat::Value)
}

#[test]
fn a_closed_loop_is_steady_while_it_is_full() {
    let plan = served("concurrency = [2]\nrequests = 4", "");
    // Two in flight from 10 to 90, with a moment of one in between.
    let s = of(&plan, vec![ms(0, 0, 40), ms(1, 10, 40), ms(2, 42, 48), ms(3, 50, 50)]);
    assert_eq!(value(&s, Metric::SteadyWindow), Some(80.0));
    assert_eq!(value(&s, Metric::SteadyWindowShare), Some(0.8));
    assert_eq!(value(&s, Metric::SystemRequestRate), Some(3.0 * 1e9 / 80e6));
    assert_eq!(value(&s, Metric::InFlightGrowth), None);
    assert!(s.verdict.reasons.is_empty(), "{:?}", s.verdict);
}

#[test]
fn a_conversation_is_held_while_its_user_thinks() {
    let plan = served("concurrency = [2]\nrequests = 4", "turns = 2\nthink_time_ms = 5.0");
    let turn = |repeat, slot, at| RequestTrace { slot, ..ms(repeat, at, 10) };
    // The requests themselves never overlap.
    let s = of(&plan, vec![turn(0, 0, 0), turn(1, 0, 10), turn(0, 1, 20), turn(1, 1, 30)]);
    assert_eq!(value(&s, Metric::PeakConcurrency), Some(1.0));
    assert_eq!(value(&s, Metric::SteadyWindow), Some(20.0), "from 10 to 30");
}

#[test]
fn an_open_loop_is_steady_from_its_mean_level_to_its_last_start() {
    let plan = served("arrival = \"constant\"\nrate = [100.0]\nrequests = 100", "");
    // One each 10 ms, 45 ms long: 1, 2, 3, 4 in flight, then 4 or 5.
    let s = of(&plan, (0..100).map(|i| ms(i, u64::from(i) * 10, 45)).collect());
    assert_eq!(value(&s, Metric::SteadyWindow), Some(990.0 - 40.0), "the fifth start to the last");
    assert_eq!(value(&s, Metric::SteadyWindowShare), Some(950.0 / 1035.0));
    // Those that started from 0 to 940 ms: the first one ended at 45.
    assert_eq!(value(&s, Metric::SystemRequestRate), Some(95.0 * 1e9 / 950e6));
    assert!(value(&s, Metric::InFlightGrowth).unwrap().abs() < 0.02);
    assert!(s.verdict.reasons.is_empty(), "{:?}", s.verdict);
}

#[test]
fn an_overloaded_server_is_told_and_not_condemned() {
    let plan = served("arrival = \"constant\"\nrate = [100.0]\nrequests = 100", "");
    // Served one after another at half the rate: the queue grows by one each 20 ms.
    let s = of(&plan, (0..100).map(|i| ms(i, u64::from(i) * 10, 20 + u64::from(i) * 10)).collect());
    let growth = value(&s, Metric::InFlightGrowth).unwrap();
    assert!((growth - 4.0 / 3.0).abs() < 0.1, "{growth}");
    assert!(s.verdict.is_valid());
    let text = s.verdict.reason_text();
    assert!(text.starts_with("overloaded, or too short to settle: 19.6 requests"), "{text}");
    assert!(text.contains("in flight in the second quarter of the schedule, 44.3 in"), "{text}");
}

#[test]
fn all_at_once_is_one_window() {
    let plan = served("arrival = \"burst\"\nrequests = 2", "");
    let s = of(&plan, vec![ms(0, 5, 10), ms(1, 5, 30)]);
    assert_eq!(value(&s, Metric::SteadyWindow), Some(30.0));
    assert_eq!(value(&s, Metric::SystemTokenRate), Some(8.0 * 1e9 / 30e6));
    let plan = served("arrival = \"burst\"\nrequests = 3\nmax_concurrency = 2", "");
    let s = of(&plan, vec![ms(0, 5, 10), ms(1, 5, 30), ms(2, 15, 10)]);
    assert_eq!(value(&s, Metric::SteadyWindow), Some(20.0), "a closed loop of two");
}

#[test]
fn a_request_held_back_by_the_plan_is_not_late() {
    let held = "i@0 s@50000000 t4@50000001 c16:4@50000001 d@50000001";
    let first = "i@0 s@0 t4@50000000 c16:4@50000000 d@50000000";
    let requests = || vec![request(0, 0, first), request(1, 0, held)];
    let open = "arrival = \"poisson\"\nrate = [100.0]\nrequests = 2";
    let text = of(&served(open, ""), requests()).verdict.reason_text();
    assert!(text.contains("schedule lag p99"), "{text}");
    let plan = served(&format!("{open}\nmax_concurrency = 1"), "");
    assert_eq!(of(&plan, requests()).verdict.reason_text(), "");
}

#[test]
fn lengths_of_a_requests_own_are_what_it_is_held_against() {
    let plan = served("concurrency = [1]\nrequests = 2", "");
    let asked = |prompt_tokens, output_tokens| Some(Lengths { prompt_tokens, output_tokens });
    let requests = |second| {
        let one = RequestTrace { asked: asked(16, 4), ..ms(0, 0, 10) };
        vec![one, RequestTrace { asked: second, ..ms(1, 10, 10) }]
    };
    assert_eq!(of(&plan, requests(asked(16, 4))).verdict.reason_text(), "");
    assert_eq!(
        of(&plan, requests(asked(20, 2))).verdict.reason_text(),
        "output length of 1 of 2 requests is off, 4 instead of 2 at worst; \
         prompt length of 1 of 2 requests is off, 16 instead of 20 at worst"
    );
}

#[test]
fn an_answer_that_may_end_by_itself_is_only_too_long() {
    let text = |output: u32| {
        let mut plan = served("concurrency = [1]\nrequests = 1", "");
        plan.server.as_mut().unwrap().fixed_length = false;
        let script = format!("i@0 s@0 t{output}@5 c16:{output}@5 d@5");
        of(&plan, vec![request(0, 0, &script)]).verdict.reason_text()
    };
    assert_eq!(text(2), "");
    assert_eq!(text(5), "output length 5.0 on average, 5 at worst, instead of 4");
}
