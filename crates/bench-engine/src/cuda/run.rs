//! From tokens of some sequences to logits: chunks, which rows are kept, and whose turn it is.

use crate::cache::Sequence;
use crate::cuda::workspace::Size;
use crate::cuda::{DeviceWorkspace, Pass, Transformer};
use crate::error::Result;
use crate::hooks::Hooks;
use crate::model::Span;

/// What is run: `ids(i)` are the new tokens of sequence i of `count`.
pub(crate) struct Input<'a, F> {
    pub(crate) ids: &'a F,
    pub(crate) count: usize,
    /// Tokens of a sequence in one pass.
    pub(crate) chunk: usize,
    /// Whether the logits of all positions are wanted, or those of each sequence's last.
    pub(crate) all: bool,
}

impl<'i, F: Fn(usize) -> &'i [u32]> Input<'_, F> {
    /// The tokens of sequence `i` in the pass that begins at `start`.
    fn part(&self, i: usize, start: usize) -> &'i [u32] {
        let ids = (self.ids)(i);
        &ids[start.min(ids.len())..start.saturating_add(self.chunk).min(ids.len())]
    }

    /// Ids and spans of that pass.
    fn pass(&self, sequences: &[&mut Sequence], start: usize) -> (Vec<u32>, Vec<Span>) {
        let (mut ids, mut spans) = (Vec::new(), Vec::new());
        for sequence in (0..self.count).filter(|&i| !self.part(i, start).is_empty()) {
            let (first, past) = (ids.len(), sequences[sequence].len());
            ids.extend_from_slice(self.part(sequence, start));
            spans.push(Span { sequence, start: first, len: ids.len() - first, past });
        }
        (ids, spans)
    }

    /// For each row of the pass that is kept: that row, and its place among all that are kept.
    fn kept(&self, spans: &[Span], start: usize) -> Vec<(u32, u32)> {
        let mut before: Vec<usize> = vec![0];
        for i in 0..self.count {
            before.push(before[i] + (self.ids)(i).len());
        }
        let mut kept = Vec::new();
        for span in spans {
            let last = start + span.len == (self.ids)(span.sequence).len();
            if self.all {
                let place = before[span.sequence] + start;
                kept.extend((0..span.len).map(|i| ((span.start + i) as u32, (place + i) as u32)));
            } else if last {
                kept.push(((span.start + span.len - 1) as u32, span.sequence as u32));
            }
        }
        kept
    }
}

impl Transformer {
    /// Runs `input` through `sequences`; logits are then in `ws`.
    ///
    /// # Errors
    /// As [`Transformer::forward`]; sequences of a pass that failed must be reset.
    pub(crate) fn run<'i, F: Fn(usize) -> &'i [u32]>(
        &self,
        ws: &mut DeviceWorkspace,
        sequences: &mut [&mut Sequence],
        input: &Input<'_, F>,
        hooks: &mut Hooks<'_>,
    ) -> Result<()> {
        let lengths = || (0..input.count).map(|i| (input.ids)(i).len());
        let longest = lengths().max().unwrap_or(0);
        if longest == 1 && !input.all && hooks.is_empty() {
            let (ids, spans) = input.pass(sequences, 0);
            return in_turn(sequences, &spans, |sequences, spans| {
                self.decode(ws, &mut Pass { ids: &ids, spans, sequences, hooks })
            });
        }
        let kept = if input.all { lengths().sum() } else { input.count };
        let rows = lengths().map(|length| length.min(input.chunk)).sum();
        let size = Size { rows, sequences: input.count, kept, keys: 0 };
        for start in (0..longest).step_by(input.chunk) {
            let (ids, spans) = input.pass(sequences, start);
            let keep = input.kept(&spans, start);
            in_turn(sequences, &spans, |sequences, spans| {
                self.forward(ws, &mut Pass { ids: &ids, spans, sequences, hooks }, size)?;
                self.keep_rows(ws, &keep)
            })?;
        }
        let from = ws.places.kept;
        self.unembed(ws, from, kept, &mut Pass { ids: &[], spans: &[], sequences, hooks })
    }
}

/// Marks the sequences of `spans` as running while `work` does, and their tokens as seen if it does not fail.
fn in_turn<'s>(
    sequences: &mut [&'s mut Sequence],
    spans: &[Span],
    work: impl FnOnce(&mut [&'s mut Sequence], &[Span]) -> Result<()>,
) -> Result<()> {
    for span in spans {
        sequences[span.sequence].begin()?;
    }
    work(sequences, spans)?;
    for span in spans {
        sequences[span.sequence].finish(span.len);
    }
    Ok(())
}
