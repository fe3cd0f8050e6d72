//! Figures: a metric over prompt length or load, one line per model, output length and load, with intervals.
//!
//! `series` says what is drawn, `layout` where, `axis` how numbers become places, `paint` puts it into SVG or
//! PNG. Nothing here knows a file; the same cells give the same bytes.

mod axis;
mod layout;
mod paint;
mod series;

use crate::wide::WideRow;
use crate::{Error, RunInput};
use bench_core::metric::Metric;
use bench_core::sample::Stat;

/// A figure in both formats.
pub(crate) struct Drawn {
    pub svg: String,
    pub png: Vec<u8>,
}

/// Draws the median of `metric` over prompt tokens, or over the levels of the load.
pub(crate) fn draw(metric: Metric, run: &RunInput, cells: &[WideRow]) -> Result<Drawn, Error> {
    let failed = |message: String| Error::Figure { metric: metric.def().key, message };
    paint::register_font().map_err(failed)?;
    let chart = series::chart(metric, Stat::Quantile(0.5), run, cells);
    let scene = layout::scene(&chart).map_err(failed)?;
    Ok(Drawn { svg: paint::svg(&scene).map_err(failed)?, png: paint::png(&scene).map_err(failed)? })
}
