//! Kernels over rows and flat vectors (`cuda/vectors.cu`): what stands between the products, and the making of weights
//! on the device; and the choice of the next token (`cuda/choice.cu`).
//!
//! Each argument struct is what the kernel takes, byte for byte; addresses that are optional are 0 where they
//! are not wanted. Launches check shapes and nothing else: addresses are the caller's matter.

mod check;
mod rows;
mod select;
mod weights;

pub use check::check;
pub use rows::{AddArgs, EmbedArgs, GatherArgs, NormArgs, PlanesArgs};
pub use rows::{add, embed, gather_rows, rms_norm, to_planes};
pub use select::{AdvanceArgs, RowDraw, SelectArgs, Span, advance, argmax, cut_bytes, sample, scratch_bytes};
pub use weights::{
    CopyArgs, ExpandArgs, Fill, PEAK_FLOPS_OF_ROUND, PeakArgs, QuantizeArgs, ReadArgs, copy_bandwidth,
    expand_mxfp4, fill, matrix_peak, peak_blocks, quantize_q8, read_bandwidth, read_blocks,
};

use bytemuck::NoUninit;

use super::gpu::{Gpu, GpuError};

/// Threads of a block of every kernel here.
const THREADS: u32 = 256;
/// A grid's y and z may not be larger.
const MAX_GRID_Y: u32 = 65_535;

fn launch<A: NoUninit>(
    gpu: &dyn Gpu,
    kernel: &'static str,
    grid: [u32; 2],
    args: &A,
) -> Result<(), GpuError> {
    if grid.contains(&0) {
        return Ok(());
    }
    gpu.launch(kernel, [grid[0], grid[1], 1], THREADS, 0, bytemuck::bytes_of(args))
}

/// Launches a kernel whose threads take `items` in rounds: as many blocks as there is work for, but no more
/// than are resident at a time.
fn launch_flat<A: NoUninit>(
    gpu: &dyn Gpu,
    kernel: &'static str,
    items: u64,
    args: &A,
) -> Result<(), GpuError> {
    let blocks = items.div_ceil(u64::from(THREADS)).min(resident_blocks(gpu));
    launch(gpu, kernel, [blocks as u32, 1], args)
}

/// Blocks of [`THREADS`] that a device runs at a time.
fn resident_blocks(gpu: &dyn Gpu) -> u64 {
    u64::from(gpu.multiprocessors().max(1)) * 8
}

/// An error unless `holds`.
fn expect(holds: bool, what: &'static str, problem: impl FnOnce() -> String) -> Result<(), GpuError> {
    if holds { Ok(()) } else { Err(GpuError::Shape { what, problem: problem() }) }
}

fn expect_cols(what: &'static str, cols: u32) -> Result<(), GpuError> {
    expect(cols > 0 && cols.is_multiple_of(32), what, || format!("{cols} columns, expected a multiple of 32"))
}

fn expect_planes(
    what: &'static str,
    count: u32,
    address: u64,
    stride: u64,
    elements: u64,
) -> Result<(), GpuError> {
    let fits = count == 0 || (address != 0 && (count == 1 || stride >= elements) && stride.is_multiple_of(8));
    expect(count <= 3 && fits, what, || {
        format!(
            "{count} planes {stride} elements apart for {elements}, expected up to 3 apart by multiples of 8"
        )
    })
}
