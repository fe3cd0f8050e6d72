//! The search against queues, dead servers and scripted runs.

use super::point::tests::point;
use super::*;
use crate::progress;
use bench_core::target::StopFlag;
use bench_runner::run::RunContext;
use bench_runner::{provenance, targets};
use clap::Parser;
use std::convert::Infallible;

fn spec(rest: &str) -> RunSpec {
    let text = format!(
        "[run]\nname = \"demo\"\n[target]\nkind = \"http\"\n[server]\nbase_url = \"http://localhost:1\"\n\
         [[models]]\nid = \"m\"\n{rest}"
    );
    RunSpec::from_toml("t", &text).unwrap()
}

fn args(more: &[&str]) -> SearchArgs {
    let line = ["ossbench", "search", "x.toml"].iter().chain(more);
    match crate::args::Cli::try_parse_from(line).unwrap().command {
        crate::args::Command::Search(args) => args,
        other => panic!("{other:?}"),
    }
}

/// A queue with capacity 10: a wait above 1 s is a miss; P(wait > 1 s) = exp(-(10 - rate)).
fn queue(level: f64, n: u64) -> Point {
    let slack = (10.0 - level).max(0.01);
    let met = (n as f64 * (1.0 - (-slack).exp())).round() as u64;
    let mut point = point(level, met, n, "VALID", 1e3 / slack);
    point.system_req_s = Some(level.min(10.0));
    point
}

#[test]
fn the_capacity_of_a_queue_and_its_knee_are_found() {
    let bounds = Bounds { over: Over::Rate, min: 0.5, max: 1_000.0, tolerance: 0.02, steps: 20 };
    let mut levels = Vec::new();
    let found = search(&bounds, 0.99, |level| {
        levels.push(level);
        Ok::<_, Infallible>(queue(level, 1_000_000))
    })
    .unwrap();
    // exp(-slack) = 0.01 at slack = ln 100.
    let truth = 10.0 - 100_f64.ln();
    let End::Answer(Answer::Between { pass, fail }) = found.end else { panic!("{:?}", found.end) };
    assert!(pass <= truth && truth < fail && fail / pass <= 1.02, "{pass} {truth} {fail}");
    assert_eq!(found.level(), Some(pass));
    assert_eq!(levels[..5], [0.5, 1.0, 2.0, 4.0, 8.0]);
    assert!(levels.len() <= 11, "{levels:?}");
    let said = table::sentences(&found).join("\n");
    // The greatest power of a queue is at half its capacity.
    let flows: Vec<_> = found.points.iter().filter_map(Point::flow).collect();
    let knee = decide::knee(&flows).unwrap();
    assert!((4.0..6.0).contains(&knee) && said.contains(&format!("knee at rate {knee}:")), "{said}");
}

#[test]
fn a_run_that_may_not_be_believed_ends_the_search() {
    let bounds = Bounds { over: Over::Concurrency, min: 1.0, max: 64.0, tolerance: 0.05, steps: 20 };
    let found = search(&bounds, 0.99, |level| {
        let verdict = if level < 8.0 { "VALID" } else { "INVALID" };
        let mut point = point(level, 100, 100, verdict, 1.0);
        point.reason = "schedule lag".to_owned();
        Ok::<_, Infallible>(point)
    })
    .unwrap();
    assert_eq!(found.end, End::NoClaim { level: 8.0, reason: "schedule lag".to_owned() });
    assert_eq!((found.points.len(), found.level()), (4, None));
}

#[test]
fn a_server_that_is_away_is_no_answer_but_one_that_breaks_under_load_is() {
    let bounds = Bounds { over: Over::Concurrency, min: 1.0, max: 64.0, tolerance: 0.05, steps: 20 };
    let dead = |level| {
        let mut point = point(level, 0, 100, "INVALID", 1.0);
        (point.decision, point.success_rate) = (Decision::Fail, Some(0.0));
        Ok::<_, Infallible>(point)
    };
    let away = search(&bounds, 0.99, dead).unwrap();
    assert!(
        matches!(&away.end, End::NoClaim { level: 1.0, reason } if reason.contains("no request has succeeded"))
    );
    let breaks = search(&bounds, 0.99, |level| {
        if level > 5.0 { dead(level) } else { Ok(point(level, 100, 100, "VALID", 1.0)) }
    });
    assert_eq!(breaks.unwrap().end, End::Answer(Answer::Between { pass: 5.0, fail: 6.0 }));
}

