//! Recorded traces as load: when each request came, how long it was, and which prefix it shared.
//!
//! Traces carry lengths, not texts. What is left out of a trace is counted by its reason, and what was
//! changed (order, speed) is noted; the texts are made by who sends them, from `prompt_pieces`.

mod azure;
mod burstgpt;
mod format;
mod mooncake;
mod select;

use crate::load::lines::Lines;
use crate::load::{ShortHash, check_hash};
use crate::{Error, Result};
use bench_core::plan::{TracePlan, derive_seed};
use bench_core::spec::TraceFormat;
use format::Parser;
use select::Selection;
use std::io::{BufRead, Write};
use std::path::Path;

/// A line of a trace takes some kilobytes at most: a prompt of a million tokens has 2,000 block ids.
const LONGEST_LINE_BYTES: usize = 1 << 20;

/// What of a trace is sent, and how fast.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ReplayOptions {
    /// `Auto`: found out from the file's first line.
    pub format: TraceFormat,
    /// At most this many requests, the earliest that nothing else leaves out.
    pub limit: Option<u64>,
    /// Only requests at this many seconds of trace time after the trace's first line, or later.
    pub start_s: Option<f64>,
    /// Only requests before this many seconds of trace time after the trace's first line.
    pub end_s: Option<f64>,
    /// Trace seconds per second of the run: 2 sends at twice the recorded rate.
    pub speed: f64,
    /// Requests with a longer prompt are left out.
    pub max_prompt_tokens: Option<u32>,
    /// Requests with a longer answer are left out.
    pub max_output_tokens: Option<u32>,
    /// Tokens that one Mooncake hash id stands for.
    pub block_tokens: u32,
}

impl Default for ReplayOptions {
    fn default() -> Self {
        Self {
            format: TraceFormat::Auto,
            limit: None,
            start_s: None,
            end_s: None,
            speed: 1.0,
            max_prompt_tokens: None,
            max_output_tokens: None,
            block_tokens: mooncake::BLOCK_TOKENS,
        }
    }
}

/// One request of a trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplayRequest {
    /// After the first request that is sent, at the speed of the replay.
    pub at_ns: u64,
    pub prompt_tokens: u32,
    pub output_tokens: u32,
    /// Ids of the prompt's blocks from its beginning; empty where the trace has none.
    pub blocks: Vec<u64>,
}

/// Lines of a trace that are not sent, each under the first reason that holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LeftOut {
    /// Failed when the trace was recorded: no answer tokens.
    pub without_output: u64,
    pub without_prompt: u64,
    pub outside_window: u64,
    pub prompt_too_long: u64,
    pub output_too_long: u64,
    pub beyond_limit: u64,
}

/// What is sent of a trace, in order of time.
#[derive(Debug, Clone, PartialEq)]
pub struct Replay {
    /// Never `Auto`.
    pub format: TraceFormat,
    pub requests: Vec<ReplayRequest>,
    pub left_out: LeftOut,
    /// What was changed or is worth knowing, as sentences.
    pub notes: Vec<String>,
    block_tokens: u32,
}

/// A part of a prompt whose text follows from its seed alone: equal seeds are equal texts, of which a shorter
/// part is the beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PromptPiece {
    pub seed: u64,
    pub tokens: u32,
}

impl Replay {
    /// Reads a trace. Errors name the line and what was expected there.
    pub fn open(path: &Path, options: &ReplayOptions) -> Result<Self> {
        options.check()?;
        Self::read(Lines::open(path, LONGEST_LINE_BYTES)?, path, options)
    }

    /// Reads the trace of a plan, and refuses another one than that whose hash stands there.
    pub fn open_planned(plan: &TracePlan) -> Result<Self> {
        let options = ReplayOptions {
            format: plan.format,
            limit: plan.limit.map(u64::from),
            speed: plan.speed,
            ..ReplayOptions::default()
        };
        let path = Path::new(&plan.path);
        let replay = Self::open(path, &options)?;
        check_hash(path, plan.hash.as_deref(), replay.hash())?;
        Ok(replay)
    }

