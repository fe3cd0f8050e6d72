//! From tokens of some sequences to logits: chunks, passes that are divided by sequences, which rows are kept, and whose
//! turn it is.

use std::ops::Range;

use crate::cache::Sequence;
use crate::cuda::workspace::{Size, keys};
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

    /// Sequences that go through the layers together, as many as have at most `most` rows in the first pass, which is
    /// the largest; with the rows of each group.
    fn groups(&self, most: usize) -> Vec<(Range<usize>, usize)> {
        let mut groups: Vec<(Range<usize>, usize)> = Vec::new();
        for i in 0..self.count {
            let own = self.part(i, 0).len();
            match groups.last_mut() {
                Some((group, rows)) if *rows + own <= most => (group.end, *rows) = (i + 1, *rows + own),
                _ => groups.push((i..i + 1, own)),
            }
        }
        groups
    }

    /// Ids and spans of `group` in the pass that begins at `start`.
    fn pass(&self, sequences: &[&mut Sequence], group: Range<usize>, start: usize) -> (Vec<u32>, Vec<Span>) {
        let (mut ids, mut spans) = (Vec::new(), Vec::new());
        for sequence in group.filter(|&i| !self.part(i, start).is_empty()) {
            let (first, past) = (ids.len(), sequences[sequence].len());
            ids.extend_from_slice(self.part(sequence, start));
            spans.push(Span { sequence, start: first, len: ids.len() - first, past });
        }
        (ids, spans)
    }

    /// Keys that attention is laid out for in the end: rows that are kept on the way must stay where they are, and with
    /// more keys everything moves.
    fn keys(&self, sequences: &mut [&mut Sequence]) -> Result<usize> {
        let mut longest = 0;
        for (i, sequence) in sequences.iter_mut().enumerate().take(self.count) {
            let tokens = sequence.len() + (self.ids)(i).len();
            longest = longest.max(tokens).max(sequence.device_cache()?.reserved());
        }
        Ok(keys(longest))
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
        let most = self.shape.pass_rows;
        let input = &Input { chunk: input.chunk.min(most), ..*input };
        let lengths = || (0..input.count).map(|i| (input.ids)(i).len());
        let longest = lengths().max().unwrap_or(0);
        if longest == 1 && !input.all && hooks.is_empty() && input.count <= most {
            let (ids, spans) = input.pass(sequences, 0..input.count, 0);
            return in_turn(sequences, &spans, |sequences, spans| {
                self.decode(ws, &mut Pass { ids: &ids, spans, sequences, hooks })
            });
        }
        let kept = if input.all { lengths().sum() } else { input.count };
        let groups = input.groups(most);
        let rows = groups.iter().map(|(_, rows)| *rows).max().unwrap_or(0);
        let keys = input.keys(sequences)?;
        let size = Size { rows, sequences: input.count, kept, keys };
        for start in (0..longest).step_by(input.chunk) {
            for (group, _) in &groups {
                let (ids, spans) = input.pass(sequences, group.clone(), start);
                if ids.is_empty() {
                    continue;
                }
                let keep = input.kept(&spans, start);
                in_turn(sequences, &spans, |sequences, spans| {
                    self.forward(ws, &mut Pass { ids: &ids, spans, sequences, hooks }, size)?;
                    self.keep_rows(ws, &keep)
                })?;
            }
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
