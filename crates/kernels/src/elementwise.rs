//! Element-wise functions: gated linear units and addition.

use crate::error::{Result, check_len};
use crate::isa::Cpu;
use crate::math;
use crate::pool::Pool;
use crate::simd::{Kernel, LANES, Simd, dispatch};

/// Values that are worth a parallel region of their own.
const CHUNK: usize = 16 << 10;

/// The activation of a gated linear unit, `activation(gate) · up`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Glu {
    /// x · sigmoid(x): SwiGLU.
    Silu,
    /// 0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³))): GeGLU as Gemma computes it.
    GeluTanh,
    /// 0.5 x (1 + erf(x / √2)): GeGLU.
    GeluErf,
}

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
        }
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

/// [`glu`] on the calling thread, for slices of the same length.
pub(crate) fn glu_serial(cpu: Cpu, activation: Glu, gate: &mut [f32], up: &[f32]) {
    dispatch(cpu, Binary { op: Op::Glu(activation), target: gate, other: up });
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
        let (mut target, mut other) = ([0.0; LANES], [0.0; LANES]);
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
            Op::Glu(activation) => simd.mul(activation.apply(simd, a), b),
            Op::Add => simd.add(a, b),
        };
        simd.store(target.as_mut_ptr(), result);
    }
}
