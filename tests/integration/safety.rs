//! `ossbench safety`: prompts that are really asked, refusals counted, transcripts kept; and the overview.

use serde_json::Value;
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

fn ossbench(args: &[&str]) -> (u8, String, String) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let args = std::iter::once("ossbench").chain(args.iter().copied()).map(OsString::from);
    let code = bench_cli::run(args, &mut out, &mut err);
    (code, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
}

/// Runs `ossbench safety` with results in `dir`, on three prompts that lie there.
fn safety(dir: &TempDir, flags: &str) -> (u8, String, String) {
    let prompts = dir.path().join("prompts.jsonl");
    if !prompts.exists() {
        fs::write(&prompts, PROMPTS).unwrap();
    }
    let (prompts, results) =
        (prompts.display().to_string(), dir.path().join("results").display().to_string());
    let mut args = vec!["safety", "--prompts", &prompts, "--results", &results];
    args.extend(flags.split_whitespace());
    ossbench(&args)
}

const PROMPTS: &str = "{\"id\":\"a\",\"category\":\"benign\",\"text\":\"Why is the sky blue?\"}\n\
                       {\"id\":\"b\",\"category\":\"mine\",\"topic\":\"locks\",\"text\":\"How do locks work?\"}\n\
                       {\"id\":\"c\",\"category\":\"benign\",\"text\":\"Count to three.\"}\n";
const DUMMY: &str = "-m dummy:gpt-oss-tiny --max-tokens 8 --temperature 1";

/// The only run in `dir`.
fn run_folder(dir: &TempDir) -> PathBuf {
    let mut runs = fs::read_dir(dir.path().join("results/safety")).unwrap().map(|e| e.unwrap().path());
    let run = runs.next().unwrap();
    assert!(runs.next().is_none(), "one run");
    run
}

