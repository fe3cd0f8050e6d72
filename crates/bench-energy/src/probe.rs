//! Meters: opening those that a plan asks for and this machine has, behind the one `PowerProbe` of the run.
//!
//! Nothing is read before the run begins, but for what tells whether a meter works. No source at all is no
//! error unless one was asked for by name.

mod file;
mod notes;
mod nvml;
mod pace;
mod plausible;
mod rapl;
mod sampler;
mod source;
#[cfg(test)]
mod tests;

use crate::Error;
use bench_core::plan::{EnergyPlan, PowerSource};
use bench_core::power::PowerDevice;
use bench_core::probe::PowerProbe;
use nvml::Unusable;
use sampler::Sampler;
use source::Source;
use std::path::Path;

/// What `open` found.
pub struct Opened {
    /// `None`: nothing is watched.
    pub probe: Option<Box<dyn PowerProbe>>,
    /// For the user: what is watched, or why nothing is; what was left out.
    pub notes: Vec<String>,
}

/// Opens the meters of `plan`. Fails where one that was asked for by name cannot be read.
pub fn open(plan: &EnergyPlan) -> Result<Opened, Error> {
    open_below(plan, Path::new(rapl::ROOT))
}

/// The same with the powercap tree at another place.
pub fn open_below(plan: &EnergyPlan, powercap: &Path) -> Result<Opened, Error> {
    let library = plan.nvml_library.as_deref();
    let gpus = plan.gpus.as_deref();
    match &plan.source {
        PowerSource::None => Ok(Opened { probe: None, notes: Vec::new() }),
        PowerSource::File(path) => {
            let probe = file::FileProbe::open(Path::new(path), plan.poll_hz)?;
            let notes = probe.notes().to_vec();
            Ok(opened(Box::new(probe), notes))
        }
        PowerSource::Nvml => {
            let (source, notes) = nvml::open(library, gpus).map_err(Unusable::error)?;
            Ok(polled(vec![Box::new(source)], notes, plan.poll_hz))
        }
        PowerSource::Rapl => {
            let (source, notes) = rapl::open(powercap)?;
            Ok(polled(vec![Box::new(source)], notes, plan.poll_hz))
        }
        PowerSource::Auto => auto(plan, powercap),
    }
}

/// GPUs and CPU packages, whichever are there.
fn auto(plan: &EnergyPlan, powercap: &Path) -> Result<Opened, Error> {
    let mut sources: Vec<Box<dyn Source>> = Vec::new();
    // What is wrong with a meter that is there, and what is merely not there.
    let (mut notes, mut absent) = (Vec::new(), Vec::new());
    match nvml::open(plan.nvml_library.as_deref(), plan.gpus.as_deref()) {
        Ok((source, said)) => {
            sources.push(Box::new(source));
            notes.extend(said);
        }
        Err(Unusable::Broken(error @ Error::Gpu { .. })) => return Err(error),
        Err(Unusable::Broken(error)) => notes.push(error.to_string()),
        Err(Unusable::Absent(error)) => absent.push(error.to_string()),
    }
    match rapl::open(powercap) {
        Ok((source, said)) => {
            sources.push(Box::new(source));
            notes.extend(said);
        }
        Err(error) => absent.push(error.to_string()),
    }
    if sources.is_empty() {
        notes.extend(absent);
        let note =
            format!("no power source on this machine; the energy columns stay empty ({})", notes.join("; "));
        return Ok(Opened { probe: None, notes: vec![note] });
    }
    Ok(polled(sources, notes, plan.poll_hz))
}

fn polled(sources: Vec<Box<dyn Source>>, notes: Vec<String>, hz: f64) -> Opened {
    opened(Box::new(Sampler::new(sources, hz)), notes)
}

fn opened(probe: Box<dyn PowerProbe>, mut notes: Vec<String>) -> Opened {
    let watched: Vec<String> = probe.devices().iter().map(told).collect();
    notes.insert(0, format!("power of {}", watched.join(", ")));
    Opened { probe: Some(probe), notes }
}

fn told(device: &PowerDevice) -> String {
    format!("{} by {}", notes::name(device), device.source)
}
