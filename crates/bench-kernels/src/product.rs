//! `out = x · wᵀ + bias` for one matrix, or for the matrices of several experts at once.
//!
//! The one entry to all products: it checks sizes, picks the kernel of format and precision, and cuts the work
//! into tasks whose results do not depend on who runs them.

mod exact;
mod int;
mod ints;

use half::bf16;

use crate::error::{Error, Result, check_len};
use crate::exec::Exec;
use crate::matmul::{self, Weights};
use crate::packed::PackedMatrix;
use crate::rows::IntRows;

/// The left side of a product, `[rows, cols]`.
#[derive(Debug, Clone, Copy)]
pub enum Input<'a> {
    /// For every format; sums in f32.
    F32(&'a [f32]),
    /// For bf16 matrices: products of bf16, sums in f32.
    Bf16(&'a [bf16]),
    /// For packed matrices: sums of a block are exact.
    Int(&'a IntRows),
}

/// Which input rows a group takes, in the order of its output rows.
#[derive(Debug, Clone, Copy)]
pub enum RowMap<'a> {
    /// The first n.
    All(usize),
    /// These, which may repeat.
    These(&'a [u32]),
}

/// One matrix of a grouped product, the rows that it gets, and where its results go.
#[derive(Debug, Clone, Copy)]
pub struct Group<'a> {
    pub w: Weights<'a>,
    pub bias: Option<&'a [f32]>,
    pub rows: RowMap<'a>,
    /// Output row of its first input row.
    pub first: usize,
}

impl RowMap<'_> {
    /// How many rows.
    pub fn len(&self) -> usize {
        match self {
            Self::All(n) => *n,
            Self::These(rows) => rows.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The input row of the group's row `i`.
    #[inline]
    pub(crate) fn get(&self, i: usize) -> usize {
        match self {
            Self::All(_) => i,
            Self::These(rows) => rows[i] as usize,
        }
    }
}

/// A [`Group`] whose weights are packed, after the entry has checked its sizes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PackedGroup<'a> {
    pub(crate) w: PackedMatrix<'a>,
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) rows: RowMap<'a>,
    /// Output row of its first input row; output rows of groups do not overlap.
    pub(crate) first: usize,
}

/// `out[i, j] = Σ_k x[i, k] · w[j, k] + bias[j]` with x `[m, cols]`, w `[rows, cols]`, out `[m, rows]`.
///
/// # Errors
/// Sizes that do not fit, an input that the weights' format has no kernel for.
pub fn product(
    exec: &Exec,
    x: Input<'_>,
    m: usize,
    w: Weights<'_>,
    bias: Option<&[f32]>,
    out: &mut [f32],
) -> Result<()> {
    check_len("product output", out.len(), m * w.rows())?;
    grouped_product(exec, x, 1, |_| Group { w, bias, rows: RowMap::All(m), first: 0 }, out)
}

/// Several products of one shape: group g writes output rows `first..` of out `[slots, w.rows()]`.
///
/// # Errors
/// As [`product`]; matrices of different shapes or formats, output rows of two groups that overlap.
pub fn grouped_product<'a>(
    exec: &Exec,
    x: Input<'_>,
    groups: usize,
    group: impl Fn(usize) -> Group<'a> + Sync,
    out: &mut [f32],
) -> Result<()> {
    if groups == 0 {
        return Ok(());
    }
    check(x, groups, &group, out.len())?;
    match (x, group(0).w) {
        (Input::F32(x), Weights::Packed(w)) => {
            exact::packed_f32(exec, x, groups, &packed_groups(w, &group), out);
            Ok(())
        }
        (Input::Int(x), Weights::Packed(w)) => {
            int::packed_int(exec, x, groups, &packed_groups(w, &group), out);
            Ok(())
        }
        (Input::F32(x), _) => matmul::grouped(exec, x, groups, &group, out),
        (Input::Bf16(x), Weights::Bf16(w)) => {
            matmul::grouped_bf16(exec, x, w, groups, &group, out);
            Ok(())
        }
        _ => {
            let expected =
                "f32 rows for any weights, bf16 for bf16 weights, whole numbers for packed weights";
            Err(Error::Invalid { what: "input of a product", value: 0, expected })
        }
    }
}

