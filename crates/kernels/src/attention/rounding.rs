//! Queries and softmax weights in 16 bits, for integer products with codes.
//!
//! One byte would do for Turbo caches if only the loss of quality counted (measured, in squared
//! error of the output: 0.3 to 1.1 % of turbo4's own), but not for int8 (as large as its own), and
//! it costs up to 2 % of single outputs. With sixteen bits the rounding is negligible next to f32 sums, at a third more time where memory is not the limit.

use super::products::CodeProducts;
use super::softmax::{Cap, SoftmaxState, cap_and_max, grow};
use super::tiles::elements;
use crate::kv::KV_BLOCK_TOKENS;
use crate::kv::block::HeadView;
use crate::simd::{Kernel, LANES, Simd};
use half::f16;
use std::ops::Range;

/// Bytes per rounded query coordinate or weight.
pub(super) const PLANES: usize = 2;
/// Most query rows of the kernels on integer products.
pub(super) const MAX_ROWS: usize = 16;
/// Magnitude that the largest coordinate of a query is rounded to; its high byte fits in an i8.
const LARGEST_QUERY: f32 = 32512.0;

/// Rounded queries and weights; all sizes in elements.
pub(crate) struct RoundedRows<'a> {
    /// Rounded queries: `[MAX_ROWS, key_dim]` of two bytes, or as two such planes of bytes.
    pub(super) queries: &'a mut [i8],
    /// Value of one unit of each rounded query, `[MAX_ROWS]`.
    pub(super) query_steps: &'a mut [f32],
    /// −128·Σ of each row of `queries`, `[PLANES, MAX_ROWS]`.
    pub(super) offsets: &'a mut [i32],
    /// Rounded weights: `[MAX_ROWS, 256]` of two bytes, or as two such planes of bytes.
    pub(super) weights: &'a mut [u8],
    /// Value of one unit of each row's rounded weights, `[MAX_ROWS]`.
    pub(super) weight_steps: &'a mut [f32],
}

/// Rounds the queries `q` (`[rows, dim]`, dim a multiple of 16) into `to`. A query with an infinite
/// or NaN coordinate gets NaN scores.
pub(super) struct RoundQueries<'a, 's> {
    pub(super) dim: usize,
    pub(super) q: &'a [f32],
    pub(super) to: &'a mut RoundedRows<'s>,
}

impl Kernel for RoundQueries<'_, '_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { dim, q, to } = self;
        assert!(dim.is_multiple_of(LANES) && q.len() <= MAX_ROWS * dim, "{} of {dim}", q.len());
        assert!(to.queries.len() >= PLANES * MAX_ROWS * dim);
        for (row, q) in q.chunks_exact(dim).enumerate() {
            let zero = simd.zero();
            let mut largest = zero;
            // Zero, or NaN of a coordinate that is not finite.
            let mut poison = zero;
            for q in q.as_chunks::<LANES>().0 {
                // SAFETY: the chunk has 16 values.
                let q = unsafe { simd.load(q.as_ptr()) };
                largest = simd.max(largest, simd.max(q, simd.sub(zero, q)));
                poison = simd.add(poison, simd.mul(q, zero));
            }
            let largest = simd.max_lane(largest);
            let finite = simd.sum(poison) == 0.0;
            to.query_steps[row] = if finite { largest / LARGEST_QUERY } else { f32::NAN };
            let usable = finite && largest > 0.0;
            let inverse = if usable { LARGEST_QUERY / largest } else { 0.0 };
            // SAFETY: `dim` is a multiple of 16 and the row below `MAX_ROWS`, for which the
            // queries have room: asserted above.
            unsafe { S::CodeProducts::store_query(simd, q, inverse, row, to) };
        }
    }
}

/// The softmax of [`super::softmax`] over a tile of `scores`, whose weights are multiplied by the
/// scales of their values and rounded into `to`.
pub(super) struct RoundWeights<'a, 's, 'r> {
    pub(super) cap: Cap,
    /// Values that the weights are for.
    pub(super) view: &'a HeadView<'a>,
    /// Tokens of the block, whole sixteens.
    pub(super) tokens: Range<usize>,
    /// Columns that any row sees.
    pub(super) seen: Range<usize>,
    /// Columns that each row sees.
    pub(super) visible: &'a [Range<usize>],
    pub(super) scores: &'a mut [f32],
    pub(super) to: &'a mut RoundedRows<'r>,
    pub(super) state: &'a mut SoftmaxState<'s>,
}

