//! Pages of the KV cache: keys and values of some rows, in the layouts that attention streams.
//!
//! A page knows rows, not positions; which token stands where is the cache's matter.

use half::bf16;

use crate::error::{Error, Result};
use crate::host::{AlignedBytes, AllocError};

/// Keys that stand beside each other in a tile, so that a vector holds the same elements of all of them.
pub(super) const TILE: usize = 16;
/// Values that share a scale in `Q8_0`.
pub(super) const BLOCK: usize = 32;
/// Key codes of `Q8_0` are stored with this added, since the integer products want one side without a sign.
pub(super) const ZERO: u8 = 128;

/// What a KV cache holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvDtype {
    F32,
    Bf16,
    /// 8 bits, and for 32 values of a head's row a 16-bit scale: 34 bytes for 32 values.
    Q8_0,
}

impl KvDtype {
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Q8_0 => "q8_0",
        }
    }

    /// Bytes of one head's key or value of one position.
    pub fn row_bytes(self, head_dim: usize) -> usize {
        match self {
            Self::F32 => 4 * head_dim,
            Self::Bf16 => 2 * head_dim,
            Self::Q8_0 => head_dim / BLOCK * (BLOCK + 2),
        }
    }

    /// # Errors
    /// A width of heads that the layout does not have: `Bf16` pairs elements, `Q8_0` takes 32 together.
    pub fn check(self, head_dim: usize) -> Result<()> {
        let (multiple, expected) = match self {
            Self::F32 => (1, "at least 1"),
            Self::Bf16 => (2, "an even number for a bf16 kv cache"),
            Self::Q8_0 => (BLOCK, "a multiple of 32 for a q8_0 kv cache"),
        };
        if head_dim == 0 || !head_dim.is_multiple_of(multiple) {
            return Err(Error::Invalid { what: "head_dim", value: head_dim, expected });
        }
        Ok(())
    }
}

/// Keys and values of `rows` positions of one layer.
///
/// Head by head; values row by row. Keys of `F32` also row by row; those of `Bf16` and `Q8_0` in tiles of 16 rows
/// (the last one of what remains): `[tile][head_dim / n][rows of the tile][n]` with n = 2 and 4, so that n elements
/// fill 32 bits. Scales of `Q8_0` follow all codes, as bf16 `[head][head_dim / 32][rows]`: rounded up, and codes are
/// made with the rounded scale, so that a bf16 costs no more than an f16 and cannot overflow.
#[derive(Debug)]
pub struct KvPage {
    pub(super) dtype: KvDtype,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) rows: usize,
    k: AlignedBytes,
    v: AlignedBytes,
}

