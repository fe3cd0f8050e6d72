//! What a server and the client say of themselves, beside what was measured.

use super::load::{of, served};
use super::{estimate, request, trial};
use crate::summarise;
use bench_core::client::{Calibration, ClientHealth, ErrorBound, Scrape, ServerTimes};
use bench_core::event::{CountSource, EventKind};
use bench_core::metric::Metric;
use bench_core::plan::Plan;
use bench_core::sample::{Estimate, Stat, Summary, TokenSource};
use bench_core::trace::RequestTrace;
use bench_core::unit::Nanos;

fn plan() -> Plan {
    served("concurrency = [1]\nrequests = 2", "")
}

/// TTFT 100 ms, three gaps of 10 ms.
const EVEN: &str =
    "i@0 s@0 b@99000000 t1@100000000 t1@110000000 t1@120000000 t1@130000000 c16:4@130000001 d@130000002";

fn two(change: impl Fn(&mut RequestTrace)) -> Vec<RequestTrace> {
    let one = |repeat| {
        let mut request = request(repeat, 0, EVEN);
        request.events.iter_mut().for_each(|e| e.at.0 += u64::from(repeat) * 200_000_000);
        change(&mut request);
        request
    };
    vec![one(0), one(1)]
}

fn find(summary: &Summary, metric: Metric, stat: Stat) -> Option<&Estimate> {
    summary.estimates.iter().find(|e| e.metric == metric && e.stat == stat)
}

#[test]
fn a_servers_own_times_stand_beside_the_clients() {
    let times = ServerTimes { queue_ms: Some(5.0), ttft_ms: Some(98.5), decode_ms: None };
    let s = of(&plan(), two(|r| r.server = Some(times)));
    let mean = |metric| estimate(&s, metric, Stat::Mean);
    assert_eq!((mean(Metric::ServerTtft), mean(Metric::ServerQueue)), (Some(98.5), Some(5.0)));
    assert_eq!((mean(Metric::ResidualTtft), mean(Metric::Ttfb)), (Some(1.5), Some(99.0)));
    assert_eq!((mean(Metric::TokensPerChunk), mean(Metric::TokenCountDifference)), (Some(1.0), Some(0.0)));
    for none in
        [Metric::ServerDecode, Metric::CachedPromptTokens, Metric::PrefillRate, Metric::ServerTtftMean]
    {
        assert!(s.estimates.iter().all(|e| e.metric != none), "{none:?}");
    }
}

#[test]
fn gaps_are_missing_where_a_server_counts_tokens_that_were_not_seen() {
    let itl = |seen: u32, counted: u32| {
        let tokens: Vec<_> = (1..=seen).map(|i| format!("t1@{i}000000")).collect();
        let script = format!("i@0 s@0 {} c16:{counted}@900000000 d@900000000", tokens.join(" "));
        let plan = plan();
        let s = summarise(
            &plan,
            &plan.cells[0],
            &[trial(&plan.cells[0], vec![request(0, 0, EVEN), request(1, 0, &script)])],
            false,
            "http",
            None,
        )
        .unwrap();
        let of = |metric| find(&s, metric, Stat::Mean).map(|e| (e.n, e.missing)).unwrap();
        (of(Metric::Itl), of(Metric::Icl))
    };
    // Harmony's control tokens are passed over, by number and by share.
    assert_eq!(itl(100, 116), ((102, 0), (102, 0)));
    assert_eq!(itl(100, 117), ((3, 1), (102, 0)));
    assert_eq!(itl(200, 220), ((202, 0), (202, 0)));
    assert_eq!(itl(200, 221), ((3, 1), (202, 0)));
}

#[test]
fn the_row_says_who_counted() {
    let source = |sources: [Option<CountSource>; 2]| {
        let mut requests = two(|_| {});
        for (request, source) in requests.iter_mut().zip(sources) {
            request.events.retain_mut(|e| match &mut e.kind {
                EventKind::Counted { source: s, .. } => source.inspect(|new| *s = *new).is_some(),
                _ => true,
            });
        }
        of(&plan(), requests).token_source.map(TokenSource::key)
    };
    assert_eq!(source([Some(CountSource::Usage); 2]), Some("usage"));
    assert_eq!(source([None; 2]), Some("chunks"));
    assert_eq!(source([Some(CountSource::Usage), None]), Some("mixed"));
    assert_eq!(of(&plan(), vec![request(0, 0, "i@0 s@0 x@1")]).token_source, None);
}

