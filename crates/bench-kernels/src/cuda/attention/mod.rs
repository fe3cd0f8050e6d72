//! Attention over caches in pages and rings on a GPU: launches of `cuda/attention.cu`.
//!
//! A step of one token per sequence is one launch, [`decode`]. A step of several tokens is [`prepare`] (norm,
//! rope), [`prefill`] and [`append`]. Lengths and positions are read from device memory; the caller sees to
//! it that pages are there for all that a step appends.

mod check;
mod oracle;

use bytemuck::NoUninit;

pub use self::check::check;
use super::gpu::{Gpu, GpuError};
use super::{BF16, ROUND_FIRST};

/// Flag of [`AttentionArgs`]: the cache holds bf16, not f32.
pub const CACHE_BF16: u32 = 8;

/// Heads of a block of [`decode`], and the most splits.
const DECODE_HEADS: u32 = 8;
const MAX_SPLITS: u32 = 64;
/// Keys that one block takes alone, and the fewest of a split.
const ALONE: u32 = 256;
const LEAST: u32 = 128;

/// Rows `start..start + len` of a step belong to a sequence that has seen `past` tokens. On the device;
/// kernels read `start`, `len` and `sequence` before earlier kernels are done, so that only the host may
/// write those.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Span {
    pub start: u32,
    pub len: u32,
    pub past: u32,
    /// Which [`Cache`].
    pub sequence: u32,
}

// SAFETY: four u32 in C order have no padding, and any bits are a value.
unsafe impl NoUninit for Span {}

/// Where a layer's keys and values of a sequence stand; written by the host only, with at least one page.
///
/// A page holds keys `[kv_heads][rows][head_dim]` and then values likewise. A position stands in slot
/// `position`, in a layer with a window in slot `position % window`; slots go through the pages. The first
/// page has `first_rows` rows, others `page_rows`; with a window, all pages together have no more rows than
/// it, which cuts the last one.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct Cache {
    /// Address of the pages' addresses (u64).
    pub pages: u64,
    pub first_rows: u32,
    pub page_rows: u32,
}

// SAFETY: a u64 and two u32 in C order have no padding.
unsafe impl NoUninit for Cache {}

/// The argument of every kernel here. Addresses are of device memory, aligned to 16 bytes; 0 where "or 0" is
/// said.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct AttentionArgs {
    /// f32 rows `[tokens][row_stride]`: q `[heads][head_dim]`, k and v `[kv_heads][head_dim]`, as the product
    /// gives them. [`prepare`] without `copies` changes q and k in place.
    pub qkv: u64,
    /// bf16 rows `[tokens][(heads + 2 kv_heads) head_dim]` that [`prepare`] writes instead, or 0.
    pub copies: u64,
    /// f32 `[head_dim]`: weights of the norms of each head of q and of k, both or 0.
    pub q_norm: u64,
    pub k_norm: u64,
    /// f32 `[positions][head_dim / 2]`.
    pub cos: u64,
    pub sin: u64,
    /// f32 `[heads]`, or 0.
    pub sinks: u64,
    /// [`Span`] `[span_count]`.
    pub spans: u64,
    /// [`Cache`] of each sequence.
    pub caches: u64,
    /// f32 `[tokens][heads][head_dim]`.
    pub out: u64,
    /// Workspace of [`decode`] with more than one split, see [`DecodeWorkspace`].
    pub partials: u64,
    pub counters: u64,
    pub row_stride: u32,
    pub heads: u32,
    pub kv_heads: u32,
    /// 32, 64 or 128.
    pub head_dim: u32,
    /// Key j is visible to query i iff i - window < j <= i; 0 is no window.
    pub window: u32,
    /// Most blocks for the keys of a sequence and kv head, 1 to 64: [`decode_splits`].
    pub splits: u32,
    pub span_count: u32,
    /// No span is longer.
    pub max_len: u32,
    /// `BF16`, `ROUND_FIRST`, [`CACHE_BF16`].
    pub flags: u32,
    /// Of the norms.
    pub eps: f32,
    /// Factor on q · k.
    pub scale: f32,
    /// Of [`kv_fill`].
    pub seed: u32,
}

// SAFETY: twelve u64 and then twelve words of 32 bits in C order have no padding.
unsafe impl NoUninit for AttentionArgs {}

fn wrong(what: &'static str, problem: impl Into<String>) -> GpuError {
    GpuError::Shape { what, problem: problem.into() }
}

impl AttentionArgs {
    /// Heads that share a kv head.
    fn group(&self) -> u32 {
        self.heads / self.kv_heads.max(1)
    }

