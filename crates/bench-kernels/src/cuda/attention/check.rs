//! Random steps on a GPU, compared with attention from its definition, the caches after the step included.

use half::bf16;

use super::oracle::{HostCache, Layer, Token, difference, seen};
use super::{AttentionArgs, CACHE_BF16, Cache, DecodeWorkspace, Span};
use crate::cuda::check::Values;
use crate::cuda::gpu::{Gpu, GpuError, Memory};
use crate::cuda::{BF16, CheckRow, ROUND_FIRST};

/// Runs `cases` random steps of each kind.
///
/// Differences are absolute; values are between -1 and 1, keys a few times that.
pub fn check(gpu: &dyn Gpu, seed: u64, cases: usize) -> Result<Vec<CheckRow>, GpuError> {
    let mut values = Values::new(seed);
    let mut rows = Vec::new();
    for _ in 0..cases {
        decode(gpu, &mut values, &mut rows)?;
        prefill(gpu, &mut values, false, &mut rows)?;
        prefill(gpu, &mut values, true, &mut rows)?;
        fill(gpu, &mut values, &mut rows)?;
    }
    Ok(rows)
}

/// A step with its sequences, on host and device.
struct World<'g> {
    args: AttentionArgs,
    layer: Layer,
    spans: Vec<Span>,
    rows: Vec<f32>,
    caches: Vec<HostCache>,
    pages: Vec<Vec<Memory<'g>>>,
    out: Memory<'g>,
    qkv: Memory<'g>,
    counters: Memory<'g>,
    /// Kept for their addresses.
    others: Vec<Memory<'g>>,
}

/// Which shapes a kind of step takes.
struct Kind {
    most_past: usize,
    most_len: usize,
    most_splits: usize,
    /// Only bf16.
    bf16: bool,
}

fn arguments(values: &mut Values, kind: &Kind) -> AttentionArgs {
    let kv_heads = values.between(1, 2) as u32;
    let heads = kv_heads * values.one_of(&[1, 2, 3, 7, 8, 11]);
    let head_dim = values.one_of(&[32, 64, 128]);
    let mut flags = values.one_of(&[0, BF16, BF16 | ROUND_FIRST]) | values.one_of(&[0, CACHE_BF16]);
    if kind.bf16 {
        flags |= BF16 | CACHE_BF16;
    }
    AttentionArgs {
        row_stride: (heads + 2 * kv_heads) * head_dim + values.one_of(&[0, 4, 64]),
        heads,
        kv_heads,
        head_dim,
        window: values.one_of(&[0, 0, 1, 17, 128, 300]),
        splits: values.between(1, kind.most_splits) as u32,
        flags,
        eps: 1e-6,
        scale: 1.0 / (head_dim as f32).sqrt(),
        ..AttentionArgs::default()
    }
}

/// Spans of rows in the order of sequences that are shuffled, with a row of no span between some.
fn spans(values: &mut Values, kind: &Kind) -> (Vec<Span>, usize) {
    let count = values.between(1, 3);
    let first = values.between(0, count - 1);
    let mut tokens = 0;
    let spans = (0..count).map(|i| {
        let start = tokens + values.between(0, 1);
        let len = values.between(1, kind.most_len);
        tokens = start + len;
        let past = values.one_of(&[0, 1, 16, kind.most_past, values.clone().between(0, kind.most_past)]);
        let sequence = ((first + i) % count) as u32;
        Span { start: start as u32, len: len as u32, past: past as u32, sequence }
    });
    let spans = spans.collect();
    (spans, tokens)
}

