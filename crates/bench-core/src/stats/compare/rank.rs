//! Ranks of two samples: Mann-Whitney's test, the probability that one is larger, Hodges and Lehmann's shift,
//! and whether the parts of one sample differ (Kruskal and Wallis).
//!
//! Exact where that is cheap. Nothing here knows which of the two is better.

use statrs::distribution::{ChiSquared, ContinuousCDF, Normal};

/// Work, in additions, up to which a p-value is counted out instead of approximated: 20 against 20 with ties.
const EXACT_WORK: usize = 1_500_000;

/// Products of sizes up to which rank sums without ties are counted out: the law is normal to 0.0005 beyond.
const EXACT_PAIRS: usize = 900;

/// Two samples by their ranks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ranked {
    /// Two-sided p-value of Mann-Whitney's test.
    pub p: f64,
    /// Counted out over all rearrangements; else by the normal law, with ties and continuity corrected for.
    pub exact: bool,
    /// Probability that a sample of the second is larger than one of the first, ties counted half.
    pub superiority: f64,
}

/// Mann-Whitney's test that neither sample tends to be larger (Mann and Whitney 1947). `None` where one is
/// empty.
pub fn mann_whitney(a: &[f64], b: &[f64]) -> Option<Ranked> {
    if a.is_empty() || b.is_empty() {
        return None;
    }
    let pooled = Midranks::of(&[a, b]);
    let (n, m) = (a.len() as f64, b.len() as f64);
    // Twice the rank sum of `b`, a whole number even with ties.
    let twice: u64 = pooled.twice[1].iter().sum();
    let u = twice as f64 / 2.0 - m * (m + 1.0) / 2.0;
    let superiority = u / (n * m);
    let untied = pooled.ties == 0.0;
    if untied && a.len() * b.len() <= EXACT_PAIRS {
        let p = counted_untied(a.len(), b.len(), u.min(n * m - u) as usize);
        return Some(Ranked { p, exact: true, superiority });
    }
    let few = a.len().min(b.len());
    let all = a.len() + b.len();
    if !untied && all * few * all * (all + 1) <= EXACT_WORK * 2 {
        let ranks: Vec<u64> = pooled.twice.concat();
        let p = counted_tied(&ranks, b.len(), twice);
        return Some(Ranked { p, exact: true, superiority });
    }
    let total = n + m;
    let variance = n * m / 12.0 * (total + 1.0 - pooled.ties / (total * (total - 1.0)));
    let distance = ((u - n * m / 2.0).abs() - 0.5).max(0.0);
    let p = if variance > 0.0 { two_sided(distance / variance.sqrt()) } else { 1.0 };
    Some(Ranked { p, exact: false, superiority })
}

/// Two-sided p-value of a standard normal deviate.
pub(super) fn two_sided(z: f64) -> f64 {
    (2.0 * Normal::standard().sf(z.abs())).min(1.0)
}

/// Smallest two-sided p-value that `n` against `m` samples can have: all of one above all of the other.
pub fn smallest_p(n: usize, m: usize) -> f64 {
    let few = n.min(m);
    let ways: f64 = (1..=few).map(|i| (n + m - few + i) as f64 / i as f64).product();
    if few == 0 { 1.0 } else { (2.0 / ways).min(1.0) }
}

/// P(U <= u) twice, without ties: the numbers of arrangements are the coefficients of a Gaussian binomial.
fn counted_untied(n: usize, m: usize, u: usize) -> f64 {
    let (few, many) = (n.min(m), n.max(m));
    let mut ways = vec![0.0_f64; n * m + 1];
    ways[0] = 1.0;
    for i in 1..=few {
        for at in (many + i..ways.len()).rev() {
            ways[at] -= ways[at - many - i];
        }
        for at in i..ways.len() {
            ways[at] += ways[at - i];
        }
    }
    let all: f64 = ways.iter().sum();
    (2.0 * ways[..=u].iter().sum::<f64>() / all).clamp(0.0, 1.0)
}

/// Share of all choices of `m` of the `ranks` whose sum is as far from the mean as `sum`, or farther.
fn counted_tied(ranks: &[u64], m: usize, sum: u64) -> f64 {
    let total: u64 = ranks.iter().sum();
    let (m, sum) = if 2 * m > ranks.len() { (ranks.len() - m, total - sum) } else { (m, sum) };
    let width = total as usize + 1;
    // ways[k][s]: choices of k ranks with sum s.
    let mut ways = vec![0.0_f64; (m + 1) * width];
    ways[0] = 1.0;
    for (seen, &rank) in ranks.iter().enumerate() {
        for k in (1..=m.min(seen + 1)).rev() {
            let (before, now) = ways.split_at_mut(k * width);
            let before = &before[(k - 1) * width..];
            for (to, from) in now[rank as usize..width].iter_mut().zip(before) {
                *to += from;
            }
        }
    }
    let row = &ways[m * width..];
    // The mean of the sum is m / N of the total: compared as whole numbers.
    let (n, mean) = (ranks.len() as i128, m as i128 * i128::from(total));
    let far = (i128::from(sum) * n - mean).abs();
    let as_far = |s: usize| (s as i128 * n - mean).abs() >= far;
    let extreme: f64 = row.iter().enumerate().filter(|(s, _)| as_far(*s)).map(|(_, w)| w).sum();
    (extreme / row.iter().sum::<f64>()).clamp(0.0, 1.0)
}

