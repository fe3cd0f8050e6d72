//! `ossbench compare` as a user meets it: runs with scripted times, verdicts, gates and exit codes, what is
//! missing.

use crate::runner::plan_of;
use bench_core::event::{Channel, EventKind, FailureKind, FinishReason};
use bench_core::metric::Metric;
use bench_core::plan::Plan;
use bench_core::target::{Request, StopFlag};
use bench_core::unit::Nanos;
use bench_runner::targets::mock::{MockTarget, Script};
use bench_runner::{Quiet, RunFolder, provenance};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use tempfile::TempDir;

/// A run whose requests vary by 6 % around 50 ms to the first token and 10 ms between tokens.
#[derive(Clone)]
struct Scripted {
    name: &'static str,
    models: &'static [&'static str],
    prompts: &'static str,
    repeats: u32,
    batch: u32,
    /// Spread of a request's times.
    cv: f64,
    seed: u64,
    /// Multiplies the time to first token of cells with so many prompt tokens.
    slower: Option<(u32, f64)>,
    /// Every third request of cells with so many prompt tokens stops a token early.
    short: Option<u32>,
}

impl Default for Scripted {
    fn default() -> Self {
        Self {
            name: "base",
            models: &["a"],
            prompts: "[16, 64]",
            repeats: 100,
            batch: 1,
            cv: 0.06,
            seed: 1,
            slower: None,
            short: None,
        }
    }
}

impl Scripted {
    fn plan(&self) -> Plan {
        let models: Vec<String> = self.models.iter().map(|m| format!("[[models]]\nid = \"{m}\"\n")).collect();
        let models = models.concat();
        plan_of(&format!(
            "[run]\nname = \"{}\"\nrepeats = {}\nwarmup = 0\n[target]\nkind = \"mock\"\n[workload]\n\
             prompt_tokens = {}\noutput_tokens = [8]\nbatch = [{}]\n{models}",
            self.name, self.repeats, self.prompts, self.batch
        ))
    }

    /// Runs it into `results`; the run's id.
    fn run(&self, results: &Path) -> String {
        let plan = self.plan();
        let mut folder = RunFolder::create(results, "", &plan, &provenance::gather(&plan, &[])).unwrap();
        let own = self.clone();
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        let mut target = MockTarget::new(move |request| own.script(request, &mut rng));
        crate::runner::run_with(&plan, &mut folder, &mut target, &StopFlag::new(), &mut Quiet);
        folder.run_id().to_owned()
    }

    fn script(&self, request: &Request, rng: &mut ChaCha8Rng) -> Script {
        let prompt = request.prompt.len() as u32;
        let slower = self.slower.filter(|s| s.0 == prompt).map_or(1.0, |s| s.1);
        let mut time = |ms: f64| {
            let sum: f64 = (0..12).map(|_| rng.random::<f64>()).sum();
            Nanos((ms * (1.0 + self.cv * (sum - 6.0)) * 1e6) as u64)
        };
        let (ttft, gap) = (time(50.0 * slower), time(10.0));
        let cut = self.short == Some(prompt) && request.repeat.is_multiple_of(3);
        let tokens = request.output_tokens - u32::from(cut);
        let mut script = vec![(Nanos(0), EventKind::Sent)];
        let mut at = ttft;
        for _ in 0..tokens {
            script.push((at, EventKind::Tokens { count: 1, channel: Channel::Final }));
            at = at + gap;
        }
        script.push((at, EventKind::Done { finish: FinishReason::Length }));
        script
    }
}

/// Exit code, standard output, standard error.
fn compare(results: &Path, args: &[&str]) -> (u8, String, String) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let results = results.display().to_string();
    let args = ["ossbench", "compare", "--results", &results].into_iter().chain(args.iter().copied());
    let code = bench_cli::run(args.map(OsString::from), &mut out, &mut err);
    (code, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
}

