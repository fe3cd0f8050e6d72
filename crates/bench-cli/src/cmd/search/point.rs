//! One level of a search: the figures of its run, and whether it meets the limits.

use super::decide::{Flow, Tested};
use bench_core::metric::Metric;
use bench_core::row::Row;
use bench_core::sample::Stat;
use bench_latency::Attainment;

/// Whether a level meets the limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decision {
    Pass,
    Fail,
    /// The cell may not be believed, so nothing is claimed.
    NoClaim,
}

impl Decision {
    pub(super) fn key(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fail => "fail",
            Self::NoClaim => "no_claim",
        }
    }
}

/// What was measured at one level.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Point {
    pub(super) level: f64,
    pub(super) run_id: String,
    pub(super) attainment: Attainment,
    /// Share of the requests that must meet the limits.
    pub(super) threshold: f64,
    pub(super) decision: Decision,
    /// Requests that succeeded.
    pub(super) success_rate: Option<f64>,
    pub(super) system_req_s: Option<f64>,
    pub(super) system_tok_s: Option<f64>,
    pub(super) ttft_p50_ms: Option<f64>,
    pub(super) ttft_p99_ms: Option<f64>,
    pub(super) tpot_mean_ms: Option<f64>,
    /// Mean from the intended start to the last token.
    pub(super) latency_mean_ms: Option<f64>,
    pub(super) verdict: String,
    pub(super) reason: String,
}

impl Point {
    /// The point of a run with one cell, from its rows.
    pub(super) fn new(
        level: f64,
        run_id: &str,
        rows: &[Row],
        attainment: Attainment,
        threshold: f64,
    ) -> Self {
        let value = |metric: Metric, stat: Stat| {
            let (metric, stat) = (metric.def().key, stat.key());
            rows.iter().find(|r| r.metric == metric && r.stat == stat).and_then(|r| r.value)
        };
        let first = rows.first();
        let success_rate = first.and_then(|r| r.success_rate);
        let verdict = first.map_or_else(|| "INVALID".to_owned(), |r| r.verdict.to_owned());
        let met = attainment.share().is_some_and(|share| share >= threshold);
        // Where nothing succeeded there is nothing to disbelieve: the level is too high.
        let decision = match (verdict.as_str(), success_rate) {
            ("VALID", _) if met => Decision::Pass,
            ("VALID", _) | (_, Some(0.0)) => Decision::Fail,
            _ => Decision::NoClaim,
        };
        Self {
            level,
            run_id: run_id.to_owned(),
            attainment,
            threshold,
            decision,
            success_rate,
            system_req_s: value(Metric::SystemRequestRate, Stat::Value),
            system_tok_s: value(Metric::SystemTokenRate, Stat::Value),
            ttft_p50_ms: value(Metric::Ttft, Stat::Quantile(0.5)),
            ttft_p99_ms: value(Metric::Ttft, Stat::Quantile(0.99)),
            tpot_mean_ms: value(Metric::Tpot, Stat::Mean),
            latency_mean_ms: value(Metric::E2elFromSchedule, Stat::Mean),
            verdict,
            reason: first.map_or_else(|| "no rows".to_owned(), |r| r.verdict_reason.clone()),
        }
    }

    pub(super) fn tested(&self) -> Option<Tested> {
        let passed = match self.decision {
            Decision::Pass => true,
            Decision::Fail => false,
            Decision::NoClaim => return None,
        };
        Some(Tested { level: self.level, passed })
    }

    /// Ends of the 95 % interval of the attainment.
    pub(super) fn interval(&self) -> Option<(f64, f64)> {
        let interval = self.attainment.interval()?;
        interval.low.zip(interval.high)
    }

    /// Whether the interval excludes the threshold: another run of this length would hardly decide otherwise.
    pub(super) fn is_clear(&self) -> bool {
        self.interval().is_some_and(|(low, high)| low > self.threshold || high < self.threshold)
    }

    /// What the knee is read from; `None` where the cell may not be believed or has no steady window.
    pub(super) fn flow(&self) -> Option<Flow> {
        self.tested()?;
        let throughput_req_s = self.system_req_s.filter(|r| *r > 0.0)?;
        let latency_ms = self.latency_mean_ms.filter(|ms| *ms > 0.0)?;
        Some(Flow { level: self.level, throughput_req_s, latency_ms })
    }
}