impl<'g> World<'g> {
    fn new(gpu: &'g dyn Gpu, values: &mut Values, kind: &Kind) -> Result<Self, GpuError> {
        let mut args = arguments(values, kind);
        let (spans, tokens) = spans(values, kind);
        args.span_count = spans.len() as u32;
        args.max_len = spans.iter().map(|s| s.len).max().unwrap_or(0) + values.between(0, 1) as u32;
        let rounded = |x: Vec<f32>| -> Vec<f32> {
            if args.has(BF16) { x.iter().map(|x| bf16::from_f32(*x).to_f32()).collect() } else { x }
        };
        let d = args.head_dim as usize;
        let positions = kind.most_past + kind.most_len;
        let normalized = values.between(0, 1) == 1;
        let mut weights = |n: usize| rounded(values.reals(n, 1.5));
        let mut layer = Layer {
            q_norm: normalized.then(|| weights(d)),
            k_norm: normalized.then(|| weights(d)),
            cos: weights(positions * d / 2),
            sin: weights(positions * d / 2),
            sinks: None,
        };
        if values.between(0, 1) == 1 {
            layer.sinks = Some(values.reals(args.heads as usize, 4.0));
        }
        // Of no span, and behind a row: no number.
        let mut rows = vec![f32::NAN; tokens * args.row_stride as usize];
        for span in &spans {
            for row in rows
                .chunks_exact_mut(args.row_stride as usize)
                .skip(span.start as usize)
                .take(span.len as usize)
            {
                let width = (args.heads + 2 * args.kv_heads) as usize * d;
                row[..width].copy_from_slice(&rounded(values.reals(width, 1.0)));
                row[..args.heads as usize * d].iter_mut().for_each(|q| *q *= 2.0);
            }
        }
        let mut world = Self {
            args,
            layer,
            rows,
            caches: Vec::new(),
            pages: Vec::new(),
            out: Memory::of(gpu, &vec![f32::NAN; tokens * args.heads as usize * d])?,
            qkv: Memory::zeroed(gpu, 16)?,
            counters: Memory::zeroed(gpu, 16)?,
            others: Vec::new(),
            spans,
        };
        world.fill_caches(gpu, values)?;
        world.upload(gpu)?;
        Ok(world)
    }

    /// Caches with what the sequences have seen.
    fn fill_caches(&mut self, gpu: &'g dyn Gpu, values: &mut Values) -> Result<(), GpuError> {
        let width = (self.args.kv_heads * self.args.head_dim) as usize;
        for sequence in 0..self.spans.len() {
            let Some(span) = self.spans.iter().find(|s| s.sequence as usize == sequence) else { continue };
            let tokens = (span.past + span.len) as usize;
            let first = values.one_of(&[1, 5, 64, 200, tokens]);
            let mut cache = HostCache::new(&self.args, first, values.one_of(&[7, 16, 256]), tokens);
            let oldest = match self.args.window {
                0 => 0,
                window => span.past.saturating_sub(window),
            };
            for position in oldest..span.past {
                let mut row = || -> Vec<f64> { (0..width).map(|_| f64::from(values.real())).collect() };
                cache.write(position as usize, &row(), &row());
            }
            let pages: Result<Vec<_>, _> = cache.bytes().iter().map(|page| Memory::of(gpu, page)).collect();
            self.pages.push(pages?);
            self.caches.push(cache);
        }
        Ok(())
    }