fn json(results: &Path, args: &[&str]) -> serde_json::Value {
    let (_, out, err) = compare(results, &[args, &["-o", "json"]].concat());
    serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}\n{out}\n{err}"))
}

/// Verdicts of the lines of `metric`, by prompt.
fn verdicts(found: &serde_json::Value, metric: &str) -> Vec<(u64, String)> {
    let lines = found["lines"].as_array().unwrap().iter().filter(|l| l["metric"] == metric);
    lines.map(|l| (l["prompt_tokens"].as_u64().unwrap(), l["verdict"].as_str().unwrap().to_owned())).collect()
}

#[test]
fn a_run_against_itself_shows_no_change_in_any_format() {
    let dir = TempDir::new().unwrap();
    let id = Scripted::default().run(dir.path());
    let found = json(dir.path(), &[&id, "latest"]);
    let lines = found["lines"].as_array().unwrap();
    assert_eq!(lines.len(), 2 * 6, "{found:#}");
    for line in lines {
        let expected = if line["metric"] == "system_tok_s" { "not tested" } else { "no change" };
        // Rounds of a scripted run have rates of their own, which two rounds can test, if poorly.
        assert!(line["verdict"] == "no change" || line["verdict"] == expected, "{line:#}");
        assert_eq!(line["difference"], 0.0, "{line:#}");
    }
    assert_eq!(found["counts"]["improved"], 0);
    for (format, says) in [
        ("table", "0 improved, 0 regressed"),
        ("md", "| Model | Prompt |"),
        ("latex", "\\begin{tabular}"),
        ("csv", "model,prompt_tokens,output_tokens"),
        ("jsonl", "\"verdict\":\"no change\""),
    ] {
        let (code, out, err) = compare(dir.path(), &[&id, &id, "-o", format]);
        assert_eq!(code, 0, "{err}");
        assert!(out.contains(says), "{format}: {out}");
        assert!(!out.contains("NaN") && !out.contains("inf"), "{format}: {out}");
    }
    let (_, out, _) = compare(dir.path(), &[&id, &id]);
    println!("{out}");
    assert!(out.contains("a run does not differ from itself"), "{out}");
}

#[test]
fn a_slowdown_of_five_percent_is_found_where_it_is_and_closes_the_gate() {
    let dir = TempDir::new().unwrap();
    let a = Scripted::default().run(dir.path());
    let b =
        Scripted { name: "slow", seed: 2, slower: Some((64, 1.08)), ..Scripted::default() }.run(dir.path());
    let found = json(dir.path(), &[&a, "slow"]);
    let expected = [(16, "no change".to_owned()), (64, "regressed".to_owned())];
    assert_eq!(verdicts(&found, "ttft_ms"), expected, "{found:#}");
    assert!(verdicts(&found, "tpot_ms").iter().all(|v| v.1 == "no change"), "{found:#}");
    // The other way round it is an improvement.
    assert_eq!(verdicts(&json(dir.path(), &[&b, &a]), "ttft_ms")[1].1, "improved");

    let (code, out, err) = compare(dir.path(), &[&a, &b, "--fail-on-regression", "ttft_ms:5%"]);
    println!("{out}{err}");
    assert_eq!(code, 3, "{err}");
    assert!(err.contains("ttft_ms p50, a, 64 + 8 tokens, batch 1: regressed by +"), "{err}");
    assert!(!err.contains("16 + 8"), "{err}");
    for open in ["ttft_ms:20%", "tpot_ms:0%", "decode_tok_s:3%"] {
        let (code, _, err) = compare(dir.path(), &[&a, &b, "--fail-on-regression", open]);
        assert_eq!(code, 0, "{open}: {err}");
    }
    let (code, _, err) = compare(dir.path(), &[&b, &a, "--fail-on-regression", "ttft_ms:0%"]);
    assert_eq!(code, 0, "an improvement fails no gate: {err}");
    // Equality is shown where the interval is narrow enough.
    let equal = json(dir.path(), &[&a, &b, "--metric", "tpot_ms", "--equivalence", "10%"]);
    let line = &equal["lines"][0];
    assert_eq!(
        (&line["equal_within_margin"], &line["prompt_tokens"]),
        (&true.into(), &16.into()),
        "{equal:#}"
    );
}