#[test]
fn an_error_of_a_level_ends_the_search_with_it() {
    let bounds = Bounds { over: Over::Concurrency, min: 1.0, max: 64.0, tolerance: 0.05, steps: 20 };
    let stopped = search(&bounds, 0.99, |_| Err("stopped"));
    assert_eq!(stopped.unwrap_err(), "stopped");
}

#[test]
fn each_level_is_the_study_with_another_load() {
    let closed = spec("[load]\nconcurrency = [4, 2]\nrequests = 50\n");
    let plan = at(&closed, Over::Concurrency, 16.0).resolve().unwrap();
    assert_eq!((plan.name.as_str(), plan.cells[0].id.as_str()), ("demo-search-c16", "m_p128_n32_c16"));
    assert_eq!((plan.cells.len(), plan.cells[0].requests()), (1, 50));
    assert_eq!(study_of("demo-search-c16-20250101-abc"), "demo-search-c16");
    assert_ne!(plan.hash(), at(&closed, Over::Concurrency, 17.0).resolve().unwrap().hash());
    assert!(ignored(&closed, Over::Concurrency).is_empty());

    let open = spec("[load]\narrival = \"gamma\"\nburstiness = 2.0\nrate = [1.5]\nduration_s = 20.0\n");
    let plan = at(&open, Over::Rate, 2.828).resolve().unwrap();
    assert_eq!((plan.name.as_str(), plan.cells[0].id.as_str()), ("demo-search-r2.828", "m_p128_n32_r2.828"));
    assert_eq!((plan.cells[0].load.key(), plan.cells[0].requests()), ("gamma(2)".to_owned(), 57));
    assert_eq!(ignored(&open, Over::Concurrency), ["load.rate", "load.burstiness", "load.duration_s"]);
    let closed = at(&open, Over::Concurrency, 8.0).resolve().unwrap();
    assert_eq!(closed.cells[0].load.key(), "closed");
    assert_eq!(at(&spec(""), Over::Rate, 3.0).resolve().unwrap().cells[0].load.key(), "poisson");
}

#[test]
fn what_is_raised_and_from_where_comes_from_the_study_unless_it_is_said() {
    let closed = spec("[load]\nconcurrency = [8, 4]\n");
    let open = spec("[load]\narrival = \"poisson\"\nrate = [2.5]\n");
    assert_eq!(usual(&spec("")).unwrap(), Over::Concurrency);
    assert_eq!((usual(&closed).unwrap(), usual(&open).unwrap()), (Over::Concurrency, Over::Rate));
    let burst = usual(&spec("[load]\narrival = \"burst\"\n")).unwrap_err();
    assert!(burst.exit_code() == 2 && burst.to_string().contains("--over"), "{burst}");

    let found = bounds(&args(&[]), &closed, Over::Concurrency).unwrap();
    assert_eq!((found.min, found.max, found.tolerance, found.steps), (4.0, 4_096.0, 0.05, 20));
    let told =
        args(&["--min", "2", "--max", "9", "--tolerance", "1%", "--steps", "3", "--attainment", "95%"]);
    let found = bounds(&told, &open, Over::Rate).unwrap();
    assert_eq!((found.min, found.max, found.tolerance, found.steps), (2.0, 9.0, 0.01, 3));
    assert_eq!(told.attainment, 0.95);
    for wrong in [["--min", "0"], ["--min", "1.5"], ["--max", "3"], ["--max", "inf"]] {
        let error = bounds(&args(&wrong), &closed, Over::Concurrency).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{wrong:?}: {error}");
    }
}

