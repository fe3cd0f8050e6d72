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

/// What top-k and top-p leave of these probabilities, by their definitions: sorted, cut, summed.
fn kept(probabilities: &[f64], top_k: Option<usize>, top_p: f64) -> Vec<f64> {
    let mut order: Vec<usize> = (0..probabilities.len()).collect();
    order.sort_by(|a, b| probabilities[*b].total_cmp(&probabilities[*a]).then(a.cmp(b)));
    order.truncate(top_k.unwrap_or(usize::MAX));
    let all: f64 = order.iter().map(|id| probabilities[*id]).sum();
    let mut sum = 0.0;
    let enough = order.iter().position(|id| {
        sum += probabilities[*id];
        sum >= all * top_p
    });
    order.truncate(enough.map_or(usize::MAX, |at| at + 1));
    let all: f64 = order.iter().map(|id| probabilities[*id]).sum();
    let mut left = vec![0.0; probabilities.len()];
    for id in order {
        left[id] = probabilities[id] / all;
    }
    left
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
fn top_k_and_top_p_leave_the_most_likely_and_draw_them_by_their_probabilities() {
    let stub = stub(1, GIB);
    let model = model(&stub);
    let row = rows(&model, &PROMPTS[..1]).remove(0);
    let suppressed = &[4, 700][..];
    for (seed, temperature, top_k, top_p) in
        [(31, 1.0, Some(12), 1.0), (32, 1.5, None, 0.6), (33, 1.5, Some(300), 0.5), (34, 1.0, Some(1), 0.9)]
    {
        let params = SamplingParams { temperature, top_k, top_p, seed };
        let mut probabilities = softmax(&row, f64::from(temperature), suppressed);
        probabilities = kept(&probabilities, top_k, f64::from(top_p));
        let (ids, counts) = drawn(&model, &mut Sampler::new(params).unwrap(), suppressed, 400);
        let outside = counts.iter().zip(&probabilities).any(|(count, p)| *count > 0 && *p == 0.0);
        assert!(!outside, "{params:?}");
        let left = probabilities.iter().filter(|p| **p > 0.0).count();
        if left > 1 {
            let found = deviation(&counts, &probabilities);
            println!("{params:?}: {left} left, {found:.2} standard deviations from their probabilities");
            assert!(found < 4.0, "{params:?}: {found}");
        }
        let mut host = Sampler::new(params).unwrap();
        let expected: Vec<u32> = ids.iter().map(|_| host.sample(&row, suppressed).unwrap()).collect();
        assert_eq!(ids, expected, "{params:?}");
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

/// Samplers of three rows, with top-k and top-p.
fn samplers(params: [(f32, Option<usize>, f32); 3]) -> [Sampler; 3] {
    let mut seed = 20;
    params.map(|(temperature, top_k, top_p)| {
        seed += 1;
        Sampler::new(SamplingParams { temperature, top_k, top_p, seed }).unwrap()
    })
}

/// What was called between two reports: looks at all logits, digits of cuts, draws; copies to the host.
fn calls(before: &Report, after: &Report) -> (u64, u64, u64, u64) {
    let count =
        |all: &std::collections::BTreeMap<String, u64>, name: &str| all.get(name).copied().unwrap_or(0);
    let kernel = |name| count(&after.kernels, name) - count(&before.kernels, name);
    let copies = "cuMemcpyDtoHAsync_v2";
    let copied = count(&after.calls, copies) - count(&before.calls, copies);
    (kernel("argmax"), kernel("narrow"), kernel("sample"), copied)
}

#[test]
fn all_rows_of_a_step_are_chosen_by_few_launches_and_one_copy() {
    let stub = stub(2, GIB);
    let model = model(&stub);
    let rows = rows(&model, &PROMPTS);
    let suppressed = [5, 9];
    for (params, launches) in [
        ([(0.0, None, 1.0); 3], (1, 0, 0, 1)),
        ([(0.7, None, 1.0); 3], (1, 0, 1, 1)),
        // Of several temperatures, and greedy among them.
        ([(1.3, None, 1.0), (0.0, None, 1.0), (0.4, None, 1.0)], (1, 0, 1, 1)),
        // A launch for each digit of what is cut; all rows in each.
        ([(0.8, Some(4), 1.0); 3], (1, 3, 1, 1)),
        ([(0.8, Some(4), 1.0), (0.0, None, 0.3), (0.9, None, 0.8)], (1, 3, 1, 1)),
        ([(0.8, Some(40), 0.5), (0.9, None, 1.0), (0.7, None, 0.8)], (1, 6, 1, 1)),
        // As many as there are is no cut.
        ([(0.8, Some(1 << 40), 1.0); 3], (1, 0, 1, 1)),
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
        for (temperature, top_k, top_p) in [(0.0, None, 1.0), (1.0, None, 1.0), (1.0, Some(2), 0.5)] {
            let params = SamplingParams { temperature, top_k, top_p, seed: 1 };
            let error = logits.sample(0, &mut Sampler::new(params).unwrap(), &all).unwrap_err();
            assert!(matches!(error, bench_engine::Error::NothingToSample { .. }), "{error}");
        }
        assert!(logits.sample_all([&mut sampler(1.0, 1)], &all, |_, _| ()).is_err());
    });
}
