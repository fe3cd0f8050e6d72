//! Tokens chosen where the logits are: the most likely ones, and ones drawn by their probabilities.
//!
//! One look at the logits of all rows, for draws three more to cut each of top-k and top-p and one to draw, and one copy
//! of the ids: nothing else of a step is waited for.

use bench_kernels::cuda::Gpu;
use bench_kernels::cuda::device::Category;
use bench_kernels::cuda::vectors::{self, RowDraw, SelectArgs};
use bench_kernels::draw::Draw;

use crate::cuda::workspace::DeviceWorkspace;
use crate::cuda::{address, buffer_of, gpu_error};
use crate::error::{Error, Result};

/// How far tokens of the last pass are chosen.
#[derive(Debug, Default)]
pub(crate) struct Choice {
    /// Ids that are not chosen, as they stand on the device.
    suppressed: Vec<u32>,
    /// Whether the largest logit of each row is known on the device.
    ranked: bool,
    /// The most likely tokens, if they were asked for.
    best: Option<Vec<u32>>,
}

impl Choice {
    /// There are other logits now.
    pub(crate) fn forget(&mut self) {
        (self.ranked, self.best) = (false, None);
    }
}

impl DeviceWorkspace {
    /// The most likely token of `row` that is not suppressed.
    pub(crate) fn greedy(&mut self, row: usize, suppressed: &[u32]) -> Result<u32> {
        self.suppress(suppressed)?;
        if self.choice.best.is_none() {
            self.rank()?;
            self.choice.best = Some(self.chosen_ids()?);
        }
        let id = self.choice.best.as_ref().and_then(|ids| ids.get(row)).copied();
        self.check_id(id)
    }

    /// A token of `row` by its probability.
    pub(crate) fn draw(&mut self, row: usize, draw: Draw, suppressed: &[u32]) -> Result<u32> {
        self.suppress(suppressed)?;
        self.launch_draws(row, &[draw])?;
        let id = self.chosen_ids()?.get(row).copied();
        self.check_id(id)
    }

    /// Tokens of all rows by their probabilities, the most likely one where the temperature is 0.
    pub(crate) fn draw_all(&mut self, draws: &[Draw], suppressed: &[u32]) -> Result<Vec<u32>> {
        self.suppress(suppressed)?;
        // The ids of an earlier draw stand where those of the largest logits are to stay.
        self.choice.ranked = false;
        self.launch_draws(0, draws)?;
        let mut ids = self.chosen_ids()?;
        ids.truncate(draws.len());
        ids.into_iter().map(|id| self.check_id(Some(id))).collect()
    }

    fn check_id(&self, id: Option<u32>) -> Result<u32> {
        let vocab = self.vocab();
        id.filter(|id| (*id as usize) < vocab).ok_or(Error::NothingToSample { vocab_size: vocab })
    }

    /// Brings the suppressed ids to the device, unless they are there.
    fn suppress(&mut self, suppressed: &[u32]) -> Result<()> {
        if self.choice.suppressed == suppressed {
            return Ok(());
        }
        self.choice = Choice::default();
        if !suppressed.is_empty() {
            let ids = bytemuck::cast_slice(suppressed);
            self.suppressed_ids = Some(buffer_of(&self.device, ids, Category::Workspace)?);
        }
        self.choice.suppressed = suppressed.to_vec();
        Ok(())
    }

    /// Launches the choice of the largest logits of all rows.
    fn rank(&mut self) -> Result<()> {
        vectors::argmax(&self.device, &self.select(0, self.kept)).map_err(gpu_error)?;
        self.choice.ranked = true;
        Ok(())
    }

    /// Launches draws for the rows from `first` on.
    fn launch_draws(&mut self, first: usize, draws: &[Draw]) -> Result<()> {
        if !self.choice.ranked {
            self.rank()?;
        }
        let rows = draws.len().min(self.kept.saturating_sub(first));
        let vocab = self.vocab() as u32;
        let draws: Vec<RowDraw> = draws.iter().take(rows).map(|draw| RowDraw::new(draw, vocab)).collect();
        self.device.write(self.places.draws, bytemuck::cast_slice(&draws)).map_err(gpu_error)?;
        vectors::sample(&self.device, &self.select(first, rows), &draws).map_err(gpu_error)
    }

    /// What the kernels are told of `rows` rows from `first` on.
    fn select(&self, first: usize, rows: usize) -> SelectArgs {
        let (p, vocab) = (&self.places, self.vocab());
        let suppressed = &self.choice.suppressed;
        let of_row = |place: u64, bytes: usize| place + (first * bytes) as u64;
        SelectArgs {
            logits: of_row(p.logits, 4 * vocab),
            suppressed: if suppressed.is_empty() { 0 } else { address(&self.suppressed_ids) },
            ids: of_row(p.chosen, 4),
            best: of_row(p.best, 4),
            non_finite: of_row(p.chosen + 4 * self.kept as u64, 4),
            draws: p.draws,
            cuts: p.cuts,
            scratch: p.select,
            rows: rows as u32,
            vocab: vocab as u32,
            stride: vocab as u32,
            suppressed_count: suppressed.len() as u32,
            pass: 0,
            reserved: 0,
        }
    }

    /// The ids that were chosen last, of all rows.
    ///
    /// # Errors
    /// Logits that are not finite.
    fn chosen_ids(&self) -> Result<Vec<u32>> {
        let mut found = vec![0_u32; 2 * self.kept];
        self.device.read(self.places.chosen, bytemuck::cast_slice_mut(&mut found)).map_err(gpu_error)?;
        let bad = found.split_off(self.kept);
        self.check_finite(bad.iter().map(|n| *n as usize).sum())?;
        Ok(found)
    }
}
