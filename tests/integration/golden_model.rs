//! The engine against what transformers computed: every tensor of the golden files, through the public API.
//!
//! Each test prints the largest difference that it saw; the tolerances are those of the golden files' README.

#![allow(clippy::print_stdout)] // the largest difference of each comparison

use std::fs;
use std::path::Path;

use bench_engine::checkpoint::Folder;
use bench_engine::config::{ExpertDtype, ModelConfig};
use bench_engine::parity::{Golden, MODELS, Options, batch_of_two, compare, steps};
use bench_engine::place::Place;
use bench_engine::{ActivationDtype, Error, Hooks, LoadOptions, Model, Sequence};
use candle_core::{DType, Device, Tensor};

use crate::checkpoint::golden;

/// Absolute, f32 engine against f32 reference.
const TOLERANCE: f32 = 5e-4;

/// The reference file at `path` below the golden folder.
pub(crate) fn open(path: &str) -> Golden {
    Golden::open(&golden(path)).unwrap()
}

fn load(name: &str, activation_dtype: ActivationDtype, expert_dtype: ExpertDtype) -> Model {
    let config = ModelConfig::from_folder(&golden(name)).unwrap();
    let folder = Folder::open(&golden(name)).unwrap();
    let options = LoadOptions { activation_dtype, expert_dtype, ..LoadOptions::default() };
    let (layers, mut done) = (config.num_hidden_layers as u64, 0);
    let model = Model::build(config, &folder, &options, &mut |p| {
        assert_eq!((p.total, p.unit), (layers, "layers"));
        done = p.done;
    });
    assert_eq!(done, layers);
    model.unwrap()
}

fn load_f32(name: &str) -> Model {
    load(name, ActivationDtype::F32, ExpertDtype::Native)
}