/// The groups with their packed matrices; `first` stands in for none, which [`check`] has excluded.
fn packed_groups<'a>(
    first: PackedMatrix<'a>,
    group: &(impl Fn(usize) -> Group<'a> + Sync),
) -> impl Fn(usize) -> PackedGroup<'a> + Sync {
    move |g| {
        let Group { w, bias, rows, first: slot } = group(g);
        let w = if let Weights::Packed(w) = w { w } else { first };
        PackedGroup { w, bias, rows, first: slot }
    }
}

/// Sizes, indices, formats and overlap of all groups.
fn check<'a>(
    x: Input<'_>,
    groups: usize,
    group: &(impl Fn(usize) -> Group<'a> + Sync),
    out: usize,
) -> Result<()> {
    let model = group(0).w;
    let (width, cols) = (model.rows().max(1), model.cols().max(1));
    let (slots, inputs) = (out / width, input_rows(x, cols)?);
    check_len("product output", out, slots * width)?;
    // Groups mostly come in the order of their output; only others are compared with each other.
    let (mut end, mut in_order) = (0, true);
    for g in 0..groups {
        let Group { w, bias, rows, first } = group(g);
        check_len("rows of a group's matrix", w.rows(), model.rows())?;
        check_len("columns of a group's matrix", w.cols(), model.cols())?;
        if !same_format(&w, &model) {
            let expected = "the format of the first group's";
            return Err(Error::Invalid { what: "matrix of group", value: g, expected });
        }
        if let Some(bias) = bias {
            check_len("product bias", bias.len(), w.rows())?;
        }
        let largest = match rows {
            RowMap::All(n) => n,
            RowMap::These(rows) => rows.iter().max().map_or(0, |&row| row as usize + 1),
        };
        if largest > inputs {
            let expected = "at most the rows of the input";
            return Err(Error::Invalid { what: "input rows that a group takes", value: largest, expected });
        }
        if first.checked_add(rows.len()).is_none_or(|end| end > slots) {
            let expected = "room for its rows in the output";
            return Err(Error::Invalid { what: "first output row of a group", value: first, expected });
        }
        in_order &= first >= end || rows.is_empty();
        end = end.max(first + rows.len());
    }
    if in_order || !overlaps(groups, group) {
        return Ok(());
    }
    Err(Error::Invalid { what: "groups", value: groups, expected: "output rows of their own for each" })
}

/// Rows of the input.
fn input_rows(x: Input<'_>, cols: usize) -> Result<usize> {
    let elements = match x {
        Input::F32(x) => x.len(),
        Input::Bf16(x) => x.len(),
        Input::Int(x) => {
            check_len("columns of the product input", x.cols(), cols)?;
            return Ok(x.rows());
        }
    };
    check_len("product input", elements, elements / cols * cols)?;
    Ok(elements / cols)
}

fn same_format(a: &Weights<'_>, b: &Weights<'_>) -> bool {
    match (a, b) {
        (Weights::Packed(a), Weights::Packed(b)) => a.format() == b.format(),
        _ => std::mem::discriminant(a) == std::mem::discriminant(b),
    }
}

fn overlaps<'a>(groups: usize, group: &impl Fn(usize) -> Group<'a>) -> bool {
    let slots = |g| {
        let Group { rows, first, .. } = group(g);
        first..first + rows.len()
    };
    (0..groups).any(|a| {
        let a_slots = slots(a);
        (0..a).map(slots).any(|b| a_slots.start.max(b.start) < a_slots.end.min(b.end))
    })
}
