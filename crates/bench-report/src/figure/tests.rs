//! Every figure from rows of a made-up run, and charts made by hand where a pixel must be known.

use super::chart::{Band, Chart, Ink, Join, Mark, Point, Rule, Scale, Series, Spread, Style};
use super::paint::{Label, Shape, text_width};
use super::style::{LINE, WIDTH};
use super::{Figure, all, finished, layout, paint, pareto};
use crate::RunInput;
use crate::view::LATENCY;
use crate::{order, wide};
use bench_core::SCHEMA_VERSION;
use bench_core::detail::CellDetail;
use bench_core::load::Load;
use bench_core::metric::Metric;
use bench_core::plan::Cell;
use bench_core::row::Row;
use plotters::style::text_anchor::HPos;
use svg2pdf::usvg::{Options, Tree};

const MIB: f64 = 1_048_576.0;

fn row(model: &str, (prompt, batch): (u32, u32), metric: Metric, stat: &str, value: f64, width: f64) -> Row {
    let (def, width) = (metric.def(), Some(width).filter(|w| *w > 0.0));
    Row {
        run_id: "demo-20260102T030405Z-0123abcd".into(),
        target: "engine".into(),
        model: model.into(),
        prompt_tokens: prompt,
        output_tokens: 64,
        batch,
        load: "batch".into(),
        concurrency: None,
        request_rate: None,
        metric: def.key,
        scope: String::new(),
        unit: def.unit,
        stat: stat.into(),
        value: Some(value),
        ci_low: width.map(|w| value - w),
        ci_high: width.map(|w| value + w),
        instrument_error: None,
        ci_method: None,
        n: 20,
        missing: 0,
        missing_reason: String::new(),
        bounded: None,
        success_rate: Some(1.0),
        token_source: "token_ids",
        verdict: "VALID",
        verdict_reason: String::new(),
        client_verdict: String::new(),
        schema_version: SCHEMA_VERSION,
    }
}

fn scoped(scope: &str, row: Row) -> Row {
    Row { scope: scope.into(), ..row }
}

/// Everything that a cell may have.
fn cell(model: &str, at: (u32, u32), speed: f64) -> Vec<Row> {
    let of = |metric, stat: &str, value: f64, width: f64| row(model, at, metric, stat, value, width);
    let (prompt, batch) = (f64::from(at.0), f64::from(at.1));
    vec![
        of(Metric::Ttft, "p50", prompt / speed, 3.0),
        of(Metric::Tpot, "mean", 1000.0 / speed * batch.sqrt(), 0.5),
        of(Metric::Tpot, "p50", 990.0 / speed * batch.sqrt(), 0.5),
        of(Metric::DecodeRate, "p50", speed / batch.sqrt(), 1.0),
        of(Metric::SystemTokenRate, "value", speed * batch.sqrt(), 0.0),
        of(Metric::KvRetained, "p50", prompt * 4096.0 * speed, 0.0),
        of(Metric::KvTheory, "value", prompt * 4096.0 * speed, 0.0),
        of(Metric::KvFull, "value", prompt * 8192.0 * speed, 0.0),
        of(Metric::KvPerToken, "value", 4096.0, 0.0),
        of(Metric::WeightsBytes, "value", 100.0 * MIB * speed, 0.0),
        scoped("process", of(Metric::PeakBytes, "max", (120.0 * speed + prompt) * MIB, 0.0)),
        scoped("gpu_process", of(Metric::PeakBytes, "max", (110.0 * speed + prompt) * MIB, 0.0)),
        scoped("gpu_board", of(Metric::WhPer1kTokens, "mean", 0.4 * speed, 0.02)),
        scoped("gpu_board.0", of(Metric::WhPer1kTokens, "mean", 0.4 * speed, 0.02)),
        scoped("cpu_package", of(Metric::WhPer1kTokens, "mean", 0.1 * speed, 0.01)),
        of(Metric::ApeDecode, "value", speed * 10.0, 3.0),
        of(Metric::RooflineRatio, "value", 0.25, 0.01),
        scoped("all_experts", of(Metric::RooflineRatio, "value", 0.5, 0.02)),
    ]
}

fn run(rows: Vec<Row>) -> RunInput {
    RunInput {
        run_id: "demo-20260102T030405Z-0123abcd".into(),
        study_name: "demo".into(),
        machine: "Example CPU, 2 cores, 8 GiB".into(),
        rows,
        ..RunInput::default()
    }
}

