//! Where a run came from: enough to judge it and to do it again.
//!
//! Only the type; the runner gathers the values.

use crate::client::ServerFacts;
use crate::clock::ClockPrecision;
use crate::shape::ModelFacts;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The program that measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Build {
    pub version: String,
    /// Commit of the working tree at build time, `None` outside a checkout.
    pub commit: Option<String>,
    /// What the binary is built from differed from the commit at build time.
    pub dirty: Option<bool>,
    pub rustc: String,
    pub target_triple: String,
    pub features: Vec<String>,
    /// Debug assertions on or optimisation off: not for published results.
    pub debug: bool,
}

/// The machine, as it was when the run began.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    pub cpu: String,
    pub cores: u32,
    pub cpu_features: Vec<String>,
    pub memory_bytes: Option<u64>,
    pub memory_available_bytes: Option<u64>,
    pub kernel: String,
    /// Frequency governor of the first core; `None` where the system does not tell.
    pub governor: Option<String>,
    /// One, five and fifteen minutes.
    pub load_average: Option<[f64; 3]>,
    pub gpus: Vec<String>,
    pub clock: ClockPrecision,
}

/// A later process that went on with the run: its numbers stand beside those of the first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Resumption {
    pub started_at: String,
    pub command: Vec<String>,
    pub build: Build,
    pub machine: Machine,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    pub schema_version: u32,
    pub run_id: String,
    pub started_at: String,
    /// The command as given, secrets left out.
    pub command: Vec<String>,
    pub plan_hash: String,
    pub build: Build,
    pub machine: Machine,
    /// Per model label, filled when the model was loaded.
    pub models: BTreeMap<String, ModelFacts>,
    /// Per model label, filled when its server was asked.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub servers: BTreeMap<String, ServerFacts>,
    /// Per model label, how its quantized weights came into memory where some were kept between starts: each way once,
    /// in the order in which it was first met. No measured window has a load in it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub loads: BTreeMap<String, Vec<String>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub resumptions: Vec<Resumption>,
}