/// Requests of which all must meet the limits before the interval excludes `threshold`; `None` for 1, which
/// no number of requests can show.
pub(super) fn clear_from(threshold: f64) -> Option<u64> {
    let excludes = |n: u64| {
        let low = Attainment { met: n, started: n }.interval().and_then(|i| i.low);
        low.is_some_and(|low| low > threshold)
    };
    // Above ten million requests nobody would measure.
    let mut high = (0..24).map(|power| 1_u64 << power).find(|n| excludes(*n))?;
    let mut low = high / 2;
    while low + 1 < high {
        let middle = low.midpoint(high);
        if excludes(middle) { high = middle } else { low = middle }
    }
    Some(high)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use bench_core::SCHEMA_VERSION;
    use bench_core::plan::Cell;
    use bench_core::sample::{Estimate, Summary};

    /// A measured point with these figures.
    pub(in super::super) fn point(
        level: f64,
        met: u64,
        started: u64,
        verdict: &str,
        latency_ms: f64,
    ) -> Point {
        let attainment = Attainment { met, started };
        let mut point = Point::new(level, "demo-run", &[], attainment, 0.99);
        point.verdict = verdict.to_owned();
        point.reason = String::new();
        point.decision = match (verdict, attainment.share().is_some_and(|s| s >= 0.99)) {
            ("VALID", true) => Decision::Pass,
            ("VALID", false) => Decision::Fail,
            _ => Decision::NoClaim,
        };
        point.success_rate = Some(1.0);
        point.system_req_s = Some(level);
        point.system_tok_s = Some(level * 100.0);
        point.ttft_p50_ms = Some(latency_ms / 4.0);
        point.tpot_mean_ms = Some(12.5);
        point.latency_mean_ms = Some(latency_ms);
        point
    }

    fn rows(success_rate: f64, verdict: &'static str) -> Vec<Row> {
        let row = |metric: Metric, stat: Stat, value| Row {
            run_id: "demo-run".to_owned(),
            metric: metric.def().key,
            stat: stat.key(),
            value,
            success_rate: Some(success_rate),
            verdict,
            verdict_reason: "because".to_owned(),
            ..empty_row()
        };
        vec![
            row(Metric::Ttft, Stat::Mean, Some(1.0)),
            row(Metric::Ttft, Stat::Quantile(0.5), Some(2.0)),
            row(Metric::Ttft, Stat::Quantile(0.99), None),
            row(Metric::Tpot, Stat::Mean, Some(3.0)),
            row(Metric::E2elFromSchedule, Stat::Mean, Some(200.0)),
            row(Metric::SystemRequestRate, Stat::Value, Some(4.0)),
            row(Metric::SystemTokenRate, Stat::Value, Some(5.0)),
        ]
    }

    /// A row of nothing, by way of an empty estimate, so that new columns need no change here.
    fn empty_row() -> Row {
        let plan = bench_core::spec::RunSpec::from_toml("t", "[[models]]\nid = \"dummy:gpt-oss-nano\"\n")
            .and_then(|spec| spec.resolve())
            .unwrap();
        let cell: &Cell = &plan.cells[0];
        let summary: Summary = bench_latency::summarise(&plan, cell, &[], false, "mock", None).unwrap();
        let estimates: Vec<Estimate> = summary.estimates.into_iter().take(1).collect();
        let row = bench_core::row::rows("r", "mock", cell, &Summary { estimates, ..summary }).remove(0);
        assert_eq!(row.schema_version, SCHEMA_VERSION);
        row
    }

    #[test]
    fn figures_are_those_of_the_rows() {
        let point =
            Point::new(4.0, "demo-run", &rows(1.0, "VALID"), Attainment { met: 99, started: 100 }, 0.99);
        assert_eq!(point.decision, Decision::Pass);
        assert_eq!((point.ttft_p50_ms, point.ttft_p99_ms, point.tpot_mean_ms), (Some(2.0), None, Some(3.0)));
        assert_eq!((point.system_req_s, point.system_tok_s), (Some(4.0), Some(5.0)));
        assert_eq!((point.latency_mean_ms, point.flow().map(|f| f.power())), (Some(200.0), Some(20.0)));
        assert!(!point.is_clear(), "100 requests cannot show 99 %");
    }

    #[test]
    fn only_a_valid_cell_decides_or_one_in_which_nothing_succeeded() {
        for (success, verdict, met, decision) in [
            (1.0, "VALID", 99, Decision::Pass),
            (1.0, "VALID", 98, Decision::Fail),
            (0.5, "VALID", 50, Decision::Fail),
            (1.0, "INVALID", 100, Decision::NoClaim),
            (0.5, "INVALID", 0, Decision::NoClaim),
            (0.0, "INVALID", 0, Decision::Fail),
        ] {
            let attainment = Attainment { met, started: 100 };
            let point = Point::new(4.0, "r", &rows(success, verdict), attainment, 0.99);
            assert_eq!(point.decision, decision, "{success} {verdict} {met}");
            assert_eq!(point.tested().is_some(), decision != Decision::NoClaim);
            assert_eq!(point.flow().is_some(), decision != Decision::NoClaim);
        }
        assert_eq!(
            Point::new(4.0, "r", &[], Attainment { met: 0, started: 0 }, 0.99).decision,
            Decision::NoClaim
        );
    }

    #[test]
    fn a_decision_is_clear_when_the_interval_excludes_the_threshold() {
        assert!(point(1.0, 1_000, 1_000, "VALID", 1.0).is_clear());
        assert!(point(1.0, 90, 100, "VALID", 1.0).is_clear());
        assert!(!point(1.0, 98, 100, "VALID", 1.0).is_clear());
        let n = clear_from(0.99).unwrap();
        assert_eq!(n, 381);
        assert!(
            point(1.0, n, n, "VALID", 1.0).is_clear() && !point(1.0, n - 1, n - 1, "VALID", 1.0).is_clear()
        );
        assert_eq!(clear_from(1.0), None);
    }
}
