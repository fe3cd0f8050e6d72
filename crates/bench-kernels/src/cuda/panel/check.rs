//! The panel kernels against f64 arithmetic on random shapes.

use half::{bf16, f16};

use super::PanelArgs;
use crate::cuda::check::Values;
use crate::cuda::tiles::Format;
use crate::cuda::{BF16, CLAMPED, CheckRow, Gpu, GpuError, Memory, ROUND_FIRST};
use crate::mxfp4::FP4_VALUES;

const EPS: f32 = 1e-5;
const ALPHA: f32 = 1.702;
const LIMIT: f32 = 0.7;

/// A matrix as the device has it, and its values.
struct Matrix<'g> {
    weights: Memory<'g>,
    scales: Option<Memory<'g>>,
    values: Vec<f64>,
    cols: usize,
}

impl<'g> Matrix<'g> {
    fn new(
        gpu: &'g dyn Gpu,
        v: &mut Values,
        format: Format,
        rows: usize,
        cols: usize,
    ) -> Result<Self, GpuError> {
        let (n, blocks) = (rows * cols, rows * cols / 32);
        Ok(match format {
            Format::Bf16 => {
                let w = v.bf16s(n, 1.0);
                let values = w.iter().map(|w| w.to_f64()).collect();
                Self { weights: Memory::of(gpu, &w)?, scales: None, values, cols }
            }
            Format::Q8 => {
                let codes = v.bytes(n);
                let scales: Vec<f16> =
                    (0..blocks).map(|_| f16::from_f32(0.002 + 0.006 * v.real().abs())).collect();
                let value = |i: usize| f64::from(codes[i].cast_signed()) * scales[i / 32].to_f64();
                let values = (0..n).map(value).collect();
                let scales = Some(Memory::of(gpu, &scales)?);
                Self { weights: Memory::of(gpu, &codes)?, scales, values, cols }
            }
            Format::Mxfp4 => {
                let codes = v.bytes(n / 2);
                // Now and then a scale so small that its block vanishes, whatever its codes are.
                let scales: Vec<u8> = (0..blocks)
                    .map(|_| if v.between(0, 30) == 0 { 0 } else { v.between(122, 125) as u8 })
                    .collect();
                let value = |i: usize| {
                    let code = codes[i / 2] >> (4 * (i % 2)) & 15;
                    f64::from(FP4_VALUES[usize::from(code)]) * 2.0_f64.powi(i32::from(scales[i / 32]) - 127)
                };
                let values = (0..n).map(value).collect();
                let scales = Some(Memory::of(gpu, &scales)?);
                Self { weights: Memory::of(gpu, &codes)?, scales, values, cols }
            }
        })
    }

    fn scales(&self) -> u64 {
        self.scales.as_ref().map_or(0, Memory::address)
    }

    /// The product of a row, and the sum of the magnitudes of what it adds up.
    fn dot(&self, row: usize, x: &[f64]) -> (f64, f64) {
        let w = &self.values[row * self.cols..][..self.cols];
        w.iter().zip(x).fold((0.0, 0.0), |(sum, size), (w, x)| (sum + w * x, size + (w * x).abs()))
    }
}

/// What a case asks for.
#[derive(Debug, Clone, Copy)]
struct Case {
    format: Format,
    planes: u32,
    rows: usize,
    cols: usize,
    tokens: usize,
    flags: u32,
    norm: bool,
    bias: bool,
    residual: bool,
}

impl Case {
    fn random(v: &mut Values, formats: &[Format], most_tokens: usize) -> Self {
        let planes = v.one_of(&[1, 3]);
        let format = v.one_of(formats);
        let most = (8 / planes as usize).min(most_tokens);
        let bf16 = planes == 1 && v.between(0, 1) == 0;
        Self {
            format,
            planes,
            // Fewer rows than blocks, tiles of any height, several tiles for a block.
            rows: v.one_of(&[1, 7, 17, 33, 100, 130, 200, 331]),
            cols: 32 * v.one_of(&[1, 2, 3, 5, 8, 15, 16, 17, 33, 40, 90]),
            tokens: v.between(1, most),
            flags: if bf16 { BF16 } else { 0 } | if v.between(0, 1) == 0 { ROUND_FIRST } else { 0 },
            // One part holds a normalized value only if it is rounded.
            norm: (bf16 || planes == 3) && v.between(0, 1) == 0,
            bias: v.between(0, 1) == 0,
            residual: v.between(0, 1) == 0,
        }
    }

