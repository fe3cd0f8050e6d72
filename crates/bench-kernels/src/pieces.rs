//! How products and row-wise operations are cut into tasks: by shape alone; threads only decide who takes which.

use std::cell::Cell;
use std::ops::Range;

use crate::exec::Exec;
use crate::shared::SharedMut;

/// Elements of a row-wise operation that are worth a task of their own.
const ROW_ELEMENTS: usize = 16_384;

/// Which part of a group a task works on.
#[derive(Debug, Clone)]
pub(crate) struct Piece {
    pub(crate) group: usize,
    /// Output row of the group's first row.
    pub(crate) first: usize,
    /// Rows of the group.
    pub(crate) inputs: Range<usize>,
    /// Weight rows, which are output columns.
    pub(crate) columns: Range<usize>,
}

/// What a group takes: its first output row and the number of its rows, and the first of its tasks.
#[derive(Debug, Clone, Copy)]
struct Span {
    first: usize,
    rows: usize,
    task: usize,
}

thread_local! {
    static SPANS: Cell<Vec<Span>> = const { Cell::new(Vec::new()) };
}

/// Weight rows and input rows of one task.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cut {
    pub(crate) columns: usize,
    pub(crate) inputs: usize,
}

/// Calls `task` for all pieces of `groups` products with `width` weight rows. `span` gives a group's first output
/// row and its number of rows, `cut` the size of pieces from the largest of these numbers.
pub(crate) fn run(
    exec: &Exec,
    groups: usize,
    width: usize,
    span: impl Fn(usize) -> (usize, usize),
    cut: impl FnOnce(usize) -> Cut,
    task: impl Fn(&Piece) + Sync,
) {
    let mut spans = SPANS.take();
    spans.clear();
    spans.extend((0..groups).map(|g| {
        let (first, rows) = span(g);
        Span { first, rows, task: 0 }
    }));
    let cut = cut(spans.iter().map(|s| s.rows).max().unwrap_or(0));
    let tiles = width.div_ceil(cut.columns);
    let mut tasks = 0;
    for span in &mut spans {
        span.task = tasks;
        tasks += tiles * span.rows.div_ceil(cut.inputs);
    }
    exec.run_streams(tasks, |i| {
        // The last group that starts at or before task i; those without rows have no task.
        let group = spans.partition_point(|s| s.task <= i) - 1;
        let Span { first, rows, task: start } = spans[group];
        let chunks = rows.div_ceil(cut.inputs);
        let (tile, chunk) = ((i - start) / chunks, (i - start) % chunks);
        let part = |at: usize, step: usize, end: usize| at * step..((at + 1) * step).min(end);
        let (inputs, columns) = (part(chunk, cut.inputs, rows), part(tile, cut.columns, width));
        task(&Piece { group, first, inputs, columns });
    });
    SPANS.set(spans);
}

/// Calls `task` on ranges that cover `0..rows`; few elements stay on the caller.
pub(crate) fn for_rows(exec: &Exec, rows: usize, width: usize, task: impl Fn(Range<usize>) + Sync) {
    let step = (ROW_ELEMENTS / width.max(1)).max(1);
    exec.run(rows.div_ceil(step), |i| task(i * step..((i + 1) * step).min(rows)));
}

/// Calls `task` on ranges of `x` and what they hold; few elements stay on the caller.
pub(crate) fn for_chunks<T: Send>(exec: &Exec, x: &mut [T], task: impl Fn(Range<usize>, &mut [T]) + Sync) {
    let n = x.len();
    let x = SharedMut::new(x);
    for_rows(exec, n.div_ceil(64), 64, |lines| {
        let range = lines.start * 64..(lines.end * 64).min(n);
        // SAFETY: tasks have disjoint ranges.
        task(range.clone(), unsafe { x.slice(range) });
    });
}

/// The `i`-th of the fewest parts of at most `most` that `0..n` falls into, all about as long.
#[inline(always)]
pub(crate) fn even_part(n: usize, most: usize, i: usize) -> Range<usize> {
    let parts = n.div_ceil(most).max(1);
    i * n / parts..(i + 1) * n / parts
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::Variant;

    #[test]
    fn pieces_cover_each_group_once() {
        let rows = [3, 0, 7, 1, 0];
        let seen = Mutex::new(vec![0; 11 * 10]);
        let span = |g: usize| (rows[..g].iter().sum(), rows[g]);
        let exec = Exec::serial(Variant::Scalar);
        let cut = |most| {
            assert_eq!(most, 7);
            Cut { columns: 4, inputs: 3 }
        };
        run(&exec, 5, 10, span, cut, |piece| {
            assert_eq!(piece.first, span(piece.group).0);
            let mut seen = seen.lock().unwrap();
            for i in piece.inputs.clone() {
                piece.columns.clone().for_each(|j| seen[(piece.first + i) * 10 + j] += 1);
            }
        });
        assert!(seen.into_inner().unwrap().iter().all(|n| *n == 1));
        run(&exec, 0, 10, span, |_| Cut { columns: 4, inputs: 3 }, |_| panic!("no group, no task"));
    }

    #[test]
    fn parts_are_even() {
        let parts: Vec<_> = (0..3).map(|i| even_part(14, 6, i)).collect();
        assert_eq!(parts, [0..4, 4..9, 9..14]);
    }
}
