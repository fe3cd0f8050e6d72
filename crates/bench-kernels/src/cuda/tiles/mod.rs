//! Products of many rows of activations with tensor cores: prefill, batches, experts with their rows sorted.
//!
//! One token's products are `panel`. Activations come as bf16 planes (see `vectors`); nothing here quantizes
//! or routes.

mod check;
mod decide;
mod hopper;

use bytemuck::NoUninit;

use super::{BF16, CLAMPED, Gpu, GpuError};

pub use check::check;
pub use decide::{Choice, Products, VARIABLE, can_have, decide, forced};
pub use hopper::NAMES as HOPPER_KERNELS;

/// Rows of weights come in pairs, gate and up, and the result is their activation: `silu(gate) · up`, or with
/// [`CLAMPED`] that of gpt-oss.
pub const PAIR: u32 = 8;
/// Sorted row i is the row of the token of slot `order[i]`, not row i of `x`.
pub const GATHER: u32 = 16;
/// The result of sorted row i goes to row `order[i]`.
pub const SCATTER: u32 = 32;

/// How weights are stored: row-major, each row a multiple of 32 columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Bf16,
    /// Codes as in checkpoints, low nibble first, and E8M0 scales of 128 at most.
    Mxfp4,
    /// Codes i8 `[rows, cols]` and scales f16 `[rows, cols / 32]`.
    Q8,
}

/// One product, `out[t, n] = Σ_k x[t, k] · W[n, k] + bias[n]`. Addresses are of device memory and aligned to
/// 16 bytes but those of scales and biases; 0 where there is none.
#[derive(Debug, Clone, Copy, Default, NoUninit)]
#[repr(C)]
pub struct TilesArgs {
    /// bf16 `[planes, x_rows, cols]`: planes add up to the activations.
    pub x: u64,
    /// `[experts, rows, cols]` in its format.
    pub weights: u64,
    pub scales: u64,
    /// A second matrix (dense gate and up): row 2j of the product is row j of `weights`, row 2j + 1 row j of
    /// this.
    pub up_weights: u64,
    pub up_scales: u64,
    /// f32 `[experts, rows of the product]`.
    pub bias: u64,
    /// f32 `[.., columns]`; columns are the rows of the product, or half of them with [`PAIR`].
    pub out: u64,
    /// bf16 `[planes, out_rows, columns]`, what the next product takes.
    pub out_planes: u64,
    /// f32 `[.., columns]`, added to the result; may be `out`.
    pub residual: u64,
    /// u32: the slot of each sorted row.
    pub order: u64,
    /// u32 `[experts + 1]`: where each expert's sorted rows start; 0 without experts.
    pub offsets: u64,
    pub tokens: u32,
    /// Rows from one plane of x to the next.
    pub x_rows: u32,
    /// Of each expert's `weights`.
    pub rows: u32,
    pub cols: u32,
    pub experts: u32,
    pub slots_per_token: u32,
    /// Rows from one plane of `out_planes` to the next.
    pub out_rows: u32,
    /// Of the clamped activation.
    pub alpha: f32,
    pub limit: f32,
    /// [`BF16`], [`CLAMPED`], [`PAIR`], [`GATHER`], [`SCATTER`].
    pub flags: u32,
}

impl TilesArgs {
    /// Rows of the product: those of both matrices.
    pub fn all_rows(&self) -> u64 {
        u64::from(self.rows) * if self.up_weights == 0 { 1 } else { 2 }
    }

    /// Rows of activations that are multiplied: tokens, or their slots.
    pub fn all_tokens(&self) -> u64 {
        u64::from(self.tokens) * if self.offsets == 0 { 1 } else { u64::from(self.slots_per_token) }
    }

