//! One device during one trial: its samples cleaned, and what a window of it comes to.
//!
//! Here it is decided what may be believed. It knows no request; windows come as two instants.

use super::code::{Code, Value};
use super::counter::{Counter, LONGEST_GAP_PERIODS, REACH_PERIODS, STUCK_READINGS, too_short};
use super::curve::{Curve, median};
use super::window::Window;
use bench_core::power::{DeviceTrace, PowerDevice, PowerReading, PowerSample, PowerScope};
use bench_core::unit::Nanos;

/// Bit-equal samples from which a sensor may be stuck.
const STUCK_SAMPLES: usize = STUCK_READINGS;
/// Change of utilisation that no power stands still through, in percentage points.
const MOVED_POINTS: f64 = 10.0;
/// Difference of counter and integral above which they contradict each other.
pub(crate) const DISAGREE_ABOVE: f64 = 0.10;
/// Times its limit that no device draws: limits are held on average, and peaks reach about twice.
const BEYOND_LIMIT: f64 = 10.0;
/// No single device draws more.
const MOST_W: f64 = 1e6;

/// Reasons that say that clocks are lowered for power, heat or by hardware, as NVML numbers them: software
/// power cap 0x4, hardware slowdown 0x8, software and hardware thermal slowdown 0x20 and 0x40, power brake
/// 0x80. Not counted are an idle GPU 0x1, clocks that somebody set (0x2 for applications, 0x100 for a display),
/// and the boost group 0x10, which follows another board.
const THROTTLED: u64 = 0x4 | 0x8 | 0x20 | 0x40 | 0x80;

/// The readings beside power, by their place in `Reading::ALL`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reading {
    UtilGpu,
    UtilMem,
    Temp,
    SmClock,
    MemClock,
    Throttle,
}

impl Reading {
    pub(crate) const ALL: [Self; 6] =
        [Self::UtilGpu, Self::UtilMem, Self::Temp, Self::SmClock, Self::MemClock, Self::Throttle];

    fn of(self, sample: &PowerSample) -> Option<f64> {
        match self {
            Self::UtilGpu => sample.util_gpu_pct,
            Self::UtilMem => sample.util_mem_pct,
            Self::Temp => sample.temp_c,
            Self::SmClock => sample.sm_clock_mhz,
            Self::MemClock => sample.mem_clock_mhz,
            Self::Throttle => sample.throttle.map(|bits| f64::from(u8::from(bits & THROTTLED != 0))),
        }
    }

    /// What such a reading can be.
    fn is_sane(self, value: f64) -> bool {
        match self {
            Self::UtilGpu | Self::UtilMem | Self::Throttle => (0.0..=100.0).contains(&value),
            Self::Temp => (-60.0..=200.0).contains(&value),
            Self::SmClock | Self::MemClock => (0.0..=100_000.0).contains(&value),
        }
    }
}

/// What a window of one device, or of all devices of a scope, comes to.
#[derive(Debug, Clone)]
pub(crate) struct Measured {
    /// `None`: no device has a counter.
    pub(crate) counter: Option<Value>,
    /// `None`: power is made from the counter.
    pub(crate) integral: Option<Value>,
    pub(crate) gross: Value,
    pub(crate) prefill: Value,
    pub(crate) decode: Value,
    pub(crate) readings: [Value; 6],
    pub(crate) idle_w: Value,
    pub(crate) averaged: bool,
}

/// What a device tells at all in any trial of the cell.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tells {
    pub(crate) counter: bool,
    /// Power that is not made from the counter.
    pub(crate) power: bool,
    pub(crate) readings: [bool; 6],
}

impl Tells {
    pub(crate) fn or(self, other: Self) -> Self {
        Self {
            counter: self.counter || other.counter,
            power: self.power || other.power,
            readings: std::array::from_fn(|i| self.readings[i] || other.readings[i]),
        }
    }
}

impl Measured {
    /// Of a window that has nothing, because of `code`.
    pub(crate) fn missing(code: Code, tells: Tells) -> Self {
        Self {
            counter: tells.counter.then_some(Err(code)),
            integral: tells.power.then_some(Err(code)),
            gross: Err(code),
            prefill: Err(code),
            decode: Err(code),
            readings: [Err(code); 6],
            idle_w: Err(code),
            averaged: false,
        }
    }
}

