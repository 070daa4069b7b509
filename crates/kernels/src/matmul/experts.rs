//! Products with the experts that a router chose, and with one matrix per head.
//!
//! Tokens are grouped by expert, so that a pass reads every expert that is used once and the
//! others never. A *slot* is one expert of one token, `token · active + i`.

#![expect(
    clippy::cast_possible_truncation,
    reason = "slots are counted in 32 bits, which `checked_count` makes sure of"
)]

use super::Sums;
use super::driver::{self, Job, Layer, run_jobs};
use super::input::Source;
use super::task::Out;
use crate::elementwise::Glu;
use crate::error::{KernelError, Result, check_len};
use crate::order::Order;
use crate::pool::Pool;
use crate::scratch::{self, BufferKind};
use crate::weights::WeightMatrix;
use std::ops::Range;

/// The slots of some tokens, grouped by expert.
#[derive(Clone, Debug, PartialEq)]
pub struct Routes {
    active: usize,
    /// Slots, by expert.
    slots: Vec<u32>,
    /// The token of each of them.
    tokens: Vec<u32>,
    /// Experts that are used, with their part of `slots`.
    used: Vec<(usize, Range<usize>)>,
    /// Weight of each slot, in the order of tokens.
    weights: Vec<f32>,
}

impl Routes {
    /// Groups `chosen` and `weights`, both `[tokens, active]`, of a layer with `experts` experts.
    ///
    /// # Errors
    /// [`KernelError::Index`] for an expert that the layer does not have, [`KernelError::Length`]
    /// and [`KernelError::Dimension`] for lists that are not whole tokens or do not match.
    pub fn new(chosen: &[u32], weights: Vec<f32>, active: usize, experts: usize) -> Result<Self> {
        check_len("weights of the experts", weights.len(), chosen.len())?;
        if active == 0 || !chosen.len().is_multiple_of(active) {
            let rule = "a divisor of the number of choices";
            return Err(KernelError::Dimension { what: "active experts", value: active, rule });
        }
        let count = checked_count(chosen.len())?;
        if let Some(&bad) = chosen.iter().find(|&&expert| expert as usize >= experts) {
            return Err(KernelError::Index { what: "expert", index: bad.into(), len: experts });
        }
        let mut slots: Vec<u32> = (0..count).collect();
        slots.sort_by_key(|&slot| chosen[slot as usize]);
        let expert = |at: usize| chosen[slots[at] as usize] as usize;
        let mut used: Vec<(usize, Range<usize>)> = Vec::new();
        for at in 0..slots.len() {
            match used.last_mut() {
                Some((last, range)) if *last == expert(at) => range.end = at + 1,
                _ => used.push((expert(at), at..at + 1)),
            }
        }
        let tokens = slots.iter().map(|&slot| (slot as usize / active) as u32).collect();
        Ok(Self { active, slots, tokens, used, weights })
    }

    /// The experts that are used, in order.
    pub fn used(&self) -> impl Iterator<Item = usize> + '_ {
        self.used.iter().map(|(expert, _)| *expert)
    }
}

/// `slots` as it is stored.
fn checked_count(slots: usize) -> Result<u32> {
    let rule = "fewer than 2^32";
    u32::try_from(slots).map_err(|_| KernelError::Dimension { what: "slots", value: slots, rule })
}

/// The gated feed-forward layer of one expert.
#[derive(Clone, Copy, Debug)]
pub struct Expert<'a> {
    /// `[inner, hidden]`.
    pub gate: Layer<'a>,
    /// `[inner, hidden]`.
    pub up: Layer<'a>,
    /// `[hidden, inner]`.
    pub down: Layer<'a>,
}

