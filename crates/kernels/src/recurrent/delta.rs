//! The gated delta rule: a state that decays by a gate and is corrected towards each key's value.
//!
//! Per value head, with the state `S` `[value_dim, key_dim]`, `S ← g·S`, `S ← S + β·(v − S·k)⊗k`,
//! `y = S·q`, where `g = exp(−exp(a_log)·softplus(a + bias))`, `β = sigmoid(b)`, `k` has length 1
//! and `q` length `1/√key_dim`, as mlx-lm computes it. Fp32 throughout.
//!
//! Rows of the state are independent of each other, so a worker takes a head, and a block of tokens
//! row by row: a row stays in the cache for all keys and queries of the block.

use super::{interleave, softplus};
use crate::error::{KernelError, Result, check_len};
use crate::pool::Pool;
use crate::simd::{Kernel, LANES, Simd, dispatch};

/// Tokens whose keys and queries are prepared at once.
const BLOCK: usize = 16;

/// Added to the squared length of a query or key before it is divided by.
const EPS: f32 = 1e-6;

/// The parameters and sizes of a layer.
#[derive(Clone, Copy, Debug)]
pub struct Delta<'a> {
    /// Logarithm of the decay rate, `[value_heads]`.
    pub a_log: &'a [f32],
    /// Added to the step sizes, `[value_heads]`.
    pub dt_bias: &'a [f32],
    /// Heads of queries and keys, each serving as many value heads.
    pub key_heads: usize,
    /// Elements of a query or key.
    pub key_dim: usize,
    /// Elements of a value.
    pub value_dim: usize,
}

/// The inputs of its steps.
#[derive(Clone, Copy, Debug)]
pub struct DeltaSteps<'a> {
    /// `[tokens, 2 · key_heads · key_dim + value_heads · value_dim]`: queries, keys, values.
    pub qkv: &'a [f32],
    /// Step sizes, `[tokens, value_heads]`.
    pub a: &'a [f32],
    /// Logits of the strength of the correction, `[tokens, value_heads]`.
    pub b: &'a [f32],
}

impl Delta<'_> {
    fn heads(&self) -> usize {
        self.a_log.len()
    }

    /// Elements of all keys of a token.
    fn keys(&self) -> usize {
        self.key_heads * self.key_dim
    }

    fn width(&self) -> usize {
        2 * self.keys() + self.heads() * self.value_dim
    }

    fn check(&self) -> Result<()> {
        check_len("bias of a delta net's steps", self.dt_bias.len(), self.heads())?;
        for (what, value) in [
            ("value heads of a delta net", self.heads()),
            ("key dimension of a delta net", self.key_dim),
            ("value dimension of a delta net", self.value_dim),
        ] {
            if value == 0 {
                return Err(KernelError::Dimension { what, value, rule: "at least 1" });
            }
        }
        if self.key_heads == 0 || !self.heads().is_multiple_of(self.key_heads) {
            let what = "key heads of a delta net";
            let rule = "a divisor of the value heads";
            return Err(KernelError::Dimension { what, value: self.key_heads, rule });
        }
        Ok(())
    }
}

/// Runs over `steps` from `state`, `[value_heads, value_dim, key_dim]`, which it leaves as it is
/// after the last token. `out` is `[tokens, value_heads · value_dim]`.
///
/// # Errors
/// [`KernelError::Length`] and [`KernelError::Dimension`] for shapes that do not fit.
pub fn gated_delta(
    pool: &Pool,
    layer: &Delta<'_>,
    steps: &DeltaSteps<'_>,
    state: &mut [f32],
    out: &mut [f32],
) -> Result<()> {
    layer.check()?;
    let heads = layer.heads();
    let value_dim = layer.value_dim;
    let tokens = steps.a.len() / heads;
    check_len("step sizes of a delta net", steps.a.len(), tokens * heads)?;
    check_len("corrections of a delta net", steps.b.len(), tokens * heads)?;
    check_len("inputs of a delta net", steps.qkv.len(), tokens * layer.width())?;
    check_len("state of a delta net", state.len(), heads * value_dim * layer.key_dim)?;
    check_len("output of a delta net", out.len(), tokens * heads * value_dim)?;
    let mut by_head = vec![0.0f32; out.len()];
    let states = state.chunks_exact_mut(value_dim * layer.key_dim);
    let outputs = by_head.chunks_exact_mut((tokens * value_dim).max(1));
    let mut jobs: Vec<_> = states.zip(outputs).enumerate().collect();
    pool.for_rows_mut(&mut jobs, 1, 1, |_, _, jobs| {
        for (head, (state, out)) in jobs {
            dispatch(pool.cpu(), DeltaHead { layer, steps, head: *head, state, out });
        }
    });
    interleave(pool, &by_head, value_dim, heads * value_dim, out);
    Ok(())
}