    fn validate(&self, format: Format, planes: u32) -> Result<(), String> {
        let grouped = self.offsets != 0;
        let row_bytes = match format {
            Format::Bf16 => u64::from(self.cols) * 2,
            Format::Mxfp4 => u64::from(self.cols) / 2,
            Format::Q8 => u64::from(self.cols),
        };
        let aligned = [self.x, self.weights, self.up_weights, self.out, self.out_planes, self.residual];
        let checks = [
            (matches!(planes, 1 | 3), "planes are not 1 or 3"),
            (self.cols > 0 && self.cols.is_multiple_of(32), "columns are not a multiple of 32"),
            (self.rows > 0, "no rows of weights"),
            (u64::from(self.rows) * row_bytes < 1 << 32, "a matrix of 4 GiB or more"),
            (
                u64::from(planes) * u64::from(self.x_rows) * u64::from(self.cols) < 1 << 32,
                "activations of 2^32 values or more",
            ),
            (self.out != 0 || self.out_planes != 0, "no place for the result"),
            (aligned.iter().all(|a| a.is_multiple_of(16)), "an address that is not aligned to 16 bytes"),
            (format == Format::Bf16 || self.scales != 0, "quantized weights without scales"),
            (
                format == Format::Bf16 || self.up_weights == 0 || self.up_scales != 0,
                "a quantized second matrix without scales",
            ),
            (
                format != Format::Q8 || (self.scales | self.up_scales).is_multiple_of(2),
                "scales that are not aligned",
            ),
            (self.up_weights == 0 || self.flags & PAIR != 0, "two matrices that are no pair"),
            (self.flags & PAIR == 0 || self.all_rows().is_multiple_of(2), "a pair of which one is missing"),
            (self.flags & CLAMPED == 0 || self.flags & PAIR != 0, "an activation without a pair"),
            (grouped || self.flags & (GATHER | SCATTER) == 0, "sorted rows without experts"),
            (!grouped || (self.experts > 0 && self.slots_per_token > 0), "no experts"),
            (self.order != 0 || self.flags & (GATHER | SCATTER) == 0, "no order of rows"),
            (
                u64::from(self.x_rows)
                    >= if self.flags & GATHER == 0 { self.all_tokens() } else { u64::from(self.tokens) },
                "fewer rows of activations than tokens",
            ),
            (
                self.out_planes == 0 || u64::from(self.out_rows) >= self.all_tokens(),
                "fewer rows in a plane of the result than tokens",
            ),
        ];
        checks.iter().find(|(fits, _)| !fits).map_or(Ok(()), |(_, problem)| Err((*problem).to_owned()))
    }
}

/// One of the kernels in `tiles.cu`, with what its template there says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Kernel {
    name: &'static str,
    format: Format,
    planes: u32,
    /// Tile of the output: rows of activations, rows of weights.
    bm: u32,
    bn: u32,
    /// Columns in a stage.
    bk: u32,
    warps: u32,
    /// Warps that share a part of the output.
    warps_k: u32,
    stages: u32,
    /// By products of warpgroups, which only Hopper has.
    hopper: bool,
}

/// By format and planes, from few rows to many.
const KERNELS: [Kernel; 18] = {
    use Format::{Bf16, Mxfp4, Q8};
    [
        kernel("tiles_bf16_p1_m16", Bf16, 1, [16, 32, 256], [1, 1, 4], 4),
        kernel("tiles_bf16_p1_m32", Bf16, 1, [32, 64, 128], [1, 2, 2], 4),
        kernel("tiles_bf16_p1_m64", Bf16, 1, [64, 128, 64], [1, 4, 1], 4),
        kernel("tiles_bf16_p1_m128", Bf16, 1, [128, 128, 64], [2, 2, 1], 3),
        kernel("tiles_bf16_p3_m16", Bf16, 3, [16, 32, 256], [1, 1, 4], 3),
        kernel("tiles_bf16_p3_m64", Bf16, 3, [64, 64, 64], [1, 2, 2], 3),
        kernel("tiles_mxfp4_p1_m16", Mxfp4, 1, [16, 128, 128], [1, 4, 1], 4),
        kernel("tiles_mxfp4_p1_m32", Mxfp4, 1, [32, 128, 128], [1, 4, 1], 4),
        kernel("tiles_mxfp4_p1_m64", Mxfp4, 1, [64, 128, 64], [1, 4, 1], 4),
        kernel("tiles_mxfp4_p1_m128", Mxfp4, 1, [128, 128, 64], [1, 4, 1], 4),
        kernel("tiles_mxfp4_p3_m16", Mxfp4, 3, [16, 64, 128], [1, 2, 2], 3),
        kernel("tiles_mxfp4_p3_m64", Mxfp4, 3, [64, 64, 64], [1, 2, 2], 3),
        kernel("tiles_q8_p1_m16", Q8, 1, [16, 64, 256], [1, 2, 2], 3),
        kernel("tiles_q8_p1_m32", Q8, 1, [32, 64, 128], [1, 2, 2], 4),
        kernel("tiles_q8_p1_m64", Q8, 1, [64, 128, 64], [1, 4, 1], 4),
        kernel("tiles_q8_p1_m128", Q8, 1, [128, 128, 64], [1, 4, 1], 4),
        kernel("tiles_q8_p3_m16", Q8, 3, [16, 64, 128], [1, 2, 2], 3),
        kernel("tiles_q8_p3_m64", Q8, 3, [64, 64, 64], [1, 2, 2], 3),
    ]
};

