//! Queries and softmax weights in 16 bits, for integer dot products with codes.
//!
//! One byte would do for Turbo caches if only the loss of quality counted (measured, in squared
//! error of the output: 0.3 to 1.1 % of turbo4's own), but not for int8 (as large as its own), and
//! it costs up to 2 % of single outputs. Sixteen bits make the rounding vanish beside f32 sums and
//! cost a third more time where memory is not the limit.

use super::lanes::Lanes;
use super::softmax::{Cap, State, grow, limit};
use super::tiles::elements;
use crate::kv::KV_BLOCK_TOKENS;
use crate::kv::block::HeadView;
use half::f16;
use std::ops::Range;

/// Bytes per rounded query coordinate or weight.
pub(crate) const PLANES: usize = 2;
/// Most query rows of the kernels on integer dot products.
pub(crate) const MAX_ROWS: usize = 16;
/// Magnitude that the largest coordinate of a query is rounded to; its high byte fits in an i8.
pub(crate) const QUERY_MOST: f32 = 32512.0;

/// Memory of these kernels; all sizes in elements.
pub(crate) struct ByteScratch<'a> {
    /// Rounded queries: `[MAX_ROWS, key_dim]` of two bytes, or as two such planes of bytes.
    pub(crate) queries: &'a mut [i8],
    /// What one unit of a rounded query is worth, `[MAX_ROWS]`.
    pub(crate) query_steps: &'a mut [f32],
    /// −128·Σ of each row of `queries`, `[PLANES, MAX_ROWS]`.
    pub(crate) offsets: &'a mut [i32],
    /// Rounded weights: `[MAX_ROWS, 256]` of two bytes, or as two such planes of bytes.
    pub(crate) weights: &'a mut [u8],
    /// What one unit of a rounded weight is worth, `[MAX_ROWS]`.
    pub(crate) weight_steps: &'a mut [f32],
}

/// A tile whose scores become rounded weights.
pub(crate) struct Tile<'a> {
    /// Values that the weights are for.
    pub(crate) view: &'a HeadView<'a>,
    /// Tokens of the block, whole sixteens.
    pub(crate) tokens: Range<usize>,
    /// Columns that any row sees.
    pub(crate) seen: Range<usize>,
    /// Columns that each row sees.
    pub(crate) visible: &'a [Range<usize>],
}

/// Lanes whose instruction set multiplies codes by rounded numbers, as it wants to read them.
///
/// # Safety
/// Every method needs the instructions of the implementation.
pub(crate) trait Rounding: Lanes {
    /// What the largest weight of a tile may be rounded to.
    const WEIGHT_MOST: f32;

