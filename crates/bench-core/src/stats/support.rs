//! How many samples a quantile needs before it may be shown, and before it counts as bounded.

/// Confidence of `MLPerf`'s early stopping rule: 1 - 0.99.
/// Source: mlcommons/inference `LoadGen`, `early_stopping.cc`.
const EARLY_STOPPING_ALPHA: f64 = 0.01;

/// Smallest n that supports quantile `p`: n >= 1 / (1 - p); 2, 10, 20, 100, 1,000 for p50 to p99.9.
pub fn minimum_n(p: f64) -> u64 {
    // 1 / (1 - 0.9) is 10.000000000000002 in floating point; a relative 1e-9 absorbs that and nothing else.
    (1.0 / (1.0 - p) * (1.0 - 1e-9)).ceil() as u64
}

/// Whether `n` samples support quantile `p`.
pub fn supports(n: u64, p: f64) -> bool {
    n >= minimum_n(p)
}

/// Whether `n` reaches `MLPerf`'s minimum for quantile `p`.
pub fn is_bounded(n: u64, p: f64) -> bool {
    chance_of_at_most_one_beyond(n, p) <= EARLY_STOPPING_ALPHA
}

/// `MLPerf`'s minimum n of quantile `p`: the smallest n at which seeing at most one sample beyond the true
/// quantile has a chance of at most 1 %; 11, 64, 130, 662, 6,636 for p50 to p99.9.
pub fn minimum_bounded_n(p: f64) -> u64 {
    let (mut low, mut high) = (1, 2);
    while !is_bounded(high, p) {
        (low, high) = (high, high * 2);
    }
    while low + 1 < high {
        let middle = low + (high - low) / 2;
        if is_bounded(middle, p) { high = middle } else { low = middle }
    }
    high
}

/// P(X <= 1) for X ~ Binomial(n, 1 - p).
fn chance_of_at_most_one_beyond(n: u64, p: f64) -> f64 {
    if n == 0 {
        return 1.0;
    }
    let rest = p.powf((n - 1) as f64);
    rest * p + n as f64 * (1.0 - p) * rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_are_those_of_the_definitions() {
        for (p, supported_from, bounded_from) in
            [(0.5, 2, 11), (0.9, 10, 64), (0.95, 20, 130), (0.99, 100, 662), (0.999, 1_000, 6_636)]
        {
            assert_eq!((minimum_n(p), minimum_bounded_n(p)), (supported_from, bounded_from), "{p}");
            assert!(supports(supported_from, p) && !supports(supported_from - 1, p), "{p}");
            assert!(is_bounded(bounded_from, p) && !is_bounded(bounded_from - 1, p), "{p}");
        }
        assert!(!supports(0, 0.5) && !is_bounded(0, 0.5));
    }
}
