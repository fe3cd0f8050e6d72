//! Simulated coverage, false alarms and power of comparisons on laws whose truth is known, and exact small
//! cases.

#![allow(clippy::print_stdout)] // the shares are to be read

use super::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const DATA_SEEDS: u64 = 11_000_000;
const BAND: std::ops::RangeInclusive<f64> = 0.93..=0.97;

fn normal(rng: &mut ChaCha8Rng) -> f64 {
    let (u, v): (f64, f64) = (rng.random(), rng.random());
    (-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

/// Law of a latency of 100 ms in the middle: a coefficient of variation `cv`, and offsets that the requests
/// of a batch or of a round have in common.
#[derive(Debug, Clone, Copy)]
struct Law {
    lognormal: bool,
    cv: f64,
    batch: (u32, f64),
    rounds: (u32, f64),
    repeats: u32,
    /// Added to the seeds of the data.
    seeds: u64,
}

impl Law {
    const fn new(lognormal: bool, cv: f64, repeats: u32) -> Self {
        Self { lognormal, cv, batch: (1, 0.0), rounds: (2, 0.0), repeats, seeds: 0 }
    }

    /// Samples of one run; `slower` multiplies all of them.
    fn run(self, rng: &mut ChaCha8Rng, slower: f64, seed: u64) -> Measured {
        let (batch, batch_cv) = self.batch;
        let (rounds, round_cv) = self.rounds;
        let mut collector = Collector::new(self.repeats, batch == 1);
        let offsets: Vec<f64> = (0..rounds).map(|_| round_cv * normal(rng)).collect();
        for repeat in 0..self.repeats {
            let round = repeat * rounds / self.repeats;
            let shared = offsets[round as usize] + batch_cv * normal(rng);
            for _ in 0..batch {
                let own = shared + self.cv * normal(rng);
                let value = if self.lognormal { own.exp() } else { 1.0 + own };
                collector.push(round, repeat, &[100.0 * slower * value]).unwrap();
            }
        }
        Measured::Samples(collector.finish(seed).unwrap().unwrap())
    }

    fn pair(self, seed: u64, slower: f64) -> Comparison {
        let mut rng = ChaCha8Rng::seed_from_u64(DATA_SEEDS + self.seeds + seed);
        let (a, b) = (self.run(&mut rng, 1.0, 2 * seed), self.run(&mut rng, slower, 2 * seed + 1));
        compare(&[a], &[b], 0.5).unwrap()
    }
}

fn covers(interval: Bounded, truth: f64) -> bool {
    interval.low.is_none_or(|low| low <= truth) && interval.high.is_none_or(|high| high >= truth)
}

/// Coverage of difference and ratio, and false alarms of the test, on pairs of equal runs.
fn shares(law: Law, pairs: u64) -> [f64; 3] {
    let mut hits = [0.0; 3];
    for seed in 0..pairs {
        let found = law.pair(seed, 1.0);
        let alarm = found.p.is_some_and(|p| p < ALPHA);
        let of = [covers(found.difference, 0.0), covers(found.ratio.unwrap(), 0.0), alarm];
        hits.iter_mut().zip(of).for_each(|(hits, hit)| *hits += f64::from(u8::from(hit)));
    }
    hits.map(|h| h / pairs as f64)
}

fn check(what: &str, law: Law, pairs: u64) {
    let [difference, ratio, alarms] = shares(law, pairs);
    println!(
        "{what}: covers {:.1} % (ratio {:.1} %), alarms {:.1} % of {pairs}",
        difference * 100.0,
        ratio * 100.0,
        alarms * 100.0
    );
    assert!(BAND.contains(&difference) && BAND.contains(&ratio), "{what}: {difference} {ratio}");
    assert!(alarms <= 0.07, "{what}: {alarms}");
}

#[test]
fn intervals_of_normal_samples_cover() {
    for n in [20, 50, 100, 500] {
        check(&format!("normal, n {n}"), Law::new(false, 0.08, n), 1_000);
    }
}

#[test]
fn intervals_of_skewed_samples_cover() {
    for n in [20, 50, 100, 500] {
        check(&format!("lognormal, n {n}"), Law { seeds: 1 << 32, ..Law::new(true, 0.3, n) }, 1_000);
    }
}

#[test]
fn intervals_of_batches_cover() {
    for (repeats, batch) in [(20, 4), (60, 8)] {
        let law = Law { batch: (batch, 0.05), ..Law::new(true, 0.05, repeats) };
        check(&format!("{repeats} batches of {batch} with an offset each"), law, 500);
    }
}

#[test]
fn intervals_of_rounds_cover_where_there_are_enough() {
    for (rounds, repeats) in [(6, 60), (10, 100)] {
        let law = Law { rounds: (rounds, 0.04), ..Law::new(true, 0.06, repeats) };
        check(&format!("{rounds} rounds with an offset each"), law, 1_000);
    }
}

/// Two rounds cannot measure how rounds differ. Where it is much they are seen to; where it is as little as
/// the rounds' own error it goes unseen, which is what the notes of a comparison say.
#[test]
fn two_rounds_see_large_offsets_only() {
    for (offset, least, most) in [(0.0, 0.93, 0.07), (0.01, 0.80, 0.25), (0.1, 0.93, 0.07)] {
        let law = Law { rounds: (2, offset), ..Law::new(true, 0.06, 100) };
        let [covers, _, alarms] = shares(law, 1_000);
        println!("2 rounds, offset {offset}: covers {:.1} %, alarms {:.1} %", covers * 100.0, alarms * 100.0);
        assert!(covers >= least && alarms <= most, "{offset}: {covers} {alarms}");
    }
}

/// What comparing two runs says of each cell and metric, after correction: time to first token, time per token, and
/// three that follow from these as they do by default: gaps, decode rate, end-to-end time.
fn changes(law: Law, cells: u64, seed: u64, slower_cell: Option<u64>) -> Vec<Change> {
    let mut found = Vec::new();
    for cell in 0..cells {
        let mut rng = ChaCha8Rng::seed_from_u64(DATA_SEEDS + law.seeds + seed * cells + cell);
        let slower = if slower_cell == Some(cell) { 1.05 } else { 1.0 };
        let [a, b] = [1.0, slower].map(|slower| {
            let (first, each) = (law.run(&mut rng, slower, seed), law.run(&mut rng, 0.1, seed));
            let derived = |of: &mut dyn FnMut(f64, f64) -> f64| derived(&first, &each, of);
            let gaps = derived(&mut |_, each| each * (1.0 + 0.01 * normal(&mut rng)));
            let rate = derived(&mut |_, each| 1_000.0 / each);
            let whole = derived(&mut |first, each| first + 31.0 * each);
            [first, each, gaps, rate, whole]
        });
        found.extend(a.into_iter().zip(b).map(|(a, b)| compare(&[a], &[b], 0.5).unwrap()));
    }
    let corrected = holm(&found.iter().map(|c| c.p.unwrap()).collect::<Vec<_>>());
    found.iter().zip(corrected).map(|(c, p)| c.change(Some(p))).collect()
}

/// A metric of each repeat that follows from two others.
fn derived(first: &Measured, each: &Measured, of: &mut dyn FnMut(f64, f64) -> f64) -> Measured {
    let (Measured::Samples(first), Measured::Samples(each)) = (first, each) else { panic!() };
    let mut collector = Collector::new(first.repeats.len() as u32, true);
    for (i, (first, each)) in first.repeats.iter().zip(&each.repeats).enumerate() {
        collector.push(first.round, i as u32, &[of(first.value, each.value)]).unwrap();
    }
    Measured::Samples(collector.finish(0).unwrap().unwrap())
}

/// Runs in which nothing is said to have changed, of pairs of equal runs. Metrics that follow from each other make
/// alarms rarer than 5 %; six tests of independent samples gave 95.8 and 95.9 % of 4,000 on other seeds.
fn quiet(what: &str, law: Law, runs: u64) {
    let cells = 2;
    let quiet = (0..runs).filter(|s| changes(law, cells, *s, None).iter().all(|c| *c == Change::None));
    let share = quiet.count() as f64 / runs as f64;
    println!(
        "A/A, {what}, {cells} cells of 5 metrics: no change anywhere in {:.1} % of {runs}",
        share * 100.0
    );
    assert!(share >= 0.95, "{what}: {share}");
}

#[test]
fn equal_runs_of_20_show_no_change_anywhere() {
    quiet("normal, n 20", Law::new(false, 0.08, 20), 400);
    quiet("lognormal, n 20", Law::new(true, 0.3, 20), 400);
}

#[test]
fn equal_normal_runs_of_100_show_no_change_anywhere() {
    quiet("normal, n 100", Law::new(false, 0.08, 100), 500);
}

#[test]
fn equal_skewed_runs_of_100_show_no_change_anywhere() {
    quiet("lognormal, n 100", Law { seeds: 1 << 32, ..Law::new(true, 0.3, 100) }, 500);
}

#[test]
fn equal_runs_of_batches_show_no_change_anywhere() {
    quiet("20 batches of 4", Law { batch: (4, 0.05), ..Law::new(true, 0.05, 20) }, 400);
}

#[test]
fn equal_runs_of_rounds_with_offsets_show_no_change_anywhere() {
    quiet("100 repeats in 6 rounds", Law { rounds: (6, 0.05), ..Law::new(true, 0.08, 100) }, 500);
}

#[test]
fn five_percent_slower_is_found() {
    for (what, law, least) in [
        ("normal, 5 %", Law::new(false, 0.05, 100), 0.95),
        ("lognormal, 6 %", Law::new(true, 0.06, 100), 0.95),
        // On 1,500 other seeds: 99.1 % at a spread of 5 %, 98.5 % at 6, 94.7 at 7, 88.5 at 8 and 65.9 at 10; as the
        // only test 97.6 % at 7, 94.1 at 8 and 81.3 at 10. Beyond 6 % a family of ten wants more than 100 repeats.
        ("lognormal, 7 %", Law::new(true, 0.07, 100), 0.90),
        // Even the best test of two means finds 94 % of these without any correction.
        ("lognormal, 10 %", Law::new(true, 0.10, 100), 0.60),
    ] {
        let (cells, runs) = (2, 200);
        let of = |s| changes(law, cells, s, Some(1));
        let found = (0..runs).filter(|s| of(*s)[5] == Change::Higher).count() as f64 / runs as f64;
        println!(
            "5 % slower, spread {what}, n 100, 1 of {cells} cells of 5 metrics: found in {:.1} %",
            found * 100.0
        );
        assert!(found >= least, "{what}: {found}");
    }
}

#[test]
fn a_run_against_itself_never_changes() {
    for seed in 0..50 {
        let law = Law { batch: (1 + (seed as u32) % 3, 0.05), ..Law::new(true, 0.3, 15) };
        let run = [law.run(&mut ChaCha8Rng::seed_from_u64(seed), 1.0, seed)];
        for p in [0.5, 0.9] {
            let found = compare(&run, &run, p).unwrap();
            assert_eq!((found.difference.value, found.ratio.unwrap().value), (0.0, 0.0));
            assert!(found.p.is_none_or(|p| p > 0.99), "{found:?}");
        }
    }
}

#[test]
fn several_runs_are_the_units() {
    let law = Law::new(true, 0.05, 40);
    let (runs, mut alarms, mut hits) = (500_u64, 0, 0);
    for seed in 0..runs {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        // Each run is off by 3 % of its own, which samples of one run cannot show.
        let mut side = |slower: f64, n: u32| {
            let mut of = |_| {
                let off = (0.03 * normal(&mut rng)).exp();
                law.run(&mut rng, slower * off, seed)
            };
            (0..n).map(&mut of).collect::<Vec<_>>()
        };
        let equal = compare(&side(1.0, 3), &side(1.0, 4), 0.5).unwrap();
        assert_eq!((equal.unit, equal.a.units, equal.b.units), (Unit::Run, 3, 4));
        alarms += u32::from(equal.p.unwrap() < ALPHA);
        hits += u32::from(covers(equal.difference, 0.0));
        let one = compare(&side(1.0, 4), &side(1.0, 1), 0.5).unwrap();
        alarms += u32::from(one.p.unwrap() < ALPHA);
    }
    let (alarms, hits) = (f64::from(alarms) / (2.0 * runs as f64), f64::from(hits) / runs as f64);
    println!("runs as units: covers {:.1} %, alarms {:.1} %", hits * 100.0, alarms * 100.0);
    assert!(alarms < 0.07 && BAND.contains(&hits));
}

fn samples(values: &[f64]) -> [Measured; 1] {
    let mut collector = Collector::new(values.len() as u32, true);
    for (i, value) in values.iter().enumerate() {
        collector.push(0, i as u32, &[*value]).unwrap();
    }
    [Measured::Samples(collector.finish(1).unwrap().unwrap())]
}

fn finite(c: &Comparison) -> bool {
    let bounded = |b: Bounded| [Some(b.value), b.low, b.high].into_iter().flatten().all(f64::is_finite);
    let all = [c.a.figure, c.b.figure, c.difference].into_iter().chain(c.ratio).all(bounded);
    all && [c.p, c.superiority, c.shift].into_iter().flatten().all(f64::is_finite)
}

#[test]
fn odd_samples_have_plain_answers() {
    let constant = [7.0; 20];
    for (what, a, b, change) in [
        ("single", &[3.0][..], &[4.0][..], Change::Unknown),
        ("three", &[3.0, 3.1, 2.9], &[9.0, 9.1, 9.2], Change::Unknown),
        ("constants", &constant, &constant, Change::None),
        ("other constants", &constant, &[8.0; 20], Change::Higher),
        ("zeros", &[0.0; 20], &[0.0; 20], Change::None),
        ("from zero", &[0.0; 20], &constant, Change::Higher),
        ("below zero", &[-1.0; 20], &[-3.0; 20], Change::Lower),
        ("one against many", &[3.0], &constant, Change::Unknown),
    ] {
        let found = compare(&samples(a), &samples(b), 0.5).unwrap();
        assert!(finite(&found), "{what}: {found:?}");
        assert_eq!(found.change(found.p), change, "{what}: {found:?}");
        let has_ratio = a.iter().chain(b).all(|v| *v > 0.0);
        assert_eq!(found.ratio.is_some(), has_ratio, "{what}");
    }
    assert!(compare(&[], &samples(&constant), 0.5).is_none());
    assert!(compare(&samples(&constant), &samples(&constant), 0.99).is_none(), "20 samples have no p99");
}

#[test]
fn figures_of_whole_runs_need_rounds_or_runs() {
    let whole = |value, rounds: &[f64]| [Measured::Whole { value, rounds: rounds.to_vec() }];
    for (a, b, p) in [
        (whole(100.0, &[]), whole(90.0, &[]), None),
        (whole(100.0, &[100.0, 100.0]), whole(90.0, &[90.0, 90.0]), None),
        (whole(100.0, &[100.0; 4]), whole(90.0, &[90.0; 4]), Some(2.0 / 70.0)),
        (whole(100.0, &[100.0; 4]), whole(100.0, &[100.0; 4]), Some(1.0)),
    ] {
        let found = compare(&a, &b, 0.5).unwrap();
        assert!(finite(&found), "{found:?}");
        match (found.p, p) {
            (None, None) => {}
            (Some(found), Some(p)) => assert!((found - p).abs() < 1e-12, "{found} {p}"),
            other => panic!("{other:?}"),
        }
    }
    // Student's t by hand: means 100 and 104, common variance 2, standard error sqrt(2), t = 2.828 with 2
    // degrees.
    let found = compare(&whole(100.0, &[99.0, 101.0]), &whole(104.0, &[103.0, 105.0]), 0.5).unwrap();
    assert!((found.p.unwrap() - 0.105_572_8).abs() < 1e-6, "{found:?}");
    let moments = |mean| [Measured::Moments { mean, std_dev: Some(1.0), n: 10 }];
    let found = compare(&moments(5.0), &moments(6.0), 0.5).unwrap();
    // t = 1 / sqrt(0.2) = 2.236 with 18 degrees of freedom.
    assert!((found.p.unwrap() - 0.038_25).abs() < 1e-4 && finite(&found), "{found:?}");
    let single = [Measured::Moments { mean: 5.0, std_dev: None, n: 1 }];
    let found = compare(&single, &single, 0.5).unwrap();
    assert!(found.p.is_none() && finite(&found), "{found:?}");
    assert!(compare(&moments(5.0), &samples(&[5.0; 9]), 0.5).is_none(), "of different kinds");
}

/// All choices of `m` places.
fn brute(a: &[f64], b: &[f64]) -> f64 {
    let all: Vec<f64> = a.iter().chain(b).copied().collect();
    let u = |chosen: u32| {
        let is_b = |i: usize| chosen >> i & 1 == 1;
        let mut twice = 0_i64;
        for i in (0..all.len()).filter(|i| is_b(*i)) {
            for j in (0..all.len()).filter(|j| !is_b(*j)) {
                twice += 1 + all[i].total_cmp(&all[j]) as i64;
            }
        }
        (twice - (a.len() * b.len()) as i64).abs()
    };
    let observed = u(((1 << b.len()) - 1) << a.len());
    let choices = (0_u32..1 << all.len()).filter(|c| c.count_ones() as usize == b.len());
    let (far, total) = choices.fold((0, 0), |(far, n), c| (far + u32::from(u(c) >= observed), n + 1));
    f64::from(far) / f64::from(total)
}

proptest::proptest! {
    #[test]
    fn exact_tests_equal_all_rearrangements(
        a in proptest::collection::vec(0_u8..12, 1..7), b in proptest::collection::vec(0_u8..12, 1..7)
    ) {
        let [a, b] = [a, b].map(|v| v.into_iter().map(f64::from).collect::<Vec<_>>());
        let found = mann_whitney(&a, &b).unwrap();
        proptest::prop_assert!(found.exact && (found.p - brute(&a, &b)).abs() < 1e-9, "{found:?}");
        let mirror = mann_whitney(&b, &a).unwrap();
        proptest::prop_assert!((found.p - mirror.p).abs() < 1e-12);
        proptest::prop_assert!((found.superiority + mirror.superiority - 1.0).abs() < 1e-12);
        let mut all: Vec<f64> = b.iter().flat_map(|y| a.iter().map(move |x| y - x)).collect();
        all.sort_unstable_by(f64::total_cmp);
        let median = f64::midpoint(all[(all.len() - 1) / 2], all[all.len() / 2]);
        proptest::prop_assert!((shift(&a, &b).unwrap() - median).abs() < 1e-9);
    }
}

#[test]
fn ranks_by_hand() {
    // 1 2 4 against 3 5 6 7: U = 11 of 12; P(U <= 1) = 2 / 35, two-sided 4 / 35.
    let found = mann_whitney(&[1.0, 2.0, 4.0], &[3.0, 5.0, 6.0, 7.0]).unwrap();
    assert!((found.p - 4.0 / 35.0).abs() < 1e-12 && (found.superiority - 11.0 / 12.0).abs() < 1e-12);
    assert!((smallest_p(3, 4) - 2.0 / 35.0).abs() < 1e-12 && smallest_p(0, 4) == 1.0);
    let step = |n: u32, by: f64| (0..n).map(|i| f64::from(i) + by).collect::<Vec<_>>();
    // The exact and the normal law meet: 30 against 30 is counted, 31 against 31 is not.
    let [exact, normal] = [30, 31].map(|n| mann_whitney(&step(n, 0.0), &step(n, 6.5)).unwrap());
    assert!(exact.exact && !normal.exact && (exact.p - normal.p).abs() < 0.005, "{exact:?} {normal:?}");
    // Holm's: 0.01 * 4, 0.013 * 3 raised to it, 0.02 * 2 raised to it, 0.2 * 1.
    let corrected = holm(&[0.02, 0.01, 0.2, 0.013]);
    for (found, expected) in corrected.iter().zip([0.04, 0.04, 0.2, 0.04]) {
        assert!((found - expected).abs() < 1e-12, "{corrected:?}");
    }
    assert!(holm(&[]).is_empty());
    assert_eq!(holm(&[0.9, 0.8]), [1.0, 1.0]);
}

#[test]
fn long_runs_are_thinned_for_the_test_alone() {
    let n = TESTED_REPEATS * 2 + 10;
    let mut collector = Collector::new(n, true);
    for repeat in 0..n {
        collector.push(repeat / (n / 2 + 1), repeat, &[f64::from(repeat % 1_000)]).unwrap();
    }
    let [long] = [collector.finish(1).unwrap().unwrap()];
    assert!(long.repeats.len() as u32 <= TESTED_REPEATS && long.pooled.pooled().n() == u64::from(n));
    assert!(Collector::new(5, true).finish(0).unwrap().is_none());
}