/// Two models at two prompt lengths and two batch sizes, one cell INVALID.
fn full() -> RunInput {
    let mut rows = Vec::new();
    for (model, speed) in [("dense", 30.0), ("gpt-oss", 50.0)] {
        for at in [(128, 1), (128, 4), (512, 1), (512, 4)] {
            rows.extend(cell(model, at, speed));
        }
    }
    for row in rows.iter_mut().filter(|r| r.model == "dense" && r.prompt_tokens == 512 && r.batch == 4) {
        row.verdict = "INVALID";
        row.verdict_reason = "output length 60.0 instead of 64".into();
    }
    run(rows)
}

fn figures(run: &RunInput) -> Vec<Figure> {
    let sorted = order::sorted(&run.rows).unwrap();
    all(run, &wide::cells(&sorted, &LATENCY)).unwrap()
}

/// Of every figure by name, without painting it.
fn hits(run: &RunInput) -> Vec<(&'static str, Vec<super::Hit>)> {
    charts(run).into_iter().map(|(name, chart)| (name, scene(&chart).1)).collect()
}

fn scene(chart: &Chart) -> (super::paint::Scene, Vec<super::Hit>) {
    paint::register_font().unwrap();
    layout::scene(chart).unwrap()
}

const MARKED: Mark = Mark::Line { join: Join::Straight, markers: true };

fn series(mark: Mark, points: &[(f64, f64)]) -> Series {
    let points = points.iter().map(|&(x, y)| Point { tip: format!("{x} {y}"), ..Point::at(x, y) });
    let style = Style { ink: Ink::Color(0), dash: 0, marker: 0 };
    Series { label: Some("s".into()), style, mark, points: points.collect() }
}

fn fixed(series: Vec<Series>) -> Chart {
    let scale = |title: &str| Scale { title: title.into(), spread: Spread::Fixed(0.0, 10.0) };
    Chart { x: scale("x"), y: scale("y"), series, ..Chart::default() }
}

#[test]
fn values_stand_at_their_pixels() {
    let points = [(0.0, 0.0), (2.5, 7.5), (5.0, 5.0), (10.0, 10.0)];
    let (scene, hits) = scene(&fixed(vec![series(MARKED, &points)]));
    let at: Vec<(i32, i32)> = hits.iter().map(|h| (h.x, h.y)).collect();
    let ((left, bottom), (right, top)) = (at[0], at[3]);
    assert_eq!((right, bottom - top), (WIDTH - 60, 1120));
    let share = |a: i32, b: i32, s: f64| a + (f64::from(b - a) * s).round() as i32;
    assert_eq!(at[1], (share(left, right, 0.25), top + 280));
    assert_eq!(at[2], (share(left, right, 0.5), top + 560));
    assert_eq!(hits[1].tip, "2.5 7.5");
    assert!(scene.height > bottom as u32);
}

#[test]
fn an_interval_ends_where_its_numbers_are() {
    let mut one = series(MARKED, &[(5.0, 5.0)]);
    one.points[0] = Point { low: Some(2.5), high: Some(10.0), x_low: Some(0.0), ..one.points[0].clone() };
    let (scene, hits) = scene(&fixed(vec![one]));
    let (x, y) = (hits[0].x, hits[0].y);
    let from_it = scene.shapes.iter().filter_map(|s| match s {
        Shape::Line { points, .. } if points.len() == 2 && points[0] == (x, y) => Some(points[1]),
        _ => None,
    });
    let ends: Vec<_> = from_it.collect();
    assert_eq!(ends[..2], [(x, y + 280), (x, y - 560)]);
    assert_eq!((ends[2].1, ends[3]), (y, (x + 80, y)), "an arrow to the side that n cannot bound");
    assert!(ends[2].0 < x - 500);
}

fn polylines(shapes: &[Shape]) -> impl Iterator<Item = &Vec<(i32, i32)>> {
    shapes.iter().filter_map(|s| match s {
        Shape::Line { points, width, .. } if *width == LINE && points.len() > 2 => Some(points),
        _ => None,
    })
}

#[test]
fn steps_go_level_then_upright_and_nowhere_else() {
    let steps = Mark::Line { join: Join::Steps, markers: false };
    let values: Vec<(f64, f64)> = (0..=400).map(|i| (f64::from(i) / 40.0, f64::from(i / 8) / 5.0)).collect();
    let (scene, hits) = scene(&fixed(vec![series(steps, &values)]));
    let line = polylines(&scene.shapes).next().unwrap();
    assert!(line.windows(2).all(|w| (w[0].0 == w[1].0) != (w[0].1 == w[1].1)), "{line:?}");
    assert_eq!(line[0].1, line[1].1, "level first");
    let ends = |i: usize| (hits[i].x, hits[i].y);
    assert_eq!((line[0], *line.last().unwrap()), (ends(0), ends(400)));
    let straight = Mark::Line { join: Join::Straight, markers: false };
    let (scene, _) =
        super::tests::scene(&fixed(vec![series(straight, &[(0.0, 0.0), (5.0, 1.0), (10.0, 9.0)])]));
    let line = polylines(&scene.shapes).next().unwrap();
    assert!(line.windows(2).all(|w| w[0].0 != w[1].0 && w[0].1 != w[1].1), "{line:?}");
}

