//! Reproducible random weights. Each row has a generator of its own and the arithmetic is exact, so that
//! the bits are equal on every machine, in any order and on any number of threads.

use mlxcel_estimator::TensorRole;

/// The distribution of one tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Normal {
    pub(super) mean: f32,
    pub(super) deviation: f32,
}

impl Normal {
    /// Distribution that makes a random model behave: activations stay of order 1 through any depth,
    /// and logits have a deviation of about 2, like those of a trained model. Norm weights lie near 1
    /// and biases near 0, but not exactly, so that an omitted one is noticed.
    pub(super) fn of_tensor(role: TensorRole, shape: &[u64]) -> Self {
        let columns = shape.last().copied().unwrap_or(1);
        match role {
            TensorRole::Norm => Self { mean: 1.0, deviation: 0.1 },
            TensorRole::Embedding | TensorRole::Head => Self::with_fan_in(2.0, columns),
            TensorRole::Linear => Self::with_fan_in(1.0, columns),
            TensorRole::Convolution => Self::with_fan_in(1.0, shape.iter().skip(1).product()),
            _ => Self { mean: 0.0, deviation: 0.1 },
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "a fan-in is far below 2^24")]
    fn with_fan_in(gain: f32, fan_in: u64) -> Self {
        Self { mean: 0.0, deviation: gain / (fan_in.max(1) as f32).sqrt() }
    }
}

/// Hash of a tensor's name and the seed (FNV-1a).
pub(super) fn tensor_key(seed: u64, name: &str) -> u64 {
    name.bytes().fold(0xCBF2_9CE4_8422_2325 ^ mix(seed), |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
    })
}

/// Fills `row` with the elements of row `index` of the tensor behind `key`.
///
/// The sum of four uniform 16-bit numbers stands for a normal one: it is bell-shaped within
/// ±3.46 deviations, exact in f32 and one multiplication long.
pub(super) fn fill_row(key: u64, index: u64, normal: Normal, row: &mut [f32]) {
    /// Mean and deviation of that sum: 4 · 65535/2 and √(4 · (2³² − 1)/12).
    const MEAN: i32 = 131_070;
    const DEVIATION: f32 = 37_837.227;
    let mut state = mix(key ^ mix(index));
    let factor = normal.deviation / DEVIATION;
    for element in row {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let bits = mix(state);
        let [a, b, c, d, e, f, g, h] = bits.to_le_bytes();
        let sum = [[a, b], [c, d], [e, f], [g, h]]
            .into_iter()
            .map(|pair| i32::from(u16::from_le_bytes(pair)))
            .sum::<i32>();
        #[expect(clippy::cast_precision_loss, reason = "below 2^18, exact in f32")]
        let centred = (sum - MEAN) as f32;
        *element = normal.mean + centred * factor;
    }
}

/// The finaliser of SplitMix64.
fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_have_the_asked_mean_and_deviation() {
        let normal = Normal { mean: 1.0, deviation: 0.5 };
        let mut row = vec![0.0; 1 << 16];
        fill_row(tensor_key(7, "a"), 3, normal, &mut row);
        let count = f64::from(1u32 << 16);
        let mean = row.iter().map(|x| f64::from(*x)).sum::<f64>() / count;
        let variance = row.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / count;
        // Six standard errors of each estimate.
        assert!((mean - 1.0).abs() < 6.0 * 0.5 / 256.0, "{mean}");
        assert!((variance.sqrt() - 0.5).abs() < 6.0 * 0.5 / 362.0, "{variance}");
    }

    #[test]
    fn rows_tensors_and_seeds_differ() {
        let first = |seed, name: &str, index| {
            let mut row = [0.0; 4];
            fill_row(tensor_key(seed, name), index, Normal { mean: 0.0, deviation: 1.0 }, &mut row);
            row.map(f32::to_bits)
        };
        let base = first(0, "a", 0);
        assert_eq!(base, first(0, "a", 0));
        for other in [first(1, "a", 0), first(0, "b", 0), first(0, "a", 1)] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn the_bits_are_pinned() {
        let mut row = [0.0; 3];
        fill_row(tensor_key(0, "w"), 0, Normal { mean: 0.0, deviation: 1.0 }, &mut row);
        // Goldens depend on these bits.
        assert_eq!(row.map(f32::to_bits), [3_203_543_166, 3_198_052_039, 3_210_635_258]);
    }

    #[test]
    fn matrices_scale_with_their_fan_in_and_vectors_do_not() {
        let of = Normal::of_tensor;
        let centred = |deviation| Normal { mean: 0.0, deviation };
        assert_eq!(of(TensorRole::Linear, &[8, 64]), centred(0.125));
        assert_eq!(of(TensorRole::Embedding, &[512, 64]), centred(0.25));
        assert_eq!(of(TensorRole::Convolution, &[512, 4, 1]), centred(0.5));
        assert_eq!(of(TensorRole::Bias, &[64]), centred(0.1));
        assert_eq!(of(TensorRole::Norm, &[64]), Normal { mean: 1.0, deviation: 0.1 });
    }
}
