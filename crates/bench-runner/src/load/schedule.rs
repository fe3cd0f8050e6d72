//! The instants at which requests are due, drawn beforehand from an arrival process and a seed.
//!
//! A schedule is a list of nanoseconds after t0. It waits for nothing and sends nothing: who runs it keeps
//! the instant a request was due beside the instant it really left.

use crate::load::Replay;
use crate::{Error, Result};
use bench_core::load::{Arrival, Growth};
use bench_core::plan::{derive_seed, short_hash};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Exp1, Gamma};

/// When each request is due, in nanoseconds after t0, ascending.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    pub intended_ns: Vec<u64>,
}

/// 800 MB of instants.
const MOST_REQUESTS: usize = 100_000_000;
/// About 31 years; an `f64` of nanoseconds is exact to 128 ns there.
const LONGEST_S: f64 = 1e9;
const POSITIVE_RATE: &str = "a finite number of requests/s above 0";

impl Schedule {
    /// Draws the instants of `requests` requests. The same arguments give the same schedule.
    ///
    /// The first request is due at t0, the last at the sum of the expected distances: `(requests − 1)/rate`
    /// for a constant mean rate. The random distances are scaled to that sum, so that the realised rate is
    /// the requested one for every seed. Unscaled, the rate of n Poisson arrivals varies by `1/√n` from seed
    /// to seed (10 % at 100 requests): more than most differences between servers, and enough to make a
    /// search for the highest rate find another rate each time. What is given up is small: n arrivals of a
    /// Poisson process whose first and last instant are given lie between them as uniform draws do, which
    /// is what is left here, and the distances' squared coefficient of variation falls by a factor of
    /// `(n − 2)/n`. vLLM scales too; its first request comes after a distance, and its last at `n/rate`.
    ///
    /// A ramp is scaled as a whole: the rates keep their ratios, and its length is what its rates say.
    pub fn draw(arrival: &Arrival, requests: usize, seed: u64) -> Result<Self> {
        check(arrival)?;
        check_count(requests)?;
        if matches!(arrival, Arrival::Burst) {
            return Ok(Self { intended_ns: vec![0; requests] });
        }
        let distances = requests - 1;
        let expected = |i| expected_distance_s(arrival, i, distances);
        let end_s: f64 = (0..distances).map(expected).sum();
        if end_s > LONGEST_S {
            return Err(Error::LoadValue {
                name: "the length of the schedule",
                value: format!("{end_s:.0} s"),
                expected: "at most 1e9 s: a higher rate, or fewer requests",
            });
        }
        let mut rng = ChaCha8Rng::seed_from_u64(derive_seed(seed, "load.schedule"));
        let factor = Factor::of(arrival)?;
        let mut due_s = Vec::with_capacity(requests);
        due_s.push(0.0);
        let mut at_s = 0.0;
        for i in 0..distances {
            at_s += expected(i) * factor.draw(&mut rng);
            due_s.push(at_s);
        }
        let scale = if at_s > 0.0 { end_s / at_s } else { 1.0 };
        if distances > 0 && !(at_s > 0.0 && scale.is_finite()) {
            return Err(burstiness_error(arrival));
        }
        let intended_ns = due_s.into_iter().map(|at_s| (at_s * scale * 1e9).round() as u64).collect();
        Ok(Self { intended_ns })
    }

    /// The instants of a recorded trace.
    pub fn of_replay(replay: &Replay) -> Self {
        Self { intended_ns: replay.requests.iter().map(|request| request.at_ns).collect() }
    }

    /// Identifies the instants: two schedules with one hash are due at the same nanoseconds.
    pub fn hash(&self) -> String {
        let bytes: Vec<u8> = self.intended_ns.iter().flat_map(|at| at.to_le_bytes()).collect();
        short_hash(&bytes)
    }

    /// From the first to the last request, in nanoseconds.
    pub fn span_ns(&self) -> u64 {
        let ends = self.intended_ns.first().zip(self.intended_ns.last());
        ends.map_or(0, |(first, last)| last.saturating_sub(*first))
    }

