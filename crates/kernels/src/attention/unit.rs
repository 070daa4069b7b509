//! Attention of one unit's query rows over a range of keys, tile by tile.

use super::matmul::Shape;
use super::ops::{ByteOps, Ops};
use super::plan::{Unit, visible};
use super::rounding::{ByteScratch, MAX_ROWS, Tile};
use super::softmax::{Cap, State};
use super::tiles::{Turn, elements, values_from_keys};
use super::{AttentionParams, AttentionRun};
use crate::kv::block::HeadView;
use crate::kv::{KV_BLOCK_TOKENS, KvBlock, KvFormat, ValueStore};
use crate::order::Order;
use crate::turbo::Side;
use std::f32::consts::LOG2_E;
use std::ops::Range;

/// Up to this many rows read a cache as it is stored; more rows share one decoded tile, as do all
/// with [`Order::Fixed`].
const DIRECT_ROWS: usize = MAX_ROWS;
/// Tokens of a decoded tile: keys and values of it stay in the second-level cache.
pub(crate) const TILE_TOKENS: usize = 128;

/// What all units of a call share.
#[derive(Clone, Copy)]
pub(crate) struct Context<'a> {
    pub(crate) params: &'a AttentionParams<'a>,
    pub(crate) runs: &'a [AttentionRun<'a>],
    pub(crate) ops: &'static Ops,
    pub(crate) bytes: Option<&'static ByteOps>,
}

/// Working memory of one thread.
pub(crate) struct Scratch<'a> {
    /// Scaled queries, `[rows, key_dim]`.
    pub(crate) q: &'a mut [f32],
    /// A decoded key tile.
    pub(crate) keys: &'a mut [f32],
    /// A decoded value tile.
    pub(crate) values: &'a mut [f32],
    /// Scores and then weights, `[rows, tile]`.
    pub(crate) scores: &'a mut [f32],
    /// Rounded queries and weights.
    pub(crate) bytes: ByteScratch<'a>,
    /// Softmax state; `acc` is `[rows, value_dim rounded up to 16]`.
    pub(crate) state: State<'a>,
}

/// One pass over keys: the unit's rows and what basis they are in.
struct Pass<'c, 's, 'u> {
    context: &'c Context<'c>,
    scratch: &'c mut Scratch<'s>,
    unit: &'c Unit<'u>,
    rows: usize,
    /// Whether `q` is in the rotated basis of Turbo keys.
    q_rotated: bool,
    /// Whether `scratch.bytes` has the queries in this basis.
    q_rounded: bool,
    /// Whether `acc` is in the rotated basis of Turbo values.
    acc_rotated: bool,
    visible: Vec<Range<usize>>,
}

/// Attends `unit` to `keys`, leaving unnormalised outputs (in the plain basis), maxima and sums
/// in `scratch.state`.
pub(crate) fn attend(
    context: &Context<'_>,
    unit: &Unit<'_>,
    keys: &Range<usize>,
    scratch: &mut Scratch<'_>,
) {
    let rows = unit.tokens.len() * context.params.group();
    let stride = scratch.state.stride;
    load_queries(context, unit, scratch.q);
    scratch.state.max[..rows].fill(f32::NEG_INFINITY);
    scratch.state.sum[..rows].fill(0.0);
    scratch.state.acc[..rows * stride].fill(0.0);
    let visible = Vec::with_capacity(rows);
    let mut pass = Pass {
        context,
        scratch,
        unit,
        rows,
        q_rotated: false,
        q_rounded: false,
        acc_rotated: false,
        visible,
    };
    let run = &context.runs[unit.run];
    let mut at = keys.start;
    while at < keys.end {
        let index = at / KV_BLOCK_TOKENS;
        let base = index * KV_BLOCK_TOKENS;
        let end = keys.end.min(base + KV_BLOCK_TOKENS);
        let next = run.blocks.get(index + 1).filter(|_| end < keys.end);
        let next = next.map(|block| block.head(Side::Key, unit.head).codes);
        pass.block(run.blocks[index], base, at - base..end - base, next.unwrap_or(&[]));
        at = end;
    }
    pass.turn_acc(false);
}

/// Copies the unit's queries to `[rows, key_dim]`, times the factor that [`Cap`] expects.
fn load_queries(context: &Context<'_>, unit: &Unit<'_>, q: &mut [f32]) {
    let params = context.params;
    let factor = match params.softcap {
        Some(cap) => params.scale / cap,
        None => params.scale * LOG2_E,
    };
    let size = params.group() * params.key_dim;
    let from = &context.runs[unit.run].q;
    for (token, q) in unit.tokens.clone().zip(q.chunks_exact_mut(size)) {
        let at = (token * params.kv_heads + unit.head) * size;
        for (q, from) in q.iter_mut().zip(&from[at..at + size]) {
            *q = from * factor;
        }
    }
}

