//! Rounding queries and softmax weights to two bytes with AVX-512, the latter as part of the
//! softmax.

use super::avx512::Avx512;
use super::lanes::Lanes;
use super::rounding::{ByteScratch, MAX_ROWS, PLANES, QUERY_MOST, Tile, WEIGHT_MOST};
use super::softmax::{Cap, State, grow, limit};
use super::tiles::elements;
use crate::kv::KV_BLOCK_TOKENS;
use half::f16;
use std::arch::x86_64::*;
use std::ops::Range;

/// Rounds the queries `q` (`[rows, dim]`, dim a multiple of 16) into `to`. A query with an infinite
/// or NaN coordinate gets NaN scores.
///
/// # Safety
/// The processor must have AVX-512 F, BW, VL, DQ.
#[inline(always)]
pub(crate) unsafe fn round_queries(dim: usize, q: &[f32], to: &mut ByteScratch<'_>) {
    assert!(dim.is_multiple_of(16) && q.len() <= MAX_ROWS * dim, "{} of {dim}", q.len());
    assert!(to.queries.len() >= PLANES * MAX_ROWS * dim);
    for (row, q) in q.chunks_exact(dim).enumerate() {
        // SAFETY: the processor is the caller's; chunks have 16 elements, and 16 bytes from
        // `row·dim + coordinate` lie inside each plane of `to.queries`.
        unsafe {
            let mut largest = _mm512_setzero_ps();
            let mut sound: __mmask16 = 0xFFFF;
            for q in q.chunks_exact(16) {
                let size = _mm512_abs_ps(_mm512_loadu_ps(q.as_ptr()));
                let infinite = _mm512_set1_ps(f32::INFINITY);
                sound &= _mm512_cmp_ps_mask::<_CMP_LT_OQ>(size, infinite);
                largest = _mm512_max_ps(largest, size);
            }
            let largest = _mm512_reduce_max_ps(largest);
            to.query_steps[row] = if sound == 0xFFFF { largest / QUERY_MOST } else { f32::NAN };
            let inverse = _mm512_set1_ps(if largest > 0.0 { QUERY_MOST / largest } else { 0.0 });
            let mut sums = [_mm512_setzero_si512(); 2];
            for (i, q) in q.chunks_exact(16).enumerate() {
                let whole = _mm512_mul_ps(_mm512_loadu_ps(q.as_ptr()), inverse);
                let whole = _mm512_cvtps_epi32(whole);
                // The nearest multiple of 256 leaves a low byte that is signed, too.
                let half = _mm512_set1_epi32(128);
                let high = _mm512_srai_epi32::<8>(_mm512_add_epi32(whole, half));
                let low = _mm512_sub_epi32(whole, _mm512_slli_epi32::<8>(high));
                sums = [_mm512_add_epi32(sums[0], high), _mm512_add_epi32(sums[1], low)];
                let at = to.queries.as_mut_ptr().add(row * dim + 16 * i);
                _mm_storeu_si128(at.cast(), _mm512_cvtepi32_epi8(high));
                let at = at.add(MAX_ROWS * dim);
                _mm_storeu_si128(at.cast(), _mm512_cvtepi32_epi8(low));
            }
            to.offsets[row] = -128 * _mm512_reduce_add_epi32(sums[0]);
            to.offsets[MAX_ROWS + row] = -128 * _mm512_reduce_add_epi32(sums[1]);
        }
    }
}

/// The softmax of [`super::softmax`], whose weights are multiplied by the scales of their values
/// and rounded to two bytes, into `to`.
///
/// # Safety
/// The processor must have AVX-512 F, BW, VL, DQ.
#[inline(always)]
pub(crate) unsafe fn weigh(
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
    let unit = unsafe { load_scales(tile, &mut scales) };
    for (row, visible) in tile.visible.iter().enumerate() {
        assert!(visible.end <= width, "columns beyond the tile");
        let scores = &mut scores[row * width..(row + 1) * width];
        let (high, low) = to.weights.split_at_mut(MAX_ROWS * KV_BLOCK_TOKENS);
        let at = row * KV_BLOCK_TOKENS..row * KV_BLOCK_TOKENS + width;
        let planes = [&mut high[at.clone()], &mut low[at]];
        if visible.is_empty() {
            planes.into_iter().for_each(|plane| plane.fill(0));
            to.weight_steps[row] = 0.0;
            continue;
        }
        // SAFETY: the processor is the caller's; the ranges were checked.
        unsafe {
            let largest = limit::<Avx512>(cap, scores, visible);
            grow::<Avx512>(state, row, largest);
            let share = (largest - state.max[row]).exp2();
            let sum = round_row(scores, visible, largest, &scales, planes);
            state.sum[row] += sum * share;
            to.weight_steps[row] = unit * share;
        }
    }
}

