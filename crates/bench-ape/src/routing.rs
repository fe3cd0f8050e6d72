//! The experts that a cell's repeats touched, summed as the router counted them.
//!
//! Only sums are kept, so that a cell of any number of repeats takes no memory.

use bench_core::shape::{ExpertUse, Touched};

/// Sum over the repeats of one cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Routing {
    repeats: u64,
    decode: Touched,
}

impl Routing {
    pub fn add(&mut self, experts: &ExpertUse) {
        // A repeat of one output token has a prefill only.
        self.repeats += u64::from(experts.decode.layer_passes > 0);
        self.decode.layer_passes += experts.decode.layer_passes;
        self.decode.experts += experts.decode.experts;
        self.decode.tokens += experts.decode.tokens;
    }

    /// Repeats that decoded.
    pub fn repeats(&self) -> u64 {
        self.repeats
    }

    /// Mean number of distinct experts of a layer in a decode step; `None` where nothing was counted.
    pub fn experts_touched(&self) -> Option<f64> {
        (self.decode.layer_passes > 0).then(|| self.decode.experts as f64 / self.decode.layer_passes as f64)
    }
}

impl<'a> FromIterator<&'a ExpertUse> for Routing {
    fn from_iter<I: IntoIterator<Item = &'a ExpertUse>>(uses: I) -> Self {
        let mut routing = Self::default();
        uses.into_iter().for_each(|u| routing.add(u));
        routing
    }
}
