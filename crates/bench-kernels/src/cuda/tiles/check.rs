//! Every kernel of `tiles.cu` on random shapes against sums in f64.

use half::{bf16, f16};

use super::{Format, GATHER, KERNELS, Kernel, PAIR, SCATTER, TilesArgs, can_have, hopper, launch};
use crate::cuda::check::Values;
use crate::cuda::{BF16, CLAMPED, CheckRow, Gpu, GpuError, Memory};
use crate::mxfp4::FP4_VALUES;

const ALPHA: f32 = 1.702;
/// Low enough that some values are clamped.
const LIMIT: f32 = 1.5;

/// Runs each kernel that the device has on `cases` random shapes.
///
/// # Errors
/// A device that fails.
pub fn check(gpu: &dyn Gpu, seed: u64, cases: usize) -> Result<Vec<CheckRow>, GpuError> {
    let mut values = Values::new(seed);
    let mut rows = Vec::new();
    let hopper = hopper::KERNELS.iter().filter(|_| can_have(gpu));
    for kernel in KERNELS.iter().chain(hopper) {
        for _ in 0..cases {
            rows.push(Case::random(kernel, &mut values).run(gpu, kernel, &mut values)?);
        }
    }
    Ok(rows)
}

/// Runs each kernel of Hopper once: tiles of many rows and of few, more columns than there are stages, half a stage at
/// the end.
///
/// # Errors
/// A device that fails, or does not have them.
pub(super) fn hopper(gpu: &dyn Gpu) -> Result<Vec<CheckRow>, GpuError> {
    let mut values = Values::new(9);
    let case = |kernel: &Kernel| {
        // Of two experts one has more than half a tile, the other not.
        let grouped = kernel.format == Format::Mxfp4;
        Case {
            tokens: kernel.bm as usize + if grouped { 1 } else { 5 },
            rows: kernel.bn as usize / 2 + 2,
            cols: (kernel.bk * kernel.stages) as usize + 32,
            experts: grouped.then_some(Experts { experts: 2, slots_per_token: 1 }),
            matrices: 1,
            bias: false,
            residual: false,
            planes_out: false,
            flags: if grouped { GATHER | SCATTER } else { 0 },
        }
    };
    hopper::KERNELS.iter().map(|kernel| case(kernel).run(gpu, kernel, &mut values)).collect()
}

#[derive(Debug)]
struct Case {
    tokens: usize,
    rows: usize,
    cols: usize,
    /// None: one matrix for all tokens.
    experts: Option<Experts>,
    /// Gate and up in one matrix (or no pair), or in two.
    matrices: usize,
    bias: bool,
    residual: bool,
    planes_out: bool,
    flags: u32,
}

#[derive(Debug)]
struct Experts {
    experts: usize,
    slots_per_token: usize,
}

impl Case {
    fn random(kernel: &Kernel, values: &mut Values) -> Self {
        let mut coin = || values.word() >> 63 == 1;
        let (pair, two_matrices, clamped, round) = (coin(), coin(), coin(), kernel.planes == 1 && coin());
        let (grouped, gather, scatter) = (coin(), coin(), coin());
        let (bias, residual, planes_out) = (coin(), coin(), coin());
        let mut flags = if round { BF16 } else { 0 };
        if pair {
            flags |= if clamped { PAIR | CLAMPED } else { PAIR };
        }
        if grouped {
            flags |= if gather { GATHER } else { 0 } | if scatter { SCATTER } else { 0 };
        }
        let experts = grouped
            .then(|| Experts { experts: values.between(1, 37), slots_per_token: values.between(1, 4) });
        let slots = experts.as_ref().map_or(1, |e| e.slots_per_token);
        let rows = values.between(1, kernel.bn as usize + 20);
        let stages = if kernel.hopper { kernel.stages as usize } else { 2 };
        Self {
            tokens: values.between(1, (kernel.bm as usize + 9) / slots + 1),
            rows: if pair && !two_matrices { 2 * rows.div_ceil(2) } else { rows },
            // Hopper's stages are used again.
            cols: 32 * values.between(1, stages * kernel.bk as usize / 32 + 3),
            experts,
            matrices: if pair && two_matrices { 2 } else { 1 },
            bias,
            residual,
            planes_out,
            flags,
        }
    }

