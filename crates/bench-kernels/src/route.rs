//! Routing of tokens to experts: the choice, its weights, and the lists of tokens that each expert gets.

use crate::error::{Error, Result, check_len};

/// The `k` largest of each row of logits `[tokens, experts]`, in descending order; the lower index wins ties.
pub fn top_k(logits: &[f32], experts: usize, k: usize) -> Result<Vec<u32>> {
    if experts == 0 || k == 0 || k > experts {
        return Err(Error::Invalid {
            what: "experts per token",
            value: k,
            expected: "1 to the number of experts",
        });
    }
    check_len("router logits", logits.len(), logits.len() / experts * experts)?;
    let mut chosen = Vec::with_capacity(logits.len() / experts * k);
    let mut order: Vec<u32> = Vec::with_capacity(experts);
    for row in logits.chunks_exact(experts) {
        order.clear();
        order.extend(0..experts as u32);
        // A stable sort keeps the lower index first; NaN sorts last.
        order.sort_by(|&a, &b| {
            let key = |i: u32| if row[i as usize].is_nan() { f32::NEG_INFINITY } else { row[i as usize] };
            key(b).total_cmp(&key(a))
        });
        chosen.extend_from_slice(&order[..k]);
    }
    Ok(chosen)
}

/// Softmax over the chosen logits of each token: `[tokens, k]`.
pub fn chosen_softmax(logits: &[f32], experts: usize, chosen: &[u32], k: usize) -> Result<Vec<f32>> {
    check_len("chosen experts", chosen.len() * experts, logits.len() * k)?;
    if let Some(&bad) = chosen.iter().find(|&&e| e as usize >= experts) {
        return Err(Error::Invalid {
            what: "expert",
            value: bad as usize,
            expected: "below the number of experts",
        });
    }
    let mut weights = Vec::with_capacity(chosen.len());
    for (row, chosen) in logits.chunks_exact(experts).zip(chosen.chunks_exact(k)) {
        let largest = chosen.iter().fold(f32::NEG_INFINITY, |m, &e| m.max(row[e as usize]));
        let start = weights.len();
        weights.extend(chosen.iter().map(|&e| (row[e as usize] - largest).exp()));
        let sum: f32 = weights[start..].iter().sum();
        weights[start..].iter_mut().for_each(|w| *w /= sum);
    }
    Ok(weights)
}

/// For each expert that any token chose: its index and the slots `token · k + choice` that go to it, ascending.
pub fn by_expert(chosen: &[u32], experts: usize) -> Vec<(usize, Vec<usize>)> {
    let mut slots: Vec<Vec<usize>> = vec![Vec::new(); experts];
    for (slot, &expert) in chosen.iter().enumerate() {
        slots[expert as usize].push(slot);
    }
    slots.into_iter().enumerate().filter(|(_, slots)| !slots.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_are_chosen_and_the_lower_index_wins_ties() {
        let chosen = top_k(&[0.0, 2.0, 1.0, 2.0, f32::NAN, 3.0, -1.0, 0.5], 4, 2).unwrap();
        assert_eq!(chosen, [1, 3, 1, 3]);
        assert!(top_k(&[0.0; 4], 4, 5).is_err());
    }

    #[test]
    fn weights_are_a_softmax_over_the_chosen_only() {
        let weights = chosen_softmax(&[0.0, 1.0, 9.0], 3, &[1, 0], 2).unwrap();
        assert!(
            (weights[0] - 1.0 / (1.0 + (-1.0_f32).exp())).abs() < 1e-6
                && (weights[0] + weights[1] - 1.0).abs() < 1e-6
        );
        assert!(chosen_softmax(&[0.0; 3], 3, &[1, 3], 2).is_err());
    }

    #[test]
    fn slots_are_gathered_by_expert() {
        assert_eq!(by_expert(&[2, 0, 2, 1], 4), [(0, vec![1]), (1, vec![3]), (2, vec![0, 2])]);
    }
}
