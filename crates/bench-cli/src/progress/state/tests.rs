//! A state is told of a run, and read.

use super::*;
use bench_core::event::{Channel, Event, FinishReason};
use bench_core::spec::RunSpec;
use bench_core::unit::Nanos;

/// Three cells of 100 requests in a closed loop of 64, one round.
pub(crate) fn plan() -> Plan {
    let toml = "[run]\nname = \"demo\"\nwarmup = 0\n[target]\nkind = \"http\"\n[server]\n\
        base_url = \"http://localhost:1\"\n[[models]]\nid = \"m\"\n[workload]\nprompt_tokens = [8]\n\
        output_tokens = [4]\n[load]\nconcurrency = [1, 64, 128]\nrequests = 100\n";
    let mut plan = RunSpec::from_toml("t", toml).unwrap().resolve().unwrap();
    // The order is shuffled by the seed; a view is read in this one.
    plan.trials.sort_by_key(|t| plan.cells.iter().position(|c| c.id == t.cell));
    for (index, trial) in (0..).zip(&mut plan.trials) {
        trial.index = index;
    }
    plan
}

fn progress(trials_done: u32, requests_done: u64, elapsed: Duration) -> Progress {
    Progress {
        trials_total: 3,
        trials_done,
        trials_skipped: 0,
        requests_total: 300,
        requests_done,
        tokens_total: 300 * 12,
        tokens_done: requests_done * 12,
        elapsed,
    }
}

/// A request that failed in this way, or one with its end.
fn trace(failure: Option<(FailureKind, &str)>) -> RequestTrace {
    let kind = match failure {
        Some((failure, message)) => EventKind::Failed { failure, message: message.to_owned() },
        None => EventKind::Done { finish: FinishReason::Length },
    };
    let tokens = EventKind::Tokens { count: 4, channel: Channel::Final };
    let events = [EventKind::Intended, tokens, kind].map(|kind| Event { at: Nanos(0), kind }).to_vec();
    RequestTrace {
        repeat: 0,
        slot: 0,
        prompt_hash: String::new(),
        asked: None,
        server: None,
        kv_allocated_bytes: None,
        events,
    }
}

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Before anything was told.
pub(crate) fn fresh() -> Snapshot {
    State::new(&plan()).snapshot(Duration::ZERO, false)
}

/// The first cell is done in 10 s, the second in the middle: 38 requests with TTFT from 120 ms down to 20 ms,
/// and four that failed.
pub(crate) fn busy() -> Snapshot {
    let plan = plan();
    let mut state = State::new(&plan);
    let trial = |i: usize| (&plan.trials[i], plan.cell(&plan.trials[i].cell).unwrap());
    let good =
        |ttft_ms| Ended { ttft_ms: Some(ttft_ms), tpot_ms: Some(10.0), output_tokens: 4, failure: None };
    let (first, cell) = trial(0);
    state.note(ms(0), Level::Warning, "the server says nothing of its metrics".to_owned());
    state.trial_started(ms(0), &progress(0, 0, ms(0)), cell);
    for i in 1..=100 {
        state.request(ms(100 * i), &progress(0, i, ms(100 * i)), &trace(None), &good(5.0), false);
    }
    state.trial_finished(ms(10_000), &progress(1, 100, ms(10_000)), first, true);
    let (_, cell) = trial(1);
    state.trial_started(ms(10_000), &progress(1, 100, ms(10_000)), cell);
    state.set_in_flight(64);
    let mut done = 100;
    for i in 1..=38_u64 {
        done += 1;
        // Slower at first, then as fast as can be.
        let ttft_ms = 120.0 - (i as f64 - 1.0) * 100.0 / 37.0;
        let now = ms(10_000 + 15 * i);
        state.request(now, &progress(1, done, now), &trace(None), &good(ttft_ms), false);
    }
    for (i, failure) in (1..).zip([
        (FailureKind::Timeout, "no token for 120 s"),
        (FailureKind::Timeout, "no token for 120 s"),
        (FailureKind::Timeout, "no token for 120 s"),
        (FailureKind::Status, "503 Service\nUnavailable"),
    ]) {
        done += 1;
        let now = ms(10_570 + 20 * i);
        let ended = Ended { failure: Some(failure.0), ..Ended::default() };
        state.request(now, &progress(1, done, now), &trace(Some(failure)), &ended, false);
    }
    state.snapshot(ms(11_000), false)
}