    fn upload(&mut self, gpu: &'g dyn Gpu) -> Result<(), GpuError> {
        let mut caches = Vec::new();
        for (cache, pages) in self.caches.iter().zip(&self.pages) {
            let table: Vec<u64> = pages.iter().map(Memory::address).collect();
            let table = Memory::of(gpu, &table)?;
            let (first_rows, page_rows) = (cache.first_rows as u32, cache.page_rows as u32);
            caches.push(Cache { pages: table.address(), first_rows, page_rows });
            self.others.push(table);
        }
        let others = &mut self.others;
        let mut keep = |memory: Memory<'g>| {
            others.push(memory);
            others.last().map_or(0, Memory::address)
        };
        self.args.caches = keep(Memory::of(gpu, &caches)?);
        self.args.spans = keep(Memory::of(gpu, &self.spans)?);
        for (values, address) in [
            (self.layer.q_norm.as_ref(), &mut self.args.q_norm),
            (self.layer.k_norm.as_ref(), &mut self.args.k_norm),
            (Some(&self.layer.cos), &mut self.args.cos),
            (Some(&self.layer.sin), &mut self.args.sin),
            (self.layer.sinks.as_ref(), &mut self.args.sinks),
        ] {
            if let Some(values) = values {
                *address = keep(Memory::of(gpu, values)?);
            }
        }
        let workspace = DecodeWorkspace::of(&self.args);
        self.args.partials = keep(Memory::of(gpu, &vec![0xff_u8; workspace.partial_bytes])?);
        self.counters = Memory::zeroed(gpu, workspace.counter_bytes)?;
        self.args.counters = self.counters.address();
        self.qkv = Memory::of(gpu, &self.rows)?;
        (self.args.qkv, self.args.out) = (self.qkv.address(), self.out.address());
        Ok(())
    }

    fn tokens(&self, span: &Span) -> Vec<Token> {
        let row = |i: u32| {
            let stride = self.args.row_stride as usize;
            let at = (span.start + i) as usize * stride;
            self.layer.token(&self.args, &self.rows[at..at + stride], (span.past + i) as usize)
        };
        (0..span.len).map(row).collect()
    }

    /// The output of all rows, NaN where there is none, and what the step appends to the caches.
    fn expected(&mut self) -> Vec<f64> {
        let (args, d) = (self.args, self.args.head_dim as usize);
        let width = args.heads as usize * d;
        let mut out = vec![f64::NAN; self.rows.len() / args.row_stride as usize * width];
        for span in self.spans.clone() {
            let (past, tokens) = (span.past as usize, self.tokens(&span));
            let cache = &mut self.caches[span.sequence as usize];
            let oldest = if args.window == 0 { 0 } else { past.saturating_sub(args.window as usize) };
            let old: Vec<_> = (oldest..past).map(|position| cache.read(position)).collect();
            for (i, token) in tokens.iter().enumerate() {
                for head in 0..args.heads as usize {
                    let kv = head / args.group() as usize * d;
                    let key = |position: usize| {
                        if let Some(new) = position.checked_sub(past) {
                            (&tokens[new].k[kv..kv + d], &tokens[new].v[kv..kv + d])
                        } else {
                            let (k, v) = &old[position - oldest];
                            (&k[kv..kv + d], &v[kv..kv + d])
                        }
                    };
                    let q = &token.q[head * d..(head + 1) * d];
                    let o = self.layer.attend(&args, head, q, seen(&args, past + i), key);
                    let at = (span.start as usize + i) * width + head * d;
                    out[at..at + d].copy_from_slice(&o);
                }
            }
            for (i, token) in tokens.iter().enumerate() {
                cache.write(past + i, &token.k, &token.v);
            }
        }
        out
    }

    /// Compares output and caches with what is expected.
    fn compare(&mut self, kernel: &str, rows: &mut Vec<CheckRow>) -> Result<(), GpuError> {
        let expected = self.expected();
        let found = self.out.values::<f32>()?;
        let pairs = expected.iter().zip(&found);
        let largest = pairs.map(|(e, f)| difference(*e, f64::from(*f))).fold(0.0, f64::max);
        let args = self.args;
        let kv = if args.has(CACHE_BF16) { "bf16" } else { "f32" };
        let case = format!(
            "flags {}, cache {kv}, {} / {} heads of {}, window {}, norm {}, sinks {}, splits {}, spans {:?}",
            args.flags & !CACHE_BF16,
            args.heads,
            args.kv_heads,
            args.head_dim,
            args.window,
            self.layer.q_norm.is_some(),
            self.layer.sinks.is_some(),
            args.splits,
            self.spans.iter().map(|s| (s.past, s.len)).collect::<Vec<_>>(),
        );
        // Half a unit of bf16 for the result and one for weights; with a norm q and k may be rounded the
        // other way.
        let normalized = self.layer.q_norm.is_some();
        let allowed = match (args.has(BF16), normalized) {
            (false, _) => 2e-5,
            (true, false) => 6e-3,
            (true, true) => 1.5e-2,
        };
        rows.push(CheckRow { kernel: kernel.to_owned(), case: case.clone(), difference: largest, allowed });
        let mut largest = 0.0_f64;
        for (cache, pages) in self.caches.iter().zip(&self.pages) {
            let pages: Result<Vec<Vec<u8>>, _> = pages.iter().map(Memory::values::<u8>).collect();
            largest = largest.max(cache.difference(&pages?));
        }
        // Keys reach 16: a unit of bf16 where a norm or f32 arithmetic may round the other way.
        let allowed = match (args.has(BF16), args.has(CACHE_BF16), normalized) {
            (true, _, true) | (false, true, _) => 1.0 / 16.0,
            (true, _, false) => 0.0,
            (false, false, _) => 1e-5,
        };
        rows.push(CheckRow {
            kernel: format!("{kernel}, cache after it"),
            case,
            difference: largest,
            allowed,
        });
        Ok(())
    }
}

