//! How far one way to compute is from another: next-token distributions of the same text, position by position.
//!
//! Whether a distance is small enough is not decided here. Weights are not compared, and no text is judged.

use candle_core::Tensor;
use serde::Serialize;

use crate::error::{Error, Result};
use crate::hooks::Hooks;
use crate::model::Model;

/// What a model computed for a text: the logits after each token, and the experts that were chosen.
pub struct Reference {
    ids: Vec<u32>,
    chunk: usize,
    vocab: usize,
    /// `[positions, vocab]`.
    logits: Vec<f32>,
    /// Of each chunk the choice of each layer, `[T, k]`; no layers in dense models.
    choices: Vec<Vec<Tensor>>,
}

/// Who chooses the experts of a model that is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Routing {
    /// The model itself: two experts of nearly equal logits may change places.
    Free,
    /// The reference: what is left is arithmetic.
    Forced,
}

/// A distance from the reference, over all positions.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Distance {
    pub positions: usize,
    /// Divergence of the next-token distribution from the reference's, nats.
    pub kl_mean: f64,
    pub kl_max: f64,
    /// Share of positions whose likeliest token is the reference's.
    pub top1_agreement: f64,
    /// Mean absolute difference of logits over the standard deviation of the reference's logits; `None` where these
    /// are all equal.
    pub logit_difference: Option<f64>,
    /// Share of experts that the reference did not choose; `None` where none are chosen freely.
    pub other_experts: Option<f64>,
}

impl Reference {
    /// Runs `ids` through `model`, `chunk` of them at a time, and keeps all logits.
    ///
    /// # Errors
    /// Those of a forward pass.
    pub fn compute(model: &Model, ids: &[u32], chunk: usize) -> Result<Self> {
        let vocab = model.config().vocab_size;
        let mut reference = Self {
            ids: ids.to_vec(),
            chunk: chunk.max(1),
            vocab,
            logits: Vec::with_capacity(ids.len() * vocab),
            choices: Vec::new(),
        };
        let sites = choice_sites(model);
        let mut sequence = model.sequence();
        for part in ids.chunks(reference.chunk) {
            let mut hooks = Hooks::read(&names(&sites))?;
            let logits = model.forward_all(&mut [&mut sequence], &[part], part.len(), &mut hooks)?;
            reference.logits.extend(values(&logits)?);
            reference.choices.push(sites.iter().flat_map(|site| hooks.take(site)).collect());
        }
        Ok(reference)
    }

    /// Runs the same text through `model`; only one chunk of its logits is kept at a time.
    ///
    /// # Errors
    /// A model of another shape, and those of a forward pass.
    pub fn distance(&self, model: &Model, routing: Routing) -> Result<Distance> {
        let sites = choice_sites(model);
        if model.config().vocab_size != self.vocab || self.choices.iter().any(|c| c.len() != sites.len()) {
            let problem = "has another vocabulary or other layers than the reference".to_owned();
            return Err(Error::InvalidModel { what: "compared model".to_owned(), problem });
        }
        let mut tally = Tally::default();
        let mut sequence = model.sequence();
        let rows = self.logits.chunks(self.chunk * self.vocab);
        for ((part, expected), choices) in self.ids.chunks(self.chunk).zip(rows).zip(&self.choices) {
            let mut hooks = Hooks::read(&names(&sites))?;
            if routing == Routing::Forced {
                for (site, choice) in sites.iter().zip(choices) {
                    hooks = hooks.replace(site, move |_| Ok(choice.clone()))?;
                }
            }
            let logits = model.forward_all(&mut [&mut sequence], &[part], part.len(), &mut hooks)?;
            let found = values(&logits)?;
            for (expected, found) in expected.chunks(self.vocab).zip(found.chunks(self.vocab)) {
                tally.add(expected, found);
            }
            if routing == Routing::Free {
                for (site, choice) in sites.iter().zip(choices) {
                    let taken = hooks.take(site);
                    tally.add_choice(choice, taken.first())?;
                }
            }
        }
        Ok(tally.distance())
    }
}

/// Where the experts of each layer are chosen.
fn choice_sites(model: &Model) -> Vec<String> {
    let layers = if model.config().moe.is_some() { model.config().num_hidden_layers } else { 0 };
    (0..layers).map(|layer| format!("expert_index.{layer}")).collect()
}

fn names(sites: &[String]) -> Vec<&str> {
    sites.iter().map(String::as_str).collect()
}

