//! Tokens chosen on an emulated GPU: the host's distribution, its seeds, and how much is launched and copied for them.
#![cfg(target_arch = "x86_64")]

use bench_engine::sampling::{Sampler, SamplingParams};
use bench_engine::{Hooks, LoadOptions, Logits, Model, Sequence};
use cuda_stub::Report;

use crate::cuda::{GIB, Stub, dummy, stub};

/// Prompts of three sequences.
const PROMPTS: [&[u32]; 3] = [&[1, 5, 9, 13, 40], &[7, 8], &[300, 301, 302]];

fn model(stub: &Stub) -> Model {
    dummy("gpt-oss-tiny", &LoadOptions { place: stub.place.clone(), ..LoadOptions::default() })
}

/// What `work` makes of the logits of these prompts.
fn with_logits<T>(model: &Model, prompts: &[&[u32]], work: impl FnOnce(Logits<'_>) -> T) -> T {
    let mut sequences: Vec<Sequence> = prompts.iter().map(|_| model.sequence()).collect();
    let mut sequences: Vec<&mut Sequence> = sequences.iter_mut().collect();
    let (mut workspace, mut hooks) = (model.workspace(), Hooks::none());
    work(model.prefill_in(&mut workspace, &mut sequences, prompts, 64, &mut hooks).unwrap())
}

/// The logits of these prompts, row by row.
fn rows(model: &Model, prompts: &[&[u32]]) -> Vec<Vec<f32>> {
    let all = with_logits(model, prompts, |logits| logits.values().unwrap().to_vec());
    all.chunks_exact(all.len() / prompts.len()).map(<[f32]>::to_vec).collect()
}

fn sampler(temperature: f32, seed: u64) -> Sampler {
    Sampler::new(SamplingParams { temperature, seed, ..SamplingParams::default() }).unwrap()
}

/// Probabilities under a temperature; 0 for what is suppressed.
fn softmax(logits: &[f32], temperature: f64, suppressed: &[u32]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut weights: Vec<f64> = logits.iter().map(|l| (f64::from(l - largest) / temperature).exp()).collect();
    for id in suppressed {
        weights[*id as usize] = 0.0;
    }
    let total: f64 = weights.iter().sum();
    weights.iter().map(|w| w / total).collect()
}

/// Pearson's statistic of these counts, in standard deviations from its mean. Classes of which fewer than five are
/// expected are one class together.
fn deviation(counts: &[u32], probabilities: &[f64]) -> f64 {
    let n = f64::from(counts.iter().sum::<u32>());
    let (mut statistic, mut classes, mut rest) = (0.0, 0.0, (0.0, 0.0));
    for (count, p) in counts.iter().zip(probabilities) {
        let (count, expected) = (f64::from(*count), p * n);
        if expected < 5.0 {
            rest = (rest.0 + count, rest.1 + expected);
        } else {
            statistic += (count - expected).powi(2) / expected;
            classes += 1.0;
        }
    }
    if rest.1 > 0.0 {
        statistic += (rest.0 - rest.1).powi(2) / rest.1;
        classes += 1.0;
    }
    let freedom: f64 = classes - 1.0;
    (statistic - freedom) / (2.0 * freedom).sqrt()
}

/// How often each token is drawn in `draws` draws.
fn drawn(model: &Model, sampler: &mut Sampler, suppressed: &[u32], draws: usize) -> (Vec<u32>, Vec<u32>) {
    with_logits(model, &PROMPTS[..1], |mut logits| {
        let ids: Vec<u32> = (0..draws).map(|_| logits.sample(0, sampler, suppressed).unwrap()).collect();
        let mut counts = vec![0; model.config().vocab_size];
        for id in &ids {
            counts[*id as usize] += 1;
        }
        (ids, counts)
    })
}

#[test]
fn tokens_are_drawn_by_their_probabilities_and_as_the_host_draws_them() {
    let stub = stub(4, GIB);
    let model = model(&stub);
    let row = rows(&model, &PROMPTS[..1]).remove(0);
    let mut likely: Vec<u32> = (0..row.len() as u32).collect();
    likely.sort_by(|a, b| row[*b as usize].total_cmp(&row[*a as usize]));
    for (seed, temperature, suppressed) in
        [(11, 1.0, &[][..]), (12, 1.0, &[]), (13, 0.6, &likely[..2]), (14, 2.0, &likely[3..9])]
    {
        let mut probabilities = softmax(&row, f64::from(temperature), suppressed);
        let (ids, counts) = drawn(&model, &mut sampler(temperature, seed), suppressed, 1500);
        assert!(suppressed.iter().all(|id| counts[*id as usize] == 0), "{temperature}");
        let found = deviation(&counts, &probabilities);
        println!("temperature {temperature}: {found:.2} standard deviations from the softmax");
        assert!(found < 4.0, "temperature {temperature}: {found}");
        // The statistic tells another temperature apart.
        probabilities = softmax(&row, 1.25 * f64::from(temperature), suppressed);
        assert!(deviation(&counts, &probabilities) > 4.0, "temperature {temperature}");

        let mut host = sampler(temperature, seed);
        let expected: Vec<u32> = ids.iter().map(|_| host.sample(&row, suppressed).unwrap()).collect();
        assert_eq!(ids, expected, "temperature {temperature}");
    }
}

#[test]
fn a_seed_repeats_its_tokens_and_another_does_not() {
    let stub = stub(0, GIB);
    let model = model(&stub);
    let draw = |seed| drawn(&model, &mut sampler(1.0, seed), &[], 40).0;
    let first = draw(3);
    assert_eq!(first, draw(3));
    assert_ne!(first, draw(4));
}

/// Samplers of three rows.
fn samplers(params: [(f32, Option<usize>); 3]) -> [Sampler; 3] {
    let mut seed = 20;
    params.map(|(temperature, top_k)| {
        seed += 1;
        Sampler::new(SamplingParams { temperature, top_k, seed, ..SamplingParams::default() }).unwrap()
    })
}

/// What was called between two reports.
fn calls(before: &Report, after: &Report) -> (u64, u64, u64) {
    let count =
        |all: &std::collections::BTreeMap<String, u64>, name: &str| all.get(name).copied().unwrap_or(0);
    let kernel = |name| count(&after.kernels, name) - count(&before.kernels, name);
    let copies = "cuMemcpyDtoHAsync_v2";
    (kernel("argmax"), kernel("sample"), count(&after.calls, copies) - count(&before.calls, copies))
}

#[test]
fn all_rows_of_a_step_are_chosen_by_one_launch_and_one_copy() {
    let stub = stub(2, GIB);
    let model = model(&stub);
    let rows = rows(&model, &PROMPTS);
    let suppressed = [5, 9];
    for (params, launches) in [
        ([(0.0, None); 3], (1, 0, 1)),
        ([(0.7, None); 3], (1, 1, 1)),
        // Of several temperatures, and greedy among them.
        ([(1.3, None), (0.0, None), (0.4, None)], (1, 1, 1)),
        // In order of their probabilities: on the host, from one copy.
        ([(0.8, Some(4)); 3], (0, 0, 1)),
        ([(0.8, Some(4)), (0.0, None), (0.9, None)], (1, 1, 3)),
    ] {
        let (mut here, mut there) = (samplers(params), samplers(params));
        let found = with_logits(&model, &PROMPTS, |mut logits| {
            let before = stub.loaded.report().unwrap();
            let mut found = Vec::new();
            logits.sample_all(&mut there, &suppressed, |row, id| found.push((row, id))).unwrap();
            assert_eq!(calls(&before, &stub.loaded.report().unwrap()), launches, "{params:?}");
            // The most likely one is still known, whatever was drawn.
            let best = logits.sample(1, &mut sampler(0.0, 0), &suppressed).unwrap();
            assert_eq!(best, sampler(0.0, 0).sample(&rows[1], &suppressed).unwrap());
            found
        });
        let expected = here.iter_mut().zip(&rows).map(|(s, row)| s.sample(row, &suppressed).unwrap());
        assert_eq!(found, expected.enumerate().collect::<Vec<_>>(), "{params:?}");
    }
}

#[test]
fn nothing_to_choose_from_is_an_error() {
    let stub = stub(0, GIB);
    let model = model(&stub);
    let all: Vec<u32> = (0..model.config().vocab_size as u32).collect();
    with_logits(&model, &PROMPTS[..1], |mut logits| {
        for temperature in [0.0, 1.0] {
            let error = logits.sample(0, &mut sampler(temperature, 1), &all).unwrap_err();
            assert!(matches!(error, bench_engine::Error::NothingToSample { .. }), "{error}");
        }
        assert!(logits.sample_all([&mut sampler(1.0, 1)], &all, |_, _| ()).is_err());
    });
}
