//! `BurstGPT`'s CSV: seconds since the trace began, lengths, and 0 answer tokens where the service failed.

use super::format::Recorded;
use crate::load::lines::{decimal_ns, tokens};
use crate::load::shown;

pub(super) const COLUMNS: [&str; 3] = ["Timestamp", "Request tokens", "Response tokens"];

pub(super) fn parse([at, prompt, output]: [&str; 3]) -> Result<Recorded, String> {
    let at_ns =
        decimal_ns(at, 9).ok_or_else(|| format!("Timestamp is {}: expected seconds from 0 on", shown(at)))?;
    Ok(Recorded {
        at_ns,
        prompt_tokens: tokens(COLUMNS[1], prompt)?,
        output_tokens: tokens(COLUMNS[2], output)?,
        blocks: vec![],
    })
}