fn vec(t: &Tensor) -> Vec<f32> {
    t.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn argmax(row: &[f32]) -> u32 {
    (0..row.len()).rev().max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap() as u32
}

/// Counts what was compared, so that a test that compares nothing fails.
#[derive(Default)]
struct Differences {
    tensors: usize,
    largest: f32,
    where_: String,
}

impl Differences {
    fn add(&mut self, what: &str, found: &[f32], expected: &[f32]) {
        assert_eq!(found.len(), expected.len(), "{what}");
        assert!(!found.is_empty(), "{what}");
        self.tensors += 1;
        for (i, (f, e)) in found.iter().zip(expected).enumerate() {
            let difference = (f - e).abs();
            assert!(difference <= TOLERANCE, "{what}[{i}]: {f}, expected {e}");
            if difference > self.largest {
                (self.largest, self.where_) = (difference, what.to_owned());
            }
        }
    }

    fn print(&self, what: &str, at_least: usize) {
        assert!(self.tensors >= at_least, "{what}: only {} tensors compared", self.tensors);
        println!(
            "{what}: {} tensors, largest difference {:.2e} in {}",
            self.tensors, self.largest, self.where_
        );
    }
}

/// The site whose value a golden tensor holds; `None` for ids and logits, which are returned and not hooked.
fn site_of(name: &str) -> Option<String> {
    const KINDS: [(&str, &str); 18] = [
        ("hidden", "resid_post"),
        ("norm.attn", "attn_norm"),
        ("norm.mlp", "mlp_norm"),
        ("attn.q", "q"),
        ("attn.k", "k"),
        ("attn.v", "v"),
        ("attn.probs", "attn_probs"),
        ("attn.out", "attn_out"),
        ("attn.proj", "attn_proj"),
        ("router.logits", "router"),
        ("router.topk_index", "expert_index"),
        ("router.topk_weight", "expert_weight"),
        ("mlp.out", "mlp_out"),
        ("moe.gate_up", "moe_gate_up"),
        ("moe.act", "moe_act"),
        ("moe.expert_out", "moe_expert_out"),
        ("hidden.embed", "embed"),
        ("hidden.final_norm", "final_norm"),
    ];
    if name.starts_with("ids.") || name.starts_with("logits.") {
        return None;
    }
    let name = name.strip_prefix("decode.").unwrap_or(name);
    let (kind, layer) = name.rsplit_once(".layer").map_or((name, None), |(kind, l)| (kind, Some(l)));
    let site =
        KINDS.iter().find(|(golden, _)| *golden == kind).unwrap_or_else(|| panic!("no site for {name}")).1;
    Some(layer.map_or(site.to_owned(), |l| format!("{site}.{l}")))
}

/// Every tensor of one golden file: the prompt in one pass, then 24 greedy steps.
fn check_prompt(model: &Model, folder: &str, prompt: &str, differences: &mut Differences) {
    let gold = open(&format!("goldens/{folder}/{prompt}.safetensors"));
    let (ids, greedy) = (gold.ids("ids.prompt").unwrap(), gold.ids("ids.greedy").unwrap());
    let vocab = model.config().vocab_size;
    let sites: Vec<(String, String)> =
        gold.names().filter_map(|name| Some((name.to_owned(), site_of(name)?))).collect();
    let of = |decode: bool| sites.iter().filter(move |(name, _)| name.starts_with("decode.") == decode);
    let read = |decode: bool| {
        let names: Vec<&str> = of(decode).map(|(_, site)| site.as_str()).collect();
        Hooks::read(&names).unwrap()
    };

    let (mut sequence, mut hooks) = (model.sequence(), read(false));
    let logits = model.forward_all(&mut [&mut sequence], &[&ids], usize::MAX, &mut hooks).unwrap();
    let logits = vec(&logits);
    differences.add(&format!("{prompt} logits.prefill"), &logits, gold.get("logits.prefill").unwrap());
    for (name, site) in of(false) {
        let values = hooks.take(site);
        assert_eq!(values.len(), 1, "{site}");
        assert_eq!(values[0].dims(), gold.shape(name).unwrap(), "{site}");
        differences.add(&format!("{prompt} {name}"), &vec(&values[0]), gold.get(name).unwrap());
    }

    let (mut hooks, mut steps) = (read(true), logits[logits.len() - vocab..].to_vec());
    for (i, &id) in greedy.iter().enumerate() {
        assert_eq!(argmax(&steps[i * vocab..]), id, "{prompt}: greedy id {i}");
        steps.extend(vec(&model.decode_step(&mut [&mut sequence], &[id], &mut hooks).unwrap()));
    }
    differences.add(&format!("{prompt} logits.steps"), &steps, gold.get("logits.steps").unwrap());
    for (name, site) in of(true) {
        let values: Vec<f32> = hooks.take(site).iter().flat_map(vec).collect();
        differences.add(&format!("{prompt} {name}"), &values, gold.get(name).unwrap());
    }
    assert_eq!(sequence.len(), ids.len() + greedy.len());
}

/// `at_least` is the number of tensors in the model's three golden files, ids left out.
fn check_model(name: &str, expert_dtype: ExpertDtype, at_least: usize) {
    let model = load(name, ActivationDtype::F32, expert_dtype);
    let mut differences = Differences::default();
    for prompt in ["p1", "p9", "p70"] {
        check_prompt(&model, name.trim_end_matches("-bf16"), prompt, &mut differences);
    }
    differences.print(&format!("{name}, experts {expert_dtype:?}"), at_least);
}

#[test]
fn gpt_oss_equals_the_reference() {
    check_model("gpt-oss-tiny", ExpertDtype::Native, 157);
}

#[test]
fn gpt_oss_with_dequantized_experts_equals_the_reference() {
    check_model("gpt-oss-tiny", ExpertDtype::Bf16, 157);
    check_model("gpt-oss-tiny-bf16", ExpertDtype::Native, 157);
}

#[test]
fn qwen3_equals_the_reference() {
    check_model("qwen3-tiny", ExpertDtype::Native, 67);
}

#[test]
fn llama_equals_the_reference() {
    check_model("llama-tiny", ExpertDtype::Native, 67);
}

#[test]
fn a_batch_of_two_equals_the_single_runs() {
    for name in ["gpt-oss-tiny", "gpt-oss-tiny-bf16", "qwen3-tiny", "llama-tiny"] {
        let model = load_f32(name);
        let gold = open(&format!("goldens/{}/batch2.safetensors", name.trim_end_matches("-bf16")));
        let (prompts, greedy): (Vec<_>, Vec<_>) = batch_of_two(&gold).unwrap().into_iter().unzip();
        assert_eq!(prompts.iter().map(Vec::len).collect::<Vec<_>>(), [9, 23]);
        let (prompts, fed): (Vec<&[u32]>, Vec<&[u32]>) =
            (prompts.iter().map(Vec::as_slice).collect(), greedy.iter().map(Vec::as_slice).collect());
        let mut differences = Differences::default();
        for chunk in [64, 5] {
            let batch = steps(&model, &prompts, &fed, chunk).unwrap();
            differences.add(&format!("chunk {chunk}"), &batch.concat(), gold.get("logits.steps").unwrap());
            for i in 0..2 {
                let ids: Vec<u32> = batch[i].chunks(model.config().vocab_size).map(argmax).collect();
                assert_eq!(ids[..24], greedy[i]);
                let single = steps(&model, &prompts[i..=i], &fed[i..=i], 64).unwrap();
                differences.add(&format!("row {i} against a single run"), &batch[i], &single[0]);
            }
        }
        differences.print(&format!("{name}, batch of two"), 6);
    }
}

#[test]
fn prefill_in_chunks_equals_prefill_in_one() {
    for name in ["gpt-oss-tiny", "qwen3-tiny", "llama-tiny"] {
        let model = load_f32(name);
        let gold = open(&format!("goldens/{name}/p70.safetensors"));
        let (prompt, greedy) = (gold.ids("ids.prompt").unwrap(), gold.ids("ids.greedy").unwrap());
        let mut differences = Differences::default();
        // Chunks below, at and above the window of 16, and such as leave a rest.
        for chunk in [1, 7, 16, 33, 69, 70, 1000] {
            let rows = steps(&model, &[&prompt], &[&greedy], chunk).unwrap();
            differences.add(&format!("chunk {chunk}"), &rows[0], gold.get("logits.steps").unwrap());
            let mut sequence = model.sequence();
            let all = model.forward_all(&mut [&mut sequence], &[&prompt], chunk, &mut Hooks::none()).unwrap();
            differences.add(
                &format!("chunk {chunk}, all positions"),
                &vec(&all),
                gold.get("logits.prefill").unwrap(),
            );
        }
        differences.print(&format!("{name}, chunks"), 14);
    }
}

/// Everything that `ossbench parity` compares, on the host.
#[test]
fn tiny_models_are_within_the_bounds_of_the_references() {
    let folder = golden("");
    let activations = [ActivationDtype::F32, ActivationDtype::Bf16];
    let options = Options { golden: &folder, models: &MODELS, activations: &activations, place: Place::Host };
    let found = compare(&options, |row| println!("{row:?}")).unwrap();
    assert_eq!(found.failures, []);
    let wrong: Vec<_> = found.rows.iter().filter(|row| !row.holds).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(found.hold());
    // f32: prefill, steps and ids of three prompts and steps and ids of a batch, experts of three prompts if there are
    // some. bf16: four prompts with two comparisons each, or four where experts are chosen.
    let count = |model: &str, dtype: &str| {
        found.rows.iter().filter(|r| (r.model, r.activation_dtype) == (model, dtype)).count()
    };
    for model in MODELS {
        let moe = model.starts_with("gpt-oss");
        assert_eq!(count(model, "f32"), if moe { 14 } else { 11 }, "{model}");
        assert_eq!(count(model, "bf16"), if moe { 16 } else { 8 }, "{model}");
    }
    // Activations in bf16 must show.
    let half = found.rows.iter().filter(|r| r.activation_dtype == "bf16").filter_map(|r| r.difference);
    assert!(half.map(|d| d.mean_abs).fold(f64::INFINITY, f64::min) > 1e-4);
}

#[test]
fn parity_names_what_is_missing_and_what_fails() {
    let run = |folder: &Path, model| {
        let options = Options {
            golden: folder,
            models: &[model],
            activations: &[ActivationDtype::F32],
            place: Place::Host,
        };
        compare(&options, |_| {})
    };
    let error = run(&golden("text"), "qwen3-tiny").unwrap_err().to_string();
    assert!(error.contains("has no checkpoint qwen3-tiny") && error.contains("goldens/"), "{error}");
    let copy = crate::checkpoint::copy_of("qwen3-tiny");
    let folder = tempfile::tempdir().unwrap();
    fs::rename(copy.path(), folder.path().join("qwen3-tiny")).unwrap();
    let error = run(folder.path(), "qwen3-tiny").unwrap_err().to_string();
    assert!(error.contains("bf16.safetensors"), "{error}");
    // References of another model: every comparison is made, and fails.
    fs::create_dir_all(folder.path().join("goldens/qwen3-tiny")).unwrap();
    for file in ["p1", "p9", "p70", "batch2", "bf16"] {
        let name = format!("{file}.safetensors");
        let from = golden(&format!("goldens/llama-tiny/{name}"));
        fs::copy(from, folder.path().join("goldens/qwen3-tiny").join(name)).unwrap();
    }
    let found = run(folder.path(), "qwen3-tiny").unwrap();
    assert!(!found.hold() && found.rows.len() == 11);
    assert!(found.rows.iter().all(|row| !row.holds), "{found:#?}");
}

#[test]
fn kv_bytes_follow_windows_and_pages() {
    for (dtype, size) in [(ActivationDtype::F32, 4), (ActivationDtype::Bf16, 2)] {
        let model = load("gpt-oss-tiny", dtype, ExpertDtype::Native);
        let mut sequence = model.sequence();
        assert_eq!((sequence.kv_bytes(), sequence.kv_used_bytes()), (0, 0));
        let ids = vec![1; 300];
        model.prefill(&mut [&mut sequence], &[&ids], 64, &mut Hooks::none()).unwrap();
        // Two heads of 64, keys and values; two sliding layers of 16 rows, two full ones in pages of 256.
        let row = 2 * 2 * 64 * size;
        assert_eq!(sequence.kv_used_bytes(), row * (2 * 16 + 2 * 300));
        assert_eq!(sequence.kv_bytes(), row * (2 * 16 + 2 * 512));
        assert_eq!(
            sequence.kv_used_bytes(),
            bench_engine::layout::kv_bytes(model.config(), 300, dtype, true)
        );
        sequence.reset();
        assert_eq!((sequence.kv_bytes(), sequence.len()), (0, 0));
    }
}

#[test]
fn fewer_layers_stop_at_the_residual_stream_of_that_layer() {
    let config = ModelConfig::from_folder(&golden("gpt-oss-tiny")).unwrap();
    let folder = Folder::open(&golden("gpt-oss-tiny")).unwrap();
    let options = LoadOptions { num_layers: Some(2), ..LoadOptions::default() };
    let model = Model::build(config.clone(), &folder, &options, &mut |_| {}).unwrap();
    let gold = open("goldens/gpt-oss-tiny/p9.safetensors");
    let mut hooks = Hooks::read(&["resid_post.1"]).unwrap();
    model.prefill(&mut [&mut model.sequence()], &[&gold.ids("ids.prompt").unwrap()], 64, &mut hooks).unwrap();
    let mut differences = Differences::default();
    differences.add("resid_post.1", &vec(&hooks.take("resid_post.1")[0]), gold.get("hidden.layer1").unwrap());
    differences.print("two layers", 1);
    assert!(model.weights_bytes() < load_f32("gpt-oss-tiny").weights_bytes());
    let options = LoadOptions { num_layers: Some(5), ..LoadOptions::default() };
    assert!(matches!(Model::build(config, &folder, &options, &mut |_| {}), Err(Error::Layers { .. })));
}

#[test]
fn resident_bytes_are_those_of_the_layout() {
    for (name, experts) in [
        ("gpt-oss-tiny", ExpertDtype::Native),
        ("gpt-oss-tiny", ExpertDtype::Bf16),
        ("gpt-oss-tiny-bf16", ExpertDtype::Native),
        ("qwen3-tiny", ExpertDtype::Native),
        ("llama-tiny", ExpertDtype::Native),
    ] {
        let model = load(name, ActivationDtype::F32, experts);
        assert_eq!(
            model.weights_bytes(),
            bench_engine::layout::weights_bytes(model.config(), experts),
            "{name}"
        );
    }
}

#[test]
fn impossible_requests_are_typed_errors() {
    let model = load_f32("gpt-oss-tiny");
    let run = |ids: &[&[u32]], hooks: &mut Hooks<'_>| {
        let mut sequences: Vec<Sequence> = ids.iter().map(|_| model.sequence()).collect();
        let mut sequences: Vec<&mut Sequence> = sequences.iter_mut().collect();
        model.prefill(&mut sequences, ids, 16, hooks).map(|_| ())
    };
    let none = &mut Hooks::none();
    assert!(matches!(run(&[&[1], &[]], none), Err(Error::EmptyPrompt { sequence: 1 })));
    assert!(matches!(run(&[], none), Err(Error::BatchMismatch { .. })));
    assert!(matches!(run(&[&[1, 512]], none), Err(Error::TokenOutOfVocabulary { id: 512, vocab_size: 512 })));
    let long = vec![0; 131_073];
    assert!(matches!(run(&[&long], none), Err(Error::ContextTooLong { limit: 131_072, .. })));

    let error = run(&[&[1]], &mut Hooks::read(&["router.4"]).unwrap()).unwrap_err().to_string();
    assert!(error.contains("router.4") && error.contains("router.0 … 3"), "{error}");
    let dense = load_f32("qwen3-tiny");
    let mut hooks = Hooks::read(&["router.0"]).unwrap();
    let error = dense.prefill(&mut [&mut dense.sequence()], &[&[1]], 1, &mut hooks).unwrap_err().to_string();
    assert!(error.contains("router.0") && !error.contains("expert_index"), "{error}");

    let mut nan = Hooks::none().replace("embed", |x| Ok((x * f64::NAN)?)).unwrap();
    assert!(matches!(run(&[&[1]], &mut nan), Err(Error::NonFiniteLogits { count: 512, .. })));
    let far = |x: &Tensor| Ok(Tensor::full(8_u32, x.dims(), &Device::Cpu)?);
    let mut far = Hooks::none().replace("expert_index.2", far).unwrap();
    assert!(run(&[&[1]], &mut far).unwrap_err().to_string().contains("expert"));
}

#[test]
fn a_sequence_whose_pass_failed_must_be_reset() {
    let model = load_f32("llama-tiny");
    let mut sequence = model.sequence();
    let fail = |_: &Tensor| Err(Error::EmptyPrompt { sequence: 77 });
    let mut hooks = Hooks::none().replace("mlp_out.1", fail).unwrap();
    let failed = model.prefill(&mut [&mut sequence], &[&[1, 2]], 2, &mut hooks);
    assert!(matches!(failed, Err(Error::EmptyPrompt { sequence: 77 })));
    let again = model.decode_step(&mut [&mut sequence], &[3], &mut Hooks::none());
    assert!(matches!(again, Err(Error::InterruptedSequence)));
    sequence.reset();
    model.decode_step(&mut [&mut sequence], &[3], &mut Hooks::none()).unwrap();
    assert_eq!(sequence.len(), 1);
}