    fn all_rows(&self) -> usize {
        self.rows * self.matrices
    }

    fn slots(&self) -> usize {
        self.experts.as_ref().map_or(1, |e| e.slots_per_token)
    }

    fn run(&self, gpu: &dyn Gpu, kernel: &Kernel, values: &mut Values) -> Result<CheckRow, GpuError> {
        let experts = self.experts.as_ref().map_or(1, |e| e.experts);
        let n = self.tokens * self.slots();
        let columns = self.all_rows() / if self.flags & PAIR == 0 { 1 } else { 2 };
        let routing = Routing::random(self, values);
        let x_rows = n + 3;
        let x = Activations::random(gpu, kernel.planes as usize, x_rows, self.cols, values)?;
        let elements = experts * self.rows * self.cols;
        let weights = Weights::random(gpu, kernel.format, elements, self.cols, values)?;
        let up = Weights::random(gpu, kernel.format, elements, self.cols, values)?;
        let bias = values.reals(experts * self.all_rows(), 0.5);
        let residual = values.reals(n * columns, 1.0);
        let (bias_memory, residual_memory) = (Memory::of(gpu, &bias)?, Memory::of(gpu, &residual)?);
        let out = Memory::zeroed(gpu, n * columns * 4)?;
        let out_planes = Memory::zeroed(gpu, kernel.planes as usize * (n + 1) * columns * 2)?;
        let (order, offsets) = (Memory::of(gpu, &routing.order)?, Memory::of(gpu, &routing.offsets)?);
        let grouped = self.experts.is_some();
        let given = |condition: bool, memory: &Memory<'_>| if condition { memory.address() } else { 0 };
        let args = TilesArgs {
            x: x.memory.address(),
            weights: weights.codes.address(),
            scales: weights.scales.address(),
            up_weights: given(self.matrices == 2, &up.codes),
            up_scales: given(self.matrices == 2, &up.scales),
            bias: given(self.bias, &bias_memory),
            out: out.address(),
            out_planes: given(self.planes_out, &out_planes),
            residual: given(self.residual, &residual_memory),
            order: given(grouped, &order),
            offsets: given(grouped, &offsets),
            tokens: self.tokens as u32,
            x_rows: x_rows as u32,
            rows: self.rows as u32,
            cols: self.cols as u32,
            experts: experts as u32,
            slots_per_token: self.slots() as u32,
            out_rows: n as u32 + 1,
            alpha: ALPHA,
            limit: LIMIT,
            flags: self.flags,
        };
        args.validate(kernel.format, kernel.planes).map_err(super::wrong)?;
        launch(gpu, kernel, &args)?;
        let oracle = Oracle {
            case: self,
            routing: &routing,
            x: &x.values,
            weights: [&weights.values, &up.values],
            bias: if self.bias { &bias } else { &[] },
            residual: if self.residual { &residual } else { &[] },
        };
        let found: Vec<f32> = out.values()?;
        let planes: Vec<bf16> = out_planes.values()?;
        let mut difference = oracle.difference(&found);
        if self.planes_out {
            difference = difference.max(planes_difference(&found, &planes, kernel.planes as usize));
        }
        let allowed = match (self.flags & BF16, self.flags & PAIR) {
            (0, 0) => 1e-5,
            (0, _) => 1e-4,
            _ => 1.0 / 64.0,
        };
        Ok(CheckRow { kernel: kernel.name.to_owned(), case: format!("{self:?}"), difference, allowed })
    }
}

