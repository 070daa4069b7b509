//! Online softmax over one tile of scores, in base 2.
//!
//! Scores arrive multiplied by log₂e (or, with a soft cap, divided by the cap), so that the
//! exponential is 2^x. Each row keeps its running maximum and sum; the output accumulated so far
//! is rescaled when the maximum grows.

use crate::simd::{Kernel, LANES, Simd};
use std::ops::Range;

/// Function of a score before the softmax.
#[derive(Clone, Copy, Debug)]
pub(super) enum Cap {
    /// Nothing: scores are q·k·scale·log₂e.
    None,
    /// Scores are q·k·scale/cap; they become tanh(score)·`limit`, with limit = cap·log₂e.
    Tanh {
        /// cap·log₂e.
        limit: f32,
    },
}

/// Running softmax state of all rows of a unit.
pub(crate) struct SoftmaxState<'a> {
    /// Largest score so far, −∞ at first.
    pub(crate) max: &'a mut [f32],
    /// Sum of 2^(score − max) so far.
    pub(crate) sum: &'a mut [f32],
    /// Weighted values so far, `[rows, stride]`.
    pub(crate) acc: &'a mut [f32],
    /// Elements between rows of `acc`, a multiple of 16.
    pub(crate) stride: usize,
}

/// Turns `scores` (`[rows, width]`, width a multiple of 16) into weights 2^(score − max), zero
/// outside of each row's range of `visible` columns, and updates `state`.
pub(super) struct Softmax<'a, 's> {
    pub(super) cap: Cap,
    pub(super) width: usize,
    pub(super) scores: &'a mut [f32],
    pub(super) visible: &'a [Range<usize>],
    pub(super) state: &'a mut SoftmaxState<'s>,
}

impl Kernel for Softmax<'_, '_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { cap, width, scores, visible, state } = self;
        assert!(width.is_multiple_of(LANES) && state.stride.is_multiple_of(LANES));
        for (row, visible) in visible.iter().enumerate() {
            let scores = &mut scores[row * width..(row + 1) * width];
            assert!(visible.end <= width, "columns beyond the tile");
            if visible.is_empty() {
                scores.fill(0.0);
                continue;
            }
            scores[..visible.start / LANES * LANES].fill(0.0);
            scores[visible.end.next_multiple_of(LANES)..].fill(0.0);
            let largest = cap_and_max(simd, cap, scores, visible);
            grow(simd, state, row, largest);
            state.sum[row] += exponentials(simd, scores, visible, state.max[row]);
        }
    }
}

/// Raises the maximum of `row` to `largest`, if that is larger, and rescales its sums.
#[inline(always)]
pub(super) fn grow<S: Simd>(simd: S, state: &mut SoftmaxState<'_>, row: usize, largest: f32) {
    let before = state.max[row];
    if largest > before || before == f32::NEG_INFINITY {
        state.max[row] = largest;
        let shrink = if before == f32::NEG_INFINITY { 0.0 } else { (before - largest).exp2() };
        state.sum[row] *= shrink;
        let factor = simd.splat(shrink);
        let acc = &mut state.acc[row * state.stride..(row + 1) * state.stride];
        for acc in acc.as_chunks_mut::<LANES>().0 {
            // SAFETY: the chunk has 16 values.
            unsafe { simd.store(acc.as_mut_ptr(), simd.mul(simd.load(acc.as_ptr()), factor)) };
        }
    }
}

/// Applies the soft cap and returns the largest visible score.
///
/// # Panics
/// If there are no whole vectors of scores, or `visible` ends beyond them.
#[inline(always)]
pub(super) fn cap_and_max<S: Simd>(
    simd: S,
    cap: Cap,
    scores: &mut [f32],
    visible: &Range<usize>,
) -> f32 {
    assert!(scores.len().is_multiple_of(LANES) && visible.end <= scores.len());
    let lowest = simd.splat(f32::NEG_INFINITY);
    let mut largest = lowest;
    let mut at = visible.start / LANES * LANES;
    while at < visible.end {
        // SAFETY: `at` is a multiple of 16 below the number of scores, which is one too.
        let score = unsafe {
            let target = scores.as_mut_ptr().add(at);
            let mut score = simd.load(target);
            if let Cap::Tanh { limit } = cap {
                score = simd.mul(tanh(simd, score), simd.splat(limit));
                simd.store(target, score);
            }
            score
        };
        let whole = at >= visible.start && at + LANES <= visible.end;
        let from = visible.start.saturating_sub(at);
        let seen = if whole { score } else { simd.select(from, visible.end - at, score, lowest) };
        largest = simd.max(largest, seen);
        at += LANES;
    }
    simd.max_lane(largest)
}

/// tanh x = 1 − 2/(e^2x + 1).
#[inline(always)]
fn tanh<S: Simd>(simd: S, x: S::F) -> S::F {
    // Beyond ±15 tanh is ±1 in f32, so the exponent stays below 2^44. `max` keeps a NaN in its
    // second operand.
    let low = simd.splat(-15.0);
    let minus = simd.max(low, simd.mul(simd.max(low, x), simd.splat(-1.0)));
    let e = simd.exp2(simd.mul(minus, simd.splat(-2.0 * std::f32::consts::LOG2_E)));
    let one = simd.splat(1.0);
    simd.sub(one, simd.div(simd.splat(2.0), simd.add(e, one)))
}

/// Replaces visible scores by 2^(score − max), the others of their vectors by 0; returns the sum.
///
/// # Panics
/// See [`cap_and_max`].
#[inline(always)]
fn exponentials<S: Simd>(simd: S, scores: &mut [f32], visible: &Range<usize>, max: f32) -> f32 {
    assert!(scores.len().is_multiple_of(LANES) && visible.end <= scores.len());
    let zero = simd.zero();
    let max = simd.splat(max);
    let mut sums = [zero; 4];
    let mut at = visible.start / LANES * LANES;
    while at < visible.end {
        // SAFETY: `at` is a multiple of 16 below the number of scores, which is one too; four
        // vectors are taken where 64 columns are visible.
        unsafe {
            let target = scores.as_mut_ptr().add(at);
            if at >= visible.start && at + 4 * LANES <= visible.end {
                for (i, sum) in sums.iter_mut().enumerate() {
                    let target = target.add(LANES * i);
                    let weight = simd.exp2(simd.sub(simd.load(target), max));
                    simd.store(target, weight);
                    *sum = simd.add(*sum, weight);
                }
                at += 4 * LANES;
                continue;
            }
            let from = visible.start.saturating_sub(at);
            let weight = simd.exp2(simd.sub(simd.load(target), max));
            let weight = simd.select(from, visible.end - at, weight, zero);
            simd.store(target, weight);
            sums[0] = simd.add(sums[0], weight);
            at += LANES;
        }
    }
    let first = simd.add(sums[0], sums[1]);
    let second = simd.add(sums[2], sums[3]);
    simd.softmax_sum(simd.add(first, second))
}
