//! Which lines of a trace are sent, and at what instant of the run.
//!
//! Works on one line at a time: with a limit it holds no more requests than that, however long the trace.

use super::format::Recorded;
use super::{LeftOut, Replay, ReplayOptions, ReplayRequest};
use bench_core::spec::TraceFormat;
use std::collections::BinaryHeap;

pub(super) struct Selection {
    options: ReplayOptions,
    /// The instant of the trace's first line, from which windows count.
    origin_ns: Option<i64>,
    previous_ns: i64,
    /// Lines that stand after a later one.
    out_of_order: u64,
    position: u64,
    /// The latest is on top, and goes first when there are too many.
    kept: BinaryHeap<Kept>,
    left_out: LeftOut,
}

/// Ordered by time and then by place in the file, which makes sorting stable.
struct Kept {
    key: (i64, u64),
    recorded: Recorded,
}

impl Ord for Kept {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key.cmp(&other.key)
    }
}

impl PartialOrd for Kept {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Kept {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

impl Eq for Kept {}

impl Selection {
    pub(super) fn new(options: &ReplayOptions) -> Self {
        Self {
            options: *options,
            origin_ns: None,
            previous_ns: i64::MIN,
            out_of_order: 0,
            position: 0,
            kept: BinaryHeap::new(),
            left_out: LeftOut::default(),
        }
    }

    pub(super) fn take(&mut self, recorded: Recorded) {
        let origin_ns = *self.origin_ns.get_or_insert(recorded.at_ns);
        self.out_of_order += u64::from(recorded.at_ns < self.previous_ns);
        self.previous_ns = self.previous_ns.max(recorded.at_ns);
        self.position += 1;
        let since_origin_s = (i128::from(recorded.at_ns) - i128::from(origin_ns)) as f64 / 1e9;
        if let Some(reason) = self.reason(&recorded, since_origin_s) {
            *reason += 1;
            return;
        }
        self.kept.push(Kept { key: (recorded.at_ns, self.position), recorded });
        if self.options.limit.is_some_and(|limit| self.kept.len() as u64 > limit) {
            self.kept.pop();
            self.left_out.beyond_limit += 1;
        }
    }

    /// Under what a line is counted that is not sent.
    fn reason(&mut self, recorded: &Recorded, since_origin_s: f64) -> Option<&mut u64> {
        let options = &self.options;
        let left_out = &mut self.left_out;
        let longer = |tokens: u32, most: Option<u32>| most.is_some_and(|most| tokens > most);
        if recorded.output_tokens == 0 {
            Some(&mut left_out.without_output)
        } else if recorded.prompt_tokens == 0 {
            Some(&mut left_out.without_prompt)
        } else if options.start_s.is_some_and(|start| since_origin_s < start)
            || options.end_s.is_some_and(|end| since_origin_s >= end)
        {
            Some(&mut left_out.outside_window)
        } else if longer(recorded.prompt_tokens, options.max_prompt_tokens) {
            Some(&mut left_out.prompt_too_long)
        } else if longer(recorded.output_tokens, options.max_output_tokens) {
            Some(&mut left_out.output_too_long)
        } else {
            None
        }
    }

    /// The kept requests in order of time, the first at 0.
    pub(super) fn finish(self, format: TraceFormat, options: &ReplayOptions) -> Replay {
        let notes = self.notes();
        let kept = self.kept.into_sorted_vec();
        let first_ns = kept.first().map_or(0, |first| first.key.0);
        let request = |Kept { recorded, .. }| {
            let Recorded { at_ns, prompt_tokens, output_tokens, blocks } = recorded;
            // In order, so never negative; at the recorded speed exact to the nanosecond.
            let since_first = at_ns.abs_diff(first_ns);
            let scaled = (since_first as f64 / options.speed).round() as u64;
            let at_ns = if options.speed == 1.0 { since_first } else { scaled };
            ReplayRequest { at_ns, prompt_tokens, output_tokens, blocks }
        };
        Replay {
            format,
            requests: kept.into_iter().map(request).collect(),
            left_out: self.left_out,
            notes,
            block_tokens: options.block_tokens,
        }
    }

    fn notes(&self) -> Vec<String> {
        let mut notes = vec![];
        if self.out_of_order > 0 {
            notes.push(format!(
                "the trace is not in order of time ({} lines come after a later one): sorted",
                self.out_of_order
            ));
        }
        if let Some(left_out) = self.left_out.describe() {
            notes.push(format!(
                "of {} lines {} are left out: {left_out}",
                self.position,
                self.left_out.total()
            ));
        }
        let partly = self.kept.iter().filter(|kept| self.is_partly_in_blocks(&kept.recorded)).count();
        if partly > 0 {
            notes.push(format!(
                "{partly} prompts are longer than their blocks: the rest is text of their own"
            ));
        }
        let factor = self.options.speed;
        if factor != 1.0 {
            notes.push(format!("sent at {factor} times the recorded speed"));
        }
        notes
    }

    fn is_partly_in_blocks(&self, recorded: &Recorded) -> bool {
        let covered = recorded.blocks.len() as u64 * u64::from(self.options.block_tokens);
        !recorded.blocks.is_empty() && covered < u64::from(recorded.prompt_tokens)
    }
}