const fn kernel(
    name: &'static str,
    format: Format,
    planes: u32,
    [bm, bn, bk]: [u32; 3],
    [wm, wn, wk]: [u32; 3],
    stages: u32,
) -> Kernel {
    Kernel { name, format, planes, bm, bn, bk, warps: wm * wn * wk, warps_k: wk, stages, hopper: false }
}

impl Kernel {
    fn shared_bytes(&self) -> usize {
        let weights = match self.format {
            Format::Bf16 => self.bk * 2,
            Format::Mxfp4 => self.bk / 2 + self.bk / 32 * 4,
            Format::Q8 => self.bk + self.bk / 32 * 4,
        };
        let stage = self.planes * self.bm * self.bk * 2 + self.bn * weights;
        // The result takes the place of the stages; those of Hopper begin at a multiple of 1,024 bytes.
        let (padding, align) = if self.hopper { (4, 1024) } else { (8, 0) };
        (align + (stage * self.stages).max(self.warps_k * self.bm * (self.bn + padding) * 4)) as usize
    }

    /// Blocks: tiles of rows of activations, tiles of rows of weights.
    fn grid(&self, args: &TilesArgs) -> [u64; 2] {
        let height = u64::from(self.bm);
        let tokens = args.all_tokens();
        let tiles = if args.offsets == 0 {
            tokens.div_ceil(height)
        } else {
            // Most if as many experts as there can be have one row more than full tiles.
            let busy = tokens.min(u64::from(args.experts));
            (tokens - busy) / height + busy
        };
        [tiles, args.all_rows().div_ceil(u64::from(self.bn))]
    }
}

/// The kernel for a product: tiles as high as an expert (or all) has rows, but so that most multiprocessors
/// have one.
fn choose(format: Format, planes: u32, args: &TilesArgs, multiprocessors: u32) -> Option<Kernel> {
    let fitting = KERNELS.iter().filter(|k| k.format == format && k.planes == planes);
    let height = if args.offsets == 0 {
        args.all_tokens()
    } else {
        // Experts get unequal shares; a second tile would read the weights again.
        let busy = args.all_tokens().min(u64::from(args.experts)).max(1);
        (args.all_tokens() * 3).div_ceil(busy * 2)
    };
    let mut best: Option<Kernel> = None;
    for kernel in fitting {
        let enough = kernel.grid(args).iter().product::<u64>() * 2 >= u64::from(multiprocessors);
        let keep = best.is_some_and(|lower| u64::from(lower.bm) >= height || !enough);
        if !keep {
            best = Some(*kernel);
        }
    }
    best
}

/// Multiplies. Experts' rows are `tokens · slots_per_token`, as `sort_slots` of `route` sorts them.
///
/// # Errors
/// Shapes that the kernels do not have, a device that fails.
pub fn tiles(gpu: &dyn Gpu, format: Format, planes: u32, args: &TilesArgs) -> Result<(), GpuError> {
    tiles_by(gpu, gpu.products(), format, planes, args)
}

