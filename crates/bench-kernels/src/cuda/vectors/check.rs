//! The kernels of `vectors.cu` and `choice.cu` on random shapes against plain arithmetic.

use std::num::NonZeroU32;

use half::{bf16, f16};

use super::rows::{
    AddArgs, EmbedArgs, GatherArgs, NormArgs, PlanesArgs, add, embed, gather_rows, rms_norm, to_planes,
};
use super::select::{
    AdvanceArgs, RowDraw, SelectArgs, Span, advance, argmax, cut_bytes, sample, scratch_bytes,
};
use super::weights::{
    CopyArgs, ExpandArgs, Fill, PeakArgs, QuantizeArgs, ReadArgs, copy_bandwidth, expand_mxfp4, fill,
    matrix_peak, peak_blocks, quantize_q8, read_bandwidth, read_blocks,
};
use crate::cuda::check::{CheckRow, Values};
use crate::cuda::gpu::{Gpu, GpuError, Memory};
use crate::cuda::{BF16, ROUND_FIRST};
use crate::draw::Draw;
use crate::mxfp4::{BLOCK, FP4_VALUES};

type Row = Result<CheckRow, GpuError>;

/// Runs every kernel on `cases` shapes.
///
/// # Errors
/// A device that fails. Wrong results are in the rows.
pub fn check(gpu: &dyn Gpu, seed: u64, cases: usize) -> Result<Vec<CheckRow>, GpuError> {
    let values = &mut Values::new(seed);
    let mut found = Vec::new();
    for _ in 0..cases {
        let checks: [fn(&dyn Gpu, &mut Values) -> Row; 13] = [
            check_embed,
            check_norm,
            check_planes,
            check_gather,
            check_add,
            check_argmax,
            check_sample,
            check_advance,
            check_fill,
            check_quantize,
            check_expand,
            check_copy,
            check_read,
        ];
        for check in checks {
            found.push(check(gpu, values)?);
        }
    }
    found.push(check_peak(gpu, values)?);
    Ok(found)
}

#[allow(clippy::unnecessary_wraps)] // every case ends with it
fn row(kernel: &str, case: String, difference: f64, allowed: f64) -> Row {
    Ok(CheckRow { kernel: kernel.to_owned(), case, difference, allowed })
}

/// How many of the elements differ in their bits.
fn unequal<T: bytemuck::NoUninit>(found: &[T], expected: &[T]) -> f64 {
    let same = |(a, b): &(&T, &T)| bytemuck::bytes_of(*a) == bytemuck::bytes_of(*b);
    let wrong = found.iter().zip(expected).filter(|pair| !same(pair)).count();
    (wrong + found.len().abs_diff(expected.len())) as f64
}

fn columns(values: &mut Values) -> usize {
    32 * values.one_of(&[1, 2, 3, 7, 12, 33, 90])
}

fn check_embed(gpu: &dyn Gpu, values: &mut Values) -> Row {
    let (tokens, cols, vocab) = (values.between(1, 5), columns(values), values.between(1, 20));
    let table = values.bf16s(vocab * cols, 1.0);
    let ids: Vec<u32> = (0..tokens).map(|_| values.between(0, vocab) as u32).collect();
    let (device, id) = (Memory::of(gpu, &table)?, Memory::of(gpu, &ids)?);
    let out = Memory::zeroed(gpu, tokens * cols * 4)?;
    let args = EmbedArgs {
        table: device.address(),
        ids: id.address(),
        out: out.address(),
        tokens: tokens as u32,
        cols: cols as u32,
        vocab: vocab as u32,
        reserved: 0,
    };
    embed(gpu, &args)?;
    let at = |id: u32, c: usize| table.get(id as usize * cols + c).map_or(f32::NAN, |v| v.to_f32());
    let expected: Vec<f32> = ids.iter().flat_map(|id| (0..cols).map(move |c| at(*id, c))).collect();
    let case = format!("{tokens} of {vocab}, {cols} columns");
    row("embed", case, unequal(&out.values::<f32>()?, &expected), 0.0)
}

/// The sum of planes.
fn joined(planes: &[bf16], stride: usize, count: usize, at: usize) -> f64 {
    (0..count).map(|p| f64::from(planes[p * stride + at].to_f32())).sum()
}