/// Samples of one device in one trial.
#[derive(Debug, Clone)]
pub(crate) struct Device {
    pub(crate) about: PowerDevice,
    pub(crate) power: Curve,
    pub(crate) counter: Counter,
    /// Begin and end of the trial; a recorded trace has neighbours beyond them.
    bounds: (f64, f64),
    period: Option<f64>,
    /// Where samples are not what they should be.
    flags: Vec<(f64, f64, Code)>,
    /// Likewise of the counter.
    counter_flags: Vec<(f64, f64, Code)>,
    readings: [Vec<(f64, f64)>; 6],
    /// Readings were tried at all.
    tried: bool,
    /// The last reading failed.
    lost: bool,
}

impl Device {
    pub(crate) fn new(trace: &DeviceTrace, begin: Nanos, end: Nanos) -> Self {
        let about = trace.device.clone();
        let from_counter = about.reading == PowerReading::FromCounter;
        let mut device = Self {
            power: Curve::default(),
            counter: Counter::default(),
            bounds: (begin.as_secs(), end.as_secs()),
            period: None,
            flags: Vec::new(),
            counter_flags: Vec::new(),
            readings: Default::default(),
            tried: !trace.samples.is_empty(),
            lost: false,
            about,
        };
        let kept = device.in_order(&trace.samples);
        let mut energy = Vec::new();
        for &(at, sample) in &kept {
            device.take_readings(at, sample);
            match sample.energy_j {
                Some(joules) if joules.is_finite() && joules >= 0.0 => energy.push((at, joules)),
                Some(_) => device.counter_flags.push((at, at, Code::Nonsense)),
                None => {}
            }
            if !from_counter {
                device.take_power(at, sample);
            }
        }
        let failed = |s: &PowerSample| if from_counter { s.energy_j.is_none() } else { s.power_w.is_none() };
        device.lost = kept.last().is_some_and(|(_, sample)| failed(sample));
        device.counter = Counter::new(&energy, device.about.counter_range_j, from_counter);
        if from_counter {
            device.take_counter_for_power();
        }
        let corners = device.power.corners().windows(2).map(|pair| pair[1].0 - pair[0].0);
        device.period = median(corners.filter(|gap| *gap > 0.0).collect());
        device
    }

