//! Which kernels are measured, at which sizes, what each must read and compute, and how it is launched.

use std::num::NonZeroU32;

use super::attention::{self, AttentionArgs, CACHE_BF16, DecodeWorkspace};
use super::data::{Sequences, Weights, copies, even_routing, planes, reals, weight_bytes};
use super::panel::{self, PanelArgs};
use super::tiles::{Format, GATHER, PAIR, Products, SCATTER, TilesArgs, tiles_by};
use super::vectors::{RowDraw, SelectArgs, argmax, cut_bytes, sample, scratch_bytes};
use super::{Clock, GpuShapes, KernelTime, LEAST_REPEATS, Options, repeat};
use crate::cuda::check::Values;
use crate::cuda::{BF16, CLAMPED, Gpu, GpuError, Memory};
use crate::draw::Draw;
use crate::suite::Experts;

/// Constants of gpt-oss.
const ALPHA: f32 = 1.702;
const LIMIT: f32 = 7.0;
/// Launches of a repeat where nothing has to be taken in turn.
const LAUNCHES: usize = 16;
/// Rows of a matrix from which on a prompt's product can fill a device by tiles of Hopper's.
const MANY_ROWS: usize = 64;
/// Tokens of a batch: of a small one, and of one that is no longer a few columns.
const BATCHES: [usize; 2] = [8, 64];

fn format_name(format: Format) -> &'static str {
    match format {
        Format::Bf16 => "bf16",
        Format::Q8 => "q8_0",
        Format::Mxfp4 => "mxfp4",
    }
}

/// A matrix of a layer, `[rows, cols]`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Matrix {
    what: &'static str,
    format: Format,
    rows: usize,
    cols: usize,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Product {
        matrix: Matrix,
        tokens: usize,
    },
    /// Gate and up of a dense MLP, `[rows, cols]` each.
    Pair {
        matrix: Matrix,
        tokens: usize,
    },
    /// Gate and up of all chosen experts, of one token by itself, of more sorted by expert.
    ExpertsUp {
        matrix: Matrix,
        experts: Experts,
        tokens: usize,
    },
    ExpertsDown {
        matrix: Matrix,
        experts: Experts,
        tokens: usize,
    },
    /// The next token of a sequence.
    Decode {
        keys: usize,
        window: usize,
    },
    /// A prompt on its own.
    Prefill {
        tokens: usize,
        window: usize,
    },
    /// The next tokens of a batch: the most likely ones, or drawn ones.
    Choice {
        how: How,
        rows: usize,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    Greedy,
    Temperature,
    TopK,
    TopP,
    Both,
}

impl How {
    const ALL: [Self; 5] = [Self::Greedy, Self::Temperature, Self::TopK, Self::TopP, Self::Both];

