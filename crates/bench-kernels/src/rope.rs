//! Rotary position embedding on halves: element i turns with element i + d/2.

use crate::error::{Error, Result, check_len};
use crate::exec::Exec;
use crate::lanes::Lanes;
use crate::math::round;
use crate::pieces::for_rows;
use crate::shared::SharedMut;
use crate::variant::dispatch;

fn check(x: usize, cos: &[f32], sin: &[f32], heads: usize, head_dim: usize) -> Result<()> {
    if heads == 0 || head_dim == 0 || !head_dim.is_multiple_of(2) {
        let expected = "an even number above zero";
        return Err(Error::Invalid { what: "head_dim", value: head_dim, expected });
    }
    check_len("rope input", x, x / (heads * head_dim) * heads * head_dim)?;
    check_len("rope cosines", cos.len() * 2 * heads, x)?;
    check_len("rope sines", sin.len(), cos.len())
}

/// Rotates x `[tokens, heads, head_dim]` in place by `cos` and `sin` `[tokens, head_dim / 2]`.
///
/// `round_bf16` rounds each product and the sum, as bf16 arithmetic does.
///
/// # Errors
/// A head dimension that is zero or odd, lengths that do not fit.
pub fn rotate_halves(
    exec: &Exec,
    x: &mut [f32],
    cos: &[f32],
    sin: &[f32],
    heads: usize,
    head_dim: usize,
    round_bf16: bool,
) -> Result<()> {
    check(x.len(), cos, sin, heads, head_dim)?;
    let (half, width) = (head_dim / 2, heads * head_dim);
    let tokens = x.len() / width;
    let x = SharedMut::new(x);
    for_rows(exec, tokens, width, |rows| {
        // SAFETY: tasks have disjoint tokens.
        let x = unsafe { x.slice(rows.start * width..rows.end * width) };
        let angles = rows.start * half..rows.end * half;
        let (cos, sin) = (&cos[angles.clone()], &sin[angles]);
        if round_bf16 {
            rotate_bf16(exec.variant(), x, cos, sin, width, half);
        } else {
            rotate_f32(exec.variant(), x, cos, sin, width, half);
        }
    });
    Ok(())
}

dispatch! {
    fn rotate_f32(x: &mut [f32], cos: &[f32], sin: &[f32], width: usize, half: usize) = rotate_f32_body
}
dispatch! {
    fn rotate_bf16(x: &mut [f32], cos: &[f32], sin: &[f32], width: usize, half: usize) = rotate_bf16_body
}

#[inline(always)]
unsafe fn rotate_f32_body<L: Lanes>(x: &mut [f32], cos: &[f32], sin: &[f32], width: usize, half: usize) {
    rotate_tokens::<false>(x, cos, sin, width, half);
}

#[inline(always)]
unsafe fn rotate_bf16_body<L: Lanes>(x: &mut [f32], cos: &[f32], sin: &[f32], width: usize, half: usize) {
    rotate_tokens::<true>(x, cos, sin, width, half);
}

/// Plain loops, which compilers turn into vectors of any width with the same results.
#[inline(always)]
fn rotate_tokens<const ROUND: bool>(x: &mut [f32], cos: &[f32], sin: &[f32], width: usize, half: usize) {
    for ((token, cos), sin) in
        x.chunks_exact_mut(width).zip(cos.chunks_exact(half)).zip(sin.chunks_exact(half))
    {
        for head in token.chunks_exact_mut(2 * half) {
            let (first, second) = head.split_at_mut(half);
            for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                let turned = round::<ROUND>(*a * cos) - round::<ROUND>(*b * sin);
                *b = round::<ROUND>(round::<ROUND>(*b * cos) + round::<ROUND>(*a * sin));
                *a = round::<ROUND>(turned);
            }
        }
    }
}