impl Kernel for RoundWeights<'_, '_, '_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let width = self.tokens.len();
        assert!(width <= KV_BLOCK_TOKENS && width.is_multiple_of(LANES));
        assert!(self.visible.len() <= MAX_ROWS);
        assert!(self.to.weights.len() >= PLANES * MAX_ROWS * KV_BLOCK_TOKENS);
        let mut scales = [0.0; KV_BLOCK_TOKENS];
        let unit = self.load_scales(simd, &mut scales);
        for (row, visible) in self.visible.iter().enumerate() {
            let scores = &mut self.scores[row * width..(row + 1) * width];
            if visible.is_empty() {
                for column in (0..width).step_by(LANES) {
                    let zero = simd.zero();
                    // SAFETY: the row and its `width` ≤ 256 columns have room: asserted above.
                    unsafe {
                        S::CodeProducts::store_weights(simd, zero, row, column, self.to.weights);
                    }
                }
                self.to.weight_steps[row] = 0.0;
                continue;
            }
            let largest = cap_and_max(simd, self.cap, scores, visible);
            grow(simd, self.state, row, largest);
            let share = (largest - self.state.max[row]).exp2();
            let weights = RowWeights { scores, visible, largest, scales: &scales, row };
            self.state.sum[row] += weights.round(simd, self.to.weights) * share;
            self.to.weight_steps[row] = unit * share;
        }
    }
}

impl RoundWeights<'_, '_, '_> {
    /// Loads the scales of the values seen, divided by the largest and times the largest weight.
    /// Returns the value of one unit of a rounded weight, or NaN if a scale is not finite.
    #[inline(always)]
    fn load_scales<S: Simd>(&self, simd: S, scales: &mut [f32; KV_BLOCK_TOKENS]) -> f32 {
        let stored = &elements::<f16>(self.view.scales)[self.tokens.clone()];
        let zero = simd.zero();
        let mut largest = zero;
        let mut sum = zero;
        let pairs = stored.as_chunks::<LANES>().0.iter().zip(scales.as_chunks_mut::<LANES>().0);
        for (i, (stored, scales)) in pairs.enumerate() {
            // Scales of tokens that no row sees may be stale.
            let from = self.seen.start.saturating_sub(LANES * i);
            let to = self.seen.end.saturating_sub(LANES * i);
            // SAFETY: both chunks have 16 values.
            unsafe {
                let scale = simd.select(from, to, simd.load_f16(stored.as_ptr().cast()), zero);
                simd.store(scales.as_mut_ptr(), scale);
                largest = simd.max(largest, scale);
                sum = simd.add(sum, scale);
            }
        }
        let largest = simd.max_lane(largest);
        let most = S::CodeProducts::LARGEST_WEIGHT;
        let factor = simd.splat(if largest > 0.0 { most / largest } else { 0.0 });
        for scales in scales.as_chunks_mut::<LANES>().0 {
            // SAFETY: the chunk has 16 values.
            unsafe {
                let scale = simd.mul(simd.load(scales.as_ptr()), factor);
                simd.store(scales.as_mut_ptr(), scale);
            }
        }
        if simd.sum(sum).is_finite() { largest / most } else { f32::NAN }
    }
}

/// The scores of one row of a tile, to become rounded weights.
struct RowWeights<'a> {
    scores: &'a [f32],
    visible: &'a Range<usize>,
    /// Largest visible score.
    largest: f32,
    /// Factor of each column.
    scales: &'a [f32; KV_BLOCK_TOKENS],
    row: usize,
}

impl RowWeights<'_> {
    /// Stores 2^(score − largest)·scale for the visible scores as weights of the row, zeros for the
    /// others; returns the sum of 2^(score − largest).
    ///
    /// # Panics
    /// If there are more scores than scales, or `to` has no room for the row.
    #[inline(always)]
    fn round<S: Simd>(&self, simd: S, to: &mut [u8]) -> f32 {
        let Self { scores, visible, row, .. } = *self;
        assert!(scores.len() <= KV_BLOCK_TOKENS && scores.len().is_multiple_of(LANES));
        assert!(visible.end <= scores.len(), "columns beyond the tile");
        assert!(row < MAX_ROWS && to.len() >= PLANES * MAX_ROWS * KV_BLOCK_TOKENS);
        let max = simd.splat(self.largest);
        let zero = simd.zero();
        let mut sums = [zero; 4];
        let mut at = 0;
        while at < scores.len() {
            // SAFETY: vectors from `at` on, four where 64 columns are visible, are inside the
            // scores and the scales, and the row has room for them: asserted above.
            unsafe {
                let score = scores.as_ptr().add(at);
                let scale = self.scales.as_ptr().add(at);
                if at >= visible.start && at + 64 <= visible.end {
                    let mut weights = [zero; 4];
                    for i in 0..4 {
                        let above = simd.sub(simd.load(score.add(16 * i)), max);
                        let weight = simd.exp2(above);
                        sums[i] = simd.add(sums[i], weight);
                        weights[i] = simd.mul(weight, simd.load(scale.add(16 * i)));
                    }
                    S::CodeProducts::store_many_weights(simd, weights, row, at, to);
                    at += 64;
                    continue;
                }
                let from = visible.start.saturating_sub(at);
                let end = visible.end.saturating_sub(at);
                let weight = simd.exp2(simd.sub(simd.load(score), max));
                let weight = simd.select(from, end, weight, zero);
                sums[0] = simd.add(sums[0], weight);
                let weight = simd.mul(weight, simd.load(scale));
                S::CodeProducts::store_weights(simd, weight, row, at, to);
                at += 16;
            }
        }
        let first = simd.add(sums[0], sums[1]);
        let second = simd.add(sums[2], sums[3]);
        simd.softmax_sum(simd.add(first, second))
    }
}
