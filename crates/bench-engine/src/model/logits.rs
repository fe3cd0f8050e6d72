//! What a forward pass leaves: rows of logits, from which tokens are chosen.
//!
//! On a device tokens are chosen there, for all rows of a step in one go, with values that each row's sampler draws
//! here.

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
    /// Nothing to sample; on a device what [`Logits::values`] says.
    pub fn sample(&mut self, row: usize, sampler: &mut Sampler, suppressed: &[u32]) -> Result<u32> {
        #[cfg(feature = "cuda")]
        if self.workspace.device.is_some() {
            let device = self.workspace.device()?;
            if sampler.is_greedy() {
                return device.greedy(row, suppressed);
            }
            return device.draw(row, sampler.draw(), suppressed);
        }
        sampler.sample(self.workspace.logits.row(row), suppressed)
    }

    /// The next token of every row, each as its sampler chooses it; `chosen` is told row and token as soon as they are
    /// known.
    ///
    /// # Errors
    /// As [`Logits::sample`]; rows that were told before stay told.
    pub fn sample_all<'s>(
        &mut self,
        samplers: impl IntoIterator<Item = &'s mut Sampler>,
        suppressed: &[u32],
        mut chosen: impl FnMut(usize, u32),
    ) -> Result<()> {
        #[cfg(feature = "cuda")]
        if self.workspace.device.is_some() {
            return self.sample_on_device(samplers.into_iter().collect(), suppressed, &mut chosen);
        }
        for (row, sampler) in samplers.into_iter().enumerate() {
            chosen(row, self.sample(row, sampler, suppressed)?);
        }
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn sample_on_device(
        &mut self,
        samplers: Vec<&mut Sampler>,
        suppressed: &[u32],
        chosen: &mut dyn FnMut(usize, u32),
    ) -> Result<()> {
        if samplers.iter().all(|s| s.is_greedy()) {
            // The first of them chooses for all.
            for (row, sampler) in samplers.into_iter().enumerate() {
                chosen(row, self.sample(row, sampler, suppressed)?);
            }
            return Ok(());
        }
        let draws: Vec<_> = samplers.into_iter().map(Sampler::draw).collect();
        let ids = self.workspace.device()?.draw_all(&draws, suppressed)?;
        for (row, id) in ids.into_iter().enumerate() {
            chosen(row, id);
        }
        Ok(())
    }
}