fn values(logits: &Tensor) -> Result<Vec<f32>> {
    Ok(logits.flatten_all()?.to_vec1()?)
}

/// Sums over positions.
#[derive(Debug, Default)]
struct Tally {
    positions: usize,
    kl_sum: f64,
    kl_max: f64,
    agreeing: usize,
    difference_sum: f64,
    /// Positions whose logits differ among themselves.
    spread: usize,
    experts: u64,
    others: u64,
}

impl Tally {
    /// Logits of one position.
    fn add(&mut self, reference: &[f32], found: &[f32]) {
        let kl = divergence(reference, found);
        self.positions += 1;
        self.kl_sum += kl;
        self.kl_max = self.kl_max.max(kl);
        self.agreeing += usize::from(likeliest(reference) == likeliest(found));
        if let Some(difference) = relative_difference(reference, found) {
            self.difference_sum += difference;
            self.spread += 1;
        }
    }

    /// Experts of one layer and chunk, `[T, k]`; their order says nothing.
    fn add_choice(&mut self, reference: &Tensor, found: Option<&Tensor>) -> Result<()> {
        let Some(found) = found else { return Ok(()) };
        for (reference, found) in reference.to_vec2::<u32>()?.iter().zip(found.to_vec2::<u32>()?) {
            self.experts += found.len() as u64;
            self.others += found.iter().filter(|expert| !reference.contains(expert)).count() as u64;
        }
        Ok(())
    }

    fn distance(&self) -> Distance {
        let share = |n: f64, of: u64| (of > 0).then(|| n / of as f64);
        let positions = self.positions.max(1) as f64;
        Distance {
            positions: self.positions,
            kl_mean: self.kl_sum / positions,
            kl_max: self.kl_max,
            top1_agreement: self.agreeing as f64 / positions,
            logit_difference: share(self.difference_sum, self.spread as u64),
            other_experts: share(self.others as f64, self.experts),
        }
    }
}

/// Kullback-Leibler divergence of softmax(`found`) from softmax(`reference`) in nats: sum of p · (ln p − ln q). In
/// f64, since a sum over 200,000 tokens of differences of 1e-4 is asked for.
pub fn divergence(reference: &[f32], found: &[f32]) -> f64 {
    let (p_norm, q_norm) = (log_sum_exp(reference), log_sum_exp(found));
    let term = |(p, q): (&f32, &f32)| {
        let (log_p, log_q) = (f64::from(*p) - p_norm, f64::from(*q) - q_norm);
        log_p.exp() * (log_p - log_q)
    };
    // Rounding may leave it below 0 where the two are equal.
    reference.iter().zip(found).map(term).sum::<f64>().max(0.0)
}

/// ln of the sum of e^x, with the largest taken out first so that nothing overflows.
fn log_sum_exp(logits: &[f32]) -> f64 {
    let largest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    largest + logits.iter().map(|x| (f64::from(*x) - largest).exp()).sum::<f64>().ln()
}

/// Index of the largest; the first of equals.
pub(crate) fn likeliest(logits: &[f32]) -> usize {
    let better = |best: usize, (i, x): (usize, &f32)| if *x > logits[best] { i } else { best };
    logits.iter().enumerate().fold(0, better)
}

