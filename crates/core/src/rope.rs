//! Rotary position embeddings: the frequencies of a layer, with every scaling rule in one place.
//!
//! Owns the table of wavelengths (`freqs`, as MLX's `fast::rope` takes them: the angle of pair `i`
//! at position `p` is `p / freqs[i]`). [`crate::Pass::rope`] applies the rotation.
//! The rules follow mlx-lm 0.32 (`rope_utils.py`), which the golden tests compare with.

use std::f64::consts::PI;
use std::sync::Arc;

use crate::{Error, Result};

/// Stretching of a model's rotary frequencies beyond its training length.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub enum RopeScaling {
    /// No scaling.
    #[default]
    None,
    /// Positions divided by `factor`.
    Linear {
        /// Stretch of the positions, > 0.
        factor: f64,
    },
    /// Llama 3.1: low frequencies divided by `factor`, high ones kept, a ramp in between.
    Llama3 {
        /// Stretch of the lowest frequencies.
        factor: f64,
        /// Wavelengths above `original_context / low_freq_factor` are stretched fully.
        low_freq_factor: f64,
        /// Wavelengths below `original_context / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Context length of the pre-training, in tokens.
        original_context: f64,
    },
    /// YaRN (arXiv 2309.00071), with the attention temperature folded into the rotation.
    Yarn {
        /// Stretch of the interpolated frequencies.
        factor: f64,
        /// Context length of the pre-training, in tokens.
        original_context: f64,
        /// Rotations above which a frequency is kept.
        beta_fast: f64,
        /// Rotations below which a frequency is interpolated.
        beta_slow: f64,
        /// Temperature coefficient.
        mscale: f64,
        /// Temperature coefficient that is applied elsewhere (DeepSeek), divided out here.
        mscale_all_dim: f64,
        /// True if the ramp between kept and interpolated frequencies ends at whole dimensions: in every
        /// model but gpt-oss.
        truncate: bool,
    },
    /// LongRoPE (Phi-3): one factor per frequency, and a scaled input.
    LongRope {
        /// Factor of each frequency, `dims / 2` of them.
        long_factor: Vec<f64>,
        /// Context length of the model, in tokens.
        max_context: f64,
        /// Context length of the pre-training, in tokens.
        original_context: f64,
    },
}

/// The rotary embedding of one layer.
#[derive(Clone, Debug)]
pub struct Rope {
    dims: usize,
    traditional: bool,
    input_scale: f32,
    freqs: Arc<[f32]>,
    inverse: Arc<[f32]>,
    sections: Arc<[usize]>,
}

