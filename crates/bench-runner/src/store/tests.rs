use super::*;
use bench_core::event::{Event, EventKind};
use bench_core::spec::RunSpec;
use bench_core::trace::RequestTrace;
use bench_core::unit::Nanos;
use std::sync::atomic::{AtomicUsize, Ordering};

const STUDY: &str =
    "[run]\nname = \"t\"\nrepeats = 2\n[target]\nkind = \"mock\"\n[[models]]\nid = \"dummy:a\"\n";

fn plan() -> Plan {
    RunSpec::from_toml("t", STUDY).unwrap().resolve().unwrap()
}

fn folder(results: &Path) -> RunFolder {
    let plan = plan();
    RunFolder::create(results, STUDY, &plan, &crate::provenance::gather(&plan, &[])).unwrap()
}

fn header(trial: &Trial) -> TrialHeader {
    TrialHeader {
        schema_version: bench_core::SCHEMA_VERSION,
        trial: trial.index,
        cell: trial.cell.clone(),
        round: trial.round,
        planned_requests: 1,
        started_at_unix_ms: 7,
    }
}

fn request(events: usize) -> RequestTrace {
    let events = (0..events).map(|i| Event { at: Nanos(i as u64), kind: EventKind::EmptyChunk }).collect();
    RequestTrace {
        repeat: 0,
        slot: 0,
        prompt_hash: "ab".to_owned(),
        kv_allocated_bytes: Some(5),
        asked: None,
        server: None,
        events,
    }
}

fn write(folder: &RunFolder, number: usize) -> Result<PathBuf> {
    let trial = &folder.plan().trials[number];
    let mut writer = folder.begin_trial(trial, &header(trial))?;
    writer.warmup(&request(1))?;
    writer.request(&request(3_000))?;
    writer.finish(true)
}

#[test]
fn what_is_written_is_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let folder = folder(dir.path());
    let path = write(&folder, 0).unwrap();
    assert!(path.starts_with(dir.path().join("raw").join(folder.run_id()).join("cells")));
    let read = RunFolder::open(folder.path()).unwrap().read_trials().unwrap();
    let [trace] = read.as_slice() else { panic!("one trial expected, found {}", read.len()) };
    assert!(trace.complete && trace.started_at_unix_ms == 7);
    assert_eq!((&trace.warmup, &trace.requests), (&vec![request(1)], &vec![request(3_000)]));
    assert_eq!(folder.spec_toml().unwrap(), STUDY);
    assert_eq!(list_runs(dir.path()).unwrap(), [folder.path().to_owned()]);
    assert!(matches!(write(&folder, 0), Err(Error::Finished { .. })));
    assert_eq!(list_runs(&dir.path().join("none")).unwrap(), Vec::<PathBuf>::new());
}

#[test]
fn two_runs_of_one_second_have_their_own_folders() {
    let dir = tempfile::tempdir().unwrap();
    let provenance = crate::provenance::gather(&plan(), &[]);
    let make = || RunFolder::create(dir.path(), STUDY, &plan(), &provenance).unwrap();
    let (a, b) = (make(), make());
    assert_eq!(b.run_id(), format!("{}-2", a.run_id()));
    assert_eq!(RunFolder::open(b.path()).unwrap().run_id(), b.run_id());
    assert_eq!(list_runs(dir.path()).unwrap().len(), 2);
}

#[test]
fn an_unwritable_place_is_named_before_anything_is_measured() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("results");
    fs::write(&file, "a file, not a folder").unwrap();
    let plan = plan();
    let made = RunFolder::create(&file, STUDY, &plan, &crate::provenance::gather(&plan, &[]));
    let error = made.err().unwrap().to_string();
    assert!(error.starts_with(&format!("cannot create a run folder at {}", file.display())), "{error}");
    assert!(error.contains("nothing was measured"), "{error}");
}

/// Takes this many bytes, then says that the disk is full.
static QUOTA: AtomicUsize = AtomicUsize::new(0);

struct SmallDisk(File);

