//! A server that is not ours, end to end: llama.cpp's own, with the golden checkpoint, where one is running.
//!
//! `OSSBENCH_LLAMA_SERVER` holds its address; tests/peers/README.md says how it is started. The same checkpoint
//! runs in-process, so that both stand in one table.

use bench_core::metric::Metric;
use std::collections::BTreeMap;
use std::path::Path;

/// One row's value, or `None` where the table has none.
type Rows = BTreeMap<(String, String, String, String), (Option<f64>, String)>;

fn ossbench(args: &[&str]) -> String {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let code = bench_cli::run(args.iter().map(Into::into), &mut out, &mut err);
    let text = String::from_utf8_lossy(&err).into_owned();
    assert_eq!(code, 0, "{args:?}: {text}");
    text
}

/// By target, load, metric and statistic: value and verdict.
fn table(results: &Path) -> Rows {
    let text = std::fs::read_to_string(results.join("unified.csv")).unwrap();
    let mut lines = text.lines();
    let header: Vec<&str> = lines.next().unwrap().split(',').collect();
    let at = |name: &str| header.iter().position(|h| *h == name).unwrap();
    let places = ["target", "concurrency", "metric", "stat", "value", "verdict"].map(at);
    let row = |line: &str| {
        // Reasons may hold commas; what is read here stands before them, but for the verdict, which is a word.
        let fields: Vec<&str> = line.split(',').collect();
        let [target, level, metric, stat, value, verdict] = places.map(|p| fields[p].to_owned());
        ((target, level, metric, stat), (value.parse().ok(), verdict))
    };
    lines.map(row).collect()
}

#[test]
fn llama_cpp_is_measured_and_agrees_with_its_own_timings() {
    let Ok(url) = std::env::var("OSSBENCH_LLAMA_SERVER") else {
        return println!("skipped: OSSBENCH_LLAMA_SERVER is not set, see tests/peers/README.md");
    };
    let dir = tempfile::tempdir().unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/llama-tiny");
    let config = dir.path().join("served.toml");
    let study = format!(
        "[run]\nname = \"served\"\n[target]\nkind = \"http\"\n[[models]]\nid = \"llama-tiny\"\ntokenizer = {golden:?}\n\
         [server]\nbase_url = \"{url}\"\n[load]\nconcurrency = [1, 4]\nrequests = 60\n\
         [workload]\nprompt_tokens = [64]\noutput_tokens = [48]\n"
    );
    std::fs::write(&config, study).unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (results, figs, tables) = (path("results"), path("figs"), path("tables"));
    let paths = ["--results", &results, "--figs", &figs, "--tables", &tables];
    let said = ossbench(&[&["ossbench", "run", &config.display().to_string()][..], &paths].concat());
    assert!(said.contains("closes the connection"), "llama.cpp ends a connection after a stream: {said}");
    let model = golden.display().to_string();
    let engine = ["ossbench", "latency", "-m", &model, "-p", "64", "-n", "48", "-r", "20"];
    ossbench(&[&engine[..], &paths].concat());

    let rows = table(Path::new(&results));
    let value = |target: &str, level: &str, metric: Metric, stat: &str| {
        let key = [target, level, metric.def().key, stat].map(str::to_owned);
        let [a, b, c, d] = key.clone();
        rows.get(&(a, b, c, d)).and_then(|row| row.0).unwrap_or_else(|| panic!("no {key:?} in the table"))
    };
    for (target, level) in [("http", "1"), ("http", "4"), ("engine", "")] {
        for metric in [Metric::Ttft, Metric::Tpot, Metric::E2el] {
            assert!(value(target, level, metric, "p50") > 0.0);
        }
        assert_eq!(value(target, level, Metric::SuccessRate, "value"), 1.0, "{target} {level}");
        assert_eq!(value(target, level, Metric::PromptTokens, "min"), 64.0, "exact on the server's side too");
        assert_eq!(value(target, level, Metric::PromptTokens, "max"), 64.0);
        assert_eq!(value(target, level, Metric::OutputTokens, "min"), 48.0);
        assert_eq!(value(target, level, Metric::OutputTokens, "max"), 48.0);
    }
    // Its clock begins with the prompt and ends with the last token; ours sees both through a socket.
    for level in ["1", "4"] {
        let residual = value("http", level, Metric::ResidualTtft, "p50");
        let ours = value("http", level, Metric::Tpot, "p50") * 47.0;
        let own = value("http", level, Metric::ServerDecode, "p50");
        println!(
            "{level} in flight: residual TTFT {residual:.3} ms, decode {ours:.3} ms, by its own timings {own:.3} ms"
        );
        assert!(residual > 0.0, "the client cannot be ahead of the server: {residual}");
        // Some of its tokens are half a character: up to three at either end of an answer are not shown.
        assert!((ours - own).abs() <= own * 0.15 + 1.0, "{ours} against {own}");
    }
}