/// Twice the rank of each value among all, ties sharing their mean.
struct Midranks {
    twice: Vec<Vec<u64>>,
    /// Sum of t^3 - t over the groups of ties.
    ties: f64,
}

impl Midranks {
    fn of(samples: &[&[f64]]) -> Self {
        let mut all: Vec<(f64, usize, usize)> = Vec::new();
        for (sample, values) in samples.iter().enumerate() {
            all.extend(values.iter().enumerate().map(|(i, v)| (*v, sample, i)));
        }
        all.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        let mut twice: Vec<Vec<u64>> = samples.iter().map(|s| vec![0; s.len()]).collect();
        let (mut below, mut ties) = (0_u64, 0.0);
        for tied in all.chunk_by(|a, b| a.0 == b.0) {
            let t = tied.len() as u64;
            ties += (t as f64).powi(3) - t as f64;
            for &(_, sample, i) in tied {
                twice[sample][i] = 2 * below + t + 1;
            }
            below += t;
        }
        Self { twice, ties }
    }
}

/// Kruskal and Wallis's H over the parts of one sample, and its degrees of freedom; `None` below two parts.
pub(super) fn kruskal_wallis(parts: &[&[f64]]) -> Option<(f64, f64)> {
    let n: usize = parts.iter().map(|p| p.len()).sum();
    if parts.len() < 2 || parts.iter().any(|p| p.is_empty()) {
        return None;
    }
    let (ranks, n) = (Midranks::of(parts), n as f64);
    let correction = 1.0 - ranks.ties / (n * n * n - n);
    let middle = f64::midpoint(n, 1.0);
    let of = |twice: &Vec<u64>| {
        let size = twice.len() as f64;
        size * (twice.iter().sum::<u64>() as f64 / 2.0 / size - middle).powi(2)
    };
    let h = 12.0 / (n * (n + 1.0)) * ranks.twice.iter().map(of).sum::<f64>();
    let freedom = parts.len() as f64 - 1.0;
    Some((if correction > 0.0 { h / correction } else { 0.0 }, freedom))
}

/// Upper tail of chi-squared.
pub(super) fn chi_squared_p(value: f64, freedom: f64) -> f64 {
    ChiSquared::new(freedom).map_or(1.0, |law| law.sf(value))
}

/// Median of all differences of one of `b` and one of `a` (Hodges and Lehmann 1963); `None` where one is
/// empty.
///
/// By halving between the smallest and the largest difference and counting in sorted order, so that it needs
/// neither time nor memory for all pairs.
pub fn shift(a: &[f64], b: &[f64]) -> Option<f64> {
    let sorted = |values: &[f64]| {
        let mut values = values.to_vec();
        values.sort_unstable_by(f64::total_cmp);
        values
    };
    let (a, b) = (sorted(a), sorted(b));
    let (first, last) = (b.first()? - a.last()?, b.last()? - a.first()?);
    let pairs = a.len() as u64 * b.len() as u64;
    let at = |rank: u64| {
        let (mut low, mut high) = (first, last);
        if up_to(&a, &b, low) >= rank {
            return low;
        }
        // Each halving takes one bit of a difference's 53.
        for _ in 0..60 {
            let middle = low + (high - low) / 2.0;
            if up_to(&a, &b, middle) >= rank { high = middle } else { low = middle }
        }
        high
    };
    // The two in the middle, which are one of an odd number.
    Some(f64::midpoint(at(pairs.div_ceil(2)), at(pairs / 2 + 1)))
}

/// Pairs whose difference is at most `limit`.
fn up_to(a: &[f64], b: &[f64], limit: f64) -> u64 {
    let (mut count, mut reached) = (0, 0);
    for x in a {
        while reached < b.len() && b[reached] - x <= limit {
            reached += 1;
        }
        count += reached as u64;
    }
    count
}

/// Holm's step-down correction (Holm 1979): each p-value such that keeping those up to 5 % errs anywhere in 5
/// % of cases, however the tests depend on each other.
pub fn holm(p_values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p_values.len()).collect();
    order.sort_by(|a, b| p_values[*a].total_cmp(&p_values[*b]));
    let (mut corrected, mut largest) = (vec![1.0; p_values.len()], 0.0_f64);
    for (done, index) in order.into_iter().enumerate() {
        largest = largest.max((p_values.len() - done) as f64 * p_values[index]).min(1.0);
        corrected[index] = largest;
    }
    corrected
}
