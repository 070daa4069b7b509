//! Matrix products `y = x · Wᵀ` of `f32` activations with weights as checkpoints store them.
//!
//! One call is one parallel region (two where the activations are worth preparing in parallel).
//! Up to [`FEW_TOKENS`] go row by row ([`dot`]: each weight is read once, memory is the bound),
//! more go tile by tile ([`tile`]: weights are unpacked into a panel in the cache, arithmetic is
//! the bound). Neither keeps a second copy of a matrix. Biases are added by the caller.
//!
//! The two sum in different orders, so their results differ in the last bits. Within each, a
//! token's results are the same to the bit with any other tokens in the call; with
//! [`Order::Fixed`] all go tile by tile.

mod ahead;
mod coding;
mod dense;
mod dot;
mod driver;
mod experts;
mod input;
mod panel;
mod task;
#[cfg(test)]
mod tests;
mod tile;

use crate::elementwise::{self, Glu};
use crate::error::{KernelError, Result, check_len};
use crate::order::Order;
use crate::pool::Pool;
use crate::weights::WeightMatrix;
pub use driver::Layer;
use driver::{Job, run_jobs};
pub use experts::{Expert, Routes, experts, matmul_heads};
use input::Source;
use task::Out;

/// Most tokens that go row by row. A step of this many sequences gives each what it would get
/// alone, to the bit.
pub const FEW_TOKENS: usize = 8;

/// Precision of the activations in a product with quantised weights.
///
/// They are split into one to three signed bytes relative to the largest element of their
/// quantisation group; the integer products are exact and sums are `f32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Precision {
    /// 23 bits: errors are those of `f32` accumulation.
    Exact,
    /// 15 bits: below what bf16 activations keep.
    Int16,
    /// [`Self::Int8`] into the gate and the up matrix of a gated layer, the largest part of most
    /// models and the least sensitive; [`Self::Int16`] everywhere else.
    Mixed,
    /// 7 bits, the fastest.
    Int8,
}

impl Precision {
    fn digits(self) -> usize {
        match self {
            Self::Exact => 3,
            Self::Int16 | Self::Mixed => 2,
            Self::Int8 => 1,
        }
    }

    /// Precision of the input of a gate and an up matrix.
    fn gated(self) -> Self {
        match self {
            Self::Mixed => Self::Int8,
            other => other,
        }
    }
}

/// Precision and order of the sums of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sums {
    /// Precision of the activations.
    pub precision: Precision,
    /// In which order products are added.
    pub order: Order,
}

impl Sums {
    /// These rules for the input of a gate and an up matrix.
    fn gated(self) -> Self {
        Self { precision: self.precision.gated(), ..self }
    }
}

impl From<Precision> for Sums {
    fn from(precision: Precision) -> Self {
        Self { precision, order: Order::default() }
    }
}

/// `outs[i] = x · weights[i]ᵀ` for matrices that share the activations `x`.
///
/// `x` is `[tokens, cols]`, `outs[i]` is `[tokens, weights[i].rows()]`.
///
/// # Errors
/// [`KernelError::Length`] if a slice does not fit, [`KernelError::Dimension`] if `x` is not
/// whole rows, [`KernelError::OutOfMemory`] for the prepared activations.
pub fn matmul(
    pool: &Pool,
    x: &[f32],
    weights: &[WeightMatrix<'_>],
    outs: &mut [&mut [f32]],
    sums: impl Into<Sums>,
) -> Result<()> {
    let sums = sums.into();
    check_len("outputs of a product", outs.len(), weights.len())?;
    let Some(first) = weights.first() else { return Ok(()) };
    let cols = first.cols();
    let tokens = whole_rows(x, cols)?;
    let mut jobs = Vec::with_capacity(weights.len());
    for (weights, out) in weights.iter().zip(outs) {
        check_len("columns of a matrix", weights.cols(), cols)?;
        check_len("output of a product", out.len(), tokens * weights.rows())?;
        jobs.push(Job {
            layer: Layer::plain(*weights),
            glu: None,
            tokens: 0..tokens,
            order: sums.order,
            out: Out::new(out, weights.rows(), None),
        });
    }
    run_jobs(pool, Source { x, cols, gather: None }, tokens, &jobs, sums.precision)
}

/// The matrices of a gated feed-forward layer's first half, of one shape.
#[derive(Clone, Copy, Debug)]
pub struct GatedPair<'a> {
    /// Matrix of the gate.
    pub gate: WeightMatrix<'a>,
    /// Matrix of the gated values.
    pub up: WeightMatrix<'a>,
    /// Function of the gate.
    pub activation: Glu,
}

/// `out = activation(x · gateᵀ) · (x · upᵀ)`: the first half of a gated feed-forward layer.
///
/// `x` is `[tokens, cols]`, `out` is `[tokens, rows]`.
///
/// # Errors
/// See [`matmul`].
pub fn matmul_glu(
    pool: &Pool,
    x: &[f32],
    pair: GatedPair<'_>,
    out: &mut [f32],
    sums: impl Into<Sums>,
) -> Result<()> {
    let GatedPair { gate, up, activation } = pair;
    let cols = gate.cols();
    let sums = sums.into().gated();
    let tokens = whole_rows(x, cols)?;
    check_pair(&gate, &up)?;
    check_len("output of a product", out.len(), tokens * gate.rows())?;
    if !driver::same_kind(&gate, &up) {
        let mut other = vec![0.0; out.len()];
        matmul(pool, x, &[gate, up], &mut [out, &mut other], sums)?;
        return elementwise::glu(pool, activation, out, &other);
    }
    let out = Out::new(out, gate.rows(), None);
    let layer = Layer::plain(gate);
    let up = Layer::plain(up);
    let glu = Some((up, activation));
    let order = sums.order;
    let job = Job { layer, glu, tokens: 0..tokens, order, out };
    run_jobs(pool, Source { x, cols, gather: None }, tokens, &[job], sums.precision)
}

fn check_pair(gate: &WeightMatrix<'_>, up: &WeightMatrix<'_>) -> Result<()> {
    check_len("columns of a matrix", up.cols(), gate.cols())?;
    check_len("rows of a gated pair", up.rows(), gate.rows())
}

/// Rows of `x`.
fn whole_rows(x: &[f32], cols: usize) -> Result<usize> {
    if x.len().is_multiple_of(cols) {
        return Ok(x.len() / cols);
    }
    let rule = "a multiple of the matrix columns";
    Err(KernelError::Dimension { what: "length of the activations", value: x.len(), rule })
}
