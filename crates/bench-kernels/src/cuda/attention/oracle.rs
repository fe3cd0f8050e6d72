//! Attention from its definition, in f64, and a cache on the host: what checks compare with.

use std::ops::Range;

use half::bf16;

use super::{AttentionArgs, CACHE_BF16};
use crate::cuda::{BF16, ROUND_FIRST};

/// Rounds to bf16, by way of f32 as the engine does.
fn round(x: f64) -> f64 {
    f64::from(bf16::from_f32(x as f32).to_f32())
}

/// Values that the host knows of a model's layer.
#[derive(Debug, Clone)]
pub(super) struct Layer {
    pub(super) q_norm: Option<Vec<f32>>,
    pub(super) k_norm: Option<Vec<f32>>,
    /// `[positions][head_dim / 2]`.
    pub(super) cos: Vec<f32>,
    pub(super) sin: Vec<f32>,
    pub(super) sinks: Option<Vec<f32>>,
}

/// q, k and v of a token, `[heads][head_dim]`.
#[derive(Debug, Clone)]
pub(super) struct Token {
    pub(super) q: Vec<f64>,
    pub(super) k: Vec<f64>,
    pub(super) v: Vec<f64>,
}

impl Layer {
    /// A row of the product at its position, normalized and rotated.
    pub(super) fn token(&self, args: &AttentionArgs, row: &[f32], position: usize) -> Token {
        let d = args.head_dim as usize;
        let (q, rest) = row.split_at(args.heads as usize * d);
        let (k, rest) = rest.split_at(args.kv_heads as usize * d);
        let turned = |x: &[f32], norm: &Option<Vec<f32>>| {
            x.chunks_exact(d).flat_map(|x| self.turned(args, x, norm.as_deref(), position)).collect()
        };
        Token {
            q: turned(q, &self.q_norm),
            k: turned(k, &self.k_norm),
            v: rest[..k.len()].iter().map(|x| f64::from(*x)).collect(),
        }
    }

    fn turned(&self, args: &AttentionArgs, x: &[f32], norm: Option<&[f32]>, position: usize) -> Vec<f64> {
        let settle = |x: f64| if args.has(BF16) { round(x) } else { x };
        let first = |x: f64| if args.has(BF16) && args.has(ROUND_FIRST) { round(x) } else { x };
        let mut x: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
        if let Some(weight) = norm {
            let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
            let inverse = 1.0 / (mean + f64::from(args.eps)).sqrt();
            for (x, w) in x.iter_mut().zip(weight) {
                *x = settle(first(*x * inverse) * f64::from(*w));
            }
        }
        let half = x.len() / 2;
        for i in 0..half {
            let (cos, sin) =
                (f64::from(self.cos[position * half + i]), f64::from(self.sin[position * half + i]));
            let (a, b) = (x[i], x[i + half]);
            x[i] = settle(settle(a * cos) - settle(b * sin));
            x[i + half] = settle(settle(b * cos) + settle(a * sin));
        }
        x
    }

    /// The output of a query's head; `key` gives key and value of a position.
    pub(super) fn attend<'a>(
        &self,
        args: &AttentionArgs,
        head: usize,
        q: &[f64],
        seen: Range<usize>,
        key: impl Fn(usize) -> (&'a [f64], &'a [f64]),
    ) -> Vec<f64> {
        let scores: Vec<f64> = seen
            .clone()
            .map(|p| f64::from(args.scale) * q.iter().zip(key(p).0).map(|(q, k)| q * k).sum::<f64>())
            .collect();
        let sink = self.sinks.as_ref().map(|sinks| f64::from(sinks[head]));
        let max = scores.iter().copied().chain(sink).fold(f64::NEG_INFINITY, f64::max);
        let mut total = sink.map_or(0.0, |sink| (sink - max).exp());
        let mut out = vec![0.0; q.len()];
        for (score, position) in scores.iter().zip(seen) {
            let p = (score - max).exp();
            total += p;
            for (out, v) in out.iter_mut().zip(key(position).1) {
                *out += p * v;
            }
        }
        out.iter().map(|o| o / total).collect()
    }
}

/// Positions that the query at `position` sees.
pub(super) fn seen(args: &AttentionArgs, position: usize) -> Range<usize> {
    let first = if args.window == 0 { 0 } else { (position + 1).saturating_sub(args.window as usize) };
    first..position + 1
}

