//! `ossbench bandwidth`: how fast this machine or a GPU reads and copies its memory, the roof of every roofline.

use crate::args::BandwidthArgs;
use crate::{CliError, Io};
use bench_core::SCHEMA_VERSION;
use bench_core::shape::Bandwidth;
use bench_engine::place::Place;
use bench_engine::system::gpu;

pub(crate) fn run(args: &BandwidthArgs, io: &mut Io<'_>) -> Result<(), CliError> {
    if args.device != "cpu" && args.threads.is_some() {
        return Err(CliError::Usage(format!("--threads says nothing of {}", args.device)));
    }
    let bandwidth = measure(&args.device, args.threads)?;
    if args.json {
        let text = serde_json::to_string_pretty(&bandwidth).map_err(|e| CliError::Failed(e.to_string()))?;
        return Ok(writeln!(io.out, "{text}")?);
    }
    Ok(write!(io.out, "{}", told(&bandwidth))?)
}

/// The memory of `device`; the host's with all cores if `threads` is `None`. Takes about a second; nothing else should
/// run.
pub(crate) fn measure(device: &str, threads: Option<u32>) -> Result<Bandwidth, CliError> {
    if threads == Some(0) {
        return Err(CliError::Usage("--threads 0: expected at least 1".to_owned()));
    }
    let place = Place::open(device)?;
    if place.is_host() {
        let host = bench_engine::system::bandwidth(threads.map(|t| t as usize))?;
        let medians = [host.read_median_bytes_s(), host.copy_median_bytes_s()];
        let stored = stored("cpu".to_owned(), host.bytes, medians, &host.read_bytes_s);
        return Ok(Bandwidth { threads: Some(host.threads as u32), ..stored });
    }
    let (found, bytes) = gpu::bandwidth(&place)?;
    let medians = [found.read_median_bytes_s(), found.copy_median_bytes_s()];
    Ok(stored(place.title().unwrap_or_else(|| device.to_owned()), bytes, medians, &found.read_bytes_s))
}

/// As it is kept with a run: medians of reading and copying, and the rates of reading, slowest first.
fn stored(device: String, bytes: usize, medians: [f64; 2], read_bytes_s: &[f64]) -> Bandwidth {
    let [read, copy] = medians;
    Bandwidth {
        schema_version: SCHEMA_VERSION,
        device,
        threads: None,
        bytes: bytes as u64,
        read_bytes_s: read,
        copy_bytes_s: copy,
        repeats: read_bytes_s.len() as u32,
        read_min_bytes_s: read_bytes_s.first().copied().unwrap_or(read),
        read_max_bytes_s: read_bytes_s.last().copied().unwrap_or(read),
    }
}

fn told(b: &Bandwidth) -> String {
    let gb = |bytes_s: f64| format!("{:.1} GB/s", bytes_s / 1e9);
    let threads = b.threads.map_or_else(String::new, |n| format!("{n} threads, "));
    format!(
        "memory  {}\n\
         read    {}, median of {} (slowest {}, fastest {})\n\
         copy    {}, bytes read and written\n\
         with    {threads}arrays of {} MiB\n",
        b.device,
        gb(b.read_bytes_s),
        b.repeats,
        gb(b.read_min_bytes_s),
        gb(b.read_max_bytes_s),
        gb(b.copy_bytes_s),
        b.bytes >> 20,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_told_with_their_spread() {
        let rates = [20e9, 21.06e9, 22e9];
        let gpu = stored("NVIDIA H200, sm_90".to_owned(), 400 << 20, [21.06e9, 18e9], &rates);
        let expected = "memory  NVIDIA H200, sm_90\n\
                        read    21.1 GB/s, median of 3 (slowest 20.0 GB/s, fastest 22.0 GB/s)\n\
                        copy    18.0 GB/s, bytes read and written\n\
                        with    arrays of 400 MiB\n";
        assert_eq!(told(&gpu), expected);
        let host = Bandwidth { device: "cpu".to_owned(), threads: Some(2), ..gpu };
        assert!(told(&host).contains("memory  cpu\n") && told(&host).contains("with    2 threads, arrays"));
    }

    #[test]
    fn what_cannot_be_measured_is_refused() {
        assert_eq!(measure("cpu", Some(0)).unwrap_err().exit_code(), 2);
        let error = measure("gpu", None).unwrap_err().to_string();
        assert!(error.contains("\"gpu\"") && error.contains("cuda:1"), "{error}");
    }
}
