//! Online softmax over one tile of scores, in base 2.
//!
//! Scores arrive multiplied by log₂e (or, with a soft cap, divided by the cap), so that the
//! exponential is 2^x. Each row keeps its running maximum and sum; the output accumulated so far
//! is rescaled when the maximum grows.

use super::lanes::Lanes;
use std::ops::Range;

/// What is done to a score before the softmax.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Cap {
    /// Nothing: scores are q·k·scale·log₂e.
    None,
    /// Scores are q·k·scale/cap; they become tanh(score)·`limit`, with limit = cap·log₂e.
    Tanh {
        /// cap·log₂e.
        limit: f32,
    },
}

/// The running state of all rows of a task.
pub(crate) struct State<'a> {
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
///
/// # Safety
/// The processor must have the instructions of `L`.
#[inline(always)]
pub(crate) unsafe fn softmax<L: Lanes>(
    cap: Cap,
    width: usize,
    scores: &mut [f32],
    visible: &[Range<usize>],
    state: &mut State<'_>,
) {
    assert!(width.is_multiple_of(16) && state.stride.is_multiple_of(16), "whole vectors");
    for (row, visible) in visible.iter().enumerate() {
        let scores = &mut scores[row * width..(row + 1) * width];
        assert!(visible.end <= width, "columns beyond the tile");
        // Whole vectors outside of the range.
        scores[..visible.start / 16 * 16].fill(0.0);
        if visible.is_empty() {
            scores[visible.start / 16 * 16..].fill(0.0);
            continue;
        }
        scores[visible.end.next_multiple_of(16)..].fill(0.0);
        // SAFETY: the caller's; the range was checked.
        let largest = unsafe { limit::<L>(cap, scores, visible) };
        // SAFETY: the caller's.
        unsafe { grow::<L>(state, row, largest) };
        // SAFETY: the caller's; the range was checked.
        state.sum[row] += unsafe { exponentials::<L>(scores, visible, state.max[row]) };
    }
}

/// Raises the maximum of `row` to `largest`, if that is larger, and rescales its sums.
///
/// # Safety
/// The processor must have the instructions of `L`.
#[inline(always)]
pub(crate) unsafe fn grow<L: Lanes>(state: &mut State<'_>, row: usize, largest: f32) {
    let before = state.max[row];
    if largest > before || before == f32::NEG_INFINITY {
        state.max[row] = largest;
        let shrink = if before == f32::NEG_INFINITY { 0.0 } else { (before - largest).exp2() };
        state.sum[row] *= shrink;
        let acc = &mut state.acc[row * state.stride..(row + 1) * state.stride];
        // SAFETY: the caller's.
        unsafe { scale::<L>(acc, shrink) };
    }
}

/// Applies the soft cap and returns the largest visible score.
///
/// # Safety
/// The processor must have the instructions of `L`; `visible` ends inside `scores`, whose length
/// is a multiple of 16.
#[inline(always)]
pub(crate) unsafe fn limit<L: Lanes>(cap: Cap, scores: &mut [f32], visible: &Range<usize>) -> f32 {
    // SAFETY: `at` steps over whole vectors of `scores`.
    unsafe {
        let lowest = L::splat(f32::NEG_INFINITY);
        let mut largest = lowest;
        let mut at = visible.start / 16 * 16;
        while at < visible.end {
            let p = scores.as_mut_ptr().add(at);
            let mut score = L::load(p);
            if let Cap::Tanh { limit } = cap {
                score = tanh::<L>(score).mul(L::splat(limit));
                score.store(p);
            }
            if at < visible.start || at + 16 > visible.end {
                let from = visible.start.saturating_sub(at);
                score = score.keep(from, visible.end - at, lowest);
            }
            largest = largest.max(score);
            at += 16;
        }
        largest.reduce_max()
    }
}

/// tanh x = 1 − 2/(e^2x + 1).
///
/// # Safety
/// The processor must have the instructions of `L`.
#[inline(always)]
unsafe fn tanh<L: Lanes>(x: L) -> L {
    // SAFETY: the caller's. Beyond ±15 tanh is ±1 in f32, so the exponent stays below 2^44.
    unsafe {
        // `max` keeps a NaN in its second operand.
        let low = L::splat(-15.0);
        let minus = low.max(low.max(x).mul(L::splat(-1.0)));
        let e = minus.mul(L::splat(-2.0 * std::f32::consts::LOG2_E)).exp2();
        let one = L::splat(1.0);
        one.sub(L::splat(2.0).div(e.add(one)))
    }
}

/// Replaces visible scores by 2^(score − max), the others of their vectors by 0; returns the sum.
///
/// # Safety
/// As [`limit`].
#[inline(always)]
unsafe fn exponentials<L: Lanes>(scores: &mut [f32], visible: &Range<usize>, max: f32) -> f32 {
    // SAFETY: `at` steps over whole vectors of `scores`.
    unsafe {
        let (zero, max) = (L::splat(0.0), L::splat(max));
        let mut sums = [zero; 4];
        let mut at = visible.start / 16 * 16;
        while at < visible.end {
            let p = scores.as_mut_ptr().add(at);
            if at >= visible.start && at + 64 <= visible.end {
                for (i, sum) in sums.iter_mut().enumerate() {
                    let weight = L::load(p.add(16 * i)).sub(max).exp2();
                    weight.store(p.add(16 * i));
                    *sum = sum.add(weight);
                }
                at += 64;
                continue;
            }
            let from = visible.start.saturating_sub(at);
            let weight = L::load(p).sub(max).exp2().keep(from, visible.end - at, zero);
            weight.store(p);
            sums[0] = sums[0].add(weight);
            at += 16;
        }
        sums[0].add(sums[1]).add(sums[2].add(sums[3])).reduce_add()
    }
}

/// x ← x·factor; the length is a multiple of 16.
///
/// # Safety
/// The processor must have the instructions of `L`.
#[inline(always)]
unsafe fn scale<L: Lanes>(x: &mut [f32], factor: f32) {
    for x in x.chunks_exact_mut(16) {
        // SAFETY: the caller's; the chunk has 16 elements.
        unsafe { L::load(x.as_ptr()).mul(L::splat(factor)).store(x.as_mut_ptr()) };
    }
}
