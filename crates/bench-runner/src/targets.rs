//! The targets that a plan can name, and the clock that each stamps with.

#[cfg(feature = "engine")]
pub mod engine;
#[cfg(feature = "http")]
pub mod http;
pub mod isolated;
pub mod mock;
pub mod null;
pub mod secrets;

#[cfg(not(all(feature = "engine", feature = "http")))]
use crate::Error;
use crate::Result;
use bench_core::clock::{Clock, MonotonicClock};
use bench_core::plan::Plan;
use bench_core::spec::TargetKind;
use bench_core::target::Target;
pub use secrets::Secrets;
use std::path::Path;
use std::sync::Arc;

/// A target and the clock of its run.
pub struct Opened {
    pub target: Box<dyn Target>,
    pub clock: Arc<dyn Clock>,
}

/// Makes the target that `plan` names; nothing is loaded yet. A server is opened with `secrets`.
pub fn open(plan: &Plan, secrets: Secrets) -> Result<Opened> {
    match plan.target.kind {
        TargetKind::Mock => {
            let target = mock::MockTarget::from_plan(plan);
            let clock = target.clock();
            Ok(Opened { target: Box::new(target), clock })
        }
        TargetKind::Null => Ok(real(null::NullTarget)),
        TargetKind::Engine => engine_target(plan),
        TargetKind::Http => http_target(plan, secrets),
    }
}

/// As `open`, but each trial runs in a process of its own: `program`, told to serve by [`isolated::COMMAND`].
pub fn open_isolated(plan: &Plan, program: &Path) -> Result<Opened> {
    // What is wrong with the settings is said once and now, not by every process.
    #[cfg(feature = "engine")]
    drop(engine_target(plan)?);
    let clock: Arc<dyn Clock> = Arc::new(MonotonicClock::default());
    let target = isolated::IsolatedTarget::new(plan, program, clock.clone());
    Ok(Opened { target: Box::new(target), clock })
}

fn real(target: impl Target + 'static) -> Opened {
    Opened { target: Box::new(target), clock: Arc::new(MonotonicClock::default()) }
}

#[cfg(feature = "http")]
fn http_target(plan: &Plan, secrets: Secrets) -> Result<Opened> {
    let clock: Arc<dyn Clock> = Arc::new(MonotonicClock::default());
    Ok(Opened { target: Box::new(http::HttpTarget::new(plan, secrets, clock.clone())?), clock })
}

#[cfg(not(feature = "http"))]
fn http_target(_plan: &Plan, _secrets: Secrets) -> Result<Opened> {
    Err(Error::TargetNotBuilt { target: "http" })
}

#[cfg(feature = "engine")]
fn engine_target(plan: &Plan) -> Result<Opened> {
    Ok(real(engine::EngineTarget::new(plan)?.with_packed_cache_of_user()?))
}

#[cfg(not(feature = "engine"))]
fn engine_target(_plan: &Plan) -> Result<Opened> {
    Err(Error::TargetNotBuilt { target: "engine" })
}
