//! Figures of a run, each from a page that fills a chart, in one look, as SVG, PNG and PDF.
//!
//! `cells` gathers the run's cells; a page (`grid`, `memory`, ...) makes of them a `chart::Chart`: axes with
//! their spread, shaded ranges of x, horizontal rules, and series of points drawn as straight or stepped
//! lines, bars or limits, each point with interval, verdict, label, tip and cell. `layout` (with `axis`,
//! `frame`, `draw`, `style`) gives everything a place, `paint` and `pdf` the formats. A new figure is a page
//! and a line in [`all`]. Nothing here knows a file; the same cells give the same bytes.

mod axis;
mod bars;
mod cells;
mod chart;
mod draw;
mod ecdf;
mod frame;
mod gaps;
mod grid;
mod layout;
mod memory;
mod paint;
mod pareto;
mod pdf;
mod picked;
mod power;
mod style;
#[cfg(test)]
mod tests;

#[cfg(test)]
mod detail_tests;

use crate::wide::WideRow;
use crate::{Error, RunInput, order};
use bench_core::metric::Metric;
use bench_core::sample::Stat;
use cells::Study;
use chart::Chart;
use gaps::Which;

/// A finished figure in every format; the formats show the same.
pub(crate) struct Figure {
    /// Ends the file name and names it in the page: `ttft`.
    pub name: String,
    /// One line that says what is shown, for headings and for readers who cannot see it.
    pub title: String,
    /// What a reader must know: run, machine, n, what bars mean.
    pub caption: String,
    /// Of the SVG's own coordinates, in which `hits` stand.
    pub width: u32,
    pub height: u32,
    pub svg: String,
    pub png: Vec<u8>,
    pub pdf: Vec<u8>,
    /// Where a reader's pointer finds a value.
    pub hits: Vec<Hit>,
    /// Figures drawn: points, steps, bars, limits. A figure without any says so in its middle.
    pub marks: usize,
}

/// A place in a figure that stands for a value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Hit {
    pub x: i32,
    pub y: i32,
    /// The value with what it is of, one fact a line.
    pub tip: String,
    /// The cell that the value comes from: `bench_core::plan::Cell::id`; `None` where it comes from several.
    pub cell: Option<String>,
}

/// The figures of a run that it has data for, in the order in which they are shown; `cells` are the run's
/// rows in the view of latency. The first two are there for every run, and say so where they have nothing to
/// show.
pub(crate) fn all(run: &RunInput, cells: &[WideRow]) -> Result<Vec<Figure>, Error> {
    paint::register_font().map_err(|message| Error::Figure { metric: "fonts", message })?;
    let sorted = order::sorted(&run.rows)?;
    charts(&Study::new(run, &sorted, cells)).iter().map(|(name, chart)| finished(name, chart)).collect()
}

/// By name, which ends the file name; the first two always, the others if there is anything to show.
fn charts(study: &Study) -> Vec<(&'static str, Chart)> {
    let median = |metric| Some(grid::chart(study, metric, Stat::Quantile(0.5)));
    let charts = [
        ("ttft", median(Metric::Ttft)),
        ("decode_rate", median(Metric::DecodeRate)),
        ("tpot", if_any(grid::chart(study, Metric::Tpot, Stat::Mean))),
        ("ecdf_ttft", ecdf::chart(study, Metric::Ttft)),
        ("ecdf_itl", ecdf::chart(study, Metric::Itl)),
        ("gaps_first", gaps::chart(study, Which::First)),
        ("gaps", gaps::chart(study, Which::LongestGap)),
        ("pareto", if_any(pareto::chart(study))),
        ("kv", if_any(memory::kv(study))),
        ("memory", if_any(memory::peak(study))),
        ("power", power::chart(study)),
        ("energy", if_any(bars::energy(study))),
        ("ape", if_any(bars::ape(study))),
    ];
    charts.into_iter().filter_map(|(name, chart)| Some((name, chart?))).collect()
}

fn if_any(chart: Chart) -> Option<Chart> {
    let any = chart.points().next().is_some();
    any.then_some(chart)
}

/// The chart in every format.
fn finished(name: &'static str, chart: &Chart) -> Result<Figure, Error> {
    let failed = |message: String| Error::Figure { metric: name, message };
    let (scene, hits) = layout::scene(chart).map_err(failed)?;
    let svg = paint::svg(&scene).map_err(failed)?;
    Ok(Figure {
        name: name.to_owned(),
        title: chart.title.clone(),
        caption: chart.caption.join(" \u{b7} "),
        width: scene.width,
        height: scene.height,
        png: paint::png(&scene).map_err(failed)?,
        pdf: pdf::pdf(&svg).map_err(failed)?,
        svg,
        hits,
        marks: chart.points().count(),
    })
}
