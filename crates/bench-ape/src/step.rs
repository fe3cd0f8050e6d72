//! One decode step in bytes and operations, from the shape of a model alone.
//!
//! Each byte is counted as often as it must cross the memory bus, which is once; what an engine moves on top
//! (activations, experts that nobody chose) is what the roofline ratio shows.

use bench_core::shape::{ModelFacts, ModelShape};

/// Which experts a step reads.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Experts {
    /// Mean number of distinct experts of a layer.
    Touched(f64),
    /// All of them, as engines do that multiply with every expert and drop the rest.
    All,
}

/// The mean decode step of requests that run together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// Sequences, a mean where their number changes.
    pub batch: f64,
    pub prompt_tokens: f64,
    /// At least 2: the first output token comes from the prefill, each other one from a step.
    pub output_tokens: f64,
}

impl Step {
    /// Bytes that a step moves for each of its tokens: weights once, then for each sequence one row of the
    /// embedding, and keys and values of every position that it attends to (its own is written, the others
    /// read).
    pub fn bytes_per_token(&self, shape: &ModelShape, experts: Experts) -> f64 {
        let row = shape.weights.embedding.bytes as f64 / f64::from(shape.vocab_size.max(1));
        let position = shape.kv_layer_bytes() as f64;
        weight_bytes(shape, experts) / self.batch + row + position * self.attended(shape)
    }

    /// Floating point operations of a token: a multiplication and an addition for each parameter that it is
    /// multiplied with, which are the active ones unless all experts are computed, and for each head and position
    /// attended to one dot product with the key and one sum with the value.
    pub fn flops_per_token(&self, facts: &ModelFacts) -> f64 {
        let shape = &facts.shape;
        let heads = f64::from(shape.num_attention_heads) * f64::from(shape.head_dim);
        2.0 * facts.multiplied_parameters() as f64 + 4.0 * heads * self.attended(shape)
    }

    /// Positions that a token attends to, its own included: mean over the steps, summed over the layers.
    pub fn attended(&self, shape: &ModelShape) -> f64 {
        let (first, last) = (self.prompt_tokens + 1.0, self.prompt_tokens + self.output_tokens - 1.0);
        shape.windows.iter().map(|window| mean_attended(*window, first, last)).sum()
    }
}

/// Bytes of the weights that a step moves: all but the input embedding, unless that is the unembedding too.
fn weight_bytes(shape: &ModelShape, experts: Experts) -> f64 {
    let w = &shape.weights;
    let tied = w.lm_head.bytes == 0 && w.lm_head.parameters == 0;
    let unembedding = if tied { w.embedding.bytes } else { w.lm_head.bytes };
    let always = unembedding + w.attention.bytes + w.norms.bytes + w.router.bytes + w.mlp.bytes;
    let share = match (experts, shape.experts) {
        (Experts::Touched(touched), Some(e)) => touched / f64::from(e.num_experts.max(1)),
        _ => 1.0,
    };
    always as f64 + share * w.experts.bytes as f64
}

/// Mean of min(a, window) over a = first, first + 1 .. last; ends may be means of several lengths.
fn mean_attended(window: Option<u32>, first: f64, last: f64) -> f64 {
    let middle = |a: f64, b: f64| f64::midpoint(a, b);
    let Some(window) = window.map(f64::from) else { return middle(first, last) };
    if last <= window {
        return middle(first, last);
    }
    if first >= window {
        return window;
    }
    let growing = window - first + 1.0;
    let steps = last - first + 1.0;
    (growing * middle(first, window) + (steps - growing) * window) / steps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_averaged_step_by_step() {
        // 6, 7, 8, 9 positions.
        assert_eq!(mean_attended(None, 6.0, 9.0), 7.5);
        assert_eq!(mean_attended(Some(9), 6.0, 9.0), 7.5);
        // 6, 7, 8, 8
        assert_eq!(mean_attended(Some(8), 6.0, 9.0), 7.25);
        // 6, 7, 7, 7
        assert_eq!(mean_attended(Some(7), 6.0, 9.0), 6.75);
        // 6, 6, 6, 6
        assert_eq!(mean_attended(Some(6), 6.0, 9.0), 6.0);
        assert_eq!(mean_attended(Some(4), 6.0, 9.0), 4.0);
        assert_eq!(mean_attended(Some(128), 2049.0, 2111.0), 128.0);
    }
}