#[test]
fn bars_of_a_group_stand_side_by_side_on_zero() {
    let bars = |slot| series(Mark::Bar { slot, slots: 3 }, &[(0.0, 4.0), (1.0, 8.0)]);
    let names = Spread::Names(vec!["128".into(), "512".into()]);
    let chart = Chart {
        x: Scale { title: "x".into(), spread: names },
        y: Scale { title: "y".into(), spread: Spread::Zero },
        series: (0..3).map(bars).collect(),
        ..Chart::default()
    };
    let (scene, hits) = scene(&chart);
    // Without the samples of the legend.
    let rects = scene.shapes.iter().filter_map(|s| match s {
        Shape::Area { points, .. } if points.len() == 4 => Some((points[0], points[2])),
        _ => None,
    });
    let rects = &rects.collect::<Vec<_>>()[3..];
    assert_eq!(rects.len(), 6);
    let mut spans: Vec<(i32, i32)> = rects.iter().map(|r| (r.0.0, r.1.0)).collect();
    spans.sort_unstable();
    assert!(spans.windows(2).all(|w| w[0].1 < w[1].0), "{spans:?}");
    let foot = rects[0].1.1;
    assert!(rects.iter().all(|r| r.1.1 == foot));
    assert!(2 * (foot - hits[0].y) - (foot - hits[1].y) <= 1, "twice the value is twice the height");
}

#[test]
fn bands_and_rules_are_drawn_and_explained() {
    let mut chart = fixed(vec![series(MARKED, &[(1.0, 1.0)])]);
    let band = |from, to, shade, label: &str| Band { from, to, shade, label: label.into() };
    chart.bands =
        vec![band(0.0, 2.0, 0, "prefill"), band(2.0, 6.0, 1, "decode"), band(6.0, 8.0, 0, "prefill")];
    let style = Style { ink: Ink::Grey, dash: 1, marker: 0 };
    chart.rules = vec![Rule { y: 5.0, label: "idle, 70 W".into(), style }];
    let (scene, _) = scene(&chart);
    let words: Vec<&str> = texts(&scene).map(|t| t.text.as_str()).collect();
    for (word, count) in [("prefill", 1), ("decode", 1), ("idle, 70 W", 1)] {
        assert_eq!(words.iter().filter(|w| **w == word).count(), count, "{words:?}");
    }
    let areas = |s: &&Shape| matches!(s, Shape::Area { points, .. } if points.len() == 4);
    assert_eq!(scene.shapes.iter().filter(areas).count(), 3 + 2);
}

fn texts(scene: &paint::Scene) -> impl Iterator<Item = &Label> {
    scene.shapes.iter().filter_map(|s| match s {
        Shape::Text(label) => Some(label),
        _ => None,
    })
}

/// Left, upper, right and lower edge.
type Edges = (i32, i32, i32, i32);

/// Where a text's capitals stand.
fn place(label: &Label) -> Edges {
    let width = text_width(&label.text, label.points).unwrap();
    let height = (label.points / 72.0 * f64::from(paint::DPI) * 0.729) as i32;
    let from = match label.align {
        HPos::Left => 0,
        HPos::Center => -width / 2,
        HPos::Right => -width,
    };
    let across = if label.centered { -height / 2 } else { 0 };
    let (x, y) = label.at;
    if label.upright {
        (x + across, y - from - width, x + across + height, y - from)
    } else {
        (x + from, y + across, x + from + width, y + across + height)
    }
}

/// Every text inside of the picture, none over another.
fn check_texts(name: &str, scene: &paint::Scene) {
    let all: Vec<(&str, Edges)> = texts(scene).map(|t| (t.text.as_str(), place(t))).collect();
    for (i, (text, a)) in all.iter().enumerate() {
        let inside = a.0 >= 0 && a.1 >= 0 && a.2 <= scene.width as i32 && a.3 <= scene.height as i32;
        assert!(inside, "{name}: {text:?} at {a:?} of {} {}", scene.width, scene.height);
        for (other, b) in &all[..i] {
            let apart = a.2 <= b.0 || b.2 <= a.0 || a.3 <= b.1 || b.3 <= a.1;
            assert!(apart, "{name}: {text:?} at {a:?} over {other:?} at {b:?}");
        }
    }
}

