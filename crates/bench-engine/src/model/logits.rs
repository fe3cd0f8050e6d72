//! What a forward pass leaves: rows of logits, from which tokens are chosen.

use crate::error::Result;
use crate::model::Workspace;
use crate::sampling::Sampler;

/// The logits of a pass, one row for each position that was unembedded; gone with the next pass.
pub struct Logits<'w> {
    workspace: &'w mut Workspace,
}

impl<'w> Logits<'w> {
    pub(crate) fn new(workspace: &'w mut Workspace) -> Self {
        Self { workspace }
    }

    /// The values, f32 `[rows, vocab]`.
    ///
    /// # Errors
    /// A device that fails, or values that are not finite.
    pub fn values(self) -> Result<&'w [f32]> {
        #[cfg(feature = "cuda")]
        if self.workspace.device.is_some() {
            return self.workspace.device()?.logits();
        }
        Ok(self.workspace.logits.values())
    }

    /// The next token of `row`, as [`Sampler::sample`] chooses it.
    ///
    /// # Errors
    /// Nothing to sample.
    pub fn sample(&mut self, row: usize, sampler: &mut Sampler, suppressed: &[u32]) -> Result<u32> {
        #[cfg(feature = "cuda")]
        if self.workspace.device.is_some() {
            let device = self.workspace.device()?;
            if sampler.is_greedy() {
                return device.greedy(row, suppressed);
            }
            let vocab = device.vocab();
            return sampler.sample(&device.logits()?[row * vocab..(row + 1) * vocab], suppressed);
        }
        sampler.sample(self.workspace.logits.row(row), suppressed)
    }
}
