//! Which cells are shown in figures that have room for one of each model, and how they are called.
//!
//! The largest context that is VALID, since what a model does with much to attend to is the question of most studies.

use super::cells::{Cell, Study};
use super::chart::{Ink, Style};
use crate::table::one_line;
use bench_core::detail::CellDetail;

/// One cell of a model, with what pictures need beyond its rows.
pub(super) struct Picked<'s, 'a> {
    pub cell: &'s Cell<'a>,
    pub detail: &'s CellDetail,
}

/// Of each model the cell with the largest context among those that have what is to be shown: a VALID one before
/// all others; with several of them the one with the longest answers and the most load.
pub(super) fn picked<'s, 'a>(study: &'s Study<'a>, has: impl Fn(&CellDetail) -> bool) -> Vec<Picked<'s, 'a>> {
    let all: Vec<_> =
        study.cells.iter().filter_map(|cell| Some((cell, study.run.cell_of(cell.row)?))).collect();
    let of_model = |model: usize| {
        let own = all.iter().filter(|(cell, detail)| cell.model == model && has(detail));
        let largest = own.max_by(|(a, _), (b, _)| {
            let order = |c: &Cell| (c.row.is_valid(), c.row.prompt_tokens, c.row.output_tokens);
            order(a).cmp(&order(b)).then(a.x.total_cmp(&b.x)).then(a.variant.cmp(&b.variant))
        });
        largest.map(|&(cell, detail)| Picked { cell, detail })
    };
    (0..study.models.len()).filter_map(of_model).collect()
}

/// Sizes and load: what tells the cell from others of its model.
fn place(cell: &Cell) -> String {
    let row = cell.row;
    format!("{} prompt and {} output tokens, {}", row.prompt_tokens, row.output_tokens, row.load)
}

/// The place that all share, for the caption; `None` where they differ.
fn shared(picked: &[Picked]) -> Option<String> {
    let first = place(picked.first()?.cell);
    picked.iter().all(|p| place(p.cell) == first).then_some(first)
}

/// The model, its place where that is not the same for all, and whether it may be believed.
pub(super) fn name(picked: &Picked, all: &[Picked]) -> String {
    let mut name = one_line(picked.cell.row.model);
    if shared(all).is_none() {
        name = format!("{name}, {}", place(picked.cell));
    }
    if picked.cell.row.is_valid() { name } else { format!("{name} (INVALID)") }
}

/// Run, machine, and which cells are shown; `why` these, where there are more.
pub(super) fn caption(study: &Study, picked: &[Picked], why: &str) -> Vec<String> {
    let mut parts = vec![format!("Run {}", one_line(&study.run.run_id)), one_line(&study.run.machine)];
    parts.extend(shared(picked));
    if study.cells.len() > picked.len() {
        parts.push(format!("{} of {} cells: {why}", picked.len(), study.cells.len()));
    }
    parts
}

/// The model's colour, and dashes that tell lines apart without it.
pub(super) fn style(picked: &Picked, dash: usize) -> Style {
    Style { ink: Ink::Color(picked.cell.model), dash, marker: picked.cell.model }
}

/// Tips that one line can have before a pointer finds no line between them.
const TIPS: usize = 100;

/// Which points of a line of `len` get a tip: so many, evenly, and the last one.
pub(super) fn has_tip(index: usize, len: usize) -> bool {
    index.is_multiple_of(len.div_ceil(TIPS)) || index + 1 == len
}
