//! Products with few columns of activations, as decoding has them: `cuda/panel.cu`.
//!
//! A launch function checks shapes, shares the work among blocks and fills in what a kernel is told of that;
//! nothing here touches device memory. With many columns `tiles` is faster.

mod check;

use bytemuck::NoUninit;

use super::tiles::Format;
use super::{CLAMPED, Gpu, GpuError};

pub use check::check;

/// Columns of a tensor-core operand: tokens times parts of an activation.
pub const MAX_COLUMNS: u32 = 8;

const THREADS: u32 = 256;
const WARPS: usize = 8;
/// The ring of weights, as `panel.cu` has it: stages, and bytes of one.
const RING_BYTES: usize = 6 * STAGE_BYTES;
const STAGE_BYTES: usize = 16 * STEP_BYTES;
/// Bytes of a row that a block takes at a time, of which each warp has one unit.
const STEP_BYTES: usize = WARPS * UNIT_BYTES;
const UNIT_BYTES: usize = 64;
/// Shared memory that activations may take: more, and a multiprocessor has no room for a second block.
const X_BYTES: usize = 100 * 1024;
/// Blocks of a kernel that work on a multiprocessor at the same time; a third fits, which may be one of the next
/// kernel's.
const BLOCKS: usize = 2;

/// Columns of a unit.
fn unit_columns(format: Format) -> usize {
    match format {
        Format::Bf16 => 32,
        Format::Q8 => 64,
        Format::Mxfp4 => 128,
    }
}

/// Bytes of the scale of 32 columns.
fn scale_bytes(format: Format) -> usize {
    match format {
        Format::Bf16 => 0,
        Format::Q8 => 2,
        Format::Mxfp4 => 1,
    }
}

/// Addresses of device memory (0: not given) and sizes. All vectors are f32; weights and scales start at
/// multiples of 16 bytes.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, NoUninit)]
pub struct PanelArgs {
    /// Of all experts, if there are some; of the gate, if gate and up are two matrices.
    pub weights: u64,
    pub scales: u64,
    pub up_weights: u64,
    pub up_scales: u64,
    /// A value for each row of `weights`, of all experts; not with two matrices.
    pub bias: u64,
    /// `[tokens, cols]`; of `panel_experts_down` `[slots, cols]`.
    pub x: u64,
    /// Weight of the RMS norm that x goes through first, `[cols]`.
    pub norm: u64,
    /// `[tokens, rows]`; of gate and up of experts `[slots, rows / 2]`.
    pub out: u64,
    /// Added to the output, `[tokens, rows]`; may be `out`. Not with gate and up.
    pub residual: u64,
    /// Expert of each slot, u32.
    pub choice: u64,
    /// Weight of each slot.
    pub choice_weights: u64,
    /// Rows of `weights`, of one expert if there are some.
    pub rows: u32,
    /// A multiple of 32.
    pub cols: u32,
    pub tokens: u32,
    pub slots: u32,
    pub eps: f32,
    /// Of the clamped activation.
    pub alpha: f32,
    pub limit: f32,
    /// `BF16`, `ROUND_FIRST`, `CLAMPED`.
    pub flags: u32,
    /// Set by the launch functions.
    pub tile_rows: u32,
    /// Set by the launch functions.
    pub chunk_steps: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Plain,
    Pair,
    ExpertsPair,
    ExpertsDown,
}

impl Mode {
    fn has_experts(self) -> bool {
        matches!(self, Self::ExpertsPair | Self::ExpertsDown)
    }

    fn is_pair(self) -> bool {
        matches!(self, Self::Pair | Self::ExpertsPair)
    }

