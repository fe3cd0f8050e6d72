//! How the requests of a cell are sent: together, with a fixed number in flight, or by a schedule.
//!
//! Only the words; `bench-runner` makes schedules from them and follows them.

use serde::{Deserialize, Serialize};

/// The shape of a cell's load.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "shape")]
pub enum Load {
    /// In-process: the `batch` requests of a repeat run together, repeats one after another.
    #[default]
    Batch,
    /// Closed loop: `concurrency` requests in flight at any time; the next one starts when one ends.
    Closed { concurrency: u32 },
    /// Open loop: starts are scheduled beforehand, whatever the server does. `max_concurrency` holds requests
    /// back while so many are in flight; the wait is part of their schedule lag.
    Open { arrival: Arrival, max_concurrency: Option<u32> },
}

/// When the requests of an open loop are to start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "pattern")]
pub enum Arrival {
    /// Equal distances of 1 / rate.
    Constant { rate: f64 },
    /// Exponential distances with mean 1 / rate.
    Poisson { rate: f64 },
    /// Gamma distances with mean 1 / rate and shape `burstiness`: 1 is Poisson, below 1 comes in bursts, above
    /// 1 is smoother.
    Gamma { rate: f64, burstiness: f64 },
    /// Exponential distances whose rate goes from `from` to `to` over the requests.
    Ramp { from: f64, to: f64, growth: Growth },
    /// All at once.
    Burst,
    /// Instants and lengths of a recorded trace; `hash` is that of what was read.
    Replay { hash: String },
}

/// How a ramp's rate grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Growth {
    Linear,
    Exponential,
}

impl Load {
    /// The text of the `load` column.
    pub fn key(&self) -> String {
        match self {
            Self::Batch => "batch".to_owned(),
            Self::Closed { .. } => "closed".to_owned(),
            Self::Open { arrival, .. } => match arrival {
                Arrival::Constant { .. } => "constant".to_owned(),
                Arrival::Poisson { .. } => "poisson".to_owned(),
                Arrival::Gamma { burstiness, .. } => format!("gamma({burstiness})"),
                Arrival::Ramp { from, to, growth: Growth::Linear } => format!("ramp({from}..{to})"),
                Arrival::Ramp { from, to, growth: Growth::Exponential } => {
                    format!("exponential_ramp({from}..{to})")
                }
                Arrival::Burst => "burst".to_owned(),
                Arrival::Replay { .. } => "replay".to_owned(),
            },
        }
    }

    /// Requests in flight at any time (closed loop), or at most (open loop).
    pub fn concurrency(&self) -> Option<u32> {
        match self {
            Self::Batch => None,
            Self::Closed { concurrency } => Some(*concurrency),
            Self::Open { max_concurrency, .. } => *max_concurrency,
        }
    }

    /// Requests per second that the schedule wants over its whole length; `None` where there is no rate.
    pub fn rate(&self) -> Option<f64> {
        match self {
            Self::Open {
                arrival: Arrival::Constant { rate } | Arrival::Poisson { rate } | Arrival::Gamma { rate, .. },
                ..
            } => Some(*rate),
            Self::Open { arrival: Arrival::Ramp { from, to, growth }, .. } => {
                Some(ramp_rate(*from, *to, *growth))
            }
            _ => None,
        }
    }

    /// How many requests make a schedule of about `duration_s` seconds, at least 1; `None` where there is no
    /// rate. The last of them is due before the duration is over, up to half a distance.
    pub fn requests_in(&self, duration_s: f64) -> Option<u32> {
        self.rate().map(|rate| (rate * duration_s).round().clamp(1.0, f64::from(u32::MAX)) as u32)
    }

    /// End of a cell's id: `b4`, `c64`, `r2.5`, `burst`.
    pub(crate) fn suffix(&self, batch: u32) -> String {
        match self {
            Self::Batch => format!("b{batch}"),
            Self::Closed { concurrency } => format!("c{concurrency}"),
            Self::Open { arrival: Arrival::Burst, .. } => "burst".to_owned(),
            Self::Open { arrival: Arrival::Replay { .. }, .. } => "replay".to_owned(),
            Self::Open { arrival: Arrival::Ramp { from, to, .. }, .. } => format!("r{from}to{to}"),
            Self::Open { .. } => format!("r{}", self.rate().unwrap_or_default()),
        }
    }
}

/// Requests per second over a whole ramp. It goes by requests and not by time, and so spends longer at its
/// low rates: one over the mean distance, which for linear growth is the logarithmic mean of the ends.
fn ramp_rate(from: f64, to: f64, growth: Growth) -> f64 {
    let ratio = to / from;
    if (ratio - 1.0).abs() < 1e-9 {
        return from;
    }
    match growth {
        Growth::Linear => (to - from) / ratio.ln(),
        Growth::Exponential => ratio.ln() / (from.recip() - to.recip()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ramps_rate_is_its_requests_over_its_length() {
        for growth in [Growth::Linear, Growth::Exponential] {
            for (from, to) in [(1.0, 10.0), (8.0, 2.0), (5.0, 5.0)] {
                let n = 100_000;
                let progress = |i: i32| (f64::from(i) + 0.5) / f64::from(n);
                let rate = |i| match growth {
                    Growth::Linear => from + (to - from) * progress(i),
                    Growth::Exponential => from * f64::powf(to / from, progress(i)),
                };
                let length_s: f64 = (0..n).map(|i| 1.0 / rate(i)).sum();
                let load = Load::Open { arrival: Arrival::Ramp { from, to, growth }, max_concurrency: None };
                let error = load.rate().unwrap() * length_s / f64::from(n) - 1.0;
                assert!(error.abs() < 1e-6, "{growth:?} {from} {to}: {error}");
            }
        }
    }

    #[test]
    fn a_duration_is_a_number_of_requests_where_there_is_a_rate() {
        let open = |arrival| Load::Open { arrival, max_concurrency: None };
        assert_eq!(open(Arrival::Poisson { rate: 10.0 }).requests_in(60.0), Some(600));
        assert_eq!(open(Arrival::Constant { rate: 0.1 }).requests_in(1.0), Some(1));
        assert_eq!(open(Arrival::Burst).requests_in(1.0), None);
        assert_eq!(Load::Closed { concurrency: 3 }.requests_in(1.0), None);
    }
}