fn charts(run: &RunInput) -> Vec<(&'static str, Chart)> {
    let sorted = order::sorted(&run.rows).unwrap();
    let cells = wide::cells(&sorted, &LATENCY);
    super::charts(&super::Study::new(run, &sorted, &cells))
}

#[test]
fn no_text_covers_another_or_leaves_the_picture() {
    let mut many = Vec::new();
    for model in ["a", "meta-llama/Llama-3.3-70B-Instruct-quantized-by-somebody", "c", "d", "e"] {
        for prompt in [64, 100, 128, 512, 2048, 8192, 131_072] {
            many.extend(cell(model, (prompt, 1), 1.0 + f64::from(prompt).sqrt()));
        }
    }
    let long =
        full().rows.into_iter().map(|r| Row { model: format!("{} {}", r.model, "w".repeat(300)), ..r });
    for run in [full(), run(many), run(long.collect()), run(Vec::new())] {
        for (name, chart) in charts(&run) {
            check_texts(name, &scene(&chart).0);
        }
    }
}

#[test]
fn a_run_with_everything_has_every_figure() {
    let figures = figures(&full());
    let names: Vec<&str> = figures.iter().map(|f| f.name.as_str()).collect();
    assert_eq!(names, ["ttft", "decode_rate", "tpot", "pareto", "kv", "memory", "energy", "ape"]);
    for figure in &figures {
        assert!(figure.marks > 0 && figure.hits.len() == figure.marks, "{}", figure.name);
        assert!(
            figure.caption.contains("demo-2026") && figure.caption.contains("n = 20"),
            "{}",
            figure.caption
        );
        assert!(figure.caption.contains("hollow: INVALID"), "{}: {}", figure.name, figure.caption);
        assert!(!figure.title.is_empty());
        let (width, height) = (figure.width as i32, figure.height as i32);
        assert!(figure.hits.iter().all(|h| (0..width).contains(&h.x) && (0..height).contains(&h.y)));
    }
    // Eight cells; theory with and without windows beside them; two scopes; a bar under two limits.
    let marks: Vec<usize> = figures.iter().map(|f| f.marks).collect();
    assert_eq!(marks, [8, 8, 8, 8, 24, 16, 16, 24]);
}

#[test]
fn a_run_of_latency_alone_has_no_other_figure() {
    let alone = run(vec![row("a", (128, 1), Metric::Ttft, "p50", 35.0, 1.0)]);
    let names: Vec<String> = figures(&alone).into_iter().map(|f| f.name).collect();
    assert_eq!(names, ["ttft", "decode_rate"]);
    let none = figures(&run(Vec::new()));
    assert_eq!(none.len(), 2);
    for figure in &none {
        assert!(figure.svg.contains("no valid data") && figure.marks == 0 && figure.hits.is_empty());
        assert!(figure.pdf.starts_with(b"%PDF"));
    }
}

#[test]
fn a_tip_says_what_a_table_would() {
    let drawn = hits(&full());
    let of = |name: &str| &drawn.iter().find(|f| f.0 == name).unwrap().1;
    let tip = |name: &str, index: usize| of(name)[index].tip.clone();
    assert_eq!(
        tip("ttft", 0),
        "dense\n128 prompt, 64 output tokens\nbatch 1\nTTFT, median: 4.3 ms\n\
         95 % interval: 1.3 to 7.3 ms\nn = 20\nVALID"
    );
    assert!(tip("ttft", 3).ends_with("\nINVALID: output length 60.0 instead of 64"), "{}", tip("ttft", 3));
    assert!(
        tip("kv", 0)
            .contains("\nmeasured, median: 15.00 MiB\ntheory: 15.00 MiB\ntheory without windows: 30.00 MiB")
    );
    let ape = tip("ape", 0);
    assert!(
        ape.contains("roofline limit: 1200 tok/s/B\nlimit if all experts are read: 600.0 tok/s/B"),
        "{ape}"
    );
}

#[test]
fn a_hit_knows_its_cell() {
    let mut with_cells = full();
    let cell = |batch| Cell {
        id: format!("gpt-oss_p128_n64_b{batch}"),
        model: "gpt-oss".into(),
        prompt_tokens: 128,
        output_tokens: 64,
        batch,
        load: Load::Batch,
        repeats: 20,
        requests_per_repeat: batch,
    };
    let detail = |batch| CellDetail {
        cell: cell(batch),
        raw: Vec::new(),
        distributions: Vec::new(),
        timelines: Vec::new(),
        power: Vec::new(),
    };
    with_cells.cells = vec![detail(4), detail(1)];
    for (name, hits) in hits(&with_cells) {
        for hit in &hits {
            let own = hit.tip.starts_with("gpt-oss\n128 prompt");
            let batch = if hit.tip.contains("batch 4") { 4 } else { 1 };
            let expected = own.then(|| format!("gpt-oss_p128_n64_b{batch}"));
            assert_eq!(hit.cell, expected, "{name}: {}", hit.tip);
        }
    }
}