    fn kernel(self, format: Format, planes: u32) -> Option<&'static str> {
        use Format::{Bf16, Mxfp4, Q8};
        Some(match (self, format, planes) {
            (Self::Plain, Bf16, 1) => "panel_bf16_p1",
            (Self::Plain, Bf16, 3) => "panel_bf16_p3",
            (Self::Plain, Q8, 1) => "panel_q8_p1",
            (Self::Plain, Q8, 3) => "panel_q8_p3",
            (Self::Plain, Mxfp4, 1) => "panel_mxfp4_p1",
            (Self::Plain, Mxfp4, 3) => "panel_mxfp4_p3",
            (Self::Pair, Bf16, 1) => "panel_pair_bf16_p1",
            (Self::Pair, Bf16, 3) => "panel_pair_bf16_p3",
            (Self::Pair, Q8, 1) => "panel_pair_q8_p1",
            (Self::Pair, Q8, 3) => "panel_pair_q8_p3",
            (Self::ExpertsPair, Bf16, 1) => "panel_experts_pair_bf16_p1",
            (Self::ExpertsPair, Bf16, 3) => "panel_experts_pair_bf16_p3",
            (Self::ExpertsPair, Mxfp4, 1) => "panel_experts_pair_mxfp4_p1",
            (Self::ExpertsPair, Mxfp4, 3) => "panel_experts_pair_mxfp4_p3",
            (Self::ExpertsDown, Bf16, 1) => "panel_experts_down_bf16_p1",
            (Self::ExpertsDown, Bf16, 3) => "panel_experts_down_bf16_p3",
            (Self::ExpertsDown, Mxfp4, 1) => "panel_experts_down_mxfp4_p1",
            (Self::ExpertsDown, Mxfp4, 3) => "panel_experts_down_mxfp4_p3",
            _ => return None,
        })
    }
}

/// `out[t] = W x[t] + bias`, `+ residual[t]` if given; x normalized first if `norm` is given. `planes` bf16
/// values make up an activation: 3, or 1 if it is a bf16 value.
///
/// # Errors
/// More than [`MAX_COLUMNS`] `tokens · planes`, columns that are no multiple of 32; what the device refuses.
pub fn panel(gpu: &dyn Gpu, format: Format, planes: u32, args: &PanelArgs) -> Result<(), GpuError> {
    launch(gpu, args, format, planes, Mode::Plain)
}

/// `out[t, j] = activation(gate_j · x[t], up_j · x[t])`. Without `choice`, of two matrices, bf16 or q8. With
/// it, of one token and each of `slots` experts, whose rows are gate and up in turn; bf16 or mxfp4.
///
/// # Errors
/// As [`panel`]; more than one token with experts.
pub fn panel_pair(gpu: &dyn Gpu, format: Format, planes: u32, args: &PanelArgs) -> Result<(), GpuError> {
    launch(gpu, args, format, planes, if args.choice == 0 { Mode::Pair } else { Mode::ExpertsPair })
}

/// `out = residual + Σ choice_weights[slot] · (W[choice[slot]] x[slot] + bias[choice[slot]])` for one token;
/// bf16 or mxfp4. The residual may be absent.
///
/// # Errors
/// As [`panel`]; more than one token.
pub fn panel_experts_down(
    gpu: &dyn Gpu,
    format: Format,
    planes: u32,
    args: &PanelArgs,
) -> Result<(), GpuError> {
    launch(gpu, args, format, planes, Mode::ExpertsDown)
}

fn launch(gpu: &dyn Gpu, args: &PanelArgs, format: Format, planes: u32, mode: Mode) -> Result<(), GpuError> {
    let kernel = mode.kernel(format, planes).ok_or_else(|| GpuError::Shape {
        what: "panel",
        problem: format!("no kernel for {format:?} weights and {planes} planes in {mode:?}"),
    })?;
    if let Some(problem) = refusal(args, format, planes, mode) {
        return Err(GpuError::Shape { what: kernel, problem });
    }
    // Kernels count outputs.
    let turns = if mode == Mode::ExpertsPair { 2 } else { 1 };
    let args = PanelArgs { rows: args.rows / turns, ..*args };
    let plan = plan(&args, format, planes, mode, gpu.max_shared_bytes(), gpu.multiprocessors() as usize)
        .map_err(|problem| GpuError::Shape { what: kernel, problem })?;
    let args = PanelArgs { tile_rows: plan.tile_rows as u32, chunk_steps: plan.chunk_steps as u32, ..args };
    gpu.launch(kernel, [plan.grid as u32, 1, 1], THREADS, plan.shared_bytes, bytemuck::bytes_of(&args))
}