impl KvPage {
    /// Rows of zeros.
    ///
    /// # Errors
    /// No memory. A `head_dim` that [`KvDtype::check`] refuses shows when attention is called.
    pub fn new(
        dtype: KvDtype,
        kv_heads: usize,
        head_dim: usize,
        rows: usize,
    ) -> std::result::Result<Self, AllocError> {
        let bytes = rows * kv_heads * dtype.row_bytes(head_dim);
        let (k, v) = (AlignedBytes::zeroed(bytes)?, AlignedBytes::zeroed(bytes)?);
        Ok(Self { dtype, kv_heads, head_dim, rows, k, v })
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Bytes of keys and values.
    pub fn bytes(&self) -> usize {
        self.k.len() + self.v.len()
    }

    /// Writes one position's keys and values, each `[kv_heads, head_dim]`, into `row`.
    ///
    /// # Panics
    /// If the row is not there or has another width.
    pub fn write(&mut self, row: usize, k: &[f32], v: &[f32]) {
        let (d, rows) = (self.head_dim, self.rows);
        assert!(row < rows && k.len() == self.kv_heads * d && v.len() == k.len(), "a row of this page");
        let (k_bytes, v_bytes) = (self.k.as_bytes_mut(), self.v.as_bytes_mut());
        for (head, (k, v)) in k.chunks_exact(d).zip(v.chunks_exact(d)).enumerate() {
            let at = (head * rows + row) * d;
            match self.dtype {
                KvDtype::F32 => {
                    bytemuck::cast_slice_mut::<u8, f32>(k_bytes)[at..at + d].copy_from_slice(k);
                    bytemuck::cast_slice_mut::<u8, f32>(v_bytes)[at..at + d].copy_from_slice(v);
                }
                KvDtype::Bf16 => {
                    let keys: &mut [u16] = bytemuck::cast_slice_mut(k_bytes);
                    let tile = Tile::of(head, row, rows, d);
                    for (pair, k) in k.chunks_exact(2).enumerate() {
                        let to = tile.at(pair, 2);
                        keys[to] = bf16::from_f32(k[0]).to_bits();
                        keys[to + 1] = bf16::from_f32(k[1]).to_bits();
                    }
                    let values: &mut [u16] = bytemuck::cast_slice_mut(&mut v_bytes[2 * at..2 * (at + d)]);
                    for (to, v) in values.iter_mut().zip(v) {
                        *to = bf16::from_f32(*v).to_bits();
                    }
                }
                KvDtype::Q8_0 => {
                    let tile = Tile::of(head, row, rows, d);
                    let (codes, scales) = k_bytes.split_at_mut(rows * self.kv_heads * d);
                    let scale_at = |block: usize| (head * (d / BLOCK) + block) * rows + row;
                    for (block, k) in k.chunks_exact(BLOCK).enumerate() {
                        let inverse = put_scale(scales, scale_at(block), k);
                        for (i, k) in k.iter().enumerate() {
                            let element = block * BLOCK + i;
                            codes[tile.at(element / 4, 4) + element % 4] =
                                code(*k, inverse).cast_unsigned() ^ ZERO;
                        }
                    }
                    let (codes, scales) = v_bytes.split_at_mut(rows * self.kv_heads * d);
                    for (block, v) in v.chunks_exact(BLOCK).enumerate() {
                        let inverse = put_scale(scales, scale_at(block), v);
                        let codes = &mut codes[at + block * BLOCK..][..BLOCK];
                        for (to, v) in codes.iter_mut().zip(v) {
                            *to = code(*v, inverse).cast_unsigned();
                        }
                    }
                }
            }
        }
    }

    /// Calls `with(i, key, value)` for the elements of a head's row, widened.
    pub fn read(&self, head: usize, row: usize, mut with: impl FnMut(usize, f32, f32)) {
        let (d, rows) = (self.head_dim, self.rows);
        let at = (head * rows + row) * d;
        let tile = Tile::of(head, row, rows, d);
        match self.dtype {
            KvDtype::F32 => {
                let (k, v) = (&self.k_as::<f32>()[at..at + d], &self.v_as::<f32>()[at..at + d]);
                (0..d).for_each(|i| with(i, k[i], v[i]));
            }
            KvDtype::Bf16 => {
                let (k, v) = (self.k_as::<bf16>(), &self.v_as::<bf16>()[at..at + d]);
                (0..d).for_each(|i| with(i, k[tile.at(i / 2, 2) + i % 2].to_f32(), v[i].to_f32()));
            }
            KvDtype::Q8_0 => {
                let (k, v) = (self.k_as::<u8>(), &self.v_as::<i8>()[at..at + d]);
                for i in 0..d {
                    let scale = (head * (d / BLOCK) + i / BLOCK) * rows + row;
                    let code = (k[tile.at(i / 4, 4) + i % 4] ^ ZERO).cast_signed();
                    let key = f32::from(code) * self.k_scales()[scale].to_f32();
                    with(i, key, f32::from(v[i]) * self.v_scales()[scale].to_f32());
                }
            }
        }
    }

    pub(super) fn k_as<T: bytemuck::AnyBitPattern>(&self) -> &[T] {
        bytemuck::cast_slice(self.k.as_bytes())
    }

    pub(super) fn v_as<T: bytemuck::AnyBitPattern>(&self) -> &[T] {
        bytemuck::cast_slice(self.v.as_bytes())
    }

    /// Scales of `Q8_0`.
    pub(super) fn k_scales(&self) -> &[bf16] {
        bytemuck::cast_slice(&self.k.as_bytes()[self.rows * self.kv_heads * self.head_dim..])
    }

    pub(super) fn v_scales(&self) -> &[bf16] {
        bytemuck::cast_slice(&self.v.as_bytes()[self.rows * self.kv_heads * self.head_dim..])
    }
}

/// Where a row's key stands among the tiles.
struct Tile {
    start: usize,
    width: usize,
    lane: usize,
}

impl Tile {
    fn of(head: usize, row: usize, rows: usize, head_dim: usize) -> Self {
        let first = row / TILE * TILE;
        Self { start: (head * rows + first) * head_dim, width: TILE.min(rows - first), lane: row - first }
    }

