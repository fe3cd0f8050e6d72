//! Gated activations between the two products of an MLP.

use crate::error::{Result, check_len};

/// The clamped SwiGLU of gpt-oss: `(up + 1) · gate · sigmoid(alpha · gate)`.
///
/// x is `[tokens, 2 · width]` with gate j at 2j and up j at 2j + 1; the gate is clamped above only. `round` is
/// applied where bf16 arithmetic rounds.
pub fn clamped_swiglu(
    x: &[f32],
    alpha: f32,
    limit: f32,
    out: &mut [f32],
    round: impl Fn(f32) -> f32,
) -> Result<()> {
    check_len("swiglu input", x.len(), out.len() * 2)?;
    for (pair, out) in x.chunks_exact(2).zip(out) {
        let (gate, up) = (pair[0].min(limit), pair[1].clamp(-limit, limit));
        let swish = round(gate * round(sigmoid(round(gate * alpha))));
        *out = round(round(up + 1.0) * swish);
    }
    Ok(())
}

/// `gate · sigmoid(gate) · up` of dense models.
pub fn swiglu(gate: &[f32], up: &[f32], out: &mut [f32], round: impl Fn(f32) -> f32) -> Result<()> {
    check_len("swiglu gate", gate.len(), out.len())?;
    check_len("swiglu up", up.len(), out.len())?;
    for ((gate, up), out) in gate.iter().zip(up).zip(out) {
        *out = round(round(gate * sigmoid(*gate)) * up);
    }
    Ok(())
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gate_is_clamped_above_only() {
        let mut out = [0.0; 4];
        clamped_swiglu(&[9.0, 0.0, -9.0, 0.0, 1.0, 9.0, 1.0, -9.0], 1.702, 7.0, &mut out, |v| v).unwrap();
        let swish = |g: f32| g / (1.0 + (-1.702 * g).exp());
        assert!((out[0] - swish(7.0)).abs() < 1e-6 && (out[1] - swish(-9.0)).abs() < 1e-6);
        assert!((out[2] - 8.0 * swish(1.0)).abs() < 1e-6 && (out[3] + 6.0 * swish(1.0)).abs() < 1e-6);
    }
}