/// As [`tiles`], by instructions that the device has; where there are few rows, by `mma` all the same.
///
/// # Errors
/// As [`tiles`].
pub fn tiles_by(
    gpu: &dyn Gpu,
    products: Products,
    format: Format,
    planes: u32,
    args: &TilesArgs,
) -> Result<(), GpuError> {
    args.validate(format, planes).map_err(wrong)?;
    if args.tokens == 0 {
        return Ok(());
    }
    let kernel = choose(format, planes, args, gpu.multiprocessors());
    let mut kernel = kernel.ok_or_else(|| wrong("no kernel for this format".to_owned()))?;
    if products == Products::Wgmma {
        kernel = hopper::instead_of(kernel, args, gpu.multiprocessors());
    }
    launch(gpu, &kernel, args)
}

fn wrong(problem: String) -> GpuError {
    GpuError::Shape { what: "product of tiles", problem }
}

fn launch(gpu: &dyn Gpu, kernel: &Kernel, args: &TilesArgs) -> Result<(), GpuError> {
    let [x, y] = kernel.grid(args);
    if x > i32::MAX as u64 || y > 65_535 {
        return Err(wrong(format!("{x} by {y} tiles")));
    }
    let shared = kernel.shared_bytes();
    if shared > gpu.max_shared_bytes() {
        let problem = format!("{} needs {shared} bytes of shared memory", kernel.name);
        return Err(wrong(problem));
    }
    gpu.launch(kernel.name, [x as u32, y as u32, 1], kernel.warps * 32, shared, bytemuck::bytes_of(args))
}

const _: () = assert!(BF16 == 1 && CLAMPED == 4, "as in tiles.cu");

#[cfg(test)]
mod tests {
    use super::*;

    fn dense(tokens: u32, rows: u32, cols: u32) -> TilesArgs {
        TilesArgs { x: 16, weights: 16, out: 16, tokens, x_rows: tokens, rows, cols, ..TilesArgs::default() }
    }

    fn experts(tokens: u32, rows: u32, experts: u32, slots_per_token: u32) -> TilesArgs {
        let args = TilesArgs {
            offsets: 16,
            order: 16,
            scales: 16,
            experts,
            slots_per_token,
            ..dense(tokens, rows, 2880)
        };
        TilesArgs { flags: GATHER, ..args }
    }

    #[test]
    fn tiles_are_as_high_as_the_rows_of_an_expert() {
        let name = |format, args: &TilesArgs| choose(format, 1, args, 132).unwrap().name;
        assert_eq!(name(Format::Bf16, &dense(2048, 5120, 2880)), "tiles_bf16_p1_m128");
        assert_eq!(name(Format::Bf16, &dense(2, 5120, 2880)), "tiles_bf16_p1_m16");
        // Too few tiles of 64 x 64 for 132 multiprocessors.
        assert_eq!(name(Format::Bf16, &dense(64, 2880, 4096)), "tiles_bf16_p1_m32");
        assert_eq!(name(Format::Bf16, &dense(2048, 32, 2880)), "tiles_bf16_p1_m16");
        assert_eq!(name(Format::Mxfp4, &experts(2048, 5760, 32, 4)), "tiles_mxfp4_p1_m128");
        assert_eq!(name(Format::Mxfp4, &experts(64, 5760, 32, 4)), "tiles_mxfp4_p1_m16");
        assert_eq!(choose(Format::Q8, 3, &dense(100, 5120, 5120), 132).unwrap().bm, 64);
    }

    /// Bytes of weights that the blocks of a launch have under way, at most so many of them on a multiprocessor as fit.
    fn under_way(format: Format, args: &TilesArgs, tiles: u64) -> u64 {
        let kernel = choose(format, 1, args, 132).unwrap();
        let row = match format {
            Format::Bf16 => kernel.bk * 2,
            Format::Mxfp4 => kernel.bk / 2,
            Format::Q8 => kernel.bk,
        };
        let fit = 228 * 1024 / (kernel.shared_bytes() as u64 + 1024);
        let blocks = (tiles * kernel.grid(args)[1]).min(132 * fit);
        blocks * u64::from((kernel.stages - 1) * kernel.bn * row)
    }

