//! What can go wrong between a plan and its stored traces: one enum for the crate.

use std::io;
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error(
        "cannot create a run folder at {path}: {source}; nothing was measured, \
         choose a folder that can be written",
        path = .path.display()
    )]
    Create { path: PathBuf, source: io::Error },

    #[error(
        "cannot write {path}: {source}; the finished trials are kept: {remedy}, \
         then go on with `--resume {folder}`",
        path = .path.display(), folder = .folder.display(), remedy = remedy(.source)
    )]
    Write { path: PathBuf, folder: PathBuf, source: io::Error },

    #[error("cannot read {path}: {source}", path = .path.display())]
    Read { path: PathBuf, source: io::Error },

    #[error("{path}, line {line}: {problem}", path = .path.display())]
    Corrupt { path: PathBuf, line: u64, problem: String },

    #[error("{path} is not a run folder: {problem}; expected results/raw/<run_id>", path = .path.display())]
    NotARun { path: PathBuf, problem: String },

    #[error(
        "run {path} is in use by {holder}: wait until it has ended, or stop it, then try again",
        path = .path.display()
    )]
    Locked { path: PathBuf, holder: String },

    #[error(
        "the plan has changed since run {path} began: stored hash {stored}, given {given}; {difference}; \
         resume with the same settings, or start a new run",
        path = .path.display()
    )]
    PlanChanged { path: PathBuf, stored: String, given: String, difference: String },

    #[error("{path} was opened for reading: create or resume the run to write to it", path = .path.display())]
    ReadOnly { path: PathBuf },

    #[error("trial file {path} is complete and is never overwritten", path = .path.display())]
    Finished { path: PathBuf },

    #[error(
        "the plan's trial {trial} names {what} \"{name}\", which the plan does not hold: plan.json was edited"
    )]
    BrokenPlan { trial: u32, what: &'static str, name: String },

    #[error("{name} is {value}: expected {expected}")]
    LoadValue { name: &'static str, value: String, expected: &'static str },

    #[error("{path} gives no request to send: {why}", path = .path.display())]
    NoRequests { path: PathBuf, why: String },

    #[error(
        "{path} is not what the plan was made with: its hash is {found}, expected {planned}; \
         give back the file of that time, or start a new study without the hash",
        path = .path.display()
    )]
    DataChanged { path: PathBuf, planned: String, found: String },

    #[error("target \"{target}\" is not in this build: build with `--features {target}`")]
    TargetNotBuilt { target: &'static str },

    #[error("cannot start the target: {0}")]
    Target(#[from] bench_core::target::TargetError),
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What to do about a failed write.
fn remedy(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "free some space",
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => "make the folder writable",
        _ => "put the cause right",
    }
}
