//! The rotation of the Turbo modes: y = H·S·x.
//!
//! H is the normalised Walsh–Hadamard matrix (H·H = I), S a fixed diagonal of ±1. Keys and values
//! have different diagonals: coordinate i is negated when the top bit of the i-th output of
//! SplitMix64 is 1, seeded with the ASCII bytes of `mlxcel-k` or `mlxcel-v` (big endian). The
//! diagonal of a smaller dimension is a prefix of that of a larger one. Saved caches depend on
//! these seeds: changing one is a new file version.

use crate::error::{KernelError, Result};

/// The largest dimension that can be rotated.
pub const MAX_DIM: usize = 512;

/// Side of the cache that a rotation belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// Keys (and queries).
    Key,
    /// Values (and attention outputs).
    Value,
}

const SIGN_BIT: u32 = 1 << 31;

/// SplitMix64 (Steele, Lea, Flood 2014), top bit of each output as an f32 sign mask.
const fn sign_masks(seed: u64) -> [u32; MAX_DIM] {
    let mut out = [0; MAX_DIM];
    let mut state = seed;
    let mut i = 0;
    while i < MAX_DIM {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^= z >> 31;
        out[i] = if z >> 63 == 1 { SIGN_BIT } else { 0 };
        i += 1;
    }
    out
}

static KEY_SIGNS: [u32; MAX_DIM] = sign_masks(u64::from_be_bytes(*b"mlxcel-k"));
static VALUE_SIGNS: [u32; MAX_DIM] = sign_masks(u64::from_be_bytes(*b"mlxcel-v"));

impl Side {
    fn sign_masks(self) -> &'static [u32; MAX_DIM] {
        match self {
            Self::Key => &KEY_SIGNS,
            Self::Value => &VALUE_SIGNS,
        }
    }

    /// The first `dim` entries of the diagonal S, each 1 or −1.
    ///
    /// # Errors
    /// [`KernelError::Dimension`] as [`check_dim`].
    pub fn signs(self, dim: usize) -> Result<Vec<f32>> {
        check_dim(dim)?;
        let one = 1.0f32.to_bits();
        Ok(self.sign_masks()[..dim].iter().map(|mask| f32::from_bits(one ^ mask)).collect())
    }
}

/// Errors unless `dim` is a power of two of at most [`MAX_DIM`].
///
/// # Errors
/// [`KernelError::Dimension`].
pub fn check_dim(dim: usize) -> Result<()> {
    if dim.is_power_of_two() && dim <= MAX_DIM {
        return Ok(());
    }
    let rule = "a power of two of at most 512 for a turbo mode";
    Err(KernelError::Dimension { what: "head dimension", value: dim, rule })
}

/// x ← H·S·x, in place.
///
/// # Panics
/// If the length of `x` breaks [`check_dim`]: layouts check it once.
#[inline(always)]
pub fn rotate(side: Side, x: &mut [f32]) {
    negate(side, x);
    transform(x);
}

/// x ← S·H·x, the inverse of [`rotate`], in place.
///
/// # Panics
/// See [`rotate`].
#[inline(always)]
pub fn rotate_back(side: Side, x: &mut [f32]) {
    transform(x);
    negate(side, x);
}

/// x ← S·x, in place.
#[inline(always)]
pub fn negate(side: Side, x: &mut [f32]) {
    for (x, mask) in x.iter_mut().zip(side.sign_masks()) {
        *x = f32::from_bits(x.to_bits() ^ mask);
    }
}

/// x ← H·x with H·H = I, by butterflies of growing width.
#[inline(always)]
fn transform(x: &mut [f32]) {
    let dim = x.len();
    assert!(dim.is_power_of_two() && dim <= MAX_DIM, "rotation of dimension {dim}");
    let mut half = 1;
    while half < dim {
        for pair in x.chunks_exact_mut(2 * half) {
            let (low, high) = pair.split_at_mut(half);
            for (a, b) in low.iter_mut().zip(high) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        half *= 2;
    }
    let scale = 1.0 / (dim as f32).sqrt();
    x.iter_mut().for_each(|x| *x *= scale);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotation_is_the_defined_matrix_and_inverts() {
        for side in [Side::Key, Side::Value] {
            for dim in [1usize, 2, 8, 16, 64, 512] {
                let signs = side.signs(dim).unwrap();
                for column in [0, dim / 3, dim - 1] {
                    let mut x = vec![0.0f32; dim];
                    x[column] = 1.0;
                    rotate(side, &mut x);
                    for (row, &y) in x.iter().enumerate() {
                        let parity = (row & column).count_ones() % 2;
                        let h = if parity == 0 { 1.0 } else { -1.0 } / (dim as f32).sqrt();
                        assert!((y - h * signs[column]).abs() < 1e-6, "{dim} {row} {column}");
                    }
                    rotate_back(side, &mut x);
                    assert!((x[column] - 1.0).abs() < 1e-6);
                }
            }
        }
    }

    #[test]
    fn diagonals_are_pinned_balanced_and_different() {
        // First sixteen signs, as a bit string: a saved cache depends on them.
        let bits = |side: Side| {
            side.signs(16).unwrap().iter().fold(0u32, |acc, &s| acc << 1 | u32::from(s < 0.0))
        };
        assert_eq!((bits(Side::Key), bits(Side::Value)), (12_234, 43_141));
        for side in [Side::Key, Side::Value] {
            let sum: f32 = side.signs(MAX_DIM).unwrap().iter().sum();
            assert!(sum.abs() < 80.0, "{sum}");
        }
    }

    #[test]
    fn other_dimensions_are_errors() {
        for dim in [0, 3, 80, 96, 112, 1024] {
            assert!(matches!(check_dim(dim), Err(KernelError::Dimension { .. })), "{dim}");
        }
    }
}