#[test]
fn an_answer_without_a_stream_has_no_times_inside() {
    let mut plan = plan();
    plan.server.as_mut().unwrap().stream = false;
    let s = of(&plan, vec![request(0, 0, "i@0 s@0 b@99 t4@100 c16:4@100 d@101")]);
    for metric in [Metric::Ttft, Metric::Tpot, Metric::TtftRole, Metric::DecodeRate] {
        assert_eq!(find(&s, metric, Stat::Mean).map(|e| (e.n, e.missing)), Some((0, 1)), "{metric:?}");
    }
    assert_eq!(estimate(&s, Metric::E2el, Stat::Mean), Some(100.0 / 1e6));
}

fn scrape(at_ms: u64, values: &[(&str, f64)]) -> Scrape {
    let values = values.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
    Scrape { at: Nanos::from_millis(at_ms), values }
}

/// In two rounds, so that nothing between them counts.
fn scraped(rounds: [Vec<Scrape>; 2]) -> Summary {
    let plan = plan();
    let mut trials = rounds.into_iter().zip(two(|_| {})).map(|(scrapes, request)| {
        let mut trial = trial(&plan.cells[0], vec![request]);
        trial.scrapes = scrapes;
        trial
    });
    let trials = [trials.next().unwrap(), trials.next().unwrap()];
    summarise(&plan, &plan.cells[0], &trials, false, "http", None).unwrap()
}

#[test]
fn a_servers_metrics_count_within_rounds() {
    let at = |ms, running, sum, count, tokens| {
        scrape(
            ms,
            &[
                ("requests_running", running),
                ("ttft_seconds_sum", sum),
                ("ttft_seconds_count", count),
                ("generation_tokens_total", tokens),
                ("prefix_cache_queries_total", 100.0),
                ("prefix_cache_hits_total", 50.0),
            ],
        )
    };
    let s = scraped([
        vec![at(0, 1.0, 10.0, 100.0, 500.0), at(1000, 3.0, 10.5, 104.0, 700.0)],
        vec![at(9000, 2.0, 99.0, 900.0, 900.0), at(10_000, 2.0, 99.7, 904.0, 1000.0)],
    ]);
    let value = |metric| estimate(&s, metric, Stat::Value);
    assert_eq!(value(Metric::ServerRunning), Some(2.0));
    let ttft = value(Metric::ServerTtftMean).unwrap();
    assert!((ttft - 150.0).abs() < 1e-9, "1.2 s in 8 requests: {ttft}");
    assert_eq!(value(Metric::ServerGenerationRate), Some(150.0));
    let hits = find(&s, Metric::ServerPrefixHitRate, Stat::Value).unwrap();
    assert_eq!((hits.value, hits.missing), (None, 1), "no queries: no rate");
    assert!(find(&s, Metric::ServerWaiting, Stat::Value).is_none());
}

#[test]
fn a_server_that_was_restarted_is_not_counted() {
    let at = |ms, n| scrape(ms, &[("preemptions_total", n), ("kv_cache_usage", n / 100.0)]);
    let s = scraped([vec![at(0, 50.0), at(5, 2.0), at(9, 60.0)], vec![at(20, 60.0), at(30, 61.0)]]);
    let preemptions = find(&s, Metric::ServerPreemptions, Stat::Value).unwrap();
    assert_eq!((preemptions.value, preemptions.missing), (None, 1));
    assert_eq!(estimate(&s, Metric::ServerKvUsage, Stat::Value), Some(0.61));
}

