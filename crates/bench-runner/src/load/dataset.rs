//! Prompts from a dataset: which ones there are, and which of them a run sends, in what order.
//!
//! Tokens are counted by whoever knows the tokenizer. The first two turns of each conversation are held in
//! memory, and nothing else of a file.

mod custom;
mod sharegpt;

use crate::load::{ShortHash, check_hash};
use crate::{Error, Result};
use bench_core::plan::{PromptPlan, derive_seed};
use bench_core::spec;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use std::io::Write;
use std::path::{Path, PathBuf};

/// One prompt of a dataset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatasetPrompt {
    pub text: Box<str>,
    /// What was answered to it, whose length is the length to ask for.
    pub answer: Option<Box<str>>,
    /// The length to ask for, where the dataset says it.
    pub output_tokens: Option<u32>,
}

/// The prompts of one file, in its order.
#[derive(Debug, Clone)]
pub struct Dataset {
    path: PathBuf,
    pub prompts: Vec<DatasetPrompt>,
    /// What was left out in reading, as sentences.
    pub notes: Vec<String>,
}

/// Lengths outside of which a prompt is not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenLimits {
    /// Of the prompt, and of the answer where its length comes from the dataset.
    pub min_tokens: u32,
    pub max_prompt_tokens: u32,
    pub max_total_tokens: u32,
}

impl TokenLimits {
    /// What vLLM's benchmark sends of `ShareGPT` (`is_valid_sequence` in its `benchmarks/datasets.py`).
    pub const SHAREGPT: Self = Self { min_tokens: 4, max_prompt_tokens: 1_024, max_total_tokens: 2_048 };
}

/// What is taken of a dataset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SampleOptions {
    pub requests: usize,
    pub seed: u64,
    /// Else in the order of the file.
    pub shuffle: bool,
    /// Repeats prompts where the dataset has too few of them; else there are fewer requests.
    pub oversample: bool,
    /// The same length for every answer, instead of the dataset's.
    pub output_tokens: Option<u32>,
    pub limits: Option<TokenLimits>,
}

/// One request: a prompt of the dataset and its lengths, `None` where they are not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pick {
    /// Place in `Dataset::prompts`.
    pub prompt: usize,
    pub prompt_tokens: Option<u32>,
    pub output_tokens: Option<u32>,
}

/// The requests of a run, in the order in which they are sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    pub picks: Vec<Pick>,
    /// Prompts that were looked at and not sent for their length.
    pub too_short: usize,
    pub too_long: usize,
    /// What was left out or repeated, as sentences.
    pub notes: Vec<String>,
}

impl Dataset {
    /// Reads the dataset of a plan, and refuses another one than that whose hash stands there. `None` for
    /// random prompts, which have no file.
    pub fn open_planned(plan: &PromptPlan) -> Result<Option<Self>> {
        let open = match plan.dataset {
            spec::Dataset::Random => return Ok(None),
            spec::Dataset::Sharegpt => Self::sharegpt,
            spec::Dataset::Custom => Self::custom,
        };
        let Some(path) = plan.dataset_path.as_deref().map(Path::new) else {
            let (value, expected) = ("absent".to_owned(), "the file of the dataset");
            return Err(Error::LoadValue { name: "workload.dataset_path", value, expected });
        };
        let dataset = open(path)?;
        check_hash(path, plan.dataset_hash.as_deref(), dataset.hash())?;
        Ok(Some(dataset))
    }

    /// `ShareGPT`: a JSON array of objects with `conversations`, of which the first two turns are prompt and
    /// answer. Conversations of fewer turns are left out and counted.
    pub fn sharegpt(path: &Path) -> Result<Self> {
        sharegpt::open(path)
    }

    /// JSON Lines of objects with `prompt`, and `output_tokens` (or `output_len`) where the length is known.
    pub fn custom(path: &Path) -> Result<Self> {
        custom::open(path)
    }

    /// Identifies the prompts, their answers and lengths.
    pub fn hash(&self) -> String {
        let mut hash = ShortHash::default();
        for prompt in &self.prompts {
            let answer = prompt.answer.as_deref();
            for text in [Some(&*prompt.text), answer] {
                // Lengths first, so that no two lists of texts give the same bytes. A hash does not fail.
                let _ = hash.write_all(&text.map_or(u64::MAX, |text| text.len() as u64).to_le_bytes());
                let _ = hash.write_all(text.unwrap_or_default().as_bytes());
            }
            let _ = hash.write_all(&prompt.output_tokens.map_or(u64::MAX, u64::from).to_le_bytes());
        }
        hash.finish()
    }

