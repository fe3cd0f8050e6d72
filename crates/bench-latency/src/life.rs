//! The requests of one cell, read from its traces once; everything else derives from these.

use crate::{Error, Result};
use bench_core::event::{EventKind, FailureKind};
use bench_core::plan::Cell;
use bench_core::trace::{Outcome, RequestTrace, Timeline, TrialTrace};
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
    pub(crate) kv_allocated_bytes: Option<u64>,
}

impl Life {
    fn read(cell: &str, request: &RequestTrace) -> Result<Self> {
        let timeline = Timeline::read(cell, request)?;
        let sent = request.events.iter().find(|e| matches!(e.kind, EventKind::Sent)).map(|e| e.at);
        Ok(Self {
            repeat: request.repeat,
            sent,
            ended: request.events.last().map_or(timeline.sent, |e| e.at),
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

/// The measured requests of one cell, trial by trial; warm-up is left out.
pub(crate) fn read(cell: &Cell, trials: &[TrialTrace]) -> Result<Vec<Vec<Life>>> {
    let mut known = HashSet::new();
    let mut lives = Vec::with_capacity(trials.len());
    for trial in trials {
        if trial.cell != cell.id {
            return Err(Error::OtherCell {
                trial: trial.trial,
                found: trial.cell.clone(),
                expected: cell.id.clone(),
            });
        }
        for request in &trial.requests {
            let (repeat, slot) = (request.repeat, request.slot);
            if !known.insert((repeat, slot)) {
                return Err(Error::Duplicate { cell: cell.id.clone(), repeat, slot });
            }
        }
        lives.push(trial.requests.iter().map(|r| Life::read(&cell.id, r)).collect::<Result<_>>()?);
    }
    Ok(lives)
}