fn check_norm(gpu: &dyn Gpu, values: &mut Values) -> Row {
    let (x_rows, cols, planes) = (values.between(1, 5), columns(values), values.one_of(&[0, 1, 3]));
    let flags = values.one_of(&[0, BF16, BF16 | ROUND_FIRST]);
    let index: Option<Vec<u32>> = (values.between(0, 1) == 1)
        .then(|| (0..values.between(1, 6)).map(|_| values.between(0, x_rows - 1) as u32).collect());
    let rows = index.as_ref().map_or(x_rows, Vec::len);
    let (x, weight) = (values.reals(x_rows * cols, 3.0), values.reals(cols, 2.0));
    let stride = rows * cols + 8 * values.between(0, 3);
    let (x_at, weight_at) = (Memory::of(gpu, &x)?, Memory::of(gpu, &weight)?);
    let index_at = index.as_ref().map(|index| Memory::of(gpu, index)).transpose()?;
    let (out, parts) =
        (Memory::zeroed(gpu, rows * cols * 4)?, Memory::zeroed(gpu, planes.max(1) * stride * 2)?);
    let args = NormArgs {
        x: x_at.address(),
        weight: weight_at.address(),
        out: out.address(),
        planes: parts.address(),
        index: index_at.as_ref().map_or(0, Memory::address),
        plane_stride: stride as u64,
        rows: rows as u32,
        cols: cols as u32,
        x_rows: x_rows as u32,
        plane_count: planes as u32,
        flags,
        eps: 1e-5,
    };
    rms_norm(gpu, &args)?;
    let (found, parts) = (out.values::<f32>()?, parts.values::<bf16>()?);
    let (settle, settle_first) = (flags & BF16 != 0, flags & ROUND_FIRST != 0);
    let settled = |v: f64, yes: bool| if yes { bf16::from_f64(v).to_f64() } else { v };
    let (mut difference, mut flips) = (0.0_f64, 0);
    for r in 0..rows {
        let from = index.as_ref().map_or(r, |index| index[r] as usize);
        let source = &x[from * cols..][..cols];
        let square: f64 = source.iter().map(|v| f64::from(*v).powi(2)).sum();
        let inverse = 1.0 / (square / cols as f64 + f64::from(1e-5_f32)).sqrt();
        for c in 0..cols {
            let result = f64::from(found[r * cols + c]);
            let normalized = settled(f64::from(source[c]) * inverse, settle_first);
            let expected = settled(normalized * f64::from(weight[c]), settle);
            let scale = expected.abs().max(1e-3);
            if settle {
                // A sum in another order may round to the other side, but seldom.
                flips += usize::from(result != expected);
            } else {
                difference = difference.max((result - expected).abs() / scale);
            }
            if planes > 0 {
                let whole = joined(&parts, stride, planes, r * cols + c);
                // What one plane cannot hold counts only if it is to hold everything.
                let slack = if planes == 3 || settle { 0.0 } else { 1.0 / 256.0 };
                difference = difference.max(((whole - result).abs() / scale - slack).max(0.0));
            }
        }
    }
    // Of results that are rounded, one in a hundred may differ, or one.
    difference = difference.max(2e-6 * flips as f64 / (rows * cols / 100).max(1) as f64);
    let case = format!("{rows} of {x_rows} rows, {cols} columns, {planes} planes, flags {flags}");
    row("rms_norm", case, difference, 2e-6)
}

fn check_planes(gpu: &dyn Gpu, values: &mut Values) -> Row {
    let (count, planes) = (8 * values.between(1, 400), values.between(1, 3));
    let stride = count + 8 * values.between(0, 2);
    let x = values.reals(count, 100.0);
    let (x_at, out) = (Memory::of(gpu, &x)?, Memory::zeroed(gpu, planes * stride * 2)?);
    let args = PlanesArgs {
        x: x_at.address(),
        out: out.address(),
        count: count as u64,
        plane_stride: stride as u64,
        plane_count: planes as u32,
        reserved: 0,
    };
    to_planes(gpu, &args)?;
    let found = out.values::<bf16>()?;
    let mut difference = 0.0_f64;
    for (i, x) in x.iter().enumerate() {
        let x = f64::from(*x);
        difference = difference.max((joined(&found, stride, planes, i) - x).abs() / x.abs().max(1e-3));
    }
    // Each plane has 8 bits and the sign of what is left.
    row("to_planes", format!("{count} to {planes}"), difference, 2.0_f64.powi(-9 * planes as i32 + 1))
}

