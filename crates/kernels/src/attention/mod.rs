//! Attention over block caches: one entry point for prefill, decode and ragged batches.
//!
//! Flash style: scores exist only for a tile of keys, with the running maximum and sum of the
//! online softmax (Milakov and Gimelshein 2018; Dao et al. 2022). Query heads of a group share
//! every load of keys and values. Caches are read in the format in which they are stored: float
//! caches straight into the matrix product, int8 and Turbo caches by integer dot products or, for
//! many query rows, through one decoded tile in the second-level cache. With Turbo caches the
//! queries are rotated once and the outputs rotated back once; no vector of the cache is.
//!
//! [`plan`] cuts a call into units and [`mod@unit`] attends one of them, each step a kernel of
//! [`crate::simd`] ([`products`] has those on integers); quantisation and layout of blocks belong
//! to [`crate::kv`].

mod ahead;
mod codec;
#[cfg(target_arch = "x86_64")]
pub(crate) mod int16_avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod int8_avx512;
mod matmul;
mod plan;
mod products;
mod rounding;
mod scratch;
mod softmax;
mod tiles;
mod unit;

use crate::error::{KernelError, Result, check_len, wrong_dimension};
use crate::kv::{BlockLayout, KV_BLOCK_TOKENS, KvBlock};
use crate::order::Order;
use crate::pool::Pool;
use plan::{KeySplit, Unit};
use scratch::Sizes;
use std::f32::consts::LOG2_E;
use unit::{Context, Scratch, attend};

pub(crate) use products::{CodeProducts, NoProducts};
pub use scratch::scratch_bytes;

/// Keys that a query may see, besides the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mask {
    /// Keys at its own position and before.
    Causal,
    /// All keys (encoders, cross-attention). A window then only bounds how far back.
    Full,
}

/// Shapes and rules of an attention call, common to all of its runs.
#[derive(Clone, Copy, Debug)]
pub struct AttentionParams<'a> {
    /// Query heads, a multiple of `kv_heads`.
    pub query_heads: usize,
    /// KV heads; query heads `h·group..(h + 1)·group` use KV head h.
    pub kv_heads: usize,
    /// Coordinates of queries and keys.
    pub key_dim: usize,
    /// Coordinates of values and outputs.
    pub value_dim: usize,
    /// Factor of q·k.
    pub scale: f32,
    /// Soft cap: scores s become cap·tanh(s/cap).
    pub softcap: Option<f32>,
    /// Per query head: a logit that takes part in the softmax and has no value.
    pub sinks: Option<&'a [f32]>,
    /// A query at position p sees keys from position p − window + 1 on.
    pub window: Option<usize>,
    /// Causal or full.
    pub mask: Mask,
    /// Order of summation over the keys.
    pub order: Order,
}

/// Consecutive query tokens of one sequence and that sequence's cache.
#[derive(Clone, Copy, Debug)]
pub struct AttentionRun<'a> {
    /// `[tokens, query_heads, key_dim]`.
    pub q: &'a [f32],
    /// Position of the first query token.
    pub first_position: usize,
    /// The cache blocks, in order; keys and values of the run are already appended.
    pub blocks: &'a [&'a KvBlock],
    /// Position of the first token of the first block.
    pub first_block_position: usize,
    /// The first key that any query sees, counted from the first block's start: 0 unless keys before
    /// it belong to others (other images, in cross-attention).
    pub first_key: usize,
    /// Tokens that are valid in the blocks, counted from the first block's start.
    pub kv_tokens: usize,
}

impl AttentionParams<'_> {
    /// Query heads per KV head.
    pub(crate) fn group(&self) -> usize {
        self.query_heads / self.kv_heads
    }

    fn check(&self) -> Result<()> {
        if self.kv_heads == 0 || self.query_heads == 0 {
            return wrong_dimension("kv_heads", self.kv_heads.min(self.query_heads), "at least 1");
        }
        if !self.query_heads.is_multiple_of(self.kv_heads) {
            return wrong_dimension("query_heads", self.query_heads, "a multiple of kv_heads");
        }
        if self.key_dim == 0 || self.value_dim == 0 {
            return wrong_dimension("head dimension", 0, "at least 1");
        }
        if self.window == Some(0) {
            return wrong_dimension("window", 0, "at least 1");
        }
        if self.softcap.is_some_and(|cap| !(cap > 0.0 && cap.is_finite())) {
            return wrong_dimension("softcap", 0, "positive and finite");
        }
        match self.sinks {
            Some(sinks) => check_len("sinks", sinks.len(), self.query_heads),
            None => Ok(()),
        }
    }

    fn fits(&self, layout: &BlockLayout) -> Result<()> {
        check_len("kv_heads of a block", layout.kv_heads(), self.kv_heads)?;
        check_len("key_dim of a block", layout.key_dim(), self.key_dim)?;
        check_len("value_dim of a block", layout.value_dim(), self.value_dim)
    }
}

impl AttentionRun<'_> {
    /// Query tokens.
    pub(crate) fn tokens(&self, params: &AttentionParams<'_>) -> usize {
        self.q.len() / (params.query_heads * params.key_dim)
    }

    fn check(&self, params: &AttentionParams<'_>) -> Result<()> {
        let row = params.query_heads * params.key_dim;
        check_len("q", self.q.len(), self.tokens(params) * row)?;
        if self.kv_tokens > self.blocks.len() * KV_BLOCK_TOKENS {
            let rule = "at most the tokens of the blocks";
            let value = self.kv_tokens;
            return Err(KernelError::Dimension { what: "kv_tokens", value, rule });
        }
        let end = self.first_position.checked_add(self.tokens(params));
        if end.is_none_or(|end| end > usize::MAX / 2) {
            let value = self.first_position;
            let rule = "below 2^63";
            return Err(KernelError::Dimension { what: "first_position", value, rule });
        }
        self.blocks.iter().try_for_each(|block| params.fits(block.layout()))
    }
}