fn decode(gpu: &dyn Gpu, values: &mut Values, rows: &mut Vec<CheckRow>) -> Result<(), GpuError> {
    let kind = Kind { most_past: 700, most_len: 1, most_splits: 6, bf16: false };
    let mut world = World::new(gpu, values, &kind)?;
    super::decode(gpu, &world.args)?;
    world.compare("attention_decode", rows)?;
    let left = world.counters.values::<u32>()?.iter().filter(|n| **n != 0).count();
    let case = format!("splits {}", world.args.splits);
    rows.push(CheckRow {
        kernel: "attention_decode, counters after it".into(),
        case,
        difference: left as f64,
        allowed: 0.0,
    });
    Ok(())
}

/// Prepare, attention and append of several tokens; with `mma` in bf16 on tensor cores.
fn prefill(gpu: &dyn Gpu, values: &mut Values, mma: bool, rows: &mut Vec<CheckRow>) -> Result<(), GpuError> {
    let kind = Kind { most_past: 200, most_len: 40, most_splits: 1, bf16: mma };
    let mut world = World::new(gpu, values, &kind)?;
    let width = (world.args.heads + 2 * world.args.kv_heads) * world.args.head_dim;
    let tokens = world.rows.len() / world.args.row_stride as usize;
    let copies = Memory::of(gpu, &vec![0xffff_u16; tokens * width as usize])?;
    if mma {
        world.args.copies = copies.address();
    }
    super::prepare(gpu, &world.args)?;
    super::prefill(gpu, &world.args)?;
    super::append(gpu, &world.args)?;
    world.compare(if mma { "attention_prefill_mma" } else { "attention_prefill_exact" }, rows)
}

/// Made-up keys and values: at their places, within 1 of zero, their mean near zero and their mean square
/// near 1/3.
fn fill(gpu: &dyn Gpu, values: &mut Values, rows: &mut Vec<CheckRow>) -> Result<(), GpuError> {
    let kind = Kind { most_past: 40, most_len: 60, most_splits: 1, bf16: false };
    let mut world = World::new(gpu, values, &kind)?;
    world.args.seed = values.word() as u32;
    super::kv_fill(gpu, &world.args)?;
    let (mut sum, mut squares, mut count, mut wrong) = (0.0, 0.0, 0.0, 0);
    for span in &world.spans {
        let sequence = span.sequence as usize;
        let cache = &mut world.caches[sequence];
        let pages: Result<Vec<_>, _> = world.pages[sequence].iter().map(Memory::values::<u8>).collect();
        let pages = pages?;
        let skip = if world.args.window == 0 { 0 } else { span.len.saturating_sub(world.args.window) };
        let found = cache.with_bytes(&pages);
        for position in span.past + skip..span.past + span.len {
            let (k, v) = found.read(position as usize);
            for x in k.iter().chain(&v) {
                wrong += usize::from(x.is_nan() || x.abs() > 1.0);
                (sum, squares, count) = (sum + x, squares + x * x, count + 1.0);
            }
            cache.write(position as usize, &k, &v);
        }
        // The others are as before.
        wrong += usize::from(cache.difference(&pages) > 0.0);
    }
    let case = format!("window {}, flags {}", world.args.window, world.args.flags);
    let mut row = |what: &str, difference: f64, allowed: f64| {
        rows.push(CheckRow { kernel: format!("kv_fill, {what}"), case: case.clone(), difference, allowed });
    };
    row("places", wrong as f64, 0.0);
    // Five standard deviations.
    row("mean", f64::abs(sum / count), 5.0 * (1.0 / 3.0 / count).sqrt());
    row("mean square", f64::abs(squares / count - 1.0 / 3.0), 5.0 * (4.0 / 45.0 / count).sqrt() + 2e-3);
    Ok(())
}