fn check_gather(gpu: &dyn Gpu, values: &mut Values) -> Row {
    let (x_rows, rows, cols) = (values.between(1, 6), values.between(1, 6), columns(values));
    let x = values.reals(x_rows * cols, 1.0);
    let index: Vec<u32> = (0..rows).map(|_| values.between(0, x_rows) as u32).collect();
    let (x_at, index_at) = (Memory::of(gpu, &x)?, Memory::of(gpu, &index)?);
    let out = Memory::zeroed(gpu, rows * cols * 4)?;
    let args = GatherArgs {
        x: x_at.address(),
        index: index_at.address(),
        out: out.address(),
        rows: rows as u32,
        cols: cols as u32,
        x_rows: x_rows as u32,
        reserved: 0,
    };
    gather_rows(gpu, &args)?;
    let at = |r: u32, c: usize| x.get(r as usize * cols + c).copied().unwrap_or(f32::NAN);
    let expected: Vec<f32> = index.iter().flat_map(|r| (0..cols).map(move |c| at(*r, c))).collect();
    let case = format!("{rows} of {x_rows} rows, {cols} columns");
    row("gather_rows", case, unequal(&out.values::<f32>()?, &expected), 0.0)
}

fn check_add(gpu: &dyn Gpu, values: &mut Values) -> Row {
    let (count, flags) = (4 * values.between(1, 2000), values.one_of(&[0, BF16]));
    let (x, y) = (values.reals(count, 1.0), values.reals(count, 10.0));
    let (x_at, y_at) = (Memory::of(gpu, &x)?, Memory::of(gpu, &y)?);
    let (x_address, y_address) = (x_at.address(), y_at.address());
    add(
        gpu,
        &AddArgs { x: x_address, y: y_address, out: x_address, count: count as u64, flags, reserved: 0 },
    )?;
    let settle = |v: f32| if flags == 0 { v } else { bf16::from_f32(v).to_f32() };
    let expected: Vec<f32> = x.iter().zip(&y).map(|(x, y)| settle(x + y)).collect();
    row("add", format!("{count}, flags {flags}"), unequal(&x_at.values::<f32>()?, &expected), 0.0)
}

/// Logits with ties, and some that are no candidates.
struct Logits {
    values: Vec<f32>,
    suppressed: Vec<u32>,
    rows: usize,
    vocab: usize,
    stride: usize,
}

impl Logits {
    fn new(values: &mut Values) -> Self {
        let (rows, vocab) = (values.between(1, 3), values.one_of(&[1, 3, 50, 1024, 1025, 3111]));
        let stride = vocab + values.between(0, 4);
        // Many ties, all the same, or none.
        let kind = values.between(0, 3);
        let any = |values: &mut Values| match kind {
            0 => 0.5,
            1 => values.real() * 9.0,
            _ => values.between(0, 40) as f32 / 4.0 - 5.0,
        };
        let mut logits: Vec<f32> = (0..rows * stride).map(|_| any(values)).collect();
        for _ in 0..values.between(0, 20) {
            let at = values.between(0, logits.len() - 1);
            logits[at] = values.one_of(&[f32::NAN, f32::NEG_INFINITY, f32::INFINITY, 5.25, 5.25]);
        }
        let suppressed = (0..values.between(0, 3)).map(|_| values.between(0, vocab) as u32).collect();
        Self { values: logits, suppressed, rows, vocab, stride }
    }

    fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.stride..][..self.vocab]
    }

    /// Candidates, each with its logit.
    fn candidates(&self, row: usize) -> impl Iterator<Item = (u32, f32)> {
        let all = (0_u32..).zip(self.row(row).iter().copied());
        all.filter(|(id, logit)| *logit > f32::NEG_INFINITY && !self.suppressed.contains(id))
    }

    fn best(&self, row: usize) -> (u32, f32) {
        let first = (u32::MAX, f32::NEG_INFINITY);
        self.candidates(row).fold(first, |best, one| if one.1 > best.1 { one } else { best })
    }
}