    /// Chooses the requests. `count` gives the number of tokens of a text, or `None` where there is no
    /// tokenizer; lengths that are not known are not held against the limits.
    ///
    /// The order is drawn from the seed. It is not vLLM's order, which comes from Python's generator.
    /// Repeats go through the chosen prompts in turns, each turn in an order of its own, so that no prompt is
    /// sent more than once more often than another.
    pub fn sample<E: From<Error>>(
        &self,
        options: &SampleOptions,
        mut count: impl FnMut(&str) -> Result<Option<u32>, E>,
    ) -> Result<Sample, E> {
        if options.requests == 0 {
            let (value, expected) = ("0".to_owned(), "at least 1");
            return Err(Error::LoadValue { name: "the number of requests", value, expected }.into());
        }
        let mut rng = ChaCha8Rng::seed_from_u64(derive_seed(options.seed, "load.dataset"));
        let mut order: Vec<usize> = (0..self.prompts.len()).collect();
        if options.shuffle {
            order.shuffle(&mut rng);
        }
        let mut sample = Sample { picks: vec![], too_short: 0, too_long: 0, notes: vec![] };
        for index in order {
            if sample.picks.len() == options.requests {
                break;
            }
            let pick = self.measure(index, options, &mut count)?;
            sample.take(pick, options);
        }
        if sample.picks.is_empty() {
            let why = format!(
                "of {} prompts {} are too short and {} too long for the limits",
                self.prompts.len(),
                sample.too_short,
                sample.too_long
            );
            return Err(Error::NoRequests { path: self.path.clone(), why }.into());
        }
        sample.note_left_out(options);
        sample.fill_up(options, &mut rng);
        Ok(sample)
    }

    /// A prompt with the lengths it would be sent with.
    fn measure<E>(
        &self,
        index: usize,
        options: &SampleOptions,
        count: &mut impl FnMut(&str) -> Result<Option<u32>, E>,
    ) -> Result<Pick, E> {
        let prompt = &self.prompts[index];
        let output_tokens = match (options.output_tokens.or(prompt.output_tokens), &prompt.answer) {
            (Some(given), _) => Some(given),
            (None, Some(answer)) => count(answer)?,
            (None, None) => None,
        };
        Ok(Pick { prompt: index, prompt_tokens: count(&prompt.text)?, output_tokens })
    }
}

impl Sample {
    fn take(&mut self, pick: Pick, options: &SampleOptions) {
        let (prompt, output) = (pick.prompt_tokens, pick.output_tokens);
        let Some(limits) = options.limits else {
            return self.picks.push(pick);
        };
        let below = |tokens: Option<u32>| tokens.is_some_and(|tokens| tokens < limits.min_tokens);
        let total = u64::from(prompt.unwrap_or(0)) + u64::from(output.unwrap_or(0));
        if below(prompt) || options.output_tokens.is_none() && below(output) {
            self.too_short += 1;
        } else if prompt.is_some_and(|tokens| tokens > limits.max_prompt_tokens)
            || total > u64::from(limits.max_total_tokens)
        {
            self.too_long += 1;
        } else {
            self.picks.push(pick);
        }
    }

    fn note_left_out(&mut self, options: &SampleOptions) {
        let (short, long) = (self.too_short, self.too_long);
        if short + long > 0 {
            let looked_at = short + long + self.picks.len();
            self.notes
                .push(format!("of {looked_at} prompts {short} are too short and {long} too long: left out"));
        }
        let unknown = self.picks.iter().filter(|pick| pick.prompt_tokens.is_none()).count();
        if unknown > 0 && options.limits.is_some() {
            self.notes.push(format!(
                "{unknown} prompts have an unknown length and are not held against the limits"
            ));
        }
    }

    /// Repeats the chosen prompts until there are enough requests.
    fn fill_up(&mut self, options: &SampleOptions, rng: &mut ChaCha8Rng) {
        let (chosen, wanted) = (self.picks.len(), options.requests);
        if chosen == wanted {
            return;
        }
        if !options.oversample {
            self.notes
                .push(format!("the dataset has {chosen} prompts for {wanted} requests: {chosen} are sent"));
            return;
        }
        let mut turn = self.picks.clone();
        while self.picks.len() < wanted {
            if options.shuffle {
                turn.shuffle(rng);
            }
            let missing = wanted - self.picks.len();
            self.picks.extend(turn.iter().take(missing));
        }
        self.notes.push(format!(
            "the dataset has {chosen} prompts for {wanted} requests: {} are repeats, \
             which a prefix cache can answer",
            wanted - chosen
        ));
    }
}

#[cfg(test)]
mod tests;
