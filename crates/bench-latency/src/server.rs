//! Figures that a server states of itself: readings of its metrics during the rounds of a cell.
//!
//! Names are those of `bench_core::client::Scrape`. Gauges are taken as read; counters count between the first
//! and the last reading of a round, and one that falls belongs to a server that was restarted: then nothing is
//! known.

use bench_core::client::Scrape;
use bench_core::metric::Metric;
use std::collections::BTreeMap;

/// What the readings of all rounds come to.
#[derive(Debug, Default)]
pub(crate) struct Server {
    gauges: BTreeMap<String, Gauge>,
    counters: BTreeMap<String, Counter>,
    /// First and last reading of the present round, in ns.
    span: Option<(u64, u64)>,
    /// Of the rounds before.
    time_ns: u64,
}

#[derive(Debug, Default)]
struct Gauge {
    sum: f64,
    n: u64,
    max: f64,
}

#[derive(Debug, Default)]
struct Counter {
    /// Last reading of the present round.
    last: Option<f64>,
    /// Over all rounds; `None` until a counter was read twice in one.
    grown: Option<f64>,
    fell: bool,
}

impl Server {
    pub(crate) fn round(&mut self) {
        self.time_ns += self.span.take().map_or(0, |(first, last)| last - first);
        for counter in self.counters.values_mut() {
            counter.last = None;
        }
    }

    pub(crate) fn add(&mut self, scrape: &Scrape) {
        let at = scrape.at.0;
        self.span = Some(self.span.map_or((at, at), |(first, last)| (first, last.max(at))));
        for (name, &value) in scrape.values.iter().filter(|v| v.1.is_finite()) {
            if is_counter(name) {
                self.counters.entry(name.clone()).or_default().read(value);
            } else {
                let gauge = self.gauges.entry(name.clone()).or_default();
                gauge.max = if gauge.n == 0 { value } else { gauge.max.max(value) };
                gauge.sum += value;
                gauge.n += 1;
            }
        }
    }

    /// Only of what the server has; `None` where it has it and it could not be known.
    pub(crate) fn figures(&mut self) -> Vec<(Metric, Option<f64>)> {
        self.round();
        let mut figures = Vec::new();
        for (metric, name) in [
            (Metric::ServerRunning, "requests_running"),
            (Metric::ServerWaiting, "requests_waiting"),
            (Metric::ServerKvUsage, "kv_cache_usage"),
        ] {
            let value = |g: &Gauge| if metric == Metric::ServerRunning { g.sum / g.n as f64 } else { g.max };
            figures.extend(self.gauges.get(name).map(|g| (metric, Some(value(g)))));
        }
        for (metric, of, over, factor) in [
            (Metric::ServerPrefixHitRate, "prefix_cache_hits_total", "prefix_cache_queries_total", 1.0),
            (Metric::ServerTtftMean, "ttft_seconds_sum", "ttft_seconds_count", 1e3),
            (Metric::ServerQueueMean, "queue_seconds_sum", "queue_seconds_count", 1e3),
            (Metric::ServerItlMean, "itl_seconds_sum", "itl_seconds_count", 1e3),
        ] {
            if self.counters.contains_key(of) && self.counters.contains_key(over) {
                let ratio = self.grown(of).zip(self.grown(over)).filter(|(_, over)| *over > 0.0);
                figures.push((metric, ratio.map(|(of, over)| of / over * factor)));
            }
        }
        let (tokens, preemptions) = ("generation_tokens_total", "preemptions_total");
        if self.counters.contains_key(tokens) {
            let seconds = self.time_ns as f64 / 1e9;
            let rate = self.grown(tokens).filter(|_| seconds > 0.0).map(|tokens| tokens / seconds);
            figures.push((Metric::ServerGenerationRate, rate));
        }
        if self.counters.contains_key(preemptions) {
            figures.push((Metric::ServerPreemptions, self.grown(preemptions)));
        }
        figures
    }

    fn grown(&self, name: &str) -> Option<f64> {
        self.counters.get(name).filter(|c| !c.fell)?.grown
    }
}

fn is_counter(name: &str) -> bool {
    ["_total", "_sum", "_count"].iter().any(|end| name.ends_with(end))
}

impl Counter {
    fn read(&mut self, value: f64) {
        if let Some(last) = self.last {
            self.fell |= value < last;
            *self.grown.get_or_insert(0.0) += value - last;
        }
        self.last = Some(value);
    }
}
