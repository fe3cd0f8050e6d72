//! Seeded weights of any config, made in memory: a checkpoint without a download.
//!
//! A tensor's bits depend on the seed, its name and its shape alone, not on the number of threads, layers or
//! the machine: integer arithmetic and exactly rounded operations only. Scales keep activations near 1, so that
//! logits are finite and differ between tokens, and routers choose all of their experts. The model knows nothing.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bench_kernels::host::AlignedBytes;

use crate::Error;
use crate::config::ModelConfig;
use crate::layout::{self, Role, TensorSpec};
use crate::preset;
use crate::weights::{Fill, HostBytes, HostTensor, Recipe, WeightSource};

/// Bytes that one thread fills at a time; a multiple of the 8 bytes of one random word.
const CHUNK: usize = 1 << 20;
/// Bytes that are random for a moment before they become values; a multiple of 8.
const BLOCK: usize = 4096;

/// A generated checkpoint. Memory of a tensor is made when it is asked for, and shared while anyone holds it.
pub struct Dummy {
    config: ModelConfig,
    seed: u64,
    origin: Arc<str>,
    specs: HashMap<String, TensorSpec>,
    made: Mutex<HashMap<String, Weak<AlignedBytes>>>,
}

impl Dummy {
    /// The weights of a preset, cut to its first `layers` layers (`None`: all).
    ///
    /// # Errors
    /// [`Error::UnknownPreset`] or [`Error::Layers`].
    pub fn new(preset: &str, seed: u64, layers: Option<usize>) -> Result<Self, Error> {
        let mut config = preset::config(preset)?;
        if let Some(layers) = layers {
            config = config.with_layers(layers)?;
        }
        Ok(Self::from_config(config, seed, &format!("dummy:{preset}")))
    }

    /// The weights of any config; `origin` names the generator in errors.
    pub fn from_config(config: ModelConfig, seed: u64, origin: &str) -> Self {
        let specs = layout::tensors(&config).into_iter().map(|s| (s.name.clone(), s)).collect();
        Self { config, seed, origin: origin.into(), specs, made: Mutex::default() }
    }

    /// The config that the weights belong to.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn buffer(&self, spec: &TensorSpec) -> Result<Arc<AlignedBytes>, Error> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(buffer) = made.get(&spec.name).and_then(Weak::upgrade) {
            return Ok(buffer);
        }
        let mut buffer = AlignedBytes::zeroed(spec.bytes() as usize)?;
        let fill = Fill::of(spec, &self.config);
        let key = tensor_key(self.seed, &spec.name);
        buffer.fill_chunks(CHUNK, |i, chunk| fill.write(key, (i * CHUNK / 8) as u64, chunk));
        let buffer = Arc::new(buffer);
        made.insert(spec.name.clone(), Arc::downgrade(&buffer));
        Ok(buffer)
    }
}

impl WeightSource for Dummy {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<HostTensor, Error> {
        let file = || self.origin.to_string();
        let spec = self.specs.get(name).ok_or_else(|| Error::MissingTensor {
            tensor: name.to_owned(),
            file: file(),
            hint: ": the preset's layout has no such tensor".to_owned(),
        })?;
        if spec.shape != shape {
            let problem = format!("has shape {:?}, expected {shape:?}", spec.shape);
            return Err(Error::BadTensor { tensor: name.to_owned(), file: file(), problem });
        }
        let buffer = self.buffer(spec)?;
        let end = buffer.len();
        let bytes = HostBytes::Owned { buffer, start: 0, end };
        HostTensor::new(name.into(), Arc::clone(&self.origin), spec.dtype, spec.shape.clone(), bytes)
    }

    fn contains(&self, name: &str) -> bool {
        self.specs.contains_key(name)
    }

    fn recipe(&self, name: &str) -> Option<Recipe> {
        let spec = self.specs.get(name)?;
        Some(Recipe { key: tensor_key(self.seed, name), fill: Fill::of(spec, &self.config) })
    }
}

impl Fill {
    fn of(spec: &TensorSpec, config: &ModelConfig) -> Self {
        let fan_in =
            |n: usize, gain: f64| Self::Uniform { mean: 0.0, std: (gain / (n as f64).sqrt()) as f32 };
        match spec.role {
            // A tied table also makes the logits, whose spread it then decides.
            Role::Embedding if config.tie_word_embeddings => fan_in(config.hidden_size, 3.0),
            Role::Embedding => Self::Uniform { mean: 0.0, std: 1.0 },
            // Logits spread by 3, as those of trained models do.
            Role::LmHead => fan_in(config.hidden_size, 3.0),
            Role::Norm => Self::Uniform { mean: 1.0, std: 0.1 },
            Role::Router if spec.shape.len() == 2 => fan_in(config.hidden_size, 2.0),
            Role::Attention if spec.name.ends_with("norm.weight") => Self::Uniform { mean: 1.0, std: 0.1 },
            Role::Attention if spec.name.ends_with("sinks") => Self::Uniform { mean: 0.5, std: 1.0 },
            Role::Attention | Role::Mlp if spec.shape.len() == 2 => fan_in(spec.shape[1], 1.0),
            Role::Router | Role::Attention | Role::Mlp | Role::ExpertBias => {
                Self::Uniform { mean: 0.0, std: 0.02 }
            }
            // [expert, input, output]
            Role::ExpertMatrix => fan_in(spec.shape[1], 1.0),
            Role::ExpertBlocks => Self::Codes,
            // [expert, output, input / 32]
            Role::ExpertScales => Self::exponents(32 * spec.shape[2]),
        }
    }

