//! A recorded power trace in place of a meter: CSV rows on the run's clock or on the wall clock.
//!
//! Nothing is polled: a trial gets the rows between its beginning and its end and one neighbour on each side,
//! in the order of the file. Rows that are out of order or twice there stay, for the analysis to judge.

mod columns;
mod rows;

use super::notes;
use crate::Error;
use bench_core::clock::Clock;
use bench_core::power::{DeviceTrace, PowerDevice, PowerTrace};
use bench_core::probe::{Cooling, PowerProbe, Watch};
use bench_core::target::StopFlag;
use bench_core::unit::Nanos;
use rows::{Axis, Recording, Track};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How often a stop flag is looked at.
const GLANCE: Duration = Duration::from_millis(50);

pub(super) struct FileProbe {
    path: PathBuf,
    recording: Recording,
    hz: f64,
    running: Option<Running>,
}

struct Running {
    clock: Arc<dyn Clock>,
    begin: Nanos,
    zero_unix_ns: i128,
}

impl Running {
    fn new(watch: &Watch) -> Self {
        let zero_unix_ns = i128::from(watch.zero_unix_ms) * 1_000_000;
        Self { clock: Arc::clone(&watch.clock), begin: watch.clock.now(), zero_unix_ns }
    }
}

impl FileProbe {
    pub(super) fn open(path: &Path, hz: f64) -> Result<Self, Error> {
        let recording = load(path).map_err(|reason| Error::Trace { path: path.to_owned(), reason })?;
        Ok(Self { path: path.to_owned(), recording, hz, running: None })
    }

    /// What is wrong with the rows.
    pub(super) fn notes(&self) -> &[String] {
        &self.recording.notes
    }

    /// A meter may still be writing what it stamps with the wall clock.
    fn reload(&mut self) -> Option<String> {
        if self.recording.axis == Axis::Run {
            return None;
        }
        match load(&self.path) {
            Ok(recording) => {
                self.recording = recording;
                None
            }
            Err(reason) => {
                Some(format!("power trace \"{}\" as it was before: {reason}", self.path.display()))
            }
        }
    }

    fn cut(&mut self, running: &Running, end: Nanos) -> PowerTrace {
        let mut said: Vec<String> = self.reload().into_iter().collect();
        said.extend(self.recording.notes.iter().cloned());
        let zero_ns = match self.recording.axis {
            Axis::Run => 0,
            Axis::Unix => running.zero_unix_ns,
        };
        let mut devices = Vec::new();
        for track in &self.recording.tracks {
            let trace = cut_track(track, running.begin, end, zero_ns);
            if !trace.samples.iter().any(|sample| (running.begin..=end).contains(&sample.at)) {
                said.push(format!(
                    "{}: no row of the power trace lies within {:.3} to {:.3} s of the run's clock",
                    notes::name(&trace.device),
                    running.begin.as_secs(),
                    end.as_secs()
                ));
            }
            devices.push(trace);
        }
        PowerTrace { requested_hz: self.hz, begin: running.begin, end, cooled_s: None, devices, notes: said }
    }
}

fn load(path: &Path) -> Result<Recording, String> {
    let text = std::fs::read(path).map_err(|error| error.to_string())?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    rows::parse(&text, &name)
}

/// The rows within `begin..=end`, and the nearest before and after; such as lie before the clock's zero have
/// no instant on it.
fn cut_track(track: &Track, begin: Nanos, end: Nanos, zero_ns: i128) -> DeviceTrace {
    let on_clock: Vec<Option<Nanos>> =
        track.rows.iter().map(|row| u64::try_from(row.at_ns - zero_ns).ok().map(Nanos)).collect();
    let nearest_before = on_clock.iter().flatten().copied().filter(|at| *at < begin).max();
    let nearest_after = on_clock.iter().flatten().copied().filter(|at| *at > end).min();
    // Of neighbours that share an instant, the one next to the trial.
    let before = nearest_before.and_then(|at| on_clock.iter().rposition(|row| *row == Some(at)));
    let after = nearest_after.and_then(|at| on_clock.iter().position(|row| *row == Some(at)));
    let samples = track.rows.iter().zip(&on_clock).enumerate().filter_map(|(i, (row, at))| {
        let at = (*at)?;
        let kept = (begin..=end).contains(&at) || Some(i) == before || Some(i) == after;
        let mut sample = row.sample.clone();
        sample.at = at;
        kept.then_some(sample)
    });
    DeviceTrace { device: track.device.clone(), samples: samples.collect() }
}

impl PowerProbe for FileProbe {
    fn devices(&self) -> Vec<PowerDevice> {
        self.recording.tracks.iter().map(|track| track.device.clone()).collect()
    }

    fn begin(&mut self, watch: &Watch) {
        self.running = Some(Running::new(watch));
    }

    fn end(&mut self) -> PowerTrace {
        match self.running.take() {
            Some(running) => {
                let end = running.clock.now();
                self.cut(&running, end)
            }
            None => PowerTrace { requested_hz: self.hz, ..PowerTrace::default() },
        }
    }

    /// The rows of the next `duration`; waits for them to pass, unless the clock stands still, as a scripted
    /// one does, and would stand so for ever.
    fn idle(&mut self, watch: &Watch, duration: Duration, stop: &StopFlag) -> PowerTrace {
        let running = Running::new(watch);
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX / 2);
        let end = running.begin + Nanos(nanos);
        let mut now = running.begin;
        while now < end && !stop.is_set() {
            std::thread::sleep(GLANCE.min(Duration::from_nanos(end.0 - now.0)));
            let later = watch.clock.now();
            if later == now {
                break;
            }
            now = later;
        }
        let end = if stop.is_set() { now.min(end) } else { end };
        self.cut(&running, end)
    }

    fn remember_idle(&mut self, _idle: &PowerTrace) {}

    /// What was recorded does not cool down.
    fn cool(&mut self, _cooling: &Cooling, _stop: &StopFlag) -> (Duration, bool) {
        (Duration::ZERO, true)
    }
}
