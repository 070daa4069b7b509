//! Queries and softmax weights as 16-bit words, for the products of AVX2.

use super::avx2::Avx2;
use super::lanes::Lanes;
use super::rounding::{ByteScratch, Rounding};
use crate::kv::KV_BLOCK_TOKENS;
use std::arch::x86_64::*;

// SAFETY comments below refer to the trait's contract: the processor has AVX2, and the row lies
// inside what is written.
impl Rounding for Avx2 {
    /// With values of one byte, 256 products of the largest fit in 32 bits.
    const WEIGHT_MOST: f32 = 32767.0;

    #[inline(always)]
    unsafe fn store_query(q: &[f32], inverse: f32, row: usize, to: &mut ByteScratch<'_>) {
        // SAFETY: the trait's contract; 16 words from `row·dim + coordinate` lie inside the queries.
        unsafe {
            let (inverse, ones) = (Self::splat(inverse), _mm256_set1_epi16(1));
            let mut sums = _mm256_setzero_si256();
            for (i, coordinates) in q.chunks_exact(16).enumerate() {
                let whole = Self::load(coordinates.as_ptr()).mul(inverse).to_words();
                sums = _mm256_add_epi32(sums, _mm256_madd_epi16(whole, ones));
                let at = to.queries.as_mut_ptr().cast::<i16>().add(row * q.len() + 16 * i);
                _mm256_storeu_si256(at.cast(), whole);
            }
            let mut lanes = [0_i32; 8];
            _mm256_storeu_si256(lanes.as_mut_ptr().cast(), sums);
            to.offsets[row] = lanes.iter().sum::<i32>().wrapping_mul(-128);
        }
    }

    #[inline(always)]
    unsafe fn store_weights(self, row: usize, column: usize, to: &mut [u8]) {
        // SAFETY: the trait's contract.
        unsafe {
            let at = to.as_mut_ptr().cast::<i16>().add(row * KV_BLOCK_TOKENS + column);
            _mm256_storeu_si256(at.cast(), self.to_words());
        }
    }
}
