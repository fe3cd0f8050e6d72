//! What a check of a kernel found, and seeded values to check with.

use half::bf16;

/// One case of a kernel against plain arithmetic.
#[derive(Debug, Clone)]
pub struct CheckRow {
    pub kernel: String,
    /// Shapes and options.
    pub case: String,
    /// Largest difference, relative to the scale that the check states.
    pub difference: f64,
    pub allowed: f64,
}

impl CheckRow {
    pub fn passed(&self) -> bool {
        self.difference <= self.allowed
    }
}

/// Seeded values for checks: splitmix64 (Steele, Lea and Flood 2014).
#[derive(Debug, Clone)]
pub struct Values(u64);

impl Values {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from `low` to `high`, both included.
    pub fn between(&mut self, low: usize, high: usize) -> usize {
        low + (self.word() % (high - low + 1) as u64) as usize
    }

    /// One of `choices`.
    pub fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.between(0, choices.len() - 1)]
    }

    /// Between -1 and 1.
    pub fn real(&mut self) -> f32 {
        (self.word() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    /// `n` values between `-scale` and `scale`.
    pub fn reals(&mut self, n: usize, scale: f32) -> Vec<f32> {
        (0..n).map(|_| self.real() * scale).collect()
    }

    /// `n` bf16 values between `-scale` and `scale`.
    pub fn bf16s(&mut self, n: usize, scale: f32) -> Vec<bf16> {
        (0..n).map(|_| bf16::from_f32(self.real() * scale)).collect()
    }

    pub fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| (self.word() >> 56) as u8).collect()
    }
}