    #[test]
    fn steps_of_a_batch_have_enough_bytes_under_way() {
        // 4.3 TB/s for 0.7 us.
        let enough = 3_010_000;
        for tokens in 2..=64_u32 {
            // gpt-oss-20b. Panels take up to 8 rows of what is dense.
            for (rows, cols) in [(5120, 2880), (2880, 4096), (201_088, 2880)] {
                let args = dense(tokens, rows, cols);
                let tiles = choose(Format::Bf16, 1, &args, 132).unwrap().grid(&args)[0];
                let bytes = under_way(Format::Bf16, &args, tiles);
                assert!(tokens <= 8 || bytes >= enough, "{tokens} x {rows} x {cols}: {bytes}");
            }
            for rows in [5760, 2880] {
                let args = experts(tokens, rows, 32, 4);
                let height = choose(Format::Mxfp4, 1, &args, 132).unwrap().bm;
                let bytes_of = |busy: u32| {
                    let tiles = busy * (4 * tokens).div_ceil(busy).div_ceil(height);
                    under_way(Format::Mxfp4, &args, u64::from(tiles))
                };
                // Experts chosen evenly; and all tokens with the same four, which the second product of up to
                // 16 tokens feels.
                let (even, same) = (bytes_of((4 * tokens).min(32)), bytes_of(4));
                assert!(even >= enough && same >= 2 * enough / 3, "{tokens} x {rows}: {even}, {same}");
            }
        }
    }

    #[test]
    fn kernels_are_what_the_source_says() {
        let source = include_str!("../../../cuda/tiles.cu");
        let lines: Vec<&str> = source.lines().filter(|line| line.starts_with("TILES(")).collect();
        assert_eq!(lines.len(), KERNELS.len());
        for (line, kernel) in lines.iter().zip(&KERNELS) {
            let words: Vec<&str> = line["TILES(".len()..line.len() - 1].split(", ").collect();
            let number = |at: usize| words[at].parse::<u32>().unwrap();
            let format = format!("FORMAT_{:?}", kernel.format).to_uppercase();
            assert_eq!((words[0], words[2]), (kernel.name, format.as_str()));
            let [planes, bm, bn, bk, wm, wn, wk, stages] = std::array::from_fn(|i| number(3 + i));
            assert_eq!([planes, bm, bn, bk], [kernel.planes, kernel.bm, kernel.bn, kernel.bk], "{line}");
            let warps = [wm * wn * wk, wk, stages];
            assert_eq!(warps, [kernel.warps, kernel.warps_k, kernel.stages], "{line}");
        }
    }

    #[test]
    fn the_grid_has_a_tile_for_any_routing() {
        let kernel = KERNELS[6];
        assert_eq!((kernel.bm, kernel.grid(&experts(5, 64, 32, 4))[0]), (16, 20));
        assert_eq!(kernel.grid(&experts(64, 64, 32, 4))[0], 14 + 32);
        assert_eq!(kernel.grid(&experts(1, 129, 4, 1)), [1, 2]);
    }

    #[test]
    fn blocks_fit_into_shared_memory() {
        for kernel in &KERNELS {
            // Two blocks of one plane on a multiprocessor of sm_90, one on any.
            let most = if kernel.planes == 1 { 113 } else { 163 };
            assert!(kernel.shared_bytes() <= most * 1024, "{kernel:?}: {}", kernel.shared_bytes());
        }
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let good = dense(4, 8, 64);
        assert!(good.validate(Format::Bf16, 1).is_ok() && good.validate(Format::Bf16, 2).is_err());
        assert!(good.validate(Format::Mxfp4, 1).is_err());
        for bad in [
            TilesArgs { cols: 48, ..good },
            TilesArgs { x_rows: 3, ..good },
            TilesArgs { out: 0, ..good },
            TilesArgs { flags: SCATTER, ..good },
            TilesArgs { flags: CLAMPED, ..good },
            TilesArgs { rows: 7, flags: PAIR, ..good },
            TilesArgs { weights: 8, ..good },
            TilesArgs { rows: 1 << 30, ..good },
        ] {
            assert!(bad.validate(Format::Bf16, 1).is_err(), "{bad:?}");
        }
        assert!(TilesArgs { x_rows: 4, ..experts(4, 8, 2, 2) }.validate(Format::Mxfp4, 3).is_ok());
    }
}
