//! The clock around each kernel: what is prepared stands outside of it, what a model would do in a call inside.

use std::hint::black_box;
use std::time::Instant;

use half::bf16;

use super::cases::{Case, Format, Kind, Routing, Side};
use super::data::{WeightSet, floats, route};
use super::{Experts, KernelTime, Shapes, SuiteOptions};
use crate::attention::{
    Attention, AttentionScratch, KvBlock, KvDtype, KvPage, Products, Qkv, Span, attention,
};
use crate::exec::Exec;
use crate::host::AllocError;
use crate::norm::{WeightOrder, rms_norm_into};
use crate::packed::PackedFormat;
use crate::product::{Group, Input, RowMap, grouped_product, product};
use crate::rows::{IntPrecision, IntRows};
use crate::{activation, route as routing};

const MIN_REPEATS: usize = 3;
const MAX_REPEATS: usize = 100_000;
/// gpt-oss.
const EPS: f32 = 1e-5;

/// Why a kernel has no time.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failed {
    #[error(transparent)]
    Kernel(#[from] crate::Error),
    #[error(transparent)]
    Memory(#[from] AllocError),
}

/// Measures one case.
pub(super) fn case(
    exec: &Exec,
    shapes: &Shapes,
    case: &Case,
    options: &SuiteOptions,
) -> Result<KernelTime, Failed> {
    let clock = Clock { seconds: options.seconds_per_kernel };
    let (seconds, streamed_bytes) = match case.kind {
        Kind::Product { format, side, rows, cols, m } => {
            let (codes, scales) = format.bytes(rows, cols);
            let count = options.set_bytes.div_ceil((codes + scales).max(1)).max(1);
            let set = WeightSet::new(format, rows, cols, count)?;
            (one_matrix(exec, &clock, &set, side, (m, rows, cols))?, set.bytes())
        }
        Kind::Moe { side, tokens, routing } => moe(exec, &clock, shapes, side, tokens, routing)?,
        Kind::Attention { queries, keys, window } => {
            attend(exec, &clock, shapes, options.set_bytes, (queries, keys, window))?
        }
        Kind::Quantize { precision, m } => (quantize(exec, &clock, shapes, precision, m)?, 0),
        Kind::Norm { m } => (norm(exec, &clock, shapes, m)?, 0),
        Kind::Swiglu { m } => (swiglu(exec, &clock, shapes, m)?, 0),
        Kind::Router { m } => (router(exec, &clock, shapes, m)?, 0),
    };
    Ok(KernelTime {
        name: case.name.clone(),
        seconds,
        streamed_bytes: streamed_bytes as u64,
        operations: case.operations(shapes),
        arithmetic: case.arithmetic(),
    })
}

/// Repeats for a given time.
struct Clock {
    seconds: f64,
}

impl Clock {
    /// Seconds of each call, shortest first; one call before them is not timed.
    fn repeat(&self, mut call: impl FnMut(usize) -> crate::Result<()>) -> Result<Vec<f64>, Failed> {
        call(0)?;
        let begin = Instant::now();
        let mut seconds = Vec::new();
        while seconds.len() < MIN_REPEATS
            || (seconds.len() < MAX_REPEATS && begin.elapsed().as_secs_f64() < self.seconds)
        {
            let start = Instant::now();
            call(seconds.len() + 1)?;
            // Clocks have steps; a call has not taken no time.
            seconds.push(start.elapsed().as_secs_f64().max(1e-9));
        }
        seconds.sort_by(f64::total_cmp);
        Ok(seconds)
    }
}

/// Rows in the form that a product takes.
enum Prepared {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
    Int(IntRows),
}

impl Prepared {
    fn new(exec: &Exec, side: Side, m: usize, cols: usize) -> Result<Self, Failed> {
        let x = floats(m * cols);
        Ok(match side {
            Side::F32 => Self::F32(x),
            Side::Bf16 => Self::Bf16(x.into_iter().map(bf16::from_f32).collect()),
            Side::Int(precision) => {
                let mut rows = IntRows::default();
                rows.quantize(exec, &x, m, cols, precision)?;
                Self::Int(rows)
            }
        })
    }

    fn input(&self) -> Input<'_> {
        match self {
            Self::F32(x) => Input::F32(x),
            Self::Bf16(x) => Input::Bf16(x),
            Self::Int(x) => Input::Int(x),
        }
    }
}

fn one_matrix(
    exec: &Exec,
    clock: &Clock,
    set: &WeightSet,
    side: Side,
    (m, rows, cols): (usize, usize, usize),
) -> Result<Vec<f64>, Failed> {
    let x = Prepared::new(exec, side, m, cols)?;
    let mut out = vec![0.0; m * rows];
    clock.repeat(|i| {
        product(exec, x.input(), m, set.get(i)?, None, &mut out)?;
        black_box(&mut out);
        Ok(())
    })
}

