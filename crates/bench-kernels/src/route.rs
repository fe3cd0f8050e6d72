//! Routing of tokens to experts: the choice, its weights, and the lists of tokens that each expert gets.

use std::cell::Cell;
use std::ops::Range;

use crate::error::{Error, Result, check_len};
use crate::exec::Exec;
use crate::lanes::Lanes;
use crate::math::round;
use crate::pieces::{for_chunks, for_rows};
use crate::shared::SharedMut;
use crate::variant::dispatch;

/// The `k` largest of each row of logits `[tokens, experts]`, in descending order; the lower index wins ties, NaN is
/// last.
///
/// # Errors
/// k that is zero or above `experts`, rows that are not whole.
pub fn top_k_into(logits: &[f32], experts: usize, k: usize, chosen: &mut Vec<u32>) -> Result<()> {
    if experts == 0 || k == 0 || k > experts {
        let expected = "1 to the number of experts";
        return Err(Error::Invalid { what: "experts per token", value: k, expected });
    }
    check_len("router logits", logits.len(), logits.len() / experts * experts)?;
    chosen.clear();
    for row in logits.chunks_exact(experts) {
        let start = chosen.len();
        let key = |i: u32| if row[i as usize].is_nan() { f32::NEG_INFINITY } else { row[i as usize] };
        for i in 0..experts as u32 {
            // Behind all that are not smaller, so that the lower index wins ties.
            let logit = key(i);
            let found = &chosen[start..];
            let at = found.iter().take_while(|&&e| key(e).total_cmp(&logit).is_ge()).count();
            if at < k {
                chosen.truncate(start + (k - 1).max(at));
                chosen.insert(start + at, i);
            }
        }
    }
    Ok(())
}

/// Softmax over the chosen logits of each token: `[tokens, k]`.
///
/// # Errors
/// Lengths that do not fit, an expert that is not below `experts`.
pub fn chosen_softmax_into(
    logits: &[f32],
    experts: usize,
    chosen: &[u32],
    k: usize,
    weights: &mut Vec<f32>,
) -> Result<()> {
    check_len("chosen experts", chosen.len() * experts, logits.len() * k)?;
    check_experts(chosen, experts)?;
    weights.clear();
    for (row, chosen) in logits.chunks_exact(experts).zip(chosen.chunks_exact(k.max(1))) {
        let largest = chosen.iter().fold(f32::NEG_INFINITY, |m, &e| m.max(row[e as usize]));
        let start = weights.len();
        weights.extend(chosen.iter().map(|&e| (row[e as usize] - largest).exp()));
        let sum: f32 = weights[start..].iter().sum();
        weights[start..].iter_mut().for_each(|w| *w /= sum);
    }
    Ok(())
}

/// From the choice of each token, `[tokens, k]`, to all experts, `[tokens, experts]`: the chosen ones first, in their
/// order and with their weights, then the others in ascending order with weight 0. Sums over a token's slots are then
/// those over the chosen ones, in their order. An expert that a token chose twice stands once, with both weights.
///
/// # Errors
/// Lengths that do not fit, an expert that is not below `experts`.
pub fn all_experts_into(
    chosen: &[u32],
    weights: &[f32],
    k: usize,
    experts: usize,
    all: &mut Vec<u32>,
    all_weights: &mut Vec<f32>,
) -> Result<()> {
    check_len("expert weights", weights.len(), chosen.len())?;
    check_len("chosen experts", chosen.len(), chosen.len() / k.max(1) * k)?;
    check_experts(chosen, experts)?;
    let slots = chosen.len() / k.max(1) * experts;
    all.clear();
    all.reserve_exact(slots);
    all_weights.clear();
    all_weights.reserve_exact(slots);
    for (chosen, weights) in chosen.chunks_exact(k.max(1)).zip(weights.chunks_exact(k.max(1))) {
        let start = all.len();
        for (&expert, &weight) in chosen.iter().zip(weights) {
            if let Some(at) = all[start..].iter().position(|&e| e == expert) {
                all_weights[start + at] += weight;
            } else {
                all.push(expert);
                all_weights.push(weight);
            }
        }
        all.extend((0..experts as u32).filter(|expert| !chosen.contains(expert)));
        all_weights.resize(start + experts, 0.0);
    }
    Ok(())
}

fn check_experts(chosen: &[u32], experts: usize) -> Result<()> {
    match chosen.iter().find(|&&e| e as usize >= experts) {
        None => Ok(()),
        Some(&bad) => {
            let expected = "below the number of experts";
            Err(Error::Invalid { what: "expert", value: bad as usize, expected })
        }
    }
}

