//! Properties of drawn schedules over many seeds, sizes and rates; every draw is seeded, so none is by luck.

use super::*;
use bench_core::load::Load;

const RATES: [f64; 4] = [0.3, 7.0, 250.0, 5_000.0];

fn draw(arrival: &Arrival, requests: usize, seed: u64) -> Schedule {
    Schedule::draw(arrival, requests, seed).unwrap()
}

fn distances_s(schedule: &Schedule) -> Vec<f64> {
    schedule.intended_ns.windows(2).map(|pair| (pair[1] - pair[0]) as f64 / 1e9).collect()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn coefficient_of_variation(values: &[f64]) -> f64 {
    let mean = mean(values);
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (squares / (values.len() - 1) as f64).sqrt() / mean
}

fn every_arrival(rate: f64) -> Vec<Arrival> {
    let mut all = vec![Arrival::Constant { rate }, Arrival::Poisson { rate }, Arrival::Burst];
    all.extend([0.2, 1.0, 20.0].map(|burstiness| Arrival::Gamma { rate, burstiness }));
    all.extend([Growth::Linear, Growth::Exponential].map(|g| Arrival::Ramp {
        from: rate,
        to: rate * 8.0,
        growth: g,
    }));
    all
}

fn message(result: Result<impl std::fmt::Debug>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn every_schedule_is_sorted_begins_at_t0_and_comes_back_from_its_seed() {
    for rate in RATES {
        for arrival in every_arrival(rate) {
            for requests in [1, 2, 3, 50, 1_000] {
                for seed in 0..4 {
                    let schedule = draw(&arrival, requests, seed);
                    assert_eq!(schedule.intended_ns.len(), requests, "{arrival:?}");
                    assert_eq!(schedule.intended_ns[0], 0, "{arrival:?}");
                    assert!(schedule.intended_ns.is_sorted(), "{arrival:?}");
                    assert_eq!(schedule, draw(&arrival, requests, seed), "{arrival:?}");
                }
            }
        }
    }
}

#[test]
fn the_realised_rate_is_the_requested_one_for_every_seed() {
    for rate in RATES {
        for burstiness in [0.05, 0.5, 1.0, 4.0] {
            for seed in 0..20 {
                for arrival in [Arrival::Poisson { rate }, Arrival::Gamma { rate, burstiness }] {
                    let schedule = draw(&arrival, 200, seed);
                    let wanted_ns = 199.0 / rate * 1e9;
                    assert!((schedule.span_ns() as f64 - wanted_ns).abs() <= 1.0, "{arrival:?}");
                    let error = schedule.mean_rate_req_s().unwrap() / rate - 1.0;
                    assert!(error.abs() < 1e-6, "{arrival:?} {error}");
                }
            }
        }
    }
}

#[test]
fn other_seeds_and_other_processes_give_other_schedules() {
    let rate = 10.0;
    let first = draw(&Arrival::Poisson { rate }, 100, 1);
    assert_ne!(first.hash(), draw(&Arrival::Poisson { rate }, 100, 2).hash());
    assert_ne!(first.hash(), draw(&Arrival::Gamma { rate, burstiness: 2.0 }, 100, 1).hash());
    assert_ne!(first.hash(), draw(&Arrival::Poisson { rate }, 101, 1).hash());
}

/// A changed generator or distribution would change every stored study's schedule without a word.
#[test]
fn the_drawn_instants_are_pinned() {
    let schedule = draw(&Arrival::Poisson { rate: 100.0 }, 6, 42);
    assert_eq!(schedule.intended_ns, PINNED);
    assert_eq!(schedule.hash(), "cb688e376cb9aa19");
}

const PINNED: [u64; 6] = [0, 2_093_408, 13_270_535, 18_039_827, 43_940_152, 50_000_000];

#[test]
fn constant_distances_are_equal_to_the_nanosecond() {
    let schedule = draw(&Arrival::Constant { rate: 8.0 }, 5, 0);
    assert_eq!(schedule.intended_ns, [0, 125_000_000, 250_000_000, 375_000_000, 500_000_000]);
    let thirds = draw(&Arrival::Constant { rate: 3.0 }, 100_001, 0);
    assert!(distances_s(&thirds).iter().all(|d| (d - 1.0 / 3.0).abs() <= 1.5e-9));
    assert_eq!(draw(&Arrival::Constant { rate: 8.0 }, 5, 1), schedule, "nothing is drawn");
}

#[test]
fn all_at_once_is_all_at_zero() {
    let schedule = draw(&Arrival::Burst, 3, 9);
    assert_eq!(schedule.intended_ns, [0, 0, 0]);
    assert_eq!(schedule.mean_rate_req_s(), None);
}

/// For an exponential distribution the coefficient of variation is 1, with a standard error of about 1/√n for
/// n distances: 0.01 here, so 0.06 is far outside of chance.
#[test]
fn the_spread_of_distances_follows_burstiness() {
    let rate = 50.0;
    let spread =
        |arrival: Arrival, seed| coefficient_of_variation(&distances_s(&draw(&arrival, 10_000, seed)));
    for seed in 0..5 {
        let poisson = spread(Arrival::Poisson { rate }, seed);
        assert!((poisson - 1.0).abs() < 0.06, "{poisson}");
        let mut last = f64::INFINITY;
        for burstiness in [0.1_f64, 0.5, 1.0, 2.0, 10.0, 100.0] {
            let measured = spread(Arrival::Gamma { rate, burstiness }, seed);
            let theory = burstiness.sqrt().recip();
            assert!((measured / theory - 1.0).abs() < 0.15, "{burstiness}: {measured} for {theory}");
            assert!(measured < last, "smoother with {burstiness}");
            last = measured;
        }
    }
}

/// The share of distances above t of an exponential is e^(−rate t): Poisson and gamma with shape 1 agree
/// with it at several t, with a standard error of at most 0.005 at 10,000 distances.
#[test]
fn gamma_of_shape_one_has_exponential_distances() {
    let rate = 20.0;
    for arrival in [Arrival::Poisson { rate }, Arrival::Gamma { rate, burstiness: 1.0 }] {
        let distances = distances_s(&draw(&arrival, 10_001, 3));
        for times_mean in [0.1_f64, 0.5, 1.0, 2.0, 3.0] {
            let above = distances.iter().filter(|d| **d > times_mean / rate).count() as f64 / 10_000.0;
            assert!((above - (-times_mean).exp()).abs() < 0.02, "{arrival:?} {times_mean}: {above}");
        }
    }
}

#[test]
fn a_ramp_has_the_rate_of_its_moment() {
    let (from, to, requests) = (10.0, 160.0, 20_001);
    for growth in [Growth::Linear, Growth::Exponential] {
        let distances = distances_s(&draw(&Arrival::Ramp { from, to, growth }, requests, 5));
        for (tenth, part) in distances.chunks(2_000).enumerate() {
            let progress = (tenth as f64 + 0.5) / 10.0;
            let wanted = match growth {
                Growth::Linear => from + (to - from) * progress,
                Growth::Exponential => from * 16.0_f64.powf(progress),
            };
            let measured = mean(part).recip();
            assert!((measured / wanted - 1.0).abs() < 0.12, "{growth:?} {tenth}: {measured} for {wanted}");
        }
    }
}

#[test]
fn a_falling_ramp_mirrors_a_rising_one() {
    for growth in [Growth::Linear, Growth::Exponential] {
        let up = draw(&Arrival::Ramp { from: 5.0, to: 50.0, growth }, 1_000, 1);
        let down = draw(&Arrival::Ramp { from: 50.0, to: 5.0, growth }, 1_000, 1);
        assert!(up.span_ns().abs_diff(down.span_ns()) <= 1_000, "{growth:?}");
        assert!(down.intended_ns[500] * 2 < up.intended_ns[500], "{growth:?}");
    }
}

/// The plan turns a duration into a number of requests by `Load::requests_in`.
#[test]
fn as_many_requests_as_a_duration_holds_last_as_long() {
    for rate in RATES {
        for arrival in every_arrival(rate).into_iter().filter(|arrival| *arrival != Arrival::Burst) {
            let load = Load::Open { arrival: arrival.clone(), max_concurrency: None };
            let seconds = 500.0 / rate;
            let requests = load.requests_in(seconds).unwrap() as usize;
            let schedule = draw(&arrival, requests, 1);
            let mean_distance_s = seconds / requests as f64;
            let length_s = schedule.span_ns() as f64 / 1e9 + mean_distance_s;
            // Rounding to whole requests, and a ramp's sum against its integral.
            assert!((length_s / seconds - 1.0).abs() < 0.003, "{arrival:?}: {length_s} for {seconds}");
        }
    }
}

#[test]
fn impossible_values_are_refused_with_what_was_expected() {
    let draw = |arrival: &Arrival, requests| message(Schedule::draw(arrival, requests, 0));
    for rate in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert_eq!(
            draw(&Arrival::Poisson { rate }, 2),
            format!("rate is {rate}: expected a finite number of requests/s above 0")
        );
    }
    assert!(draw(&Arrival::Gamma { rate: 1.0, burstiness: 0.0 }, 2).starts_with("burstiness is 0: expected"));
    let vanishing = Arrival::Gamma { rate: 1.0, burstiness: 1e-300 };
    assert!(draw(&vanishing, 100).starts_with("burstiness is 0.000"), "{}", draw(&vanishing, 100));
    let ramp = Arrival::Ramp { from: 1.0, to: 0.0, growth: Growth::Exponential };
    assert!(draw(&ramp, 2).starts_with("the ramp's last rate is 0"));
    assert!(draw(&Arrival::Burst, 0).contains("expected 1 to 100000000 requests"));
    assert!(draw(&Arrival::Constant { rate: 1e-9 }, 100).contains("at most 1e9 s"));
    let replay = Arrival::Replay { hash: String::new() };
    assert!(draw(&replay, 2).contains("come from its trace"));
}
