//! Gated activations between the two products of an MLP.

use crate::error::{Result, check_len};
use crate::exec::Exec;
use crate::lanes::Lanes;
use crate::math::{round, sigmoid};
use crate::pieces::for_rows;
use crate::shared::SharedMut;
use crate::variant::dispatch;

/// Elements that one task takes at a time.
const STEP: usize = 64;

/// The clamped SwiGLU of gpt-oss: `(up + 1) · gate · sigmoid(alpha · gate)`.
///
/// x is `[tokens, 2 · width]` with gate j at 2j and up j at 2j + 1; the gate is clamped above only, NaN stays NaN.
/// `round_bf16` rounds wherever bf16 arithmetic does.
///
/// # Errors
/// An input that is not twice as long as the output.
pub fn clamped_swiglu(
    exec: &Exec,
    x: &[f32],
    alpha: f32,
    limit: f32,
    out: &mut [f32],
    round_bf16: bool,
) -> Result<()> {
    check_len("swiglu input", x.len(), out.len() * 2)?;
    let n = out.len();
    let out = SharedMut::new(out);
    for_rows(exec, n.div_ceil(STEP), 4 * STEP, |steps| {
        let range = steps.start * STEP..(steps.end * STEP).min(n);
        let x = &x[2 * range.start..2 * range.end];
        // SAFETY: tasks have disjoint ranges.
        let out = unsafe { out.slice(range) };
        if round_bf16 {
            clamped_bf16(exec.variant(), x, alpha, limit, out);
        } else {
            clamped_f32(exec.variant(), x, alpha, limit, out);
        }
    });
    Ok(())
}

dispatch! { fn clamped_f32(x: &[f32], alpha: f32, limit: f32, out: &mut [f32]) = clamped_f32_body }
dispatch! { fn clamped_bf16(x: &[f32], alpha: f32, limit: f32, out: &mut [f32]) = clamped_bf16_body }

#[inline(always)]
unsafe fn clamped_f32_body<L: Lanes>(x: &[f32], alpha: f32, limit: f32, out: &mut [f32]) {
    clamped::<false>(x, alpha, limit, out);
}

#[inline(always)]
unsafe fn clamped_bf16_body<L: Lanes>(x: &[f32], alpha: f32, limit: f32, out: &mut [f32]) {
    clamped::<true>(x, alpha, limit, out);
}

/// A plain loop without branches, which compilers turn into vectors of any width with the same results.
#[inline(always)]
fn clamped<const ROUND: bool>(x: &[f32], alpha: f32, limit: f32, out: &mut [f32]) {
    for (pair, out) in x.as_chunks::<2>().0.iter().zip(out) {
        // Comparisons that leave NaN as it is, unlike `min`.
        let gate = if pair[0] > limit { limit } else { pair[0] };
        let up = if pair[1] > limit { limit } else { pair[1] };
        let up = if up < -limit { -limit } else { up };
        let share = round::<ROUND>(sigmoid(round::<ROUND>(gate * alpha)));
        let swish = round::<ROUND>(gate * share);
        *out = round::<ROUND>(round::<ROUND>(up + 1.0) * swish);
    }
}

/// `gate · sigmoid(gate) · up` of dense models; `round_bf16` rounds wherever bf16 arithmetic does.
///
/// # Errors
/// Lengths that differ.
pub fn swiglu(exec: &Exec, gate: &[f32], up: &[f32], out: &mut [f32], round_bf16: bool) -> Result<()> {
    check_len("swiglu gate", gate.len(), out.len())?;
    check_len("swiglu up", up.len(), out.len())?;
    let n = out.len();
    let out = SharedMut::new(out);
    for_rows(exec, n.div_ceil(STEP), 4 * STEP, |steps| {
        let range = steps.start * STEP..(steps.end * STEP).min(n);
        let (gate, up) = (&gate[range.clone()], &up[range.clone()]);
        // SAFETY: tasks have disjoint ranges.
        let out = unsafe { out.slice(range) };
        if round_bf16 {
            gated_bf16(exec.variant(), gate, up, out);
        } else {
            gated_f32(exec.variant(), gate, up, out);
        }
    });
    Ok(())
}

dispatch! { fn gated_f32(gate: &[f32], up: &[f32], out: &mut [f32]) = gated_f32_body }
dispatch! { fn gated_bf16(gate: &[f32], up: &[f32], out: &mut [f32]) = gated_bf16_body }

#[inline(always)]
unsafe fn gated_f32_body<L: Lanes>(gate: &[f32], up: &[f32], out: &mut [f32]) {
    gated::<false>(gate, up, out);
}

#[inline(always)]
unsafe fn gated_bf16_body<L: Lanes>(gate: &[f32], up: &[f32], out: &mut [f32]) {
    gated::<true>(gate, up, out);
}

#[inline(always)]
fn gated<const ROUND: bool>(gate: &[f32], up: &[f32], out: &mut [f32]) {
    for ((gate, up), out) in gate.iter().zip(up).zip(out) {
        *out = round::<ROUND>(round::<ROUND>(gate * sigmoid(*gate)) * up);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gate_is_clamped_above_only() {
        let mut out = [0.0; 4];
        let x = [9.0, 0.0, -9.0, 0.0, 1.0, 9.0, 1.0, -9.0];
        clamped_swiglu(&Exec::shared(), &x, 1.702, 7.0, &mut out, false).unwrap();
        let swish = |g: f32| g / (1.0 + (-1.702 * g).exp());
        assert!((out[0] - swish(7.0)).abs() < 1e-6 && (out[1] - swish(-9.0)).abs() < 1e-6);
        assert!((out[2] - 8.0 * swish(1.0)).abs() < 1e-6 && (out[3] + 6.0 * swish(1.0)).abs() < 1e-6);
    }
}