impl Write for SmallDisk {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(QUOTA.load(Ordering::SeqCst));
        if taken == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        QUOTA.fetch_sub(taken, Ordering::SeqCst);
        self.0.write(&bytes[..taken])
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Medium for SmallDisk {
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_full_disk_keeps_finished_trials_and_says_how_to_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let folder = folder(dir.path()).with_opener(|path| Ok(Box::new(SmallDisk(File::create(path)?))));
    QUOTA.store(1 << 20, Ordering::SeqCst);
    let first = write(&folder, 0).unwrap();
    let bytes = fs::read(&first).unwrap();
    QUOTA.store(bytes.len() / 2, Ordering::SeqCst);
    let error = write(&folder, 1).unwrap_err().to_string();
    for part in ["cannot write", "round-001", "finished trials are kept", "free some space", "--resume"] {
        assert!(error.contains(part), "{part} in {error}");
    }
    assert_eq!(fs::read(&first).unwrap(), bytes);
    let left = entries(first.parent().unwrap()).unwrap();
    assert_eq!(left, [first], "the half-written file is gone");
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_device_is_an_error_at_the_latest_when_the_trial_ends() {
    let dir = tempfile::tempdir().unwrap();
    let folder =
        folder(dir.path()).with_opener(|_| Ok(Box::new(File::options().write(true).open("/dev/full")?)));
    let error = write(&folder, 0).unwrap_err();
    assert!(
        matches!(&error, Error::Write { source, .. } if source.kind() == io::ErrorKind::StorageFull),
        "{error}"
    );
    assert_eq!(folder.status(&folder.plan().trials[0]).unwrap(), TrialStatus::Missing);
}

#[test]
fn a_folder_opened_for_reading_takes_no_trial() {
    let dir = tempfile::tempdir().unwrap();
    let reader = RunFolder::open(folder(dir.path()).path()).unwrap();
    assert!(matches!(write(&reader, 0), Err(Error::ReadOnly { .. })));
}

#[test]
fn damage_is_found_with_file_and_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(&folder(dir.path()), 0).unwrap();
    let whole = fs::read_to_string(&path).unwrap();
    let lines: Vec<_> = whole.lines().collect();
    let version = format!("\"schema_version\":{}", bench_core::SCHEMA_VERSION);
    let cases = [
        (whole[..whole.len() - 1].replace("\"at\":7,", "\"at\":8,"), 4, "edited"),
        (whole.replacen("\"at\":7,", "\"at\":x,", 1), 3, "cut or edited"),
        (whole[..whole.len() / 2].to_owned(), 3, "cut or edited"),
        (format!("{}\n{}\n{}\n", lines[0], lines[1], lines[2]), 3, "without its footer"),
        (format!("{}\n{}\n{}\n", lines[0], lines[1], lines[3]), 3, "edited"),
        (format!("{}\n{}\n", lines[1], lines[2]), 1, "header"),
        (format!("{whole}{}\n", lines[1]), 5, "after the footer"),
        (whole.replacen(&version, "\"schema_version\":99", 1), 1, "schema version 99"),
        (String::new(), 0, "without its footer"),
    ];
    for (text, line, problem) in cases {
        fs::write(&path, text).unwrap();
        let error = read_trial(&path).unwrap_err().to_string();
        let expected = format!("{}, line {line}: ", path.display());
        assert!(error.starts_with(&expected) && error.contains(problem), "{problem}: {error}");
    }
}

/// Paths that are not as the run's sums say, each with how.
fn wrong(folder: &RunFolder) -> Vec<SumFinding> {
    check_sums(folder.path()).unwrap().unwrap().findings
}

fn go_on(folder: RunFolder) -> RunFolder {
    let path = folder.path().to_owned();
    drop(folder);
    RunFolder::resume(&path, &plan(), &crate::provenance::gather(&plan(), &[])).unwrap()
}

#[test]
fn every_file_has_its_sum_as_soon_as_it_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let mut folder = folder(dir.path());
    assert_eq!(check_sums(folder.path()).unwrap().unwrap().files, 3, "spec, plan, provenance");
    assert_eq!(wrong(&folder), []);
    write(&folder, 0).unwrap();
    assert_eq!(wrong(&folder), [], "a trial's sum is made while it is written");
    folder.record_accuracy("a", b"{}").unwrap();
    folder.write_beside(&folder.plan().trials[0], "engine.log", b"text").unwrap();
    folder.provenance.command.push("changed".to_owned());
    folder.write_provenance().unwrap();
    folder.record_idle(&PowerTrace::default()).unwrap();
    assert_eq!(wrong(&folder), []);
    assert_eq!(check_sums(folder.path()).unwrap().unwrap().files, 7);

