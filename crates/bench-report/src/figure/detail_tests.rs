//! Distributions, gaps and power as charts: the numbers that are drawn, and what is not claimed.

use super::cells::Study;
use super::chart::{Band, Chart, Join, Mark, Series};
use super::gaps::Which;
use super::{all, ecdf, gaps, power};
use crate::{RunInput, order, view, wide};
use bench_core::detail::{CellDetail, Distribution, Phase, PhaseKind, PowerTimeline, TokenTimeline};
use bench_core::metric::Metric;
use bench_core::row::rows;
use bench_core::sample::{Estimate, Stat, Summary};
use bench_core::spec::RunSpec;
use bench_core::verdict::Verdict;

/// Models `a` and `b` at 16 and 64 prompt tokens; `detail` fills each cell, with its medians of TTFT and chunk gaps.
fn run(detail: impl Fn(&mut CellDetail)) -> RunInput {
    let text = "[run]\nrepeats = 4\nrounds = 1\n[workload]\nprompt_tokens = [16, 64]\noutput_tokens = [4]\n\
                [[models]]\nid = \"org/a\"\nlabel = \"a\"\n[[models]]\nid = \"org/b\"\nlabel = \"b\"\n";
    let plan = RunSpec::from_toml("t", text).unwrap().resolve().unwrap();
    let p50 =
        |metric, value| Estimate { stat: Stat::Quantile(0.5), ..Estimate::of_cell(metric, Some(value), 4) };
    let summary = Summary {
        estimates: vec![p50(Metric::Ttft, 11.0), p50(Metric::Icl, 2.0)],
        requests: 4,
        succeeded: 4,
        token_source: None,
        verdict: Verdict::default(),
        client: None,
    };
    let mut input =
        RunInput { run_id: "t-20260102T030405Z-0".into(), study_name: "t".into(), ..RunInput::default() };
    for cell in &plan.cells {
        input.rows.extend(rows(&input.run_id, "mock", cell, &summary));
        let (distributions, timelines, power) = Default::default();
        let mut one = CellDetail { cell: cell.clone(), raw: Vec::new(), distributions, timelines, power };
        detail(&mut one);
        input.cells.push(one);
    }
    input
}

fn chart(run: &RunInput, of: impl Fn(&Study) -> Option<Chart>) -> Option<Chart> {
    let sorted = order::sorted(&run.rows).unwrap();
    let cells = wide::cells(&sorted, &view::LATENCY);
    of(&Study::new(run, &sorted, &cells))
}

fn places(series: &Series) -> Vec<(f64, f64)> {
    series.points.iter().map(|p| (p.x, p.y)).collect()
}

fn names(run: &RunInput) -> Vec<String> {
    let sorted = order::sorted(&run.rows).unwrap();
    let cells = wide::cells(&sorted, &view::LATENCY);
    all(run, &cells).unwrap().into_iter().map(|f| f.name).collect()
}

fn ttft(steps: Vec<(f64, f64)>) -> Distribution {
    Distribution { metric: Metric::Ttft, n: 4, steps }
}