impl Rope {
    /// Rotates the first `dims` dimensions of each head with base `base`.
    ///
    /// `traditional` pairs neighbours (0,1), (2,3)…; otherwise the halves are paired.
    ///
    /// # Errors
    /// When `dims` is odd, zero, or does not match the length of the scaling's factors.
    pub fn new(dims: usize, base: f64, traditional: bool, scaling: &RopeScaling) -> Result<Self> {
        if dims == 0 || !dims.is_multiple_of(2) {
            return Err(Error::Value {
                name: "the number of rope dimensions",
                value: dims.to_string(),
                expected: "an even, positive number",
            });
        }
        if !(base.is_finite() && base > 0.0) {
            return Err(Error::Value {
                name: "rope_theta",
                value: base.to_string(),
                expected: "a positive number",
            });
        }
        let plain: Vec<f64> =
            (0..dims / 2).map(|i| base.powf(2.0 * i as f64 / dims as f64)).collect();
        let (freqs, input_scale) = scale(plain, dims, base, scaling)?;
        if let Some(bad) = freqs.iter().find(|f| !(f.is_finite() && **f > 0.0)) {
            return Err(Error::Value {
                name: "a scaled rope frequency",
                value: bad.to_string(),
                expected: "a positive number",
            });
        }
        #[expect(
            clippy::cast_possible_truncation,
            reason = "rotation angles are computed in f32, as MLX does"
        )]
        let freqs: Arc<[f32]> = freqs.into_iter().map(|f| f as f32).collect();
        let inverse = freqs.iter().map(|f| 1.0 / f).collect();
        #[expect(clippy::cast_possible_truncation, reason = "an activation scale")]
        let input_scale = input_scale as f32;
        Ok(Self { dims, traditional, input_scale, freqs, inverse, sections: Arc::new([]) })
    }

    /// A rope for positions of several coordinates (M-RoPE: time, height, width): the first
    /// `sections[0]` frequencies rotate by the first of them, and so on.
    ///
    /// # Errors
    /// Sections that are not all frequencies together.
    pub fn with_sections(self, sections: &[usize]) -> Result<Self> {
        let sum = sections.iter().try_fold(0usize, |sum, n| sum.checked_add(*n));
        if sum != Some(self.freqs.len()) {
            return Err(Error::Value {
                name: "the list of rope sections",
                value: format!("{sections:?} for {} frequencies", self.freqs.len()),
                expected: "a sum of all frequencies",
            });
        }
        Ok(Self { sections: sections.into(), ..self })
    }

    /// Embedding of image patches by row and column: the first half of the frequencies rotates by the
    /// row, the second, which repeats them, by the column.
    ///
    /// # Errors
    /// Errors of [`Self::new`]; `dims` must be a multiple of 4.
    pub fn grid(dims: usize, base: f64) -> Result<Self> {
        let half = Self::new(dims / 2, base, false, &RopeScaling::None)?;
        let pairs = half.freqs.len();
        let freqs = half.freqs.repeat(2).into();
        let inverse = half.inverse.repeat(2).into();
        Self { dims, freqs, inverse, ..half }.with_sections(&[pairs, pairs])
    }

    /// Number of rotated dimensions per head.
    #[must_use]
    pub fn dims(&self) -> usize {
        self.dims
    }

    /// Returns true if neighbours are paired, rather than halves.
    #[must_use]
    pub fn traditional(&self) -> bool {
        self.traditional
    }

    /// Factor on the rotated dimensions before the rotation (1 unless YaRN or LongRoPE).
    #[must_use]
    pub(crate) fn input_scale(&self) -> f32 {
        self.input_scale
    }

    /// Wavelengths over 2π, `dims / 2` of them: the angle is `position / freqs[i]`.
    #[must_use]
    pub fn freqs(&self) -> &[f32] {
        &self.freqs
    }

    /// Number of frequencies that each coordinate of a position rotates; empty where positions are
    /// numbers.
    #[must_use]
    pub fn sections(&self) -> &[usize] {
        &self.sections
    }

    /// `1 / freqs`: the angle is `position · inverse[i]`.
    #[must_use]
    pub(crate) fn inverse_freqs(&self) -> &[f32] {
        &self.inverse
    }
}

fn scale(
    plain: Vec<f64>,
    dims: usize,
    base: f64,
    scaling: &RopeScaling,
) -> Result<(Vec<f64>, f64)> {
    Ok(match scaling {
        RopeScaling::None => (plain, 1.0),
        RopeScaling::Linear { factor } => (plain.iter().map(|f| f * factor).collect(), 1.0),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
            (llama3(&plain, *factor, *low_freq_factor, *high_freq_factor, *original_context), 1.0)
        }
        RopeScaling::Yarn { factor, mscale, mscale_all_dim, .. } => {
            let temperature = yarn_mscale(*factor, *mscale) / yarn_mscale(*factor, *mscale_all_dim);
            (yarn(&plain, dims, base, scaling), temperature)
        }
        RopeScaling::LongRope { long_factor, max_context, original_context } => {
            if long_factor.len() != plain.len() {
                return Err(Error::Length {
                    list: "rope_scaling.long_factor",
                    found: long_factor.len(),
                    expected: plain.len(),
                });
            }
            let freqs = plain.iter().zip(long_factor).map(|(f, l)| f * l).collect();
            (freqs, longrope_scale(max_context / original_context, *original_context))
        }
    })
}

fn llama3(plain: &[f64], factor: f64, low: f64, high: f64, original: f64) -> Vec<f64> {
    let low_wavelength = original / low;
    let high_wavelength = original / high;
    plain
        .iter()
        .map(|&f| {
            let wavelength = 2.0 * PI * f;
            if wavelength > low_wavelength {
                f * factor
            } else if wavelength > high_wavelength && wavelength < low_wavelength {
                let smooth = (original / wavelength - low) / (high - low);
                f / ((1.0 - smooth) / factor + smooth)
            } else {
                f
            }
        })
        .collect()
}

fn yarn_mscale(scale: f64, mscale: f64) -> f64 {
    if scale <= 1.0 { 1.0 } else { 0.1 * mscale * scale.ln() + 1.0 }
}

