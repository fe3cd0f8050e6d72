//! Power over time as corners joined by lines, and its exact integral.
//!
//! It knows no device and no code: whether a curve may be believed is asked elsewhere.

/// Corners `(seconds, watts)` in order of time. Two corners at one instant are a step.
#[derive(Debug, Clone, Default)]
pub(crate) struct Curve {
    corners: Vec<(f64, f64)>,
    /// Joules from the first corner to each.
    sums: Vec<f64>,
}

impl Curve {
    /// Adds a corner; not before the last one.
    pub(crate) fn push(&mut self, at: f64, watts: f64) {
        let sum = match (self.corners.last(), self.sums.last()) {
            (Some(&(t, w)), Some(&sum)) => sum + (at - t) * f64::midpoint(w, watts),
            _ => 0.0,
        };
        self.corners.push((at, watts));
        self.sums.push(sum);
    }

    pub(crate) fn corners(&self) -> &[(f64, f64)] {
        &self.corners
    }

    /// The corners from `from` to `to`, both included.
    pub(crate) fn within(&self, from: f64, to: f64) -> &[(f64, f64)] {
        let begin = self.corners.partition_point(|c| c.0 < from);
        let end = self.corners.partition_point(|c| c.0 <= to);
        self.corners.get(begin..end).unwrap_or_default()
    }

    pub(crate) fn span(&self) -> Option<(f64, f64)> {
        Some((self.corners.first()?.0, self.corners.last()?.0))
    }

    /// Linear between corners, level outside. `None` of an empty curve.
    pub(crate) fn at(&self, at: f64) -> Option<f64> {
        let next = self.corners.partition_point(|c| c.0 <= at);
        let Some(&(t0, w0)) = next.checked_sub(1).and_then(|i| self.corners.get(i)) else {
            return self.corners.first().map(|c| c.1);
        };
        let Some(&(t1, w1)) = self.corners.get(next) else { return Some(w0) };
        Some(w0 + (w1 - w0) * (at - t0) / (t1 - t0))
    }

    /// Joules from the first corner to `at`; negative before it.
    fn sum_to(&self, at: f64) -> Option<f64> {
        let next = self.corners.partition_point(|c| c.0 <= at);
        let Some(i) = next.checked_sub(1) else {
            return self.corners.first().map(|c| (at - c.0) * c.1);
        };
        let (t, w) = *self.corners.get(i)?;
        Some(self.sums.get(i)? + (at - t) * f64::midpoint(w, self.at(at)?))
    }

    /// Joules from `from` to `to`: the trapezoid rule over the corners, its ends interpolated.
    pub(crate) fn joules(&self, from: f64, to: f64) -> Option<f64> {
        Some(self.sum_to(to)? - self.sum_to(from)?)
    }

    /// The longest stretch without a corner that overlaps `from..to`.
    pub(crate) fn longest_gap(&self, from: f64, to: f64) -> f64 {
        let begin = self.corners.partition_point(|c| c.0 <= from).saturating_sub(1);
        let pairs = self.corners.get(begin..).unwrap_or_default().windows(2);
        pairs
            .map_while(|pair| match pair {
                [a, b] if a.0 < to => Some(b.0 - a.0),
                _ => None,
            })
            .fold(0.0, f64::max)
    }
}

/// Median of `values`; `None` of none.
pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_unstable_by(f64::total_cmp);
    let (low, high) = (values.len().checked_sub(1)? / 2, values.len() / 2);
    Some(f64::midpoint(*values.get(low)?, *values.get(high)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn curve(corners: &[(f64, f64)]) -> Curve {
        let mut curve = Curve::default();
        for corner in corners {
            curve.push(corner.0, corner.1);
        }
        curve
    }

    #[test]
    fn steps_and_ends() {
        let c = curve(&[(1.0, 10.0), (2.0, 10.0), (2.0, 30.0), (4.0, 50.0)]);
        assert_eq!(c.joules(1.0, 4.0), Some(10.0 + 80.0));
        assert_eq!(c.joules(1.5, 3.0), Some(5.0 + 35.0));
        assert_eq!(c.joules(0.5, 1.0), Some(5.0), "level before the first corner");
        assert_eq!((c.at(3.0), c.at(0.0), c.at(9.0)), (Some(40.0), Some(10.0), Some(50.0)));
        assert_eq!((c.longest_gap(1.0, 2.0), c.longest_gap(1.9, 2.1)), (1.0, 2.0));
        assert_eq!(Curve::default().joules(0.0, 1.0), None);
        assert_eq!(
            (median(vec![3.0, 1.0, 2.0]), median(vec![4.0, 1.0]), median(vec![])),
            (Some(2.0), Some(2.5), None)
        );
    }

    proptest! {
        /// The integral of power that is linear between its samples is exact, whatever the window.
        #[test]
        fn piecewise_linear_power_is_exact_and_additive(
            steps in prop::collection::vec((0.001_f64..2.0, 0.0_f64..700.0), 2..60),
            ends in (0.0_f64..1.0, 0.0_f64..1.0, 0.0_f64..1.0),
        ) {
            let mut at = 5.0;
            let corners: Vec<_> = steps.iter().map(|(dt, w)| { at += dt; (at, *w) }).collect();
            let c = curve(&corners);
            let (first, last) = c.span().unwrap();
            let mut cuts = [ends.0, ends.1, ends.2].map(|share| first + share * (last - first));
            cuts.sort_unstable_by(f64::total_cmp);
            // Exact otherwise: each line cut to the window, by its antiderivative.
            let exact = |a: f64, b: f64| corners.windows(2).map(|pair| {
                let ((t0, w0), (t1, w1)) = (pair[0], pair[1]);
                let (lo, hi) = (a.max(t0), b.min(t1));
                let slope = (w1 - w0) / (t1 - t0);
                let antiderivative = |t: f64| w0 * (t - t0) + slope * (t - t0).powi(2) / 2.0;
                if lo < hi { antiderivative(hi) - antiderivative(lo) } else { 0.0 }
            }).sum::<f64>();
            let joules = |a, b| c.joules(a, b).unwrap();
            let scale = 1e-10 * (1.0 + exact(first, last));
            prop_assert!((joules(cuts[0], cuts[2]) - exact(cuts[0], cuts[2])).abs() < scale);
            let parts = joules(cuts[0], cuts[1]) + joules(cuts[1], cuts[2]);
            prop_assert!((joules(cuts[0], cuts[2]) - parts).abs() < scale);
        }
    }
}
