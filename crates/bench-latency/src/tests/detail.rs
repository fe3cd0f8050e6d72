//! What pictures show of a cell: distributions of its times, two requests token by token.

use super::{plan, request, trial};
use crate::{Analysis, Analyzed, summary};
use bench_core::detail::{Distribution, MAX_POINTS, MAX_STEPS, TokenTimeline};
use bench_core::metric::Metric;
use bench_core::trace::TrialTrace;
use std::fmt::Write as _;

fn analyzed(repeats: u32, rounds: &[&[(u32, &str)]]) -> Analyzed {
    let plan = plan(repeats, 1);
    let of = |round: &&[(u32, &str)]| {
        trial(&plan.cells[0], round.iter().map(|(repeat, script)| request(*repeat, 0, script)).collect())
    };
    let trials: Vec<TrialTrace> = rounds.iter().map(of).collect();
    summary::taken_in(&plan, &plan.cells[0], &trials, "mock").unwrap().finish(false, None).unwrap()
}

fn distribution(analyzed: &Analyzed, metric: Metric) -> Option<&Distribution> {
    analyzed.distributions.iter().find(|d| d.metric == metric)
}

#[test]
fn distributions_are_exact_and_of_successful_requests() {
    let ms = 1_000_000;
    let script = |at: u64, ttft: u64, gaps: [u64; 3]| {
        let (sent, mut now) = (at * ms + ms / 2, at * ms + ms / 2 + ttft * ms);
        let mut script = format!("i@{} s@{sent} t1@{now}", at * ms);
        for gap in gaps {
            now += gap * ms;
            write!(script, " t1@{now}").unwrap();
        }
        script + &format!(" d@{now}")
    };
    let (a, b) = (script(0, 10, [1, 2, 3]), script(1_000, 30, [2, 2, 8]));
    let all =
        analyzed(3, &[&[(0, &a), (1, &b)], &[(2, "i@3000000000 s@3000000000 t1@3000000005 x@3000000006")]]);
    let of = |metric| distribution(&all, metric).map(|d| (d.n, d.steps.clone())).unwrap();
    assert_eq!(of(Metric::Ttft), (2, vec![(10.0, 0.5), (30.0, 1.0)]));
    assert_eq!(of(Metric::TtftFromSchedule), (2, vec![(10.5, 0.5), (30.5, 1.0)]));
    assert_eq!(of(Metric::Itl), (6, vec![(1.0, 1.0 / 6.0), (2.0, 4.0 / 6.0), (3.0, 5.0 / 6.0), (8.0, 1.0)]));
    assert_eq!(of(Metric::Tpot), (2, vec![(2.0, 0.5), (4.0, 1.0)]));
    assert_eq!(of(Metric::E2el), (2, vec![(16.0, 0.5), (42.0, 1.0)]));
    // The generator's lateness is known of the failed one too.
    assert_eq!(of(Metric::ScheduleLag), (3, vec![(0.0, 1.0 / 3.0), (0.5, 1.0)]));
    assert!(distribution(&all, Metric::DecodeRate).is_none(), "only times are shown");
    let failed = analyzed(1, &[&[(0, "i@0 s@0 x@5")]]);
    assert_eq!(failed.distributions.len(), 1, "no samples, no distribution: {:?}", failed.distributions);
    assert_eq!(failed.timelines, []);
}

