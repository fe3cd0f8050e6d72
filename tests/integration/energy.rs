//! Energy from a meter to the table: recorded traces on the mock's own clock, where every joule is known, and NVML
//! through its real interface. What cannot be believed has its reason, and the rest of the run is kept.

use bench_core::metric::Metric;
use bench_core::row::Row;
use bench_core::trace::Timeline;
use bench_runner::store::{RunFolder, list_runs};
use nvml_stub::{Device, Energy, Failure, Script, TimeAxis, Wave};
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

/// Prefill of 2 s, then 40 gaps of 100 ms; six repeats.
const STUDY: &str = r#"
[run]
name = "joules"
repeats = 6
rounds = 2
warmup = 0
[target]
kind = "mock"
[[models]]
id = "a"
[workload]
prompt_tokens = [16]
output_tokens = [41]
[mock]
ttft_us = 2000000
gap_us = 100000
"#;

struct Ran {
    dir: tempfile::TempDir,
    code: u8,
    err: String,
}

fn ossbench(dir: tempfile::TempDir, args: &[&str]) -> Ran {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let path = |name: &str| dir.path().join(name).display().to_string();
    let places = ["--results".to_owned(), path("results"), "--figs".to_owned(), path("figs")];
    let places =
        places.into_iter().chain(["--tables".to_owned(), path("tables"), "--ui".into(), "none".into()]);
    let args = ["ossbench"].iter().chain(args).map(OsString::from).chain(places.map(OsString::from));
    let code = bench_cli::run(args, &mut out, &mut err);
    Ran { dir, code, err: String::from_utf8(err).unwrap() }
}

impl Ran {
    fn rows(&self) -> Vec<Row> {
        assert_eq!(self.code, 0, "{}", self.err);
        bench_report::unified::read(&self.dir.path().join("results/unified.csv")).unwrap()
    }

    fn row(&self, metric: Metric, stat: &str) -> Row {
        let rows = self.rows();
        let found = rows.into_iter().find(|r| r.metric == metric.def().key && r.stat == stat);
        found.unwrap_or_else(|| panic!("no {} {stat}\n{}", metric.def().key, self.err))
    }

    fn value(&self, metric: Metric) -> f64 {
        self.row(metric, "mean").value.unwrap()
    }

    /// Begin, first token and end of every repeat, in seconds.
    fn instants(&self) -> Vec<[f64; 3]> {
        let runs = list_runs(&self.dir.path().join("results")).unwrap();
        let trials = RunFolder::open(&runs[0]).unwrap().read_trials().unwrap();
        let requests = trials.iter().flat_map(|t| &t.requests);
        let of = |r| {
            let t = Timeline::read("c", r).unwrap();
            [t.sent, t.first_token().unwrap(), t.last_token().unwrap()].map(bench_core::unit::Nanos::as_secs)
        };
        requests.map(of).collect()
    }
}

/// Runs the study beside the trace `text`.
fn replayed(text: &str, idle: &str) -> Ran {
    let dir = tempfile::tempdir().unwrap();
    let (study, trace) = (dir.path().join("joules.toml"), dir.path().join("power.csv"));
    fs::write(&study, STUDY).unwrap();
    fs::write(&trace, text).unwrap();
    let (study, source) = (study.display().to_string(), format!("file:{}", trace.display()));
    ossbench(dir, &["run", &study, "--power-source", &source, "--idle", idle])
}

/// A trace at 10 Hz over a minute; `counter`: brought up to date every 100 ms, out of step with the readings.
fn trace(power: impl Fn(f64) -> f64, counter: Option<&dyn Fn(f64) -> f64>) -> String {
    let mut text = String::from("t_s,power_w,energy_j\n");
    for i in 0..600 {
        let t = f64::from(i) * 0.1 + 0.03;
        let energy = counter.map_or(String::new(), |c| format!("{}", c((t * 10.0).floor() / 10.0)));
        let _ = writeln!(text, "{t},{},{energy}", power(t));
    }
    text
}

fn check(ran: &Ran, exact: impl Fn(f64, f64) -> f64, told: &str) {
    let of = |from: usize, to: usize| {
        let each: Vec<f64> = ran.instants().iter().map(|i| exact(i[from], i[to])).collect();
        each.iter().sum::<f64>() / each.len() as f64
    };
    let off = |metric: Metric, exact: f64| (ran.value(metric) / exact - 1.0).abs();
    let gross = off(Metric::EnergyTrapz, of(0, 2));
    let parts = [off(Metric::EnergyPrefill, of(0, 1)), off(Metric::EnergyDecode, of(1, 2))];
    assert!(gross < 0.005 && parts.iter().all(|p| *p < 0.01), "{told}: {gross} {parts:?}");
    assert_eq!(ran.row(Metric::EnergyTrapz, "mean").n, 6);
}