/// Loads the scales of the values seen, divided by the largest and times [`WEIGHT_MOST`]; returns
/// what a unit of a rounded weight is worth, or NaN beside a scale that is not finite.
///
/// # Safety
/// The processor must have AVX-512 F, BW, VL, DQ.
#[inline(always)]
unsafe fn load_scales(tile: &Tile<'_>, scales: &mut [f32; KV_BLOCK_TOKENS]) -> f32 {
    let stored = &elements::<f16>(tile.view.scales)[tile.tokens.clone()];
    // SAFETY: the processor is the caller's; chunks have 16 elements.
    unsafe {
        let zero = Avx512::splat(0.0);
        let (mut largest, mut sum) = (zero, zero);
        for (i, (stored, scales)) in
            stored.chunks_exact(16).zip(scales.chunks_exact_mut(16)).enumerate()
        {
            let column = |at: usize| at.saturating_sub(16 * i).min(16);
            // Scales that nobody sees may be stale.
            let (from, to) = (column(tile.seen.start), column(tile.seen.end));
            let scale = Avx512::load_f16(stored.as_ptr()).keep(from, to, zero);
            scale.store(scales.as_mut_ptr());
            largest = largest.max(scale);
            sum = sum.add(scale);
        }
        let (largest, sum) = (largest.reduce_max(), sum.reduce_add());
        let factor = if largest > 0.0 { WEIGHT_MOST / largest } else { 0.0 };
        for scales in scales.chunks_exact_mut(16) {
            let scaled = Avx512::load(scales.as_ptr()).mul(Avx512::splat(factor));
            scaled.store(scales.as_mut_ptr());
        }
        if sum.is_finite() { largest / WEIGHT_MOST } else { f32::NAN }
    }
}

/// Writes the two bytes of 2^(score − largest)·scale for the visible scores, zeros for the others;
/// returns the sum of 2^(score − largest).
///
/// # Safety
/// The processor must have AVX-512 F, BW, VL, DQ; `scores` and `planes` must have the same
/// length, a multiple of 16, and `visible` end inside it.
#[inline(always)]
unsafe fn round_row(
    scores: &[f32],
    visible: &Range<usize>,
    largest: f32,
    scales: &[f32; KV_BLOCK_TOKENS],
    [high, low]: [&mut [u8]; PLANES],
) -> f32 {
    // SAFETY: the processor is the caller's; `at + 16·n` stays inside every slice.
    unsafe {
        let max = Avx512::splat(largest);
        let weight = |at: usize| Avx512::load(scores.as_ptr().add(at)).sub(max).exp2();
        let round =
            |weight: Avx512, at: usize| weight.mul(Avx512::load(scales.as_ptr().add(at))).to_ints();
        let mut sums = [Avx512::splat(0.0); 4];
        let mut at = 0;
        while at < scores.len() {
            if at >= visible.start && at + 64 <= visible.end {
                let mut whole = [_mm512_setzero_si512(); 4];
                for i in 0..4 {
                    let weight = weight(at + 16 * i);
                    sums[i] = sums[i].add(weight);
                    whole[i] = round(weight, at + 16 * i);
                }
                let (top, rest) = split_bytes(whole);
                _mm512_storeu_si512(high.as_mut_ptr().add(at).cast(), top);
                _mm512_storeu_si512(low.as_mut_ptr().add(at).cast(), rest);
                at += 64;
                continue;
            }
            let column = |edge: usize| edge.saturating_sub(at).min(16);
            let (from, to) = (column(visible.start), column(visible.end));
            let weight = weight(at).keep(from, to, Avx512::splat(0.0));
            sums[0] = sums[0].add(weight);
            store_bytes(round(weight, at), high.as_mut_ptr().add(at), low.as_mut_ptr().add(at));
            at += 16;
        }
        sums[0].add(sums[1]).add(sums[2].add(sums[3])).reduce_add()
    }
}

/// Stores the second and the lowest bytes of 16 integers below 2¹⁶.
///
/// # Safety
/// The processor must have AVX-512 F; both pointers must be valid for 16 bytes.
#[inline(always)]
unsafe fn store_bytes(whole: __m512i, high: *mut u8, low: *mut u8) {
    // SAFETY: the caller's.
    unsafe {
        _mm_storeu_si128(high.cast(), _mm512_cvtepi32_epi8(_mm512_srli_epi32::<8>(whole)));
        _mm_storeu_si128(low.cast(), _mm512_cvtepi32_epi8(whole));
    }
}

/// The second and the lowest bytes of 64 integers below 2¹⁶, in order.
///
/// # Safety
/// The processor must have AVX-512 F and BW.
#[inline(always)]
unsafe fn split_bytes(whole: [__m512i; 4]) -> (__m512i, __m512i) {
    // SAFETY: the caller's; no memory is touched. The packs interleave 128-bit lanes of their
    // operands; the last permutation puts the quads of bytes in order.
    unsafe {
        let words =
            [_mm512_packus_epi32(whole[0], whole[1]), _mm512_packus_epi32(whole[2], whole[3])];
        let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        let pack = |a, b| _mm512_permutexvar_epi32(order, _mm512_packus_epi16(a, b));
        let byte = _mm512_set1_epi16(255);
        let high = pack(_mm512_srli_epi16::<8>(words[0]), _mm512_srli_epi16::<8>(words[1]));
        let low = pack(_mm512_and_si512(words[0], byte), _mm512_and_si512(words[1], byte));
        (high, low)
    }
}
