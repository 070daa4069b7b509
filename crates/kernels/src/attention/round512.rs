//! Queries and softmax weights as two planes of bytes, high ones first, for AVX512-VNNI.

use super::avx512::Avx512;
use super::lanes::Lanes;
use super::rounding::{ByteScratch, MAX_ROWS, Rounding};
use crate::kv::KV_BLOCK_TOKENS;
use std::arch::x86_64::*;

/// Bytes of a plane of weights.
const PLANE: usize = MAX_ROWS * KV_BLOCK_TOKENS;

// SAFETY comments below refer to the trait's contract: the processor has AVX-512 F, BW, VL and DQ,
// and the row lies inside what is written.
impl Rounding for Avx512 {
    const WEIGHT_MOST: f32 = 65535.0;

    #[inline(always)]
    unsafe fn store_query(q: &[f32], inverse: f32, row: usize, to: &mut ByteScratch<'_>) {
        let dim = q.len();
        // SAFETY: the trait's contract; 16 bytes from `row·dim + coordinate` lie inside each
        // plane of `to.queries`.
        unsafe {
            let inverse = Self::splat(inverse);
            let mut sums = [_mm512_setzero_si512(); 2];
            for (i, q) in q.chunks_exact(16).enumerate() {
                let whole = Self::load(q.as_ptr()).mul(inverse).to_ints();
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
            to.offsets[row] = _mm512_reduce_add_epi32(sums[0]).wrapping_mul(-128);
            to.offsets[MAX_ROWS + row] = _mm512_reduce_add_epi32(sums[1]).wrapping_mul(-128);
        }
    }

    #[inline(always)]
    unsafe fn store_weights(self, row: usize, column: usize, to: &mut [u8]) {
        // SAFETY: the trait's contract.
        unsafe {
            let high = to.as_mut_ptr().add(row * KV_BLOCK_TOKENS + column);
            store_bytes(self.to_ints(), high, high.add(PLANE));
        }
    }

    #[inline(always)]
    unsafe fn store_many_weights(weights: [Self; 4], row: usize, column: usize, to: &mut [u8]) {
        // SAFETY: the trait's contract.
        unsafe {
            let (high, low) = split_bytes([
                weights[0].to_ints(),
                weights[1].to_ints(),
                weights[2].to_ints(),
                weights[3].to_ints(),
            ]);
            let at = to.as_mut_ptr().add(row * KV_BLOCK_TOKENS + column);
            _mm512_storeu_si512(at.cast(), high);
            _mm512_storeu_si512(at.add(PLANE).cast(), low);
        }
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
        let byte = _mm512_set1_epi16(255);
        let high =
            _mm512_packus_epi16(_mm512_srli_epi16::<8>(words[0]), _mm512_srli_epi16::<8>(words[1]));
        let low =
            _mm512_packus_epi16(_mm512_and_si512(words[0], byte), _mm512_and_si512(words[1], byte));
        (_mm512_permutexvar_epi32(order, high), _mm512_permutexvar_epi32(order, low))
    }
}