    let path = folder.path().join(IDLE);
    fs::write(&path, "{}").unwrap();
    fs::remove_file(folder.path().join(SPEC)).unwrap();
    fs::write(folder.path().join("new"), "").unwrap();
    let names: Vec<_> = wrong(&folder).iter().map(|f| format!("{f:?}")).collect();
    let [changed, unlisted, missing] = names.as_slice() else { panic!("{names:?}") };
    assert!(changed.starts_with("Changed { path: \"idle.json\""), "{changed}");
    assert_eq!(unlisted, "Unlisted { path: \"new\" }");
    assert_eq!(missing, "Missing { path: \"spec.toml\" }");
}

#[test]
fn a_trial_that_a_killed_process_did_not_list_is_listed_when_the_run_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let folder = folder(dir.path());
    let before = fs::read(folder.path().join(sums::SUMS)).unwrap();
    write(&folder, 0).unwrap();
    fs::write(folder.path().join(sums::SUMS), before).unwrap();
    assert!(matches!(wrong(&folder).as_slice(), [SumFinding::Unlisted { .. }]));
    assert_eq!(wrong(&go_on(folder)), []);
}

#[test]
fn a_part_that_is_kept_takes_its_sum_along() {
    let dir = tempfile::tempdir().unwrap();
    let folder = folder(dir.path());
    let trial = folder.plan().trials[0].clone();
    let part = folder.begin_trial(&trial, &header(&trial)).unwrap().finish(false).unwrap();
    let after_part = fs::read(folder.path().join(sums::SUMS)).unwrap();
    write(&folder, 0).unwrap();
    assert_eq!(wrong(&folder), []);
    let listed = fs::read_to_string(folder.path().join(sums::SUMS)).unwrap();
    assert!(listed.contains("round-000.partial-0.jsonl"), "{listed}");

    // Killed after both renames, before the list was written.
    fs::write(folder.path().join(sums::SUMS), &after_part).unwrap();
    let folder = go_on(folder);
    assert_eq!(wrong(&folder), []);
    // Killed between the renames.
    fs::write(folder.path().join(sums::SUMS), &after_part).unwrap();
    fs::remove_file(&part).unwrap();
    let folder = go_on(folder);
    assert_eq!(wrong(&folder), []);
    write(&folder, 0).unwrap();
    assert_eq!(wrong(&folder), []);
}

#[test]
fn going_on_does_not_hide_that_a_listed_file_was_changed() {
    let dir = tempfile::tempdir().unwrap();
    let folder = folder(dir.path());
    let path = write(&folder, 0).unwrap();
    fs::write(&path, fs::read_to_string(&path).unwrap().replace("\"ab\"", "\"ac\"")).unwrap();
    assert!(matches!(wrong(&go_on(folder)).as_slice(), [SumFinding::Changed { .. }]));
}

#[test]
fn a_run_without_sums_gets_them_when_it_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let folder = folder(dir.path());
    write(&folder, 0).unwrap();
    fs::remove_file(folder.path().join(sums::SUMS)).unwrap();
    assert_eq!(check_sums(folder.path()).unwrap(), None);
    let folder = go_on(folder);
    assert!(folder.notes().iter().any(|note| note.contains(sums::SUMS)), "{:?}", folder.notes());
    assert_eq!(wrong(&folder), []);
}
