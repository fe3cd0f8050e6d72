//! The kernels of `route.cu` on random shapes against the CPU's choice and plain arithmetic.

use half::bf16;

use super::{
    AllExpertsArgs, CombineArgs, FORCED, RouteArgs, SortArgs, all_experts, combine, route, sort_slots,
};
use crate::cuda::check::Values;
use crate::cuda::{BF16, CheckRow, Gpu, GpuError, Memory};
use crate::route::{Routed, all_experts_into, by_expert_into, top_k_into};

/// Runs each kernel on `cases` random shapes.
///
/// # Errors
/// A device that fails.
pub fn check(gpu: &dyn Gpu, seed: u64, cases: usize) -> Result<Vec<CheckRow>, GpuError> {
    let mut values = Values::new(seed);
    let mut rows = Vec::new();
    for case in 0..cases {
        rows.push(check_route(gpu, case, &mut values)?);
        rows.push(check_all(gpu, case, &mut values)?);
        rows.push(check_sort(gpu, case, &mut values)?);
        rows.push(check_combine(gpu, &mut values)?);
    }
    Ok(rows)
}

fn row(kernel: &str, case: String, difference: f64, allowed: f64) -> CheckRow {
    CheckRow { kernel: kernel.to_owned(), case, difference, allowed }
}

fn settled(value: f64, round: bool) -> f64 {
    if round { bf16::from_f64(value).to_f64() } else { value }
}

/// The CPU's experts; 0 where they cannot be had, which then differs.
fn cpu_choice(logits: &[f32], experts: usize, k: usize) -> Vec<u32> {
    let mut chosen = Vec::new();
    if top_k_into(logits, experts, k, &mut chosen).is_err() {
        chosen.clear();
    }
    chosen
}

fn check_route(gpu: &dyn Gpu, case: usize, values: &mut Values) -> Result<CheckRow, GpuError> {
    let tokens = if case == 0 { 1 } else { values.between(1, 9) };
    let experts = values.one_of(&[1, 5, 8, 32, 33, 128]);
    let k = values.between(1, experts.min(8));
    let (round, forced) = (values.word() >> 63 == 1, values.word() >> 63 == 1);
    // Few different logits: many ties. Some are no numbers, but not so many that one has to be chosen.
    let mut logits: Vec<f32> = (0..tokens * experts).map(|_| (values.real() * 8.0).round() / 2.0).collect();
    if experts > 8 {
        logits.iter_mut().step_by(37).for_each(|l| *l = f32::NAN);
    }
    let mut expected = cpu_choice(&logits, experts, k);
    if forced {
        expected.chunks_exact_mut(k).for_each(<[u32]>::reverse);
    }
    let given = if forced { expected.clone() } else { vec![7; tokens * k] };
    let (choice, logits_memory) = (Memory::of(gpu, &given)?, Memory::of(gpu, &logits)?);
    let (weights, counters) = (Memory::zeroed(gpu, tokens * k * 4)?, Memory::of(gpu, &[5_u64, 6, 7])?);
    let args = RouteArgs {
        logits: logits_memory.address(),
        choice: choice.address(),
        weights: weights.address(),
        counters: counters.address(),
        tokens: tokens as u32,
        experts: experts as u32,
        slots_per_token: k as u32,
        flags: if round { BF16 } else { 0 } | if forced { FORCED } else { 0 },
    };
    route(gpu, &args)?;
    let counted = if tokens == 1 { vec![6, 6 + k as u64, 8] } else { vec![5, 6, 7] };
    let mut difference = 0.0_f64;
    if choice.values::<u32>()? != expected || counters.values::<u64>()? != counted {
        difference = f64::INFINITY;
    }
    let found: Vec<f32> = weights.values()?;
    for (token, chosen) in expected.chunks_exact(k).enumerate() {
        let logit = |e: u32| f64::from(logits[token * experts + e as usize]);
        let largest = chosen.iter().map(|e| logit(*e)).fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = chosen.iter().map(|e| (logit(*e) - largest).exp()).sum();
        for (expert, found) in chosen.iter().zip(&found[token * k..]) {
            let share = (logit(*expert) - largest).exp() / sum;
            let off = (f64::from(*found) - settled(share, round)).abs() / share;
            difference = if off.is_nan() { f64::INFINITY } else { difference.max(off) };
        }
    }
    let case = format!("{tokens} tokens, {k} of {experts} experts, round {round}, forced {forced}");
    Ok(row("route", case, difference, if round { 1.0 / 128.0 } else { 1e-6 }))
}