    /// As servers have them by default.
    fn draw(self) -> Draw {
        Draw {
            uniform: 0.5,
            temperature: if self == Self::Greedy { 0.0 } else { 1.0 },
            top_k: NonZeroU32::new(if matches!(self, Self::TopK | Self::Both) { 50 } else { 0 }),
            top_p: if matches!(self, Self::TopP | Self::Both) { 0.9 } else { 1.0 },
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Greedy => "argmax",
            Self::Temperature => "sample/temperature",
            Self::TopK => "sample/top_k=50",
            Self::TopP => "sample/top_p=0.9",
            Self::Both => "sample/top_k=50,top_p=0.9",
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Case {
    kind: Kind,
    shapes: GpuShapes,
    /// By which instructions, where both are measured; else as the device chose.
    products: Option<Products>,
}

/// All cases of a model.
pub(super) fn all(shapes: &GpuShapes, options: &Options) -> Vec<Case> {
    let prompt = options.prompt_tokens;
    let s = &shapes.layers;
    let (heads, qkv) = (s.heads * s.head_dim, (s.heads + 2 * s.kv_heads) * s.head_dim);
    let mut kinds = Vec::new();
    let matrix = |what, format, rows, cols| Matrix { what, format, rows, cols };
    for tokens in [1, BATCHES[0], BATCHES[1], prompt] {
        for format in [Format::Bf16, Format::Q8] {
            let mut add = |what, rows, cols| {
                kinds.push(Kind::Product { matrix: matrix(what, format, rows, cols), tokens });
            };
            add("qkv", qkv, s.hidden);
            add("attn_out", s.hidden, heads);
            // A prompt is unembedded at its end only.
            if tokens < prompt {
                add("unembed", shapes.vocab, s.hidden);
            }
            if s.experts.is_none() {
                add("mlp_down", s.hidden, s.intermediate);
                let matrix = matrix("mlp_up", format, s.intermediate, s.hidden);
                kinds.push(Kind::Pair { matrix, tokens });
            }
        }
        if let Some(experts) = s.experts {
            let router = matrix("router", Format::Bf16, experts.count, s.hidden);
            kinds.push(Kind::Product { matrix: router, tokens });
            let up = matrix("experts_up", Format::Mxfp4, 2 * s.intermediate, s.hidden);
            kinds.push(Kind::ExpertsUp { matrix: up, experts, tokens });
            let down = matrix("experts_down", Format::Mxfp4, s.hidden, s.intermediate);
            kinds.push(Kind::ExpertsDown { matrix: down, experts, tokens });
        }
    }
    let windows = || s.window.into_iter().chain([0]);
    for window in windows() {
        kinds.extend(options.keys.map(|keys| Kind::Decode { keys, window }));
        kinds.push(Kind::Prefill { tokens: prompt, window });
    }
    let choice = |rows| How::ALL.map(|how| Kind::Choice { how, rows });
    kinds.extend([1, BATCHES[1]].into_iter().flat_map(choice));
    let ways = |kind: &Kind| -> &[Option<Products>] {
        let many = kind.products().is_some_and(|(m, tokens)| tokens == prompt && m.rows >= MANY_ROWS);
        if many && options.wgmma { &[Some(Products::Mma), Some(Products::Wgmma)] } else { &[None] }
    };
    let case = |kind: Kind| ways(&kind).iter().map(move |p| Case { kind, shapes: *shapes, products: *p });
    kinds.into_iter().flat_map(case).collect()
}

impl Kind {
    /// The matrix of a product, and how many rows of activations it multiplies.
    fn products(&self) -> Option<(&Matrix, usize)> {
        match self {
            Self::Product { matrix, tokens }
            | Self::Pair { matrix, tokens }
            | Self::ExpertsUp { matrix, tokens, .. }
            | Self::ExpertsDown { matrix, tokens, .. } => Some((matrix, *tokens)),
            Self::Decode { .. } | Self::Prefill { .. } | Self::Choice { .. } => None,
        }
    }
}

/// What is launched `launches` times in one repeat.
type Work<'w> = &'w mut dyn FnMut() -> Result<(), GpuError>;

impl Case {
    pub(super) fn name(&self) -> String {
        let way = self.products.map_or_else(String::new, |products| format!("/{}", products.name()));
        let of =
            |m: &Matrix, tokens: usize| format!("{}/{}/tokens={tokens}{way}", m.what, format_name(m.format));
        match &self.kind {
            Kind::Product { matrix, tokens }
            | Kind::Pair { matrix, tokens }
            | Kind::ExpertsUp { matrix, tokens, .. }
            | Kind::ExpertsDown { matrix, tokens, .. } => of(matrix, *tokens),
            Kind::Decode { keys, window: 0 } => format!("attention/decode/keys={keys}"),
            Kind::Decode { keys, window } => format!("attention/decode/keys={keys}/window={window}"),
            Kind::Prefill { tokens, window: 0 } => format!("attention/prefill/tokens={tokens}"),
            Kind::Prefill { tokens, window } => format!("attention/prefill/tokens={tokens}/window={window}"),
            Kind::Choice { how, rows } => format!("{}/vocab={}/rows={rows}", how.name(), self.shapes.vocab),
        }
    }

    fn shape(&self) -> String {
        let s = &self.shapes.layers;
        match &self.kind {
            Kind::Product { matrix: m, .. } => format!("{} x {}", m.rows, m.cols),
            Kind::Pair { matrix: m, .. } => format!("2 x {} x {}", m.rows, m.cols),
            Kind::ExpertsUp { matrix: m, experts, .. } | Kind::ExpertsDown { matrix: m, experts, .. } => {
                format!("{} of {} x {} x {}", experts.per_token, experts.count, m.rows, m.cols)
            }
            Kind::Decode { .. } | Kind::Prefill { .. } => {
                format!("{} on {} heads of {}", s.heads, s.kv_heads, s.head_dim)
            }
            Kind::Choice { rows, .. } => format!("{rows} x {}", self.shapes.vocab),
        }
    }

    /// Bytes that one launch must read, and its products and sums.
    fn cost(&self) -> (u64, u64) {
        let s = &self.shapes.layers;
        let bytes = |m: &Matrix, matrices: usize| {
            let (codes, scales) = weight_bytes(m.format, m.rows * m.cols);
            matrices * (codes + scales)
        };
        let products = |m: &Matrix, times: usize| 2 * m.rows * m.cols * times;
        let key_bytes = 2 * s.kv_heads * s.head_dim * 2;
        let (bytes, operations) = match &self.kind {
            Kind::Product { matrix, tokens } => (bytes(matrix, 1), products(matrix, *tokens)),
            Kind::Pair { matrix, tokens } => (bytes(matrix, 2), products(matrix, 2 * tokens)),
            Kind::ExpertsUp { matrix, experts, tokens } | Kind::ExpertsDown { matrix, experts, tokens } => {
                let slots = tokens * experts.per_token;
                (bytes(matrix, slots.min(experts.count)), products(matrix, slots))
            }
            Kind::Decode { keys, window } => {
                let keys = if *window == 0 { *keys } else { *keys.min(window) };
                (keys * key_bytes, 4 * s.heads * s.head_dim * keys)
            }
            Kind::Prefill { tokens, window } => {
                // Query i sees i + 1 keys, or as many as its window has.
                let seen: usize = (1..=*tokens).map(|n| if *window == 0 { n } else { n.min(*window) }).sum();
                (tokens * key_bytes, 4 * s.heads * s.head_dim * seen)
            }
            // Each logit once, however often a draw looks at it.
            Kind::Choice { rows, .. } => (4 * rows * self.shapes.vocab, rows * self.shapes.vocab),
        };
        (bytes as u64, operations as u64)
    }

    pub(super) fn measure(
        &self,
        gpu: &dyn Gpu,
        clock: &dyn Clock,
        options: &Options,
    ) -> Result<KernelTime, GpuError> {
        let (bytes, operations) = self.cost();
        let mut time = KernelTime {
            name: self.name(),
            shape: self.shape(),
            seconds: Vec::new(),
            launches: 0,
            bytes,
            operations,
        };
        let mut run = |launches: usize, work: Work<'_>| {
            let seconds = repeat(clock, launches, LEAST_REPEATS, options.seconds_per_kernel, work)?;
            (time.launches, time.seconds) = (launches, seconds);
            Ok(())
        };
        let set = options.set_bytes;
        let products = self.products.unwrap_or_else(|| gpu.products());
        match self.kind {
            Kind::Product { matrix, tokens } if tokens <= 8 => {
                product_few(gpu, &matrix, tokens, set, &mut run)
            }
            Kind::Product { matrix, tokens } => product_many(gpu, products, &matrix, tokens, set, &mut run),
            Kind::Pair { matrix, tokens } => pair(gpu, products, &matrix, tokens, set, &mut run),
            Kind::ExpertsUp { matrix, experts, tokens: 1 } => {
                experts_one(gpu, &matrix, experts, true, set, &mut run)
            }
            Kind::ExpertsDown { matrix, experts, tokens: 1 } => {
                experts_one(gpu, &matrix, experts, false, set, &mut run)
            }
            Kind::ExpertsUp { matrix, experts, tokens } => {
                experts_many(gpu, products, &matrix, experts, tokens, true, &mut run)
            }
            Kind::ExpertsDown { matrix, experts, tokens } => {
                experts_many(gpu, products, &matrix, experts, tokens, false, &mut run)
            }
            Kind::Decode { keys, window } => self.decode(gpu, keys, window, set, &mut run),
            Kind::Prefill { tokens, window } => self.prefill(gpu, tokens, window, &mut run),
            Kind::Choice { how, rows } => self.choice(gpu, how, rows, set, &mut run),
        }?;
        Ok(time)
    }

    fn attention(&self, window: usize) -> AttentionArgs {
        let s = &self.shapes.layers;
        AttentionArgs {
            row_stride: ((s.heads + 2 * s.kv_heads) * s.head_dim) as u32,
            heads: s.heads as u32,
            kv_heads: s.kv_heads as u32,
            head_dim: s.head_dim as u32,
            window: window as u32,
            span_count: 1,
            splits: 1,
            max_len: 1,
            flags: BF16 | CACHE_BF16,
            eps: 1e-6,
            scale: 1.0 / (s.head_dim as f32).sqrt(),
            ..AttentionArgs::default()
        }
    }

    fn key_bytes(&self) -> usize {
        2 * self.shapes.layers.kv_heads * self.shapes.layers.head_dim * 2
    }

    fn decode(
        &self,
        gpu: &dyn Gpu,
        keys: usize,
        window: usize,
        set: usize,
        run: Run<'_>,
    ) -> Result<(), GpuError> {
        let args = self.attention(window);
        let rows = if window == 0 { keys } else { keys.min(window) };
        // The new token's own key is one of them.
        let sequences = Sequences::new(gpu, (keys - 1, 1), rows, self.key_bytes(), set)?;
        let qkv = reals(gpu, args.row_stride as usize)?;
        let angles = reals(gpu, keys * args.head_dim as usize / 2)?;
        let out = Memory::zeroed(gpu, 4 * (args.heads * args.head_dim) as usize)?;
        let args =
            AttentionArgs { splits: attention::decode_splits(&args, keys, gpu.multiprocessors()), ..args };
        let needed = DecodeWorkspace::of(&args);
        let partials = Memory::zeroed(gpu, needed.partial_bytes)?;
        let counters = Memory::zeroed(gpu, needed.counter_bytes)?;
        let args = AttentionArgs {
            qkv: qkv.address(),
            cos: angles.address(),
            sin: angles.address(),
            caches: sequences.caches(),
            out: out.address(),
            partials: partials.address(),
            counters: counters.address(),
            ..args
        };
        run(sequences.count(), &mut || {
            (0..sequences.count())
                .try_for_each(|i| attention::decode(gpu, &AttentionArgs { spans: sequences.span(i), ..args }))
        })
    }

    fn prefill(&self, gpu: &dyn Gpu, tokens: usize, window: usize, run: Run<'_>) -> Result<(), GpuError> {
        let args = self.attention(window);
        let rows = if window == 0 { tokens } else { window };
        let sequences = Sequences::new(gpu, (0, tokens), rows, self.key_bytes(), 0)?;
        let qkv = reals(gpu, tokens * args.row_stride as usize)?;
        let copies = Memory::zeroed(gpu, 2 * tokens * args.row_stride as usize)?;
        let angles = reals(gpu, tokens * args.head_dim as usize / 2)?;
        let out = Memory::zeroed(gpu, 4 * tokens * (args.heads * args.head_dim) as usize)?;
        let args = AttentionArgs {
            qkv: qkv.address(),
            copies: copies.address(),
            cos: angles.address(),
            sin: angles.address(),
            spans: sequences.span(0),
            caches: sequences.caches(),
            out: out.address(),
            max_len: tokens as u32,
            ..args
        };
        attention::prepare(gpu, &args)?;
        run(LAUNCHES, &mut || (0..LAUNCHES).try_for_each(|_| attention::prefill(gpu, &args)))
    }

    /// Of logits that lie in the device's cache no longer, if a set does not fit there.
    fn choice(&self, gpu: &dyn Gpu, how: How, rows: usize, set: usize, run: Run<'_>) -> Result<(), GpuError> {
        let vocab = self.shapes.vocab;
        let bytes = 4 * rows * vocab;
        let sets = copies(bytes, set).min(LAUNCHES);
        let logits = Memory::zeroed(gpu, sets * bytes)?;
        let values = Values::new(6).reals(rows * vocab, 12.0);
        for set in 0..sets {
            gpu.write(logits.address() + (set * bytes) as u64, bytemuck::cast_slice(&values))?;
        }
        let draws = vec![RowDraw::new(&how.draw(), vocab as u32); rows];
        let draws_at = Memory::of(gpu, &draws)?;
        let (ids, best) = (Memory::zeroed(gpu, 4 * rows)?, Memory::zeroed(gpu, 4 * rows)?);
        let (scratch, cuts) =
            (Memory::zeroed(gpu, scratch_bytes(rows))?, Memory::zeroed(gpu, cut_bytes(rows))?);
        let args = SelectArgs {
            logits: logits.address(),
            suppressed: 0,
            ids: ids.address(),
            best: best.address(),
            non_finite: 0,
            draws: draws_at.address(),
            cuts: cuts.address(),
            scratch: scratch.address(),
            rows: rows as u32,
            vocab: vocab as u32,
            stride: vocab as u32,
            suppressed_count: 0,
            pass: 0,
            reserved: 0,
        };
        run(LAUNCHES, &mut || {
            (0..LAUNCHES).try_for_each(|i| {
                let args = SelectArgs { logits: args.logits + (i % sets * bytes) as u64, ..args };
                argmax(gpu, &args)?;
                if how == How::Greedy { Ok(()) } else { sample(gpu, &args, &draws) }
            })
        })
    }
}

/// Takes the time of work that launches so often.
type Run<'r> = &'r mut dyn FnMut(usize, Work<'_>) -> Result<(), GpuError>;

fn product_few(gpu: &dyn Gpu, m: &Matrix, tokens: usize, set: usize, run: Run<'_>) -> Result<(), GpuError> {
    let weights = Weights::new(gpu, m.format, m.rows * m.cols, set)?;
    let (x, out) = (reals(gpu, tokens * m.cols)?, Memory::zeroed(gpu, 4 * tokens * m.rows)?);
    let args = panel_args(m, &x, &out, tokens);
    run(weights.count, &mut || {
        (0..weights.count).try_for_each(|i| {
            let (codes, scales) = weights.at(i);
            let args = PanelArgs { weights: codes, scales, ..args };
            panel::panel(gpu, m.format, 1, &args)
        })
    })
}

/// Rows and columns of a product of `tokens` values in f32, without addresses of weights.
fn panel_args(m: &Matrix, x: &Memory<'_>, out: &Memory<'_>, tokens: usize) -> PanelArgs {
    PanelArgs {
        x: x.address(),
        out: out.address(),
        rows: m.rows as u32,
        cols: m.cols as u32,
        tokens: tokens as u32,
        flags: BF16,
        ..PanelArgs::default()
    }
}

/// Rows and columns of a product of `tokens` in planes, without addresses of weights.
fn tiles_args(m: &Matrix, x: &Memory<'_>, out: &Memory<'_>, tokens: usize) -> TilesArgs {
    TilesArgs {
        x: x.address(),
        out: out.address(),
        tokens: tokens as u32,
        x_rows: tokens as u32,
        rows: m.rows as u32,
        cols: m.cols as u32,
        out_rows: tokens as u32,
        alpha: ALPHA,
        limit: LIMIT,
        flags: BF16,
        ..TilesArgs::default()
    }
}

fn product_many(
    gpu: &dyn Gpu,
    products: Products,
    m: &Matrix,
    tokens: usize,
    set: usize,
    run: Run<'_>,
) -> Result<(), GpuError> {
    let weights = Weights::new(gpu, m.format, m.rows * m.cols, set)?;
    let (x, out) = (planes(gpu, tokens * m.cols)?, Memory::zeroed(gpu, 4 * tokens * m.rows)?);
    let args = tiles_args(m, &x, &out, tokens);
    run(weights.count, &mut || {
        (0..weights.count).try_for_each(|i| {
            let (codes, scales) = weights.at(i);
            let args = TilesArgs { weights: codes, scales, ..args };
            tiles_by(gpu, products, m.format, 1, &args)
        })
    })
}

/// Gate and up of neighbouring copies.
fn pair(
    gpu: &dyn Gpu,
    products: Products,
    m: &Matrix,
    tokens: usize,
    set: usize,
    run: Run<'_>,
) -> Result<(), GpuError> {
    let weights = Weights::new(gpu, m.format, m.rows * m.cols, set)?;
    let launches = weights.count.div_ceil(2);
    let (x, out) = (reals(gpu, tokens * m.cols)?, Memory::zeroed(gpu, 4 * tokens * m.rows)?);
    let x_planes = planes(gpu, tokens * m.cols)?;
    let few = panel_args(m, &x, &out, tokens);
    let many = tiles_args(m, &x_planes, &out, tokens);
    let many = TilesArgs { out: 0, out_planes: out.address(), flags: BF16 | PAIR, ..many };
    run(launches, &mut || {
        (0..launches).try_for_each(|i| {
            let ((weights, scales), (up_weights, up_scales)) = (weights.at(2 * i), weights.at(2 * i + 1));
            if tokens <= 8 {
                let args = PanelArgs { weights, scales, up_weights, up_scales, ..few };
                return panel::panel_pair(gpu, m.format, 1, &args);
            }
            let args = TilesArgs { weights, scales, up_weights, up_scales, ..many };
            tiles_by(gpu, products, m.format, 1, &args)
        })
    })
}

/// The experts of one token; each launch has others than the one before.
fn experts_one(
    gpu: &dyn Gpu,
    m: &Matrix,
    experts: Experts,
    up: bool,
    set: usize,
    run: Run<'_>,
) -> Result<(), GpuError> {
    let Experts { count, per_token: slots } = experts;
    let weights = Weights::new(gpu, m.format, count * m.rows * m.cols, set)?;
    let choices: Vec<u32> = (0..count as u32).collect();
    let choices = Memory::of(gpu, &choices)?;
    let choice_weights = Memory::of(gpu, &vec![1.0 / slots as f32; slots])?;
    let bias = Memory::zeroed(gpu, 4 * count * m.rows)?;
    let (x, out) = (reals(gpu, slots * m.cols)?, Memory::zeroed(gpu, 4 * slots * m.rows)?);
    let groups = (count / slots).max(1);
    let args = PanelArgs {
        x: x.address(),
        out: out.address(),
        bias: bias.address(),
        choice_weights: choice_weights.address(),
        rows: m.rows as u32,
        cols: m.cols as u32,
        tokens: 1,
        slots: slots as u32,
        alpha: ALPHA,
        limit: LIMIT,
        flags: if up { BF16 | CLAMPED } else { BF16 },
        ..PanelArgs::default()
    };
    let launches = groups * weights.count;
    run(launches, &mut || {
        (0..launches).try_for_each(|i| {
            let (codes, scales) = weights.at(i / groups);
            let choice = choices.address() + (4 * slots * (i % groups)) as u64;
            let args = PanelArgs { weights: codes, scales, choice, ..args };
            let launch = if up { panel::panel_pair } else { panel::panel_experts_down };
            launch(gpu, m.format, 1, &args)
        })
    })
}

/// Tokens that go to all experts alike. All experts together are larger than a cache.
fn experts_many(
    gpu: &dyn Gpu,
    products: Products,
    m: &Matrix,
    experts: Experts,
    tokens: usize,
    up: bool,
    run: Run<'_>,
) -> Result<(), GpuError> {
    let Experts { count, per_token: slots } = experts;
    let weights = Weights::new(gpu, m.format, count * m.rows * m.cols, 0)?;
    let (order, offsets) = even_routing(tokens, slots, count);
    let (order, offsets) = (Memory::of(gpu, &order)?, Memory::of(gpu, &offsets)?);
    let bias = Memory::zeroed(gpu, 4 * count * m.rows)?;
    let x_rows = if up { tokens } else { tokens * slots };
    let x = planes(gpu, x_rows * m.cols)?;
    let out = Memory::zeroed(gpu, 4 * tokens * slots * m.rows)?;
    let (weights, scales) = weights.at(0);
    let args = TilesArgs {
        weights,
        scales,
        bias: bias.address(),
        order: order.address(),
        offsets: offsets.address(),
        x_rows: x_rows as u32,
        experts: count as u32,
        slots_per_token: slots as u32,
        out_rows: (tokens * slots) as u32,
        ..tiles_args(m, &x, &out, tokens)
    };
    let args = if up {
        TilesArgs { out: 0, out_planes: out.address(), flags: BF16 | PAIR | CLAMPED | GATHER, ..args }
    } else {
        TilesArgs { flags: BF16 | SCATTER, ..args }
    };
    run(LAUNCHES, &mut || (0..LAUNCHES).try_for_each(|_| tiles_by(gpu, products, m.format, 1, &args)))
}