    /// Stores the query `q`, times `inverse`, as row `row` of `to.queries`, and its offsets. The
    /// length of `q` is a multiple of 16, and the row lies inside.
    unsafe fn store_query(q: &[f32], inverse: f32, row: usize, to: &mut ByteScratch<'_>);

    /// Stores the sixteen weights from `column` of `row` on in `to`, which has room for all rows.
    unsafe fn store_weights(self, row: usize, column: usize, to: &mut [u8]);

    /// Stores 64 of them.
    #[inline(always)]
    unsafe fn store_many_weights(weights: [Self; 4], row: usize, column: usize, to: &mut [u8]) {
        for (i, weights) in weights.into_iter().enumerate() {
            // SAFETY: the caller's.
            unsafe { weights.store_weights(row, column + 16 * i, to) };
        }
    }
}

/// Rounds the queries `q` (`[rows, dim]`, dim a multiple of 16) into `to`. A query with an infinite
/// or NaN coordinate gets NaN scores.
///
/// # Safety
/// The processor must have the instructions of `L`.
#[inline(always)]
pub(crate) unsafe fn round_queries<L: Rounding>(dim: usize, q: &[f32], to: &mut ByteScratch<'_>) {
    assert!(dim.is_multiple_of(16) && q.len() <= MAX_ROWS * dim, "{} of {dim}", q.len());
    assert!(to.queries.len() >= PLANES * MAX_ROWS * dim);
    for (row, q) in q.chunks_exact(dim).enumerate() {
        // SAFETY: the processor is the caller's; chunks have 16 elements, and the row lies inside
        // `to.queries`.
        unsafe {
            let zero = L::splat(0.0);
            let (mut largest, mut sound) = (zero, zero);
            for q in q.chunks_exact(16) {
                let q = L::load(q.as_ptr());
                largest = largest.max(q.max(zero.sub(q)));
                // Zero, or NaN of what is not finite.
                sound = sound.add(q.mul(zero));
            }
            let (largest, sound) = (largest.reduce_max(), sound.reduce_add() == 0.0);
            to.query_steps[row] = if sound { largest / QUERY_MOST } else { f32::NAN };
            let usable = sound && largest > 0.0;
            let inverse = if usable { QUERY_MOST / largest } else { 0.0 };
            L::store_query(q, inverse, row, to);
        }
    }
}

/// The softmax of [`super::softmax`], whose weights are multiplied by the scales of their values
/// and rounded, into `to`.
///
/// # Safety
/// The processor must have the instructions of `L`.
#[inline(always)]
pub(crate) unsafe fn weigh<L: Rounding>(
    cap: Cap,
    tile: &Tile<'_>,
    scores: &mut [f32],
    to: &mut ByteScratch<'_>,
    state: &mut State<'_>,
) {
    let width = tile.tokens.len();
    assert!(width <= KV_BLOCK_TOKENS && width.is_multiple_of(16) && tile.visible.len() <= MAX_ROWS);
    assert!(to.weights.len() >= PLANES * MAX_ROWS * KV_BLOCK_TOKENS);
    let mut scales = [0.0; KV_BLOCK_TOKENS];
    // SAFETY: the processor is the caller's.
    let unit = unsafe { load_scales::<L>(tile, &mut scales) };
    for (row, visible) in tile.visible.iter().enumerate() {
        assert!(visible.end <= width, "columns beyond the tile");
        let scores = &mut scores[row * width..(row + 1) * width];
        // SAFETY: the processor is the caller's; the ranges were checked.
        unsafe {
            if visible.is_empty() {
                for column in (0..width).step_by(16) {
                    L::splat(0.0).store_weights(row, column, to.weights);
                }
                to.weight_steps[row] = 0.0;
                continue;
            }
            let largest = limit::<L>(cap, scores, visible);
            grow::<L>(state, row, largest);
            let share = (largest - state.max[row]).exp2();
            let sum = round_row::<L>(scores, visible, largest, &scales, row, to.weights);
            state.sum[row] += sum * share;
            to.weight_steps[row] = unit * share;
        }
    }
}

/// Loads the scales of the values seen, divided by the largest and times the largest weight;
/// returns what a unit of a rounded weight is worth, or NaN beside a scale that is not finite.
///
/// # Safety
/// The processor must have the instructions of `L`.
#[inline(always)]
unsafe fn load_scales<L: Rounding>(tile: &Tile<'_>, scales: &mut [f32; KV_BLOCK_TOKENS]) -> f32 {
    let stored = &elements::<f16>(tile.view.scales)[tile.tokens.clone()];
    // SAFETY: the processor is the caller's; chunks have 16 elements.
    unsafe {
        let zero = L::splat(0.0);
        let (mut largest, mut sum) = (zero, zero);
        for (i, (stored, scales)) in
            stored.chunks_exact(16).zip(scales.chunks_exact_mut(16)).enumerate()
        {
            // Scales that nobody sees may be stale.
            let from = tile.seen.start.saturating_sub(16 * i).min(16);
            let to = tile.seen.end.saturating_sub(16 * i).min(16);
            let scale = L::load_f16(stored.as_ptr()).keep(from, to, zero);
            scale.store(scales.as_mut_ptr());
            largest = largest.max(scale);
            sum = sum.add(scale);
        }
        let (largest, sum) = (largest.reduce_max(), sum.reduce_add());
        let factor = if largest > 0.0 { L::WEIGHT_MOST / largest } else { 0.0 };
        for scales in scales.chunks_exact_mut(16) {
            L::load(scales.as_ptr()).mul(L::splat(factor)).store(scales.as_mut_ptr());
        }
        if sum.is_finite() { largest / L::WEIGHT_MOST } else { f32::NAN }
    }
}

/// Stores 2^(score − largest)·scale for the visible scores as weights of `row`, zeros for the
/// others; returns the sum of 2^(score − largest).
///
/// # Safety
/// The processor must have the instructions of `L`; the length of `scores` must be a multiple of
/// 16 and at most that of `scales`, `visible` end inside it, and `to` have room for the row.
#[inline(always)]
unsafe fn round_row<L: Rounding>(
    scores: &[f32],
    visible: &Range<usize>,
    largest: f32,
    scales: &[f32; KV_BLOCK_TOKENS],
    row: usize,
    to: &mut [u8],
) -> f32 {
    // SAFETY: the caller's; `at + 16·n` stays inside every slice.
    unsafe {
        let (max, zero) = (L::splat(largest), L::splat(0.0));
        let mut sums = [zero; 4];
        let mut at = 0;
        while at < scores.len() {
            if at >= visible.start && at + 64 <= visible.end {
                let mut weights = [zero; 4];
                for i in 0..4 {
                    let weight = L::load(scores.as_ptr().add(at + 16 * i)).sub(max).exp2();
                    sums[i] = sums[i].add(weight);
                    weights[i] = weight.mul(L::load(scales.as_ptr().add(at + 16 * i)));
                }
                L::store_many_weights(weights, row, at, to);
                at += 64;
                continue;
            }
            let (from, end) =
                (visible.start.saturating_sub(at).min(16), visible.end.saturating_sub(at).min(16));
            let weight = L::load(scores.as_ptr().add(at)).sub(max).exp2().keep(from, end, zero);
            sums[0] = sums[0].add(weight);
            weight.mul(L::load(scales.as_ptr().add(at))).store_weights(row, at, to);
            at += 16;
        }
        sums[0].add(sums[1]).add(sums[2].add(sums[3])).reduce_add()
    }
}
