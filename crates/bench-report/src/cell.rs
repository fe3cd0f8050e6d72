//! From a line of a wide table back to its cell: by what the row says of it, since rows carry no id.

use crate::RunInput;
use crate::wide::WideRow;
use bench_core::detail::CellDetail;
use bench_core::plan::Cell;

impl RunInput {
    /// What pictures need of the row's cell; `None` where its raw files are not there.
    pub(crate) fn cell_of(&self, row: &WideRow) -> Option<&CellDetail> {
        self.cells.iter().find(|detail| is_of(&detail.cell, row))
    }
}

/// The cell's id: `gpt-oss-nano_p128_n32_b1`. `None` where neither raw files nor plan are there.
pub(crate) fn cell_id<'a>(run: &'a RunInput, row: &WideRow) -> Option<&'a str> {
    let planned = || run.plan.as_ref()?.cells.iter().find(|cell| is_of(cell, row));
    run.cell_of(row).map(|detail| &detail.cell).or_else(planned).map(|cell| cell.id.as_str())
}

fn is_of(cell: &Cell, row: &WideRow) -> bool {
    let sizes = (cell.prompt_tokens, cell.output_tokens, cell.batch);
    cell.model == row.model
        && sizes == (row.prompt_tokens, row.output_tokens, row.batch)
        && cell.load.concurrency() == row.load.concurrency
        && cell.load.rate() == row.load.rate
        && cell.load.key() == row.load.kind
}
