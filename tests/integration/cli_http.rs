//! The command line for servers: what flags of known tools become, which are refused, what is never stored.

use bench_cli::args::{Cli, FLAGS, Flag, Support};
use bench_core::plan::{Cell, Plan, short_hash};
use bench_core::spec::RunSpec;
use serde_json::Value;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

fn ossbench(args: &[&str]) -> (u8, String, String) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let args = std::iter::once("ossbench").chain(args.iter().copied()).map(OsString::from);
    let code = bench_cli::run(args, &mut out, &mut err);
    (code, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
}

/// Words of a shell line; single quotes keep spaces.
fn words(line: &str) -> Vec<&str> {
    let quoted = line.split('\'').enumerate();
    quoted
        .flat_map(|(i, part)| if i % 2 == 1 { vec![part] } else { part.split_whitespace().collect() })
        .collect()
}

/// The study that `flags` make, resolved, and the notes that were printed.
fn study(flags: &str) -> Result<(RunSpec, Plan, String), String> {
    let mut args = vec!["latency", "--print-study"];
    args.extend(words(flags));
    let (code, out, err) = ossbench(&args);
    if code != 0 {
        return Err(format!("{code} {err}"));
    }
    let spec = RunSpec::from_toml(flags, &out).unwrap();
    let plan = spec.resolve().unwrap();
    Ok((spec, plan, err))
}

const HTTP: &str = "-m a --base-url http://h:1 ";

fn cell(cell: &Cell) -> String {
    let cap = cell.load.concurrency().map_or(String::new(), |c| format!(" at most {c}"));
    format!("{} {}{cap} x{}", cell.id, cell.load.key(), cell.requests())
}

#[test]
fn loads_of_known_tools_become_ours() {
    for (flags, expected) in [
        // No load: one request after another.
        ("", "a_p128_n32_c1 closed at most 1 x20"),
        // vLLM.
        ("--num-prompts 50", "a_p128_n32_burst burst x50"),
        ("--request-rate inf", "a_p128_n32_burst burst x20"),
        ("--max-concurrency 8 --num-prompts 100", "a_p128_n32_c8 closed at most 8 x100"),
        ("--request-rate inf --max-concurrency 8", "a_p128_n32_c8 closed at most 8 x160"),
        ("--request-rate inf --burstiness 1 --max-concurrency 8", "a_p128_n32_c8 closed at most 8 x160"),
        ("--request-rate 2.5 --num-prompts 7", "a_p128_n32_r2.5 poisson x7"),
        ("--request-rate 4 --burstiness 1.0", "a_p128_n32_r4 poisson x80"),
        ("--request-rate 4 --burstiness 0.5 --num-prompts 7", "a_p128_n32_r4 gamma(0.5) x7"),
        ("--request-rate 4 --burstiness inf --num-prompts 7", "a_p128_n32_r4 constant x7"),
        ("--request-rate 4 --max-concurrency 9 --num-prompts 7", "a_p128_n32_r4 poisson at most 9 x7"),
        (
            "--ramp-up-strategy linear --ramp-up-start-rps 1 --ramp-up-end-rps 9 --num-prompts 7",
            "a_p128_n32_r1to9 ramp(1..9) x7",
        ),
        (
            "--ramp-up-strategy=exponential --ramp-up-start-rps=2 --ramp-up-end-rps=8 --num-prompts=7",
            "a_p128_n32_r2to8 exponential_ramp(2..8) x7",
        ),
        // aiperf.
        ("--concurrency 4 --request-count 40", "a_p128_n32_c4 closed at most 4 x40"),
        ("--request-count 40", "a_p128_n32_c1 closed at most 1 x40"),
        ("--request-rate 5 --benchmark-duration 10", "a_p128_n32_r5 poisson x50"),
        ("--request-rate 5 --arrival-pattern constant --request-count 9", "a_p128_n32_r5 constant x9"),
        ("--request-rate 5 --arrival-pattern poisson --request-count 9", "a_p128_n32_r5 poisson x9"),
        (
            "--request-rate 5 --arrival-pattern gamma --arrival-smoothness 2 --request-count 9",
            "a_p128_n32_r5 gamma(2) x9",
        ),
        (
            "--arrival-pattern concurrency_burst --concurrency 4 --request-count 9",
            "a_p128_n32_c4 closed at most 4 x9",
        ),
        ("--isl 100 --osl 10 --request-count 1", "a_p100_n10_c1 closed at most 1 x1"),
        (
            "--synthetic-input-tokens-mean 100 --output-tokens-mean 10 --num-requests 1",
            "a_p100_n10_c1 closed at most 1 x1",
        ),
        // Lengths.
        ("--random-input-len 100 --random-output-len 10 -r 1", "a_p100_n10_c1 closed at most 1 x1"),
        ("--input-len 100 --output-len 10 -r 1", "a_p100_n10_c1 closed at most 1 x1"),
        ("--random-input-len 100 --random-prefix-len 28 -r 1", "a_p128_n32_c1 closed at most 1 x1"),
        ("-p 100 --random-prefix-len 28 -r 1", "a_p100_n32_c1 closed at most 1 x1"),
        // Traces.
        ("--trace t.jsonl --trace-speed 2 --num-prompts 5", "a_p128_n32_replay replay x5"),
        // Grids.
        ("-p 8,16 -n 2 -r 1", "a_p8_n2_c1 closed at most 1 x1, a_p16_n2_c1 closed at most 1 x1"),
        (
            "--max-concurrency 1,4 --num-prompts 8",
            "a_p128_n32_c1 closed at most 1 x8, a_p128_n32_c4 closed at most 4 x8",
        ),
        ("--request-rate 1,2.5 -r 2", "a_p128_n32_r1 poisson x2, a_p128_n32_r2.5 poisson x6"),
    ] {
        let (_, plan, _) = study(&format!("{HTTP}{flags}")).unwrap();
        let cells: Vec<_> = plan.cells.iter().map(cell).collect();
        assert_eq!(cells.join(", "), expected, "{flags}");
    }
}

