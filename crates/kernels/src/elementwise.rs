//! Element-wise functions: activations, gated linear units, addition, scales and soft caps.

use crate::error::{Result, check_len};
use crate::isa::Cpu;
use crate::math;
use crate::pool::Pool;
use crate::simd::{Kernel, LANES, Simd, dispatch};

/// Least number of values for a parallel region.
const CHUNK: usize = 16 << 10;

/// An activation, alone or of a gated linear unit, `activation(gate) · up` where not said otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Glu {
    /// x · sigmoid(x): SwiGLU.
    Silu,
    /// 0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³))): GeGLU as Gemma computes it.
    GeluTanh,
    /// 0.5 x (1 + erf(x / √2)): GeGLU.
    GeluErf,
    /// 1 / (1 + e⁻ˣ).
    Sigmoid,
    /// max(x, 0)²
    ReluSquared,
    /// x.
    Identity,
    /// x · sigmoid(1.702 x) of min(x, 7); gated with `1 + up`, `up` held within ±7: gpt-oss.
    ClampedSwish,
}

/// Bound of the inputs of [`Glu::ClampedSwish`].
pub const CLAMPED_SWISH_LIMIT: f32 = 7.0;
/// The slope of [`Glu::ClampedSwish`]'s sigmoid.
pub const CLAMPED_SWISH_SLOPE: f32 = 1.702;

impl Glu {
    #[inline(always)]
    fn apply<S: Simd>(self, simd: S, x: S::F) -> S::F {
        let half = simd.mul(x, simd.splat(0.5));
        match self {
            Self::Silu => simd.mul(x, math::sigmoid(simd, x)),
            Self::GeluTanh => {
                let cube = simd.mul(simd.mul(x, x), x);
                let inner = simd.fma(cube, simd.splat(0.044_715), x);
                // √(2/π)
                let inner = simd.mul(inner, simd.splat(0.797_884_6));
                simd.fma(half, math::tanh(simd, inner), half)
            }
            Self::GeluErf => {
                let inner = simd.mul(x, simd.splat(std::f32::consts::FRAC_1_SQRT_2));
                simd.fma(half, math::erf(simd, inner), half)
            }
            Self::Sigmoid => math::sigmoid(simd, x),
            Self::ReluSquared => {
                let positive = simd.max(x, simd.zero());
                simd.mul(positive, positive)
            }
            Self::Identity => x,
            Self::ClampedSwish => {
                let x = simd.min(x, simd.splat(CLAMPED_SWISH_LIMIT));
                let inner = simd.mul(x, simd.splat(CLAMPED_SWISH_SLOPE));
                simd.mul(x, math::sigmoid(simd, inner))
            }
        }
    }

    #[inline(always)]
    fn gated<S: Simd>(self, simd: S, gate: S::F, up: S::F) -> S::F {
        let up = match self {
            Self::ClampedSwish => {
                let up = simd.min(up, simd.splat(CLAMPED_SWISH_LIMIT));
                let up = simd.max(up, simd.splat(-CLAMPED_SWISH_LIMIT));
                simd.add(up, simd.splat(1.0))
            }
            _ => up,
        };
        simd.mul(self.apply(simd, gate), up)
    }
}

/// `gate = activation(gate) · up`, element by element.
///
/// # Errors
/// [`crate::KernelError::Length`] unless both have the same length.
pub fn glu(pool: &Pool, activation: Glu, gate: &mut [f32], up: &[f32]) -> Result<()> {
    check_len("up of a gated unit", up.len(), gate.len())?;
    pool.for_rows_mut(gate, 1, CHUNK, |_, first, gate| {
        glu_serial(pool.cpu(), activation, gate, &up[first..first + gate.len()]);
    });
    Ok(())
}

/// `x = activation(gate) · x` row by row, with one gate per row of `x`, which is `[rows, width]`.
///
/// # Errors
/// [`crate::KernelError::Length`] unless the rows divide `x`.
pub fn gate_rows(pool: &Pool, activation: Glu, gate: &[f32], x: &mut [f32]) -> Result<()> {
    let width = x.len() / gate.len().max(1);
    check_len("gated rows", x.len(), gate.len() * width)?;
    if width == 0 {
        return Ok(());
    }
    let mut factors = gate.to_vec();
    map(pool, Map::Activation(activation), &mut factors);
    pool.for_rows_mut(x, width, CHUNK.div_ceil(width), |_, first, rows| {
        for (x, factor) in rows.chunks_exact_mut(width).zip(&factors[first..]) {
            dispatch(pool.cpu(), Unary { function: Map::Scale(*factor), x });
        }
    });
    Ok(())
}