/// Which slots `token · k + choice` go to each expert; memory is kept from one use to the next.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Routed {
    /// Where each expert's slots start in `slots`, and the end: `[experts + 1]`.
    pub offsets: Vec<u32>,
    /// Slots by expert, ascending within each.
    pub slots: Vec<u32>,
}

impl Routed {
    /// The slots of one expert.
    ///
    /// # Panics
    /// An expert that is not below the number of experts.
    pub fn of(&self, expert: usize) -> &[u32] {
        &self.slots[self.range(expert)]
    }

    /// Where one expert's slots stand in `slots`.
    ///
    /// # Panics
    /// An expert that is not below the number of experts.
    pub fn range(&self, expert: usize) -> Range<usize> {
        self.offsets[expert] as usize..self.offsets[expert + 1] as usize
    }
}

/// Sorts the slots of `chosen` `[tokens, k]` by expert.
///
/// # Errors
/// An expert that is not below `experts`.
pub fn by_expert_into(chosen: &[u32], experts: usize, routed: &mut Routed) -> Result<()> {
    check_experts(chosen, experts)?;
    let Routed { offsets, slots } = routed;
    offsets.clear();
    offsets.resize(experts + 1, 0);
    slots.clear();
    slots.resize(chosen.len(), 0);
    for &expert in chosen {
        offsets[expert as usize] += 1;
    }
    // Ends, which counting down from the last slot turns into starts.
    let mut end = 0;
    for offset in offsets.iter_mut() {
        end += *offset;
        *offset = end;
    }
    for (slot, &expert) in chosen.iter().enumerate().rev() {
        let at = &mut offsets[expert as usize];
        *at -= 1;
        slots[*at as usize] = slot as u32;
    }
    Ok(())
}

/// `x += y`.
///
/// # Errors
/// Lengths that differ.
pub fn add_into(exec: &Exec, x: &mut [f32], y: &[f32]) -> Result<()> {
    check_len("summand", y.len(), x.len())?;
    for_chunks(exec, x, |range, x| add(exec.variant(), x, &y[range]));
    Ok(())
}

dispatch! { fn add(x: &mut [f32], y: &[f32]) = add_body }