/// Every second case has tokens that chose an expert twice, as hooks may.
fn check_all(gpu: &dyn Gpu, case: usize, values: &mut Values) -> Result<CheckRow, GpuError> {
    let tokens = if case == 0 { 1 } else { values.between(1, 40) };
    let experts = values.one_of(&[1, 5, 8, 32, 33, 128]);
    let k = values.between(1, experts.min(8));
    let choice: Vec<u32> = if case.is_multiple_of(2) {
        cpu_choice(&values.reals(tokens * experts, 1.0), experts, k)
    } else {
        (0..tokens * k).map(|_| values.between(0, experts - 1) as u32).collect()
    };
    let weights = values.reals(tokens * k, 1.0);
    let (mut expected, mut expected_weights) = (Vec::new(), Vec::new());
    let fits = all_experts_into(&choice, &weights, k, experts, &mut expected, &mut expected_weights).is_ok();
    let (choice, weights) = (Memory::of(gpu, &choice)?, Memory::of(gpu, &weights)?);
    let all = Memory::of(gpu, &vec![u32::MAX; tokens * experts])?;
    let all_weights = Memory::of(gpu, &vec![f32::NAN; tokens * experts])?;
    let args = AllExpertsArgs {
        choice: choice.address(),
        weights: weights.address(),
        all: all.address(),
        all_weights: all_weights.address(),
        tokens: tokens as u32,
        experts: experts as u32,
        slots_per_token: k as u32,
        unused: 0,
    };
    all_experts(gpu, &args)?;
    let equal = fits && all.values::<u32>()? == expected && all_weights.values::<f32>()? == expected_weights;
    let case = format!("{tokens} tokens, {k} of {experts} experts");
    Ok(row("all_experts", case, if equal { 0.0 } else { f64::INFINITY }, 0.0))
}

fn check_sort(gpu: &dyn Gpu, case: usize, values: &mut Values) -> Result<CheckRow, GpuError> {
    let experts = values.one_of(&[1, 8, 32, 77, 128]);
    let slots = if case == 0 { values.between(1030, 2500) } else { values.between(1, 300) };
    let used = values.between(1, experts);
    let choice: Vec<u32> = (0..slots).map(|_| values.between(0, used - 1) as u32).collect();
    let mut routed = Routed::default();
    let fits = by_expert_into(&choice, experts, &mut routed).is_ok();
    let (order, offsets) = (Memory::zeroed(gpu, slots * 4)?, Memory::zeroed(gpu, (experts + 1) * 4)?);
    let (choice, counters) = (Memory::of(gpu, &choice)?, Memory::of(gpu, &[1_u64, 2, 3])?);
    let args = SortArgs {
        choice: choice.address(),
        order: order.address(),
        offsets: offsets.address(),
        counters: counters.address(),
        slots: slots as u32,
        experts: experts as u32,
        tokens: 11,
        unused: 0,
    };
    sort_slots(gpu, &args)?;
    let busy = (0..experts).filter(|e| !routed.range(*e).is_empty()).count() as u64;
    let equal = fits
        && order.values::<u32>()? == routed.slots
        && offsets.values::<u32>()? == routed.offsets
        && counters.values::<u64>()? == [2, 2 + busy, 14];
    let case = format!("{slots} slots, {experts} experts");
    Ok(row("sort_slots", case, if equal { 0.0 } else { f64::INFINITY }, 0.0))
}

fn check_combine(gpu: &dyn Gpu, values: &mut Values) -> Result<CheckRow, GpuError> {
    let (tokens, cols) = (values.between(1, 5), 4 * values.between(1, 300));
    let most = values.one_of(&[8, 40]);
    let k = values.between(1, most);
    let mut coin = || values.word() >> 63 == 1;
    let (round, with_residual, in_place) = (coin(), coin(), coin());
    let on_grid = |x: f32| if round { bf16::from_f32(x).to_f32() } else { x };
    let mut reals = |n: usize| -> Vec<f32> { values.reals(n, 1.0).into_iter().map(on_grid).collect() };
    let (mut rows, mut weights) = (reals(tokens * k * cols), reals(tokens * k));
    let residual = reals(tokens * cols);
    // What weighs nothing must add nothing.
    for slot in (0..tokens * k).skip(1).step_by(3) {
        weights[slot] = 0.0;
        rows[slot * cols..][..cols].fill(f32::NAN);
    }
    let (rows_memory, weights_memory) = (Memory::of(gpu, &rows)?, Memory::of(gpu, &weights)?);
    let residual_memory = Memory::of(gpu, &residual)?;
    let other = Memory::zeroed(gpu, tokens * cols * 4)?;
    let out = if in_place { &residual_memory } else { &other };
    let args = CombineArgs {
        rows: rows_memory.address(),
        weights: weights_memory.address(),
        residual: if with_residual { residual_memory.address() } else { 0 },
        out: out.address(),
        tokens: tokens as u32,
        cols: cols as u32,
        slots_per_token: k as u32,
        flags: if round { BF16 } else { 0 },
    };
    combine(gpu, &args)?;
    let mut difference = 0.0_f64;
    for (i, found) in out.values::<f32>()?.iter().enumerate() {
        let (token, column) = (i / cols, i % cols);
        let slots = (token * k..(token + 1) * k).filter(|slot| weights[*slot] != 0.0);
        let product = |s: usize| f64::from(weights[s]) * f64::from(rows[s * cols + column]);
        let mut y = settled(slots.map(|s| settled(product(s), round)).sum(), round);
        if with_residual {
            y = settled(y + f64::from(residual[i]), round);
        }
        let off = (f64::from(*found) - y).abs() / (1.0 + y.abs());
        difference = if off.is_nan() { f64::INFINITY } else { difference.max(off) };
    }
    let case = format!("{tokens} tokens, {k} rows of {cols}, round {round}, residual {with_residual}");
    // More roundings where there are more rows.
    let allowed = if round { 1.0 / 64.0 } else { 1e-6 * (k as f64 / 8.0).max(1.0) };
    Ok(row("combine", case, difference, allowed))
}