/// Mean absolute difference over the standard deviation of the reference.
fn relative_difference(reference: &[f32], found: &[f32]) -> Option<f64> {
    let n = reference.len() as f64;
    let mean = reference.iter().map(|x| f64::from(*x)).sum::<f64>() / n;
    let variance = reference.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / n;
    let differences = reference.iter().zip(found).map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs());
    (variance > 0.0).then(|| differences.sum::<f64>() / n / variance.sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dummy::Dummy;
    use crate::{ActivationDtype, LoadOptions};

    fn logits(probabilities: &[f64], shift: f64) -> Vec<f32> {
        probabilities.iter().map(|p| (p.ln() + shift) as f32).collect()
    }

    #[test]
    fn divergence_is_that_of_the_distributions() {
        // 0.5 ln (0.5 / 0.25) + 0.5 ln (0.5 / 0.75) = ln 2 - 0.5 ln 3
        let (p, q) = (logits(&[0.5, 0.5], 0.0), logits(&[0.25, 0.75], 0.0));
        assert!((divergence(&p, &q) - 0.143_841_036_225_89).abs() < 1e-7);
        // 0.25 ln (0.25 / 0.5) + 0.75 ln (0.75 / 0.5)
        assert!((divergence(&q, &p) - 0.130_812_035_941_137).abs() < 1e-7);
        // Logits say nothing by their level, however high.
        let (p, q) = (logits(&[0.5, 0.5], 900.0), logits(&[0.25, 0.75], -900.0));
        assert!((divergence(&p, &q) - 0.143_841).abs() < 1e-4);
        assert_eq!(divergence(&p, &p), 0.0);
        // A token that is out of the question counts for nothing.
        assert!((divergence(&[0.0, 0.0, -1e4], &[0.0, 0.0, -2e4])).abs() < 1e-12);
    }

    #[test]
    fn positions_are_summed_up() {
        let mut tally = Tally::default();
        tally.add(&[0.0, 2.0, 4.0, 6.0], &[1.0, 2.0, 4.0, 6.0]);
        tally.add(&[0.0, 0.0, 0.0, 0.0], &[0.0, 1.0, 0.0, 0.0]);
        let distance = tally.distance();
        assert_eq!((distance.positions, distance.top1_agreement), (2, 0.5));
        // Mean difference 1 / 4, deviation of 0, 2, 4, 6 around 3 is sqrt 5; the second has no deviation.
        assert!((distance.logit_difference.unwrap() - 0.25 / 5.0_f64.sqrt()).abs() < 1e-12);
        // ln 4 - (1 / 4 · 1 - ln (3 + e)) of the second.
        let second = ((3.0 + 1_f64.exp()) / 4.0).ln() - 0.25;
        assert!((distance.kl_max - second).abs() < 1e-12 && distance.kl_mean < second);
        assert_eq!(distance.other_experts, None);
    }

    #[test]
    fn experts_are_compared_as_sets() {
        let tensor = |rows: [[u32; 2]; 2]| Tensor::new(&rows, &candle_core::Device::Cpu).unwrap();
        let mut tally = Tally::default();
        tally.add_choice(&tensor([[1, 2], [3, 4]]), Some(&tensor([[2, 1], [3, 5]]))).unwrap();
        assert_eq!(tally.distance().other_experts, Some(0.25));
    }

    fn model(name: &str, options: &LoadOptions) -> Model {
        let dummy = Dummy::new(name, 7, None).unwrap();
        Model::build(dummy.config().clone(), &dummy, options, &mut |_| ()).unwrap()
    }

    #[test]
    fn a_model_is_no_distance_from_itself_and_some_from_half_its_digits() {
        let ids: Vec<u32> = (0..37).map(|i| (i * 31 + 5) % 500).collect();
        let bf16 = LoadOptions { activation_dtype: ActivationDtype::Bf16, ..LoadOptions::default() };
        for (name, experts) in [("gpt-oss-tiny", true), ("dense-tiny", false)] {
            let exact = model(name, &LoadOptions::default());
            let reference = Reference::compute(&exact, &ids, 16).unwrap();
            for routing in [Routing::Free, Routing::Forced] {
                let same = reference.distance(&exact, routing).unwrap();
                assert_eq!((same.positions, same.kl_max, same.top1_agreement), (37, 0.0, 1.0), "{name}");
                assert_eq!(same.logit_difference, Some(0.0), "{name}");
            }
            let half = model(name, &bf16);
            let [free, forced] =
                [Routing::Free, Routing::Forced].map(|r| reference.distance(&half, r).unwrap());
            // With its own experts a small model with generated weights may be anywhere.
            assert!(forced.kl_mean > 1e-9 && forced.kl_mean < 0.05, "{name}: {forced:?}");
            for distance in [free, forced] {
                assert!(
                    distance.kl_mean > 1e-9 && distance.kl_max >= distance.kl_mean,
                    "{name}: {distance:?}"
                );
            }
            assert_eq!((free.other_experts.is_some(), forced.other_experts), (experts, None), "{name}");
        }
    }

    #[test]
    fn another_model_is_refused() {
        let reference =
            Reference::compute(&model("gpt-oss-tiny", &LoadOptions::default()), &[1, 2], 2).unwrap();
        let cut = LoadOptions { num_layers: Some(1), ..LoadOptions::default() };
        let error = reference.distance(&model("gpt-oss-tiny", &cut), Routing::Free).unwrap_err().to_string();
        assert!(error.starts_with("compared model: has another vocabulary or other layers"), "{error}");
    }
}