/// Logits on the device, and room for what is chosen.
struct Selection<'g> {
    /// Kept for as long as the arguments name them.
    _inputs: [Option<Memory<'g>>; 4],
    ids: Memory<'g>,
    best: Memory<'g>,
    non_finite: Memory<'g>,
    args: SelectArgs,
}

impl<'g> Selection<'g> {
    fn new(gpu: &'g dyn Gpu, logits: &Logits) -> Result<Self, GpuError> {
        let memory = Memory::of(gpu, &logits.values)?;
        let suppressed =
            if logits.suppressed.is_empty() { None } else { Some(Memory::of(gpu, &logits.suppressed)?) };
        let scratch = Memory::zeroed(gpu, scratch_bytes(logits.rows))?;
        let cuts = Memory::zeroed(gpu, cut_bytes(logits.rows))?;
        let room = || Memory::zeroed(gpu, logits.rows * 4);
        let (ids, best, non_finite) = (room()?, room()?, room()?);
        let args = SelectArgs {
            logits: memory.address(),
            suppressed: suppressed.as_ref().map_or(0, Memory::address),
            ids: ids.address(),
            best: best.address(),
            non_finite: non_finite.address(),
            draws: 0,
            cuts: cuts.address(),
            scratch: scratch.address(),
            rows: logits.rows as u32,
            vocab: logits.vocab as u32,
            stride: logits.stride as u32,
            suppressed_count: logits.suppressed.len() as u32,
            pass: 0,
            reserved: 0,
        };
        Ok(Self {
            _inputs: [Some(memory), suppressed, Some(scratch), Some(cuts)],
            ids,
            best,
            non_finite,
            args,
        })
    }
}

fn check_argmax(gpu: &dyn Gpu, values: &mut Values) -> Row {
    let logits = Logits::new(values);
    let selection = Selection::new(gpu, &logits)?;
    let mut wrong = 0.0;
    // Twice, since the counters must be as before.
    for _ in 0..2 {
        argmax(gpu, &selection.args)?;
        let best: Vec<_> = (0..logits.rows).map(|r| logits.best(r)).collect();
        let count = |r| logits.row(r).iter().filter(|v| !v.is_finite()).count() as u32;
        wrong += unequal(&selection.ids.values()?, &best.iter().map(|b| b.0).collect::<Vec<_>>());
        wrong += unequal(&selection.best.values()?, &best.iter().map(|b| b.1).collect::<Vec<_>>());
        wrong += unequal(&selection.non_finite.values()?, &(0..logits.rows).map(count).collect::<Vec<u32>>());
    }
    row("argmax", format!("{} of {}", logits.rows, logits.vocab), wrong, 0.0)
}

/// Any way to draw, of `vocab` ids.
fn any_draw(values: &mut Values, vocab: usize) -> Draw {
    let uniform = (values.word() >> 11) as f64 / (1_u64 << 53) as f64;
    let most = values.one_of(&[1, 2, 7, vocab, vocab + 5]);
    let k = values.between(1, most) as u32;
    Draw {
        uniform: values.one_of(&[0.0, uniform, uniform, uniform, 1.0 - f64::EPSILON / 2.0]),
        temperature: values.one_of(&[0.0, 0.02, 0.3, 1.0, 1.7]),
        top_k: values.one_of(&[None, NonZeroU32::new(k)]),
        top_p: values.one_of(&[1.0, 1.0, 1e-9, 0.5, 0.9, 0.999_999]),
    }
}

fn check_sample(gpu: &dyn Gpu, values: &mut Values) -> Row {
    let logits = Logits::new(values);
    let mut selection = Selection::new(gpu, &logits)?;
    let (mut wrong, mut seen) = (0.0, Vec::new());
    // Again and again, since the counters must be as before.
    for _ in 0..4 {
        let how: Vec<Draw> = (0..logits.rows).map(|_| any_draw(values, logits.vocab)).collect();
        let draws: Vec<RowDraw> = how.iter().map(|draw| RowDraw::new(draw, logits.vocab as u32)).collect();
        let draws_at = Memory::of(gpu, &draws)?;
        selection.args.draws = draws_at.address();
        argmax(gpu, &selection.args)?;
        sample(gpu, &selection.args, &draws)?;
        let expected = how.iter().zip(0..).map(|(draw, r)| draw.choose(logits.row(r), &logits.suppressed));
        let expected: Vec<u32> = expected.map(|id| id.unwrap_or(u32::MAX)).collect();
        wrong += unequal(&selection.ids.values()?, &expected);
        seen.push(how);
    }
    row("sample", format!("{} of {}: {seen:?}", logits.rows, logits.vocab), wrong, 0.0)
}

