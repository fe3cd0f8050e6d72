//! What watches the machine beside a run: opened from the plan, with a word on what is there and what is not.
//!
//! Also the two things that are measured or kept once, before the first trial: bandwidth and files of accuracy.

use super::bandwidth;
use crate::{CliError, Io};
use bench_core::plan::{EnergyPlan, Plan, PowerSource};
use bench_core::probe::PowerProbe;
use bench_core::spec::TargetKind;
use bench_engine::heap;
use bench_memory::{HeapCounters, SystemProbe};
use bench_runner::store::RunFolder;
use std::net::{IpAddr, ToSocketAddrs};

/// Reads the memory of this process.
pub(crate) fn memory() -> SystemProbe {
    let counted = heap::installed().then_some(HeapCounters {
        live_bytes: heap::live_bytes,
        peak_bytes: heap::peak_bytes,
        reset_peak: heap::reset_peak,
    });
    SystemProbe::new(counted)
}

/// The power meters of one command, which may run several studies: opened, and told of, once.
#[derive(Default)]
pub(crate) struct Meters {
    opened: Option<(EnergyPlan, Option<Box<dyn PowerProbe>>)>,
}

impl Meters {
    /// Opens what `plan` wants, unless the study before wanted the same.
    pub(crate) fn open(&mut self, plan: &Plan, io: &mut Io<'_>) -> Result<(), CliError> {
        if self.opened.as_ref().is_none_or(|(energy, _)| *energy != plan.energy) {
            self.opened = Some((plan.energy.clone(), power(plan, io)?));
        }
        Ok(())
    }

    pub(crate) fn probe(&mut self) -> Option<&mut dyn PowerProbe> {
        let (_, probe) = self.opened.as_mut()?;
        probe.as_deref_mut().map(|p| p as &mut dyn PowerProbe)
    }
}

/// Opens the meters of the plan; `None` where there are none, or where they would be another machine's.
fn power(plan: &Plan, io: &mut Io<'_>) -> Result<Option<Box<dyn PowerProbe>>, CliError> {
    if plan.energy.source == PowerSource::Auto
        && let Some(url) = elsewhere(plan)
    {
        writeln!(
            io.err,
            "note: {url} is on another machine, whose power cannot be read here: the energy columns stay empty"
        )?;
        return Ok(None);
    }
    let opened = bench_energy::open(&plan.energy)?;
    for note in &opened.notes {
        writeln!(io.err, "note: {note}")?;
    }
    Ok(opened.probe)
}

/// The server of the plan that is not on this machine, if any.
fn elsewhere(plan: &Plan) -> Option<&str> {
    let server = plan.server.as_ref()?;
    let urls = plan.models.iter().filter_map(|m| m.base_url.as_deref()).chain(server.base_url.as_deref());
    urls.into_iter().find(|url| !is_local(url))
}

/// Whether the host of `url` is a loopback address.
fn is_local(url: &str) -> bool {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((v6, _)) => v6,
        None => authority.rsplit_once(':').map_or(authority, |(host, _)| host),
    };
    match host.parse::<IpAddr>() {
        Ok(address) => address.is_loopback(),
        // A name is what it resolves to; one that does not resolve is not here.
        Err(_) => (host, 0).to_socket_addrs().is_ok_and(|mut found| found.all(|a| a.ip().is_loopback())),
    }
}

/// Measures the bandwidth that the roofline needs, once per run, and keeps the files of accuracy. What cannot be had
/// is said, and the run goes on without it.
pub(crate) fn before(plan: &Plan, folder: &RunFolder, io: &mut Io<'_>) -> Result<(), CliError> {
    if plan.target.kind == TargetKind::Engine
        && plan.bandwidth_bytes_s.is_none()
        && folder.bandwidth()?.is_none()
    {
        let threads = plan.target.threads.filter(|_| plan.target.device == "cpu");
        match bandwidth::measure(&plan.target.device, threads) {
            Ok(measured) => folder.record_bandwidth(&measured)?,
            Err(error) => writeln!(io.err, "note: no roofline: {error}")?,
        }
    }
    for model in &plan.models {
        let Some(path) = &model.accuracy else { continue };
        if folder.accuracy(&model.label)?.is_some() {
            continue;
        }
        match std::fs::read(path) {
            Ok(bytes) => folder.record_accuracy(&model.label, &bytes)?,
            Err(e) => writeln!(
                io.err,
                "note: cannot read {path}, the accuracy of {}: {e}; its rows stay empty",
                model.label
            )?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::is_local;

    #[test]
    fn only_loopback_is_this_machine() {
        for url in ["http://127.0.0.1:8000/v1", "http://[::1]:8000", "127.0.0.1:80", "http://127.9.9.9"] {
            assert!(is_local(url), "{url}");
        }
        for url in ["http://10.0.0.1:8000", "https://192.0.2.7/v1?x=127.0.0.1", "http://[2001:db8::1]:80/"] {
            assert!(!is_local(url), "{url}");
        }
    }
}