    /// Exponents that give random codes the variance 1 / `fan_in`.
    fn exponents(fan_in: usize) -> Self {
        // Mean of the squares of the E2M1 values 0, 0.5, 1, 1.5, 2, 3, 4, 6.
        const MEAN_SQUARE: f64 = 68.5 / 8.0;
        let target = 1.0 / (fan_in as f64 * MEAN_SQUARE);
        // The scale is 2^(exponent - 127): 4^(low - 127) <= target < 4^(low + 1 - 127).
        let (mut low, mut square) = (127_u8, 1.0);
        while square > target {
            low -= 1;
            square /= 4.0;
        }
        let high = (target / square - 1.0) / 3.0;
        Self::Exponents { low, high_of_256: (high * 256.0) as u8 }
    }

    /// Writes the values of the random words from number `first` on.
    fn write(self, key: u64, first: u64, chunk: &mut [u8]) {
        // Values replace the random bytes while these are still in the first-level cache, in loops that the
        // compiler can turn into vector instructions.
        for (i, block) in chunk.chunks_mut(BLOCK).enumerate() {
            random_bytes(key, first + (i * BLOCK / 8) as u64, block);
            match self {
                Self::Uniform { mean, std } => uniform(block, mean, std),
                Self::Codes => {}
                Self::Exponents { low, high_of_256 } => {
                    for byte in block {
                        *byte = low + u8::from(*byte < high_of_256);
                    }
                }
            }
        }
    }
}

/// Turns random bytes into bf16 values, uniform with this mean and standard deviation.
fn uniform(block: &mut [u8], mean: f32, std: f32) {
    // An i16 is uniform over 2^16 values: its standard deviation is 2^16 / sqrt(12).
    let scale = std * (12.0_f32.sqrt() / 65536.0);
    for pair in block.as_chunks_mut::<2>().0 {
        let value = mean + (f32::from(i16::from_le_bytes(*pair)) + 0.5) * scale;
        // To the nearest bf16, ties to even; none of these values is infinite or not a number.
        let bits = value.to_bits();
        *pair = (((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16).to_le_bytes();
    }
}

/// Fills `block` with the random words from number `first` on, little-endian.
fn random_bytes(key: u64, first: u64, block: &mut [u8]) {
    let (words, rest) = block.as_chunks_mut::<8>();
    let mut number = first;
    for word in words {
        *word = random_word(key, number).to_le_bytes();
        number += 1;
    }
    rest.copy_from_slice(&random_word(key, number).to_le_bytes()[..rest.len()]);
}

/// Word `number` of the stream `key`: splitmix64 (Steele, Lea and Flood 2014), which can start anywhere.
fn random_word(key: u64, number: u64) -> u64 {
    mix(key.wrapping_add((number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)))
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The stream of a tensor: FNV-1a of its name, mixed with the seed.
fn tensor_key(seed: u64, name: &str) -> u64 {
    let hash = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |h: u64, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3));
    mix(mix(seed) ^ hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_join_without_a_seam() {
        for fill in [Fill::Uniform { mean: 0.5, std: 2.0 }, Fill::Codes, Fill::exponents(2880)] {
            let mut whole = vec![0; 3 * BLOCK + 6];
            fill.write(7, 0, &mut whole);
            let mut parts = vec![0; whole.len()];
            for (i, chunk) in parts.chunks_mut(8 * 13).enumerate() {
                fill.write(7, i as u64 * 13, chunk);
            }
            assert_eq!(whole, parts, "{fill:?}");
        }
    }

    #[test]
    fn words_are_splitmix64() {
        // First three outputs of the reference implementation with state 1234567 (prng.di.unimi.it/splitmix64.c).
        let expected = [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423];
        assert_eq!([0, 1, 2].map(|n| random_word(1_234_567, n)), expected);
    }

    #[test]
    fn exponents_give_the_variance_of_the_fan_in() {
        for fan_in in [32, 64, 192, 384, 2880] {
            let Fill::Exponents { low, high_of_256 } = Fill::exponents(fan_in) else { unreachable!() };
            let square = |exponent: u8| 4_f64.powi(i32::from(exponent) - 127) * 68.5 / 8.0;
            let high = f64::from(high_of_256) / 256.0;
            let variance = (1.0 - high) * square(low) + high * square(low + 1);
            assert!((variance * fan_in as f64 - 1.0).abs() < 0.02, "{fan_in}: {variance}");
        }
    }
}