fn check_advance(gpu: &dyn Gpu, values: &mut Values) -> Row {
    let (sequences, steps) = (values.between(1, 300), 3);
    let mut spans: Vec<Span> = (0..sequences as u32)
        .map(|i| Span { start: i, len: values.between(0, 3) as u32, past: i * 7, sequence: i })
        .collect();
    let (spans_at, step_at) = (Memory::of(gpu, &spans)?, Memory::of(gpu, &[0_u32])?);
    let ids_at = Memory::zeroed(gpu, sequences * 4)?;
    let history = Memory::zeroed(gpu, steps * sequences * 4)?;
    let mut noted = Vec::new();
    let mut wrong = 0.0;
    for step in 0..=steps {
        let chosen: Vec<u32> = (0..sequences).map(|_| values.word() as u32).collect();
        let chosen_at = Memory::of(gpu, &chosen)?;
        let args = AdvanceArgs {
            spans: spans_at.address(),
            chosen: chosen_at.address(),
            ids: ids_at.address(),
            history: history.address(),
            steps: step_at.address(),
            sequences: sequences as u32,
            history_steps: steps as u32,
        };
        advance(gpu, &args)?;
        wrong += unequal(&ids_at.values()?, &chosen);
        for span in &mut spans {
            span.past += span.len;
        }
        if step < steps {
            noted.extend(chosen);
        }
    }
    wrong += unequal(&spans_at.values()?, &spans) + unequal(&history.values()?, &noted);
    wrong += unequal(&step_at.values()?, &[steps as u32 + 1]);
    row("advance", format!("{sequences}"), wrong, 0.0)
}

fn check_fill(gpu: &dyn Gpu, values: &mut Values) -> Row {
    const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
    let (bytes, first, key) = (2 * values.between(1, 9000), values.between(0, 99) as u64, values.word());
    let how = values.one_of(&[
        Fill::Uniform { mean: 1.0, std: 0.1 },
        Fill::Uniform { mean: 0.0, std: 0.018 },
        Fill::Codes,
        Fill::Exponents { low: 117, high_of_256: 93 },
    ]);
    let out = Memory::zeroed(gpu, bytes)?;
    fill(gpu, how, key, first, out.address(), bytes as u64)?;
    // Word n of a stream is the first of the stream that is n steps on.
    let mut words = Values::new(key.wrapping_add(first.wrapping_mul(GOLDEN)));
    let mut expected: Vec<u8> = (0..bytes.div_ceil(8)).flat_map(|_| words.word().to_le_bytes()).collect();
    expected.truncate(bytes);
    match how {
        Fill::Uniform { mean, std } => {
            let scale = std * (12.0_f32.sqrt() / 65536.0);
            for pair in expected.as_chunks_mut::<2>().0 {
                let value = mean + (f32::from(i16::from_le_bytes(*pair)) + 0.5) * scale;
                *pair = bf16::from_f32(value).to_le_bytes();
            }
        }
        Fill::Codes => {}
        Fill::Exponents { low, high_of_256 } => {
            for byte in &mut expected {
                *byte = low + u8::from(*byte < high_of_256);
            }
        }
    }
    row("fill", format!("{bytes} bytes, {how:?}"), unequal(&out.values::<u8>()?, &expected), 0.0)
}