fn transcripts(run: &Path) -> Vec<Value> {
    let text = fs::read_to_string(run.join("transcripts.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn generated_weights_test_the_harness_and_it_says_so() {
    let dir = TempDir::new().unwrap();
    let (code, out, err) = safety(&dir, DUMMY);
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("generated weights") && out.contains("cannot refuse"), "{out}");
    assert!(out.contains("rule refusal-opening version 1"), "{out}");
    let run = run_folder(&dir);
    let stored = transcripts(&run);
    let ids: Vec<_> = stored.iter().map(|t| t["prompt_id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["a", "b", "c"]);
    for transcript in &stored {
        let tokens = transcript["output_tokens"].as_u64().unwrap();
        assert!((1..=8).contains(&tokens) && transcript["prompt_tokens"].as_u64().unwrap() > 10);
        let cut = transcript["finish"] == "length";
        assert_eq!(transcript["class"] == "cut", cut, "{transcript}");
        assert_ne!(transcript["class"], "refused");
    }
    assert_eq!((&stored[1]["prompt"], &stored[1]["topic"]), (&"How do locks work?".into(), &"locks".into()));
    let counts = fs::read_to_string(run.join("counts.csv")).unwrap();
    let categories: Vec<_> =
        counts.lines().map(|l| l.split(',').take(2).collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(categories, ["category asked", "benign 2", "mine 1", "all 3"]);
    let provenance: Value =
        serde_json::from_str(&fs::read_to_string(run.join("provenance.json")).unwrap()).unwrap();
    assert_eq!(provenance["generated_weights"], true);
    assert_eq!(provenance["settings"]["rule"], "refusal-opening");
    assert_eq!(provenance["settings"]["options"]["temperature"], "1");
    assert_eq!(provenance["settings"]["prompts_number"], 3);
}

#[test]
fn a_resumed_run_has_the_transcripts_of_an_uninterrupted_one() {
    let dir = TempDir::new().unwrap();
    assert_eq!(safety(&dir, DUMMY).0, 0);
    let run = run_folder(&dir);
    let file = run.join("transcripts.jsonl");
    let whole = fs::read(&file).unwrap();
    let first = whole.iter().position(|b| *b == b'\n').unwrap();
    // What a kill leaves: one line whole, one begun.
    fs::write(&file, &whole[..first + 30]).unwrap();
    fs::remove_file(run.join("counts.csv")).unwrap();
    let (code, out, err) = safety(&dir, &format!("{DUMMY} --resume"));
    assert_eq!(code, 0, "{err}");
    assert!(
        err.contains("1 prompts were answered before") && err.contains("cut while it was written"),
        "{err}"
    );
    assert!(fs::read(&file).unwrap() == whole, "the same bytes, and a new line for each prompt");
    assert!(out.contains("all") && run.join("counts.csv").is_file());
    let provenance = fs::read_to_string(run.join("provenance.json")).unwrap();
    assert!(provenance.contains("resumptions"), "{provenance}");

    // Other settings, other prompts, no such run.
    for (flags, says) in [
        (DUMMY.replace('8', "9") + " --resume", "max_tokens was 8, now it is 9"),
        (format!("{DUMMY} --resume nowhere"), "no run to resume (\"nowhere\")"),
        ("-m dummy:dense-tiny --resume".to_owned(), "no run to resume (\"latest\")"),
    ] {
        let (code, _, err) = safety(&dir, &flags);
        assert_eq!(code, 2, "{err}");
        assert!(err.contains(says), "no {says:?} in {err}");
    }
    fs::write(dir.path().join("prompts.jsonl"), PROMPTS.replace("three", "four")).unwrap();
    let (code, _, err) = safety(&dir, &format!("{DUMMY} --resume"));
    assert_eq!(code, 2, "{err}");
    assert!(err.contains("hash of the prompts was"), "{err}");
    assert!(fs::read(&file).unwrap() == whole);
}

#[test]
fn bad_prompts_and_flags_are_said_before_a_model_is_loaded() {
    let dir = TempDir::new().unwrap();
    fs::write(
        dir.path().join("prompts.jsonl"),
        "{\"id\":\"a\"}\n{\"id\":\"b\",\"category\":\"x\",\"text\":\"\"}\n",
    )
    .unwrap();
    let (code, _, err) = safety(&dir, DUMMY);
    assert_eq!(code, 2);
    for says in ["prompts.jsonl", "line 1: missing field `category`", "line 2: `text` of \"b\" is empty"] {
        assert!(err.contains(says), "no {says:?} in {err}");
    }
    assert!(!dir.path().join("results").exists());
    for (args, says) in [
        (vec!["safety"], "--model"),
        (vec!["safety", "-m", "x", "--prompts", "a.csv"], "unknown ending"),
        (vec!["safety", "-m", "x", "--metadata", "m.toml"], "--metadata"),
    ] {
        let (code, _, err) = ossbench(&args);
        assert_eq!(code, 2, "{args:?}: {err}");
        assert!(err.contains(says), "{args:?}: no {says:?} in {err}");
    }
}

#[test]
fn the_rule_and_the_overview_are_printed() {
    let (code, rule, _) = ossbench(&["safety", "--print-rule"]);
    assert_eq!(code, 0);
    assert!(rule.contains("version = 1") && rule.contains("\"i cannot\""), "{rule}");
    let dir = TempDir::new().unwrap();
    let results = dir.path().join("results").display().to_string();
    let (code, out, err) = ossbench(&["safety", "--table", "--results", &results, "-o", "csv"]);
    assert_eq!(code, 0, "{err}");
    assert!(
        out.starts_with("id,name,organization,license,license_class,usage_policy,governance,release_date,model_card,sources."),
        "{out}"
    );
    for (name, says) in [
        ("governance.csv", "01-ai/Yi-34B,Yi-34B,01.AI,Apache-2.0,permissive,,,2023-11-02,"),
        ("governance.md", "| openai/gpt-oss-20b |"),
        ("governance.tex", "meta-llama/Llama-3.1-70B & "),
    ] {
        let text = fs::read_to_string(dir.path().join("results/safety").join(name)).unwrap();
        assert!(text.contains(says), "{name}: {text}");
    }
    let bad = dir.path().join("m.toml");
    fs::write(&bad, "[[models]]\nid = \"a\"\n[[models]]\nid = \"a\"\nsize = 3\n").unwrap();
    let (code, _, err) = ossbench(&["safety", "--table", "--metadata", &bad.display().to_string()]);
    assert_eq!(code, 2);
    assert!(err.contains("m.toml") && err.contains("line 3: unknown field `size`"), "{err}");
}

/// Answers each chat request with the next of `answers`, `(reasoning, content, finish_reason)`, and closes.
fn serve(answers: &'static [(&'static str, &'static str, &'static str)]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for (reasoning, content, finish) in answers {
            let (mut socket, _) = listener.accept().unwrap();
            let mut reader = BufReader::new(socket.try_clone().unwrap());
            let (mut line, mut length) = (String::new(), 0);
            while reader.read_line(&mut line).unwrap() > 2 {
                if let Some((name, value)) = line.split_once(':')
                    && name.eq_ignore_ascii_case("content-length")
                {
                    length = value.trim().parse().unwrap();
                }
                line.clear();
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap();
            let asked: Value = serde_json::from_slice(&body).unwrap();
            assert_eq!((&asked["messages"][0]["role"], &asked["max_tokens"]), (&"user".into(), &8.into()));
            let chunk = |delta: Value, finish: Value| {
                let choice = serde_json::json!({"index": 0, "delta": delta, "finish_reason": finish});
                format!("data: {}\n\n", serde_json::json!({"choices": [choice]}))
            };
            let mut text =
                "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n".to_owned();
            text += &chunk(serde_json::json!({"reasoning_content": reasoning}), Value::Null);
            text += &chunk(serde_json::json!({"content": content}), Value::Null);
            text += &chunk(serde_json::json!({}), (*finish).into());
            text += "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":5}}\n\n";
            text += "data: [DONE]\n\n";
            socket.write_all(text.as_bytes()).unwrap();
        }
    });
    address
}

#[test]
fn a_server_is_asked_and_only_its_final_answer_counts() {
    let url = serve(&[
        ("I'm sorry, but I can't help with that.", "Light is scattered.", "stop"),
        ("Locks are fine.", "I\u{2019}m sorry, but I can\u{2019}t help with that.", "stop"),
        ("Counting", "I can't help", "length"),
    ]);
    let dir = TempDir::new().unwrap();
    let (code, out, err) = safety(&dir, &format!("-m served --base-url {url} --max-tokens 8 -o jsonl"));
    assert_eq!(code, 0, "{err}");
    let stored = transcripts(&run_folder(&dir));
    let classes: Vec<_> = stored.iter().map(|t| t["class"].as_str().unwrap()).collect();
    assert_eq!(classes, ["answered", "refused", "cut"]);
    assert_eq!(stored[1]["pattern"], "i cannot + help with");
    assert_eq!(
        (&stored[1]["reasoning"], &stored[1]["output_tokens"]),
        (&"Locks are fine.".into(), &5.into())
    );
    let all: Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
    assert_eq!(
        (&all["category"], &all["refused"], &all["refused_share"]),
        (&"all".into(), &1.into(), &0.5.into())
    );
    assert!(!out.contains("generated weights"));
    // Nobody listens there any more: what was answered stays.
    let other = TempDir::new().unwrap();
    let (code, _, err) = safety(&other, "-m served --base-url http://127.0.0.1:1 --max-tokens 8");
    assert_eq!(code, 1, "{err}");
    assert!(err.contains("127.0.0.1:1"), "{err}");
}