#[test]
fn a_dominated_level_is_pale_and_off_the_line() {
    let level = |batch, tpot: f64, rate: f64| {
        vec![
            row("a", (128, batch), Metric::Tpot, "p50", tpot, 0.0),
            row("a", (128, batch), Metric::SystemTokenRate, "value", rate, 0.0),
        ]
    };
    let rows =
        [level(1, 10.0, 100.0), level(2, 12.0, 160.0), level(4, 15.0, 150.0), level(8, 20.0, 300.0)].concat();
    let run = run(rows);
    let (_, chart) = charts(&run).into_iter().find(|c| c.0 == "pareto").unwrap();
    let points = &chart.series[0].points;
    assert_eq!(points.iter().map(|p| p.faint).collect::<Vec<_>>(), [false, false, true, false]);
    assert_eq!(points.iter().map(|p| p.label.as_str()).collect::<Vec<_>>(), ["1", "2", "4", "8"]);
    let (scene, hits) = scene(&chart);
    let at = |i: usize| (hits[i].x, hits[i].y);
    let [a, b, c] = [at(0), at(1), at(3)];
    assert_eq!(*polylines(&scene.shapes).next().unwrap(), [a, (b.0, a.1), b, (c.0, b.1), c]);
    assert!(chart.caption.iter().any(|c| c.starts_with("pale")), "{:?}", chart.caption);
    assert!(hits[2].tip.contains("dominated"));
    let one = self::run(level(1, 10.0, 100.0));
    let sorted = order::sorted(&one.rows).unwrap();
    let cells = wide::cells(&sorted, &LATENCY);
    assert!(
        pareto::chart(&super::Study::new(&one, &sorted, &cells)).series.is_empty(),
        "one level is no choice"
    );
}

#[test]
fn hostile_names_stay_text() {
    let names = [
        "<script>alert(1)</script>\u{0}\u{1b}]]>&\"'",
        "$\\input{/etc/passwd}$ %_#{}~^",
        "\u{202e}\u{5e9}\u{5dc}\u{5d5}\u{5dd} \u{645}\u{631}\u{62d}\u{628}\u{627}",
        &"very long ".repeat(80),
        "",
    ];
    let rows =
        names.iter().flat_map(|name| [cell(name, (128, 1), 10.0), cell(name, (128, 2), 10.0)]).flatten();
    for figure in figures(&run(rows.collect())) {
        assert!(!figure.svg.contains("<script"), "{}", figure.svg);
        let tree = Tree::from_str(&figure.svg, &Options::default()).unwrap();
        assert!((tree.size().width() - 3.3 * 96.0).abs() < 0.01);
        assert!(figure.pdf.starts_with(b"%PDF"));
    }
}

#[test]
fn the_same_rows_in_any_order_give_the_same_bytes() {
    let mut turned = full();
    turned.rows.reverse();
    turned.rows.rotate_left(37);
    for (a, b) in figures(&full()).iter().zip(&figures(&turned)) {
        assert!(a.svg == b.svg && a.png == b.png && a.pdf == b.pdf && a.hits == b.hits, "{}", a.name);
    }
}

#[test]
fn a_pdf_is_one_page_of_the_width_of_a_column_with_its_font() {
    paint::register_font().unwrap();
    let chart = Chart { caption: vec!["a part".into()], ..fixed(vec![series(MARKED, &[(1.0, 1.0)])]) };
    let figure = finished("demo", &chart).unwrap();
    let text = String::from_utf8_lossy(&figure.pdf);
    assert!(text.starts_with("%PDF-") && text.contains("/Count 1"), "{text}");
    let height = f64::from(figure.height) / f64::from(paint::DPI) * 72.0;
    let from = text.find("/MediaBox [").unwrap() + 11;
    let sizes: Vec<f64> =
        text[from..].split(']').next().unwrap().split(' ').map(|n| n.parse().unwrap()).collect();
    assert!((sizes[2] - 237.6).abs() < 0.01 && (sizes[3] - height).abs() < 0.06, "{sizes:?} {height}");
    assert!(text.contains("DejaVuSans") && text.contains("/FontFile2") && !text.contains("CreationDate"));
}
