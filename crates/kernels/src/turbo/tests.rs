//! Distortion, bias and edge cases of the Turbo quantiser.

#![expect(clippy::float_cmp, reason = "these values are exact")]

use super::*;
use crate::testing::Rng;
use half::f16;

/// A uniformly distributed direction, from normal deviates by Box and Muller.
fn unit_vector(rng: &mut Rng, dim: usize) -> Vec<f32> {
    let mut normal = || {
        let r = f32::midpoint(rng.uniform(), 1.0);
        let angle = std::f32::consts::PI * rng.uniform();
        (-2.0 * r.max(1e-9).ln()).sqrt() * angle.cos()
    };
    let mut x: Vec<f32> = (0..dim).map(|_| normal()).collect();
    let norm = length(&x);
    x.iter_mut().for_each(|x| *x /= norm);
    x
}

/// Mean relative squared error of n·S·H·ŷ, mean of ⟨x, x̂⟩/⟨x, x⟩, over random unit vectors.
fn measure(bits: TurboBits, rule: ScaleRule, dim: usize, vectors: usize) -> (f64, f64) {
    let mut rng = Rng::fresh();
    let mut codes = vec![0u8; dim];
    let mut back = vec![0f32; dim];
    let mut error = 0.0;
    let mut inner = 0.0;
    for _ in 0..vectors {
        let x = unit_vector(&mut rng, dim);
        let mut work = x.clone();
        let scale = encode(Side::Key, bits, rule, &mut work, &mut codes);
        decode(Side::Key, bits, f16::from_f32(scale).to_f32(), &codes, &mut back);
        for (x, b) in x.iter().zip(&back) {
            error += f64::from(x - b).powi(2);
            inner += f64::from(*x) * f64::from(*b);
        }
    }
    (error / vectors as f64, inner / vectors as f64)
}

#[test]
fn plain_distortion_is_the_designs() {
    let table = [
        (TurboBits::Three, 128, 0.0340),
        (TurboBits::Three, 64, 0.0334),
        (TurboBits::Four, 128, 0.0093),
        (TurboBits::Four, 64, 0.0091),
        (TurboBits::Four, 256, 0.0094),
    ];
    for (bits, dim, expected) in table {
        let (error, _) = measure(bits, ScaleRule::Norm, dim, 20_000);
        assert!((error / expected - 1.0).abs() < 0.02, "{bits:?} {dim}: {error}");
    }
}

#[test]
fn unbiased_scale_is_unbiased_and_the_others_are_not() {
    for dim in [64, 128, 256] {
        for (bits, shrink) in [(TurboBits::Three, 0.0175), (TurboBits::Four, 0.0048)] {
            let (_, inner) = measure(bits, ScaleRule::Unbiased, dim, 4_000);
            assert!((inner - 1.0).abs() < 2e-3, "{bits:?} {dim}: {inner}");
            let (_, inner) = measure(bits, ScaleRule::Renormalised, dim, 4_000);
            assert!((1.0 - inner - shrink).abs() < 0.1 * shrink, "{bits:?} {dim}: {inner}");
        }
    }
}

#[test]
fn extreme_vectors_keep_their_scale() {
    let mut codes = [0u8; 64];
    let mut zero = [0.0f32; 64];
    assert_eq!(encode(Side::Key, TurboBits::Four, ScaleRule::Unbiased, &mut zero, &mut codes), 0.0);
    for magnitude in [1e-18f32, 1e-4, 1e4, 1e30] {
        let mut x: Vec<f32> =
            unit_vector(&mut Rng::fresh(), 64).iter().map(|x| x * magnitude).collect();
        let scale = encode(Side::Key, TurboBits::Four, ScaleRule::Renormalised, &mut x, &mut codes);
        // ‖ŷ‖ is 1 within a few percent for any one vector.
        assert!((scale / magnitude - 1.0).abs() < 0.1, "{magnitude} {scale}");
    }
    for fault in [f32::NAN, f32::INFINITY] {
        let mut x = [1.0f32; 64];
        x[3] = fault;
        let scale = encode(Side::Key, TurboBits::Four, ScaleRule::Norm, &mut x, &mut codes);
        assert!(scale.is_nan());
    }
}