/// `out[t] = Σᵢ weightᵢ · downᵢ(activation(gateᵢ(x[t]), upᵢ(x[t])))` over the experts of token t.
///
/// `experts` are those of [`Routes::used`], in that order. `x` is `[tokens, hidden]`, `out` as `x`.
///
/// # Errors
/// [`KernelError::Length`] and [`KernelError::Dimension`] for shapes that do not fit, and for a
/// gate and an up matrix whose activations are prepared differently (another group size, or only
/// one of them quantised); [`KernelError::OutOfMemory`].
pub fn experts(
    pool: &Pool,
    x: &[f32],
    routes: &Routes,
    experts: &[Expert<'_>],
    activation: Glu,
    out: &mut [f32],
    sums: impl Into<Sums>,
) -> Result<()> {
    let sums = sums.into();
    check_len("experts", experts.len(), routes.used.len())?;
    let Some(first) = experts.first() else { return Ok(()) };
    let hidden = first.gate.weights.cols();
    let inner = first.gate.weights.rows();
    let slots = routes.slots.len();
    check_len("activations of the experts", x.len(), slots / routes.active * hidden)?;
    check_len("output of the experts", out.len(), x.len())?;
    experts.iter().try_for_each(|expert| check_expert(expert, hidden, inner))?;
    scratch::with(BufferKind::Hidden, slots * inner * size_of::<f32>(), |middle| {
        scratch::with(BufferKind::Down, slots * hidden * size_of::<f32>(), |down| {
            let middle = &mut bytemuck::cast_slice_mut(middle)[..slots * inner];
            let down = &mut bytemuck::cast_slice_mut(down)[..slots * hidden];
            let source = Source { x, cols: hidden, gather: Some(&routes.tokens) };
            let target = Out::new(middle, inner, None);
            let gates = jobs(routes, experts, target, sums.order, |expert| {
                (expert.gate, Some((expert.up, activation)))
            });
            run_jobs(pool, source, slots, &gates, sums.precision.gated())?;
            let source = Source { x: middle, cols: inner, gather: None };
            let target = Out::new(down, hidden, Some(&routes.slots));
            let downs = jobs(routes, experts, target, sums.order, |expert| (expert.down, None));
            run_jobs(pool, source, slots, &downs, sums.precision)?;
            weighted_sum(pool, down, routes, hidden, out);
            Ok(())
        })?
    })?
}

fn check_expert(expert: &Expert<'_>, hidden: usize, inner: usize) -> Result<()> {
    let [gate, up, down] = [expert.gate, expert.up, expert.down].map(|layer| layer.weights);
    check_len("rows of an expert's gate", gate.rows(), inner)?;
    check_len("columns of an expert's gate", gate.cols(), hidden)?;
    super::check_pair(&gate, &up)?;
    check_len("rows of an expert's down", down.rows(), hidden)?;
    check_len("columns of an expert's down", down.cols(), inner)?;
    [expert.gate, expert.up, expert.down].iter().try_for_each(Layer::check)?;
    if driver::same_kind(&gate, &up) {
        return Ok(());
    }
    let rule = "quantised in the groups of its gate";
    Err(KernelError::Dimension { what: "up matrix of an expert", value: up.cols(), rule })
}

/// One job per used expert, all into `out` and in the same order of summation.
fn jobs<'a>(
    routes: &Routes,
    experts: &[Expert<'a>],
    out: Out<'a>,
    order: Order,
    part: impl Fn(&Expert<'a>) -> (Layer<'a>, Option<(Layer<'a>, Glu)>),
) -> Vec<Job<'a>> {
    let used = routes.used.iter().zip(experts);
    used.map(|((_, tokens), expert)| {
        let (layer, glu) = part(expert);
        Job { layer, glu, tokens: tokens.clone(), order, out }
    })
    .collect()
}

/// `out[t] = Σᵢ weightᵢ · down[slot of t and i]`.
fn weighted_sum(pool: &Pool, down: &[f32], routes: &Routes, hidden: usize, out: &mut [f32]) {
    let active = routes.active;
    pool.for_rows_mut(out, hidden, 4, |_, first, rows| {
        for (token, out) in (first..).zip(rows.chunks_exact_mut(hidden)) {
            out.fill(0.0);
            for slot in token * active..(token + 1) * active {
                let weight = routes.weights[slot];
                let down = &down[slot * hidden..][..hidden];
                out.iter_mut().zip(down).for_each(|(out, down)| *out += weight * down);
            }
        }
    });
}

/// `out[t][h] = x[t][h] · weights[h]ᵀ`: head `h` of every token with a matrix of its own.
///
/// `weights` are the heads' matrices one after the other, `[heads · rows, cols]`; `x` is
/// `[tokens, heads, cols]`, `out` is `[tokens, heads, rows]`.
///
/// # Errors
/// [`KernelError::Length`] and [`KernelError::Dimension`] for shapes that do not fit,
/// [`KernelError::OutOfMemory`].
pub fn matmul_heads(
    pool: &Pool,
    x: &[f32],
    weights: &WeightMatrix<'_>,
    heads: usize,
    out: &mut [f32],
    sums: impl Into<Sums>,
) -> Result<()> {
    let Sums { precision, order } = sums.into();
    let all_rows = weights.rows();
    let cols = weights.cols();
    if heads == 0 || !all_rows.is_multiple_of(heads) {
        let rule = "a multiple of the number of heads";
        return Err(KernelError::Dimension { what: "rows", value: all_rows, rule });
    }
    let rows = all_rows / heads;
    let slots = super::whole_rows(x, cols)?;
    let tokens = slots / heads;
    check_len("activations of the heads", x.len(), tokens * heads * cols)?;
    check_len("output of the heads", out.len(), slots * rows)?;
    checked_count(slots)?;
    // Row `token · heads + head`, head by head.
    let permuted: Vec<u32> = (0..heads)
        .flat_map(|head| (0..tokens).map(move |token| (token * heads + head) as u32))
        .collect();
    let out = Out::new(out, rows, Some(&permuted));
    let mut jobs = Vec::with_capacity(heads);
    for head in 0..heads {
        let layer = Layer::plain(weights.row_range(head * rows, rows)?);
        let tokens = head * tokens..(head + 1) * tokens;
        jobs.push(Job { layer, glu: None, tokens, order, out });
    }
    run_jobs(pool, Source { x, cols, gather: Some(&permuted) }, slots, &jobs, precision)
}

#[cfg(test)]
mod tests;
