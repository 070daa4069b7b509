//! Vector versions of the few transcendental functions that models need.

use crate::simd::Simd;

/// eˣ, within 2 ulp for x in −87.3..=88; clamped outside.
#[inline(always)]
pub(crate) fn exp<S: Simd>(simd: S, x: S::F) -> S::F {
    let x = simd.min(simd.max(x, simd.splat(-87.3)), simd.splat(88.0));
    let n = simd.to_int(simd.mul(x, simd.splat(std::f32::consts::LOG2_E)));
    let whole = simd.to_float(n);
    // x − n·ln 2 in two parts (the first has 9 significant bits, so its product is exact).
    let rest = simd.fma(whole, simd.splat(-0.693_359_4), x);
    let rest = simd.fma(whole, simd.splat(2.121_944_4e-4), rest);
    let mut poly = simd.splat(1.987_569_1e-4);
    for coefficient in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_66, 0.5] {
        poly = simd.fma(poly, rest, simd.splat(coefficient));
    }
    let poly = simd.fma(simd.mul(poly, rest), rest, simd.add(rest, simd.splat(1.0)));
    simd.mul(poly, simd.pow2(n))
}

/// The logistic function 1 / (1 + e⁻ˣ).
#[inline(always)]
pub(crate) fn sigmoid<S: Simd>(simd: S, x: S::F) -> S::F {
    let one = simd.splat(1.0);
    simd.div(one, simd.add(one, exp(simd, simd.sub(simd.zero(), x))))
}

/// ln(1 + eˣ), within 3e-7 of its size: ln(1 + u) of u = e^−|x| is 2·atanh(u / (2 + u)), whose
/// series in z² ≤ 1/9 falls off fast.
#[inline(always)]
pub(crate) fn softplus<S: Simd>(simd: S, x: S::F) -> S::F {
    let u = exp(simd, simd.sub(simd.zero(), simd.abs(x)));
    let z = simd.div(u, simd.add(u, simd.splat(2.0)));
    let square = simd.mul(z, z);
    let mut poly = simd.splat(2.0 / 15.0);
    for coefficient in [2.0 / 13.0, 2.0 / 11.0, 2.0 / 9.0, 2.0 / 7.0, 0.4, 2.0 / 3.0, 2.0] {
        poly = simd.fma(poly, square, simd.splat(coefficient));
    }
    simd.fma(poly, z, simd.max(x, simd.zero()))
}

/// The hyperbolic tangent, within 1e-6.
#[inline(always)]
pub(crate) fn tanh<S: Simd>(simd: S, x: S::F) -> S::F {
    let two = simd.splat(2.0);
    simd.fma(two, sigmoid(simd, simd.mul(two, x)), simd.splat(-1.0))
}

/// The error function, within 3e-7: Abramowitz and Stegun 7.1.26, of which the sign is that of x.
#[inline(always)]
pub(crate) fn erf<S: Simd>(simd: S, x: S::F) -> S::F {
    let one = simd.splat(1.0);
    let size = simd.abs(x);
    let t = simd.div(one, simd.fma(simd.splat(0.327_591_1), size, one));
    let mut poly = simd.splat(1.061_405_4);
    for coefficient in [-1.453_152_1, 1.421_413_8, -0.284_496_72, 0.254_829_6] {
        poly = simd.fma(poly, t, simd.splat(coefficient));
    }
    let tail = simd.mul(simd.mul(poly, t), exp(simd, simd.sub(simd.zero(), simd.mul(x, x))));
    let value = simd.sub(one, tail);
    // The sign of x without a branch: x / max(|x|, tiny).
    let sign = simd.div(x, simd.max(size, simd.splat(1e-30)));
    simd.mul(value, sign)
}