#[test]
fn rates_get_worse_downwards_and_other_quantiles_have_gates_too() {
    let dir = TempDir::new().unwrap();
    let fast = Scripted { models: &["x"], prompts: "[16]", repeats: 400, ..Scripted::default() };
    let a = fast.run(dir.path());
    let b = Scripted { name: "slow", seed: 5, slower: Some((16, 1.3)), ..fast }.run(dir.path());
    let gate = ["--fail-on-regression", "ttft_ms:p90:10%,request_tok_s:5%"];
    let (code, _, err) = compare(dir.path(), &[&[a.as_str(), b.as_str()], &gate[..]].concat());
    assert_eq!(code, 3);
    assert!(err.contains("ttft_ms p90") && err.contains("request_tok_s p50"), "{err}");
    assert!(err.contains("regressed by -"), "a rate that fell: {err}");
    // 400 samples bound the upper end of p99; 40 have no p99 at all, and the gate says so.
    let few = Scripted { name: "few", repeats: 40, seed: 6, ..Scripted::default() }.run(dir.path());
    let (code, _, err) = compare(dir.path(), &[&few, &few, "--fail-on-regression", "ttft_ms:p99:5%"]);
    assert_eq!(code, 3);
    assert!(err.contains("cannot be judged: too few samples for p99"), "{err}");
}

#[test]
fn invalid_cells_are_shown_and_decide_nothing() {
    let dir = TempDir::new().unwrap();
    let a = Scripted::default().run(dir.path());
    let broken =
        Scripted { name: "broken", seed: 3, short: Some(64), slower: Some((64, 2.0)), ..Scripted::default() };
    let b = broken.run(dir.path());
    let found = json(dir.path(), &[&a, &b]);
    let expected = [(16, "no change".to_owned()), (64, "INVALID".to_owned())];
    assert_eq!(verdicts(&found, "ttft_ms"), expected, "{found:#}");
    assert_eq!(found["counts"]["regressed"], 0);
    let (code, out, err) = compare(dir.path(), &[&a, &b]);
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("INVALID, B: output length"), "{out}");
    let (code, _, err) = compare(dir.path(), &[&a, &b, "--fail-on-regression", "ttft_ms:500%"]);
    assert_eq!(code, 3);
    assert!(err.contains("64 + 8 tokens, batch 1: INVALID, cannot be judged: B: output length"), "{err}");
}

#[test]
fn cells_of_one_side_are_listed_and_renames_match_models() {
    let dir = TempDir::new().unwrap();
    let a = Scripted { models: &["a", "old"], ..Scripted::default() }.run(dir.path());
    let b = Scripted { name: "new", models: &["a", "new"], prompts: "[16]", seed: 2, ..Scripted::default() }
        .run(dir.path());
    let (code, out, err) = compare(dir.path(), &[&a, &b]);
    assert_eq!(code, 0, "{err}");
    for line in ["only in A: a, 64 + 8", "only in A: old, 16 + 8", "only in B: new, 16 + 8"] {
        assert!(out.contains(line), "{line}\n{out}");
    }
    let found = json(dir.path(), &[&a, &b, "--map", "old=new", "--metric", "ttft_ms"]);
    assert_eq!(found["lines"].as_array().unwrap().len(), 2, "{found:#}");
    assert_eq!(found["only_b"].as_array().unwrap().len(), 0);
    let (code, _, err) = compare(dir.path(), &[&a, &b, "--fail-on-regression", "ttft_ms:5%"]);
    assert_eq!(code, 3);
    assert!(err.contains("old, 16 + 8 tokens, batch 1: missing in B"), "{err}");
    for (map, says) in [("older=new", "no model \"older\"; valid: a, old"), ("old=a", "two models of A")] {
        let (code, _, err) = compare(dir.path(), &[&a, &b, "--map", map]);
        assert_eq!(code, 2);
        assert!(err.contains(says), "{err}");
    }
}