#[test]
fn a_distribution_is_steps_of_the_largest_cell_of_each_model() {
    let run = run(|cell| {
        let at = if cell.cell.prompt_tokens == 64 { 10.0 } else { 1.0 };
        cell.distributions.push(ttft(vec![(at, 0.25), (at + 1.0, 0.75), (at + 4.0, 1.0)]));
    });
    let shown = chart(&run, |study| ecdf::chart(study, Metric::Ttft)).unwrap();
    let [a, b, marks @ ..] = shown.series.as_slice() else { panic!("{:?}", shown.series) };
    assert_eq!(places(a), [(10.0, 0.0), (10.0, 0.25), (11.0, 0.75), (14.0, 1.0)]);
    assert!(matches!(b.mark, Mark::Line { join: Join::Steps, markers: false }));
    // n = 4 supports the median and nothing above.
    assert_eq!(marks.iter().map(places).collect::<Vec<_>>(), [[(11.0, 0.5)], [(11.0, 0.5)]]);
    let legend = shown.legend();
    assert_eq!(legend.iter().map(|k| k.label.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    assert!(legend[0].style.ink != legend[1].style.ink && legend[0].style.marker != legend[1].style.marker);
    let caption = shown.caption.join("; ");
    assert!(
        caption.contains("64 prompt and 4 output tokens, batch 1; 2 of 4 cells: the largest"),
        "{caption}"
    );
    assert!(caption.ends_with("n = 4; markers: p50, p95, p99 where n supports them"), "{caption}");
    let tips: Vec<_> = shown.points().filter(|p| !p.tip.is_empty()).collect();
    assert_eq!(tips.len(), 3 + 3 + 2);
    assert!(tips[0].tip.contains("TTFT 10.00 ms or less: 25.00 % of the samples"), "{}", tips[0].tip);
    assert_eq!(tips[0].cell.as_deref(), Some(run.cells[1].cell.id.as_str()));
    assert!(chart(&run, |study| ecdf::chart(study, Metric::Itl)).is_none());
    assert_eq!(names(&run), ["ttft", "decode_rate", "ecdf_ttft"]);
}

#[test]
fn models_of_other_sizes_say_so_and_invalid_ones_too() {
    let mut run = run(|cell| {
        if cell.cell.model == "a" || cell.cell.prompt_tokens == 16 {
            cell.distributions.push(ttft(vec![(1.0, 1.0)]));
        }
    });
    for row in run.rows.iter_mut().filter(|r| r.model == "b") {
        row.verdict = "INVALID";
    }
    let shown = chart(&run, |study| ecdf::chart(study, Metric::Ttft)).unwrap();
    let labels: Vec<_> = shown.legend().into_iter().map(|k| k.label).collect();
    let of = |name: &str, prompt: u32| format!("{name}, {prompt} prompt and 4 output tokens, batch 1");
    assert_eq!(labels, [of("a", 64), of("b", 16) + " (INVALID)"]);
    for row in run.rows.iter_mut().filter(|r| r.model == "a" && r.prompt_tokens == 64) {
        row.verdict = "INVALID";
    }
    let shown = chart(&run, |study| ecdf::chart(study, Metric::Ttft)).unwrap();
    assert_eq!(shown.legend()[0].label, "a", "a smaller VALID cell comes before a larger INVALID one");
}

#[test]
fn every_gap_is_as_wide_as_it_is_long() {
    let timeline = |repeat, chunks: &[(f64, u32)], left_out| {
        let chunks = chunks.to_vec();
        TokenTimeline { repeat, slot: 0, chunks, left_out }
    };
    let run = run(|cell| {
        cell.timelines = vec![timeline(0, &[(10.0, 1), (12.0, 1), (13.0, 2)], 0)];
        if cell.cell.model == "a" {
            cell.timelines.push(timeline(3, &[(10.0, 1), (90.0, 1)], 7));
        }
    });
    let shown = chart(&run, |study| gaps::chart(study, Which::First)).unwrap();
    let labels = |c: &Chart| c.series.iter().filter_map(|s| s.label.clone()).collect::<Vec<_>>();
    assert_eq!(labels(&shown), ["a"], "the first request of b has its longest gap too");
    assert_eq!(places(&shown.series[0]), [(10.0, 2.0), (12.0, 1.0), (13.0, 1.0)]);
    let tip = &shown.series[0].points[1].tip;
    assert!(tip.ends_with("request 0, slot 0\ngap of 1.000 ms from 12.00 ms on, before 2 tokens"), "{tip}");
    let shown = chart(&run, |study| gaps::chart(study, Which::LongestGap)).unwrap();
    assert_eq!(labels(&shown), ["a", "b"]);
    assert_eq!(places(&shown.series[0]), [(10.0, 80.0), (90.0, 80.0)]);
    let rules: Vec<_> = shown.rules.iter().map(|r| (r.y, r.label.as_str())).collect();
    assert_eq!(rules, [(2.0, "median of a: 2.000 ms"), (2.0, "median of b: 2.000 ms")]);
    assert!(shown.caption.contains(&"7 further chunks are not shown".to_owned()), "{:?}", shown.caption);
    // One chunk has no gap.
    let single = self::run(|cell| cell.timelines = vec![timeline(0, &[(10.0, 4)], 0)]);
    assert!(chart(&single, |study| gaps::chart(study, Which::LongestGap)).is_none());
}

#[test]
fn failed_readings_break_the_line_and_phases_are_shaded() {
    let phase = |kind, from_s, to_s| Phase { kind, from_s, to_s };
    let timeline = PowerTimeline {
        scope: "gpu_board.0".into(),
        device: "Stub".into(),
        samples: vec![
            (0.25, Some(100.0)),
            (1.0, Some(200.0)),
            (2.0, None),
            (3.0, Some(150.0)),
            (4.0, None),
            (5.0, None),
        ],
        phases: vec![
            phase(PhaseKind::Prefill, 0.5, 1.0),
            phase(PhaseKind::Prefill, 0.75, 1.5),
            phase(PhaseKind::Decode, 1.0, 2.0),
            phase(PhaseKind::Prefill, 2.0, 3.0),
            phase(PhaseKind::Decode, 3.0, 9.0),
            phase(PhaseKind::Decode, 9.0, 9.5),
        ],
        idle_w: Some(60.0),
        left_out: 3,
    };
    let run = run(|cell| {
        if cell.cell.model == "b" {
            cell.power = vec![timeline.clone()];
        }
    });
    let shown = chart(&run, power::chart).unwrap();
    let lines: Vec<_> = shown.series.iter().map(|s| (s.label.as_deref(), places(s))).collect();
    let name = Some("Stub (gpu_board.0)");
    // Instants count from the first request, sent at 0.5 s.
    assert_eq!(lines, [(name, vec![(-0.25, 100.0), (0.5, 200.0)]), (None, vec![(2.5, 150.0)])]);
    assert!(matches!(shown.series[1].mark, Mark::Line { markers: true, .. }), "a lone reading is seen");
    assert!(shown.points().all(|p| p.y > 0.0), "a failed reading is no 0 W");
    let band = |from, to, shade| Band { from, to, shade, label: String::new() };
    let expected = [band(0.5, 1.5, 1), band(2.5, 4.5, 1), band(0.0, 1.0, 0), band(1.5, 2.5, 0)];
    assert_eq!(shown.bands, expected);
    assert_eq!((shown.rules[0].y, shown.rules[0].label.as_str()), (60.0, "idle: 60.00 W"));
    let legend: Vec<_> = shown.legend().into_iter().map(|k| k.label).collect();
    assert_eq!(legend, ["Stub (gpu_board.0)", "idle: 60.00 W", "prefill", "decode"]);
    let caption = shown.caption.join("; ");
    assert!(
        caption.starts_with('b') && caption.contains("n = 6 samples; 3 failed: breaks in the line"),
        "{caption}"
    );
    assert!(caption.ends_with("3 later samples are not shown"), "{caption}");
    assert_eq!(names(&run), ["ttft", "decode_rate", "power"]);
    let nothing = PowerTimeline { samples: vec![(0.0, None)], ..timeline.clone() };
    let blind = self::run(|cell| cell.power = vec![nothing.clone()]);
    assert!(chart(&blind, power::chart).is_none(), "no reading, no picture");
}
