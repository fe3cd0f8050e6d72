//! Activations between two operations: f32 rows in memory that is kept, and the forms in which products take them.
//!
//! A form (integers, bf16) is made when a product first asks for it, and forgotten when the values change.

use bench_kernels::Exec;
use bench_kernels::matmul::to_bf16;
use bench_kernels::product::Input;
use bench_kernels::rows::{IntPrecision, IntRows};
use half::bf16;

use crate::error::Result;
use crate::ops::kernel_error;

/// How a product takes its activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    F32,
    Bf16,
    Int(IntPrecision),
}

/// Activations `[rows, cols]`.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    /// At least rows · cols; what is behind them is left over from before.
    values: Vec<f32>,
    count: usize,
    cols: usize,
    ints: IntRows,
    int_precision: Option<IntPrecision>,
    halves: Vec<bf16>,
    has_halves: bool,
}

impl Rows {
    /// Takes another shape; returns the values, which the caller must write.
    pub(crate) fn reshape(&mut self, rows: usize, cols: usize) -> &mut [f32] {
        (self.count, self.cols) = (rows, cols);
        if self.values.len() < rows * cols {
            self.values.resize(rows * cols, 0.0);
        }
        self.values_mut()
    }

    /// Takes the shape of `other`.
    pub(crate) fn reshape_as(&mut self, other: &Self) -> &mut [f32] {
        self.reshape(other.count, other.cols)
    }

    pub(crate) fn rows(&self) -> usize {
        self.count
    }

    pub(crate) fn cols(&self) -> usize {
        self.cols
    }

    pub(crate) fn values(&self) -> &[f32] {
        &self.values[..self.count * self.cols]
    }

    /// The values, to be changed.
    pub(crate) fn values_mut(&mut self) -> &mut [f32] {
        (self.int_precision, self.has_halves) = (None, false);
        &mut self.values[..self.count * self.cols]
    }

    /// Row `row`.
    pub(crate) fn row(&self, row: usize) -> &[f32] {
        &self.values()[row * self.cols..(row + 1) * self.cols]
    }

    /// The rows as a product's left side.
    pub(crate) fn input(&mut self, exec: &Exec, form: Form) -> Result<Input<'_>> {
        let values = &self.values[..self.count * self.cols];
        match form {
            Form::F32 => Ok(Input::F32(values)),
            Form::Bf16 => {
                if !self.has_halves {
                    if self.halves.len() < values.len() {
                        self.halves.resize(values.len(), bf16::ZERO);
                    }
                    to_bf16(exec, values, &mut self.halves[..values.len()])
                        .map_err(kernel_error("activations"))?;
                    self.has_halves = true;
                }
                Ok(Input::Bf16(&self.halves[..self.count * self.cols]))
            }
            Form::Int(precision) => {
                if self.int_precision != Some(precision) {
                    self.ints
                        .quantize(exec, values, self.count, self.cols, precision)
                        .map_err(kernel_error("activations"))?;
                    self.int_precision = Some(precision);
                }
                Ok(Input::Int(&self.ints))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_is_made_anew_when_the_values_change() {
        let exec = Exec::shared();
        let mut rows = Rows::default();
        rows.reshape(1, 32).fill(1.0);
        let halves = |rows: &mut Rows| match rows.input(&exec, Form::Bf16).unwrap() {
            Input::Bf16(values) => values.to_vec(),
            _ => unreachable!(),
        };
        assert_eq!(halves(&mut rows), [bf16::ONE; 32]);
        rows.values_mut()[3] = -2.0;
        assert_eq!(halves(&mut rows)[3].to_f32(), -2.0);
        rows.reshape(2, 16).fill(4.0);
        assert_eq!(halves(&mut rows), [bf16::from_f32(4.0); 32]);
    }
}
