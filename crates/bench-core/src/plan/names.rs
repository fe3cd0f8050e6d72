//! What may be a label, a study's name and a date: words that become folder names, or stand in prompts.
//!
//! Nothing is changed but a label that is made from an id.

use super::value;
use crate::Error;
use crate::spec::ExpertMode;

/// Longest label and longest name of a study.
const MOST: usize = 64;

/// The last part of an id; an ablation that nobody named is named here.
pub(super) fn default_label(id: &str, mode: ExpertMode) -> String {
    let ending = match mode {
        ExpertMode::Routed => "",
        ExpertMode::DenseAll => "-dense-all",
    };
    let last = id.trim_end_matches('/').rsplit(['/', ':']).next().unwrap_or(id);
    let own = last.chars().map(|c| if is_label_char(c) { c } else { '-' });
    own.take(MOST - ending.len()).chain(ending.chars()).collect()
}

pub(super) fn resolve_name(name: Option<&str>) -> Result<String, Error> {
    let name = name.unwrap_or("study");
    if is_file_name(name) {
        Ok(name.to_owned())
    } else {
        Err(value(
            "run.name",
            name,
            "letters, digits, `.`, `-`, at most 64; it becomes a folder name".to_owned(),
        ))
    }
}

fn is_label_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '.' || c == '-'
}

pub(super) fn is_file_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= MOST && !name.starts_with('.') && name.chars().all(is_label_char)
}

pub(super) fn is_date(date: &str) -> bool {
    let parts: Vec<_> = date.split('-').collect();
    match parts.as_slice() {
        [y, m, d] if y.len() == 4 && m.len() == 2 && d.len() == 2 => {
            let number = |s: &str| s.parse::<u32>().ok();
            number(y).is_some()
                && number(m).is_some_and(|m| (1..=12).contains(&m))
                && number(d).is_some_and(|d| (1..=31).contains(&d))
        }
        _ => false,
    }
}
