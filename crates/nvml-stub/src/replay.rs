//! The state of one loaded instance: its script, when it was initialised, and how often each device was asked
//! for.
//!
//! The script lies beside the library's own file, whose path is found in the memory map of the process.

use crate::script::{Device, Energy, Script, TimeAxis, Wave, code};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

pub(crate) struct Replay {
    pub(crate) script: Script,
    begun: Instant,
    readings: Vec<u64>,
}

static REPLAY: Mutex<Option<Replay>> = Mutex::new(None);

fn lock() -> MutexGuard<'static, Option<Replay>> {
    REPLAY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads the script; returns what `nvmlInit_v2` returns, `UNKNOWN` where there is no script that can be read.
pub(crate) fn init() -> u32 {
    let Some(script) = read_script() else { return code::UNKNOWN };
    if script.init == code::SUCCESS {
        let readings = vec![0; script.devices.len()];
        *lock() = Some(Replay { script, begun: Instant::now(), readings });
        return code::SUCCESS;
    }
    script.init
}

pub(crate) fn shutdown() -> u32 {
    if lock().take().is_some() { code::SUCCESS } else { code::UNINITIALIZED }
}

/// `ask` of the script; `Err` is the code to return.
pub(crate) fn library<T>(ask: impl FnOnce(&Script) -> Result<T, u32>) -> Result<T, u32> {
    ask(&lock().as_ref().ok_or(code::UNINITIALIZED)?.script)
}

/// Counts a reading of device `index`.
pub(crate) fn begin_reading(index: usize) -> Result<(), u32> {
    let mut replay = lock();
    let count = replay.as_mut().ok_or(code::UNINITIALIZED)?.readings.get_mut(index);
    *count.ok_or(code::INVALID_ARGUMENT)? += 1;
    Ok(())
}

/// `ask` of device `index` at the present x, unless the script lets `symbol` fail.
pub(crate) fn device<T>(
    index: usize,
    symbol: &str,
    ask: impl FnOnce(&Device, f64) -> Option<T>,
) -> Result<T, u32> {
    let replay = lock();
    let replay = replay.as_ref().ok_or(code::UNINITIALIZED)?;
    let device = replay.script.devices.get(index).ok_or(code::INVALID_ARGUMENT)?;
    let x = match replay.script.axis {
        TimeAxis::Seconds => replay.begun.elapsed().as_secs_f64(),
        TimeAxis::Readings => replay.readings[index].saturating_sub(1) as f64,
    };
    let hit = device.failures.iter().find(|f| {
        (f.symbol.is_empty() || f.symbol == symbol) && x >= f.from && f.until.is_none_or(|until| x < until)
    });
    match hit {
        Some(failure) => Err(failure.code),
        None => ask(device, x).ok_or(code::NOT_SUPPORTED),
    }
}

impl Device {
    pub(crate) fn energy_j(&self, x: f64) -> Option<f64> {
        match self.energy.as_ref()? {
            Energy::Joules(wave) => Some(wave.at(x)),
            Energy::Integral { period, start_j, resets } => {
                let shown = if *period > 0.0 { (x / period).floor() * period } else { x };
                let reset = resets.iter().copied().filter(|r| *r <= x).fold(f64::NEG_INFINITY, f64::max);
                let power = self.power_w.as_ref().unwrap_or(&Wave::Constant(0.0));
                Some(if reset.is_finite() {
                    power.integral(reset, shown.max(reset))
                } else {
                    start_j + power.integral(0.0, shown)
                })
            }
        }
    }
}

pub(crate) fn unix_us() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |t| t.as_micros() as f64)
}

fn read_script() -> Option<Script> {
    let mut path = own_path()?.into_os_string();
    path.push(".json");
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

/// The file that the code of this very function was mapped from.
fn own_path() -> Option<PathBuf> {
    let here = own_path as fn() -> Option<PathBuf> as usize;
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    maps.lines().find_map(|line| {
        let (range, rest) = line.split_once(' ')?;
        let (low, high) = range.split_once('-')?;
        let (low, high) = (usize::from_str_radix(low, 16).ok()?, usize::from_str_radix(high, 16).ok()?);
        let path = rest.find('/').map(|at| PathBuf::from(&rest[at..]))?;
        (low..high).contains(&here).then_some(path)
    })
}
