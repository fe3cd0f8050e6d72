//! What a plan says of power and of the roofline, resolved from `[energy]` and `[ape]`.

use super::value;
use crate::Error;
use crate::spec::{RunSpec, TargetKind};
use serde::{Deserialize, Serialize};

/// Where power comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", content = "path")]
pub enum PowerSource {
    /// Every source that this machine has; none is no error.
    Auto,
    None,
    /// NVIDIA GPUs.
    Nvml,
    /// CPU packages and DRAM, by the powercap files of the kernel.
    Rapl,
    /// A recorded trace.
    File(String),
}

impl PowerSource {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "auto" => Self::Auto,
            "none" => Self::None,
            "nvml" => Self::Nvml,
            "rapl" => Self::Rapl,
            other => Self::File(other.strip_prefix("file:").filter(|path| !path.is_empty())?.to_owned()),
        })
    }
}

/// How power is read, every default explicit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EnergyPlan {
    pub source: PowerSource,
    pub poll_hz: f64,
    pub idle_s: f64,
    pub cooldown_s: f64,
    pub cooldown_above_c: f64,
    /// GPUs by index; `None`: all.
    pub gpus: Option<Vec<u32>>,
    /// Path of the NVML library; `None`: where the system has it.
    pub nvml_library: Option<String>,
}

pub(super) fn resolve(spec: &RunSpec, kind: TargetKind) -> Result<EnergyPlan, Error> {
    let e = spec.energy.clone().unwrap_or_default();
    let usual = if matches!(kind, TargetKind::Engine | TargetKind::Http) { "auto" } else { "none" };
    let written = e.source.as_deref().unwrap_or(usual);
    let source = PowerSource::parse(written).ok_or_else(|| {
        value("energy.source", written, "auto, none, nvml, rapl, or file:PATH of a recorded trace".to_owned())
    })?;
    let poll_hz = e.poll_hz.unwrap_or(10.0);
    if !(0.1..=1000.0).contains(&poll_hz) {
        return Err(value("energy.poll_hz", poll_hz, "0.1 to 1000 readings per second".to_owned()));
    }
    let not_negative = |key, number: f64| {
        let expected = "a number of at least 0".to_owned();
        if number.is_finite() && number >= 0.0 { Ok(number) } else { Err(value(key, number, expected)) }
    };
    Ok(EnergyPlan {
        source,
        poll_hz,
        idle_s: not_negative("energy.idle_s", e.idle_s.unwrap_or(10.0))?,
        cooldown_s: not_negative("energy.cooldown_s", e.cooldown_s.unwrap_or(0.0))?,
        cooldown_above_c: not_negative("energy.cooldown_above_c", e.cooldown_above_c.unwrap_or(5.0))?,
        gpus: e.gpus,
        nvml_library: e.nvml_library,
    })
}

/// Bytes per second as given in `[ape]`, `None`: to be measured.
pub(super) fn bandwidth(spec: &RunSpec) -> Result<Option<f64>, Error> {
    let Some(gb_s) = spec.ape.as_ref().and_then(|a| a.bandwidth_gb_s) else { return Ok(None) };
    if gb_s.is_finite() && gb_s > 0.0 {
        Ok(Some(gb_s * 1e9))
    } else {
        Err(value("ape.bandwidth_gb_s", gb_s, "10^9 bytes per second, above 0".to_owned()))
    }
}