/// 2,000 requests of 101 tokens: gaps are counted, not kept. The bound is that of the histogram.
#[test]
fn many_gaps_are_few_steps_within_the_histograms_digits() {
    let (requests, gaps) = (2_000, 100);
    let plan = plan(requests, 1);
    let mut analysis = Analysis::new(&plan, &plan.cells[0], "mock");
    analysis.trial(0, &plan.cells[0].id).unwrap();
    let gap_ns = |i: u64| 5_000_000 + (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 41);
    let mut exact = Vec::new();
    for repeat in 0..requests {
        let start = u64::from(repeat) * 2_000_000_000;
        let mut at = start + 1_000;
        let mut script = format!("i@{start} s@{start} t1@{at}");
        for token in 0..gaps {
            let gap = gap_ns(u64::from(repeat) * 1_000 + token);
            exact.push(gap as f64 / 1e6);
            at += gap;
            write!(script, " t1@{at}").unwrap();
        }
        analysis.request(&request(repeat, 0, &format!("{script} d@{at}"))).unwrap();
    }
    exact.sort_by(f64::total_cmp);
    assert!(analysis.heap_bytes() < 12 << 20, "{}", analysis.heap_bytes());
    let analyzed = analysis.finish(false, None).unwrap();
    let itl = distribution(&analyzed, Metric::Itl).unwrap();
    assert_eq!((itl.n, itl.steps.len() <= MAX_STEPS), (200_000, true));
    assert!(itl.steps.windows(2).all(|w| w[0].0 < w[1].0 && w[0].1 < w[1].1));
    assert_eq!((itl.steps[0].0, *itl.steps.last().unwrap()), (exact[0], (exact[199_999], 1.0)));
    for &(value, share) in &itl.steps {
        let found = exact[((share * 200_000.0).round() as usize).clamp(1, 200_000) - 1];
        assert!((value / found - 1.0).abs() < 1e-3, "{share}: {value} instead of {found}");
    }
    assert_eq!(analyzed.timelines.len(), 2);
}

#[test]
fn the_first_request_and_the_one_that_stalled() {
    // The second was sent first, and stored after; the failed one before both is no example, and neither is its gap.
    let first = analyzed(
        4,
        &[
            &[
                (0, "i@0 s@0 t1@1 t1@9000001 x@9000002"),
                (1, "i@3000000 s@3000000 t1@4000000 t1@4500000 d@4500000"),
                (2, "i@2000000 s@2000000 t1@5000000 t2@5500000 d@5500001"),
            ],
            &[(3, "i@0 s@1 t1@1000001 t1@1500001 t1@3500001 d@3500001")],
        ],
    );
    let of = |repeat, chunks: &[(f64, u32)]| TokenTimeline {
        repeat,
        slot: 0,
        chunks: chunks.to_vec(),
        left_out: 0,
    };
    let stalled = of(3, &[(1.0, 1), (1.5, 1), (3.5, 1)]);
    assert_eq!(first.timelines, [of(2, &[(3.0, 1), (3.5, 2)]), stalled]);
    // One request is both.
    let one = analyzed(1, &[&[(0, "i@0 s@0 t1@1000000 t1@2000000 d@2000000")]]);
    assert_eq!(one.timelines, [of(0, &[(1.0, 1), (2.0, 1)])]);
    // Without a gap there is a first one all the same.
    assert_eq!(analyzed(1, &[&[(0, "i@0 s@0 t4@1000000 d@1000000")]]).timelines, [of(0, &[(1.0, 4)])]);
}

#[test]
fn of_a_long_answer_the_stretch_with_the_gap_is_kept() {
    let script = |stall: u64| {
        let mut script = "i@0 s@0".to_owned();
        for token in 1..=10_000 {
            let at = token * 1_000_000 + if token > stall { 7_000_000 } else { 0 };
            write!(script, " t1@{at}").unwrap();
        }
        script + " d@99999999999"
    };
    let long = |stall| {
        let mut analyzed = analyzed(1, &[&[(0, &script(stall))]]);
        analyzed.timelines.remove(0)
    };
    for (stall, begin) in [(9_500, 5_905.0), (5_000, 2_953.0), (3, 1.0)] {
        let shown = long(stall);
        assert_eq!((shown.chunks.len(), shown.left_out), (MAX_POINTS, 10_000 - MAX_POINTS as u64), "{stall}");
        assert_eq!(shown.chunks[0].0, begin, "{stall}");
        let longest = shown.chunks.windows(2).map(|w| w[1].0 - w[0].0).fold(0.0, f64::max);
        assert!((longest - 8.0).abs() < 1e-9, "{stall}: {longest}");
    }
}