fn yarn(plain: &[f64], dims: usize, base: f64, scaling: &RopeScaling) -> Vec<f64> {
    let RopeScaling::Yarn { factor, original_context, beta_fast, beta_slow, truncate, .. } =
        scaling
    else {
        return plain.to_vec();
    };
    let d = dims as f64;
    // Dimensions at which a frequency makes so many rotations over the original context.
    let [mut low, mut high] = [beta_fast, beta_slow]
        .map(|rotations| d * (original_context / (rotations * 2.0 * PI)).ln() / (2.0 * base.ln()));
    if *truncate {
        low = low.floor();
        high = high.ceil();
    }
    low = low.max(0.0);
    high = high.min(d - 1.0);
    if (high - low).abs() < f64::EPSILON {
        high += 0.001;
    }
    plain
        .iter()
        .enumerate()
        .map(|(i, &extrapolated)| {
            let interpolated = factor * extrapolated;
            let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
            let keep = 1.0 - ramp;
            interpolated * extrapolated / (interpolated * keep + extrapolated * (1.0 - keep))
        })
        .collect()
}

fn longrope_scale(stretch: f64, original: f64) -> f64 {
    if stretch <= 1.0 { 1.0 } else { (1.0 + stretch.ln() / original.ln()).sqrt() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_frequencies_are_powers_of_the_base() {
        let rope = Rope::new(64, 10_000.0, false, &RopeScaling::None).unwrap();
        assert_eq!(rope.freqs().len(), 32);
        assert!((rope.freqs()[16] - 100.0).abs() < 1e-3);
        assert!((rope.inverse_freqs()[16] - 0.01).abs() < 1e-7);
    }

    #[test]
    fn llama3_keeps_the_fast_and_stretches_the_slow() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 8192.0,
        };
        let plain = Rope::new(128, 500_000.0, false, &RopeScaling::None).unwrap();
        let scaled = Rope::new(128, 500_000.0, false, &scaling).unwrap();
        assert!((scaled.freqs()[0] - plain.freqs()[0]).abs() < 1e-6);
        assert!((scaled.freqs()[63] / plain.freqs()[63] - 8.0).abs() < 1e-5);
    }

    /// gpt-oss: base 150000, factor 32 over 4096 tokens; the ramp from 8.09 to 17.40.
    #[test]
    fn an_untruncated_ramp_ends_between_dimensions() {
        let rope = |truncate| {
            let scaling = RopeScaling::Yarn {
                factor: 32.0,
                original_context: 4096.0,
                beta_fast: 32.0,
                beta_slow: 1.0,
                mscale: 1.0,
                mscale_all_dim: 0.0,
                truncate,
            };
            Rope::new(64, 150_000.0, false, &scaling).unwrap()
        };
        let plain = Rope::new(64, 150_000.0, false, &RopeScaling::None).unwrap();
        let stretch = |rope: &Rope, i: usize| rope.freqs()[i] / plain.freqs()[i];
        let correction = |rotations: f64| {
            64.0 * (4096.0 / (rotations * 2.0 * PI)).ln() / (2.0 * 150_000f64.ln())
        };
        let (low, high) = (correction(32.0), correction(1.0));
        let kept = 1.0 - (12.0 - low) / (high - low);
        let expected = 32.0 / (32.0 * kept + (1.0 - kept));
        assert!((f64::from(stretch(&rope(false), 12)) - expected).abs() < 1e-4);
        assert!((stretch(&rope(false), 17) - 32.0).abs() > 1.0);
        assert!((stretch(&rope(true), 8) - 1.0).abs() < 1e-6);
        assert!((stretch(&rope(false), 18) - 32.0).abs() < 1e-3);
    }

    #[test]
    fn odd_dimensions_are_refused() {
        assert!(Rope::new(63, 10_000.0, false, &RopeScaling::None).is_err());
        assert!(Rope::new(0, 10_000.0, false, &RopeScaling::None).is_err());
        assert!(Rope::grid(42, 10_000.0).is_err());
    }

    #[test]
    fn sections_are_all_frequencies() {
        let rope = Rope::new(16, 10_000.0, false, &RopeScaling::None).unwrap();
        assert!(rope.clone().with_sections(&[2, 3, 2]).is_err());
        assert!(rope.clone().with_sections(&[usize::MAX, 9]).is_err());
        assert_eq!(rope.with_sections(&[2, 3, 3]).unwrap().sections(), [2, 3, 3]);
        let grid = Rope::grid(16, 100.0).unwrap();
        assert_eq!((grid.dims(), grid.sections()), (16, &[4, 4][..]));
        assert_eq!(grid.freqs()[..4], grid.freqs()[4..]);
        assert!((grid.freqs()[2] - 10.0).abs() < 1e-5);
    }
}
