//! Has the server count one prompt of each length, and corrects the length once by what it counted.
//!
//! The correction is verified by a second prompt and told with its numbers; it is never repeated, so that
//! what is still off stays visible in the requests themselves.

use super::{Content, FIT_NUMBER, Line, PromptSource, Which};
use crate::targets::http::probe::{Counting, Served};
use bench_core::plan::{Cell, ModelPlan, Plan};
use bench_core::target::TargetError;
use bench_http::discover::{Questions, user};
use bench_http::{Api, EventKind, Prompt, Variable};

/// A prompt whose cached tokens are more than this was seen by the server before: a block of most caches has
/// 16 or 64 tokens, and a template fills some.
const SEEN_BEFORE_TOKENS: u32 = 256;

/// What the server counted of one prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Counted {
    tokens: u32,
    cached: u32,
}

impl PromptSource {
    /// Learns what the server makes of each length of `model`'s cells.
    ///
    /// # Errors
    /// A prompt that cannot be made, a server that does not answer it.
    pub(super) async fn fit(
        &mut self,
        questions: &Questions<'_>,
        plan: &Plan,
        model: &ModelPlan,
        served: &Served,
        notes: &mut Vec<String>,
    ) -> Result<(), TargetError> {
        let mut cells: Vec<&Cell> = plan.cells.iter().filter(|cell| cell.model == model.label).collect();
        cells.sort_by_key(|cell| cell.prompt_tokens);
        cells.dedup_by_key(|cell| cell.prompt_tokens);
        let mut seen_before = false;
        for (at, cell) in cells.into_iter().enumerate() {
            let asked = cell.prompt_tokens;
            let number = FIT_NUMBER + 4 * at as u64;
            let which = |more| Which { cell, number: number + more, turn: 0, warmup: true };
            let ask = Asking { questions, served };
            let Some(first) = ask.count(&self.of_length(which(0), asked)?).await? else {
                notes
                    .push("the server does not count prompt tokens: prompt lengths are not known".to_owned());
                return Ok(());
            };
            self.counted = true;
            seen_before |= self.prompts.shared_prefix_tokens == 0 && first.cached > SEEN_BEFORE_TOKENS;
            if first.tokens == asked {
                self.lines.insert(asked, self.line(asked));
                continue;
            }
            let half =
                if self.vocabulary.is_some() { None } else { self.half(&ask, which(1), asked).await? };
            let line = match half {
                Some(half) => Line::through(half, (self.line(asked).words(asked), first.tokens)),
                None => shifted(self.line(asked), asked, first.tokens),
            };
            self.lines.insert(asked, line);
            let second = ask.count(&self.of_length(which(2), asked)?).await?;
            notes.push(told(asked, first.tokens, second.map(|c| c.tokens)));
        }
        if seen_before {
            notes.push(format!(
                "the server had cached prompts of this seed already, from an earlier run: give run.seed \
                another value than {}, or restart the server",
                plan.seed
            ));
        }
        Ok(())
    }

    /// Half as many words as would be sent for `asked` tokens, and what the server counts of them; `None`
    /// where there is no half.
    async fn half(
        &self,
        ask: &Asking<'_>,
        which: Which<'_>,
        asked: u32,
    ) -> Result<Option<(u32, u32)>, TargetError> {
        let words = self.line(asked).words(asked) / 2;
        if words == 0 {
            return Ok(None);
        }
        let prompt = self.wrap(Content::Text(self.words(which, words as usize)), &[])?;
        Ok(ask.count(&prompt).await?.map(|counted| (words, counted.tokens)))
    }

    fn of_length(&self, which: Which<'_>, tokens: u32) -> Result<Prompt, TargetError> {
        self.wrap(self.content(which, tokens)?, &[])
    }

    /// Refuses what does not fit into the model's context.
    pub(super) fn check_context(
        &self,
        plan: &Plan,
        model: &ModelPlan,
        served: &Served,
    ) -> Result<(), TargetError> {
        let Some(limit) = served.max_context else { return Ok(()) };
        let longest = 1.0 + self.prompts.length_range;
        for cell in plan.cells.iter().filter(|cell| cell.model == model.label) {
            let tokens = f64::from(cell.prompt_tokens) + f64::from(cell.output_tokens);
            let needed = (tokens * longest * f64::from(self.prompts.turns)).floor();
            if needed > f64::from(limit) {
                return Err(TargetError(format!(
                    "cell {} needs {needed} tokens of context for prompt and answer, and the server allows \
                     {limit}: ask for shorter ones, or start the server with more",
                    cell.id
                )));
            }
        }
        Ok(())
    }
}

/// The line moved so that `asked` is met, where `counted` came.
fn shifted(line: Line, asked: u32, counted: u32) -> Line {
    Line { fixed: line.fixed + f64::from(counted) - f64::from(asked), ..line }
}

fn told(asked: u32, first: u32, second: Option<u32>) -> String {
    let after = match second {
        Some(second) if second == asked => format!("{second} after the correction"),
        Some(second) => format!("{second} after the correction: the difference stays"),
        None => "nothing after the correction".to_owned(),
    };
    format!("prompts of {asked} tokens: the server counted {first} at first, {after}")
}

struct Asking<'a> {
    questions: &'a Questions<'a>,
    served: &'a Served,
}

impl Asking<'_> {
    /// `None` where the server does not count.
    async fn count(&self, prompt: &Prompt) -> Result<Option<Counted>, TargetError> {
        let Self { questions, served } = *self;
        let fail = |e: bench_http::Failed| TargetError(format!("the server does not count a prompt: {e}"));
        match served.counting {
            Counting::Nobody => Ok(None),
            Counting::Tokenize(form) => {
                let prompt = match prompt {
                    // What a chat puts around a text is counted with messages only.
                    Prompt::Text(text) if served.api == Api::Chat => &Prompt::Messages(vec![user(&**text)]),
                    other => other,
                };
                let tokens = questions.tokenized(form, &served.model, prompt).await.map_err(fail)?;
                Ok(tokens.map(|tokens| Counted { tokens, cached: 0 }))
            }
            Counting::Usage => {
                let variable = Variable { max_tokens: Some(1), ..Variable::new(prompt) };
                let answer = questions.generate(&served.template, &variable, false).await.map_err(fail)?;
                if let Some((status, words)) = answer.refusal {
                    let status = status.as_u16();
                    return Err(TargetError(format!(
                        "the server refuses a prompt, status {status}: {words}"
                    )));
                }
                let usage = answer.exchange.events.iter().rev().find_map(|event| match event.kind {
                    EventKind::Usage(usage) => Some(usage),
                    _ => None,
                });
                Ok(usage.and_then(|usage| {
                    let cached = usage.cached_prompt_tokens.unwrap_or(0);
                    Some(Counted { tokens: usage.prompt_tokens?, cached })
                }))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_correction_is_told_with_its_numbers() {
        assert_eq!(
            told(128, 135, Some(128)),
            "prompts of 128 tokens: the server counted 135 at first, 128 after the correction"
        );
        assert!(told(128, 135, Some(129)).ends_with("129 after the correction: the difference stays"));
        let line = shifted(Line { fixed: 3.0, per_word: 1.0 }, 128, 135);
        assert_eq!((line.fixed, line.words(128)), (10.0, 118));
    }
}
