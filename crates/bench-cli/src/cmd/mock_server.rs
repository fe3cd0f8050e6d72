//! `ossbench mock-server`: a server of known token times, to hold any client against.

use crate::args::MockServerArgs;
use crate::{CliError, Io, signal};
use bench_core::clock::{Clock, MonotonicClock};
use bench_runner::targets::http::mock::{MockServer, MockServerOptions};
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

/// How often a wish to stop is looked for.
const LOOK: Duration = Duration::from_millis(50);

pub(crate) fn run(args: &MockServerArgs, io: &mut Io<'_>) -> Result<(), CliError> {
    let summary: Option<Box<dyn std::io::Write + Send + Sync>> = match &args.log {
        None => None,
        Some(path) => {
            let file = File::create(path)
                .map_err(|e| CliError::Failed(format!("cannot write {}: {e}", path.display())))?;
            Some(Box::new(file))
        }
    };
    for (flag, ms) in [("--ttft-ms", args.ttft_ms), ("--gap-ms", args.gap_ms)] {
        if !(ms.is_finite() && (0.0..=3.6e6).contains(&ms)) {
            return Err(CliError::Usage(format!("{flag} {ms}: expected milliseconds from 0 to an hour")));
        }
    }
    let clock: Arc<dyn Clock> = Arc::new(MonotonicClock::default());
    let options = MockServerOptions {
        port: args.port,
        ttft_ms: args.ttft_ms,
        gap_ms: args.gap_ms,
        tokens_per_chunk: args.tokens_per_chunk,
        model: args.model.clone(),
        threads: args.threads,
        summary,
    };
    let server = MockServer::start(options, clock).map_err(|e| CliError::Failed(e.to_string()))?;
    writeln!(
        io.out,
        "serving {} at {}: first token after {} ms, then one every {} ms; Ctrl-C ends it",
        args.model,
        server.base_url(),
        args.ttft_ms,
        args.gap_ms
    )?;
    io.out.flush()?;
    while !signal::stop().is_set() {
        std::thread::sleep(LOOK);
    }
    writeln!(io.out, "{}", server.end())?;
    Ok(())
}
