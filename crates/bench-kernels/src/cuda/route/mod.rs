//! Routing of tokens to experts: the choice and its weights, slots sorted by expert, the weighted sum of
//! rows; and all experts instead of the chosen ones.
//!
//! The products before and between are `tiles` and `panel`. A slot is `token · slots_per_token + choice`.

mod check;

use bytemuck::NoUninit;

use super::{BF16, Gpu, GpuError};

pub use check::check;

/// The choice is given; only its weights are made.
pub const FORCED: u32 = 64;

const MAX_EXPERTS: u32 = 128;
const MAX_SLOTS_PER_TOKEN: u32 = 8;
/// Threads that sort: enough to hide the latency of reads, and at least one for each expert.
const SORT_THREADS: u32 = 1024;

/// The experts of each token, by descending logit (ties to the lower expert, NaN last), and the softmax of
/// their logits.
#[derive(Debug, Clone, Copy, Default, NoUninit)]
#[repr(C)]
pub struct RouteArgs {
    /// f32 `[tokens, experts]`.
    pub logits: u64,
    /// u32 `[tokens, slots_per_token]`, written; with [`FORCED`] read, all below `experts`.
    pub choice: u64,
    /// f32 `[tokens, slots_per_token]`, written.
    pub weights: u64,
    /// u64 `[3]`, or 0: what [`SortArgs::counters`] says, for one token, which need not be sorted.
    pub counters: u64,
    pub tokens: u32,
    pub experts: u32,
    pub slots_per_token: u32,
    /// [`BF16`]: weights are rounded; [`FORCED`].
    pub flags: u32,
}

/// All experts of each token: the chosen ones first, in their order and with their weights, then the others in
/// ascending order with weight 0. An expert that was chosen twice stands once, with both weights.
#[derive(Debug, Clone, Copy, Default, NoUninit)]
#[repr(C)]
pub struct AllExpertsArgs {
    /// u32 `[tokens, slots_per_token]`, all below `experts`.
    pub choice: u64,
    /// f32 `[tokens, slots_per_token]`.
    pub weights: u64,
    /// u32 `[tokens, experts]`, written.
    pub all: u64,
    /// f32 `[tokens, experts]`, written.
    pub all_weights: u64,
    pub tokens: u32,
    pub experts: u32,
    pub slots_per_token: u32,
    pub unused: u32,
}

/// Slots by expert, ascending within each.
#[derive(Debug, Clone, Copy, Default, NoUninit)]
#[repr(C)]
pub struct SortArgs {
    /// u32 `[slots]`, all below `experts`.
    pub choice: u64,
    /// u32 `[slots]`, written.
    pub order: u64,
    /// u32 `[experts + 1]`, written: where each expert's slots start in `order`.
    pub offsets: u64,
    /// u64 `[3]`, or 0: to which one layer's pass, its distinct experts and its tokens are added.
    pub counters: u64,
    pub slots: u32,
    pub experts: u32,
    pub tokens: u32,
    pub unused: u32,
}

/// `out[t] = residual[t] + Σ_j weights[t, j] · rows[t · slots_per_token + j]`, one choice after the other. A weight of
/// 0 adds nothing, whatever its row holds.
#[derive(Debug, Clone, Copy, Default, NoUninit)]
#[repr(C)]
pub struct CombineArgs {
    /// f32 `[slots, cols]`, by slot.
    pub rows: u64,
    /// f32 `[tokens, slots_per_token]`.
    pub weights: u64,
    /// f32 `[tokens, cols]`, or 0.
    pub residual: u64,
    /// f32 `[tokens, cols]`; may be the residual.
    pub out: u64,
    pub tokens: u32,
    pub cols: u32,
    pub slots_per_token: u32,
    /// [`BF16`]: products, their sum and its sum with the residual are rounded.
    pub flags: u32,
}

fn require(what: &'static str, checks: &[(bool, &str)]) -> Result<(), GpuError> {
    let wrong = |problem: &str| Err(GpuError::Shape { what, problem: problem.to_owned() });
    checks.iter().find(|(fits, _)| !fits).map_or(Ok(()), |(_, problem)| wrong(problem))
}

/// Chooses experts for each token and weighs them.
///
/// # Errors
/// More than 128 experts or 8 for a token, a device that fails.
pub fn route(gpu: &dyn Gpu, args: &RouteArgs) -> Result<(), GpuError> {
    let k = args.slots_per_token;
    require(
        "routing",
        &[
            ((1..=MAX_EXPERTS).contains(&args.experts), "experts are not 1 to 128"),
            ((1..=MAX_SLOTS_PER_TOKEN.min(args.experts)).contains(&k), "experts for a token are not 1 to 8"),
            (args.flags & !(BF16 | FORCED) == 0, "a flag that routing does not have"),
        ],
    )?;
    if args.tokens == 0 {
        return Ok(());
    }
    let warps = args.tokens.min(4);
    gpu.launch("route", [args.tokens.div_ceil(warps), 1, 1], 32 * warps, 0, bytemuck::bytes_of(args))
}

/// Makes slots of all experts from those of the chosen ones.
///
/// # Errors
/// More than 128 experts or 8 for a token, a device that fails.
pub fn all_experts(gpu: &dyn Gpu, args: &AllExpertsArgs) -> Result<(), GpuError> {
    let k = args.slots_per_token;
    require(
        "slots of all experts",
        &[
            ((1..=MAX_EXPERTS).contains(&args.experts), "experts are not 1 to 128"),
            ((1..=MAX_SLOTS_PER_TOKEN.min(args.experts)).contains(&k), "experts for a token are not 1 to 8"),
        ],
    )?;
    if args.tokens == 0 {
        return Ok(());
    }
    let threads = args.experts.next_multiple_of(32);
    gpu.launch("all_experts", [args.tokens, 1, 1], threads, 0, bytemuck::bytes_of(args))
}

/// Sorts slots by expert.
///
/// # Errors
/// More than 128 experts, a device that fails.
pub fn sort_slots(gpu: &dyn Gpu, args: &SortArgs) -> Result<(), GpuError> {
    require("sorting of slots", &[((1..=MAX_EXPERTS).contains(&args.experts), "experts are not 1 to 128")])?;
    let threads = args.slots.clamp(MAX_EXPERTS, SORT_THREADS).next_multiple_of(32);
    gpu.launch("sort_slots", [1, 1, 1], threads, 0, bytemuck::bytes_of(args))
}

/// Adds up experts' rows.
///
/// # Errors
/// Columns that are not a multiple of 4, more than 128 experts for a token, a device that fails.
pub fn combine(gpu: &dyn Gpu, args: &CombineArgs) -> Result<(), GpuError> {
    let aligned = [args.rows, args.residual, args.out];
    require(
        "sum of experts",
        &[
            (args.cols > 0 && args.cols.is_multiple_of(4), "columns are not a multiple of 4"),
            ((1..=MAX_EXPERTS).contains(&args.slots_per_token), "experts for a token are not 1 to 128"),
            (aligned.iter().all(|a| a.is_multiple_of(16)), "an address that is not aligned to 16 bytes"),
        ],
    )?;
    if args.tokens == 0 {
        return Ok(());
    }
    let threads = (args.cols / 4).next_multiple_of(32).min(256);
    let grid = [args.tokens, (args.cols / 4).div_ceil(threads), 1];
    gpu.launch("combine", grid, threads, 0, bytemuck::bytes_of(args))
}
