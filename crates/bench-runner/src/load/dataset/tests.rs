//! Small datasets, written here; tokens are counted as words.

use super::*;
use crate::load::lines::Lines;
use std::collections::BTreeMap;
use std::io::{BufReader, Read};

const SHAREGPT: &str = r#"[
 {"id": "a", "conversations":
  [{"from": "human", "value": "one two three four"}, {"from": "gpt", "value": "a b c d e"}]},
 {"id": "b", "conversations": [{"from": "human", "value": "alone"}]},
 {"conversations": [], "id": 5},
 {"conversations": [{"value": "é \"q\" \ud83d\ude00 x y"}, {"value": "a b c d"}, {"odd": 1}, null]}
]"#;

fn sharegpt(text: &str) -> Result<Dataset> {
    sharegpt::read(text.as_bytes(), Path::new("s.json"), 1 << 20)
}

fn custom(text: &str) -> Result<Dataset> {
    let path = Path::new("c.jsonl");
    custom::read(Lines::new(text.as_bytes(), path, 1 << 20), path)
}

/// `words` prompts, the i-th of them with i words.
fn growing(count: usize) -> Dataset {
    let lines: Vec<String> = (1..=count).map(|i| format!(r#"{{"prompt": "{}"}}"#, "w ".repeat(i))).collect();
    custom(&lines.join("\n")).unwrap()
}

#[expect(clippy::unnecessary_wraps, reason = "of the type of a tokenizer, which can fail")]
fn words(text: &str) -> Result<Option<u32>> {
    Ok(Some(text.split_whitespace().count() as u32))
}

fn options(requests: usize) -> SampleOptions {
    SampleOptions { requests, seed: 3, shuffle: true, oversample: true, output_tokens: None, limits: None }
}

fn picked(sample: &Sample) -> Vec<usize> {
    sample.picks.iter().map(|pick| pick.prompt).collect()
}

#[test]
fn the_first_two_turns_of_sharegpt_are_prompt_and_answer() {
    let dataset = sharegpt(SHAREGPT).unwrap();
    let texts: Vec<_> = dataset.prompts.iter().map(|p| (&*p.text, p.answer.as_deref().unwrap())).collect();
    assert_eq!(texts, [("one two three four", "a b c d e"), ("é \"q\" 😀 x y", "a b c d")]);
    assert_eq!(dataset.notes, ["of 4 conversations 2 have fewer than 2 turns: left out"]);
}

#[test]
fn a_byte_order_mark_is_skipped() {
    assert_eq!(sharegpt(&format!("\u{feff}{SHAREGPT}")).unwrap().prompts.len(), 2);
}

#[test]
fn a_malformed_entry_is_named() {
    let message = |text: &str| sharegpt(text).unwrap_err().to_string();
    let valid = r#"{"conversations": [{"value": "a"}, {"value": "b"}]}"#;
    let expected = "; expected {\"conversations\": [{\"from\": .., \"value\": \"..\"}, ..]}";
    assert_eq!(
        message(&format!("[{valid},\n {{\"id\": 1}}]")),
        format!("s.json, line 2: entry 2, column 10: missing field `conversations`{expected}")
    );
    let text = message(&format!("[{valid}, {{\"conversations\": [{{\"value\": null}}]}}]"));
    assert!(text.contains("entry 2, column") && text.contains("invalid type: null"), "{text}");
    let cut = message(&format!("[{valid}, {{\"conversations\": [{{\"val"));
    assert!(cut.contains("entry 2") && cut.contains("EOF"), "{cut}");
    let tail = message(&format!("[{valid}] x"));
    assert!(tail.contains("trailing characters"), "{tail}");
    assert!(message(valid).contains("found an object: is it a custom dataset"));
    assert!(message("prompt").contains("line 1: expected a JSON array of conversations"));
    assert!(message("\u{1f}\u{fffd}").contains("expected a JSON array"));
    assert_eq!(message("[]"), "s.json gives no request to send: none of its 0 conversations has 2 turns");
}

#[test]
fn an_endless_entry_is_read_only_to_its_bound() {
    let start = br#"[{"conversations": [{"value": ""#;
    let endless = BufReader::new(start.chain(std::io::repeat(b'x')));
    let error = sharegpt::read(endless, Path::new("s.json"), 100_000).unwrap_err().to_string();
    assert!(error.contains("entry 1") && error.contains("the entry is too long"), "{error}");
    // The bound is for each entry: many of them may be longer in sum.
    let entry = format!(r#"{{"conversations": [{{"value": "{}"}}, {{"value": "b"}}]}}"#, "x".repeat(900));
    let many = format!("[{}]", vec![entry; 1_000].join(","));
    assert_eq!(sharegpt::read(many.as_bytes(), Path::new("s"), 20_000).unwrap().prompts.len(), 1_000);
}

#[test]
fn custom_lines_are_read_with_their_lengths() {
    let dataset = custom(
        r#"{"prompt": "a b", "output_tokens": 5}

           {"prompt": "c", "output_len": 6.0, "x": []}
           {"prompt": ""}"#,
    );
    let lengths: Vec<_> =
        dataset.unwrap().prompts.iter().map(|p| (p.text.to_string(), p.output_tokens)).collect();
    assert_eq!(lengths, [("a b".to_owned(), Some(5)), ("c".to_owned(), Some(6)), (String::new(), None)]);
}

#[test]
fn a_malformed_line_is_named() {
    let message = |line: &str| custom(&format!("{{\"prompt\": \"a\"}}\n{line}")).unwrap_err().to_string();
    assert_eq!(
        message(r#"{"text": "a"}"#),
        "c.jsonl, line 2: missing field `prompt` (column 13): expected an object with prompt, \
         and output_tokens if the length is known"
    );
    assert!(message(r#"{"prompt": 5}"#).contains("line 2: invalid type: integer `5`"));
    assert!(message(r#"{"prompt": "a", "output_tokens": -1}"#).contains("output_tokens is \"-1\""));
    assert!(message(r#"{"prompt": "a", "output_tokens": 0}"#).contains("expected at least 1"));
    assert!(
        message(r#"{"prompt": "a", "output_tokens": 1, "output_len": 2}"#).contains("expected one of them")
    );
    assert!(message("[1]").contains("is it a sharegpt dataset?"));
    assert_eq!(custom(" \n").unwrap_err().to_string(), "c.jsonl gives no request to send: the file is empty");
}

#[test]
fn a_sample_comes_back_from_its_seed() {
    let dataset = growing(50);
    let first = dataset.sample(&options(20), words).unwrap();
    assert_eq!(first, dataset.sample(&options(20), words).unwrap());
    let other = dataset.sample(&SampleOptions { seed: 4, ..options(20) }, words).unwrap();
    assert_ne!(picked(&first), picked(&other));
    let distinct: std::collections::BTreeSet<_> = picked(&first).into_iter().collect();
    assert_eq!(distinct.len(), 20, "none twice while there are enough");
    let pick = first.picks[0];
    assert_eq!(pick.prompt_tokens, Some(pick.prompt as u32 + 1));
    let in_order = dataset.sample(&SampleOptions { shuffle: false, ..options(3) }, words).unwrap();
    assert_eq!(picked(&in_order), [0, 1, 2]);
    assert_eq!(first.notes, [""; 0]);
}

#[test]
fn every_prompt_comes_first_as_often_as_another() {
    let dataset = growing(4);
    let mut first = [0; 4];
    for seed in 0..400 {
        let sample = dataset.sample(&SampleOptions { seed, ..options(1) }, words).unwrap();
        first[sample.picks[0].prompt] += 1;
    }
    // 100 each, with a standard deviation below 9.
    assert!(first.iter().all(|count| (60..140).contains(count)), "{first:?}");
}

#[test]
fn too_few_prompts_are_repeated_evenly_and_said() {
    let dataset = growing(7);
    let sample = dataset.sample(&options(24), words).unwrap();
    let mut times = BTreeMap::new();
    for pick in &sample.picks {
        *times.entry(pick.prompt).or_insert(0) += 1;
    }
    assert_eq!(sample.picks.len(), 24);
    assert!(times.len() == 7 && times.values().all(|n| (3..=4).contains(n)), "{times:?}");
    assert_ne!(picked(&sample)[..7], picked(&sample)[7..14], "each turn has its own order");
    assert_eq!(
        sample.notes,
        ["the dataset has 7 prompts for 24 requests: 17 are repeats, which a prefix cache can answer"]
    );
    let plain = SampleOptions { shuffle: false, ..options(16) };
    let picks = picked(&dataset.sample(&plain, words).unwrap());
    assert_eq!(picks, [0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4, 5, 6, 0, 1]);
    let fewer = dataset.sample(&SampleOptions { oversample: false, ..options(24) }, words).unwrap();
    assert_eq!(fewer.picks.len(), 7);
    assert_eq!(fewer.notes, ["the dataset has 7 prompts for 24 requests: 7 are sent"]);
}

#[test]
fn lengths_outside_the_limits_are_left_out_and_counted() {
    let limits = TokenLimits { min_tokens: 4, max_prompt_tokens: 10, max_total_tokens: 12 };
    let dataset = growing(20);
    let limited = SampleOptions { limits: Some(limits), oversample: false, shuffle: false, ..options(20) };
    let sample = dataset.sample(&limited, words).unwrap();
    assert_eq!(picked(&sample), [3, 4, 5, 6, 7, 8, 9]);
    assert_eq!((sample.too_short, sample.too_long), (3, 10));
    assert_eq!(sample.notes[0], "of 20 prompts 3 are too short and 10 too long: left out");
    // A fixed output length may be short, and counts into the total.
    let fixed = SampleOptions { output_tokens: Some(3), ..limited };
    assert_eq!(picked(&dataset.sample(&fixed, words).unwrap()), [3, 4, 5, 6, 7, 8]);
    let none = SampleOptions { limits: Some(TokenLimits { min_tokens: 30, ..limits }), ..limited };
    assert_eq!(
        dataset.sample(&none, words).unwrap_err().to_string(),
        "c.jsonl gives no request to send: of 20 prompts 20 are too short and 0 too long for the limits"
    );
}

#[test]
fn an_answer_sets_the_output_length() {
    let dataset = sharegpt(SHAREGPT).unwrap();
    let base = SampleOptions { limits: Some(TokenLimits::SHAREGPT), shuffle: false, ..options(2) };
    let outputs = |options| {
        let sample = dataset.sample(&options, words).unwrap();
        sample.picks.iter().map(|pick| pick.output_tokens).collect::<Vec<_>>()
    };
    assert_eq!(outputs(base), [Some(5), Some(4)]);
    assert_eq!(outputs(SampleOptions { output_tokens: Some(2), ..base }), [Some(2), Some(2)]);
}

#[test]
fn without_a_tokenizer_lengths_are_unknown_and_said() {
    let limits = Some(TokenLimits::SHAREGPT);
    let sample =
        growing(3).sample(&SampleOptions { limits, ..options(3) }, |_| Ok::<_, Error>(None)).unwrap();
    assert!(sample.picks.iter().all(|pick| pick.prompt_tokens.is_none() && pick.output_tokens.is_none()));
    assert_eq!(sample.notes, ["3 prompts have an unknown length and are not held against the limits"]);
}

#[test]
fn a_tokenizer_that_fails_ends_the_sampling() {
    let fail = |_: &str| Err(Error::LoadValue { name: "tokenizer", value: "x".to_owned(), expected: "y" });
    assert!(growing(3).sample(&options(3), fail).is_err());
    assert!(growing(3).sample(&options(0), words).is_err());
}

#[test]
fn the_hash_sees_texts_answers_and_lengths() {
    let hash = |text: &str| custom(text).unwrap().hash();
    let base = hash(r#"{"prompt": "ab"}"#);
    assert_eq!(base, hash(r#"{"prompt": "ab", "x": 1}"#));
    assert_ne!(base, hash(r#"{"prompt": "ab", "output_len": 1}"#));
    assert_ne!(base, hash("{\"prompt\": \"a\"}\n{\"prompt\": \"b\"}"));
    let dataset = sharegpt(SHAREGPT).unwrap();
    assert_ne!(dataset.hash(), sharegpt(&SHAREGPT.replace("c d e", "c d f")).unwrap().hash());
}

#[test]
fn files_are_opened_by_path() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.json");
    std::fs::write(&path, SHAREGPT).unwrap();
    assert_eq!(Dataset::sharegpt(&path).unwrap().prompts.len(), 2);
    assert!(Dataset::custom(&path).unwrap_err().to_string().contains("s.json, line 1: "));
    assert!(Dataset::custom(&folder.path().join("none")).unwrap_err().to_string().contains("cannot read"));
}

#[test]
fn a_plan_reads_the_dataset_it_was_made_with() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.json");
    std::fs::write(&path, SHAREGPT).unwrap();
    let mut plan = PromptPlan {
        dataset: spec::Dataset::Sharegpt,
        dataset_path: Some(path.to_str().unwrap().to_owned()),
        dataset_hash: None,
        length_range: 0.0,
        shared_prefix_tokens: 0,
        turns: 1,
        think_time_ms: 0.0,
        salt: true,
    };
    let hash = Dataset::open_planned(&plan).unwrap().unwrap().hash();
    plan.dataset_hash = Some(hash);
    assert!(Dataset::open_planned(&plan).is_ok());
    std::fs::write(&path, SHAREGPT.replace("one two", "two one")).unwrap();
    let changed = Dataset::open_planned(&plan).unwrap_err().to_string();
    assert!(changed.contains("is not what the plan was made with"), "{changed}");
    let missing = PromptPlan { dataset_path: None, ..plan.clone() };
    assert!(
        Dataset::open_planned(&missing)
            .unwrap_err()
            .to_string()
            .starts_with("workload.dataset_path is absent")
    );
    let random = PromptPlan { dataset: spec::Dataset::Random, ..plan };
    assert!(Dataset::open_planned(&random).unwrap().is_none());
}