/// Calls take several routings in turn, so that one token's experts are not those of the token before.
fn moe(
    exec: &Exec,
    clock: &Clock,
    shapes: &Shapes,
    side: Side,
    tokens: usize,
    routing: Routing,
) -> Result<(Vec<f64>, usize), Failed> {
    let experts = shapes.experts.unwrap_or(Experts { count: 1, per_token: 1 });
    let rows = 2 * shapes.intermediate;
    let set = WeightSet::new(Format::Packed(PackedFormat::Mxfp4), rows, shapes.hidden, experts.count)?;
    let weights = (0..experts.count).map(|e| set.get(e)).collect::<crate::Result<Vec<_>>>()?;
    let x = Prepared::new(exec, side, tokens, shapes.hidden)?;
    let mut out = vec![0.0; tokens * experts.per_token * rows];
    let routings: Vec<_> = (0..16).map(|seed| route(experts, tokens, routing, seed)).collect();
    let touched: usize = routings.iter().map(Vec::len).sum();
    let seconds = clock.repeat(|i| {
        let routed = &routings[i % routings.len()];
        let group = |g: usize| Group {
            w: weights[routed[g].expert],
            bias: None,
            rows: RowMap::These(&routed[g].tokens),
            first: routed[g].first,
        };
        grouped_product(exec, x.input(), routed.len(), group, &mut out)?;
        black_box(&mut out);
        Ok(())
    })?;
    Ok((seconds, set.bytes() * touched / routings.len()))
}

/// Caches of several sequences in turn.
fn attend(
    exec: &Exec,
    clock: &Clock,
    shapes: &Shapes,
    set_bytes: usize,
    (queries, keys, window): (usize, usize, Option<usize>),
) -> Result<(Vec<f64>, usize), Failed> {
    let Shapes { heads, kv_heads, head_dim, .. } = *shapes;
    let past = keys - queries;
    // Keys that no query sees would not be in a sliding layer's cache.
    let kept = past.min(window.unwrap_or(past)).max(1);
    let width = kv_heads * head_dim;
    let page_bytes = 4 * kept * width;
    let count = set_bytes.div_ceil(page_bytes);
    let (k, v) = (floats(queries * width), floats(queries * width));
    let mut pages = Vec::with_capacity(count);
    for _ in 0..count {
        let mut page = KvPage::new(KvDtype::Bf16, kv_heads, head_dim, kept)?;
        (0..kept).for_each(|row| page.write(row, &k[..width], &v[..width]));
        pages.push(page);
    }
    let block =
        |page| KvBlock { page, first_row: 0, first_position: past - kept.min(past), len: kept.min(past) };
    let caches: Vec<Vec<KvBlock<'_>>> = pages.iter().map(|page| vec![block(page)]).collect();
    let q = floats(queries * heads * head_dim);
    let mut out = vec![0.0; q.len()];
    let sinks = vec![0.0; heads];
    let scale = 1.0 / (head_dim as f32).sqrt();
    let products = Products::Bits16;
    let args = Attention { heads, kv_heads, head_dim, scale, window, sinks: Some(&sinks), products };
    let mut scratch = AttentionScratch::default();
    let seconds = clock.repeat(|i| {
        let span = Span { sequence: i % count, start: 0, len: queries, past };
        attention(exec, &args, &Qkv { q: &q, k: &k, v: &v }, &[span], &caches, &mut out, &mut scratch)?;
        black_box(&mut out);
        Ok(())
    })?;
    Ok((seconds, page_bytes))
}

fn quantize(
    exec: &Exec,
    clock: &Clock,
    shapes: &Shapes,
    precision: IntPrecision,
    m: usize,
) -> Result<Vec<f64>, Failed> {
    let x = floats(m * shapes.hidden);
    let mut rows = IntRows::default();
    clock.repeat(|_| {
        rows.quantize(exec, &x, m, shapes.hidden, precision)?;
        black_box(&mut rows);
        Ok(())
    })
}

fn norm(exec: &Exec, clock: &Clock, shapes: &Shapes, m: usize) -> Result<Vec<f64>, Failed> {
    let (x, weight) = (floats(m * shapes.hidden), floats(shapes.hidden));
    let mut out = vec![0.0; x.len()];
    clock.repeat(|_| {
        rms_norm_into(exec, &x, &weight, EPS, WeightOrder::BeforeRounding, false, &mut out)?;
        black_box(&mut out);
        Ok(())
    })
}

/// The clamped one of gpt-oss, or that of dense models.
fn swiglu(exec: &Exec, clock: &Clock, shapes: &Shapes, m: usize) -> Result<Vec<f64>, Failed> {
    let rows = m * shapes.experts.map_or(1, |e| e.per_token);
    let x = floats(rows * 2 * shapes.intermediate);
    let mut out = vec![0.0; rows * shapes.intermediate];
    let (gate, up) = x.split_at(out.len());
    clock.repeat(|_| {
        if shapes.experts.is_some() {
            activation::clamped_swiglu(exec, &x, 1.702, 7.0, &mut out, false)?;
        } else {
            activation::swiglu(exec, gate, up, &mut out, false)?;
        }
        black_box(&mut out);
        Ok(())
    })
}

/// The router's product, its choice, the weights of the chosen, and the lists by expert.
fn router(exec: &Exec, clock: &Clock, shapes: &Shapes, m: usize) -> Result<Vec<f64>, Failed> {
    let Experts { count, per_token } = shapes.experts.unwrap_or(Experts { count: 1, per_token: 1 });
    let set = WeightSet::new(Format::Bf16, count, shapes.hidden, 1)?;
    let x = floats(m * shapes.hidden);
    let mut logits = vec![0.0; m * count];
    let (mut chosen, mut weights, mut routed) = (Vec::new(), Vec::new(), routing::Routed::default());
    clock.repeat(|i| {
        product(exec, Input::F32(&x), m, set.get(i)?, None, &mut logits)?;
        routing::top_k_into(&logits, count, per_token, &mut chosen)?;
        routing::chosen_softmax_into(&logits, count, &chosen, per_token, &mut weights)?;
        routing::by_expert_into(&chosen, count, &mut routed)?;
        black_box((&weights, &routed));
        Ok(())
    })
}