    /// The first of the n elements of `part` that stand together.
    fn at(&self, part: usize, n: usize) -> usize {
        self.start + (part * self.width + self.lane) * n
    }
}

/// Writes the scale of a block and returns its inverse; 0 for a block of zeros.
fn put_scale(scales: &mut [u8], at: usize, values: &[f32]) -> f32 {
    let largest = values.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
    // Up to the next bf16, so that no code is beyond 127.
    let bits = (largest / 127.0).to_bits();
    let scale = bf16::from_bits(((bits + 0xffff) >> 16) as u16);
    bytemuck::cast_slice_mut::<u8, bf16>(scales)[at] = scale;
    let scale = scale.to_f32();
    if scale >= f32::MIN_POSITIVE { 1.0 / scale } else { 0.0 }
}

fn code(value: f32, inverse: f32) -> i8 {
    (value * inverse).round_ties_even() as i8
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is read is what was written, rounded as the dtype rounds; rows do not touch each other.
    #[test]
    fn rows_are_read_as_they_were_written() {
        let (kv_heads, d) = (3, 64);
        for (dtype, step) in
            [(KvDtype::F32, 0.0), (KvDtype::Bf16, 1.0 / 256.0), (KvDtype::Q8_0, 1.01 / 254.0)]
        {
            for rows in [1, 15, 16, 17, 50] {
                let mut page = KvPage::new(dtype, kv_heads, d, rows).unwrap();
                assert_eq!(page.bytes(), 2 * rows * kv_heads * dtype.row_bytes(d));
                let value = |row: usize, i: usize| ((row * 7919 + i * 104_729) % 2003) as f32 / 1001.5 - 1.0;
                for row in (0..rows).rev() {
                    let k: Vec<f32> = (0..kv_heads * d).map(|i| value(row, i)).collect();
                    let v: Vec<f32> = k.iter().map(|k| k * 0.5).collect();
                    page.write(row, &k, &v);
                }
                let (mut k, mut v) = (vec![0.0; d], vec![0.0; d]);
                for (row, head) in (0..rows).flat_map(|r| (0..kv_heads).map(move |h| (r, h))) {
                    page.read(head, row, |i, key, value| (k[i], v[i]) = (key, value));
                    for i in 0..d {
                        let expected = value(row, head * d + i);
                        assert!((k[i] - expected).abs() <= step, "{dtype:?} {rows} {row}");
                        assert!((v[i] - expected * 0.5).abs() <= step * 0.5, "{dtype:?} {rows} {row}");
                    }
                }
            }
        }
    }

    #[test]
    fn widths_that_a_layout_does_not_have_are_refused() {
        assert!(KvDtype::F32.check(7).is_ok() && KvDtype::Bf16.check(34).is_ok());
        assert!(KvDtype::Bf16.check(7).is_err() && KvDtype::Q8_0.check(48).is_err());
        assert_eq!(KvDtype::Q8_0.row_bytes(64), 68);
    }
}