fn calibration(ttft_p99_ms: f64, gap_p99_ms: f64) -> Calibration {
    let bound = |p99_ms| ErrorBound { p50_ms: p99_ms / 2.0, p99_ms };
    Calibration {
        concurrency: 1,
        rate: None,
        ttft_ms: 50.0,
        gap_ms: 10.0,
        output_tokens: 4,
        requests: 100,
        gaps: 300,
        ttft_added: bound(ttft_p99_ms),
        ttft_difference: bound(ttft_p99_ms),
        gap_error: bound(gap_p99_ms),
        gap_error_sd_ms: gap_p99_ms / 3.0,
        schedule_lag: bound(0.25),
        server_error: bound(0.0),
        token_rate: 100.0,
        health: ClientHealth::default(),
    }
}

fn judged(health: Option<ClientHealth>, calibration: Option<&Calibration>) -> Summary {
    let plan = plan();
    let mut trial = trial(&plan.cells[0], two(|_| {}));
    trial.client = health;
    summarise(&plan, &plan.cells[0], &[trial], false, "http", calibration).unwrap()
}

#[test]
fn the_instruments_error_stands_in_the_unit_of_the_time() {
    let s = judged(None, Some(&calibration(0.5, 0.125)));
    let error = |metric, stat| find(&s, metric, stat).unwrap().instrument_error;
    assert_eq!(error(Metric::Ttft, Stat::Quantile(0.99)), Some(0.5));
    assert_eq!(error(Metric::E2elFromSchedule, Stat::Mean), Some(0.75));
    assert_eq!(error(Metric::Itl, Stat::Mean), Some(0.125));
    assert_eq!(error(Metric::Ntpot, Stat::Mean), Some(0.125));
    assert_eq!(error(Metric::Tpot, Stat::Mean), Some(0.5 / 3.0));
    for (metric, stat) in [
        (Metric::Ttft, Stat::StdDev),
        (Metric::DecodeRate, Stat::Mean),
        (Metric::ScheduleLag, Stat::Mean),
        (Metric::SystemTokenRate, Stat::Value),
    ] {
        assert_eq!(error(metric, stat), None, "{metric:?}");
    }
    assert_eq!(s.client.unwrap().to_string(), "client_ok");
}

#[test]
fn a_client_that_is_the_bottleneck_is_told_with_its_values() {
    let good =
        ClientHealth { cpu_share: Some(0.3), stall_max_ms: 9.0, stall_p99_ms: 0.9, ..Default::default() };
    let check = |health, calibration: Option<&Calibration>, expected: &str| {
        let s = judged(Some(health), calibration);
        assert_eq!(s.client.as_ref().unwrap().to_string(), expected);
        let invalid = expected != "client_ok";
        assert_eq!(s.verdict.is_valid(), !invalid, "{:?}", s.verdict);
        let reason = expected.replace("client_bound: ", "client-bound: ");
        assert!(!invalid || s.verdict.reason_text() == reason, "{:?}", s.verdict);
    };
    check(good, None, "client_ok");
    check(
        ClientHealth { cpu_share: Some(0.93), ..good },
        None,
        "client_bound: busiest thread 0.93 of a core over 0.80",
    );
    check(
        ClientHealth { stall_max_ms: 31.0, stall_p99_ms: 1.5, ..good },
        None,
        "client_bound: longest stall 31.000 ms over 10.000 ms; event loop late by p99 1.500 ms over 1.000 ms",
    );
    // Alone it is the server that bundles.
    let shared = ClientHealth { reads: 40, events: 100, shared_events: 60, ..good };
    check(shared, None, "client_ok");
    check(
        ClientHealth { cpu_share: Some(0.6), ..shared },
        None,
        "client_bound: 60 % of events shared a read at 0.60 of a core",
    );
    // A tenth of 100 ms and of 10 ms.
    check(good, Some(&calibration(10.0, 1.0)), "client_ok");
    check(
        good,
        Some(&calibration(10.5, 1.25)),
        "client_bound: added to TTFT p99 10.500 ms over 10.000 ms; gap error p99 1.250 ms over 1.000 ms",
    );
    assert_eq!(judged(None, None).client, None);
    let s = judged(Some(shared), None);
    assert_eq!(estimate(&s, Metric::EventsPerRead, Stat::Value), Some(2.5));
    assert_eq!(estimate(&s, Metric::ClientStall, Stat::Value), Some(9.0));
}