    fn validate(&self) -> Result<(), GpuError> {
        let Self { heads, kv_heads, head_dim, row_stride, .. } = *self;
        if kv_heads == 0 || heads == 0 || heads % kv_heads != 0 {
            return Err(wrong("attention", format!("{heads} heads over {kv_heads} kv heads")));
        }
        if ![32, 64, 128].contains(&head_dim) {
            return Err(wrong("attention", format!("head_dim is {head_dim}, expected 32, 64 or 128")));
        }
        if row_stride < (heads + 2 * kv_heads) * head_dim {
            return Err(wrong("attention", format!("rows of {row_stride} elements do not hold q, k and v")));
        }
        if self.span_count == 0 || self.span_count > 65_535 || kv_heads > 4096 {
            return Err(wrong("attention", format!("{} spans, expected 1 to 65,535", self.span_count)));
        }
        if self.flags & !(BF16 | ROUND_FIRST | CACHE_BF16) != 0 {
            return Err(wrong("attention", format!("flags {:#x} are not known", self.flags)));
        }
        if (self.q_norm == 0) != (self.k_norm == 0) {
            return Err(wrong("attention", "a norm of only one of q and k"));
        }
        Ok(())
    }

    fn validate_rows(&self, what: &'static str) -> Result<(), GpuError> {
        if self.max_len == 0 {
            return Err(wrong(what, "max_len is 0, expected the length of the longest span"));
        }
        Ok(())
    }

    fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    /// Of the names of three, that of this `head_dim`.
    fn of_width(&self, names: [&'static str; 3]) -> &'static str {
        names[match self.head_dim {
            32 => 0,
            64 => 1,
            _ => 2,
        }]
    }

    fn launch(
        &self,
        gpu: &dyn Gpu,
        kernel: &'static str,
        grid: [u32; 3],
        shared: usize,
    ) -> Result<(), GpuError> {
        gpu.launch(kernel, grid, 256, shared, bytemuck::bytes_of(self))
    }
}

/// Memory that [`decode`] needs for sums over splits; the counters are zero before the first launch, and
/// after each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodeWorkspace {
    pub partial_bytes: usize,
    pub counter_bytes: usize,
}

impl DecodeWorkspace {
    pub fn of(args: &AttentionArgs) -> Self {
        let groups = (args.span_count * decode_rows(args)) as usize;
        let floats = groups * (args.splits * DECODE_HEADS * (args.head_dim + 2)) as usize;
        Self { partial_bytes: 4 * floats, counter_bytes: 4 * groups }
    }
}

/// Blocks of a sequence and a part of its keys.
fn decode_rows(args: &AttentionArgs) -> u32 {
    args.kv_heads * args.group().div_ceil(DECODE_HEADS)
}

/// Splits for at most `keys` keys: as many as fill the device twice, but none that has nothing to do.
pub fn decode_splits(args: &AttentionArgs, keys: usize, multiprocessors: u32) -> u32 {
    let keys = u32::try_from(keys).unwrap_or(u32::MAX);
    let keys = if args.window == 0 { keys } else { keys.min(args.window) };
    if keys <= ALONE {
        return 1;
    }
    let blocks = decode_rows(args) * args.span_count;
    (2 * multiprocessors / blocks.max(1)).min(keys.div_ceil(LEAST)).clamp(1, MAX_SPLITS)
}

/// One new token for each span: norm and rope of its q and k, append, attention. One launch; norms, angles,
/// sinks, spans but their `past`, and caches must not be written by a kernel of the same graph.
///
/// # Errors
/// Shapes that do not fit.
pub fn decode(gpu: &dyn Gpu, args: &AttentionArgs) -> Result<(), GpuError> {
    args.validate()?;
    if args.splits == 0 || args.splits > MAX_SPLITS {
        return Err(wrong("attention_decode", format!("{} splits, expected 1 to {MAX_SPLITS}", args.splits)));
    }
    if args.splits > 1 && (args.partials == 0 || args.counters == 0) {
        return Err(wrong("attention_decode", "splits without a workspace"));
    }
    let (names, planes) = match (args.has(CACHE_BF16), args.has(BF16)) {
        (true, true) => (
            ["attention_decode_bf16_p1_d32", "attention_decode_bf16_p1_d64", "attention_decode_bf16_p1_d128"],
            1,
        ),
        (true, false) => (
            ["attention_decode_bf16_p3_d32", "attention_decode_bf16_p3_d64", "attention_decode_bf16_p3_d128"],
            3,
        ),
        (false, _) => (
            ["attention_decode_f32_p3_d32", "attention_decode_f32_p3_d64", "attention_decode_f32_p3_d128"],
            3,
        ),
    };
    let d = args.head_dim as usize;
    // DecodeShared: q, o, maxima and sums, scores of the new key, 11 words; whole units of 16 bytes.
    let shared = planes * 8 * (d + 8) * 2 + 8 * 8 * (d + 4) * 4 + 2 * 8 * 8 * 4 + 8 * 4 + 48;
    args.launch(gpu, args.of_width(names), [args.splits, decode_rows(args), args.span_count], shared)
}

/// Norm and rope of the q and k of all spans' rows: in place, or into `copies`.
///
/// # Errors
/// Shapes that do not fit.
pub fn prepare(gpu: &dyn Gpu, args: &AttentionArgs) -> Result<(), GpuError> {
    args.validate()?;
    args.validate_rows("attention_prepare")?;
    let names = ["attention_prepare_d32", "attention_prepare_d64", "attention_prepare_d128"];
    args.launch(gpu, args.of_width(names), [args.max_len, args.span_count, 1], 0)
}

/// Attention of all spans' prepared rows over what the caches hold of earlier tokens, and themselves. With
/// copies, in bf16 mode and over a bf16 cache, on tensor cores.
///
/// # Errors
/// Shapes that do not fit; copies in another mode.
pub fn prefill(gpu: &dyn Gpu, args: &AttentionArgs) -> Result<(), GpuError> {
    args.validate()?;
    args.validate_rows("attention_prefill")?;
    let d = args.head_dim as usize;
    if args.copies == 0 {
        let names =
            ["attention_prefill_exact_d32", "attention_prefill_exact_d64", "attention_prefill_exact_d128"];
        // ExactShared: 32 queries, 32 keys with one element more, 32 values.
        let shared = 4 * 32 * (3 * d + 1);
        let grid = [args.max_len.div_ceil(32), args.heads, args.span_count];
        return args.launch(gpu, args.of_width(names), grid, shared);
    }
    if !args.has(BF16) || !args.has(CACHE_BF16) {
        return Err(wrong("attention_prefill", "copies, but not bf16 for both results and cache"));
    }
    let names = ["attention_prefill_mma_d32", "attention_prefill_mma_d64", "attention_prefill_mma_d128"];
    // Heads that a block takes together, of the same kv head.
    let heads = 8.min(1 << args.group().trailing_zeros());
    // Two stages of 64 keys and values.
    let shared = 2 * 2 * 64 * d * 2;
    let grid = [args.max_len.div_ceil(128 / heads), args.heads / heads, args.span_count];
    args.launch(gpu, args.of_width(names), grid, shared)
}

/// Appends the prepared keys and values of all spans' rows to the caches: after [`prefill`], since a ring
/// forgets what early queries see.
///
/// # Errors
/// Shapes that do not fit.
pub fn append(gpu: &dyn Gpu, args: &AttentionArgs) -> Result<(), GpuError> {
    args.validate()?;
    args.validate_rows("cache_append")?;
    args.launch(gpu, "cache_append", [args.max_len, args.span_count, 1], 0)
}

/// Appends keys and values near ±1, which `seed` chooses, as those of each span's `len` tokens; rows are not
/// read.
///
/// # Errors
/// Shapes that do not fit.
pub fn kv_fill(gpu: &dyn Gpu, args: &AttentionArgs) -> Result<(), GpuError> {
    args.validate()?;
    args.validate_rows("kv_fill")?;
    args.launch(gpu, "kv_fill", [args.max_len, args.span_count, 1], 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpt_oss() -> AttentionArgs {
        AttentionArgs {
            heads: 64,
            kv_heads: 8,
            head_dim: 64,
            row_stride: 80 * 64,
            span_count: 1,
            splits: 1,
            max_len: 1,
            ..AttentionArgs::default()
        }
    }

    #[test]
    fn splits_fill_the_device_and_no_more() {
        let mut args = gpt_oss();
        assert_eq!(decode_splits(&args, 256, 132), 1);
        assert_eq!(decode_splits(&args, 2048, 132), 16);
        assert_eq!(decode_splits(&args, 100_000, 132), 33);
        args.window = 128;
        assert_eq!(decode_splits(&args, 100_000, 132), 1);
        (args.window, args.span_count) = (0, 64);
        assert_eq!(decode_splits(&args, 100_000, 132), 1);
        (args.span_count, args.kv_heads) = (1, 1);
        assert_eq!(decode_splits(&args, usize::MAX, 132), 33);
    }

    #[test]
    fn workspace_has_a_part_for_each_split_of_each_block() {
        let args = AttentionArgs { splits: 3, span_count: 2, heads: 9 * 8, ..gpt_oss() };
        // Nine heads of a kv head are two blocks.
        let expected = DecodeWorkspace { partial_bytes: 2 * 16 * 3 * 8 * 66 * 4, counter_bytes: 2 * 16 * 4 };
        assert_eq!(DecodeWorkspace::of(&args), expected);
    }

    #[test]
    fn shapes_that_no_kernel_has_are_refused() {
        assert!(gpt_oss().validate().is_ok());
        for args in [
            AttentionArgs { heads: 63, ..gpt_oss() },
            AttentionArgs { head_dim: 96, ..gpt_oss() },
            AttentionArgs { row_stride: 80 * 64 - 1, ..gpt_oss() },
            AttentionArgs { span_count: 0, ..gpt_oss() },
            AttentionArgs { q_norm: 256, ..gpt_oss() },
            AttentionArgs { flags: 64, ..gpt_oss() },
        ] {
            assert!(args.validate().is_err(), "{args:?}");
        }
        assert!(AttentionArgs { max_len: 0, ..gpt_oss() }.validate_rows("x").is_err());
    }
}
