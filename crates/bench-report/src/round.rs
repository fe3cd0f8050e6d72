//! How many digits of a figure are worth showing.

/// A figure and its interval, as text with the same number of decimals.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Rounded {
    pub value: String,
    /// Ends that n bounds; `None` for one that it does not, no pair where there is no interval.
    pub interval: Option<(Option<String>, Option<String>)>,
}

/// Digits shown where no interval says how many are worth it.
const DIGITS_WITHOUT_INTERVAL: i32 = 4;

/// Rounds so that the width of the interval keeps two significant digits. With one end only, twice the
/// distance to it stands for the width.
pub(crate) fn round(value: f64, low: Option<f64>, high: Option<f64>) -> Rounded {
    let width = match (low, high) {
        (Some(low), Some(high)) => high - low,
        (Some(end), None) | (None, Some(end)) => 2.0 * (value - end).abs(),
        (None, None) => 0.0,
    };
    let decimals = decimals(value, width);
    let text = |v: f64| fixed(v, decimals);
    let interval = (low.is_some() || high.is_some()).then(|| (low.map(text), high.map(text)));
    Rounded { value: text(value), interval }
}

/// Decimals to show; negative ones round to tens and more.
fn decimals(value: f64, width: f64) -> i32 {
    let wanted = if width > 0.0 && width.is_finite() {
        1 - magnitude(width, 2)
    } else if value == 0.0 {
        0
    } else {
        DIGITS_WITHOUT_INTERVAL - 1 - magnitude(value, DIGITS_WITHOUT_INTERVAL)
    };
    wanted.clamp(-18, 12)
}

/// Power of ten of the first digit, after rounding to `digits` digits: 2 for 9.96e1 at two digits.
fn magnitude(value: f64, digits: i32) -> i32 {
    let power = value.abs().log10().floor() as i32;
    let rounded = (value.abs() / 10f64.powi(power - digits + 1)).round();
    power + i32::from(rounded >= 10f64.powi(digits))
}

fn fixed(value: f64, decimals: i32) -> String {
    let rounded = if decimals < 0 {
        let unit = 10f64.powi(-decimals);
        (value / unit).round() * unit
    } else {
        value
    };
    let text = format!("{rounded:.*}", decimals.max(0) as usize);
    // -0.0 says nothing that 0.0 does not.
    if text.starts_with('-') && text.chars().all(|c| matches!(c, '-' | '0' | '.')) {
        return text[1..].to_owned();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_decides_the_digits() {
        for (value, low, high, expected) in [
            (35.911_56, Some(35.2), Some(36.68), "35.9 [35.2, 36.7]"),
            (35.911_56, Some(35.0), Some(47.0), "36 [35, 47]"),
            (6893.4, Some(6591.0), Some(7192.0), "6890 [6590, 7190]"),
            (0.012_345, Some(0.012_3), Some(0.012_39), "0.012345 [0.012300, 0.012390]"),
            (10.0, Some(9.0), Some(9.996), "10.0 [9.0, 10.0]"),
            (39.724_8, None, None, "39.72"),
            (1611.083, None, None, "1611"),
            (12.34, Some(12.0), None, "12.34 [12.00, -]"),
            (25.0, Some(25.0), Some(25.0), "25.00 [25.00, 25.00]"),
            (0.0, None, None, "0"),
            (-0.0, Some(-0.01), Some(0.01), "0.000 [-0.010, 0.010]"),
            (1e300, None, None, &format!("{:.0}", 1e300)),
        ] {
            let rounded = round(value, low, high);
            let end = |e: Option<String>| e.unwrap_or_else(|| "-".to_owned());
            let interval =
                rounded.interval.map_or_else(String::new, |(l, h)| format!(" [{}, {}]", end(l), end(h)));
            assert_eq!(format!("{}{interval}", rounded.value), expected, "{value}");
        }
    }
}