/// A layer's pages of one sequence; what was never written is NaN.
#[derive(Debug, Clone)]
pub(super) struct HostCache {
    pub(super) first_rows: usize,
    pub(super) page_rows: usize,
    window: usize,
    width: usize,
    head_dim: usize,
    bf16: bool,
    /// Rows, and then keys and values `[kv_heads][rows][head_dim]`.
    pages: Vec<(usize, Vec<f32>)>,
}

impl HostCache {
    /// Pages for `tokens` tokens.
    pub(super) fn new(args: &AttentionArgs, first_rows: usize, page_rows: usize, tokens: usize) -> Self {
        let (window, head_dim) = (args.window as usize, args.head_dim as usize);
        let width = args.kv_heads as usize * head_dim;
        let slots = if window == 0 { tokens } else { tokens.min(window) };
        let first_rows = if window == 0 { first_rows } else { first_rows.min(window) };
        let mut rows = vec![first_rows];
        while rows.iter().sum::<usize>() < slots {
            let left = if window == 0 { page_rows } else { window - rows.iter().sum::<usize>() };
            rows.push(page_rows.min(left));
        }
        let pages = rows.iter().map(|rows| (*rows, vec![f32::NAN; 2 * rows * width])).collect();
        Self { first_rows, page_rows, window, width, head_dim, bf16: args.has(CACHE_BF16), pages }
    }

    /// Page and index of each element of a position's key; its value is half a page behind.
    fn elements(&self, position: usize) -> (usize, impl Iterator<Item = usize> + use<>) {
        let slot = if self.window == 0 { position } else { position % self.window };
        let (page, row) = match slot.checked_sub(self.first_rows) {
            None => (0, slot),
            Some(beyond) => (1 + beyond / self.page_rows, beyond % self.page_rows),
        };
        let (rows, d) = (self.pages[page].0, self.head_dim);
        (page, (0..self.width).map(move |i| (i / d * rows + row) * d + i % d))
    }

    pub(super) fn write(&mut self, position: usize, k: &[f64], v: &[f64]) {
        let (page, elements) = self.elements(position);
        let page = &mut self.pages[page].1;
        let behind = page.len() / 2;
        let rounded = |x: f64| if self.bf16 { round(x) as f32 } else { x as f32 };
        for ((at, k), v) in elements.zip(k).zip(v) {
            page[at] = rounded(*k);
            page[at + behind] = rounded(*v);
        }
    }

    /// The key and value that stand there.
    pub(super) fn read(&self, position: usize) -> (Vec<f64>, Vec<f64>) {
        let (page, elements) = self.elements(position);
        let page = &self.pages[page].1;
        let behind = page.len() / 2;
        elements.map(|at| (f64::from(page[at]), f64::from(page[at + behind]))).unzip()
    }

    /// The pages as they stand on the device.
    pub(super) fn bytes(&self) -> Vec<Vec<u8>> {
        let page = |values: &Vec<f32>| -> Vec<u8> {
            if self.bf16 {
                values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect()
            } else {
                bytemuck::cast_slice(values).to_vec()
            }
        };
        self.pages.iter().map(|(_, values)| page(values)).collect()
    }

    /// The same cache with what the device holds.
    pub(super) fn with_bytes(&self, pages: &[Vec<u8>]) -> Self {
        let values = |bytes: &Vec<u8>| -> Vec<f32> {
            if self.bf16 {
                bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
            } else {
                bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
            }
        };
        let pages = self.pages.iter().zip(pages).map(|((rows, _), bytes)| (*rows, values(bytes))).collect();
        Self { pages, ..self.clone() }
    }

    /// The largest difference to what the device holds; infinite where only one side is a number.
    pub(super) fn difference(&self, pages: &[Vec<u8>]) -> f64 {
        let found = self.with_bytes(pages);
        let mut largest = 0.0_f64;
        for ((_, expected), (_, found)) in self.pages.iter().zip(&found.pages) {
            for (expected, found) in expected.iter().zip(found) {
                largest = largest.max(difference(f64::from(*expected), f64::from(*found)));
            }
        }
        largest
    }
}

/// Infinite where only one side is a number.
pub(super) fn difference(expected: f64, found: f64) -> f64 {
    match (expected.is_nan(), found.is_nan()) {
        (true, true) => 0.0,
        (false, false) => (expected - found).abs(),
        _ => f64::INFINITY,
    }
}
