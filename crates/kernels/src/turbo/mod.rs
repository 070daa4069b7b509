//! Turbo quantisation of one head vector: rotate, quantise every coordinate with a Lloyd–Max
//! codebook, store one scale.
//!
//! For x ∈ R^D with n = ‖x‖: y = H·S·x/n ([`hadamard`]); each coordinate of √D·y goes to its
//! nearest centroid ([`codebook`]), which gives ŷ; the stored scale s makes x̂ = s·S·H·ŷ
//! ([`ScaleRule`]). Packing of the codes belongs to [`crate::kv`].
//!
//! Sources: Lloyd 1982 and Max 1960 for the codebooks; TurboQuant (Zandieh et al. 2025) for
//! rotation and scalar quantisation of caches; QuIP# (Tseng et al. 2024) for the random Hadamard
//! transform.

pub mod codebook;
pub mod hadamard;

pub use codebook::{Codebook, TurboBits};
pub use hadamard::{MAX_DIM, Side, check_dim, negate, rotate, rotate_back};

/// Rule for the scale that is stored beside the codes of a vector of length n.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ScaleRule {
    /// s = n/⟨y, ŷ⟩: inner products with the reconstruction are unbiased. Right for keys.
    #[default]
    Unbiased,
    /// s = n/‖ŷ‖: the reconstruction has the length of the vector.
    Renormalised,
    /// s = n: the plain reconstruction, of smallest squared error up to a factor near 1.
    Norm,
}

/// Quantises `x` (destroyed: left rotated) to one code per coordinate and returns the scale s,
/// such that x̂ = s·S·H·ŷ with ŷ = level(code)/(unit·√D).
///
/// The zero vector has scale 0; a vector with a non-finite coordinate has a NaN scale, so that
/// the fault shows in what reads it.
///
/// # Panics
/// If `codes` is shorter than `x`, or the length of `x` breaks [`check_dim`].
#[inline(always)]
pub fn encode(
    side: Side,
    bits: TurboBits,
    rule: ScaleRule,
    x: &mut [f32],
    codes: &mut [u8],
) -> f32 {
    let norm = length(x);
    if norm == 0.0 {
        codes[..x.len()].fill(0);
        return 0.0;
    }
    if !norm.is_finite() {
        return encode_extreme(side, bits, rule, x, codes);
    }
    rotate(side, x);
    let book = bits.codebook();
    let to_deviations = (x.len() as f32).sqrt() / norm;
    let mut dot = 0.0f32;
    let mut square = 0.0f32;
    for (x, code) in x.iter().zip(codes) {
        let deviations = x * to_deviations;
        *code = book.nearest(deviations);
        let level = f32::from(book.level(*code));
        dot += deviations * level;
        square += level * level;
    }
    // ⟨y, ŷ⟩ = dot/(D·unit) and ‖ŷ‖² = square/(D·unit²), as y = deviations/√D.
    let dim = x.len() as f32;
    match rule {
        ScaleRule::Unbiased => norm * dim * book.unit / dot,
        ScaleRule::Renormalised => norm * book.unit * (dim / square).sqrt(),
        ScaleRule::Norm => norm,
    }
}

/// Vectors whose squared length overflows f32 are scaled down first; NaN and infinity stay.
#[cold]
fn encode_extreme(
    side: Side,
    bits: TurboBits,
    rule: ScaleRule,
    x: &mut [f32],
    codes: &mut [u8],
) -> f32 {
    let largest = x.iter().fold(0.0f32, |acc, x| acc.max(x.abs()));
    if !largest.is_finite() || x.iter().any(|x| x.is_nan()) {
        codes[..x.len()].fill(0);
        return f32::NAN;
    }
    x.iter_mut().for_each(|x| *x /= largest);
    largest * encode(side, bits, rule, x, codes)
}

fn length(x: &[f32]) -> f32 {
    x.iter().map(|x| x * x).sum::<f32>().sqrt()
}

/// The reconstruction x̂ = s·S·H·ŷ of `codes` with scale `scale`.
///
/// # Panics
/// If `out` is shorter than `codes`, or the length breaks [`check_dim`].
pub fn decode(side: Side, bits: TurboBits, scale: f32, codes: &[u8], out: &mut [f32]) {
    let out = &mut out[..codes.len()];
    decode_rotated(bits, scale, codes, out);
    rotate_back(side, out);
}

/// [`decode`] without the rotation back: s·ŷ.
///
/// # Panics
/// If `out` is shorter than `codes`.
pub fn decode_rotated(bits: TurboBits, scale: f32, codes: &[u8], out: &mut [f32]) {
    let book = bits.codebook();
    let step = level_step(bits, codes.len()) * scale;
    for (out, &code) in out.iter_mut().zip(codes) {
        *out = f32::from(book.level(code)) * step;
    }
}

/// Value of one integer level in ŷ: 1/(unit·√dim).
#[must_use]
pub fn level_step(bits: TurboBits, dim: usize) -> f32 {
    1.0 / (bits.codebook().unit * (dim as f32).sqrt())
}

#[cfg(test)]
mod tests;