#[test]
fn flags_become_keys_of_the_study() {
    for (flags, keys) in [
        ("--base-url http://h:1/v1/", r#"server.base_url="http://h:1/v1""#),
        ("--url h:1", r#"server.base_url="http://h:1""#),
        ("-u h:1", r#"server.base_url="http://h:1""#),
        ("--target http", r#"server.base_url="http://127.0.0.1:8000""#),
        ("--host ::1 --port 9", r#"server.base_url="http://[::1]:9""#),
        ("--port 9", r#"server.base_url="http://127.0.0.1:9""#),
        ("--port 9 --endpoint /v1/chat/completions", r#"server.endpoint="chat""#),
        ("--port 9 --endpoint /x/v1/completions", r#"server.base_url="http://127.0.0.1:9/x""#),
        ("--port 9 --endpoint v1/completions --backend vllm", r#"server.endpoint="completions""#),
        ("--port 9", "server.endpoint=null"),
        ("--port 9 --backend openai-chat", r#"server.endpoint="chat""#),
        ("--port 9 --endpoint-type completions", r#"server.endpoint="completions""#),
        ("--port 9 --streaming", "server.stream=true"),
        ("--port 9 --streaming false", "server.stream=false"),
        ("--port 9 --insecure", "server.insecure=true"),
        ("--port 9 --no-calibrate", "server.calibrate=false"),
        ("--port 9 --ready-check-timeout-sec 60", "server.ready_timeout_s=60.0"),
        ("--port 9 --request-timeout-seconds 7.5", "server.request_timeout_s=7.5"),
        ("--port 9 --extra-body '{\"a\": {\"b\": 1}}'", r#"server.extra_body={"a":{"b":1}}"#),
        (
            "--port 9 --min-p 0.1 --presence-penalty -1 --extra-body '{\"min_p\": 0.5}'",
            r#"server.extra_body={"min_p":0.5,"presence_penalty":-1.0}"#,
        ),
        ("--port 9", "server.fixed_length=null"),
        ("--port 9 --dataset-name random --ignore-eos", "server.fixed_length=true"),
        ("--port 9 --dataset-name sharegpt --dataset-path f", "server.fixed_length=false"),
        ("--port 9 --dataset-name custom --dataset-path f --ignore-eos", "server.fixed_length=true"),
        ("--port 9 --dataset-name sharegpt --dataset-path f", r#"workload.dataset="sharegpt""#),
        ("--port 9 --dataset-name custom --dataset-path f", r#"workload.dataset_path="f""#),
        (
            "--port 9 --dataset-name custom --dataset-path f --custom-output-len 9",
            "workload.output_tokens=[9]",
        ),
        (
            "--port 9 --dataset-name custom --dataset-path f --custom-output-len -1",
            "workload.output_tokens=null",
        ),
        (
            "--port 9 --dataset-name sharegpt --dataset-path f --sharegpt-output-len 9",
            "workload.output_tokens=[9]",
        ),
        ("--port 9 --dataset-name sharegpt --dataset-path f --output-len 9", "workload.output_tokens=[9]"),
        ("--port 9 --random-range-ratio 0.25", "workload.length_range=0.25"),
        ("--port 9 --random-range-ratio '{\"input\": 0.5, \"output\": 0.5}'", "workload.length_range=0.5"),
        ("--port 9 --random-prefix-len 64", "workload.shared_prefix_tokens=64"),
        ("--port 9 --skip-chat-template", r#"workload.chat="plain""#),
        ("--port 9 --temperature 0.7 --top-p 0.9 --top-k 5", "workload.temperature=0.7"),
        ("--port 9 --num-warmups 0", "run.warmup=0"),
        ("--port 9 --warmup-request-count 3", "run.warmup=3"),
        ("--port 9 --random-seed 7", "run.seed=7"),
        (
            "--port 9 --goodput ttft:200 tpot:50 e2el:5000",
            r#"slo={"ttft_ms":200.0,"tpot_ms":50.0,"e2el_ms":5000.0}"#,
        ),
        (
            "--port 9 --goodput 'request_latency:250 inter_token_latency:10'",
            r#"slo={"tpot_ms":10.0,"e2el_ms":250.0}"#,
        ),
        ("--port 9 --trace t.csv --trace-format azure --trace-limit 3", r#"load.trace_format="azure""#),
        ("--port 9 --tokenizer t", r#"models.0.tokenizer="t""#),
        ("--port 9 --served-model-name s", r#"models.0.id="s""#),
        ("--port 9 --served-model-name s", r#"models.0.tokenizer="a""#),
        ("--port 9 --served-model-name s --tokenizer t", r#"models.0.tokenizer="t""#),
        ("--port 9 --served-model-name s --skip-tokenizer-init", "models.0.tokenizer=null"),
        ("--port 9 --skip-tokenizer-init", "models.0.tokenizer=null"),
        ("--goodput ttft:1 --random-input-len 9", "target.kind=\"engine\""),
    ] {
        let (spec, _, _) = study(&format!("-m a {flags}")).unwrap();
        let spec = serde_json::to_value(spec).unwrap();
        let (key, expected) = keys.split_once('=').unwrap();
        let found = spec.pointer(&format!("/{}", key.replace('.', "/"))).unwrap_or(&Value::Null);
        assert_eq!(found.to_string(), expected, "{flags}: {key}");
    }
}

#[test]
fn what_a_known_name_means_otherwise_is_said() {
    for (flags, says) in [
        ("--num-prompts 5", "all requests are sent at once"),
        ("--max-concurrency 5", "vLLM would send 1000"),
        ("-p 128 -n 33 --random-range-ratio 0.25", "prompt tokens in [96, 160], output tokens in [24, 42]"),
        ("--random-input-len 100 --random-prefix-len 28", "prompts of [100] tokens and 28 before them"),
    ] {
        let (_, _, notes) = study(&format!("{HTTP}{flags}")).unwrap();
        assert!(notes.lines().any(|l| l.starts_with("note: ") && l.contains(says)), "{flags}: {notes}");
    }
    for flags in ["--max-concurrency 5 --num-prompts 9", "--dataset-name sharegpt --dataset-path f"] {
        let (_, _, notes) = study(&format!("{HTTP}{flags}")).unwrap();
        assert_eq!(notes, "", "{flags}");
    }
}

#[test]
fn what_cannot_be_meant_is_refused_with_the_flag() {
    for (flags, says) in [
        ("-m a --request-rate 5", "--request-rate: only with a server; name it with --base-url"),
        ("-m a --api-key k --target mock", "--api-key: only with a server"),
        ("-m a --base-url http://h --target mock", "--base-url: only with a server"),
        ("-m a --port 9 --threads 2", "--threads: the server decides that"),
        ("-m a --port 9 --activation-dtype bf16", "--activation-dtype: the server decides that"),
        ("-m a --port 9 -b 2", "--batch: the server decides that"),
        ("-m a --port 9 --base-url http://h", "cannot be used with"),
        ("-m a --base-url ftp://h", "`server.base_url` = ftp://h"),
        ("-m a --base-url http://me:pw@h", "no user or password"),
        ("-m a --port 9 --backend tgi", "valid: vllm, openai, completions, openai-chat, chat"),
        ("-m a --port 9 --endpoint /v1/embeddings", "ends in /v1/completions or /v1/chat/completions"),
        (
            "-m a --port 9 --endpoint /v1/completions --backend openai-chat",
            "not what --backend openai-chat speaks",
        ),
        ("-m a,b --port 9 --served-model-name s", "1 names for 2 models"),
        ("-m a --port 9 --extra-body 7", "expected a JSON object"),
        ("-m a --port 9 --dataset-name sonnet", "write others as JSON lines"),
        ("-m a --port 9 --dataset-name burstgpt", "--trace FILE"),
        ("-m a --port 9 --dataset-name prefix_repetition", "--random-prefix-len"),
        ("-m a --port 9 --dataset-name custom", "`workload.dataset_path`"),
        (
            "-m a --port 9 --dataset-name custom --dataset-path f --random-range-ratio 0.1",
            "--random-range-ratio: only with --dataset-name random",
        ),
        ("-m a --port 9 --custom-output-len 5", "only with --dataset-name custom"),
        ("-m a --port 9 --sharegpt-output-len 5", "only with --dataset-name sharegpt"),
        ("-m a --port 9 --trace t --max-concurrency 1,2", "--max-concurrency: one number"),
        ("-m a --port 9 --random-range-ratio 1", "`workload.length_range`"),
        ("-m a --port 9 --random-range-ratio x", "a number in [0, 1)"),
        ("-m a --port 9 --random-range-ratio '{\"input\": 0.5}'", "one ratio holds for both"),
        ("-m a --port 9 --input-len 5 -p 6", "cannot be used with"),
        ("-m a --port 9 --num-prompts 5 -r 6", "cannot be used with"),
        ("-m a --port 9 --num-prompts 5 --request-count 6", "cannot be used with"),
        ("-m a --port 9 --request-rate 1,inf", "inf is a load of its own"),
        ("-m a --port 9 --request-rate NaN", "expected numbers above 0"),
        ("-m a --port 9 --request-rate 0", "`load.rate`"),
        (
            "-m a --port 9 --request-rate 1 --max-concurrency 1,2",
            "--max-concurrency: one number where there is a rate",
        ),
        ("-m a --port 9 --burstiness 2", "--burstiness: only with a finite --request-rate"),
        (
            "-m a --port 9 --request-rate inf --burstiness 2",
            "--burstiness: only with a finite --request-rate",
        ),
        (
            "-m a --port 9 --request-rate 1 --arrival-pattern constant --burstiness 2",
            "--burstiness: only with",
        ),
        ("-m a --port 9 --arrival-pattern poisson", "--arrival-pattern: only with a finite --request-rate"),
        ("-m a --port 9 --arrival-pattern concurrency_burst", "needs --concurrency"),
        ("-m a --port 9 --arrival-pattern concurrency_burst --request-rate 3", "has no --request-rate"),
        ("-m a --port 9 --arrival-pattern uniform", "valid: constant, poisson, gamma, concurrency_burst"),
        ("-m a --port 9 --benchmark-duration 5", "`load.duration_s`"),
        ("-m a --port 9 --ramp-up-strategy linear", "--ramp-up-start-rps"),
        ("-m a --port 9 --ramp-up-end-rps 4", "--ramp-up-strategy"),
        ("-m a --port 9 --goodput ttfb:5", "\"ttfb:5\": expected ttft:MS"),
        ("-m a --port 9 --goodput ttft:x", "\"ttft:x\": expected ttft:MS"),
        ("-m a --port 9 --goodput ttft:1 ttft:2", "ttft stands there twice"),
        ("-m a --save-detailed", "--save-detailed: only with --save-result"),
        ("-m a --metadata a=b", "--metadata: only with --save-result"),
        ("-m a --save-result --metadata a", "expected KEY=VALUE"),
        ("-m a --save-result --percentile-metrics ttft,foo", "\"foo\" is unknown; valid: ttft, tpot"),
        ("-m a --save-result --metric-percentiles 50,101", "101 is not in [0, 100]"),
        ("--port 9", "--model"),
    ] {
        let error = study(flags).map(|_| ()).unwrap_err();
        assert!(error.starts_with("2 ") && error.contains(says), "{flags}: {error}");
    }
}

/// A new flag of vLLM changes the list on purpose: update both numbers with it.
#[test]
fn every_flag_of_vllm_works_or_is_refused() {
    let names: Vec<&str> = FLAGS.iter().map(|f| f.0).collect();
    assert!(names.is_sorted(), "{names:?}");
    let rows: Vec<String> =
        FLAGS.iter().map(|Flag(name, s)| format!("{name} {}", matches!(s, Support::Supported(_)))).collect();
    assert_eq!((FLAGS.len(), short_hash(rows.join("\n").as_bytes()).as_str()), (106, "b995e6ebfec9be16"));

    let cli = Cli::definition();
    let latency = cli.find_subcommand("latency").unwrap();
    for Flag(name, support) in FLAGS {
        let argument = latency.get_arguments().find(|a| {
            a.get_long() == Some(name) || a.get_all_aliases().is_some_and(|all| all.contains(name))
        });
        let argument = argument.unwrap_or_else(|| panic!("--{name} does not exist"));
        match support {
            Support::Supported(how) => assert!(!argument.is_hide_set() && !how.is_empty(), "--{name}"),
            Support::Refused(why) => {
                assert!(argument.is_hide_set(), "--{name}");
                let flag = format!("--{name}");
                let with_value = format!("{flag}=1");
                for given in
                    [vec![flag.as_str()], vec![&flag, "1", "b"], vec![&with_value], vec![&flag, "-1"]]
                {
                    let mut args = vec!["latency", "-m", "a", "--base-url", "http://h:1"];
                    args.extend(&given);
                    let (code, _, err) = ossbench(&args);
                    assert_eq!((code, err), (2, format!("ossbench: {flag}: {why}\n")), "{given:?}");
                }
            }
        }
    }
    let (code, out, _) = ossbench(&["latency", "--vllm-flags"]);
    assert_eq!((code, out.lines().count()), (0, FLAGS.len()));
}

/// Every file below `dir` with its content.
fn files(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(self::files(&path));
        } else {
            files.push((path.clone(), fs::read(path).unwrap()));
        }
    }
    files
}

fn in_dir(dir: &Path, command: &[&str]) -> (u8, String, String) {
    let path = |name: &str| dir.join(name).display().to_string();
    let mut args: Vec<String> = command.iter().map(|a| (*a).to_owned()).collect();
    for folder in ["results", "figs", "tables"] {
        args.extend([format!("--{folder}"), path(folder)]);
    }
    ossbench(&args.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Nothing listens on port 1: the run fails, and what it stored is looked through.
#[test]
fn no_file_holds_a_secret() {
    const SECRET: &str = "geheim-0123456789";
    let (key, long) = (format!("--api-key={SECRET}"), format!("--header=X-A={SECRET}"));
    let (one, two) = (format!("X-B: {SECRET}"), format!("X-C={SECRET}"));
    let secrets = [key.as_str(), &long, "-H", &one, &two];
    let study = "[run]\nname = \"s\"\nrepeats = 1\n[target]\nkind = \"http\"\n[[models]]\nid = \"a\"\n\
        [server]\nbase_url = \"http://127.0.0.1:2\"\ncalibrate = false\n";
    for by_flags in [true, false] {
        let dir = TempDir::new().unwrap();
        let file = dir.path().join("s.toml");
        let file = file.display().to_string();
        let server = ["--base-url", "http://127.0.0.1:1"];
        let mut args = if by_flags {
            vec!["latency", "-m", "a", "-r", "1", "--no-calibrate", "--extra-body", "{\"kept\": 1}"]
        } else {
            fs::write(&file, study).unwrap();
            vec!["run", &file, "-m", "b"]
        };
        args.extend(server);
        args.extend(secrets);
        let (code, out, err) = in_dir(dir.path(), &args);
        assert_eq!(code, 1, "{out}{err}");
        let stored = files(&dir.path().join("results"));
        let text_of = |name: &str| {
            let (_, bytes) = stored.iter().find(|(path, _)| path.ends_with(name)).unwrap();
            String::from_utf8_lossy(bytes).into_owned()
        };
        for (path, bytes) in &stored {
            assert!(!String::from_utf8_lossy(bytes).contains(SECRET), "{}", path.display());
        }
        assert!(!out.contains(SECRET) && !err.contains(SECRET), "{out}{err}");
        let provenance = text_of("provenance.json");
        for kept in ["--api-key=***", "--header=X-A=***", "X-B:***", "X-C=***"] {
            assert!(provenance.contains(kept), "{kept} in {provenance}");
        }
        let spec = RunSpec::from_toml("stored", &text_of("spec.toml")).unwrap();
        assert_eq!(spec.server.as_ref().unwrap().base_url.as_deref(), Some("http://127.0.0.1:1"));
        assert_eq!(spec.models[0].id, if by_flags { "a" } else { "b" });
        assert_eq!(text_of("plan.json").contains("kept"), by_flags);
    }
}

#[test]
fn overrides_of_a_study_say_what_they_cannot_change() {
    let dir = TempDir::new().unwrap();
    let two = dir.path().join("two.toml");
    fs::write(&two, "[target]\nkind = \"mock\"\n[[models]]\nid = \"a\"\n[[models]]\nid = \"b\"\n").unwrap();
    let two = two.display().to_string();
    for (flags, says) in [
        (["-m", "c"], "--model: this study has several models"),
        (["--base-url", "http://h"], "`server`"),
        (["--api-key", "geheim"], "--api-key: only with a server"),
    ] {
        let (code, _, err) = in_dir(dir.path(), &[&["run", &two][..], &flags].concat());
        assert!(code == 2 && err.contains(says) && !err.contains("geheim"), "{flags:?}: {code} {err}");
    }
    assert!(!dir.path().join("results").exists());
}

#[test]
fn a_stored_study_is_the_file_unless_a_flag_changed_it() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("m.toml");
    let text =
        "# a comment\n[run]\nname = \"m\"\nrepeats = 2\n[target]\nkind = \"mock\"\n[[models]]\nid = \"a\"\n";
    fs::write(&file, text).unwrap();
    let file = file.display().to_string();
    for (flags, kept) in [(&[][..], true), (&["-m", "a"], true), (&["-m", "b"], false)] {
        let results = TempDir::new().unwrap();
        let (code, _, err) = in_dir(results.path(), &[&["run", &file][..], flags].concat());
        assert_eq!(code, 0, "{err}");
        let stored = files(&results.path().join("results"));
        let (_, bytes) = stored.iter().find(|(path, _)| path.ends_with("spec.toml")).unwrap();
        assert_eq!(String::from_utf8_lossy(bytes) == text, kept, "{flags:?}");
    }
}

/// The mock sends the first token after 50 ms and one each 10 ms after it: 20 requests, 5 tokens, 90 ms each.
#[test]
fn the_result_file_has_vllms_keys_and_exact_values() {
    let dir = TempDir::new().unwrap();
    let to = dir.path().join("out").display().to_string();
    let args = words(
        "latency -m org/a --target mock -p 8 -n 5 --save-result --save-detailed --result-filename r.json \
         --percentile-metrics ttft,tpot,itl,e2el --metric-percentiles 50,99.9 --goodput tpot:10 \
         --metadata gpu=none --label mine --disable-tqdm --result-dir",
    );
    let (code, out, err) = in_dir(dir.path(), &[&args[..], &[&to]].concat());
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("by vLLM's definitions") && out.contains("r.json"), "{out}");
    let result: Value = serde_json::from_slice(&fs::read(dir.path().join("out/r.json")).unwrap()).unwrap();
    for (key, expected) in [
        ("endpoint_type", "\"mock\""),
        ("backend", "\"mock\""),
        ("label", "\"mine\""),
        ("model_id", "\"org/a\""),
        ("tokenizer_id", "null"),
        ("num_prompts", "20"),
        ("gpu", "\"none\""),
        ("request_rate", "\"inf\""),
        ("burstiness", "1.0"),
        ("max_concurrency", "null"),
        ("completed", "20"),
        ("failed", "0"),
        ("total_input_tokens", "160"),
        ("total_output_tokens", "100"),
        ("max_concurrent_requests", "1"),
    ] {
        assert_eq!(result[key].to_string(), expected, "{key}");
    }
    let near = |key: &str, expected: f64| {
        let value = result[key].as_f64().unwrap_or_else(|| panic!("no {key} in {result}"));
        assert!((value - expected).abs() < 1e-6, "{key}: {value}");
    };
    for (metric, ms) in [("ttft", 50.0), ("tpot", 10.0), ("itl", 10.0), ("e2el", 90.0)] {
        for stat in ["mean", "median", "p50", "p99.9"] {
            near(&format!("{stat}_{metric}_ms"), ms);
        }
        near(&format!("std_{metric}_ms"), 0.0);
    }
    let duration = result["duration"].as_f64().unwrap();
    assert!(duration >= 20.0 * 0.09);
    near("request_throughput", 20.0 / duration);
    near("output_throughput", 100.0 / duration);
    near("total_token_throughput", 260.0 / duration);
    near("request_goodput", 20.0 / duration);
    for list in ["input_lens", "output_lens", "start_times", "ttfts", "itls", "generated_texts", "errors"] {
        assert_eq!(result[list].as_array().unwrap().len(), 20, "{list}");
    }
    assert_eq!(result["itls"][0].as_array().unwrap().len(), 4);
    let ours = &result["ossbench"];
    assert_eq!((ours["requests"].to_string().as_str(), ours["verdict"].as_str()), ("20", Some("VALID")));
    let p50 =
        ours["metrics"].as_array().unwrap().iter().find(|m| m["metric"] == "ttft_ms" && m["stat"] == "p50");
    assert_eq!((p50.unwrap()["value"].as_f64(), p50.unwrap()["n"].as_u64()), (Some(50.0), Some(20)));
    assert_eq!(result["date"].as_str().unwrap().len(), "20250628-134501".len());
}

#[test]
fn result_files_of_several_cells_do_not_overwrite_each_other() {
    let dir = TempDir::new().unwrap();
    let to = dir.path().join("out").display().to_string();
    let base =
        ["latency", "-m", "a", "--target", "mock", "-p", "8,9", "-n", "2", "-r", "1", "--result-dir", &to];
    for (flags, names) in [
        ("--save-result --result-filename r.json", vec!["r-a_p8_n2_b1.json", "r-a_p9_n2_b1.json"]),
        ("--append-result --result-filename all.json", vec!["all.json"]),
        ("--metric-percentiles 90", vec![]),
    ] {
        let (code, out, err) = in_dir(dir.path(), &[&base[..], &words(flags)].concat());
        if names.is_empty() {
            assert_eq!(code, 2, "--result-dir without a file: {out}{err}");
            continue;
        }
        assert_eq!(code, 0, "{err}");
        for name in names {
            let text = fs::read_to_string(dir.path().join("out").join(name)).unwrap();
            assert_eq!(text.lines().count(), if name == "all.json" { 2 } else { 1 });
            for line in text.lines() {
                let result: Value = serde_json::from_str(line).unwrap();
                assert!(result["mean_ttft_ms"].is_number() && result.get("ttfts").is_none());
            }
        }
    }
    let (code, _, err) = in_dir(dir.path(), &[&base[..], &["--save-result"]].concat());
    assert_eq!(code, 0, "{err}");
    let usual = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        name.starts_with("mock-infqps-a-20") && name.ends_with("_b1.json")
    };
    assert_eq!(files(&dir.path().join("out")).iter().filter(|(path, _)| usual(path)).count(), 2);
}

#[test]
fn every_study_in_bench_configs_can_be_planned() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../bench-configs");
    let mut seen = Vec::new();
    for (path, bytes) in files(Path::new(folder)) {
        // `safety/` holds prompts and metadata, `audit/` column maps: no studies.
        let other = path.parent().is_some_and(|p| p.ends_with("safety") || p.ends_with("audit"));
        if path.extension().is_none_or(|e| e != "toml") || other {
            continue;
        }
        let text = String::from_utf8(bytes).unwrap();
        let plan = RunSpec::from_toml("file", &text).unwrap().resolve().unwrap();
        let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
        assert_eq!(plan.name, stem);
        let cells: Vec<_> = plan.cells.iter().map(cell).collect();
        let (first, last) = (&cells[0], &cells[cells.len() - 1]);
        let slo = plan.slo.map_or(String::new(), |s| format!(" {:?}/{:?}", s.ttft_ms, s.tpot_ms));
        seen.push(format!("{stem}: {} {first} .. {last}{slo}", cells.len()));
        if let Some(server) = plan.server {
            assert_eq!(server.base_url.as_deref(), Some("http://127.0.0.1:8000"));
            assert!(text.contains("# Source: ") && text.contains("# Deviations"), "{stem}");
        }
    }
    seen.sort();
    assert_eq!(
        seen,
        [
            "1k1k: 5 gpt-oss-120b_p1024_n1024_c4 closed at most 4 x40 .. \
             gpt-oss-120b_p1024_n1024_c64 closed at most 64 x640",
            "8k1k: 5 gpt-oss-120b_p8192_n1024_c4 closed at most 4 x40 .. \
             gpt-oss-120b_p8192_n1024_c64 closed at most 64 x640",
            "ablation-dense-all: 6 gpt-oss-20b_p128_n64_b1 batch x10 .. gpt-oss-20b-dense-all_p2048_n64_b1 batch x10",
            "endpoints-pareto: 10 gpt-oss-120b_p1024_n1024_c1 closed at most 1 x60 .. \
             gpt-oss-120b_p1024_n1024_c512 closed at most 512 x30720",
            "gpu-batch: 12 gpt-oss-20b_p128_n64_b1 batch x5 .. gpt-oss-20b-q8_p2048_n64_b64 batch x320",
            "gpu-gpt-oss-120b: 12 gpt-oss-120b_p128_n64_b1 batch x10 .. gpt-oss-120b_p2048_n256_b1 batch x10",
            "gpu-gpt-oss-20b: 12 gpt-oss-20b_p128_n64_b1 batch x10 .. gpt-oss-20b_p2048_n256_b1 batch x10",
            "gpu-qwen3-32b: 12 qwen3-32b_p128_n64_b1 batch x3 .. qwen3-32b_p2048_n256_b1 batch x3",
            "gpu-yi-34b: 12 yi-34b_p128_n64_b1 batch x3 .. yi-34b_p2048_n256_b1 batch x3",
            "mlperf-gptoss-interactive: 1 gpt-oss-120b_p1024_n1024_r2 poisson x1200 .. \
             gpt-oss-120b_p1024_n1024_r2 poisson x1200 Some(2000.0)/Some(15.0)",
            "mlperf-gptoss-server: 1 gpt-oss-120b_p1024_n1024_r2 poisson x1200 .. \
             gpt-oss-120b_p1024_n1024_r2 poisson x1200 Some(3000.0)/Some(80.0)",
            "quickstart: 6 gpt-oss-nano_p128_n64_b1 batch x20 .. dense-nano_p512_n64_b1 batch x20",
        ]
    );
}
