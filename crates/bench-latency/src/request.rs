//! Single requests by the definitions of the report: for those who watch a run, and for a search's decision.
//!
//! Nothing is summarised here but the share of requests that met the limits.

use crate::life::Life;
use crate::sample::Setting;
use crate::{Result, sample, window};
use bench_core::event::FailureKind;
use bench_core::metric::Metric;
use bench_core::plan::{Plan, Slo};
use bench_core::sample::Interval;
use bench_core::stats::wilson_interval;
use bench_core::trace::RequestTrace;

/// What a view shows of one request that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Ended {
    pub ttft_ms: Option<f64>,
    pub tpot_ms: Option<f64>,
    /// 0 for a request that failed.
    pub output_tokens: u64,
    /// `None` if it succeeded.
    pub failure: Option<FailureKind>,
}

/// Reads one request of cell `cell` of `plan`.
///
/// # Errors
/// Events out of order.
pub fn ended(plan: &Plan, cell: &str, request: &RequestTrace) -> Result<Ended> {
    let life = Life::read(cell, request)?;
    let setting = Setting::new(plan, plan.target.kind.key());
    let failure = life.failure();
    Ok(Ended {
        ttft_ms: sample::of_request(Metric::Ttft, &life, setting),
        tpot_ms: sample::of_request(Metric::Tpot, &life, setting),
        output_tokens: if failure.is_some() { 0 } else { life.timeline.token_count() },
        failure,
    })
}

/// How many requests of a cell met every limit: goodput's rule, but over all of them and not over the steady
/// window alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Attainment {
    pub met: u64,
    /// Requests that were started, failed ones among them, those left out that the stop flag cut.
    pub started: u64,
}

impl Attainment {
    /// Takes in a measured request of cell `cell` of `plan`.
    ///
    /// # Errors
    /// Events out of order.
    pub fn add(&mut self, plan: &Plan, slo: &Slo, cell: &str, request: &RequestTrace) -> Result<()> {
        let life = Life::read(cell, request)?;
        if life.failure() != Some(FailureKind::Interrupted) {
            let setting = Setting::new(plan, plan.target.kind.key());
            self.started += 1;
            self.met += u64::from(life.succeeded() && window::meets(slo, &life, setting));
        }
        Ok(())
    }

    /// met / started; `None` if nothing was started.
    pub fn share(self) -> Option<f64> {
        (self.started > 0).then(|| self.met as f64 / self.started as f64)
    }

    /// Wilson's 95 % interval of the share.
    pub fn interval(self) -> Option<Interval> {
        wilson_interval(self.met, self.started)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bench_core::event::{Channel, Event, EventKind, FinishReason};
    use bench_core::spec::RunSpec;
    use bench_core::unit::Nanos;

    /// First token after `ttft_ms`, two more 10 ms apart, then the end.
    fn request(repeat: u32, ttft_ms: u64, end: EventKind) -> RequestTrace {
        let token = || EventKind::Tokens { count: 1, channel: Channel::Final };
        let at = |ms, kind| Event { at: Nanos::from_millis(1_000 + ms), kind };
        let events = vec![
            at(0, EventKind::Intended),
            at(0, EventKind::Sent),
            at(ttft_ms, token()),
            at(ttft_ms + 10, token()),
            at(ttft_ms + 20, token()),
            at(ttft_ms + 20, end),
        ];
        let prompt_hash = String::new();
        RequestTrace {
            repeat,
            slot: 0,
            prompt_hash,
            asked: None,
            server: None,
            kv_allocated_bytes: None,
            events,
        }
    }

    fn plan() -> Plan {
        RunSpec::from_toml("t", "[[models]]\nid = \"dummy:gpt-oss-nano\"\n").unwrap().resolve().unwrap()
    }

    fn done() -> EventKind {
        EventKind::Done { finish: FinishReason::Length }
    }

    fn failed(failure: FailureKind) -> EventKind {
        EventKind::Failed { failure, message: "x".to_owned() }
    }

    #[test]
    fn one_request_has_its_figures_or_its_failure() {
        let good = Ended { ttft_ms: Some(50.0), tpot_ms: Some(10.0), output_tokens: 3, failure: None };
        assert_eq!(ended(&plan(), "c", &request(0, 50, done())).unwrap(), good);
        let bad = Ended { failure: Some(FailureKind::Timeout), ..Ended::default() };
        assert_eq!(ended(&plan(), "c", &request(0, 50, failed(FailureKind::Timeout))).unwrap(), bad);
    }

    #[test]
    fn attainment_counts_failures_against_the_server_and_interruptions_against_nobody() {
        let requests = [
            request(0, 50, done()),
            request(1, 100, done()),
            request(2, 101, done()),
            request(3, 50, failed(FailureKind::Status)),
            request(4, 50, failed(FailureKind::Interrupted)),
        ];
        let slo = |ttft_ms, tpot_ms| Slo { ttft_ms, tpot_ms, e2el_ms: None };
        let of = |slo: &Slo| {
            let mut attainment = Attainment::default();
            for request in &requests {
                attainment.add(&plan(), slo, "c", request).unwrap();
            }
            attainment
        };
        let both = of(&slo(Some(100.0), Some(10.0)));
        assert_eq!(both, Attainment { met: 2, started: 4 });
        assert_eq!(both.share(), Some(0.5));
        let interval = both.interval().unwrap();
        assert!(interval.low.unwrap() < 0.5 && interval.high.unwrap() > 0.5);
        assert_eq!(of(&slo(None, Some(9.9))).met, 0);
        assert_eq!(Attainment::default().share(), None);
    }
}
