//! The engine against what transformers computed: every tensor of the golden files, through the public API.
//!
//! Each test prints the largest difference that it saw; the tolerances are those of the golden files' README.

#![allow(clippy::print_stdout)] // the largest difference of each comparison

use std::collections::BTreeMap;
use std::fs;

use bench_engine::checkpoint::Folder;
use bench_engine::config::{ExpertDtype, ModelConfig};
use bench_engine::{ActivationDtype, Error, Hooks, LoadOptions, Model, Sequence};
use candle_core::{DType, Device, Tensor};
use safetensors::{Dtype, SafeTensors};

use crate::checkpoint::golden;

/// Absolute, f32 engine against f32 reference.
const TOLERANCE: f32 = 5e-4;

/// A golden file: values as f32, integers included (all are small).
pub(crate) struct Golden(pub(crate) BTreeMap<String, (Vec<usize>, Vec<f32>)>);

impl Golden {
    pub(crate) fn open(path: &str) -> Self {
        let bytes = fs::read(golden(path)).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let values = |t: &safetensors::tensor::TensorView<'_>| -> Vec<f32> {
            let data = t.data();
            match t.dtype() {
                Dtype::F32 => data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
                Dtype::F64 => data.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b) as f32).collect(),
                Dtype::I64 => data.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b) as f32).collect(),
                Dtype::BF16 => {
                    data.as_chunks().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect()
                }
                Dtype::U8 => data.iter().map(|b| f32::from(*b)).collect(),
                other => panic!("{other:?}"),
            }
        };
        Self(tensors.iter().map(|(name, t)| (name.to_owned(), (t.shape().to_vec(), values(&t)))).collect())
    }

    pub(crate) fn get(&self, name: &str) -> &[f32] {
        &self.0.get(name).unwrap_or_else(|| panic!("no tensor {name}")).1
    }

    fn ids(&self, name: &str) -> Vec<u32> {
        self.get(name).iter().map(|&id| id as u32).collect()
    }
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
    let gold = Golden::open(&format!("goldens/{folder}/{prompt}.safetensors"));
    let (ids, greedy) = (gold.ids("ids.prompt"), gold.ids("ids.greedy"));
    let vocab = model.config().vocab_size;
    let sites: Vec<(String, String)> =
        gold.0.keys().filter_map(|name| Some((name.clone(), site_of(name)?))).collect();
    let of = |decode: bool| sites.iter().filter(move |(name, _)| name.starts_with("decode.") == decode);
    let read = |decode: bool| {
        let names: Vec<&str> = of(decode).map(|(_, site)| site.as_str()).collect();
        Hooks::read(&names).unwrap()
    };

    let (mut sequence, mut hooks) = (model.sequence(), read(false));
    let logits = model.forward_all(&mut [&mut sequence], &[&ids], usize::MAX, &mut hooks).unwrap();
    let logits = vec(&logits);
    differences.add(&format!("{prompt} logits.prefill"), &logits, gold.get("logits.prefill"));
    for (name, site) in of(false) {
        let values = hooks.take(site);
        assert_eq!(values.len(), 1, "{site}");
        assert_eq!(values[0].dims(), gold.0[name].0, "{site}");
        differences.add(&format!("{prompt} {name}"), &vec(&values[0]), gold.get(name));
    }

    let (mut hooks, mut steps) = (read(true), logits[logits.len() - vocab..].to_vec());
    for (i, &id) in greedy.iter().enumerate() {
        assert_eq!(argmax(&steps[i * vocab..]), id, "{prompt}: greedy id {i}");
        steps.extend(vec(&model.decode_step(&mut [&mut sequence], &[id], &mut hooks).unwrap()));
    }
    differences.add(&format!("{prompt} logits.steps"), &steps, gold.get("logits.steps"));
    for (name, site) in of(true) {
        let values: Vec<f32> = hooks.take(site).iter().flat_map(vec).collect();
        differences.add(&format!("{prompt} {name}"), &values, gold.get(name));
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

/// Logits of the last prompt position, then of each step that feeds the next of `fed`.
fn steps(model: &Model, prompts: &[&[u32]], fed: &[&[u32]], chunk: usize) -> Vec<Vec<f32>> {
    let mut sequences: Vec<Sequence> = prompts.iter().map(|_| model.sequence()).collect();
    let mut sequences: Vec<&mut Sequence> = sequences.iter_mut().collect();
    let vocab = model.config().vocab_size;
    let mut hooks = Hooks::none();
    let mut logits = vec(&model.prefill(&mut sequences, prompts, chunk, &mut hooks).unwrap());
    let mut rows: Vec<Vec<f32>> = logits.chunks(vocab).map(<[f32]>::to_vec).collect();
    for i in 0..fed[0].len() {
        let ids: Vec<u32> = fed.iter().map(|f| f[i]).collect();
        logits = vec(&model.decode_step(&mut sequences, &ids, &mut hooks).unwrap());
        for (row, logits) in rows.iter_mut().zip(logits.chunks(vocab)) {
            row.extend_from_slice(logits);
        }
    }
    rows
}

/// The two prompts of `batch2` without their padding, and their greedy continuations.
fn batch_of_two(gold: &Golden) -> (Vec<Vec<u32>>, Vec<Vec<u32>>) {
    let (ids, mask, greedy) = (gold.ids("ids.input"), gold.ids("ids.mask"), gold.ids("ids.greedy"));
    let rows = ids.chunks(ids.len() / 2).zip(mask.chunks(mask.len() / 2));
    let prompts =
        rows.map(|(ids, mask)| ids.iter().zip(mask).filter(|(_, m)| **m == 1).map(|(id, _)| *id).collect());
    (prompts.collect(), greedy.chunks(greedy.len() / 2).map(<[u32]>::to_vec).collect())
}

#[test]
fn a_batch_of_two_equals_the_single_runs() {
    for name in ["gpt-oss-tiny", "gpt-oss-tiny-bf16", "qwen3-tiny", "llama-tiny"] {
        let model = load_f32(name);
        let gold = Golden::open(&format!("goldens/{}/batch2.safetensors", name.trim_end_matches("-bf16")));
        let (prompts, greedy) = batch_of_two(&gold);
        assert_eq!(prompts.iter().map(Vec::len).collect::<Vec<_>>(), [9, 23]);
        let (prompts, fed): (Vec<&[u32]>, Vec<&[u32]>) =
            (prompts.iter().map(Vec::as_slice).collect(), greedy.iter().map(Vec::as_slice).collect());
        let mut differences = Differences::default();
        for chunk in [64, 5] {
            let batch = steps(&model, &prompts, &fed, chunk);
            differences.add(&format!("chunk {chunk}"), &batch.concat(), gold.get("logits.steps"));
            for i in 0..2 {
                let ids: Vec<u32> = batch[i].chunks(model.config().vocab_size).map(argmax).collect();
                assert_eq!(ids[..24], greedy[i]);
                let single = steps(&model, &prompts[i..=i], &fed[i..=i], 64);
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
        let gold = Golden::open(&format!("goldens/{name}/p70.safetensors"));
        let (prompt, greedy) = (gold.ids("ids.prompt"), gold.ids("ids.greedy"));
        let mut differences = Differences::default();
        // Chunks below, at and above the window of 16, and such as leave a rest.
        for chunk in [1, 7, 16, 33, 69, 70, 1000] {
            let rows = steps(&model, &[&prompt], &[&greedy], chunk);
            differences.add(&format!("chunk {chunk}"), &rows[0], gold.get("logits.steps"));
            let mut sequence = model.sequence();
            let all = model.forward_all(&mut [&mut sequence], &[&prompt], chunk, &mut Hooks::none()).unwrap();
            differences.add(&format!("chunk {chunk}, all positions"), &vec(&all), gold.get("logits.prefill"));
        }
        differences.print(&format!("{name}, chunks"), 14);
    }
}

/// What the reference's script calls distance: rows are next-token logits.
struct Distance {
    mean_abs: f64,
    kl_mean: f64,
    top1: f64,
}

fn distance(reference: &[f32], found: &[f32], vocab: usize) -> Distance {
    assert_eq!(reference.len(), found.len());
    let log_softmax = |row: &[f32]| -> Vec<f64> {
        let max = f64::from(row.iter().copied().fold(f32::MIN, f32::max));
        let sum: f64 = row.iter().map(|&l| (f64::from(l) - max).exp()).sum();
        row.iter().map(|&l| f64::from(l) - max - sum.ln()).collect()
    };
    let (mut kl, mut same, mut abs) = (0.0, 0.0, 0.0);
    let rows = reference.len() / vocab;
    for (r, f) in reference.chunks(vocab).zip(found.chunks(vocab)) {
        let (p, q) = (log_softmax(r), log_softmax(f));
        kl += p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
        same += f64::from(u8::from(argmax(r) == argmax(f)));
        abs += r.iter().zip(f).map(|(a, b)| f64::from((a - b).abs())).sum::<f64>();
    }
    Distance { mean_abs: abs / reference.len() as f64, kl_mean: kl / rows as f64, top1: same / rows as f64 }
}

/// The expert choices of every forward pass of an f32 run, by layer.
type Routing = Vec<Vec<Tensor>>;

/// Logits of prefill and 24 steps of `fed`, with the experts of `forced` where given; and the experts chosen.
fn routed_steps(model: &Model, prompt: &[u32], fed: &[u32], forced: Option<&Routing>) -> (Vec<f32>, Routing) {
    let layers = if model.config().moe.is_some() { model.config().num_hidden_layers } else { 0 };
    let sites: Vec<String> = (0..layers).map(|l| format!("expert_index.{l}")).collect();
    let names: Vec<&str> = sites.iter().map(String::as_str).collect();
    let mut hooks = Hooks::read(&names).unwrap();
    for (site, choices) in sites.iter().zip(forced.into_iter().flatten()) {
        let mut next = choices.iter();
        hooks = hooks.replace(site, move |_| Ok(next.next().unwrap().clone())).unwrap();
    }
    let mut sequence = model.sequence();
    let mut logits = vec(&model.prefill(&mut [&mut sequence], &[prompt], 1000, &mut hooks).unwrap());
    for &id in fed {
        logits.extend(vec(&model.decode_step(&mut [&mut sequence], &[id], &mut hooks).unwrap()));
    }
    (logits, names.iter().map(|site| hooks.take(site)).collect())
}

#[test]
fn bf16_activations_stay_within_the_distances_of_the_reference() {
    for name in ["gpt-oss-tiny", "qwen3-tiny", "llama-tiny"] {
        let (exact, half) = (load_f32(name), load(name, ActivationDtype::Bf16, ExpertDtype::Native));
        let vocab = exact.config().vocab_size;
        let reference = Golden::open(&format!("goldens/{name}/bf16.safetensors"));
        let (batch_prompts, batch_greedy) =
            batch_of_two(&Golden::open(&format!("goldens/{name}/batch2.safetensors")));
        for prompt in ["p1", "p9", "p23", "p70"] {
            let (ids, greedy) = if prompt == "p23" {
                (batch_prompts[1].clone(), batch_greedy[1].clone())
            } else {
                let gold = Golden::open(&format!("goldens/{name}/{prompt}.safetensors"));
                (gold.ids("ids.prompt"), gold.ids("ids.greedy"))
            };
            let (f32_logits, routing) = routed_steps(&exact, &ids, &greedy, None);
            let (free, _) = routed_steps(&half, &ids, &greedy, None);
            let (forced, used) = routed_steps(&half, &ids, &greedy, Some(&routing));
            let choices = |r: &Routing| r.iter().flatten().flat_map(vec).collect::<Vec<f32>>();
            assert_eq!(choices(&used), choices(&routing));
            assert_eq!(routing.is_empty(), name != "gpt-oss-tiny");
            let moe = if routing.is_empty() { "" } else { "_f32_routing" };
            let reference = reference.get(&format!("{prompt}.logits.steps{moe}"));
            let (d_free, d) = (distance(&f32_logits, &free, vocab), distance(&f32_logits, &forced, vocab));
            let (d_ref, ours) =
                (distance(&f32_logits, reference, vocab), distance(reference, &forced, vocab));
            println!(
                "{name} {prompt} bf16: mean abs {:.4} (reference {:.4}, between {:.4}), KL {:.5} (reference {:.5}), \
                 free {:.5}, top-1 {:.2}",
                d.mean_abs, d_ref.mean_abs, ours.mean_abs, d.kl_mean, d_ref.kl_mean, d_free.kl_mean, d.top1
            );
            assert!(d.mean_abs <= 0.15 && d.kl_mean <= 0.01 && d.top1 >= 0.88, "{name} {prompt}");
            assert!(d_free.kl_mean <= 0.1, "{name} {prompt}");
            assert!(ours.mean_abs <= 0.15 && ours.kl_mean <= 0.01, "{name} {prompt}");
            assert!(d.mean_abs > 1e-4, "bf16 activations must show");
        }
    }
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
    let gold = Golden::open("goldens/gpt-oss-tiny/p9.safetensors");
    let mut hooks = Hooks::read(&["resid_post.1"]).unwrap();
    model.prefill(&mut [&mut model.sequence()], &[&gold.ids("ids.prompt")], 64, &mut hooks).unwrap();
    let mut differences = Differences::default();
    differences.add("resid_post.1", &vec(&hooks.take("resid_post.1")[0]), gold.get("hidden.layer1"));
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
