//! Readings of a loopback server's metrics.

use super::*;
use bench_core::clock::MonotonicClock;
use bench_core::spec::RunSpec;
use bench_http::SystemClock;
use bench_http::loopback::{Loopback, LoopbackOptions};

fn scraping(url: &str, more: &str) -> Result<Option<Scraping>, TargetError> {
    let text = format!(
        "[target]\nkind = \"http\"\n[[models]]\nid = \"loopback\"\n[server]\nbase_url = \"{url}\"\n\
         metrics_interval_ms = 5.0\n{more}"
    );
    let plan = RunSpec::from_toml("t", &text).unwrap().resolve().unwrap();
    let endpoint = Endpoint::parse(url).unwrap();
    let dialer = Dialer::new(endpoint, &TlsOptions::default(), Arc::new(SystemClock::default())).unwrap();
    let clock: Arc<dyn Clock> = Arc::new(MonotonicClock::default());
    Scraping::planned(plan.server.as_ref().unwrap(), &Arc::new(dialer), "loopback", &clock)
}

fn checked(scraping: &Scraping) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(scraping.check(&Stop::new()))
}

#[test]
fn readings_come_in_order_of_time_under_our_names() {
    let server = Loopback::start(LoopbackOptions::default(), Arc::new(SystemClock::default())).unwrap();
    let scraping = scraping(&server.base_url(), "").unwrap().unwrap();
    checked(&scraping).unwrap();
    let (scraper, readings) = scraping.start().unwrap();
    let read: Vec<Scrape> = readings.iter().take(3).collect();
    scraper.end();
    assert!(read.windows(2).all(|w| w[0].at < w[1].at), "{read:?}");
    for scrape in &read {
        assert_eq!(scrape.values.get("requests_running"), Some(&0.0));
        assert_eq!(scrape.values.get("generation_tokens_total"), Some(&0.0));
        assert!(scrape.values.contains_key("kv_cache_usage"));
        assert_eq!(scrape.values.get("kv_block_tokens"), Some(&1_048_576.0));
    }
    // The thread is gone, and with it the sender: this ends.
    readings.iter().for_each(drop);
}

#[test]
fn a_server_without_metrics_is_one_note() {
    let url = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    };
    let note = checked(&scraping(&url, "").unwrap().unwrap()).unwrap_err();
    assert!(note.starts_with("no server-side figures, ") && note.contains("/metrics"), "{note}");
    // Nobody answers: no reading, and an end when the caller wants it.
    let (scraper, readings) = scraping(&url, "").unwrap().unwrap().start().unwrap();
    scraper.end();
    assert_eq!(readings.iter().count(), 0);
}

#[test]
fn metrics_can_lie_elsewhere_or_be_off() {
    assert!(scraping("http://a", "metrics = false\n").unwrap().is_none());
    let of = scraping("http://a", "metrics_url = \"http://b:9/sub/metrics\"\n").unwrap().unwrap();
    assert_eq!(of.dialer.endpoint().url(Route::Metrics), "http://b:9/sub/metrics");
    let error = scraping("http://a", "metrics_url = \"http://b:9/stats\"\n").err().unwrap().to_string();
    assert!(error.contains("ends with /metrics"), "{error}");
}
