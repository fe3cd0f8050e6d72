//! `ossbench ablate`: which studies it makes, what it refuses, and the tables that come of them.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use tempfile::TempDir;

fn ossbench(args: &[&str]) -> (u8, String, String) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let args = std::iter::once("ossbench").chain(args.iter().copied()).map(OsString::from);
    let code = bench_cli::run(args, &mut out, &mut err);
    (code, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
}

/// Runs `ossbench ablate` with every path inside `dir`.
fn ablate(dir: &Path, flags: &str) -> (u8, String, String) {
    let path = |name: &str| dir.join(name).display().to_string();
    let (results, figs, tables) = (path("results"), path("figs"), path("tables"));
    let mut args = vec!["ablate"];
    args.extend(flags.split_whitespace());
    args.extend(["--ui", "none", "--results", &results, "--figs", &figs, "--tables", &tables]);
    ossbench(&args)
}

fn studies(flags: &str) -> (String, String) {
    let mut args = vec!["ablate", "--print-study"];
    args.extend(flags.split_whitespace());
    let (code, out, err) = ossbench(&args);
    assert_eq!(code, 0, "{err}");
    (out, err)
}

fn read(dir: &TempDir, name: &str) -> Vec<String> {
    let text = fs::read_to_string(dir.path().join("results").join(name)).unwrap();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn decoding_is_the_studys_five_and_ours() {
    let (study, _) = studies("-m dummy:gpt-oss-tiny --tests decoding -p 160 -n 8 -r 6");
    insta::assert_snapshot!(study, @r#"
    # ablation: decoding
    [run]
    name = "ablate-decoding"
    seed = 42
    repeats = 6
    warmup = 2

    [target]
    kind = "engine"

    [[models]]
    id = "dummy:gpt-oss-tiny"
    label = "gpt-oss-tiny-greedy"
    temperature = 0.0

    [[models]]
    id = "dummy:gpt-oss-tiny"
    label = "gpt-oss-tiny-top-p-0.9"
    temperature = 0.7
    top_p = 0.9

    [[models]]
    id = "dummy:gpt-oss-tiny"
    label = "gpt-oss-tiny-top-k-50"
    temperature = 0.7
    top_k = 50

    [[models]]
    id = "dummy:gpt-oss-tiny"
    label = "gpt-oss-tiny-high-temp"
    temperature = 1.0
    top_p = 0.95

    [[models]]
    id = "dummy:gpt-oss-tiny"
    label = "gpt-oss-tiny-low-temp"
    temperature = 0.3
    top_p = 0.8

    [[models]]
    id = "dummy:gpt-oss-tiny"
    label = "gpt-oss-tiny-sampling"
    temperature = 1.0

    [[models]]
    id = "dummy:gpt-oss-tiny"
    label = "gpt-oss-tiny-top-k-p"
    temperature = 1.0
    top_k = 50
    top_p = 0.9

    [workload]
    prompt_tokens = [160]
    output_tokens = [8]
    "#);
}

#[test]
fn precision_and_server_are_entries_of_one_id() {
    let flags = "-m dummy:gpt-oss-tiny --tests precision,server -p 160 -n 8 -r 6 --served-model-name tiny \
                 --base-url http://127.0.0.1:8000,https://host.example/v1";
    let (study, _) = studies(flags);
    insta::assert_snapshot!(study, @r#"
    # ablation: precision
    [run]
    name = "ablate-precision"
    seed = 42
    repeats = 6
    warmup = 2

    [target]
    kind = "engine"

    [[models]]
    id = "dummy:gpt-oss-tiny"
    label = "gpt-oss-tiny-mxfp4-f32"
    activation_dtype = "f32"
    expert_dtype = "native"

    [[models]]
    id = "dummy:gpt-oss-tiny"
    label = "gpt-oss-tiny-mxfp4-bf16"
    activation_dtype = "bf16"
    expert_dtype = "native"

    [[models]]
    id = "dummy:gpt-oss-tiny"
    label = "gpt-oss-tiny-bf16-f32"
    activation_dtype = "f32"
    expert_dtype = "bf16"

    [[models]]
    id = "dummy:gpt-oss-tiny"
    label = "gpt-oss-tiny-bf16-bf16"
    activation_dtype = "bf16"
    expert_dtype = "bf16"

    [workload]
    prompt_tokens = [160]
    output_tokens = [8]

    # ablation: server
    [run]
    name = "ablate-server"
    seed = 42
    repeats = 6
    warmup = 2

    [target]
    kind = "engine"

    [[models]]
    id = "dummy:gpt-oss-tiny"
    label = "gpt-oss-tiny"

    [workload]
    prompt_tokens = [160]
    output_tokens = [8]

    # ablation: server
    [run]
    name = "ablate-server-http"
    seed = 42
    repeats = 6
    warmup = 2

    [target]
    kind = "http"

    [[models]]
    id = "tiny"
    label = "gpt-oss-tiny-127.0.0.1-8000"
    base_url = "http://127.0.0.1:8000"
    tokenizer = "dummy:gpt-oss-tiny"

    [[models]]
    id = "tiny"
    label = "gpt-oss-tiny-host.example"
    base_url = "https://host.example/v1"
    tokenizer = "dummy:gpt-oss-tiny"

    [workload]
    prompt_tokens = [160]
    output_tokens = [8]

    [load]
    requests = 6

    [server]
    "#);
}

#[test]
fn expert_mode_is_the_routers_choice_against_all_experts() {
    let (study, _) =
        studies("-m dummy:gpt-oss-tiny --tests expert-mode -p 160 -n 8 -r 6 --expert-mode dense-all");
    insta::assert_snapshot!(study, @r#"
    # ablation: expert-mode
    [run]
    name = "ablate-expert-mode"
    seed = 42
    repeats = 6
    warmup = 2

    [target]
    kind = "engine"

    [[models]]
    id = "dummy:gpt-oss-tiny"
    label = "gpt-oss-tiny-routed"
    expert_mode = "routed"

    [[models]]
    id = "dummy:gpt-oss-tiny"
    label = "gpt-oss-tiny-dense-all"
    expert_mode = "dense-all"

    [workload]
    prompt_tokens = [160]
    output_tokens = [8]
    "#);
    // Where it is not what is varied it stays, and the labels of what the engine runs say so.
    let flags =
        "-m dummy:gpt-oss-tiny --tests batch,server --base-url http://127.0.0.1:8000 --expert-mode dense-all";
    let (study, _) = studies(flags);
    for says in [
        "expert_mode = \"dense-all\"",
        "label = \"gpt-oss-tiny-dense-all\"",
        "label = \"gpt-oss-tiny-127.0.0.1-8000\"",
    ] {
        assert!(study.contains(says), "no {says:?} in {study}");
    }
    let dense = "ablate -m dummy:dense-tiny --expert-mode dense-all --print-study";
    let (code, _, err) = ossbench(&dense.split(' ').collect::<Vec<_>>());
    assert!(code != 0 && err.contains("has no experts"), "{err}");
    let dense = "ablate -m dummy:dense-tiny --tests expert-mode --print-study";
    let (_, out, err) = ossbench(&dense.split(' ').collect::<Vec<_>>());
    assert!(
        !out.contains("[[models]]") && err.contains("left out: the model has no experts"),
        "{out}\n{err}"
    );
}

#[test]
fn all_experts_really_run_and_say_so_in_every_row() {
    let dir = TempDir::new().unwrap();
    let (code, out, err) =
        ablate(dir.path(), "-m dummy:gpt-oss-tiny --tests expert-mode -p 160 -n 4 -r 3 --warmup 1 -o jsonl");
    assert_eq!(code, 0, "{err}");
    let rows: Vec<serde_json::Value> = out.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let told = "all experts computed (ablation): not how the model is served";
    let of = |key: &str| rows.iter().map(|r| r[key].as_str().unwrap()).collect::<Vec<_>>();
    assert_eq!(of("label"), ["gpt-oss-tiny-routed", "gpt-oss-tiny-dense-all"], "{out}");
    assert_eq!((of("verdict"), of("reason")), (vec!["VALID"; 2], vec!["", told]), "{out}");
    let unified = fs::read_to_string(dir.path().join("results/unified.csv")).unwrap();
    let mut lines = unified.lines();
    let header: Vec<&str> = lines.next().unwrap().split(',').collect();
    let column = |name: &str| header.iter().position(|c| *c == name).unwrap();
    let (mut touched, mut flops) = (Vec::new(), Vec::new());
    for line in lines {
        assert_eq!(line.contains("gpt-oss-tiny-dense-all"), line.contains(told), "{line}");
        let fields: Vec<&str> = line.split(',').collect();
        match fields[column("metric")] {
            "experts_touched" => touched.push((fields[column("model")], fields[column("value")])),
            "flops_per_tok" => flops.push(fields[column("value")].parse::<f64>().unwrap()),
            _ => {}
        }
    }
    touched.sort_unstable();
    assert_eq!(touched, [("gpt-oss-tiny-dense-all", "8.0"), ("gpt-oss-tiny-routed", "2.0")]);
    // Six experts more of 3 x 32 x 64 weights, 2 x 32 + 64 biases, in four layers; a product and a sum for each.
    flops.sort_by(f64::total_cmp);
    assert_eq!(flops[1] - flops[0], 2.0 * 4.0 * 6.0 * (3.0 * 32.0 * 64.0 + 2.0 * 32.0 + 64.0), "{flops:?}");
    let tables: String = fs::read_dir(dir.path().join("tables"))
        .unwrap()
        .map(|file| fs::read_to_string(file.unwrap().path()).unwrap())
        .collect();
    let html = fs::read_to_string(dir.path().join("results/report.html")).unwrap();
    assert!(tables.contains(told) && html.contains(told), "a footnote in tables and report");
}

#[test]
fn what_is_not_there_is_listed_with_its_reason_and_not_run() {
    let (study, err) = studies("-m dummy:dense-tiny --tests precision");
    assert_eq!(study.matches("[[models]]").count(), 2, "{study}");
    for says in [
        "dequantized experts, f32 activations is left out: the model has no experts to dequantize",
        "fp16 is left out: the engine computes in f32 or bf16",
        "q8 is left out: experts have no 8-bit format",
    ] {
        assert!(err.contains(says), "no {says:?} in {err}");
    }
    let (study, err) = studies("-m dummy:gpt-oss-tiny --tests context --context-lengths 256,1k,128k,1k -n 8");
    assert!(study.contains("prompt_tokens = [\n    256,\n    1024,\n]"), "{study}");
    assert!(err.contains("131072 tokens is left out: needs 131080 positions"), "{err}");
    // Too large for any machine: refused before anything is loaded.
    let dir = TempDir::new().unwrap();
    let (code, out, err) = ablate(dir.path(), "-m dummy:gpt-oss-120b --tests batch -b 1000000");
    assert_eq!(code, 3, "{err}");
    assert!(out.contains("not run: needs") && err.contains("no variant can be run here"), "{out}\n{err}");
    let csv = read(&dir, "ablation_batch.csv");
    assert!(csv[1].starts_with("batch,batch 1000000,") && csv[1].contains(",NOT_RUN,\"needs "), "{csv:?}");
    let (code, _, err) = ablate(dir.path(), "-m dummy:gpt-oss-tiny --tests speed");
    assert_eq!(code, 2);
    assert!(err.contains("decoding, precision, expert-mode, context, server, batch, all"), "{err}");
}

#[test]
fn without_a_server_there_is_nothing_to_compare_and_it_says_what_to_pass() {
    let dir = TempDir::new().unwrap();
    let (code, out, err) = ablate(dir.path(), "-m dummy:gpt-oss-tiny --tests server");
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("nothing to compare") && out.contains("--base-url"), "{out}");
    assert!(!dir.path().join("results/raw").exists());
}

/// Scripted times: 50 ms to the first token, 10 ms between tokens, so 8 tokens take 120 ms.
#[test]
fn the_studys_files_have_its_headers_and_formulas() {
    let dir = TempDir::new().unwrap();
    let (code, out, err) = ablate(dir.path(), "-m mock --target mock --tests all -n 8 -r 10 -b 1,4");
    assert_eq!(code, 0, "{out}\n{err}");
    let rest = "max_new_tokens,mean_new_tokens,mean_time_s,mean_tokps";
    let stats = "p50_new_tokens,p50_time_s,p50_tokps,p95_time_s,p95_tokps";
    let header = |name: &str| read(&dir, name)[0].clone();
    assert_eq!(
        header("study_ablation_decoding_parameters.csv"),
        format!("decoding_method,{rest},model,{stats},runs,throughput_scope")
    );
    assert_eq!(
        header("study_ablation_quantization_effects.csv"),
        format!("error,{rest},model,{stats},precision,runs,throughput_scope")
    );
    assert_eq!(
        header("study_ablation_context_scaling.csv"),
        format!("{rest},measured_context_tokens,model,{stats},runs,target_context_length,throughput_scope")
    );
    assert_eq!(
        header("study_ablation_batch_size.csv"),
        format!("batch_size,{rest},model,{stats},runs,throughput_scope")
    );
    let rate = 8.0 / 0.12;
    let decoding = read(&dir, "study_ablation_decoding_parameters.csv");
    let fields: Vec<&str> = decoding[1].split(',').collect();
    assert_eq!((fields[0], fields[1], fields[2], fields[5]), ("Greedy", "8", "8.0", "mock"));
    assert_eq!((fields[6], fields[11], fields[12]), ("8", "10", "prefill+decode"));
    for (place, expected) in [(3, 0.12), (4, rate), (7, 0.12), (8, rate), (9, 0.12), (10, rate)] {
        let found: f64 = fields[place].parse().unwrap();
        assert!((found - expected).abs() < 1e-9 * expected, "{place}: {found} {expected}");
    }
    assert_eq!(decoding.len(), 8, "five of the study, two of ours");
    let context = read(&dir, "study_ablation_context_scaling.csv");
    assert!(
        context[4].contains(",4096,mock,") && context[4].ends_with(",10,4096,prefill+decode"),
        "{context:?}"
    );
    let batch = read(&dir, "study_ablation_batch_size.csv");
    assert!(batch[2].starts_with("4,32,32.0,0.12,266.6"), "a batch is one run: {batch:?}");
    let precision = read(&dir, "study_ablation_quantization_effects.csv");
    let fp16 = precision.iter().find(|line| line.contains(",FP16,")).unwrap();
    assert!(fp16.ends_with(",8,,,,mock,,,,,,FP16,,"), "{fp16}");
    let ours = read(&dir, "ablation_batch.csv");
    let column = |name: &str| ours[0].split(',').position(|c| c == name).unwrap();
    let of = |line: usize, name: &str| ours[line].split(',').nth(column(name)).unwrap().to_owned();
    assert_eq!((of(2, "decode_p50_tok_s"), of(2, "ttft_p50_ms")), ("100.0".to_owned(), "50.0".to_owned()));
    assert_eq!((of(2, "prefill_decode_ratio"), of(1, "decode_ratio_low")), ("4.0".to_owned(), String::new()));
}

#[test]
fn a_run_that_was_cut_is_gone_on_with() {
    let dir = TempDir::new().unwrap();
    let flags = "-m mock --target mock --tests decoding -n 4 -r 4";
    assert_eq!(ablate(dir.path(), flags).0, 0);
    let raw = dir.path().join("results/raw");
    let runs = || fs::read_dir(&raw).unwrap().map(|e| e.unwrap().path()).collect::<Vec<_>>();
    let run = runs().remove(0);
    fs::remove_file(run.join("cells/mock-greedy_p128_n4_b1/round-001.jsonl")).unwrap();
    let (code, _, err) = ablate(dir.path(), flags);
    assert_eq!((code, runs().len()), (0, 1), "{err}");
    assert!(run.join("cells/mock-greedy_p128_n4_b1/round-001.jsonl").is_file());
}

#[test]
fn precision_really_runs() {
    let dir = TempDir::new().unwrap();
    let (code, out, err) =
        ablate(dir.path(), "-m dummy:gpt-oss-tiny --tests precision -p 160 -n 4 -r 3 --warmup 1 -o jsonl");
    assert_eq!(code, 0, "{err}");
    let rows: Vec<serde_json::Value> = out.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let verdicts: Vec<_> = rows.iter().map(|r| r["verdict"].as_str().unwrap()).collect();
    assert_eq!(verdicts, ["VALID", "VALID", "VALID", "VALID", "NOT_RUN", "NOT_RUN"], "{out}");
    assert!(rows[..4].iter().all(|r| r["n"] == 3 && r["decode_p50_tok_s"].as_f64().unwrap() > 0.0), "{out}");
    assert_eq!(rows[0]["decode_ratio"], 1.0);
    let unified = fs::read_to_string(dir.path().join("results/unified.csv")).unwrap();
    for label in ["mxfp4-f32", "mxfp4-bf16", "bf16-f32", "bf16-bf16"] {
        assert!(unified.contains(&format!(",gpt-oss-tiny-{label},")), "{label}");
    }
}