    fn settle(&self, value: f64) -> f64 {
        if self.flags & BF16 != 0 { bf16::from_f64(value).to_f64() } else { value }
    }

    /// Activations that one part holds exactly, or any.
    fn activations(&self, v: &mut Values, n: usize) -> Vec<f32> {
        if self.planes == 1 {
            v.bf16s(n, 1.0).into_iter().map(bf16::to_f32).collect()
        } else {
            v.reals(n, 1.0)
        }
    }

    fn args(&self) -> PanelArgs {
        PanelArgs {
            rows: self.rows as u32,
            cols: self.cols as u32,
            tokens: self.tokens as u32,
            eps: EPS,
            alpha: ALPHA,
            limit: LIMIT,
            flags: self.flags,
            ..PanelArgs::default()
        }
    }

    /// Rows of x after the norm, if there is one.
    fn normalized(&self, x: &[f32], weight: &[f32]) -> Vec<f64> {
        let mut out: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
        if self.norm {
            for row in out.chunks_exact_mut(self.cols) {
                let mean = row.iter().map(|x| x * x).sum::<f64>() / self.cols as f64;
                let inverse = 1.0 / (mean + f64::from(EPS)).sqrt();
                for (x, w) in row.iter_mut().zip(weight) {
                    let scaled = *x * inverse;
                    let first = if self.flags & ROUND_FIRST != 0 { self.settle(scaled) } else { scaled };
                    *x = self.settle(first * f64::from(*w));
                }
            }
        }
        out
    }

    /// The difference of two results relative to what rounding may make of `size`, the sum of the magnitudes
    /// that were added up: with f32 results a single wrong product shows.
    fn difference(&self, found: f32, expected: f64, size: f64) -> f64 {
        let unit = if self.flags & BF16 != 0 {
            // Results round once or twice; a normalized activation may round to its other neighbour.
            let flips = if self.norm { size / 512.0 / (self.cols as f64).sqrt() } else { 0.0 };
            (expected.abs() + size * 1e-3) / 64.0 + flips
        } else {
            1e-6 * (size + expected.abs()) + 1e-9
        };
        let difference = (f64::from(found) - expected).abs() / unit;
        if difference.is_nan() { f64::INFINITY } else { difference }
    }

    fn row(&self, kernel: &str, more: &str, difference: f64) -> CheckRow {
        CheckRow { kernel: kernel.to_owned(), case: format!("{self:?}{more}"), difference, allowed: 1.0 }
    }
}

/// The largest difference of `found` from what `expected` says of each place: the value and the size of its
/// sum.
fn largest(case: &Case, found: &[f32], expected: impl Fn(usize) -> (f64, f64)) -> f64 {
    let difference = |(i, found): (usize, &f32)| {
        let (value, size) = expected(i);
        case.difference(*found, value, size)
    };
    found.iter().enumerate().map(difference).fold(0.0, f64::max)
}

/// Runs `cases` random cases of every kernel.
///
/// # Errors
/// What the device refuses.
pub fn check(gpu: &dyn Gpu, seed: u64, cases: usize) -> Result<Vec<CheckRow>, GpuError> {
    let mut v = Values::new(seed);
    let mut rows = Vec::new();
    for _ in 0..cases {
        rows.push(check_plain(gpu, &mut v, None)?);
        rows.push(check_pair(gpu, &mut v)?);
        rows.push(check_experts_pair(gpu, &mut v)?);
        rows.push(check_experts_down(gpu, &mut v, None)?);
    }
    // Activations that do not fit into shared memory at once.
    let wide = |format, planes, cols, tokens| Case {
        format,
        planes,
        rows: 5,
        cols,
        tokens,
        flags: 0,
        norm: true,
        bias: false,
        residual: false,
    };
    rows.push(check_plain(gpu, &mut v, Some(wide(Format::Bf16, 3, 8736, 2)))?);
    rows.push(check_plain(gpu, &mut v, Some(wide(Format::Q8, 3, 9056, 2)))?);
    rows.push(check_plain(gpu, &mut v, Some(wide(Format::Mxfp4, 3, 9248, 2)))?);
    let down = Case { norm: false, ..wide(Format::Mxfp4, 3, 3104, 1) };
    rows.push(check_experts_down(gpu, &mut v, Some((down, 6)))?);
    Ok(rows)
}

