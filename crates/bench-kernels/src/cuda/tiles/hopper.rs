//! Which kernels of `tiles_warpgroup.cuh` there are, and when they multiply.

use super::{Format, Kernel, TilesArgs};

/// One of each format, for one plane.
pub(super) const KERNELS: [Kernel; 3] = [
    kernel(NAMES[0], Format::Bf16, 256, 128, 4),
    kernel(NAMES[1], Format::Mxfp4, 128, 256, 6),
    kernel(NAMES[2], Format::Q8, 128, 128, 5),
];

/// In images for `sm_90a` alone.
pub const NAMES: [&str; 3] = ["tiles_bf16_wgmma", "tiles_mxfp4_wgmma", "tiles_q8_wgmma"];

const fn kernel(name: &'static str, format: Format, bm: u32, bn: u32, stages: u32) -> Kernel {
    Kernel { name, format, planes: 1, bm, bn, bk: 64, warps: 8, warps_k: 1, stages, hopper: true }
}

/// The kernel of Hopper in the place of one for many rows, if its tiles are enough for three quarters of the
/// multiprocessors: one of them is on each.
pub(super) fn instead_of(chosen: Kernel, args: &TilesArgs, multiprocessors: u32) -> Kernel {
    let largest = chosen.planes == 1 && chosen.bm >= 128;
    let hopper = KERNELS.into_iter().find(|k| k.format == chosen.format).filter(|_| largest);
    let enough = |k: &Kernel| k.grid(args).iter().product::<u64>() * 4 >= u64::from(multiprocessors) * 3;
    hopper.filter(enough).unwrap_or(chosen)
}

#[cfg(test)]
mod tests {
    use super::super::{GATHER, choose};
    use super::*;

    fn name(format: Format, planes: u32, args: &TilesArgs) -> &'static str {
        instead_of(choose(format, planes, args, 132).unwrap(), args, 132).name
    }

    #[test]
    fn kernels_are_what_the_source_says() {
        let source = include_str!("../../../cuda/tiles_warpgroup.cuh");
        let lines: Vec<&str> = source.lines().filter(|line| line.starts_with("WARPGROUP_TILES(")).collect();
        assert_eq!(lines.len(), KERNELS.len());
        for (line, kernel) in lines.iter().zip(&KERNELS) {
            let words: Vec<&str> = line["WARPGROUP_TILES(".len()..line.len() - 1].split(", ").collect();
            let format = format!("FORMAT_{:?}", kernel.format).to_uppercase();
            assert_eq!((words[0], words[1]), (kernel.name, format.as_str()));
            let [bm, bn, stages] = std::array::from_fn(|i| words[2 + i].parse::<u32>().unwrap());
            assert_eq!([bm, bn, stages], [kernel.bm, kernel.bn, kernel.stages], "{line}");
        }
    }

    #[test]
    fn one_block_fits_into_the_shared_memory_of_a_multiprocessor() {
        for kernel in &KERNELS {
            let bytes = kernel.shared_bytes();
            assert!(bytes > 64 * 1024 && bytes <= 227 * 1024, "{kernel:?}: {bytes}");
        }
    }

    #[test]
    fn they_multiply_many_rows_of_one_plane() {
        let dense = |tokens: u32, rows: u32| TilesArgs {
            x: 16,
            weights: 16,
            out: 16,
            tokens,
            x_rows: tokens,
            rows,
            cols: 2880,
            ..TilesArgs::default()
        };
        let experts = |tokens: u32, rows: u32, experts: u32| TilesArgs {
            offsets: 16,
            order: 16,
            scales: 16,
            experts,
            slots_per_token: 4,
            flags: GATHER,
            ..dense(tokens, rows)
        };
        assert_eq!(name(Format::Bf16, 1, &dense(2048, 5120)), "tiles_bf16_wgmma");
        assert_eq!(name(Format::Q8, 1, &dense(2048, 5120)), "tiles_q8_wgmma");
        // Prompts of gpt-oss-20b and of gpt-oss-120b.
        assert_eq!(name(Format::Mxfp4, 1, &experts(2048, 5760, 32)), "tiles_mxfp4_wgmma");
        assert_eq!(name(Format::Mxfp4, 1, &experts(2048, 2880, 128)), "tiles_mxfp4_wgmma");
        // Batches; a router, of which there is one tile; three planes.
        assert_eq!(name(Format::Mxfp4, 1, &experts(64, 5760, 32)), "tiles_mxfp4_p1_m16");
        assert_eq!(name(Format::Bf16, 1, &dense(2048, 32)), "tiles_bf16_p1_m16");
        assert_eq!(name(Format::Bf16, 3, &dense(2048, 5120)), "tiles_bf16_p3_m64");
        // 40 tiles of 256 rows for 132 multiprocessors.
        assert_eq!(name(Format::Bf16, 1, &dense(256, 5120)), "tiles_bf16_p1_m128");
    }
}