/// Why a kernel cannot take these arguments.
fn refusal(a: &PanelArgs, format: Format, planes: u32, mode: Mode) -> Option<String> {
    let experts = mode.has_experts();
    if a.rows == 0 || a.cols == 0 || !a.cols.is_multiple_of(32) {
        return Some(format!("{} rows of {} columns, expected multiples of 32", a.rows, a.cols));
    }
    let tokens = if experts { 1 } else { MAX_COLUMNS / planes };
    if a.tokens == 0 || a.tokens > tokens {
        return Some(format!("{} tokens, expected 1 to {tokens}", a.tokens));
    }
    if mode == Mode::ExpertsPair && !a.rows.is_multiple_of(2) {
        return Some(format!("{} rows of gate and up, expected an even number", a.rows));
    }
    if experts && (a.slots == 0 || a.slots > 8) {
        return Some(format!("{} experts of a token, expected 1 to 8", a.slots));
    }
    let scales = format != Format::Bf16;
    let two = mode == Mode::Pair;
    let missing = [
        (a.weights == 0, "weights"),
        (a.x == 0, "x"),
        (a.out == 0, "out"),
        (scales && a.scales == 0, "scales"),
        (two && a.up_weights == 0, "up_weights"),
        (two && scales && a.up_scales == 0, "up_scales"),
        (experts && a.choice == 0, "choice"),
        (mode == Mode::ExpertsDown && a.choice_weights == 0, "choice_weights"),
    ];
    if let Some((_, name)) = missing.iter().find(|(missing, _)| *missing) {
        return Some(format!("{name} is missing"));
    }
    let unused = [
        (two && a.bias != 0, "a bias of two matrices"),
        (mode.is_pair() && a.residual != 0, "a residual of gate and up"),
        (mode == Mode::ExpertsDown && a.norm != 0, "a norm of experts' activations"),
        (!mode.is_pair() && a.flags & CLAMPED != 0, "an activation of a plain product"),
    ];
    unused.iter().find(|(given, _)| *given).map(|(_, what)| format!("{what}: not supported"))
}

/// How the work is shared among blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Plan {
    /// Outputs of a tile.
    tile_rows: usize,
    /// Steps of a stretch of activations in shared memory; 0 if all are there.
    chunk_steps: usize,
    shared_bytes: usize,
    grid: usize,
}

fn plan(
    a: &PanelArgs,
    format: Format,
    planes: u32,
    mode: Mode,
    max_shared_bytes: usize,
    multiprocessors: usize,
) -> Result<Plan, String> {
    let (rows, cols, planes) = (a.rows as usize, a.cols as usize, planes as usize);
    let row_bytes = cols * UNIT_BYTES / unit_columns(format);
    let (units, steps) = (row_bytes.div_ceil(UNIT_BYTES), row_bytes.div_ceil(STEP_BYTES));
    let columns = planes * if mode.has_experts() { 1 } else { a.tokens as usize };
    // As `shape` of panel.cu counts them.
    let scale_half = match scale_bytes(format) {
        0 => 0,
        bytes => (8 * (cols / 32) * bytes).next_multiple_of(16) + 16,
    };
    let scales = 2 * scale_half * (2 + 5 / steps);
    let sums = 2 * WARPS * columns * 20 * 4;
    let fixed = RING_BYTES + scales + sums;
    let stride = |units: usize| {
        let bytes = units * unit_columns(format) * 2;
        bytes + if bytes.is_multiple_of(128) { 64 } else { 0 }
    };
    let room = max_shared_bytes.saturating_sub(fixed).min(X_BYTES);
    let all_columns = if mode == Mode::ExpertsDown { columns * a.slots as usize } else { columns };
    let (chunk_steps, x) = if all_columns * stride(units) <= room {
        (0, all_columns * stride(units))
    } else {
        let fits = (1..=steps).rev().find(|&s| columns * stride(s * WARPS) <= room);
        let chunk =
            fits.ok_or_else(|| format!("{max_shared_bytes} bytes of shared memory are not enough"))?;
        (chunk, columns * stride(chunk * WARPS))
    };
    let shared_bytes = fixed + x;
    // A block costs 1 KiB more than it asks for.
    let resident = ((max_shared_bytes + 1024) / (shared_bytes + 1024)).clamp(1, BLOCKS) * multiprocessors;
    let full = if mode.is_pair() { 8 } else { 16 };
    let slots = if mode == Mode::ExpertsPair { a.slots as usize } else { 1 };
    let tile_rows = tile_rows(rows * slots, full, resident, format).min(rows);
    let tiles = rows.div_ceil(tile_rows) * slots;
    Ok(Plan { tile_rows, chunk_steps, shared_bytes, grid: tiles.min(resident) })
}