/// How a pass reads one side of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    /// Floats, straight from the block.
    InPlace,
    /// Codes, by integer dot products.
    Bytes,
    /// A tile decoded to f32 first, shared by all rows.
    Decoded,
    /// Values taken from the decoded key tile.
    KeyPrefix,
}

impl Pass<'_, '_, '_> {
    /// Attends to the tokens `keys` of one block whose first token is token `base` of the run.
    /// The pass reads `next` after it.
    fn block(&mut self, block: &KvBlock, base: usize, keys: Range<usize>, next: &[u8]) {
        let key = block.head(Side::Key, self.unit.head);
        let value = block.head(Side::Value, self.unit.head);
        let prefix = block.layout().value() == ValueStore::KeyPrefix;
        let how = match prefix {
            true => (Reading::Decoded, Reading::KeyPrefix),
            false => (self.reading(&key), self.reading(&value)),
        };
        self.turn_q(key.coding.format.turbo().is_some());
        self.turn_acc(value.coding.format.turbo().is_some());
        let decoded = |how| matches!(how, Reading::Decoded | Reading::KeyPrefix);
        let tile = if decoded(how.0) || decoded(how.1) { TILE_TOKENS } else { KV_BLOCK_TOKENS };
        // Where a window begins depends on the unit's first token, a tile need not.
        let align = if self.context.params.order == Order::Fixed { tile } else { 16 };
        let mut start = keys.start / align * align;
        while start < keys.end {
            let width = (keys.end - start).min(tile).next_multiple_of(16);
            let tokens = start..start + width;
            if let Some(seen) = self.look(base, &tokens) {
                self.score(&key, &tokens, value.codes, how.0);
                self.weigh(&value, &tokens, &seen, how.1);
                self.gather(&value, &tokens, &seen, next, how.1);
            }
            start += width;
        }
    }

    fn reading(&self, view: &HeadView<'_>) -> Reading {
        let (dim, side) = (view.coding.dim, view.coding.side);
        let many = self.rows > DIRECT_ROWS || self.context.params.order == Order::Fixed;
        if many || side == Side::Value && !dim.is_multiple_of(16) {
            return Reading::Decoded;
        }
        match view.coding.format {
            KvFormat::F32 | KvFormat::F16 | KvFormat::Bf16 => Reading::InPlace,
            KvFormat::Int8 | KvFormat::Turbo4 | KvFormat::Turbo3
                if self.context.bytes.is_some_and(|bytes| dim <= bytes.max_dim)
                    && dim.is_multiple_of(16) =>
            {
                Reading::Bytes
            }
            KvFormat::Int8 | KvFormat::Turbo4 | KvFormat::Turbo3 => Reading::Decoded,
        }
    }

    /// Brings `q` into or out of the rotated basis of the keys.
    fn turn_q(&mut self, rotated: bool) {
        if self.q_rotated != rotated {
            let dim = self.context.params.key_dim;
            let turn = if rotated { Turn::Into } else { Turn::Back };
            let q = &mut self.scratch.q[..self.rows * dim];
            (self.context.ops.rotate)(turn, Side::Key, dim, dim, q);
            (self.q_rotated, self.q_rounded) = (rotated, false);
        }
    }

    /// Brings the outputs so far into or out of the rotated basis of the values.
    fn turn_acc(&mut self, rotated: bool) {
        if self.acc_rotated != rotated {
            let (dim, stride) = (self.context.params.value_dim, self.scratch.state.stride);
            let turn = if rotated { Turn::Into } else { Turn::Back };
            let acc = &mut self.scratch.state.acc[..self.rows * stride];
            (self.context.ops.rotate)(turn, Side::Value, dim, stride, acc);
            self.acc_rotated = rotated;
        }
    }

    /// Notes which columns of the tile each row sees; returns their hull, `None` when empty.
    fn look(&mut self, base: usize, tokens: &Range<usize>) -> Option<Range<usize>> {
        let Context { params, runs, .. } = self.context;
        let (start, width) = (base + tokens.start, tokens.len());
        self.visible.clear();
        let mut hull: Option<Range<usize>> = None;
        for token in self.unit.tokens.clone() {
            let seen = visible(params, &runs[self.unit.run], token);
            let column = |at: usize| at.saturating_sub(start).min(width);
            let seen = column(seen.start)..column(seen.end);
            if !seen.is_empty() {
                let so_far = hull.unwrap_or_else(|| seen.clone());
                hull = Some(so_far.start.min(seen.start)..so_far.end.max(seen.end));
            }
            self.visible.extend(std::iter::repeat_n(seen, params.group()));
        }
        hull
    }

    /// Scores of all rows against `tokens`.
    fn score(&mut self, key: &HeadView<'_>, tokens: &Range<usize>, next: &[u8], how: Reading) {
        let (dim, ops, s) = (key.coding.dim, self.context.ops, &mut *self.scratch);
        if let (Reading::Bytes, Some(bytes)) = (how, self.context.bytes) {
            if !self.q_rounded {
                (bytes.round_queries)(dim, &s.q[..self.rows * dim], &mut s.bytes);
                self.q_rounded = true;
            }
            return (bytes.scores)(key, tokens.clone(), next, self.rows, &s.bytes, s.scores);
        }
        let shape = Shape {
            rows: self.rows,
            depth: dim,
            blocks: tokens.len() / 16,
            a_row: dim,
            b_row: 16,
            b_block: 16 * dim,
            c_row: tokens.len(),
            accumulate: false,
        };
        if how == Reading::InPlace {
            return multiply(ops, &shape, s.q, (key, tokens.start * dim), next, s.scores);
        }
        let tile = &mut s.keys[..tokens.len() * dim];
        (ops.keys)(key, tokens.clone(), tile);
        (ops.matmul_f32)(&shape, s.q, tile, &[], s.scores);
    }

    /// Scores to weights, and the softmax state with them.
    fn weigh(
        &mut self,
        value: &HeadView<'_>,
        tokens: &Range<usize>,
        seen: &Range<usize>,
        how: Reading,
    ) {
        let cap = match self.context.params.softcap {
            Some(cap) => Cap::Tanh { limit: cap * LOG2_E },
            None => Cap::None,
        };
        let (visible, s) = (&self.visible[..], &mut *self.scratch);
        if let (Reading::Bytes, Some(bytes)) = (how, self.context.bytes) {
            let tile = Tile { view: value, tokens: tokens.clone(), seen: seen.clone(), visible };
            return (bytes.weigh)(cap, &tile, s.scores, &mut s.bytes, &mut s.state);
        }
        (self.context.ops.softmax)(cap, tokens.len(), s.scores, visible, &mut s.state);
    }

    /// Adds the values of the columns `seen` of the tile, weighted, to the outputs.
    fn gather(
        &mut self,
        value: &HeadView<'_>,
        tokens: &Range<usize>,
        seen: &Range<usize>,
        next: &[u8],
        how: Reading,
    ) {
        let (params, ops, s) = (self.context.params, self.context.ops, &mut *self.scratch);
        if let (Reading::Bytes, Some(bytes)) = (how, self.context.bytes) {
            let rows = self.rows;
            return (bytes.gather)(value, tokens.clone(), next, rows, &s.bytes, &mut s.state);
        }
        let stride = s.state.stride;
        let shape = Shape {
            rows: self.rows,
            depth: seen.len(),
            blocks: stride / 16,
            a_row: tokens.len(),
            b_row: stride,
            b_block: 16,
            c_row: stride,
            accumulate: true,
        };
        let weights = &s.scores[seen.start..];
        match how {
            Reading::InPlace => {
                let start = (tokens.start + seen.start) * stride;
                return multiply(ops, &shape, weights, (value, start), next, s.state.acc);
            }
            Reading::Decoded | Reading::Bytes => (ops.values)(value, tokens.clone(), s.values),
            Reading::KeyPrefix => {
                let keys = &s.keys[..tokens.len() * params.key_dim];
                values_from_keys(keys, params.key_dim, params.value_dim, s.values);
            }
        }
        (ops.matmul_f32)(&shape, weights, &s.values[seen.start * stride..], &[], s.state.acc);
    }
}

/// `c` ← or += `a` · B, with B the float codes of `view` from element `start` on.
fn multiply(
    ops: &Ops,
    shape: &Shape,
    a: &[f32],
    (view, start): (&HeadView<'_>, usize),
    next: &[u8],
    c: &mut [f32],
) {
    match view.coding.format {
        KvFormat::F16 => (ops.matmul_f16)(shape, a, &elements(view.codes)[start..], next, c),
        KvFormat::Bf16 => (ops.matmul_bf16)(shape, a, &elements(view.codes)[start..], next, c),
        // Only floats are read in place.
        _ => (ops.matmul_f32)(shape, a, &elements(view.codes)[start..], next, c),
    }
}
