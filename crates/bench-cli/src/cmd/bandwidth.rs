//! `ossbench bandwidth`: how fast this machine reads and copies memory, the roof of every roofline here.

use crate::args::BandwidthArgs;
use crate::{CliError, Io};
use bench_core::SCHEMA_VERSION;
use bench_core::shape::Bandwidth;

pub(crate) fn run(args: &BandwidthArgs, io: &mut Io<'_>) -> Result<(), CliError> {
    let bandwidth = measure(args.threads)?;
    if args.json {
        let text = serde_json::to_string_pretty(&bandwidth).map_err(|e| CliError::Failed(e.to_string()))?;
        return Ok(writeln!(io.out, "{text}")?);
    }
    Ok(write!(io.out, "{}", told(&bandwidth))?)
}

/// Host memory, with all cores if `threads` is `None`. Takes about a second; nothing else should run.
pub(crate) fn measure(threads: Option<u32>) -> Result<Bandwidth, CliError> {
    if threads == Some(0) {
        return Err(CliError::Usage("--threads 0: expected at least 1".to_owned()));
    }
    let host = bench_engine::system::bandwidth(threads.map(|t| t as usize))?;
    let end = |at: Option<&f64>| at.copied().unwrap_or_else(|| host.read_median_bytes_s());
    Ok(Bandwidth {
        schema_version: SCHEMA_VERSION,
        device: "cpu".to_owned(),
        threads: host.threads as u32,
        bytes: host.bytes as u64,
        read_bytes_s: host.read_median_bytes_s(),
        copy_bytes_s: host.copy_median_bytes_s(),
        repeats: host.read_bytes_s.len() as u32,
        read_min_bytes_s: end(host.read_bytes_s.first()),
        read_max_bytes_s: end(host.read_bytes_s.last()),
    })
}

fn told(b: &Bandwidth) -> String {
    let gb = |bytes_s: f64| format!("{:.1} GB/s", bytes_s / 1e9);
    format!(
        "host read    {}, median of {} (slowest {}, fastest {})\n\
         host copy    {}, bytes read and written\n\
         threads      {}, arrays of {} MiB\n\
         device copy  none: this build drives no GPU\n",
        gb(b.read_bytes_s),
        b.repeats,
        gb(b.read_min_bytes_s),
        gb(b.read_max_bytes_s),
        gb(b.copy_bytes_s),
        b.threads,
        b.bytes >> 20,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_told_with_their_spread() {
        let text = told(&Bandwidth {
            schema_version: SCHEMA_VERSION,
            device: "cpu".to_owned(),
            threads: 2,
            bytes: 256 << 20,
            read_bytes_s: 21.06e9,
            copy_bytes_s: 18e9,
            repeats: 11,
            read_min_bytes_s: 20e9,
            read_max_bytes_s: 22e9,
        });
        let expected = "host read    21.1 GB/s, median of 11 (slowest 20.0 GB/s, fastest 22.0 GB/s)\n\
                        host copy    18.0 GB/s, bytes read and written\n\
                        threads      2, arrays of 256 MiB\n\
                        device copy  none: this build drives no GPU\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn no_threads_measure_nothing() {
        assert_eq!(measure(Some(0)).unwrap_err().exit_code(), 2);
    }
}
