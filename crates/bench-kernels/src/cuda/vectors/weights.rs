//! Launches that make or convert weights on the device, and the two that measure its bounds.

use bytemuck::{NoUninit, Zeroable};

use super::{expect, launch, launch_flat};
use crate::cuda::gpu::{Gpu, GpuError};

/// How generated values are distributed; bit for bit those that the engine generates on the host.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fill {
    /// bf16, uniform with this mean and standard deviation.
    Uniform { mean: f32, std: f32 },
    /// MXFP4 codes, all sixteen equally likely: the random bytes themselves.
    Codes,
    /// MXFP4 exponents `low` or `low + 1`, the latter for `high_of_256` of 256 blocks.
    Exponents { low: u8, high_of_256: u8 },
}

#[derive(Debug, Clone, Copy, NoUninit, Zeroable)]
#[repr(C)]
struct FillArgs {
    out: u64,
    key: u64,
    first: u64,
    bytes: u64,
    kind: u32,
    low: u32,
    high: u32,
    mean: f32,
    scale: f32,
    reserved: u32,
}

/// Fills `bytes` at `out` (aligned to 16) with the values of the random words of stream `key` (splitmix64)
/// from number `first` on; each word makes 8 bytes.
pub fn fill(gpu: &dyn Gpu, how: Fill, key: u64, first: u64, out: u64, bytes: u64) -> Result<(), GpuError> {
    expect(out.is_multiple_of(16), "weights to generate", || {
        format!("address {out:#x} is not a multiple of 16")
    })?;
    let mut args = FillArgs { out, key, first, bytes, ..FillArgs::zeroed() };
    match how {
        Fill::Uniform { mean, std } => {
            args.mean = mean;
            // An i16 is uniform over 2^16 values: its standard deviation is 2^16 / sqrt(12).
            args.scale = std * (12.0_f32.sqrt() / 65536.0);
        }
        Fill::Codes => args.kind = 1,
        Fill::Exponents { low, high_of_256 } => {
            (args.kind, args.low, args.high) = (2, low.into(), high_of_256.into());
        }
    }
    launch_flat(gpu, "fill", bytes.div_ceil(16), &args)
}

/// `blocks` blocks of 32 bf16 weights to `codes` i8 (32 by block) and `scales` f16 (one by block): both
/// row-major, as the weights are. A scale is the largest magnitude / 127; codes are nearest under the scale
/// as stored.
#[derive(Debug, Clone, Copy, NoUninit, Zeroable)]
#[repr(C)]
pub struct QuantizeArgs {
    /// Aligned to 16.
    pub weights: u64,
    /// Aligned to 8.
    pub codes: u64,
    pub scales: u64,
    pub blocks: u64,
}

pub fn quantize_q8(gpu: &dyn Gpu, args: &QuantizeArgs) -> Result<(), GpuError> {
    launch_flat(gpu, "quantize_q8", args.blocks.saturating_mul(4), args)
}

/// `blocks` blocks of 32 MXFP4 weights (`codes` 16 bytes, `scales` one byte, at most 128) to bf16 `out`,
/// exactly.
#[derive(Debug, Clone, Copy, NoUninit, Zeroable)]
#[repr(C)]
pub struct ExpandArgs {
    /// Aligned to 4.
    pub codes: u64,
    pub scales: u64,
    /// Aligned to 16.
    pub out: u64,
    pub blocks: u64,
}

pub fn expand_mxfp4(gpu: &dyn Gpu, args: &ExpandArgs) -> Result<(), GpuError> {
    launch_flat(gpu, "expand_mxfp4", args.blocks.saturating_mul(4), args)
}

/// Copies `count` times 16 bytes.
#[derive(Debug, Clone, Copy, NoUninit, Zeroable)]
#[repr(C)]
pub struct CopyArgs {
    pub from: u64,
    pub to: u64,
    pub count: u64,
}

/// The bandwidth of a device is 32 x `count` bytes by the time of this launch.
pub fn copy_bandwidth(gpu: &dyn Gpu, args: &CopyArgs) -> Result<(), GpuError> {
    launch_flat(gpu, "copy_bandwidth", args.count, args)
}

/// Reads `count` times 16 bytes; the sum of all their words, wrapping, is added to that of `out`, u32 `[read_blocks]`.
#[derive(Debug, Clone, Copy, NoUninit, Zeroable)]
#[repr(C)]
pub struct ReadArgs {
    pub from: u64,
    pub out: u64,
    pub count: u64,
}

/// Blocks of [`read_bandwidth`] at most.
pub fn read_blocks(gpu: &dyn Gpu) -> usize {
    super::resident_blocks(gpu) as usize
}

/// The bandwidth at which a device reads is 16 x `count` bytes by the time of this launch.
pub fn read_bandwidth(gpu: &dyn Gpu, args: &ReadArgs) -> Result<(), GpuError> {
    launch_flat(gpu, "read_bandwidth", args.count, args)
}

/// Multiplies and adds ones; `out` f32 `[blocks, 8]` has what came out for each warp.
#[derive(Debug, Clone, Copy, NoUninit, Zeroable)]
#[repr(C)]
pub struct PeakArgs {
    pub out: u64,
    pub rounds: u32,
    pub reserved: u32,
}

/// Operations of one block in one round: 8 warps, 8 products 16x8x16.
pub const PEAK_FLOPS_OF_ROUND: u64 = 8 * 8 * 2 * 16 * 8 * 16;

/// Blocks of [`matrix_peak`]: two for each multiprocessor.
pub fn peak_blocks(gpu: &dyn Gpu) -> u32 {
    2 * gpu.multiprocessors()
}

/// The bf16 rate of `mma` is [`PEAK_FLOPS_OF_ROUND`] x [`peak_blocks`] x rounds by the time of this launch.
/// Hopper's `wgmma` reaches more.
pub fn matrix_peak(gpu: &dyn Gpu, args: &PeakArgs) -> Result<(), GpuError> {
    launch(gpu, "matrix_peak", [peak_blocks(gpu), 1], args)
}