#[test]
fn joules_of_replayed_traces_are_those_of_the_exact_integral() {
    let constant = replayed(&trace(|_| 200.0, None), "0");
    check(&constant, |a, b| 200.0 * (b - a), "constant");
    let ramp = replayed(&trace(|t| 100.0 + 3.0 * t, None), "0");
    check(&ramp, |a, b| 100.0 * (b - a) + 1.5 * (b * b - a * a), "ramp");
    // Half periods of 0.5 s, whole numbers of samples, edges between them.
    let high = |t: f64| ((t / 0.5).floor() as i64) % 2 == 0;
    let square = replayed(&trace(|t| if high(t) { 300.0 } else { 100.0 }, None), "0");
    let until = |t: f64| {
        let whole = (t / 0.5).floor();
        let pairs = (whole / 2.0).floor();
        let rest = t - whole * 0.5;
        pairs * 200.0 + if whole % 2.0 == 0.0 { 300.0 * rest } else { 150.0 + 100.0 * rest }
    };
    check(&square, |a, b| until(b) - until(a), "square");
    let counted = replayed(&trace(|_| 200.0, Some(&|t| 5_000.0 + 200.0 * t)), "0");
    check(&counted, |a, b| 200.0 * (b - a), "counter");
    assert!((counted.value(Metric::EnergyCounter) / 1200.0 - 1.0).abs() < 0.005);
}

#[test]
fn idle_power_is_taken_off_and_tokens_are_counted() {
    let ran = replayed(&trace(|_| 200.0, None), "5");
    assert!((ran.row(Metric::IdlePower, "value").value.unwrap() - 200.0).abs() < 1e-6);
    assert!(ran.value(Metric::EnergyNet).abs() < 1e-6);
    // 40 tokens after the first in 4 s at 200 W; 41 in 6 s with the prefill.
    assert!((ran.value(Metric::JoulesPerToken) - 20.0).abs() < 1e-6);
    assert!((ran.value(Metric::JoulesPerTokenE2e) - 1200.0 / 41.0).abs() < 1e-6);
    assert!((ran.value(Metric::WhPer1kTokens) - 20.0 / 3.6).abs() < 1e-6);
    let net = replayed(&trace(|_| 200.0, None), "0").row(Metric::EnergyNet, "mean");
    assert!(net.value.is_none() && net.missing_reason.contains("no_idle"), "{net:?}");
    let wide = fs::read_to_string(ran.dir.path().join("results/wide_energy.csv")).unwrap();
    assert_eq!(wide.lines().count(), 2, "{wide}");
}

#[test]
fn a_bad_trace_is_told_and_the_run_is_kept() {
    let good = trace(|_| 200.0, None);
    let lines: Vec<&str> = good.lines().collect();
    let without = |skip: std::ops::Range<usize>| {
        let kept = lines.iter().enumerate().filter(|(i, _)| !skip.contains(i)).map(|(_, l)| *l);
        kept.collect::<Vec<_>>().join("\n") + "\n"
    };
    let gap = replayed(&without(80..110), "0");
    let row = gap.row(Metric::EnergyTrapz, "mean");
    assert!(row.missing > 0 && row.missing < 6 && row.n + row.missing == 6, "{row:?}");
    assert!(row.missing_reason.contains("gap_too_long"), "{row:?}");
    let mut swapped = lines.clone();
    swapped.swap(101, 140);
    let back = replayed(&(swapped.join("\n") + "\n"), "0");
    let row = back.row(Metric::EnergyTrapz, "mean");
    assert!(row.missing_reason.contains("time_backwards") && row.n >= 4, "{row:?}");
    let mut twice = lines.clone();
    twice.insert(100, "9.93,900,");
    let twice = replayed(&(twice.join("\n") + "\n"), "0");
    assert!(twice.row(Metric::EnergyTrapz, "mean").missing_reason.contains("duplicate_time"));
    let short = replayed(&without(300..601), "0");
    let row = short.row(Metric::EnergyTrapz, "mean");
    assert!(row.n < 6 && row.missing + row.n == 6 && !row.missing_reason.is_empty(), "{row:?}");
    for ran in [gap, back, twice, short] {
        let latency: Vec<Row> = ran.rows().into_iter().filter(|r| r.metric == "ttft_ms").collect();
        assert!(latency.iter().all(|r| r.verdict == "VALID" && r.n == 6), "{latency:?}");
    }
    let none = replayed("a,b\n1,2\n", "0");
    assert_ne!(none.code, 0);
    assert!(none.err.contains("power_w") && none.err.contains("t_s"), "{}", none.err);
    assert!(!none.dir.path().join("results").exists(), "a meter that is not there leaves no run behind");
}

fn gpu(failures: Vec<Failure>) -> Device {
    Device {
        name: "Stub".into(),
        uuid: "GPU-0".into(),
        power_w: Some(Wave::Constant(250.0)),
        energy: Some(Energy::Integral { period: 0.001, start_j: 1e6, resets: Vec::new() }),
        temp_c: Some(Wave::Constant(40.0)),
        memory_used_bytes: Some(Wave::Constant(f64::from(1 << 30))),
        memory_total_bytes: 8 << 30,
        limit_w: Some(700.0),
        failures,
        ..Device::default()
    }
}