#[test]
fn a_study_without_limits_or_with_several_cells_is_refused() {
    let resolved = |rest: &str| at(&spec(rest), Over::Concurrency, 1.0).resolve().unwrap();
    assert!(check(&resolved("[slo]\nttft_ms = 10.0\n")).is_ok());
    let error = check(&resolved("")).unwrap_err().to_string();
    assert!(error.contains("[slo]"), "{error}");
    let mut whole = resolved("[slo]\nttft_ms = 10.0\n");
    whole.server.as_mut().unwrap().stream = false;
    assert!(check(&whole).unwrap_err().to_string().contains("slo.e2el_ms"));
    let error = check(&resolved("[workload]\noutput_tokens = [1, 2]\n[slo]\nttft_ms = 10.0\n")).unwrap_err();
    assert!(error.exit_code() == 2 && error.to_string().contains("has 2"), "{error}");
}

/// A run with scripted times: 50 ms to the first token, 10 ms between tokens.
fn mock(results: &Path, stop: &StopFlag) -> (Plan, PathBuf) {
    let text = "[run]\nname = \"demo\"\nrepeats = 4\n[target]\nkind = \"mock\"\n[[models]]\nid = \"m\"\n\
        [workload]\nprompt_tokens = [8]\noutput_tokens = [4]\n[slo]\nttft_ms = 50.0\ntpot_ms = 10.0\n";
    let plan = RunSpec::from_toml("t", text).unwrap().resolve().unwrap();
    let gathered = provenance::gather(&plan, &[]);
    let mut folder = RunFolder::create(results, text, &plan, &gathered).unwrap();
    let mut opened = targets::open(&plan, targets::Secrets::default()).unwrap();
    let mut err = Vec::new();
    let ran = progress::watch(Mode::Plain, &plan, &mut err, stop, |observer| {
        let (target, clock) = (opened.target.as_mut(), &opened.clock);
        let probes = bench_core::probe::Probes::default();
        bench_runner::run::run(RunContext {
            plan: &plan,
            folder: &mut folder,
            target,
            clock,
            stop,
            observer,
            probes,
        })
    });
    ran.unwrap().unwrap();
    (plan, folder.path().to_owned())
}

#[test]
fn a_finished_run_is_a_point_and_is_found_again() {
    let results = tempfile::tempdir().unwrap();
    let cut = StopFlag::new();
    cut.stop();
    let (plan, path) = mock(results.path(), &cut);
    assert_eq!(known_run(results.path(), &plan).unwrap(), Some((path, false)));

    let (plan, path) = mock(results.path(), &StopFlag::new());
    let slo = check(&plan).unwrap();
    let point = point_of(&path, 1.0, &slo, 0.99).unwrap();
    assert_eq!((point.attainment.met, point.attainment.started), (4, 4));
    assert_eq!((point.ttft_p50_ms, point.tpot_mean_ms, point.ttft_p99_ms), (Some(50.0), Some(10.0), None));
    assert_eq!(point.latency_mean_ms, Some(80.0));
    let tighter = Slo { ttft_ms: Some(49.0), ..slo };
    assert_eq!(point_of(&path, 1.0, &tighter, 0.99).unwrap().attainment.met, 0);

    let mut other = plan.clone();
    other.seed += 1;
    assert_eq!(known_run(results.path(), &other).unwrap(), None);
    let known = known_run(results.path(), &plan).unwrap().map(|(_, complete)| complete);
    assert!(known.is_some());
}

#[test]
fn the_csv_is_replaced_whole() {
    let dir = tempfile::tempdir().unwrap();
    let csv = dir.path().join("search_demo.csv");
    for text in ["a\n", "b\n"] {
        write_whole(&csv, text).unwrap();
        assert_eq!(fs::read_to_string(&csv).unwrap(), text);
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    let error = write_whole(&dir.path().join("none/x.csv"), "").unwrap_err().to_string();
    assert!(error.contains("x.csv"), "{error}");
}
