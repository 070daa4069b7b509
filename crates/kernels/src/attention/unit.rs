//! Attention of one unit's query rows over a range of keys, tile by tile.

use super::matmul::{Product, Shape};
use super::plan::{Unit, visible};
use super::products::{GatherCodes, ScoreCodes};
use super::rounding::{MAX_ROWS, RoundQueries, RoundWeights, RoundedRows};
use super::softmax::{Cap, Softmax, SoftmaxState};
use super::tiles::{BasisChange, Decode, Rotate, elements, values_from_keys};
use super::{AttentionParams, AttentionRun};
use crate::isa::Cpu;
use crate::kv::block::HeadView;
use crate::kv::{KV_BLOCK_TOKENS, KvBlock, KvFormat, ValueStore};
use crate::order::Order;
use crate::simd::dispatch;
use crate::turbo::Side;
use std::f32::consts::LOG2_E;
use std::ops::Range;

/// Up to this many rows read a cache as it is stored; more rows share one decoded tile, as do all
/// with [`Order::Fixed`].
const DIRECT_ROWS: usize = MAX_ROWS;
/// Tokens of a decoded tile: keys and values of it stay in the second-level cache.
pub(crate) const TILE_TOKENS: usize = 128;

/// The parts of a call that all of its units share.
#[derive(Clone, Copy)]
pub(crate) struct Context<'a> {
    pub(crate) params: &'a AttentionParams<'a>,
    pub(crate) runs: &'a [AttentionRun<'a>],
    pub(crate) cpu: Cpu,
    /// Most coordinates of a key that integer products take; 0 where there are none.
    pub(crate) integer_dim: usize,
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
    pub(crate) rounded: RoundedRows<'a>,
    /// Softmax state; `acc` is `[rows, value_dim rounded up to 16]`.
    pub(crate) state: SoftmaxState<'a>,
}

/// One pass over keys: the unit's rows and the basis that they are in.
struct Pass<'c, 's, 'u> {
    context: &'c Context<'c>,
    scratch: &'c mut Scratch<'s>,
    unit: &'c Unit<'u>,
    rows: usize,
    /// True while `q` is in the rotated basis of Turbo keys.
    q_rotated: bool,
    /// True while `scratch.rounded` has the queries in this basis.
    q_rounded: bool,
    /// True while `acc` is in the rotated basis of Turbo values.
    acc_rotated: bool,
    visible: Vec<Range<usize>>,
}

/// Computes the attention of `unit` over `keys`: leaves unnormalised outputs (in the plain basis),
/// maxima and sums in `scratch.state`.
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
    pass.rotate_outputs(false);
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

/// Way of reading one side of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    /// Floats, straight from the block.
    InPlace,
    /// Codes, by integer products.
    Codes,
    /// A tile decoded to f32 first, shared by all rows.
    Decoded,
    /// Values taken from the decoded key tile.
    KeyPrefix,
}