/// Zero if the planes' sum is as near to the values as the last plane's rounding allows, infinite if not.
fn planes_difference(values: &[f32], planes: &[bf16], count: usize) -> f64 {
    let stride = planes.len() / count;
    let bound = if count == 1 { 2.0_f64.powi(-8) } else { 2.0_f64.powi(-23) };
    let wrong = values.iter().enumerate().any(|(i, v)| {
        let sum: f64 = (0..count).map(|p| planes[p * stride + i].to_f64()).sum();
        (sum - f64::from(*v)).abs() > bound * f64::from(v.abs()) + 1e-30 || sum.is_nan()
    });
    if wrong { f64::INFINITY } else { 0.0 }
}

/// Which slots each expert has.
struct Routing {
    order: Vec<u32>,
    offsets: Vec<u32>,
}

impl Routing {
    /// Few experts have most of the slots.
    fn random(case: &Case, values: &mut Values) -> Self {
        let experts = case.experts.as_ref().map_or(1, |e| e.experts);
        let slots = case.tokens * case.slots();
        let choice: Vec<usize> = (0..slots)
            .map(|_| {
                let e = values.between(0, experts - 1);
                if values.word().is_multiple_of(3) { e } else { e % 3 % experts }
            })
            .collect();
        let mut order = Vec::new();
        let mut offsets = vec![0];
        for expert in 0..experts {
            order.extend((0..slots as u32).filter(|s| choice[*s as usize] == expert));
            offsets.push(order.len() as u32);
        }
        Self { order, offsets }
    }
}

struct Activations<'g> {
    memory: Memory<'g>,
    /// What the planes add up to.
    values: Vec<f64>,
}

impl<'g> Activations<'g> {
    fn random(
        gpu: &'g dyn Gpu,
        planes: usize,
        rows: usize,
        cols: usize,
        values: &mut Values,
    ) -> Result<Self, GpuError> {
        let n = rows * cols;
        let mut rest = values.reals(n, 1.0);
        let mut sums = vec![0.0; n];
        let mut stored = Vec::with_capacity(planes * n);
        for _ in 0..planes {
            for (rest, sum) in rest.iter_mut().zip(&mut sums) {
                let part = bf16::from_f32(*rest);
                *rest -= part.to_f32();
                *sum += part.to_f64();
                stored.push(part);
            }
        }
        Ok(Self { memory: Memory::of(gpu, &stored)?, values: sums })
    }
}

struct Weights<'g> {
    codes: Memory<'g>,
    scales: Memory<'g>,
    values: Vec<f64>,
}

impl<'g> Weights<'g> {
    /// Sums of products with them are around one.
    fn random(
        gpu: &'g dyn Gpu,
        format: Format,
        n: usize,
        cols: usize,
        values: &mut Values,
    ) -> Result<Self, GpuError> {
        let size = 2.0 / (cols as f32).sqrt();
        match format {
            Format::Bf16 => {
                let w = values.bf16s(n, size);
                let exact = w.iter().map(|w| w.to_f64()).collect();
                Ok(Self { codes: Memory::of(gpu, &w)?, scales: Memory::zeroed(gpu, 1)?, values: exact })
            }
            Format::Mxfp4 => {
                let codes = values.bytes(n / 2);
                let near = (127.0 + (size / 3.0).log2()) as u8;
                let scales: Vec<u8> =
                    (0..n / 32).map(|_| values.one_of(&[near, near, near - 1, near - 3, 1, 0])).collect();
                let exact = (0..n).map(|i| {
                    let code = codes[i / 2] >> (4 * (i % 2)) & 15;
                    f64::from(FP4_VALUES[usize::from(code)]) * (f64::from(scales[i / 32]) - 127.0).exp2()
                });
                let exact = exact.collect();
                Ok(Self { codes: Memory::of(gpu, &codes)?, scales: Memory::of(gpu, &scales)?, values: exact })
            }
            Format::Q8 => {
                let codes: Vec<i8> = values.bytes(n).iter().map(|b| (*b as i8).max(-127)).collect();
                let scales: Vec<f16> =
                    (0..n / 32).map(|_| f16::from_f32(size / 127.0 * (1.0 + values.real() / 2.0))).collect();
                let exact = (0..n).map(|i| f64::from(codes[i]) * scales[i / 32].to_f64()).collect();
                Ok(Self { codes: Memory::of(gpu, &codes)?, scales: Memory::of(gpu, &scales)?, values: exact })
            }
        }
    }
}

