//! Which statistics each wide table shows, and what they are called there.
//!
//! A view is a list; everything else about the tables follows from it and from `bench_core::metric`.

use bench_core::metric::Metric;
use bench_core::row::Row;
use bench_core::sample::Stat;

/// Figures that answer one question.
#[derive(Debug)]
pub(crate) struct View {
    /// In file names: `wide_memory.csv`.
    pub name: &'static str,
    /// For headings.
    pub title: &'static str,
    /// The first one counts the samples of a row.
    pub shown: &'static [Shown],
    /// A row for each scope that the figures have, not one for the cell.
    pub by_scope: bool,
}

/// One statistic that a wide table shows.
#[derive(Debug)]
pub(crate) struct Shown {
    pub metric: Metric,
    pub stat: Stat,
    /// Of rows with this scope; in a view by scope, of rows with the scope of the table's row.
    scope: Scope,
    /// Its interval is shown too.
    pub interval: bool,
    /// It stands in tables for reading (terminal, Markdown, LaTeX), not only in CSV and JSON.
    pub printed: bool,
    /// The unit in tables for reading, and what a value is multiplied with.
    pub unit: Option<(&'static str, f64)>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Scope {
    /// That of the table's row, empty in a view of cells.
    Row,
    Named(&'static str),
    /// The first that there is.
    Any,
}

const fn shown(metric: Metric, stat: Stat, interval: bool, printed: bool) -> Shown {
    Shown { metric, stat, scope: Scope::Row, interval, printed, unit: None }
}

impl Shown {
    const fn of(mut self, scope: &'static str) -> Self {
        self.scope = Scope::Named(scope);
        self
    }

    const fn of_any(mut self) -> Self {
        self.scope = Scope::Any;
        self
    }

    const fn in_unit(mut self, name: &'static str, factor: f64) -> Self {
        self.unit = Some((name, factor));
        self
    }
}

const P50: Stat = Stat::Quantile(0.5);
const P95: Stat = Stat::Quantile(0.95);
const P99: Stat = Stat::Quantile(0.99);

const fn mib(shown: Shown) -> Shown {
    shown.in_unit("MiB", 1.0 / (1 << 20) as f64)
}

/// The one that every run has.
pub(crate) static LATENCY: View = View {
    name: "latency",
    title: "Latency",
    by_scope: false,
    shown: &[
        shown(Metric::Ttft, P50, true, true),
        shown(Metric::Ttft, P95, false, true),
        shown(Metric::Ttft, P99, false, true),
        shown(Metric::Tpot, Stat::Mean, true, true),
        shown(Metric::Tpot, P50, true, false),
        shown(Metric::Itl, P99, false, true),
        shown(Metric::DecodeRate, P50, true, true),
        shown(Metric::E2el, P50, false, true),
        shown(Metric::E2el, P95, false, true),
        shown(Metric::E2el, P99, false, true),
        shown(Metric::SystemTokenRate, Stat::Value, false, true),
    ],
};

static MEMORY: View = View {
    name: "memory",
    title: "Memory",
    by_scope: false,
    shown: &[
        mib(shown(Metric::KvRetained, P50, false, true)),
        mib(shown(Metric::KvTheory, Stat::Value, false, true)),
        mib(shown(Metric::KvFull, Stat::Value, false, true)),
        shown(Metric::KvPerToken, Stat::Value, true, true),
        shown(Metric::KvPerTokenTheory, Stat::Value, false, false),
        mib(shown(Metric::WeightsBytes, Stat::Value, false, true)),
        mib(shown(Metric::ActivationPeak, Stat::Max, false, true)),
        mib(shown(Metric::PrefillPeak, Stat::Max, false, true)),
        mib(shown(Metric::DecodePeak, Stat::Max, false, true)),
        mib(shown(Metric::PeakBytes, Stat::Max, false, false).of("allocator")),
        mib(shown(Metric::PeakBytes, Stat::Max, false, true).of("process")),
        mib(shown(Metric::PeakBytes, Stat::Max, false, true).of("gpu_process")),
        mib(shown(Metric::PeakBytes, Stat::Max, false, true).of("gpu_device")),
        mib(shown(Metric::PeakBytes, Stat::Max, false, true).of("gpu_allocator")),
        mib(shown(Metric::PeakBytes, Stat::Max, false, true).of("gpu_kv_cache")),
        mib(shown(Metric::PeakBytes, Stat::Max, false, true).of("gpu_activations")),
        mib(shown(Metric::PeakBytes, Stat::Max, false, false).of("gpu_weights")),
        mib(shown(Metric::PeakBytes, Stat::Max, false, false).of("gpu_workspace")),
        mib(shown(Metric::PeakBytes, Stat::Max, false, false).of("gpu_trial")),
        mib(shown(Metric::PeakBytes, Stat::Max, false, true).of("gpu_loading")),
        mib(shown(Metric::RssAnon, P50, false, false)),
        mib(shown(Metric::RssFile, P50, false, false)),
        mib(shown(Metric::KvLogical, Stat::Value, false, true)),
    ],
};

static ENERGY: View = View {
    name: "energy",
    title: "Energy",
    by_scope: true,
    shown: &[
        shown(Metric::JoulesPerToken, Stat::Mean, true, true),
        shown(Metric::WhPer1kTokens, Stat::Mean, true, true),
        shown(Metric::TokensPerJoule, Stat::Mean, true, false),
        shown(Metric::JoulesPerTokenE2e, Stat::Mean, true, true),
        shown(Metric::WhPer1kTokensE2e, Stat::Mean, true, false),
        shown(Metric::TokensPerJouleE2e, Stat::Mean, true, true),
        shown(Metric::EnergyCounter, Stat::Mean, true, false),
        shown(Metric::EnergyTrapz, Stat::Mean, true, false),
        shown(Metric::EnergyDifference, Stat::Mean, false, false),
        shown(Metric::EnergyNet, Stat::Mean, true, true),
        shown(Metric::EnergyPrefill, Stat::Mean, true, true),
        shown(Metric::EnergyDecode, Stat::Mean, true, true),
        shown(Metric::IdlePower, Stat::Value, false, true),
        shown(Metric::AvgPower, Stat::Mean, true, true),
        shown(Metric::PeakPower, Stat::Max, false, true),
        shown(Metric::UtilGpu, Stat::Mean, false, false),
        shown(Metric::Temp, Stat::Mean, false, false),
        shown(Metric::StartTemp, Stat::Value, false, false),
        shown(Metric::SmClock, Stat::Mean, false, false),
        shown(Metric::Throttle, Stat::Mean, false, false),
        shown(Metric::PowerLimit, Stat::Value, false, false),
        shown(Metric::PowerSampleRate, Stat::Value, false, false),
    ],
};

static EFFICIENCY: View = View {
    name: "efficiency",
    title: "Efficiency per active parameter",
    by_scope: false,
    shown: &[
        shown(Metric::ApeDecode, Stat::Value, true, true),
        shown(Metric::ActiveParameters, Stat::Value, false, true).in_unit("million", 1e-6),
        shown(Metric::ApeTtft, Stat::Value, true, true),
        shown(Metric::ApeEnergy, Stat::Value, true, true).of_any(),
        shown(Metric::ApeMemory, Stat::Value, true, true),
        shown(Metric::ApeAccuracy, Stat::Value, true, true).of_any(),
        shown(Metric::ExpertsTouched, Stat::Value, false, true),
        shown(Metric::ExpertsExpected, Stat::Value, false, false),
        shown(Metric::BytesPerToken, Stat::Value, false, true).in_unit("MB/tok", 1e-6),
        shown(Metric::FlopsPerToken, Stat::Value, false, false),
        shown(Metric::Bandwidth, Stat::Value, false, false),
        shown(Metric::RooflineLimit, Stat::Value, false, true),
        shown(Metric::RooflineRatio, Stat::Value, true, true),
    ],
};

/// Every view, in the order in which they are shown.
pub(crate) static VIEWS: [&View; 4] = [&LATENCY, &MEMORY, &ENERGY, &EFFICIENCY];

impl View {
    /// The scopes of a cell's rows that get a row of the table each; one that is empty in a view of cells.
    pub(crate) fn scopes<'a>(&self, rows: &[&'a Row]) -> Vec<&'a str> {
        if !self.by_scope {
            return vec![""];
        }
        let mut scopes = Vec::new();
        let metrics: Vec<_> = self.shown.iter().map(|s| s.metric.def().key).collect();
        for row in rows.iter().filter(|r| metrics.contains(&r.metric)) {
            if !scopes.contains(&row.scope.as_str()) {
                scopes.push(row.scope.as_str());
            }
        }
        scopes.sort_unstable();
        scopes
    }
}

