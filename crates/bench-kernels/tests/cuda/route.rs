//! Routing: the choice of experts, sorting, and the sum of their rows, in several orders of threads.

use bench_kernels::cuda::route::{self, AllExpertsArgs, CombineArgs, RouteArgs, SortArgs};

use crate::emulator::Emulator;

#[test]
fn experts_are_chosen_sorted_and_summed_as_on_the_cpu() {
    for seed in 0..6 {
        for row in route::check(&Emulator::new(seed), seed, 8).unwrap() {
            assert!(row.passed(), "{row:?}");
        }
    }
}

#[test]
fn shapes_that_kernels_do_not_have_are_refused() {
    let gpu = Emulator::new(0);
    let args = RouteArgs { tokens: 1, experts: 4, slots_per_token: 5, ..RouteArgs::default() };
    assert!(route::route(&gpu, &args).is_err());
    assert!(route::route(&gpu, &RouteArgs { experts: 129, slots_per_token: 4, ..args }).is_err());
    let all = AllExpertsArgs { tokens: 1, experts: 129, slots_per_token: 4, ..AllExpertsArgs::default() };
    assert!(route::all_experts(&gpu, &all).is_err());
    assert!(route::all_experts(&gpu, &AllExpertsArgs { experts: 3, ..all }).is_err());
    assert!(route::all_experts(&gpu, &AllExpertsArgs { tokens: 0, experts: 4, ..all }).is_ok());
    assert!(route::route(&gpu, &RouteArgs { tokens: 0, slots_per_token: 4, ..args }).is_ok());
    assert!(route::sort_slots(&gpu, &SortArgs { experts: 129, ..SortArgs::default() }).is_err());
    let args = CombineArgs { tokens: 1, cols: 6, slots_per_token: 1, ..CombineArgs::default() };
    assert!(route::combine(&gpu, &args).is_err());
    let args = CombineArgs { cols: 8, slots_per_token: 129, ..args };
    assert!(route::combine(&gpu, &args).is_err());
}
