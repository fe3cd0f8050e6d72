//! The requests of a study's trial, written as JSON before the load wants them.

use super::convert::Asked;
use super::drive::{Job, NextTurn, Turn};
use super::probe::Served;
use super::prompts::{self, PromptSource};
use super::trial::JobSource;
use bench_core::plan::{Cell, Plan, PromptPlan, derive_seed};
use bench_http::{EventKind, Exchange};
use std::sync::{Arc, Mutex, PoisonError};

/// Everything that the requests of a trial follow from.
struct Source {
    cell: Cell,
    plan_seed: u64,
    turns: u32,
    /// Whether each request asks for its cell's own lengths.
    fixed_lengths: bool,
    served: Arc<Served>,
    prompts: Arc<PromptSource>,
}

pub(super) struct StudyJobs(Arc<Source>);

impl StudyJobs {
    pub(super) fn new(plan: &Plan, cell: &Cell, served: &Arc<Served>, prompts: &Arc<PromptSource>) -> Self {
        let own = plan.server.as_ref().map(|s| &s.prompts);
        Self(Arc::new(Source {
            cell: cell.clone(),
            plan_seed: plan.seed,
            turns: own.map_or(1, |p| p.turns),
            fixed_lengths: own.is_some_and(PromptPlan::fixed_lengths) && cell.load.key() != "replay",
            served: served.clone(),
            prompts: prompts.clone(),
        }))
    }
}

/// A conversation so far.
struct Talk {
    over: Vec<prompts::Turn>,
    /// What the user says in the turn under way.
    said: Arc<str>,
}

impl JobSource for StudyJobs {
    fn job(&mut self, index: u32, warmup: bool) -> Result<Job, String> {
        let source = &self.0;
        let (first, said) = source.turn(index, 0, warmup, &[])?;
        let talk = Arc::new(Mutex::new(Talk { over: Vec::new(), said }));
        let later = (1..source.turns).map(|turn| {
            let (source, talk) = (source.clone(), talk.clone());
            let asked = source.asked(index, turn, warmup);
            let next: NextTurn = Box::new(move |before: &Exchange| {
                let mut talk = talk.lock().unwrap_or_else(PoisonError::into_inner);
                let over = over(talk.said.clone(), before);
                talk.over.push(over);
                let (next, said) = source.turn(index, turn, warmup, &talk.over)?;
                talk.said = said;
                Ok(next)
            });
            (asked, next)
        });
        Ok(Job { first, later: later.collect() })
    }
}

impl Source {
    fn asked(&self, index: u32, turn: u32, warmup: bool) -> Asked {
        let kind = if warmup { "warmup-" } else { "" };
        Asked {
            repeat: index,
            slot: turn,
            id: format!("{}-{kind}{index}-{turn}", self.cell.id),
            prompt_hash: String::new(),
            lengths: None,
            prompt_is_known: false,
        }
    }

    fn turn(
        &self,
        index: u32,
        turn: u32,
        warmup: bool,
        history: &[prompts::Turn],
    ) -> Result<(Turn, Arc<str>), String> {
        let made = self.prompts.request(&self.cell, u64::from(index), turn, warmup, history);
        let prepared = made.map_err(|e| format!("prompt of cell {}: {e}", self.cell.id))?;
        let seed = derive_seed(self.plan_seed, &format!("sampler/{}/{warmup}/{index}/{turn}", self.cell.id));
        // JSON numbers of other languages are exact up to 2^53 only.
        let variable =
            self.served.variable(&prepared.prompt, prepared.lengths.output_tokens, Some(seed >> 11));
        let body = self.served.template.render(&variable).map_err(|e| e.to_string())?;
        let varies = !self.fixed_lengths || !prepared.prompt_is_known;
        let asked = Asked {
            prompt_hash: prepared.hash,
            lengths: varies.then_some(prepared.lengths),
            prompt_is_known: prepared.prompt_is_known,
            ..self.asked(index, turn, warmup)
        };
        Ok((Turn { asked, body }, prepared.said.unwrap_or_default()))
    }
}

/// The turn that is over, as the history of the next.
fn over(said: Arc<str>, exchange: &Exchange) -> prompts::Turn {
    let answer = exchange.text.as_ref().map(|text| text.content.as_str()).unwrap_or_default();
    let total_tokens = exchange.events.iter().rev().find_map(|event| match &event.kind {
        EventKind::Usage(usage) => Some(usage.prompt_tokens? + usage.output_tokens?),
        _ => None,
    });
    prompts::Turn { said, answer: answer.into(), total_tokens }
}