    /// The samples whose time goes on, with it.
    fn in_order<'s>(&mut self, samples: &'s [PowerSample]) -> Vec<(f64, &'s PowerSample)> {
        let mut kept: Vec<(f64, &PowerSample)> = Vec::with_capacity(samples.len());
        for sample in samples {
            let at = sample.at.as_secs();
            match kept.last() {
                Some(&(last, _)) if at < last => {
                    self.flags.push((at, last, Code::TimeBackwards));
                    self.counter_flags.push((at, last, Code::TimeBackwards));
                }
                Some(&(last, before)) if at == last => {
                    if (before.power_w, before.energy_j) != (sample.power_w, sample.energy_j) {
                        self.flags.push((at, at, Code::DuplicateTime));
                        self.counter_flags.push((at, at, Code::DuplicateTime));
                    }
                }
                _ => kept.push((at, sample)),
            }
        }
        kept
    }

    fn take_readings(&mut self, at: f64, sample: &PowerSample) {
        for (reading, values) in Reading::ALL.into_iter().zip(&mut self.readings) {
            values.extend(reading.of(sample).filter(|v| reading.is_sane(*v)).map(|v| (at, v)));
        }
    }

    /// The power has its own stamp where the device gives one; the same stamp again is the same value again.
    fn take_power(&mut self, at: f64, sample: &PowerSample) {
        let Some(watts) = sample.power_w else {
            if sample.implausible {
                self.flags.push((at, at, Code::Nonsense));
            }
            return;
        };
        let at = sample.taken.map_or(at, Nanos::as_secs);
        let last = self.power.span().map(|span| span.1);
        if let Some(last) = last.filter(|last| at < *last) {
            self.flags.push((at, last, Code::TimeBackwards));
        } else if !self.is_sane(watts) {
            self.flags.push((at, at, Code::Nonsense));
        } else if last.is_none_or(|last| last < at) {
            self.power.push(at, watts);
        }
    }

    fn is_sane(&self, watts: f64) -> bool {
        // A board that answers is never without power.
        let least = self.about.scope != PowerScope::GpuBoard || watts > 0.0;
        let most = self.about.power_limit_w.filter(|w| *w > 0.0).map_or(MOST_W, |w| BEYOND_LIMIT * w);
        least && (0.0..=most).contains(&watts)
    }

    /// Whether a reading told what power is made of, and a device can mean it.
    pub(crate) fn is_told(&self, sample: &PowerSample) -> bool {
        if self.is_from_counter() {
            sample.energy_j.is_some_and(|joules| joules.is_finite() && joules >= 0.0)
        } else {
            sample.power_w.is_some_and(|watts| self.is_sane(watts))
        }
    }

    /// Mean power between readings of the counter, as steps.
    fn take_counter_for_power(&mut self) {
        for pair in self.counter.updates().windows(2) {
            let (a, b) = (pair[0], pair[1]);
            let watts = (b.1 - a.1) / (b.0 - a.0);
            self.power.push(a.0, watts);
            self.power.push(b.0, watts);
        }
        self.flags.extend(self.counter.resets().iter().map(|r| (r.0, r.1, Code::CounterReset)));
        self.flags.extend(self.counter_flags.iter().copied());
    }

    pub(crate) fn is_from_counter(&self) -> bool {
        self.about.reading == PowerReading::FromCounter
    }

    /// Seconds that a window must have ten of: between new power values, or between updates of the counter.
    pub(crate) fn longest_period(&self) -> Option<f64> {
        [self.period, self.counter.period()].into_iter().flatten().reduce(f64::max)
    }

    /// Distances between new power values and the seconds they took.
    pub(crate) fn rate(&self) -> Option<(f64, f64)> {
        let mut instants: Vec<f64> =
            self.power.within(self.bounds.0, self.bounds.1).iter().map(|c| c.0).collect();
        instants.dedup();
        let (first, last) = instants.first().zip(instants.last())?;
        (instants.len() > 1).then_some((instants.len() as f64 - 1.0, last - first))
    }

    /// The first of the trial.
    pub(crate) fn first(&self, reading: Reading) -> Option<f64> {
        self.readings[reading as usize].iter().find(|r| r.0 >= self.bounds.0).map(|r| r.1)
    }

    /// Mean over the whole trial.
    pub(crate) fn mean_of_trial(&self, reading: Reading) -> Option<f64> {
        self.mean(reading, self.bounds.0, self.bounds.1).ok()
    }

    /// Mean power over the whole trial, as far as samples reach.
    pub(crate) fn mean_power(&self) -> Value {
        let (first, last) = self.power.span().ok_or(Code::NoSamples)?;
        let (from, to) = (first.max(self.bounds.0), last.min(self.bounds.1));
        self.by_integral(from, to).map(|joules| joules / (to - from))
    }

    pub(crate) fn mean(&self, reading: Reading, from: f64, to: f64) -> Value {
        let values = &self.readings[reading as usize];
        let begin = values.partition_point(|v| v.0 < from);
        let end = values.partition_point(|v| v.0 <= to);
        let inside = values.get(begin..end).unwrap_or_default();
        if inside.is_empty() {
            return Err(Code::NoSamples);
        }
        Ok(inside.iter().map(|v| v.1).sum::<f64>() / inside.len() as f64)
    }

    pub(crate) fn tells(&self) -> Tells {
        Tells {
            counter: self.counter.is_there(),
            power: !self.is_from_counter(),
            readings: Reading::ALL.map(|reading| !self.readings[reading as usize].is_empty()),
        }
    }

    /// What `window` comes to. `tells` is what the device tells in any trial, `idle_w` its own idle power.
    pub(crate) fn measure(&self, window: &Window, tells: Tells, idle_w: Value) -> Measured {
        if let Some(fault) = window.fault {
            return Measured::missing(fault, tells);
        }
        let (from, to) = (window.from, window.to);
        let counter = tells.counter.then(|| self.by_counter(from, to));
        let integral = self.by_integral(from, to).and_then(|joules| {
            let stuck = !self.is_from_counter() && self.is_stuck(from, to, joules, counter);
            if stuck { Err(Code::SensorConstant) } else { Ok(joules) }
        });
        let gross = match (counter, integral) {
            (Some(Ok(joules)), _) => Ok(joules),
            (Some(Err(code)), Err(_)) if self.is_from_counter() => Err(code),
            _ => integral,
        };
        let (prefill, decode) = self.split(window, integral, gross);
        Measured {
            counter,
            integral: tells.power.then_some(integral),
            gross,
            prefill,
            decode,
            readings: Reading::ALL.map(|reading| self.mean(reading, from, to)),
            idle_w,
            averaged: self.about.reading == PowerReading::Averaged,
        }
    }

    fn by_counter(&self, from: f64, to: f64) -> Value {
        flagged(&self.counter_flags, from, to).map_or(Ok(()), Err)?;
        self.counter.joules(from, to)
    }

    /// The integral over a window, if nothing speaks against its samples.
    pub(crate) fn by_integral(&self, from: f64, to: f64) -> Value {
        let (Some((first, last)), Some(period)) = (self.power.span(), self.period) else {
            let failed = self.tried && self.lost;
            return Err(flagged(&self.flags, from, to).unwrap_or(if failed {
                Code::SourceLost
            } else {
                Code::NoSamples
            }));
        };
        if let Some(code) = flagged(&self.flags, from, to) {
            return Err(code);
        }
        let reach = REACH_PERIODS * period * (1.0 + 1e-6);
        if self.lost && to > last + reach {
            return Err(Code::SourceLost);
        }
        if too_short(to - from, period) {
            return Err(Code::WindowTooShort);
        }
        let uncovered = from < first - reach || to > last + reach;
        if uncovered || self.power.longest_gap(from, to) > LONGEST_GAP_PERIODS * period * (1.0 + 1e-6) {
            return Err(Code::GapTooLong);
        }
        self.power.joules(from, to).ok_or(Code::NoSamples)
    }

    fn is_stuck(&self, from: f64, to: f64, joules: f64, counter: Option<Value>) -> bool {
        let all = self.power.corners();
        let whole_trial = is_constant(all);
        if !whole_trial && !is_constant(self.power.within(from, to)) {
            return false;
        }
        if let Some(Ok(counter)) = counter {
            return (counter / joules - 1.0).abs() > DISAGREE_ABOVE;
        }
        let util = self.readings[Reading::UtilGpu as usize].iter().filter(|r| from <= r.0 && r.0 <= to);
        let (low, high) = util.fold((f64::MAX, f64::MIN), |(low, high), r| (low.min(r.1), high.max(r.1)));
        // A recorded trace may be constant by intent; a live sensor that never moves in a bit is stuck.
        high - low >= MOVED_POINTS || (whole_trial && self.about.source != "file")
    }

    /// Prefill and decode: by the counter where it resolves all parts of all repeats, else by integral, scaled
    /// so that together with the pauses between repeats they add up to `gross`.
    fn split(&self, window: &Window, integral: Value, gross: Value) -> (Value, Value) {
        let Some(repeats) = &window.repeats else { return (Err(Code::Overlap), Err(Code::Overlap)) };
        let sum = |part: &dyn Fn(f64, f64) -> Value| -> (Value, Value) {
            let prefill = repeats.iter().map(|r| part(r.0, r.1)).sum();
            (prefill, repeats.iter().map(|r| part(r.1, r.2)).sum())
        };
        let counted = sum(&|from, to| self.by_counter(from, to));
        if counted.0.is_ok() && counted.1.is_ok() && self.by_counter(window.from, window.to).is_ok() {
            return counted;
        }
        sum(&|from, to| {
            let (integral, gross) = (integral?, gross?);
            let scale = if integral > 0.0 { gross / integral } else { 1.0 };
            self.power.joules(from, to).map(|joules| joules * scale).ok_or(Code::NoSamples)
        })
    }
}

