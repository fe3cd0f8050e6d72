//! A build without the engine has no tokenizer: the server's own counts decide.

use bench_core::plan::{ModelPlan, Plan};
use bench_core::target::TargetError;

type Result<T, E = TargetError> = std::result::Result<T, E>;

/// There is none.
pub(crate) enum Vocabulary {}

/// Whether a model of this name is one of gpt-oss.
pub(crate) fn is_gpt_oss(id: &str) -> bool {
    id.to_ascii_lowercase().contains("gpt-oss")
}

impl Vocabulary {
    /// # Errors
    /// A tokenizer that the plan names.
    pub(crate) fn open(_plan: &Plan, model: &ModelPlan) -> Result<Option<Self>> {
        match &model.tokenizer {
            None => Ok(None),
            Some(name) => Err(TargetError(format!(
                "tokenizer \"{name}\": this build has none; build with `--features engine`, or leave it out"
            ))),
        }
    }

    pub(crate) fn frame(&self) -> (&[u32], &[u32]) {
        match *self {}
    }

    pub(super) fn format_name(&self) -> &'static str {
        match *self {}
    }

    pub(super) fn decode(&self, _ids: &[u32]) -> String {
        match *self {}
    }

    pub(crate) fn encode(&self, _text: &str) -> Result<Vec<u32>> {
        match *self {}
    }

    pub(crate) fn count(&self, _text: &str) -> Result<u32> {
        match *self {}
    }

    pub(super) fn prose(&self, _number: u64, _tokens: usize, _warmup: bool) -> Result<Vec<u32>> {
        match *self {}
    }

    pub(super) fn block(&self, _seed: u64, _tokens: usize) -> Result<Vec<u32>> {
        match *self {}
    }

    pub(super) fn salt(&self, _bits: u64) -> Result<Vec<u32>> {
        match *self {}
    }

    pub(super) fn conversation(&self, _turns: &[(bool, &str)]) -> Result<Vec<u32>> {
        match *self {}
    }
}
