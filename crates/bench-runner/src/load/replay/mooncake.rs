//! Mooncake's JSON Lines: `{"timestamp": 250, "input_length": 600, "output_length": 5, "hash_ids": [4, 5]}`.

use super::format::Recorded;
use crate::load::lines::{decimal_ns, tokens};
use crate::load::shown;
use serde::Deserialize;
use serde_json::{Number, Value};

/// Block size of the published traces; an id stands for one block and all before it.
pub(super) const BLOCK_TOKENS: u32 = 512;

#[derive(Deserialize)]
struct Line {
    /// Milliseconds.
    timestamp: Number,
    input_length: Number,
    output_length: Number,
    #[serde(default)]
    hash_ids: Vec<u64>,
    /// In Alibaba's Bailian traces, whose other keys are the same, but with seconds and blocks of 16 tokens.
    chat_id: Option<Value>,
}

pub(super) fn parse(line: &str, block_tokens: u32) -> Result<Recorded, String> {
    let line: Line = serde_json::from_str(line).map_err(|error| {
        let problem = error.to_string();
        let problem = problem.split(" at line ").next().unwrap_or_default();
        format!(
            "{problem} (column {}): expected an object with timestamp (ms), input_length, output_length \
             and hash_ids (whole numbers from 0 on)",
            error.column()
        )
    })?;
    if line.chat_id.is_some() {
        return Err("the key chat_id is of Alibaba's Bailian traces, which count seconds and blocks of 16 \
                    tokens: expected a Mooncake trace, with milliseconds"
            .to_owned());
    }
    let at = line.timestamp.to_string();
    let at_ns = decimal_ns(&at, 6)
        .ok_or_else(|| format!("timestamp is {}: expected milliseconds from 0 on", shown(&at)))?;
    let prompt_tokens = tokens("input_length", &line.input_length.to_string())?;
    let output_tokens = tokens("output_length", &line.output_length.to_string())?;
    let most_blocks = prompt_tokens.div_ceil(block_tokens) as usize;
    if line.hash_ids.len() > most_blocks {
        return Err(format!(
            "{} hash_ids for input_length {prompt_tokens}: expected at most {most_blocks}, one for each \
             {block_tokens} tokens; set block_tokens if the trace has other blocks",
            line.hash_ids.len()
        ));
    }
    Ok(Recorded { at_ns, prompt_tokens, output_tokens, blocks: line.hash_ids })
}
