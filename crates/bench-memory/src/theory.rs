//! What a model's shape says that its weights and its KV cache take.
//!
//! Exact counts only; activations, pools and what fits are estimated elsewhere.

use bench_core::shape::ModelShape;

/// Tokens fed to the model for one request: the last sampled token is never fed.
pub fn tokens_fed(prompt_tokens: u32, output_tokens: u32) -> u64 {
    u64::from(prompt_tokens) + u64::from(output_tokens.max(1)) - 1
}

/// Bytes of keys and values of one sequence of `tokens` tokens, if a layer with a window keeps no more than that:
/// the sum over layers of 2 * kv heads * head dim * bytes * min(tokens, window).
pub fn kv_theory_bytes(shape: &ModelShape, tokens: u64) -> u64 {
    let kept = |window: &Option<u32>| window.map_or(tokens, |window| tokens.min(u64::from(window)));
    shape.windows.iter().map(kept).sum::<u64>() * shape.kv_layer_bytes()
}

/// The same if every layer keeps everything.
pub fn kv_full_bytes(shape: &ModelShape, tokens: u64) -> u64 {
    tokens * shape.windows.len() as u64 * shape.kv_layer_bytes()
}

/// Bytes of all parameters as they were loaded.
pub fn weights_bytes(shape: &ModelShape) -> u64 {
    shape.weights.parts().iter().map(|part| part.bytes).sum()
}
