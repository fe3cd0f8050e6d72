//! Rows, choice of tokens, weights: every check with several orders of threads.

use std::num::NonZeroU32;

use bench_kernels::cuda::Memory;
use bench_kernels::cuda::check::Values;
use bench_kernels::cuda::vectors::{self, AddArgs, NormArgs, RowDraw, SelectArgs};
use bench_kernels::draw::Draw;
use bytemuck::Zeroable;

use crate::emulator::Emulator;

#[test]
fn kernels_agree_with_plain_arithmetic_in_any_order_of_threads() {
    for seed in [0, 1, 2, 3] {
        let found = vectors::check(&Emulator::new(seed), 100 + seed, 12).unwrap();
        assert_eq!(found.len(), 13 * 12 + 1);
        let wrong: Vec<_> = found.iter().filter(|row| !row.passed()).collect();
        assert!(wrong.is_empty(), "order {seed}: {wrong:#?}");
    }
}

#[test]
fn shapes_that_do_not_fit_are_errors() {
    let gpu = Emulator::new(0);
    let norm = NormArgs { rows: 1, x_rows: 1, cols: 33, ..NormArgs::zeroed() };
    assert!(vectors::rms_norm(&gpu, &norm).is_err());
    assert!(vectors::rms_norm(&gpu, &NormArgs { cols: 32, rows: 2, ..norm }).is_err());
    let planes = NormArgs { cols: 32, plane_count: 3, planes: 256, plane_stride: 24, ..norm };
    assert!(vectors::rms_norm(&gpu, &planes).is_err());
    assert!(vectors::add(&gpu, &AddArgs { count: 3, ..AddArgs::zeroed() }).is_err());
    let select = SelectArgs { rows: 1, vocab: 10, stride: 9, ..SelectArgs::zeroed() };
    assert!(vectors::argmax(&gpu, &select).is_err());
    let draw = RowDraw::new(&Draw { temperature: 1.0, top_p: 0.5, ..Draw::GREEDY }, 10);
    let drawn = SelectArgs { stride: 10, best: 256, ..select };
    for bad in [drawn, SelectArgs { draws: 256, ..drawn }] {
        assert!(vectors::sample(&gpu, &bad, &[draw]).is_err());
    }
    assert!(vectors::sample(&gpu, &SelectArgs { draws: 256, cuts: 256, ..drawn }, &[draw; 2]).is_err());
    assert!(vectors::fill(&gpu, vectors::Fill::Codes, 0, 0, 8, 16).is_err());
    // Nothing to do is no launch.
    vectors::add(&gpu, &AddArgs::zeroed()).unwrap();
}

/// So many ids that blocks take several thousands, and few of one part are left.
#[test]
fn the_largest_vocabularies_are_drawn_from_in_the_order_of_ids() {
    let gpu = Emulator::new(5);
    let vocab = 263_000;
    let logits = Values::new(8).reals(vocab, 6.0);
    let memory = Memory::of(&gpu, &logits).unwrap();
    let room = |bytes| Memory::zeroed(&gpu, bytes).unwrap();
    let (ids, best) = (room(4), room(4));
    let (cuts, scratch) = (room(vectors::cut_bytes(1)), room(vectors::scratch_bytes(1)));
    let mut draw = Draw { uniform: 0.7, temperature: 1.0, ..Draw::GREEDY };
    for (top_k, top_p) in [(0, 1.0), (1000, 0.9)] {
        (draw.top_k, draw.top_p) = (NonZeroU32::new(top_k), top_p);
        let draws = [RowDraw::new(&draw, vocab as u32)];
        let draws_at = Memory::of(&gpu, &draws).unwrap();
        let args = SelectArgs {
            logits: memory.address(),
            ids: ids.address(),
            best: best.address(),
            draws: draws_at.address(),
            cuts: cuts.address(),
            scratch: scratch.address(),
            rows: 1,
            vocab: vocab as u32,
            stride: vocab as u32,
            ..SelectArgs::zeroed()
        };
        vectors::argmax(&gpu, &args).unwrap();
        vectors::sample(&gpu, &args, &draws).unwrap();
        assert_eq!(ids.values::<u32>().unwrap(), [draw.choose(&logits, &[]).unwrap()], "{draw:?}");
    }
}