/// [`glu`] on the calling thread, for slices of the same length.
pub(crate) fn glu_serial(cpu: Cpu, activation: Glu, gate: &mut [f32], up: &[f32]) {
    dispatch(cpu, Binary { op: Op::Glu(activation), target: gate, other: up });
}

/// A function of one element.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Map {
    /// The activation.
    Activation(Glu),
    /// x · factor.
    Scale(f32),
    /// cap · tanh(x / cap), for a cap that is not 0.
    Softcap(f32),
}

/// `x = f(x)`, element by element.
pub fn map(pool: &Pool, function: Map, x: &mut [f32]) {
    pool.for_rows_mut(x, 1, CHUNK, |_, _, x| dispatch(pool.cpu(), Unary { function, x }));
}

/// `target += other`, element by element.
///
/// # Errors
/// [`crate::KernelError::Length`] unless both have the same length.
pub fn add_assign(pool: &Pool, target: &mut [f32], other: &[f32]) -> Result<()> {
    check_len("summand", other.len(), target.len())?;
    pool.for_rows_mut(target, 1, CHUNK, |_, first, target| {
        let other = &other[first..first + target.len()];
        dispatch(pool.cpu(), Binary { op: Op::Add, target, other });
    });
    Ok(())
}

#[derive(Clone, Copy)]
enum Op {
    Glu(Glu),
    Add,
}

struct Binary<'a> {
    op: Op,
    target: &'a mut [f32],
    other: &'a [f32],
}

impl Kernel for Binary<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (target, target_tail) = self.target.as_chunks_mut::<LANES>();
        let (other, other_tail) = self.other.as_chunks::<LANES>();
        for (target, other) in target.iter_mut().zip(other) {
            binary(simd, self.op, target, other);
        }
        let mut target = [0.0; LANES];
        let mut other = [0.0; LANES];
        target[..target_tail.len()].copy_from_slice(target_tail);
        other[..other_tail.len()].copy_from_slice(other_tail);
        binary(simd, self.op, &mut target, &other);
        target_tail.copy_from_slice(&target[..target_tail.len()]);
    }
}

#[inline(always)]
fn binary<S: Simd>(simd: S, op: Op, target: &mut [f32; LANES], other: &[f32; LANES]) {
    // SAFETY: both have 16 values.
    unsafe {
        let a = simd.load(target.as_ptr());
        let b = simd.load(other.as_ptr());
        let result = match op {
            Op::Glu(activation) => activation.gated(simd, a, b),
            Op::Add => simd.add(a, b),
        };
        simd.store(target.as_mut_ptr(), result);
    }
}

struct Unary<'a> {
    function: Map,
    x: &'a mut [f32],
}

impl Kernel for Unary<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (chunks, tail) = self.x.as_chunks_mut::<LANES>();
        for chunk in chunks {
            unary(simd, self.function, chunk);
        }
        let mut last = [0.0; LANES];
        last[..tail.len()].copy_from_slice(tail);
        unary(simd, self.function, &mut last);
        tail.copy_from_slice(&last[..tail.len()]);
    }
}

