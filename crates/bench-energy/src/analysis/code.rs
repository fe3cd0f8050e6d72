//! Why a figure of energy is missing, or what to know of it: the codes of the `missing_reason` column.
//!
//! A flagged window has no value; a note leaves the value where it is. Which is which stands at each code.

use std::collections::BTreeMap;

/// A reason, or a note.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Code {
    /// Shorter than 10 sampling periods, or 10 update periods of the counter.
    WindowTooShort,
    /// No valid sample for more than 5 sampling periods, within the window or around one of its ends; or an
    /// end of the window lies further than two periods outside of what was sampled.
    GapTooLong,
    /// The energy counter went back without having reached its range.
    CounterReset,
    /// Power did not change in a bit over 20 samples or more, and something says that it should have: the
    /// counter tells of other energy, utilisation moved, or a live source stood still for a whole trial.
    SensorConstant,
    /// Readings failed from some moment to the end of the trial.
    SourceLost,
    /// There is no reading of this kind.
    NoSamples,
    /// Time stamps went back; what was stamped in the time that came twice is left out.
    TimeBackwards,
    /// Two different readings at one instant; the first is kept.
    DuplicateTime,
    /// A power that cannot be: negative, not finite, 0 W of a GPU, or far beyond the device's limit. Of other
    /// readings likewise, which are left out.
    Nonsense,
    /// No valid idle trial: no net energy.
    NoIdle,
    /// Requests were in flight together: prefill and decode cannot be told apart.
    Overlap,
    /// A request of the window failed: what its energy bought is not known.
    RequestFailed,
    /// Nothing that could be divided by: no token after the first.
    NoTokens,
    /// Note: less than 90 % of the readings per second that were asked for.
    RateLow,
    /// Note: the device averages its power over a time of its own, which smears ends and splits.
    Averaged,
    /// Note: counter and integral differ by more than 10 %.
    CounterDisagrees,
}

impl Code {
    /// Every code, with what it means standing at its variant.
    pub const ALL: [Self; 16] = [
        Self::WindowTooShort,
        Self::GapTooLong,
        Self::CounterReset,
        Self::SensorConstant,
        Self::SourceLost,
        Self::NoSamples,
        Self::TimeBackwards,
        Self::DuplicateTime,
        Self::Nonsense,
        Self::NoIdle,
        Self::Overlap,
        Self::RequestFailed,
        Self::NoTokens,
        Self::RateLow,
        Self::Averaged,
        Self::CounterDisagrees,
    ];

    /// As it is written in the `missing_reason` column.
    pub fn key(self) -> &'static str {
        match self {
            Self::WindowTooShort => "window_too_short",
            Self::GapTooLong => "gap_too_long",
            Self::CounterReset => "counter_reset",
            Self::SensorConstant => "sensor_constant",
            Self::SourceLost => "source_lost",
            Self::NoSamples => "no_samples",
            Self::TimeBackwards => "time_backwards",
            Self::DuplicateTime => "duplicate_time",
            Self::Nonsense => "nonsense",
            Self::NoIdle => "no_idle",
            Self::Overlap => "overlap",
            Self::RequestFailed => "request_failed",
            Self::NoTokens => "no_tokens",
            Self::RateLow => "rate_low",
            Self::Averaged => "averaged",
            Self::CounterDisagrees => "counter_disagrees",
        }
    }
}

/// A figure of a window, or why there is none.
pub(crate) type Value = Result<f64, Code>;

/// Codes with how often each occurred.
#[derive(Debug, Default)]
pub(crate) struct Reasons(BTreeMap<Code, u64>);

impl Reasons {
    pub(crate) fn add(&mut self, code: Code) {
        *self.0.entry(code).or_default() += 1;
    }

    /// `window_too_short: 3; gap_too_long: 1`, most frequent first.
    pub(crate) fn text(&self) -> String {
        let mut counts: Vec<_> = self.0.iter().collect();
        counts.sort_by_key(|(code, n)| (std::cmp::Reverse(**n), **code));
        counts.iter().map(|(code, n)| format!("{}: {n}", code.key())).collect::<Vec<_>>().join("; ")
    }
}