impl Shown {
    /// Whether the row's figure is this one in a table row of `scope`.
    pub(crate) fn covers(&self, row: &Row, scope: &str) -> bool {
        match self.scope {
            Scope::Row => row.scope == scope,
            Scope::Named(name) => row.scope == name,
            Scope::Any => row.value.is_some(),
        }
    }

    /// `ttft_p50_ms`, `peak_process_max_bytes`: scope and statistic between the metric's name and its unit.
    pub(crate) fn column(&self, end: &str) -> String {
        format!("{}{end}{}", self.name(), self.metric.def().split_unit().1)
    }

    /// A column's name without its unit: `ttft_p50`.
    pub(crate) fn name(&self) -> String {
        let (name, _) = self.metric.def().split_unit();
        let scope = match self.scope {
            Scope::Named(scope) => format!("_{scope}"),
            Scope::Row | Scope::Any => String::new(),
        };
        let stat = match self.stat {
            Stat::Value => String::new(),
            stat => format!("_{}", stat.key()),
        };
        format!("{name}{scope}{stat}")
    }

    /// Two lines for the head of a table: `TTFT` and `p50`, `System token` and `rate`.
    pub(crate) fn heading(&self) -> (String, String) {
        let name = short_name(self.metric);
        let stat = match (self.stat, self.scope) {
            (Stat::Value, Scope::Named(scope)) => scope.replace('_', " "),
            (stat, Scope::Named(scope)) => format!("{} {}", scope.replace('_', " "), stat.key()),
            (Stat::Value, _) => String::new(),
            (stat, _) => stat.key(),
        };
        match name.rsplit_once(' ') {
            Some((first, last)) if stat.is_empty() => (first.to_owned(), last.to_owned()),
            _ => (name, stat),
        }
    }

    /// Of the figures in tables for reading.
    pub(crate) fn printed_unit(&self) -> &'static str {
        self.unit.map_or(self.metric.def().unit, |u| u.0)
    }

    /// A value in the unit of tables for reading.
    pub(crate) fn printed_value(&self, value: f64) -> f64 {
        self.unit.map_or(value, |u| value * u.1)
    }
}

/// Times have abbreviations, which are their keys; everything else is called by its title.
pub(crate) fn short_name(metric: Metric) -> String {
    let def = metric.def();
    if def.unit == "ms" { def.split_unit().0.to_uppercase() } else { def.title.to_owned() }
}
