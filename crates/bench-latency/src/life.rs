//! One request read from its trace once; everything else derives from this.

use crate::{Error, Result};
use bench_core::client::ServerTimes;
use bench_core::event::{EventKind, FailureKind};
use bench_core::plan::Cell;
use bench_core::trace::{Lengths, Outcome, RequestTrace, Timeline};
use bench_core::unit::Nanos;
use std::collections::HashSet;

/// One request with what its timeline leaves out.
#[derive(Debug)]
pub(crate) struct Life {
    pub(crate) repeat: u32,
    pub(crate) timeline: Timeline,
    /// The `Sent` event; the timeline falls back to `intended` where there is none.
    pub(crate) sent: Option<Nanos>,
    /// Last event: when the request left flight, however it ended.
    pub(crate) ended: Nanos,
    /// Lengths of its own that it asked for.
    pub(crate) asked: Option<Lengths>,
    pub(crate) server: Option<ServerTimes>,
    pub(crate) kv_allocated_bytes: Option<u64>,
}

impl Life {
    pub(crate) fn read(cell: &str, request: &RequestTrace) -> Result<Self> {
        let timeline = Timeline::read(cell, request)?;
        let sent = request.events.iter().find(|e| matches!(e.kind, EventKind::Sent)).map(|e| e.at);
        Ok(Self {
            repeat: request.repeat,
            sent,
            ended: request.events.last().map_or(timeline.sent, |e| e.at),
            asked: request.asked,
            server: request.server,
            kv_allocated_bytes: request.kv_allocated_bytes,
            timeline,
        })
    }

    pub(crate) fn succeeded(&self) -> bool {
        self.failure().is_none()
    }

    /// How it failed; an answer without a token is a failure too.
    pub(crate) fn failure(&self) -> Option<FailureKind> {
        match &self.timeline.outcome {
            Outcome::Failed { failure, .. } => Some(*failure),
            Outcome::Finished(_) if self.timeline.chunks.is_empty() => Some(FailureKind::EmptyAnswer),
            Outcome::Finished(_) => None,
        }
    }

    /// Output tokens that were seen to arrive, whatever the target counted.
    pub(crate) fn seen_tokens(&self) -> u64 {
        self.timeline.chunks.iter().map(|c| u64::from(c.1)).sum()
    }
}

/// Which requests of a cell were there already: one bit for each that the plan has.
#[derive(Debug)]
pub(crate) struct Known {
    per_repeat: u32,
    planned: Vec<u64>,
    /// Beyond the plan, which only a trace that was edited has.
    others: HashSet<(u32, u32)>,
}

impl Known {
    pub(crate) fn new(cell: &Cell) -> Self {
        let bits = (cell.requests() as usize).div_ceil(64);
        Self { per_repeat: cell.requests_per_repeat, planned: vec![0; bits], others: HashSet::new() }
    }

    pub(crate) fn insert(&mut self, cell: &Cell, request: &RequestTrace) -> Result<()> {
        let (repeat, slot) = (request.repeat, request.slot);
        let index = u64::from(repeat) * u64::from(self.per_repeat) + u64::from(slot);
        let word = self.planned.get_mut((index / 64) as usize).filter(|_| slot < self.per_repeat);
        let new = match word {
            Some(word) => {
                let bit = 1 << (index % 64);
                let new = *word & bit == 0;
                *word |= bit;
                new
            }
            None => self.others.insert((repeat, slot)),
        };
        if new { Ok(()) } else { Err(Error::Duplicate { cell: cell.id.clone(), repeat, slot }) }
    }
}