/// Attention of every run over its own cache, written to `out`
/// (`[total tokens, query_heads, value_dim]`, runs in order).
///
/// A query that sees no key gets zeros. Blocks of a run may differ in their formats.
///
/// # Errors
/// [`KernelError::Dimension`] and [`KernelError::Length`] for shapes that disagree.
pub fn attention(
    pool: &Pool,
    params: &AttentionParams<'_>,
    runs: &[AttentionRun<'_>],
    out: &mut [f32],
) -> Result<()> {
    params.check()?;
    runs.iter().try_for_each(|run| run.check(params))?;
    let tokens: usize = runs.iter().map(|run| run.tokens(params)).sum();
    check_len("out", out.len(), tokens * params.query_heads * params.value_dim)?;
    let cpu = pool.cpu();
    let context = Context { params, runs, cpu, integer_dim: products::max_dim(cpu) };
    let mut units = plan::units(params, runs, out);
    let parts = plan::parts(&units, pool.threads(), params.order);
    if parts.is_empty() {
        whole(pool, &context, &mut units);
    } else {
        split(pool, &context, &mut units, parts);
    }
    Ok(())
}

/// Computes the attention of each unit over all of its keys.
fn whole(pool: &Pool, context: &Context<'_>, units: &mut [Unit<'_>]) {
    let sizes = Sizes::of(context.params);
    pool.for_rows_mut(units, 1, 1, |_, _, units| {
        for unit in units {
            scratch::with(&sizes, |scratch| {
                attend(context, unit, &unit.keys, scratch);
                finish(context, unit, scratch);
            });
        }
    });
}

/// Result of attention over some keys: unnormalised outputs `[rows, stride]`, and per row the
/// largest score and the sum of weights.
#[derive(Default)]
struct Partial {
    acc: Vec<f32>,
    max: Vec<f32>,
    sum: Vec<f32>,
}

/// Computes the attention of parts of units, then merges them by log-sum-exp.
fn split(pool: &Pool, context: &Context<'_>, units: &mut [Unit<'_>], parts: Vec<KeySplit>) {
    let sizes = Sizes::of(context.params);
    let mut parts: Vec<_> = parts.into_iter().map(|part| (part, Partial::default())).collect();
    pool.for_rows_mut(&mut parts, 1, 1, |_, _, parts| {
        for (part, partial) in parts {
            let unit = &units[part.unit];
            let rows = unit.tokens.len() * context.params.group();
            scratch::with(&sizes, |scratch| {
                attend(context, unit, &part.keys, scratch);
                let state = &scratch.state;
                partial.acc = state.acc[..rows * state.stride].to_vec();
                partial.max = state.max[..rows].to_vec();
                partial.sum = state.sum[..rows].to_vec();
            });
        }
    });
    scratch::with(&sizes, |scratch| {
        for parts in parts.chunk_by(|a, b| a.0.unit == b.0.unit) {
            merge(parts, scratch);
            finish(context, &mut units[parts[0].0.unit], scratch);
        }
    });
}

/// Merges the partial results of one unit into `scratch.state`.
fn merge(parts: &[(KeySplit, Partial)], scratch: &mut Scratch<'_>) {
    let state = &mut scratch.state;
    let stride = state.stride;
    for row in 0..parts[0].1.max.len() {
        let max = parts.iter().fold(f32::NEG_INFINITY, |max, part| max.max(part.1.max[row]));
        let acc = &mut state.acc[row * stride..(row + 1) * stride];
        (state.max[row], state.sum[row]) = (max, 0.0);
        acc.fill(0.0);
        for (_, part) in parts.iter().filter(|part| part.1.sum[row] != 0.0) {
            let weight = (part.max[row] - max).exp2();
            state.sum[row] += weight * part.sum[row];
            for (acc, part) in acc.iter_mut().zip(&part.acc[row * stride..]) {
                *acc += weight * part;
            }
        }
    }
}

/// Adds the sinks, normalises and writes the outputs of a unit.
fn finish(context: &Context<'_>, unit: &mut Unit<'_>, scratch: &mut Scratch<'_>) {
    let params = context.params;
    let state = &mut scratch.state;
    let group = params.group();
    for (token, out) in unit.out.iter_mut().enumerate() {
        for (member, out) in out.chunks_exact_mut(params.value_dim).enumerate() {
            let row = token * group + member;
            let mut sum = state.sum[row];
            let mut factor = 1.0;
            if let Some(sinks) = params.sinks {
                let sink = sinks[unit.head * group + member] * LOG2_E;
                let max = state.max[row].max(sink);
                factor = (state.max[row] - max).exp2();
                sum = sum * factor + (sink - max).exp2();
            }
            let factor = if state.sum[row] == 0.0 { 0.0 } else { factor / sum };
            for (out, acc) in out.iter_mut().zip(&state.acc[row * state.stride..]) {
                *out = acc * factor;
            }
        }
    }
}

#[cfg(test)]
mod tests;