/// Largest power of all `devices` together at any of their samples in the window. Between samples the sum is
/// linear, so that none is missed.
pub(crate) fn peak(devices: &[&Device], from: f64, to: f64) -> Option<f64> {
    let sampled = devices.iter().flat_map(|d| d.power.within(from, to)).map(|corner| {
        // Right at a step both of its sides count.
        let others: Option<f64> = devices.iter().map(|d| d.power.at(corner.0)).sum();
        if devices.len() == 1 { Some(corner.1) } else { others }
    });
    // Steps of a counter reach over the ends of a window.
    let steps = devices.iter().all(|d| d.is_from_counter());
    let ends = [from, to].into_iter().filter(|_| steps);
    let at_ends = ends.map(|at| devices.iter().map(|d| d.power.at(at)).sum::<Option<f64>>());
    sampled.chain(at_ends).flatten().reduce(f64::max)
}

fn is_constant(corners: &[(f64, f64)]) -> bool {
    corners.len() >= STUCK_SAMPLES
        && corners.windows(2).all(|pair| pair[0].1.to_bits() == pair[1].1.to_bits())
}

/// The first code whose time overlaps the window.
fn flagged(flags: &[(f64, f64, Code)], from: f64, to: f64) -> Option<Code> {
    flags.iter().find(|flag| flag.0 <= to && flag.1 >= from).map(|flag| flag.2)
}