#[inline(always)]
unsafe fn add_body<L: Lanes>(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

thread_local! {
    /// Which row each slot has.
    static ROW_OF_SLOT: Cell<Vec<u32>> = const { Cell::new(Vec::new()) };
}

/// `out[t] = Σ_choice weights[t, choice] · row of slot t · k + choice`, one choice after the other; rows `[_, hidden]`
/// are in the order of `slots`, a permutation of all slots. `round_bf16` rounds each product, not the sum. A weight of 0
/// adds nothing, whatever its row holds.
///
/// # Errors
/// Lengths that do not fit, a slot that is missing.
pub fn combine(
    exec: &Exec,
    rows: &[f32],
    slots: &[u32],
    weights: &[f32],
    out: &mut [f32],
    round_bf16: bool,
) -> Result<()> {
    check_len("expert weights", weights.len(), slots.len())?;
    let hidden = rows.len() / slots.len().max(1);
    check_len("expert rows", rows.len(), slots.len() * hidden)?;
    let tokens = out.len() / hidden.max(1);
    let k = slots.len() / tokens.max(1);
    check_len("combined output", out.len(), tokens * hidden)?;
    check_len("slots", slots.len(), tokens * k)?;
    let mut row_of_slot = ROW_OF_SLOT.take();
    row_of_slot.clear();
    row_of_slot.resize(slots.len(), u32::MAX);
    for (row, &slot) in slots.iter().enumerate() {
        if let Some(found) = row_of_slot.get_mut(slot as usize) {
            *found = row as u32;
        }
    }
    if let Some(missing) = row_of_slot.iter().position(|&row| row == u32::MAX) {
        return Err(Error::Invalid { what: "slot", value: missing, expected: "a row for each slot" });
    }
    let shared = SharedMut::new(out);
    for_rows(exec, tokens, hidden * k, |range| {
        for token in range {
            // SAFETY: each token belongs to one task.
            let out = unsafe { shared.slice(token * hidden..(token + 1) * hidden) };
            out.fill(0.0);
            for slot in token * k..(token + 1) * k {
                // An expert that was not chosen must not spoil the sum, were its row not finite.
                if weights[slot] == 0.0 {
                    continue;
                }
                let row = &rows[row_of_slot[slot] as usize * hidden..][..hidden];
                if round_bf16 {
                    add_scaled_bf16(exec.variant(), out, row, weights[slot]);
                } else {
                    add_scaled_f32(exec.variant(), out, row, weights[slot]);
                }
            }
        }
    });
    ROW_OF_SLOT.set(row_of_slot);
    Ok(())
}

dispatch! { fn add_scaled_f32(x: &mut [f32], y: &[f32], weight: f32) = add_scaled_f32_body }
dispatch! { fn add_scaled_bf16(x: &mut [f32], y: &[f32], weight: f32) = add_scaled_bf16_body }

#[inline(always)]
unsafe fn add_scaled_f32_body<L: Lanes>(x: &mut [f32], y: &[f32], weight: f32) {
    add_scaled::<false>(x, y, weight);
}

#[inline(always)]
unsafe fn add_scaled_bf16_body<L: Lanes>(x: &mut [f32], y: &[f32], weight: f32) {
    add_scaled::<true>(x, y, weight);
}

#[inline(always)]
fn add_scaled<const ROUND: bool>(x: &mut [f32], y: &[f32], weight: f32) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += round::<ROUND>(weight * y);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_are_chosen_and_the_lower_index_wins_ties() {
        let mut chosen = vec![9];
        let logits = [0.0, 2.0, 1.0, 2.0, f32::NAN, 3.0, -1.0, 0.5];
        top_k_into(&logits, 4, 2, &mut chosen).unwrap();
        assert_eq!(chosen, [1, 3, 1, 3]);
        top_k_into(&logits, 4, 4, &mut chosen).unwrap();
        assert_eq!(chosen, [1, 3, 2, 0, 1, 3, 2, 0]);
        assert!(top_k_into(&[0.0; 4], 4, 5, &mut chosen).is_err());
    }

    #[test]
    fn weights_are_a_softmax_over_the_chosen_only() {
        let mut weights = Vec::new();
        chosen_softmax_into(&[0.0, 1.0, 9.0], 3, &[1, 0], 2, &mut weights).unwrap();
        assert!(
            (weights[0] - 1.0 / (1.0 + (-1.0_f32).exp())).abs() < 1e-6
                && (weights[0] + weights[1] - 1.0).abs() < 1e-6
        );
        assert!(chosen_softmax_into(&[0.0; 3], 3, &[1, 3], 2, &mut weights).is_err());
    }

    #[test]
    fn slots_are_gathered_by_expert() {
        let mut routed = Routed::default();
        by_expert_into(&[2, 0, 2, 1], 4, &mut routed).unwrap();
        assert_eq!(
            (routed.offsets.as_slice(), routed.slots.as_slice()),
            (&[0, 1, 2, 4, 4][..], &[1, 3, 0, 2][..])
        );
        assert_eq!((routed.of(2), routed.range(3)), (&[0, 2][..], 4..4));
        assert!(by_expert_into(&[4], 4, &mut routed).is_err());
    }

    #[test]
    fn all_experts_are_the_chosen_and_then_the_others_with_weight_0() {
        let (mut all, mut weights) = (vec![9; 3], vec![9.0]);
        // The second token chose one expert twice.
        all_experts_into(&[2, 0, 1, 1], &[0.75, 0.25, 0.5, 0.25], 2, 4, &mut all, &mut weights).unwrap();
        assert_eq!(all, [2, 0, 1, 3, 1, 0, 2, 3]);
        assert_eq!(weights, [0.75, 0.25, 0.0, 0.0, 0.75, 0.0, 0.0, 0.0]);
        assert!(all_experts_into(&[4], &[1.0], 1, 4, &mut all, &mut weights).is_err());
        assert!(all_experts_into(&[0, 1], &[1.0], 2, 4, &mut all, &mut weights).is_err());
    }

    #[test]
    fn rows_of_experts_add_up_by_token() {
        let (rows, weights) = ([1.0, 2.0, 10.0, 20.0, 100.0, 200.0, 1000.0, 2000.0], [0.5, 0.25, 1.0, 2.0]);
        let mut out = [f32::NAN; 4];
        // Rows 0 to 3 are those of slots 1, 3, 0 and 2.
        combine(&Exec::shared(), &rows, &[1, 3, 0, 2], &weights, &mut out, false).unwrap();
        assert_eq!(out, [50.25, 100.5, 1020.0, 2040.0]);
        assert!(combine(&Exec::shared(), &rows, &[1, 3, 0, 0], &weights, &mut out, false).is_err());
        let (rows, mut out) = ([f32::INFINITY, 3.0], [f32::NAN]);
        combine(&Exec::shared(), &rows, &[0, 1], &[0.0, 0.5], &mut out, false).unwrap();
        assert_eq!(out, [1.5]);
    }
}
