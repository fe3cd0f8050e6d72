//! `out = x · wᵀ + bias` for weights as a checkpoint stores them, row by row; lanes are columns.
//!
//! Each output element is one sum in one fixed order: that of 16 (or 8) lanes over the columns, added up at the
//! end. It depends neither on the threads nor on how many other rows a product has.

mod bf16;
mod rows;

use crate::error::{Error, Result};
use crate::exec::Exec;
use crate::packed::PackedMatrix;
use crate::product::Group;
use crate::weights::Rows;
pub use crate::weights::{Bf16Matrix, F32Matrix, Mxfp4Matrix};

pub(crate) use bf16::grouped_bf16;
pub use bf16::to_bf16;

/// A weight matrix in one of the stored formats.
#[derive(Debug, Clone, Copy)]
pub enum Weights<'a> {
    F32(F32Matrix<'a>),
    Bf16(Bf16Matrix<'a>),
    Mxfp4(Mxfp4Matrix<'a>),
    /// Panels of 16 rows, for `product`.
    Packed(PackedMatrix<'a>),
}

impl Weights<'_> {
    pub fn rows(&self) -> usize {
        match self {
            Self::F32(w) => w.rows(),
            Self::Bf16(w) => w.rows(),
            Self::Mxfp4(w) => w.rows(),
            Self::Packed(w) => w.rows(),
        }
    }

    pub fn cols(&self) -> usize {
        match self {
            Self::F32(w) => w.cols(),
            Self::Bf16(w) => w.cols(),
            Self::Mxfp4(w) => w.cols(),
            Self::Packed(w) => w.cols(),
        }
    }
}

/// Products of one shape and format with f32 inputs x `[_, cols]`: group g writes rows `first..` of out `[_, rows]`.
///
/// The entry has checked sizes, indices and formats, and that the output rows of groups do not overlap.
pub(crate) fn grouped<'a>(
    exec: &Exec,
    x: &[f32],
    groups: usize,
    group: &(impl Fn(usize) -> Group<'a> + Sync),
    out: &mut [f32],
) -> Result<()> {
    if groups == 0 {
        return Ok(());
    }
    match group(0).w {
        Weights::F32(w) => rows::grouped(exec, x, w, groups, group, out),
        Weights::Bf16(w) => rows::grouped(exec, x, w, groups, group, out),
        Weights::Mxfp4(w) => rows::grouped(exec, x, w, groups, group, out),
        Weights::Packed(_) => {
            let expected = "weights as the checkpoint stores them";
            return Err(Error::Invalid { what: "matmul weights", value: 0, expected });
        }
    }
    Ok(())
}