/// One value head over all tokens.
struct DeltaHead<'a> {
    layer: &'a Delta<'a>,
    steps: &'a DeltaSteps<'a>,
    head: usize,
    /// `[value_dim, key_dim]`.
    state: &'a mut [f32],
    /// `[tokens, value_dim]`.
    out: &'a mut [f32],
}

/// Factors of a token for every row of a head.
#[derive(Clone, Copy, Default)]
struct Gates {
    decay: f32,
    correction: f32,
}

impl Kernel for DeltaHead<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { layer, steps, head, state, out } = self;
        let dim = layer.key_dim;
        let value_dim = layer.value_dim;
        let width = layer.width();
        let key = head / (layer.heads() / layer.key_heads) * dim;
        let value = 2 * layer.keys() + head * value_dim;
        let mut queries = vec![0.0; BLOCK * dim];
        let mut keys = vec![0.0; BLOCK * dim];
        let scale = inverse_root(dim);
        for (block, out) in out.chunks_mut(BLOCK * value_dim).enumerate() {
            let first = block * BLOCK;
            let tokens = out.len() / value_dim;
            let mut gates = [Gates::default(); BLOCK];
            for (t, gates) in gates.iter_mut().enumerate().take(tokens) {
                let qkv = &steps.qkv[(first + t) * width..][..width];
                normalise(simd, &qkv[key..][..dim], scale, &mut queries[t * dim..][..dim]);
                let from = &qkv[layer.keys() + key..][..dim];
                normalise(simd, from, 1.0, &mut keys[t * dim..][..dim]);
                *gates = gates_of(layer, steps, head, first + t);
            }
            for (i, row) in state.chunks_exact_mut(dim).enumerate() {
                for (t, gates) in gates.iter().enumerate().take(tokens) {
                    let v = steps.qkv[(first + t) * width + value + i];
                    let q = &queries[t * dim..][..dim];
                    let k = &keys[t * dim..][..dim];
                    out[t * value_dim + i] = step(simd, row, *gates, v, q, k);
                }
            }
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a head's dimension is below 2^24")]
fn inverse_root(dim: usize) -> f32 {
    (dim as f32).sqrt().recip()
}

fn gates_of(layer: &Delta<'_>, steps: &DeltaSteps<'_>, head: usize, token: usize) -> Gates {
    let at = token * layer.heads() + head;
    let step = softplus(steps.a[at] + layer.dt_bias[head]);
    Gates {
        decay: (-layer.a_log[head].exp() * step).exp(),
        correction: 1.0 / (1.0 + (-steps.b[at]).exp()),
    }
}

/// `x` with the length `length`.
#[inline(always)]
fn normalise<S: Simd>(simd: S, x: &[f32], length: f32, out: &mut [f32]) {
    let factor = length / (dot(simd, x, x) + EPS).sqrt();
    for (out, x) in out.iter_mut().zip(x) {
        *out = x * factor;
    }
}

#[inline(always)]
fn dot<S: Simd>(simd: S, a: &[f32], b: &[f32]) -> f32 {
    let (a, a_tail) = a.as_chunks::<LANES>();
    let (b, b_tail) = b.as_chunks::<LANES>();
    let mut sum = simd.zero();
    for (a, b) in a.iter().zip(b) {
        // SAFETY: both have 16 values.
        sum = unsafe { simd.fma(simd.load(a.as_ptr()), simd.load(b.as_ptr()), sum) };
    }
    simd.sum(sum) + a_tail.iter().zip(b_tail).map(|(a, b)| a * b).sum::<f32>()
}

/// One row of the state over one token; returns its product with the query.
#[inline(always)]
fn step<S: Simd>(simd: S, row: &mut [f32], gates: Gates, v: f32, q: &[f32], k: &[f32]) -> f32 {
    let input = gates.correction * (v - gates.decay * dot(simd, row, k));
    let (row, row_tail) = row.as_chunks_mut::<LANES>();
    let (q, q_tail) = q.as_chunks::<LANES>();
    let (k, k_tail) = k.as_chunks::<LANES>();
    let decays = simd.splat(gates.decay);
    let inputs = simd.splat(input);
    let mut sum = simd.zero();
    for ((row, q), k) in row.iter_mut().zip(q).zip(k) {
        // SAFETY: each of the three has 16 values.
        unsafe {
            let old = simd.mul(decays, simd.load(row.as_ptr()));
            let new = simd.fma(inputs, simd.load(k.as_ptr()), old);
            simd.store(row.as_mut_ptr(), new);
            sum = simd.fma(new, simd.load(q.as_ptr()), sum);
        }
    }
    let mut total = simd.sum(sum);
    for ((row, q), k) in row_tail.iter_mut().zip(q_tail).zip(k_tail) {
        *row = gates.decay * *row + input * k;
        total += *row * q;
    }
    total
}
