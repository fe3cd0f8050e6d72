//! The arguments that say how power is read, for every command that runs a study.

use bench_core::spec::{EnergyTable, RunSpec};
use clap::Args;

#[derive(Debug, Clone, Default, Args)]
pub struct PowerArgs {
    /// `auto`, `none`, `nvml`, `rapl`, or `file:PATH` of a recorded trace [default: auto]
    #[arg(long, value_name = "SOURCE")]
    pub power_source: Option<String>,
    /// Power readings per second [default: 10]
    #[arg(long, value_name = "HZ")]
    pub power_poll_hz: Option<f64>,
    /// How long the idle machine is watched first, seconds [default: 10]
    #[arg(long, value_name = "S")]
    pub idle: Option<f64>,
    /// Longest wait for devices to cool down before each trial, seconds [default: 0]
    #[arg(long, value_name = "S")]
    pub cooldown: Option<f64>,
    /// GPUs that are watched, by index [default: all]
    #[arg(long, value_delimiter = ',', value_name = "N,..")]
    pub gpus: Vec<u32>,
    /// Path of the NVML library
    #[arg(long, value_name = "FILE")]
    pub nvml_library: Option<String>,
}

impl PowerArgs {
    /// Puts what was given in the place of what the study says.
    pub(crate) fn apply(&self, spec: &mut RunSpec) {
        if self.is_empty() {
            return;
        }
        let energy = spec.energy.get_or_insert_with(EnergyTable::default);
        let given = self.clone();
        energy.source = given.power_source.or(energy.source.take());
        energy.poll_hz = given.power_poll_hz.or(energy.poll_hz);
        energy.idle_s = given.idle.or(energy.idle_s);
        energy.cooldown_s = given.cooldown.or(energy.cooldown_s);
        energy.nvml_library = given.nvml_library.or(energy.nvml_library.take());
        if !given.gpus.is_empty() {
            energy.gpus = Some(given.gpus);
        }
    }

    fn is_empty(&self) -> bool {
        let numbers = [self.power_poll_hz, self.idle, self.cooldown];
        let texts = [&self.power_source, &self.nvml_library];
        numbers.iter().all(Option::is_none) && texts.iter().all(|t| t.is_none()) && self.gpus.is_empty()
    }
}
