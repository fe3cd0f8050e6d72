//! Rotary position embedding on halves: element i turns with element i + d/2.

use crate::error::{Error, Result, check_len};

/// Rotates x `[tokens, heads, head_dim]` in place by `cos` and `sin` `[tokens, head_dim / 2]`.
///
/// `round` is applied to each product and to the sum, as bf16 arithmetic does; pass `|v| v` for f32.
pub fn rotate_halves(
    x: &mut [f32],
    cos: &[f32],
    sin: &[f32],
    heads: usize,
    head_dim: usize,
    round: impl Fn(f32) -> f32,
) -> Result<()> {
    if heads == 0 || head_dim == 0 || !head_dim.is_multiple_of(2) {
        return Err(Error::Invalid {
            what: "head_dim",
            value: head_dim,
            expected: "an even number above zero",
        });
    }
    let (half, width) = (head_dim / 2, heads * head_dim);
    check_len("rope cosines", cos.len() * 2 * heads, x.len())?;
    check_len("rope sines", sin.len(), cos.len())?;
    for ((token, cos), sin) in
        x.chunks_exact_mut(width).zip(cos.chunks_exact(half)).zip(sin.chunks_exact(half))
    {
        for head in token.chunks_exact_mut(head_dim) {
            let (first, second) = head.split_at_mut(half);
            for i in 0..half {
                let (a, b) = (first[i], second[i]);
                first[i] = round(round(a * cos[i]) - round(b * sin[i]));
                second[i] = round(round(b * cos[i]) + round(a * sin[i]));
            }
        }
    }
    Ok(())
}
