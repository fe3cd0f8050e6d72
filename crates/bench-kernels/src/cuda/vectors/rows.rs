//! Launches of the kernels over rows: embedding, norm, planes, gathering, sums.

use bytemuck::{NoUninit, Zeroable};

use super::{MAX_GRID_Y, expect, expect_cols, expect_planes, launch, launch_flat};
use crate::cuda::gpu::{Gpu, GpuError};

/// Rows of a bf16 table `[vocab, cols]` by `ids` u32 `[tokens]`, to f32 `out` `[tokens, cols]`. An id outside
/// the table gives a row that is no number.
#[derive(Debug, Clone, Copy, NoUninit, Zeroable)]
#[repr(C)]
pub struct EmbedArgs {
    pub table: u64,
    pub ids: u64,
    pub out: u64,
    pub tokens: u32,
    pub cols: u32,
    pub vocab: u32,
    pub reserved: u32,
}

/// # Errors
/// Columns that are not a multiple of 32; a launch that fails. So for all launches here.
pub fn embed(gpu: &dyn Gpu, args: &EmbedArgs) -> Result<(), GpuError> {
    expect_cols("embedding", args.cols)?;
    launch(gpu, "embed", [args.tokens, args.cols.div_ceil(2048)], args)
}

/// RMS norm of f32 rows `x` `[x_rows, cols]` by the f32 `weight` `[cols]`. Row r of the results is row
/// `index[r]` (u32 `[rows]`) of `x`, or row r without an index; outside of `x` it is no number. Results go to
/// f32 `out` `[rows, cols]` and to `plane_count` bf16 planes, of which each begins `plane_stride` elements
/// after the one before. Flags: [`crate::cuda::BF16`], [`crate::cuda::ROUND_FIRST`].
#[derive(Debug, Clone, Copy, NoUninit, Zeroable)]
#[repr(C)]
pub struct NormArgs {
    pub x: u64,
    pub weight: u64,
    /// 0: not wanted. It may be `x` if there is no index.
    pub out: u64,
    /// Not read where `plane_count` is 0.
    pub planes: u64,
    /// 0: every row.
    pub index: u64,
    pub plane_stride: u64,
    pub rows: u32,
    pub cols: u32,
    pub x_rows: u32,
    pub plane_count: u32,
    pub flags: u32,
    pub eps: f32,
}

pub fn rms_norm(gpu: &dyn Gpu, args: &NormArgs) -> Result<(), GpuError> {
    expect_cols("norm", args.cols)?;
    let elements = u64::from(args.rows) * u64::from(args.cols);
    expect_planes("norm", args.plane_count, args.planes, args.plane_stride, elements)?;
    expect(args.index != 0 || args.rows <= args.x_rows, "norm", || {
        format!("{} rows of {} without an index", args.rows, args.x_rows)
    })?;
    expect(args.index == 0 || args.out != args.x, "norm", || "rows by an index, in place".to_owned())?;
    launch(gpu, "rms_norm", [args.rows, 1], args)
}

/// `count` f32 values to `plane_count` bf16 planes, whose sum they are.
#[derive(Debug, Clone, Copy, NoUninit, Zeroable)]
#[repr(C)]
pub struct PlanesArgs {
    pub x: u64,
    pub out: u64,
    pub count: u64,
    /// Elements from a plane to the next.
    pub plane_stride: u64,
    pub plane_count: u32,
    pub reserved: u32,
}

pub fn to_planes(gpu: &dyn Gpu, args: &PlanesArgs) -> Result<(), GpuError> {
    let what = "conversion to planes";
    expect_planes(what, args.plane_count, args.out, args.plane_stride, args.count)?;
    expect(args.plane_count > 0 && args.count.is_multiple_of(8), what, || {
        format!("{} planes of {} values, expected some of a multiple of 8", args.plane_count, args.count)
    })?;
    launch_flat(gpu, "to_planes", args.count / 8, args)
}

/// Rows `index[r]` (u32 `[rows]`) of f32 `x` `[x_rows, cols]` to `out` `[rows, cols]`.
#[derive(Debug, Clone, Copy, NoUninit, Zeroable)]
#[repr(C)]
pub struct GatherArgs {
    pub x: u64,
    pub index: u64,
    pub out: u64,
    pub rows: u32,
    pub cols: u32,
    pub x_rows: u32,
    pub reserved: u32,
}

pub fn gather_rows(gpu: &dyn Gpu, args: &GatherArgs) -> Result<(), GpuError> {
    expect_cols("rows to gather", args.cols)?;
    let pieces = args.cols.div_ceil(1024);
    expect(pieces <= MAX_GRID_Y, "rows to gather", || format!("{} columns are too many", args.cols))?;
    launch(gpu, "gather_rows", [args.rows, pieces], args)
}

/// `out = x + y` for `count` f32 values; `out` may be `x` or `y`. Flag: [`crate::cuda::BF16`].
#[derive(Debug, Clone, Copy, NoUninit, Zeroable)]
#[repr(C)]
pub struct AddArgs {
    pub x: u64,
    pub y: u64,
    pub out: u64,
    pub count: u64,
    pub flags: u32,
    pub reserved: u32,
}

pub fn add(gpu: &dyn Gpu, args: &AddArgs) -> Result<(), GpuError> {
    expect(args.count.is_multiple_of(4), "sum", || {
        format!("{} values, expected a multiple of 4", args.count)
    })?;
    launch_flat(gpu, "add", args.count / 4, args)
}