/// The height of tiles with which blocks have equally many. Low tiles cost arithmetic, which mxfp4 has little
/// of to spare: it keeps full ones but where they are too few.
fn tile_rows(rows: usize, full: usize, blocks: usize, format: Format) -> usize {
    let rounds = rows.div_ceil(full * blocks);
    if format == Format::Mxfp4 && 2 * rows >= full * blocks {
        return full;
    }
    rows.div_ceil(rounds * blocks).min(full)
}

#[cfg(test)]
mod tests {
    use super::*;

    const H200: (usize, usize) = (227 * 1024, 132);

    fn planned(rows: u32, cols: u32, tokens: u32, format: Format, mode: Mode) -> Plan {
        let args = PanelArgs { rows, cols, tokens, slots: 4, ..PanelArgs::default() };
        plan(&args, format, 1, mode, H200.0, H200.1).unwrap()
    }

    #[test]
    fn blocks_have_equally_many_rows() {
        // Query, key and value of gpt-oss-20b: 264 blocks of two tiles, but the last 8.
        let plan = planned(5120, 2880, 1, Format::Bf16, Mode::Plain);
        assert_eq!((plan.tile_rows, plan.grid, plan.chunk_steps), (10, 264, 0));
        let router = planned(32, 2880, 1, Format::Bf16, Mode::Plain);
        assert_eq!((router.tile_rows, router.grid), (1, 32));
        let down = planned(2880, 2880, 1, Format::Mxfp4, Mode::ExpertsDown);
        assert_eq!((down.tile_rows, down.grid), (16, 180));
        let up = planned(2880, 2880, 1, Format::Mxfp4, Mode::ExpertsPair);
        assert_eq!((up.tile_rows, up.grid), (8, 264));
    }

    #[test]
    fn two_blocks_of_a_kernel_and_one_of_the_next_fit_on_a_multiprocessor() {
        // Registers allow them by the launch bounds.
        let source = include_str!("../../cuda/panel.cu");
        assert!(source.contains("KERNEL(THREADS, 3, name)"));
        // A layer of gpt-oss-20b, and the first product of the next one.
        let layer = [
            (5120, 2880, Format::Bf16, Mode::Plain),
            (2880, 4096, Format::Bf16, Mode::Plain),
            (32, 2880, Format::Bf16, Mode::Plain),
            (5760, 2880, Format::Mxfp4, Mode::ExpertsPair),
            (2880, 2880, Format::Mxfp4, Mode::ExpertsDown),
            (5120, 2880, Format::Bf16, Mode::Plain),
        ];
        // A block costs 1 KiB more than it asks for.
        let bytes =
            layer.map(|(rows, cols, format, mode)| planned(rows, cols, 1, format, mode).shared_bytes + 1024);
        for pair in bytes.windows(2) {
            assert!(2 * pair[0] + pair[1] <= 228 * 1024, "{bytes:?}");
        }
    }

    #[test]
    fn activations_that_do_not_fit_come_in_stretches() {
        let plan = planned(5120, 25_600, 8, Format::Bf16, Mode::Plain);
        assert!(plan.chunk_steps > 0 && plan.shared_bytes <= H200.0);
        assert_eq!(planned(5120, 25_600, 1, Format::Bf16, Mode::Plain).chunk_steps, 0);
    }

    #[test]
    fn arguments_that_no_kernel_takes_are_refused() {
        let good =
            PanelArgs { weights: 16, x: 16, out: 16, rows: 3, cols: 64, tokens: 2, ..Default::default() };
        let why = |args: PanelArgs, mode| refusal(&args, Format::Bf16, 3, mode);
        assert_eq!(why(good, Mode::Plain), None);
        assert!(why(PanelArgs { tokens: 3, ..good }, Mode::Plain).unwrap().contains("1 to 2"));
        assert!(why(PanelArgs { cols: 48, ..good }, Mode::Plain).unwrap().contains("48 columns"));
        assert!(why(good, Mode::Pair).unwrap().contains("up_weights is missing"));
        assert!(
            why(PanelArgs { tokens: 1, slots: 9, ..good }, Mode::ExpertsDown).unwrap().contains("1 to 8")
        );
        assert!(Mode::Pair.kernel(Format::Mxfp4, 1).is_none());
    }
}
