//! What a comparison found, its bounds, and whether they hold.

use serde::Serialize;

use crate::fidelity::{divergence, likeliest};

/// How far two lists of next-token logits are from each other, position by position.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Difference {
    pub positions: usize,
    /// Largest and mean absolute difference of two logits; infinite where one is not a number.
    pub max_abs: f64,
    pub mean_abs: f64,
    /// Divergence of the distributions from the reference's, nats.
    pub kl_mean: f64,
    pub kl_max: f64,
    /// Share of positions whose likeliest token is the reference's.
    pub top1_agreement: f64,
}

impl Difference {
    /// Of `found` from `reference`, both `[positions, vocab]`; `None` where their lengths differ or are 0.
    pub fn of(reference: &[f32], found: &[f32], vocab: usize) -> Option<Self> {
        if reference.len() != found.len() || reference.is_empty() || vocab == 0 {
            return None;
        }
        let apart = |(a, b): (&f32, &f32)| {
            let difference = f64::from((a - b).abs());
            if difference.is_nan() { f64::INFINITY } else { difference }
        };
        let each = || reference.iter().zip(found).map(apart);
        let rows = || reference.chunks(vocab).zip(found.chunks(vocab));
        let kl = |(r, f): (&[f32], &[f32])| {
            let kl = divergence(r, f);
            if f.iter().all(|x| x.is_finite()) { kl } else { f64::INFINITY }
        };
        let positions = rows().count();
        let same = rows().filter(|(r, f)| likeliest(r) == likeliest(f)).count();
        Some(Self {
            positions,
            max_abs: each().fold(0.0, f64::max),
            mean_abs: each().sum::<f64>() / reference.len() as f64,
            kl_mean: rows().map(kl).sum::<f64>() / positions as f64,
            kl_max: rows().map(kl).fold(0.0, f64::max),
            top1_agreement: same as f64 / positions as f64,
        })
    }
}

/// What a bound is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    MaxAbs,
    MeanAbs,
    KlMean,
    Top1Agreement,
    /// Share of ids, or of chosen experts, that are the reference's.
    Agreement,
}

/// One limit, and what was found.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Bound {
    pub of: Measure,
    /// Most, or least of an agreement.
    pub limit: f64,
    /// `None` where nothing could be compared, which fails.
    pub found: Option<f64>,
    /// Where the limit comes from.
    pub source: &'static str,
}

impl Bound {
    pub fn holds(&self) -> bool {
        let least = matches!(self.of, Measure::Top1Agreement | Measure::Agreement);
        self.found.is_some_and(|found| if least { found >= self.limit } else { found <= self.limit })
    }
}

/// One comparison of a model with its reference.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    pub model: &'static str,
    pub activation_dtype: &'static str,
    pub prompt: &'static str,
    pub what: &'static str,
    /// Of logits; `None` of ids and experts.
    pub difference: Option<Difference>,
    /// Of ids and experts; `None` of logits.
    pub agreement: Option<f64>,
    pub bounds: Vec<Bound>,
    pub holds: bool,
}

/// A limit and its source.
pub(super) type Limit = (Measure, f64, &'static str);

impl Row {
    /// Of logits.
    pub(super) fn logits(mut self, reference: &[f32], found: &[f32], vocab: usize, limits: &[Limit]) -> Self {
        self.difference = Difference::of(reference, found, vocab);
        let found = |of| {
            self.difference.and_then(|d| match of {
                Measure::MaxAbs => Some(d.max_abs),
                Measure::MeanAbs => Some(d.mean_abs),
                Measure::KlMean => Some(d.kl_mean),
                Measure::Top1Agreement => Some(d.top1_agreement),
                Measure::Agreement => None,
            })
        };
        let bound = |&(of, limit, source): &Limit| Bound { of, limit, found: found(of), source };
        self.bounds = limits.iter().map(bound).collect();
        self.judged()
    }

    /// Of lists that must be equal, entry by entry.
    pub(super) fn equal(mut self, reference: &[u32], found: &[u32], source: &'static str) -> Self {
        let same = reference.iter().zip(found).filter(|(a, b)| a == b).count();
        let comparable = reference.len() == found.len() && !reference.is_empty();
        self.agreement = comparable.then(|| same as f64 / reference.len() as f64);
        self.bounds = vec![Bound { of: Measure::Agreement, limit: 1.0, found: self.agreement, source }];
        self.judged()
    }

    /// Without a bound nothing holds.
    fn judged(mut self) -> Self {
        self.holds = !self.bounds.is_empty() && self.bounds.iter().all(Bound::holds);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROW: Row = Row {
        model: "m",
        activation_dtype: "f32",
        prompt: "p",
        what: "w",
        difference: None,
        agreement: None,
        bounds: Vec::new(),
        holds: false,
    };

    #[test]
    fn a_bound_holds_up_to_its_limit_and_never_without_a_number() {
        let limits: [Limit; 2] = [(Measure::MaxAbs, 0.5, "s"), (Measure::Top1Agreement, 0.5, "s")];
        let reference = [1.0, 0.0, 0.0, 1.0];
        let check = |found: &[f32]| ROW.logits(&reference, found, 2, &limits).holds;
        assert!(check(&[1.5, 0.0, 0.0, 1.0]));
        assert!(!check(&[1.75, 0.0, 0.0, 1.0]), "too far");
        assert!(check(&[1.0, 0.0, 0.5, 0.5]), "one of two agrees");
        assert!(!check(&[0.5, 0.5, 0.5, 0.5]) || likeliest(&[0.5, 0.5]) == 0);
        assert!(!check(&[1.0, 0.0, 0.0, f32::NAN]));
        assert!(!check(&[1.0, 0.0]), "too few");
        let none = ROW.logits(&[], &[], 2, &limits);
        assert!(!none.holds && none.difference.is_none());
        assert!(!ROW.logits(&reference, &reference, 2, &[]).holds, "no bound");
    }

    #[test]
    fn differences_are_those_of_the_distributions() {
        let ln = |p: f64| p.ln() as f32;
        let d = Difference::of(&[ln(0.5), ln(0.5)], &[ln(0.25), ln(0.75)], 2).unwrap();
        assert!((d.kl_mean - 0.143_841).abs() < 1e-5 && d.kl_mean == d.kl_max, "{d:?}");
        assert!((d.max_abs - 2.0_f64.ln()).abs() < 1e-6 && d.mean_abs < d.max_abs);
        assert_eq!((d.positions, d.top1_agreement), (1, 0.0));
    }

    #[test]
    fn lists_agree_only_whole() {
        assert!(ROW.equal(&[1, 2], &[1, 2], "s").holds);
        let half = ROW.equal(&[1, 2], &[1, 3], "s");
        assert_eq!((half.holds, half.agreement), (false, Some(0.5)));
        assert_eq!(ROW.equal(&[1, 2], &[1], "s").agreement, None);
        assert!(!ROW.equal(&[], &[], "s").holds);
    }
}