/// A few short answers of the engine beside a GPU of the stub, read 200 times a second.
fn beside_nvml(script: &Script) -> Ran {
    let dir = tempfile::tempdir().unwrap();
    let library = nvml_stub::install(dir.path(), script).unwrap().display().to_string();
    let power =
        ["--power-source", "nvml", "--nvml-library", &library, "--power-poll-hz", "200", "--idle", "0"];
    let run = ["latency", "-m", "dummy:dense-tiny", "-p", "64", "-n", "1000", "-r", "4", "--rounds", "1"];
    ossbench(dir, &[&run[..], &power].concat())
}

#[test]
fn joules_of_a_gpu_through_nvml() {
    let script = Script { devices: vec![gpu(Vec::new())], driver: "580.0".into(), ..Script::default() };
    let ran = beside_nvml(&script);
    // The stub draws 250 W of real time, which a busy machine takes from one of the windows; that windows are exact
    // is shown on recorded traces above.
    for (metric, stat) in [(Metric::AvgPower, "p50"), (Metric::PeakPower, "max")] {
        let watts = ran.row(metric, stat).value.unwrap();
        assert!((watts / 250.0 - 1.0).abs() < 0.02, "{} {watts}", metric.def().key);
    }
    assert_eq!(ran.row(Metric::PowerLimit, "value").value, Some(700.0));
    let rows = ran.rows();
    let device = rows.iter().find(|r| r.metric == "peak_bytes" && r.scope == "gpu_device" && r.stat == "max");
    assert_eq!(device.unwrap().value, Some(f64::from(1 << 30)));
    assert!(rows.iter().any(|r| r.metric == "ape_energy" && r.value.is_some()));
}

// nvmlReturn_t.
const GPU_IS_LOST: u32 = 15;
const LIBRARY_VERSION_MISMATCH: u32 = 18;

#[test]
fn a_gpu_that_disappears_or_talks_nonsense_leaves_the_rest_of_the_run() {
    let lost = Failure { from: 6.0, code: GPU_IS_LOST, ..Failure::default() };
    let wild = Device { power_w: Some(Wave::Constant(4e9)), energy: None, ..gpu(Vec::new()) };
    for (device, reason) in [(gpu(vec![lost]), "source_lost"), (wild, "nonsense")] {
        let script = Script { devices: vec![device], axis: TimeAxis::Readings, ..Script::default() };
        let ran = beside_nvml(&script);
        let row = ran.row(Metric::EnergyTrapz, "mean");
        assert!(row.value.is_none() && row.missing_reason.contains(reason), "{reason}: {row:?}");
        assert!(
            ran.rows().iter().filter(|r| r.metric == "ttft_ms").all(|r| r.verdict == "VALID" && r.n == 4)
        );
    }
    let other = beside_nvml(&Script { init: LIBRARY_VERSION_MISMATCH, ..Script::default() });
    assert_ne!(other.code, 0);
    assert!(other.err.contains("version"), "{}", other.err);
}

#[test]
fn a_machine_without_a_meter_says_so_once() {
    let dir = tempfile::tempdir().unwrap();
    let run = ["latency", "-m", "dummy:dense-tiny", "-p", "16", "-n", "8", "-r", "2", "--rounds", "1"];
    let none = ["--nvml-library", "/no/such/library.so"];
    let ran = ossbench(dir, &[&run[..], &none].concat());
    assert!(ran.err.matches("no power source").count() <= 1, "{}", ran.err);
    if ran.err.contains("no power source") {
        assert!(ran.rows().iter().all(|r| r.unit != "J" && r.unit != "W"), "columns stay empty");
    }
}

#[test]
fn an_accuracy_of_another_schema_is_a_note() {
    let dir = tempfile::tempdir().unwrap();
    let (good, bad) = (dir.path().join("good.json"), dir.path().join("bad.json"));
    fs::write(&good, r#"{"results": {"arc": {"acc,none": 0.5, "acc_stderr,none": 0.01}}}"#).unwrap();
    fs::write(&bad, r#"{"scores": [1, 2]}"#).unwrap();
    let model = |label: &str, file: &Path| {
        let file = file.display();
        format!("[[models]]\nid = \"dummy:dense-tiny\"\nlabel = \"{label}\"\naccuracy = \"{file}\"\n")
    };
    let text = format!(
        "[run]\nname = \"acc\"\nrepeats = 2\nrounds = 1\n{}{}{}[workload]\nprompt_tokens = [16]\noutput_tokens = [8]\n",
        model("good", &good),
        model("bad", &bad),
        model("gone", Path::new("/no/such.json")),
    );
    let study = dir.path().join("acc.toml");
    fs::write(&study, text).unwrap();
    let study = study.display().to_string();
    let ran = ossbench(dir, &["run", &study, "--power-source", "none"]);
    assert!(ran.err.contains("accuracy of bad") && ran.err.contains("/no/such.json"), "{}", ran.err);
    let rows = ran.rows();
    let of = |model: &str| rows.iter().filter(|r| r.model == model && r.metric == "ape_accuracy").count();
    assert_eq!((of("good"), of("bad"), of("gone")), (1, 0, 0));
    assert!(rows.iter().all(|r| r.verdict == "VALID"));
}