#[test]
fn nothing_in_common_unknown_runs_and_bad_limits_are_said() {
    let dir = TempDir::new().unwrap();
    let a = Scripted { repeats: 4, ..Scripted::default() }.run(dir.path());
    let b = Scripted { name: "other", models: &["z"], repeats: 4, ..Scripted::default() }.run(dir.path());
    let (code, out, err) = compare(dir.path(), &[&a, &b]);
    assert_eq!(code, 1, "{out}");
    assert!(err.contains("no cell is on both sides: models of A are a, of B z"), "{err}");
    assert!(out.contains("only in A") && out.contains("0 comparisons over 0 cells"), "{out}");
    for (args, says) in [
        (&["nothing", "latest"][..], "no run \"nothing\""),
        (&["latest", "latest", "--fail-on-regression", "ttft:5%"], "ttft_ms"),
        (&["latest", "latest", "--fail-on-regression", "ttft_ms:5"], "write 5%"),
        (&["latest", "latest", "--metric", "tpot"], "tpot_ms"),
        (&["latest,latest", "latest"], "given twice"),
    ] {
        let (code, _, err) = compare(dir.path(), args);
        assert_eq!(code, 2, "{args:?}: {err}");
        assert!(err.contains(says), "{args:?}: {err}");
    }
    let empty = TempDir::new().unwrap();
    let (code, _, err) = compare(empty.path(), &["latest", "latest"]);
    assert_eq!(code, 2);
    assert!(err.contains("runs there: none"), "{err}");
}

#[test]
fn a_run_of_another_schema_is_refused_with_its_version() {
    let dir = TempDir::new().unwrap();
    let a = Scripted { repeats: 4, ..Scripted::default() }.run(dir.path());
    let b = Scripted { name: "old", repeats: 4, ..Scripted::default() }.run(dir.path());
    let plan = dir.path().join("raw").join(&b).join("plan.json");
    let version = format!("\"schema_version\": {}", bench_core::SCHEMA_VERSION);
    let text = fs::read_to_string(&plan).unwrap();
    assert!(text.contains(&version));
    fs::write(&plan, text.replacen(&version, "\"schema_version\": 999", 1)).unwrap();
    let (code, _, err) = compare(dir.path(), &[&a, &b]);
    assert_eq!(code, 1);
    assert!(err.contains("schema version 999") && err.contains("plan.json"), "{err}");
}

#[test]
fn few_repeats_are_not_tested_and_constants_are_equal() {
    let dir = TempDir::new().unwrap();
    let single = Scripted { repeats: 1, prompts: "[16]", ..Scripted::default() };
    let a = single.run(dir.path());
    let b = Scripted { name: "b", seed: 9, ..single }.run(dir.path());
    let (code, out, err) = compare(dir.path(), &[&a, &b, "--metric", "ttft_ms"]);
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("not tested") && out.contains("1 and 1 repeats are too few"), "{out}");
    let (code, _, err) = compare(dir.path(), &[&a, &b, "--fail-on-regression", "ttft_ms:5%"]);
    assert_eq!(code, 3);
    assert!(err.contains("cannot be judged: 1 and 1 repeats are too few"), "{err}");

    let constant = Scripted { name: "c", cv: 0.0, prompts: "[16]", ..Scripted::default() };
    let c = constant.run(dir.path());
    let d = Scripted { name: "d", ..constant }.run(dir.path());
    let found = json(dir.path(), &[&c, &d, "--metric", "ttft_ms,itl_ms,output_tokens_actual"]);
    for line in found["lines"].as_array().unwrap() {
        assert_eq!((&line["verdict"], &line["difference"]), (&"no change".into(), &0.0.into()), "{line:#}");
    }
}