#[inline(always)]
fn unary<S: Simd>(simd: S, function: Map, x: &mut [f32; LANES]) {
    // SAFETY: `x` has 16 values.
    let value = unsafe { simd.load(x.as_ptr()) };
    let result = match function {
        Map::Activation(activation) => activation.apply(simd, value),
        Map::Scale(factor) => simd.mul(value, simd.splat(factor)),
        Map::Softcap(cap) => {
            let inner = simd.mul(value, simd.splat(1.0 / cap));
            simd.mul(math::tanh(simd, inner), simd.splat(cap))
        }
    };
    // SAFETY: `x` has 16 values.
    unsafe { simd.store(x.as_mut_ptr(), result) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Rng, pools};

    /// erf by its series, which converges everywhere and is exact to rounding for |x| ≤ 4.
    fn erf(x: f64) -> f64 {
        let terms = (0..120).scan(x, |power, n| {
            let term = *power / f64::from(2 * n + 1);
            *power *= -x * x / f64::from(n + 1);
            Some(term)
        });
        if x.abs() > 4.0 {
            x.signum()
        } else {
            terms.sum::<f64>() * std::f64::consts::FRAC_2_SQRT_PI
        }
    }

    fn oracle(function: Map, x: f64) -> f64 {
        match function {
            Map::Activation(Glu::Silu) => x / (1.0 + (-x).exp()),
            Map::Activation(Glu::GeluTanh) => {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
                0.5 * x * (1.0 + inner.tanh())
            }
            Map::Activation(Glu::GeluErf) => {
                0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2))
            }
            Map::Activation(Glu::Sigmoid) => 1.0 / (1.0 + (-x).exp()),
            Map::Activation(Glu::ReluSquared) => x.max(0.0).powi(2),
            Map::Activation(Glu::Identity) => x,
            Map::Activation(Glu::ClampedSwish) => {
                let x = x.min(7.0);
                x / (1.0 + (-1.702 * x).exp())
            }
            Map::Scale(factor) => x * f64::from(factor),
            Map::Softcap(cap) => f64::from(cap) * (x / f64::from(cap)).tanh(),
        }
    }

    #[test]
    fn functions_match_their_definitions() {
        let mut rng = Rng::fresh();
        let functions = [
            Map::Activation(Glu::Silu),
            Map::Activation(Glu::GeluTanh),
            Map::Activation(Glu::GeluErf),
            Map::Activation(Glu::Sigmoid),
            Map::Activation(Glu::ReluSquared),
            Map::Activation(Glu::Identity),
            Map::Activation(Glu::ClampedSwish),
            Map::Scale(-1.7),
            Map::Softcap(3.0),
        ];
        for pool in pools() {
            for (function, len) in
                functions.iter().flat_map(|f| [1, 15, 17, 70_000].map(|n| (*f, n)))
            {
                let before: Vec<f32> = rng.normals(len).iter().map(|x| 2.0 * x).collect();
                let mut after = before.clone();
                map(&pool, function, &mut after);
                for (x, y) in before.iter().zip(after) {
                    let expected = oracle(function, f64::from(*x));
                    let error = (f64::from(y) - expected).abs();
                    assert!(error < 2e-6 * (1.0 + f64::from(x.abs())), "{function:?}({x}) = {y}");
                }
            }
        }
    }

    #[test]
    fn rows_have_a_gate_each() {
        let mut rng = Rng::fresh();
        for pool in pools() {
            for (rows, width) in [(1, 1), (3, 17), (40, 1000)] {
                let gate = rng.normals(rows);
                let before = rng.normals(rows * width);
                let mut after = before.clone();
                gate_rows(&pool, Glu::Sigmoid, &gate, &mut after).unwrap();
                for (i, (x, y)) in before.iter().zip(after).enumerate() {
                    let factor = oracle(Map::Activation(Glu::Sigmoid), gate[i / width].into());
                    let expected = factor * f64::from(*x);
                    assert!((f64::from(y) - expected).abs() < 1e-6, "{rows}x{width}: {y}");
                }
            }
            assert!(gate_rows(&pool, Glu::Sigmoid, &[1.0; 2], &mut [1.0; 3]).is_err());
        }
    }

    #[test]
    fn gated_units_match_their_definitions() {
        let mut rng = Rng::fresh();
        for pool in pools() {
            for activation in [Glu::Silu, Glu::GeluTanh, Glu::GeluErf, Glu::ClampedSwish] {
                for len in [1, 17, 20_000] {
                    let gates: Vec<f32> = rng.normals(len).iter().map(|x| 5.0 * x).collect();
                    let ups: Vec<f32> = rng.normals(len).iter().map(|x| 5.0 * x).collect();
                    let mut after = gates.clone();
                    glu(&pool, activation, &mut after, &ups).unwrap();
                    for ((gate, up), y) in gates.iter().zip(&ups).zip(after) {
                        let factor = match activation {
                            Glu::ClampedSwish => f64::from(*up).clamp(-7.0, 7.0) + 1.0,
                            _ => f64::from(*up),
                        };
                        let gate = f64::from(*gate);
                        let expected = oracle(Map::Activation(activation), gate) * factor;
                        let tolerance = 4e-6 * (1.0 + gate.abs()) * (1.0 + factor.abs());
                        let error = (f64::from(y) - expected).abs();
                        assert!(error < tolerance, "{pool:?} {activation:?} {gate} {up}: {y}");
                    }
                }
            }
        }
    }
}
