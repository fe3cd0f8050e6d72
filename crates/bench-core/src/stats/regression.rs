//! A straight line through points by ordinary least squares, with the interval of its slope.
//!
//! Every point counts the same; what a point is (a context, a repeat) is the caller's knowledge.

use super::interval::t_quantile;
use crate::sample::{Interval, IntervalMethod};

/// y = `intercept` + `slope` x.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Line {
    pub slope: f64,
    pub intercept: f64,
    /// Of the slope: Student's t with n - 2; the slope itself where all points lie on the line.
    pub interval: Interval,
    pub n: u64,
}

/// The line through `points` as (x, y); `None` below three points, where all x are equal, or where a number is
/// not finite.
///
/// Sums are taken over differences from the first point: a constant that all whole y share then changes no bit
/// of the slope, and points on a line of whole numbers have residuals of exactly 0.
pub fn least_squares(points: &[(f64, f64)]) -> Option<Line> {
    let &(x0, y0) = points.first()?;
    if points.len() < 3 || points.iter().any(|(x, y)| !(x.is_finite() && y.is_finite())) {
        return None;
    }
    let n = points.len() as f64;
    let moved: Vec<_> = points.iter().map(|(x, y)| (x - x0, y - y0)).collect();
    let (mean_x, mean_y) =
        (moved.iter().map(|p| p.0).sum::<f64>() / n, moved.iter().map(|p| p.1).sum::<f64>() / n);
    let sxx: f64 = moved.iter().map(|(x, _)| (x - mean_x).powi(2)).sum();
    let sxy: f64 = moved.iter().map(|(x, y)| (x - mean_x) * y).sum();
    if sxx <= 0.0 {
        return None;
    }
    let slope = sxy / sxx;
    let residual = |(x, y): &(f64, f64)| (y - mean_y) - slope * (x - mean_x);
    let squares: f64 = moved.iter().map(|p| residual(p).powi(2)).sum();
    // Rounding alone: then the points lie on the line.
    let scale = moved.iter().fold(0.0_f64, |most, p| most.max(p.1.abs()));
    let rounding = n * (8.0 * f64::EPSILON * scale).powi(2);
    let error = if squares <= rounding { 0.0 } else { (squares / (n - 2.0) / sxx).sqrt() };
    let half = if error > 0.0 { t_quantile(n - 2.0) * error } else { 0.0 };
    Some(Line {
        slope,
        intercept: y0 + mean_y - slope * (x0 + mean_x),
        interval: Interval {
            low: Some(slope - half),
            high: Some(slope + half),
            method: IntervalMethod::LeastSquares,
        },
        n: points.len() as u64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(line: &Line) -> (f64, f64) {
        (line.interval.low.unwrap(), line.interval.high.unwrap())
    }

    #[test]
    fn points_on_a_line_give_it_back_without_an_error() {
        let points =
            |constant: f64| [159.0, 2_079.0, 8_223.0, 32_799.0].map(|x| (x, 49_152.0 * x + constant));
        let line = least_squares(&points(0.0)).unwrap();
        assert_eq!((line.slope, ends(&line), line.n), (49_152.0, (49_152.0, 49_152.0), 4));
        assert!(line.intercept.abs() < 1e-3, "{line:?}");
        // What every context needs besides, however much, changes no bit.
        let more = least_squares(&points(26.0e9 + 1.0)).unwrap();
        assert_eq!((more.slope, ends(&more)), (line.slope, ends(&line)));
        assert!((more.intercept - (26.0e9 + 1.0)).abs() < 1e-3, "{more:?}");
    }

    #[test]
    fn a_textbook_line_has_its_slope_and_error() {
        // x 1..5, y 2 4 5 4 5: slope 0.6, intercept 2.2, residual squares 2.4, s.e. sqrt(0.8 / 10),
        // t(3) 3.182446.
        let line = least_squares(&[(1.0, 2.0), (2.0, 4.0), (3.0, 5.0), (4.0, 4.0), (5.0, 5.0)]).unwrap();
        let (low, high) = ends(&line);
        let half = 3.182_446_305_284_263 * 0.08_f64.sqrt();
        assert!((line.slope - 0.6).abs() < 1e-12 && (line.intercept - 2.2).abs() < 1e-12, "{line:?}");
        assert!((low - (0.6 - half)).abs() < 1e-6 && (high - (0.6 + half)).abs() < 1e-6, "{line:?}");
        assert_eq!(line.interval.method.key(), "least_squares");
    }

    #[test]
    fn too_little_is_no_line() {
        assert_eq!(least_squares(&[]), None);
        assert_eq!(least_squares(&[(1.0, 2.0), (2.0, 4.0)]), None);
        assert_eq!(least_squares(&[(1.0, 2.0), (1.0, 4.0), (1.0, 5.0)]), None);
        assert_eq!(least_squares(&[(1.0, 2.0), (2.0, f64::NAN), (3.0, 5.0)]), None);
        // A flat line is one.
        assert_eq!(least_squares(&[(1.0, 2.0), (2.0, 2.0), (3.0, 2.0)]).map(|l| l.slope), Some(0.0));
    }
}