#[test]
fn batches_are_the_units_and_several_runs_join() {
    let dir = TempDir::new().unwrap();
    let base = Scripted { prompts: "[16]", batch: 3, repeats: 30, ..Scripted::default() };
    let runs: Vec<String> = (0..8)
        .map(|i| {
            Scripted { name: if i < 4 { "before" } else { "after" }, seed: i + 20, ..base.clone() }
                .run(dir.path())
        })
        .collect();
    let found = json(dir.path(), &[&runs[0], &runs[4], "--metric", "ttft_ms,itl_ms"]);
    for line in found["lines"].as_array().unwrap() {
        assert_eq!((&line["a_units"], &line["unit_of_test"]), (&30.into(), &"repeat".into()), "{line:#}");
    }
    let (before, after) = (runs[..4].join(","), runs[4..].join(","));
    let found = json(dir.path(), &[&before, &after, "--metric", "ttft_ms,system_tok_s"]);
    for line in found["lines"].as_array().unwrap() {
        assert_eq!(line["unit_of_test"], "run", "{line:#}");
        assert_eq!((&line["a_n"], &line["verdict"]), (&4.into(), &"no change".into()), "{line:#}");
        assert_eq!(line["test"], "student_t");
    }
    let (_, out, _) = compare(dir.path(), &[&before, &after]);
    assert!(!out.contains("One run a side"), "{out}");
}

/// Metrics that requests have are compared by their median; the names of columns are those of the metric
/// table.
#[test]
fn every_metric_of_requests_can_be_asked_for() {
    let dir = TempDir::new().unwrap();
    let id = Scripted { repeats: 20, prompts: "[16]", ..Scripted::default() }.run(dir.path());
    let keys =
        [Metric::Ttft, Metric::E2el, Metric::Ntpot, Metric::ScheduleLag].map(|m| m.def().key).join(",");
    let found = json(dir.path(), &[&id, &id, "--metric", &keys]);
    assert_eq!(found["lines"].as_array().unwrap().len(), 4, "{found:#}");
    // A median of 0 has no percentage, and is no error.
    let lag = found["lines"].as_array().unwrap().iter().find(|l| l["metric"] == "schedule_lag_ms").unwrap();
    assert!(lag["difference_pct"].is_null() && lag["verdict"] == "no change", "{lag:#}");
    let (code, out, _) = compare(dir.path(), &[&id, &id, "--metric", "j_per_tok,ttft_ms"]);
    assert_eq!(code, 0);
    assert!(out.contains("j_per_tok was measured on neither side"), "{out}");
}

#[test]
fn a_failed_request_is_left_out_of_the_samples() {
    let dir = TempDir::new().unwrap();
    let own = Scripted { repeats: 20, prompts: "[16]", ..Scripted::default() };
    let a = own.run(dir.path());
    let plan = Scripted { name: "failing", ..own.clone() }.plan();
    let mut folder = RunFolder::create(dir.path(), "", &plan, &provenance::gather(&plan, &[])).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let mut target = MockTarget::new(move |request| {
        let mut script = own.script(request, &mut rng);
        if request.repeat == 3 {
            script.truncate(2);
            let (failure, message) = (FailureKind::Status, "503".to_owned());
            script.push((Nanos(90_000_000), EventKind::Failed { failure, message }));
        }
        script
    });
    crate::runner::run_with(&plan, &mut folder, &mut target, &StopFlag::new(), &mut Quiet);
    let found = json(dir.path(), &[&a, folder.run_id(), "--metric", "ttft_ms"]);
    assert_eq!((&found["lines"][0]["a_n"], &found["lines"][0]["b_n"]), (&20.into(), &19.into()), "{found:#}");
}
