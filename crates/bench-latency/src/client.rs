//! Was the client the bottleneck: what it says of itself, its calibration, and the limits for both.
//!
//! A client that is late adds its own time to the server's. Each limit is a share of what is measured, or the
//! least that a scheduler of a shared machine does to any program, whichever is larger.

use bench_core::client::{Calibration, ClientHealth};
use bench_core::metric::Metric;
use bench_core::plan::Cell;
use bench_core::verdict::{ClientBound, ClientVerdict};

/// Of one core, for the busiest thread. Work that finds a thread busy waits: at 0.8 the mean wait of a queue
/// with one server and even work is two rounds of work, and it grows without end towards 1.
pub const CPU_SHARE_LIMIT: f64 = 0.8;

/// Longest stall that is passed over: two 4 ms slices of a scheduler and the work between them.
pub const STALL_LIMIT_MS: f64 = 10.0;

/// 99th percentile of the lateness of an event loop's rounds that is passed over: timers of an idle machine are
/// a tenth of it late.
pub const LATE_ROUNDS_LIMIT_MS: f64 = 1.0;

/// What the client adds may be this share of the median of what is measured.
pub const ADDED_SHARE_LIMIT: f64 = 0.1;

/// Events that came with an earlier one in the same read, as a share. A server that bundles does this too: it
/// tells against the client only together with `SHARED_CPU_LIMIT`.
pub const SHARED_READS_LIMIT: f64 = 0.5;
pub const SHARED_CPU_LIMIT: f64 = 0.5;

/// The health of all rounds: the worst of each state, the sum of each count.
#[derive(Debug, Default)]
pub(crate) struct Client {
    health: Option<ClientHealth>,
}

/// What the client's error is held against.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Measured {
    pub(crate) ttft_ms: Option<f64>,
    /// Time from token to token: the larger of the medians of gaps and of requests' means, since the gaps of a
    /// server that bundles are mostly 0.
    pub(crate) gap_ms: Option<f64>,
    /// The broken limit of the schedule lag, if it is the client's.
    pub(crate) lag: Option<(f64, f64)>,
}

impl Client {
    pub(crate) fn add(&mut self, h: &ClientHealth) {
        let Some(all) = &mut self.health else {
            self.health = Some(*h);
            return;
        };
        all.threads = all.threads.max(h.threads);
        all.cpu_share = [all.cpu_share, h.cpu_share].into_iter().flatten().reduce(f64::max);
        all.cpu_s += h.cpu_s;
        all.stall_max_ms = all.stall_max_ms.max(h.stall_max_ms);
        all.stall_p99_ms = all.stall_p99_ms.max(h.stall_p99_ms);
        for (sum, more) in [
            (&mut all.reads, h.reads),
            (&mut all.events, h.events),
            (&mut all.shared_events, h.shared_events),
            (&mut all.connections_opened, h.connections_opened),
            (&mut all.connections_reused, h.connections_reused),
            (&mut all.opened_late, h.opened_late),
            (&mut all.closed_by_server, h.closed_by_server),
        ] {
            *sum += more;
        }
    }

    /// None where there is no client between.
    pub(crate) fn figures(&self) -> Vec<(Metric, Option<f64>)> {
        let Some(h) = &self.health else { return Vec::new() };
        let mut figures = vec![
            (Metric::EventsPerRead, (h.reads > 0).then(|| h.events as f64 / h.reads as f64)),
            (Metric::ClientStall, Some(h.stall_max_ms)),
        ];
        if h.cpu_share.is_some() {
            figures.push((Metric::ClientCpuShare, h.cpu_share));
        }
        figures
    }

    /// `None` where the client did not watch itself.
    pub(crate) fn judge(&self, calibration: Option<&Calibration>, m: Measured) -> Option<ClientVerdict> {
        if self.health.is_none() && calibration.is_none() {
            return None;
        }
        let mut bounds = Vec::new();
        bounds.extend(m.lag.map(|(p99_ms, limit_ms)| ClientBound::ScheduleLag { p99_ms, limit_ms }));
        if let Some(h) = &self.health {
            bounds.extend(of_health(h, m));
        }
        if let Some(c) = calibration {
            let over = |p99_ms: f64, of: Option<f64>| {
                of.map(|of| (p99_ms, of * ADDED_SHARE_LIMIT)).filter(|(p99_ms, limit)| p99_ms > limit)
            };
            bounds.extend(
                over(c.ttft_added.p99_ms, m.ttft_ms)
                    .map(|(p99_ms, limit_ms)| ClientBound::AddedTtft { p99_ms, limit_ms }),
            );
            bounds.extend(
                over(c.gap_error.p99_ms, m.gap_ms)
                    .map(|(p99_ms, limit_ms)| ClientBound::GapError { p99_ms, limit_ms }),
            );
        }
        Some(ClientVerdict { bounds })
    }
}

fn of_health(h: &ClientHealth, m: Measured) -> Vec<ClientBound> {
    let mut bounds = Vec::new();
    // A share that was not measured breaks no limit, and shows as missing in `client_cpu_share`.
    let above = |limit| h.cpu_share.filter(|share| *share > limit);
    bounds
        .extend(above(CPU_SHARE_LIMIT).map(|share| ClientBound::CpuShare { share, limit: CPU_SHARE_LIMIT }));
    let at_least =
        |limit_ms: f64, of: Option<f64>| of.map_or(limit_ms, |of| limit_ms.max(ADDED_SHARE_LIMIT * of));
    let limit_ms = at_least(STALL_LIMIT_MS, m.ttft_ms);
    if h.stall_max_ms > limit_ms {
        bounds.push(ClientBound::Stall { longest_ms: h.stall_max_ms, limit_ms });
    }
    let limit_ms = at_least(LATE_ROUNDS_LIMIT_MS, m.gap_ms);
    if h.stall_p99_ms > limit_ms {
        bounds.push(ClientBound::LateRounds { p99_ms: h.stall_p99_ms, limit_ms });
    }
    let shared = (h.events > 0).then(|| h.shared_events as f64 / h.events as f64);
    let shared = shared.filter(|share| *share > SHARED_READS_LIMIT).zip(above(SHARED_CPU_LIMIT));
    bounds.extend(shared.map(|(share, cpu_share)| ClientBound::SharedReads { share, cpu_share }));
    bounds
}

/// 99th percentile of what the client adds to a time of this kind at the cell's own load, in ms; `None` for what
/// is no time of the client.
///
/// Times from the schedule take up the schedule lag as well, so that theirs is a bound. Both ends of a time per
/// token are late by up to the error of the first, spread over the tokens between them.
pub(crate) fn instrument_error(metric: Metric, cell: &Cell, c: &Calibration) -> Option<f64> {
    let added = c.ttft_added.p99_ms;
    let per_token = |tokens: u32| (tokens > 0).then(|| added / f64::from(tokens));
    match metric {
        Metric::Ttft
        | Metric::Ttfo
        | Metric::TtftRole
        | Metric::Ttfb
        | Metric::E2el
        | Metric::ResidualTtft => Some(added),
        Metric::TtftFromSchedule | Metric::E2elFromSchedule => Some(added + c.schedule_lag.p99_ms),
        Metric::Itl | Metric::Icl => Some(c.gap_error.p99_ms),
        Metric::Tpot => per_token(cell.output_tokens.saturating_sub(1)),
        Metric::Ntpot => per_token(cell.output_tokens),
        _ => None,
    }
}
