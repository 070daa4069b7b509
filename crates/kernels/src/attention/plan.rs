//! Cutting a call into pieces of work: which query rows, which KV head, which keys.
//!
//! A *unit* is one KV head of some consecutive query tokens of a run: up to [`UNIT_ROWS`] rows
//! (tokens × query heads of the group) that share every load of keys and values. When a run has
//! too few units for the threads, their keys are split as well, in whole blocks, and the parts
//! are merged. The other runs of the call make no difference, so that a sequence gets the same
//! sums alone and in a batch. With [`Order::Fixed`] nothing is split, since how many units there are
//! depends on how many tokens the run has.

use super::{AttentionParams, AttentionRun, Mask};
use crate::kv::KV_BLOCK_TOKENS;
use crate::order::Order;
use std::ops::Range;

/// Most query rows of a unit, unless one token's group is larger.
pub(crate) const UNIT_ROWS: usize = 128;
/// Pieces per thread to aim for, so that a slow thread does not hold up the rest.
const PIECES_PER_THREAD: usize = 3;

/// One KV head of some query tokens, and where their outputs go.
pub(crate) struct Unit<'a> {
    pub(crate) run: usize,
    pub(crate) head: usize,
    /// Query tokens of the run.
    pub(crate) tokens: Range<usize>,
    /// Keys (as tokens of the run's blocks) that any of the tokens sees.
    pub(crate) keys: Range<usize>,
    /// Per query token: the outputs of this head's group, `[group, value_dim]`.
    pub(crate) out: Vec<&'a mut [f32]>,
}

/// Some of the keys of a unit.
#[derive(Clone, Debug)]
pub(crate) struct KeySplit {
    pub(crate) unit: usize,
    pub(crate) keys: Range<usize>,
}

/// Query tokens per unit.
pub(crate) fn unit_tokens(params: &AttentionParams<'_>) -> usize {
    (UNIT_ROWS / params.group()).max(1)
}

/// Query rows per unit at most.
pub(crate) fn unit_rows(params: &AttentionParams<'_>) -> usize {
    unit_tokens(params) * params.group()
}

/// The units of a call; every output row belongs to exactly one.
pub(crate) fn units<'a>(
    params: &AttentionParams<'_>,
    runs: &[AttentionRun<'_>],
    out: &'a mut [f32],
) -> Vec<Unit<'a>> {
    let heads = params.kv_heads;
    let step = unit_tokens(params);
    let mut rows = out.chunks_exact_mut(params.group() * params.value_dim);
    let mut units: Vec<Unit<'a>> = Vec::new();
    for (index, run) in runs.iter().enumerate() {
        let tokens = run.tokens(params);
        let first = units.len();
        for start in (0..tokens).step_by(step) {
            let range = start..(start + step).min(tokens);
            let keys =
                visible(params, run, range.start).start..visible(params, run, range.end - 1).end;
            units.extend((0..heads).map(|head| Unit {
                run: index,
                head,
                tokens: range.clone(),
                keys: keys.start.min(keys.end)..keys.end,
                out: Vec::with_capacity(range.len()),
            }));
        }
        for (row, out) in rows.by_ref().take(tokens * heads).enumerate() {
            units[first + row / heads / step * heads + row % heads].out.push(out);
        }
    }
    units
}

/// The keys that query `token` of `run` sees, as tokens of the run's blocks.
pub(crate) fn visible(
    params: &AttentionParams<'_>,
    run: &AttentionRun<'_>,
    token: usize,
) -> Range<usize> {
    // Positions are relative to the first block; a query may even precede it.
    let next = (run.first_position + token + 1).saturating_sub(run.first_block_position);
    let end = match params.mask {
        Mask::Causal => next.min(run.kv_tokens),
        Mask::Full => run.kv_tokens,
    };
    let start = params.window.map_or(0, |window| next.saturating_sub(window));
    start.max(run.first_key).min(end)..end
}

/// The parts of `units`, where any run has too few of them for `threads`; empty when all have
/// enough, or none is to be split. Parts of a unit are consecutive.
pub(crate) fn parts(units: &[Unit<'_>], threads: usize, order: Order) -> Vec<KeySplit> {
    if order == Order::Fixed {
        return Vec::new();
    }
    let wanted = if threads == 1 { 1 } else { threads * PIECES_PER_THREAD };
    let mut parts = Vec::with_capacity(units.len());
    let mut first = 0;
    for run in units.chunk_by(|a, b| a.run == b.run) {
        let splits = wanted.div_ceil(run.len());
        for (unit, of) in (first..).zip(run) {
            parts.extend(split(&of.keys, splits).into_iter().map(|keys| KeySplit { unit, keys }));
        }
        first += run.len();
    }
    if parts.len() == units.len() { Vec::new() } else { parts }
}

/// At most `splits` ranges of whole blocks that cover `keys`; one, when it is empty.
fn split(keys: &Range<usize>, splits: usize) -> Vec<Range<usize>> {
    let first = keys.start / KV_BLOCK_TOKENS;
    let blocks = keys.end.div_ceil(KV_BLOCK_TOKENS).saturating_sub(first).max(1);
    let splits = splits.min(blocks);
    let edge = |i: usize| (first + blocks * i / splits) * KV_BLOCK_TOKENS;
    (0..splits)
        .map(|i| edge(i).clamp(keys.start, keys.end)..edge(i + 1).clamp(keys.start, keys.end))
        .collect()
}

/// Most parts that a run which is split can have with `threads` threads.
pub(crate) fn most_parts(threads: usize) -> usize {
    if threads == 1 { 0 } else { 2 * threads * PIECES_PER_THREAD }
}