/// The product by its definition.
struct Oracle<'a> {
    case: &'a Case,
    routing: &'a Routing,
    x: &'a [f64],
    weights: [&'a [f64]; 2],
    bias: &'a [f32],
    residual: &'a [f32],
}

impl Oracle<'_> {
    /// The largest difference, relative to the size of the sum, or to 1 and the value where that is rounded
    /// or activated.
    fn difference(&self, found: &[f32]) -> f64 {
        let case = self.case;
        let n = case.tokens * case.slots();
        let pair = case.flags & PAIR != 0;
        let columns = found.len() / n;
        let mut largest = 0.0_f64;
        for row in 0..n {
            let expert = self.routing.offsets.iter().take_while(|o| **o as usize <= row).count() - 1;
            let (mut from, mut to) = (row, row);
            if case.experts.is_some() {
                let slot = self.routing.order[row] as usize;
                from = if case.flags & GATHER == 0 { row } else { slot / case.slots() };
                to = if case.flags & SCATTER == 0 { row } else { slot };
            }
            let expert = if case.experts.is_some() { expert } else { 0 };
            for column in 0..columns {
                let (mut y, mut size) = if pair {
                    let (gate, up) =
                        (self.sum(from, expert, 2 * column), self.sum(from, expert, 2 * column + 1));
                    (self.activated(gate.0, up.0), 1.0)
                } else {
                    self.sum(from, expert, column)
                };
                if let Some(residual) = self.residual.get(to * columns + column) {
                    y = self.settled(y + f64::from(*residual));
                    size += f64::from(residual.abs());
                }
                if pair || case.flags & BF16 != 0 {
                    size = 1.0 + y.abs();
                }
                let difference = (f64::from(found[to * columns + column]) - y).abs() / size;
                largest = if difference.is_nan() { f64::INFINITY } else { largest.max(difference) };
            }
        }
        largest
    }

    /// Row `n` of the product, and the sum of its terms' sizes.
    fn sum(&self, from: usize, expert: usize, n: usize) -> (f64, f64) {
        let (rows, cols) = (self.case.rows, self.case.cols);
        let (matrix, row) = (n % self.case.matrices, n / self.case.matrices);
        let w = &self.weights[matrix][(expert * rows + row) * cols..][..cols];
        let x = &self.x[from * cols..][..cols];
        let bias = self.bias.get(expert * self.case.all_rows() + n).map_or(0.0, |b| f64::from(*b));
        let terms = || x.iter().zip(w).map(|(x, w)| x * w);
        let sum: f64 = terms().sum();
        (self.settled(sum + bias), terms().map(f64::abs).sum::<f64>() + bias.abs() + 1e-6)
    }

    fn activated(&self, gate: f64, up: f64) -> f64 {
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        if self.case.flags & CLAMPED == 0 {
            return self.settled(self.settled(gate * sigmoid(gate)) * up);
        }
        let (alpha, limit) = (f64::from(ALPHA), f64::from(LIMIT));
        let (gate, up) = (gate.min(limit), up.clamp(-limit, limit));
        let share = self.settled(sigmoid(self.settled(gate * alpha)));
        let swish = self.settled(gate * share);
        self.settled(self.settled(up + 1.0) * swish)
    }

    fn settled(&self, value: f64) -> f64 {
        if self.case.flags & BF16 == 0 { value } else { bf16::from_f64(value).to_f64() }
    }
}