impl Reading {
    /// Returns true if it needs a decoded tile.
    fn decodes(self) -> bool {
        matches!(self, Self::Decoded | Self::KeyPrefix)
    }
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
        self.rotate_queries(key.coding.format.turbo().is_some());
        self.rotate_outputs(value.coding.format.turbo().is_some());
        let tile = if how.0.decodes() || how.1.decodes() { TILE_TOKENS } else { KV_BLOCK_TOKENS };
        // Where a window begins depends on the unit's first token, a tile need not.
        let align = if self.context.params.order == Order::Fixed { tile } else { 16 };
        let mut start = keys.start / align * align;
        while start < keys.end {
            let width = (keys.end - start).min(tile).next_multiple_of(16);
            let tokens = start..start + width;
            if let Some(seen) = self.mark_visible(base, &tokens) {
                self.score(&key, &tokens, value.codes, how.0);
                self.weigh(&value, &tokens, &seen, how.1);
                self.gather(&value, &tokens, &seen, next, how.1);
            }
            start += width;
        }
    }

    fn reading(&self, view: &HeadView<'_>) -> Reading {
        let dim = view.coding.dim;
        let side = view.coding.side;
        let many = self.rows > DIRECT_ROWS || self.context.params.order == Order::Fixed;
        if many || side == Side::Value && !dim.is_multiple_of(16) {
            return Reading::Decoded;
        }
        match view.coding.format {
            KvFormat::F32 | KvFormat::F16 | KvFormat::Bf16 => Reading::InPlace,
            KvFormat::Int8 | KvFormat::Turbo4 | KvFormat::Turbo3
                if dim <= self.context.integer_dim && dim.is_multiple_of(16) =>
            {
                Reading::Codes
            }
            KvFormat::Int8 | KvFormat::Turbo4 | KvFormat::Turbo3 => Reading::Decoded,
        }
    }

    /// Brings `q` into or out of the rotated basis of the keys.
    fn rotate_queries(&mut self, rotated: bool) {
        if self.q_rotated != rotated {
            let dim = self.context.params.key_dim;
            let change = if rotated { BasisChange::Into } else { BasisChange::Back };
            let x = &mut self.scratch.q[..self.rows * dim];
            dispatch(self.context.cpu, Rotate { change, side: Side::Key, dim, stride: dim, x });
            self.q_rotated = rotated;
            self.q_rounded = false;
        }
    }

    /// Brings the outputs so far into or out of the rotated basis of the values.
    fn rotate_outputs(&mut self, rotated: bool) {
        if self.acc_rotated != rotated {
            let dim = self.context.params.value_dim;
            let stride = self.scratch.state.stride;
            let change = if rotated { BasisChange::Into } else { BasisChange::Back };
            let x = &mut self.scratch.state.acc[..self.rows * stride];
            dispatch(self.context.cpu, Rotate { change, side: Side::Value, dim, stride, x });
            self.acc_rotated = rotated;
        }
    }

    /// Stores the columns of the tile that each row sees; returns their hull, `None` when empty.
    fn mark_visible(&mut self, base: usize, tokens: &Range<usize>) -> Option<Range<usize>> {
        let Context { params, runs, .. } = self.context;
        let start = base + tokens.start;
        let width = tokens.len();
        self.visible.clear();
        let mut hull: Option<Range<usize>> = None;
        for token in self.unit.tokens.clone() {
            let seen = visible(params, &runs[self.unit.run], token);
            let first = seen.start.saturating_sub(start).min(width);
            let seen = first..seen.end.saturating_sub(start).min(width);
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
        let dim = key.coding.dim;
        let cpu = self.context.cpu;
        let scratch = &mut *self.scratch;
        if how == Reading::Codes {
            if !self.q_rounded {
                let q = &scratch.q[..self.rows * dim];
                dispatch(cpu, RoundQueries { dim, q, to: &mut scratch.rounded });
                self.q_rounded = true;
            }
            let task = ScoreCodes {
                view: key,
                tokens: tokens.clone(),
                next,
                rows: self.rows,
                from: &scratch.rounded,
                out: scratch.scores,
            };
            return dispatch(cpu, task);
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
        let a = &*scratch.q;
        let c = &mut *scratch.scores;
        if how == Reading::InPlace {
            let factor = InPlace { view: key, start: tokens.start * dim };
            return factor.multiply(cpu, shape, a, next, c);
        }
        let out = &mut scratch.keys[..tokens.len() * dim];
        decode(cpu, Decode { view: key, tokens: tokens.clone(), out });
        dispatch(cpu, Product { shape, a, b: &*scratch.keys, next: &[], c });
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
        let cpu = self.context.cpu;
        let visible = &self.visible[..];
        let Scratch { scores, rounded, state, .. } = &mut *self.scratch;
        if how != Reading::Codes {
            return dispatch(cpu, Softmax { cap, width: tokens.len(), scores, visible, state });
        }
        let task = RoundWeights {
            cap,
            view: value,
            tokens: tokens.clone(),
            seen: seen.clone(),
            visible,
            scores,
            to: rounded,
            state,
        };
        dispatch(cpu, task);
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
        let params = self.context.params;
        let cpu = self.context.cpu;
        let scratch = &mut *self.scratch;
        let stride = scratch.state.stride;
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
        let a = &scratch.scores[seen.start..];
        match how {
            Reading::Codes => {
                let task = GatherCodes {
                    view: value,
                    tokens: tokens.clone(),
                    next,
                    rows: self.rows,
                    from: &scratch.rounded,
                    state: &mut scratch.state,
                };
                return dispatch(cpu, task);
            }
            Reading::InPlace => {
                let start = (tokens.start + seen.start) * stride;
                let factor = InPlace { view: value, start };
                return factor.multiply(cpu, shape, a, next, scratch.state.acc);
            }
            Reading::Decoded => {
                let out = &mut *scratch.values;
                decode(cpu, Decode { view: value, tokens: tokens.clone(), out });
            }
            Reading::KeyPrefix => {
                let keys = &scratch.keys[..tokens.len() * params.key_dim];
                values_from_keys(keys, params.key_dim, params.value_dim, scratch.values);
            }
        }
        let b = &scratch.values[seen.start * stride..];
        dispatch(cpu, Product { shape, a, b, next: &[], c: scratch.state.acc });
    }
}

/// Decodes a tile.
fn decode(cpu: Cpu, mut tile: Decode<'_>) {
    if !tile.decode_irregular() {
        dispatch(cpu, tile);
    }
}

/// A factor of a product that is read from a block of floats.
struct InPlace<'a> {
    view: &'a HeadView<'a>,
    /// First element.
    start: usize,
}

impl InPlace<'_> {
    /// `c` ← or += `a` · B, with B the floats.
    fn multiply(&self, cpu: Cpu, shape: Shape, a: &[f32], next: &[u8], c: &mut [f32]) {
        let Self { view, start } = *self;
        match view.coding.format {
            KvFormat::F16 => {
                let b = &elements::<half::f16>(view.codes)[start..];
                dispatch(cpu, Product { shape, a, b, next, c });
            }
            KvFormat::Bf16 => {
                let b = &elements::<half::bf16>(view.codes)[start..];
                dispatch(cpu, Product { shape, a, b, next, c });
            }
            // Only floats are read in place.
            _ => {
                let b = &elements::<f32>(view.codes)[start..];
                dispatch(cpu, Product { shape, a, b, next, c });
            }
        }
    }
}