    /// Realised mean rate in requests/s, one over the mean distance; `None` where all are due at once.
    pub fn mean_rate_req_s(&self) -> Option<f64> {
        let span_s = self.span_ns() as f64 / 1e9;
        (span_s > 0.0).then(|| (self.intended_ns.len() - 1) as f64 / span_s)
    }
}

/// What every kind of arrival asks of its values.
fn check(arrival: &Arrival) -> Result<()> {
    let above_zero = |name, value: f64, expected| {
        if value.is_finite() && value > 0.0 {
            return Ok(());
        }
        Err(Error::LoadValue { name, value: value.to_string(), expected })
    };
    match *arrival {
        Arrival::Constant { rate } | Arrival::Poisson { rate } => above_zero("rate", rate, POSITIVE_RATE),
        Arrival::Gamma { rate, burstiness } => {
            above_zero("rate", rate, POSITIVE_RATE)?;
            above_zero("burstiness", burstiness, "a finite number above 0; 1 is Poisson")
        }
        Arrival::Ramp { from, to, .. } => {
            above_zero("the ramp's first rate", from, POSITIVE_RATE)?;
            above_zero("the ramp's last rate", to, POSITIVE_RATE)
        }
        Arrival::Burst => Ok(()),
        Arrival::Replay { .. } => Err(Error::LoadValue {
            name: "arrival",
            value: "replay".to_owned(),
            expected: "a process to draw from; a replay's instants come from its trace",
        }),
    }
}

/// One over the rate at distance `i` of `distances`, in seconds.
fn expected_distance_s(arrival: &Arrival, i: usize, distances: usize) -> f64 {
    let progress = i as f64 / distances.saturating_sub(1).max(1) as f64;
    match *arrival {
        Arrival::Constant { rate } | Arrival::Poisson { rate } | Arrival::Gamma { rate, .. } => rate.recip(),
        Arrival::Ramp { from, to, growth: Growth::Linear } => (from + (to - from) * progress).recip(),
        Arrival::Ramp { from, to, growth: Growth::Exponential } => {
            (from * (to / from).powf(progress)).recip()
        }
        Arrival::Burst | Arrival::Replay { .. } => 0.0,
    }
}

/// What a distance is drawn as: a factor of mean 1 on the expected distance.
enum Factor {
    One,
    Exponential,
    Gamma(Gamma<f64>),
}

impl Factor {
    fn of(arrival: &Arrival) -> Result<Self> {
        Ok(match *arrival {
            Arrival::Poisson { .. } | Arrival::Ramp { .. } => Self::Exponential,
            Arrival::Gamma { burstiness, .. } => {
                let gamma = Gamma::new(burstiness, burstiness.recip());
                Self::Gamma(gamma.map_err(|_| burstiness_error(arrival))?)
            }
            Arrival::Constant { .. } | Arrival::Burst | Arrival::Replay { .. } => Self::One,
        })
    }

    fn draw(&self, rng: &mut ChaCha8Rng) -> f64 {
        match self {
            Self::One => 1.0,
            Self::Exponential => Exp1.sample(rng),
            Self::Gamma(gamma) => gamma.sample(rng),
        }
    }
}

fn check_count(requests: usize) -> Result<()> {
    if (1..=MOST_REQUESTS).contains(&requests) {
        return Ok(());
    }
    let expected = "1 to 100000000 requests";
    Err(Error::LoadValue { name: "the number of requests", value: requests.to_string(), expected })
}

/// A shape so small that every draw is 0 in an `f64`, or so extreme that the distribution refuses it.
fn burstiness_error(arrival: &Arrival) -> Error {
    let value = match arrival {
        Arrival::Gamma { burstiness, .. } => burstiness.to_string(),
        _ => "not given".to_owned(),
    };
    Error::LoadValue {
        name: "burstiness",
        value,
        expected: "a value that leaves distances above 0 between requests, such as 0.1 to 100",
    }
}

#[cfg(test)]
#[path = "schedule_tests.rs"]
mod tests;