fn check_quantize(gpu: &dyn Gpu, values: &mut Values) -> Row {
    let blocks = values.between(1, 150);
    let mut weights = values.bf16s(blocks * BLOCK, 0.1);
    // A block of zeros, and one with a single large weight.
    weights[..BLOCK].fill(bf16::ZERO);
    weights[BLOCK * (blocks - 1)] = bf16::from_f32(-17.0);
    let weights_at = Memory::of(gpu, &weights)?;
    let (codes, scales) = (Memory::zeroed(gpu, blocks * BLOCK)?, Memory::zeroed(gpu, blocks * 2)?);
    let args = QuantizeArgs {
        weights: weights_at.address(),
        codes: codes.address(),
        scales: scales.address(),
        blocks: blocks as u64,
    };
    quantize_q8(gpu, &args)?;
    let (mut expected, mut expected_scales) = (Vec::new(), Vec::new());
    for block in weights.chunks(BLOCK) {
        let largest = block.iter().fold(0.0_f32, |largest, w| largest.max(w.to_f32().abs()));
        let scale = f16::from_f32(largest / 127.0);
        let inverse = if scale > f16::ZERO { 1.0 / scale.to_f32() } else { 0.0 };
        let code = |w: &bf16| (w.to_f32() * inverse).clamp(-127.0, 127.0).round_ties_even() as i8;
        expected.extend(block.iter().map(code));
        expected_scales.push(scale);
    }
    let wrong =
        unequal(&codes.values::<i8>()?, &expected) + unequal(&scales.values::<f16>()?, &expected_scales);
    row("quantize_q8", format!("{blocks} blocks"), wrong, 0.0)
}

fn check_expand(gpu: &dyn Gpu, values: &mut Values) -> Row {
    let blocks = values.between(1, 150);
    let codes = values.bytes(blocks * BLOCK / 2);
    let scales: Vec<u8> = (0..blocks).map(|_| values.one_of(&[0, 1, 2, 110, 118, 127, 128])).collect();
    let (codes_at, scales_at) = (Memory::of(gpu, &codes)?, Memory::of(gpu, &scales)?);
    let out = Memory::zeroed(gpu, blocks * BLOCK * 2)?;
    let args = ExpandArgs {
        codes: codes_at.address(),
        scales: scales_at.address(),
        out: out.address(),
        blocks: blocks as u64,
    };
    expand_mxfp4(gpu, &args)?;
    let value = |i: usize| {
        let code = codes[i / 2] >> (4 * (i % 2)) & 15;
        let scale = 2.0_f64.powi(i32::from(scales[i / BLOCK]) - 127);
        bf16::from_f64(f64::from(FP4_VALUES[code as usize]) * scale)
    };
    let expected: Vec<bf16> = (0..blocks * BLOCK).map(value).collect();
    row("expand_mxfp4", format!("{blocks} blocks"), unequal(&out.values::<bf16>()?, &expected), 0.0)
}

fn check_copy(gpu: &dyn Gpu, values: &mut Values) -> Row {
    let count = values.between(1, 40_000);
    let bytes: Vec<u8> = (0..16 * count).map(|i| (i * 7 + i / 256 + i / 65_536) as u8).collect();
    let (from, to) = (Memory::of(gpu, &bytes)?, Memory::zeroed(gpu, bytes.len())?);
    copy_bandwidth(gpu, &CopyArgs { from: from.address(), to: to.address(), count: count as u64 })?;
    row("copy_bandwidth", format!("{count}"), unequal(&to.values::<u8>()?, &bytes), 0.0)
}

fn check_read(gpu: &dyn Gpu, values: &mut Values) -> Row {
    let count = values.between(1, 40_000);
    let words: Vec<u32> = (0..4 * count as u32).map(|i| i.wrapping_mul(0x9e37_79b9)).collect();
    let (from, out) = (Memory::of(gpu, &words)?, Memory::zeroed(gpu, 4 * read_blocks(gpu))?);
    read_bandwidth(gpu, &ReadArgs { from: from.address(), out: out.address(), count: count as u64 })?;
    let sum = |words: &[u32]| words.iter().fold(0_u32, |sum, word| sum.wrapping_add(*word));
    let found = [sum(&out.values::<u32>()?)];
    row("read_bandwidth", format!("{count}"), unequal(&found, &[sum(&words)]), 0.0)
}

fn check_peak(gpu: &dyn Gpu, values: &mut Values) -> Row {
    let rounds = values.between(1, 5);
    let warps = 8 * peak_blocks(gpu) as usize;
    let out = Memory::zeroed(gpu, warps * 4)?;
    matrix_peak(gpu, &PeakArgs { out: out.address(), rounds: rounds as u32, reserved: 0 })?;
    let expected = vec![(8 * 4 * 16 * rounds) as f32; warps];
    row("matrix_peak", format!("{rounds} rounds"), unequal(&out.values::<f32>()?, &expected), 0.0)
}