    fn read<R: BufRead>(mut lines: Lines<R>, path: &Path, options: &ReplayOptions) -> Result<Self> {
        let empty = || Error::NoRequests { path: path.to_owned(), why: "the file is empty".to_owned() };
        let first = lines.next()?.ok_or_else(empty)?.to_owned();
        let parser = Parser::for_first_line(&first, options).map_err(|problem| lines.corrupt(problem))?;
        let mut selection = Selection::new(options);
        if !parser.first_line_is_a_header() {
            selection.take(parser.parse(&first).map_err(|problem| lines.corrupt(problem))?);
        }
        while let Some(line) = lines.next()? {
            let recorded = parser.parse(line);
            selection.take(recorded.map_err(|problem| lines.corrupt(problem))?);
        }
        let replay = selection.finish(parser.format(), options);
        if replay.requests.is_empty() {
            let why = match replay.left_out.describe() {
                Some(left_out) => format!("every line is left out: {left_out}"),
                None => "there is a header and nothing else".to_owned(),
            };
            return Err(Error::NoRequests { path: path.to_owned(), why });
        }
        Ok(replay)
    }

    /// Identifies what is sent and when: instants, lengths and blocks.
    pub fn hash(&self) -> String {
        let mut hash = ShortHash::default();
        for request in &self.requests {
            // A hash in memory does not fail.
            let _ = hash.write_all(&request.at_ns.to_le_bytes());
            let _ = hash.write_all(&request.prompt_tokens.to_le_bytes());
            let _ = hash.write_all(&request.output_tokens.to_le_bytes());
            let _ = hash.write_all(&(request.blocks.len() as u64).to_le_bytes());
            for block in &request.blocks {
                let _ = hash.write_all(&block.to_le_bytes());
            }
        }
        hash.finish()
    }

    /// The parts of request `index`'s prompt, `prompt_tokens` in all: one for each block, then one of its own
    /// for what no block covers. Two requests share a leading part exactly where they share its block id;
    /// with another `salt` nothing is shared with an earlier run. `None` beyond the last request.
    pub fn prompt_pieces(&self, index: usize, salt: u64) -> Option<Vec<PromptPiece>> {
        let request = self.requests.get(index)?;
        let mut missing = request.prompt_tokens;
        let mut pieces = Vec::with_capacity(request.blocks.len() + 1);
        for block in &request.blocks {
            let tokens = missing.min(self.block_tokens);
            pieces.push(PromptPiece { seed: derive_seed(salt, &format!("load.block {block}")), tokens });
            missing -= tokens;
        }
        if missing > 0 {
            let seed = derive_seed(salt, &format!("load.request {index}"));
            pieces.push(PromptPiece { seed, tokens: missing });
        }
        Some(pieces)
    }
}

impl LeftOut {
    pub fn total(&self) -> u64 {
        self.reasons().iter().map(|(count, _)| count).sum()
    }

    /// `3 without an answer in the trace, 5 beyond the limit`; `None` if nothing was left out.
    pub fn describe(&self) -> Option<String> {
        let reasons = self.reasons().into_iter().filter(|(count, _)| *count > 0);
        let parts: Vec<String> = reasons.map(|(count, reason)| format!("{count} {reason}")).collect();
        (!parts.is_empty()).then(|| parts.join(", "))
    }

    fn reasons(&self) -> [(u64, &'static str); 6] {
        [
            (self.without_output, "without an answer in the trace"),
            (self.without_prompt, "without a prompt in the trace"),
            (self.outside_window, "outside the time window"),
            (self.prompt_too_long, "with too long a prompt"),
            (self.output_too_long, "with too long an answer"),
            (self.beyond_limit, "beyond the limit"),
        ]
    }
}

impl ReplayOptions {
    fn check(&self) -> Result<()> {
        let refuse = |name, value: String, expected| Err(Error::LoadValue { name, value, expected });
        if !(self.speed.is_finite() && self.speed > 0.0) {
            return refuse("speed", self.speed.to_string(), "a finite factor above 0; 1 is as recorded");
        }
        for (name, value) in [("start_s", self.start_s), ("end_s", self.end_s)] {
            if let Some(value) = value.filter(|value| !(value.is_finite() && *value >= 0.0)) {
                return refuse(name, value.to_string(), "seconds from 0 on");
            }
        }
        if let (Some(start), Some(end)) = (self.start_s, self.end_s)
            && start >= end
        {
            return refuse("end_s", end.to_string(), "more than start_s");
        }
        if self.limit == Some(0) {
            return refuse("limit", "0".to_owned(), "at least 1 request");
        }
        if self.block_tokens == 0 {
            return refuse("block_tokens", "0".to_owned(), "at least 1 token; Mooncake's traces have 512");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