#[test]
fn a_snapshot_is_a_function_of_what_was_told() {
    let s = busy();
    assert_eq!((s.trial, s.trials, s.requests_done, s.requests_total), (2, 3, 142, 300));
    assert_eq!(s.cell.as_deref(), Some("m_p8_n4_c64"));
    assert_eq!(s.errors, [(FailureKind::Timeout, 3), (FailureKind::Status, 1)]);
    let states: Vec<_> = s.cells.iter().map(|c| (c.state, c.done, c.planned, c.failed)).collect();
    let expected =
        [(CellState::Done, 100, 100, 0), (CellState::Running, 42, 100, 4), (CellState::Waiting, 0, 100, 0)];
    assert_eq!(states, expected);
    // Figures are those of the current cell, failures left out; p99 needs 100 samples.
    assert_eq!((s.ttft.n, s.tpot.n), (38, 38));
    assert!(s.ttft.values_ms[0].is_some() && s.ttft.values_ms[1].is_some() && s.ttft.values_ms[2].is_none());
    let notes: Vec<_> = s.notes.iter().map(|n| (n.level, n.times, n.text.as_str())).collect();
    let expected = [
        (Level::Warning, 1, "the server says nothing of its metrics"),
        (Level::Failure, 3, "m_p8_n4_c64: timeout: no token for 120 s"),
        (Level::Failure, 1, "m_p8_n4_c64: status: 503 Service Unavailable"),
    ];
    assert_eq!(notes, expected);
}

#[test]
fn time_left_runs_down_while_nothing_ends() {
    let plan = plan();
    let mut state = State::new(&plan);
    let cell = plan.cell(&plan.trials[0].cell).unwrap();
    state.trial_started(ms(0), &progress(0, 0, ms(0)), cell);
    assert_eq!(state.snapshot(ms(5_000), false).left, None);
    let ended = Ended::default();
    state.request(ms(10_000), &progress(0, 100, ms(10_000)), &trace(None), &ended, false);
    for (now, left) in [(10_000, 20), (15_000, 15), (60_000, 0)] {
        assert_eq!(state.snapshot(ms(now), false).left, Some(Duration::from_secs(left)));
    }
}

#[test]
fn warm_up_is_work_but_no_figure() {
    let plan = plan();
    let mut state = State::new(&plan);
    let cell = plan.cell(&plan.trials[0].cell).unwrap();
    state.trial_started(ms(0), &progress(0, 0, ms(0)), cell);
    let good = Ended { ttft_ms: Some(1.0), tpot_ms: None, output_tokens: 4, failure: None };
    for i in 1..=5 {
        state.request(ms(500), &progress(0, i, ms(500)), &trace(None), &good, true);
    }
    let bad = Ended { failure: Some(FailureKind::EmptyAnswer), ..Ended::default() };
    state.request(ms(500), &progress(0, 6, ms(500)), &trace(None), &bad, true);
    let s = state.snapshot(ms(500), false);
    assert_eq!((s.requests_done, s.ttft.n, s.cells[0].done, s.errors.len()), (6, 0, 0, 0));
    assert_eq!(s.output_tok_s, Some(40.0));
    assert_eq!(s.notes[0].text, "m_p8_n4_c1 (warm-up): empty_answer: it ended without a token");
}

#[test]
fn trials_of_an_earlier_process_and_those_that_could_not_run_are_counted() {
    let plan = plan();
    let mut state = State::new(&plan);
    state.trial_skipped(&plan.trials[0]);
    let skipped = |done| Progress { trials_skipped: 1, trials_total: 2, ..progress(done, 0, ms(0)) };
    let cell = plan.cell(&plan.trials[1].cell).unwrap();
    state.trial_started(ms(0), &skipped(0), cell);
    assert_eq!(state.snapshot(ms(0), false).trial, 2);
    state.trial_finished(ms(0), &skipped(1), &plan.trials[1], true);
    let s = state.snapshot(ms(0), false);
    let states: Vec<_> = s.cells.iter().map(|c| (c.state, c.done, c.failed)).collect();
    let expected = [(CellState::Done, 100, 0), (CellState::Failed, 100, 100), (CellState::Waiting, 0, 0)];
    assert_eq!(states, expected);
    assert_eq!(s.errors, [(FailureKind::Engine, 100)]);
}

#[test]
fn notes_and_chart_stay_small_whatever_comes() {
    let mut state = State::new(&plan());
    for i in 0..10_000 {
        state.note(ms(i), Level::Failure, format!("failure {i}"));
    }
    assert_eq!(state.snapshot(ms(0), false).notes.len(), NOTES_KEPT);
    assert!(state.take_unprinted().is_empty());
    let mut chart = Chart::default();
    let times = [0, 250, 29_999, 30_000, 3_600_000, 1_000_000_000];
    for at in times {
        chart.record(ms(at), at as f64);
        assert!(chart.slices.len() <= SLICES);
        assert!(chart.width.as_millis() * SLICES as u128 > u128::from(at));
        let last = chart.slices().last().copied().unwrap();
        assert!((last.at_s * 1e3 - at as f64).abs() <= chart.width.as_millis() as f64);
        assert_eq!(last.max_ms, at as f64);
    }
    assert_eq!(chart.slices.iter().map(|s| s.0).sum::<u64>(), times.len() as u64);
}