fn check_plain(gpu: &dyn Gpu, v: &mut Values, case: Option<Case>) -> Result<CheckRow, GpuError> {
    let all = [Format::Bf16, Format::Q8, Format::Mxfp4];
    let case = case.unwrap_or_else(|| Case::random(v, &all, 8));
    let w = Matrix::new(gpu, v, case.format, case.rows, case.cols)?;
    let x = case.activations(v, case.tokens * case.cols);
    let (norm, bias) = (v.reals(case.cols, 1.5), v.reals(case.rows, 2.0));
    let residual = case.activations(v, case.tokens * case.rows);
    let memory = [&x, &norm, &bias, &residual].map(|values| Memory::of(gpu, values));
    let [x_at, norm_at, bias_at, out] = memory;
    let (x_at, norm_at, bias_at, out) = (x_at?, norm_at?, bias_at?, out?);
    let args = PanelArgs {
        weights: w.weights.address(),
        scales: w.scales(),
        x: x_at.address(),
        norm: if case.norm { norm_at.address() } else { 0 },
        bias: if case.bias { bias_at.address() } else { 0 },
        // In place.
        residual: if case.residual { out.address() } else { 0 },
        out: out.address(),
        ..case.args()
    };
    super::panel(gpu, case.format, case.planes, &args)?;
    let x = case.normalized(&x, &norm);
    let difference = largest(&case, &out.values::<f32>()?, |i| {
        let (token, row) = (i / case.rows, i % case.rows);
        let (sum, size) = w.dot(row, &x[token * case.cols..][..case.cols]);
        let value = case.settle(sum + if case.bias { f64::from(bias[row]) } else { 0.0 });
        (case.settle(value + if case.residual { f64::from(residual[i]) } else { 0.0 }), size + 2.0)
    });
    Ok(case.row("panel", "", difference))
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// The activation, and its size given those of gate and up.
fn activation(case: &Case, gate: (f64, f64), up: (f64, f64)) -> (f64, f64) {
    let settle = |value| case.settle(value);
    let size = (gate.1 + 1.0) * (up.1 + 2.0);
    if case.flags & CLAMPED == 0 {
        return (settle(settle(gate.0 * sigmoid(gate.0)) * up.0), size);
    }
    let limit = f64::from(LIMIT);
    let (gate, up) = (gate.0.min(limit), up.0.clamp(-limit, limit));
    let share = settle(sigmoid(settle(gate * f64::from(ALPHA))));
    (settle(settle(up + 1.0) * settle(gate * share)), size)
}

fn check_pair(gpu: &dyn Gpu, v: &mut Values) -> Result<CheckRow, GpuError> {
    let mut case = Case::random(v, &[Format::Bf16, Format::Q8], 8);
    case.flags |= if v.between(0, 3) == 0 { CLAMPED } else { 0 };
    let gate = Matrix::new(gpu, v, case.format, case.rows, case.cols)?;
    let up = Matrix::new(gpu, v, case.format, case.rows, case.cols)?;
    let x = case.activations(v, case.tokens * case.cols);
    let norm = v.reals(case.cols, 1.5);
    let (x_at, norm_at) = (Memory::of(gpu, &x)?, Memory::of(gpu, &norm)?);
    let out = Memory::zeroed(gpu, case.tokens * case.rows * 4)?;
    let args = PanelArgs {
        weights: gate.weights.address(),
        scales: gate.scales(),
        up_weights: up.weights.address(),
        up_scales: up.scales(),
        x: x_at.address(),
        norm: if case.norm { norm_at.address() } else { 0 },
        out: out.address(),
        ..case.args()
    };
    super::panel_pair(gpu, case.format, case.planes, &args)?;
    let x = case.normalized(&x, &norm);
    let difference = largest(&case, &out.values::<f32>()?, |i| {
        let (token, row) = (i / case.rows, i % case.rows);
        let [gate, up] = [&gate, &up].map(|w| {
            let (sum, size) = w.dot(row, &x[token * case.cols..][..case.cols]);
            (case.settle(sum), size)
        });
        activation(&case, gate, up)
    });
    Ok(case.row("panel_pair", "", difference))
}

/// Different experts of `experts`, in any order.
fn choose(v: &mut Values, experts: usize, slots: usize) -> Vec<u32> {
    let mut left: Vec<u32> = (0..experts as u32).collect();
    (0..slots).map(|_| left.swap_remove(v.between(0, left.len() - 1))).collect()
}

fn check_experts_pair(gpu: &dyn Gpu, v: &mut Values) -> Result<CheckRow, GpuError> {
    let mut case = Case::random(v, &[Format::Bf16, Format::Mxfp4], 1);
    case.rows = case.rows.min(33);
    case.flags |= CLAMPED;
    let slots = v.between(1, 5);
    let experts = slots + v.between(0, 2);
    let choice = choose(v, experts, slots);
    let w = Matrix::new(gpu, v, case.format, experts * 2 * case.rows, case.cols)?;
    let x = case.activations(v, case.cols);
    let (norm, bias) = (v.reals(case.cols, 1.5), v.reals(experts * 2 * case.rows, 2.0));
    let (x_at, norm_at) = (Memory::of(gpu, &x)?, Memory::of(gpu, &norm)?);
    let (bias_at, choice_at) = (Memory::of(gpu, &bias)?, Memory::of(gpu, &choice)?);
    let out = Memory::zeroed(gpu, slots * case.rows * 4)?;
    let args = PanelArgs {
        weights: w.weights.address(),
        scales: w.scales(),
        x: x_at.address(),
        norm: if case.norm { norm_at.address() } else { 0 },
        bias: if case.bias { bias_at.address() } else { 0 },
        choice: choice_at.address(),
        out: out.address(),
        slots: slots as u32,
        rows: 2 * case.rows as u32,
        ..case.args()
    };
    super::panel_pair(gpu, case.format, case.planes, &args)?;
    let x = case.normalized(&x, &norm);
    let difference = largest(&case, &out.values::<f32>()?, |i| {
        let first = 2 * (choice[i / case.rows] as usize * case.rows + i % case.rows);
        let [gate, up] = [first, first + 1].map(|row| {
            let (sum, size) = w.dot(row, &x);
            (case.settle(sum + if case.bias { f64::from(bias[row]) } else { 0.0 }), size + 2.0)
        });
        activation(&case, gate, up)
    });
    Ok(case.row("panel_pair", &format!(" experts {choice:?} of {experts}"), difference))
}

fn check_experts_down(
    gpu: &dyn Gpu,
    v: &mut Values,
    given: Option<(Case, usize)>,
) -> Result<CheckRow, GpuError> {
    let random = |v: &mut Values| {
        let case = Case::random(v, &[Format::Bf16, Format::Mxfp4], 1);
        // 8 blocks of up to 16 rows in the emulator: several tiles of several experts.
        let rows = if case.rows > 130 { 150 } else { case.rows.min(40) };
        (Case { norm: false, rows, ..case }, v.between(1, 5))
    };
    let (case, slots) = given.unwrap_or_else(|| random(v));
    let experts = slots + v.between(0, 2);
    let choice = choose(v, experts, slots);
    let w = Matrix::new(gpu, v, case.format, experts * case.rows, case.cols)?;
    let x = case.activations(v, slots * case.cols);
    let weights: Vec<f32> = case.activations(v, slots);
    let (bias, residual) = (v.reals(experts * case.rows, 2.0), case.activations(v, case.rows));
    let (x_at, bias_at) = (Memory::of(gpu, &x)?, Memory::of(gpu, &bias)?);
    let (choice_at, weights_at) = (Memory::of(gpu, &choice)?, Memory::of(gpu, &weights)?);
    let out = Memory::of(gpu, &residual)?;
    let args = PanelArgs {
        weights: w.weights.address(),
        scales: w.scales(),
        x: x_at.address(),
        bias: if case.bias { bias_at.address() } else { 0 },
        residual: if case.residual { out.address() } else { 0 },
        choice: choice_at.address(),
        choice_weights: weights_at.address(),
        out: out.address(),
        slots: slots as u32,
        ..case.args()
    };
    super::panel_experts_down(gpu, case.format, case.planes, &args)?;
    let x: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
    let difference = largest(&case, &out.values::<f32>()?, |i| {
        let (mut total, mut all) = (0.0, 2.0);
        for (slot, weight) in weights.iter().enumerate() {
            let row = choice[slot] as usize * case.rows + i;
            let (sum, size) = w.dot(row, &x[slot * case.cols..][..case.cols]);
            let value = case.settle(sum + if case.bias { f64::from(bias[row]) } else { 0.0 });
            total += case.settle(f64::from(*weight) * value);
            all += size + 2.0;
        }
        (case.settle(case.settle(total) + if case.residual { f64::from(residual[i]) } else { 0.0 }), all)
    });
    Ok(case.row("panel_experts_down", &format!(" experts {choice:?} of {experts}"), difference))
}
