//! [`CodeProducts`] by 16-bit products (AVX2).
//!
//! One `vpmaddwd` multiplies 16 words by 16 words and adds the products, two by two, to 8 lanes.
//! Sixteen bytes of a group, a *quarter*, are four rows (tokens of keys, coordinates of values) of
//! four codes: widened to words they meet the same four query coordinates, or weights, in every
//! row, and each row ends up as two lanes, which are added at the very end. Sums wrap: a whole
//! sum fits, whatever its parts did. Queries and weights are stored as 16-bit words.

#![expect(clippy::needless_range_loop, reason = "register tiles read best by index")]

use super::ahead::Ahead;
use super::codec::{Codec, with_codec};
use super::products::{
    CodeProducts, GatherCodes, KeyTiles, PASS_ROWS, ScoreCodes, ValueChunk, ValueChunks,
};
use super::rounding::RoundedRows;
use crate::kv::KV_BLOCK_TOKENS;
use crate::simd::Simd;
use crate::simd::avx2::Avx2;
use std::arch::x86_64::*;

/// Quarters of a group.
const QUARTERS: usize = 4;

/// Products by `vpmaddwd`.
pub(crate) struct Int16Products;

impl<const VNNI: bool> CodeProducts<Avx2<VNNI>> for Int16Products {
    const MAX_DIM: usize = 512;
    /// With values of one byte, 256 products of the largest fit in 32 bits.
    const LARGEST_WEIGHT: f32 = 32767.0;

    #[inline(always)]
    unsafe fn store_query(
        simd: Avx2<VNNI>,
        q: &[f32],
        inverse: f32,
        row: usize,
        to: &mut RoundedRows<'_>,
    ) {
        let inverse = simd.splat(inverse);
        // SAFETY: `simd` proves AVX2. The caller has room for row `row` of the query's words,
        // whole sixteens, in `to.queries`.
        unsafe {
            let ones = _mm256_set1_epi16(1);
            let mut sums = _mm256_setzero_si256();
            for (i, coordinates) in q.as_chunks::<16>().0.iter().enumerate() {
                let whole = words(simd.mul(simd.load(coordinates.as_ptr()), inverse));
                sums = _mm256_add_epi32(sums, _mm256_madd_epi16(whole, ones));
                let target = to.queries.as_mut_ptr().cast::<i16>().add(row * q.len() + 16 * i);
                _mm256_storeu_si256(target.cast(), whole);
            }
            let mut lanes = [0_i32; 8];
            _mm256_storeu_si256(lanes.as_mut_ptr().cast(), sums);
            to.offsets[row] = lanes.iter().sum::<i32>().wrapping_mul(-128);
        }
    }

    #[inline(always)]
    unsafe fn store_weights(
        _: Avx2<VNNI>,
        weights: [__m256; 2],
        row: usize,
        column: usize,
        to: &mut [u8],
    ) {
        // SAFETY: the token proves AVX2; the caller has room for 16 words from there on.
        unsafe {
            let target = to.as_mut_ptr().cast::<i16>().add(row * KV_BLOCK_TOKENS + column);
            _mm256_storeu_si256(target.cast(), words(weights));
        }
    }

    #[inline(always)]
    fn scores(simd: Avx2<VNNI>, task: ScoreCodes<'_>) {
        let format = task.view.coding.format;
        assert!(task.view.coding.dim <= <Self as CodeProducts<Avx2<VNNI>>>::MAX_DIM);
        let keys = KeyTiles::new(task, Avx2::<VNNI>::ATTENTION_LEAD_BYTES);
        with_codec!(format, C => score_keys::<C, VNNI>(simd, &keys));
    }

    #[inline(always)]
    fn gather(simd: Avx2<VNNI>, task: GatherCodes<'_, '_>) {
        let format = task.view.coding.format;
        let lead = Avx2::<VNNI>::ATTENTION_LEAD_BYTES;
        let chunks = ValueChunks::new(task, 2 * KV_BLOCK_TOKENS, lead);
        with_codec!(format, C => gather_values::<C, VNNI>(simd, chunks));
    }
}

/// The nearest 16-bit integers, in order.
///
/// # Safety
/// The processor has AVX2.
#[inline(always)]
unsafe fn words(x: [__m256; 2]) -> __m256i {
    // SAFETY: registers only. The pack interleaves the halves of its operands; the permutation
    // puts them in order.
    unsafe {
        let packed = _mm256_packs_epi32(_mm256_cvtps_epi32(x[0]), _mm256_cvtps_epi32(x[1]));
        _mm256_permute4x64_epi64::<0b11_01_10_00>(packed)
    }
}

/// Four words at `ptr`, four times.
///
/// # Safety
/// The processor has AVX2; four words are readable at `ptr`.
#[inline(always)]
unsafe fn four_words(ptr: *const i16) -> __m256i {
    // SAFETY: the caller keeps the four words readable.
    unsafe { _mm256_set1_epi64x(ptr.cast::<i64>().read_unaligned()) }
}

/// The rows of two quarters as eight sums, in order.
///
/// # Safety
/// The processor has AVX2.
#[inline(always)]
unsafe fn row_sums(first: __m256i, second: __m256i) -> __m256i {
    // SAFETY: registers only. The sums of pairs come two of the first, two of the second, and
    // again.
    unsafe { _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_hadd_epi32(first, second)) }
}

/// All scores of `keys`, whose codec is `C`.
#[inline(always)]
fn score_keys<C: Codec, const VNNI: bool>(simd: Avx2<VNNI>, keys: &KeyTiles<'_>) {
    // SAFETY: the table has 16 bytes.
    let table = unsafe { _mm_loadu_si128(keys.table.as_ptr().cast()) };
    let pass = Int16KeyPass { simd, keys, table };
    for tile in 0..keys.tiles() {
        for row in (0..keys.rows).step_by(PASS_ROWS) {
            // SAFETY: the rows and tiles exist.
            unsafe {
                match keys.rows - row {
                    1 => pass.tile::<C, 1, 4>(tile, row),
                    2 => pass.tile::<C, 2, 4>(tile, row),
                    3 => pass.tile::<C, 3, 2>(tile, row),
                    _ => pass.tile::<C, 4, 2>(tile, row),
                }
            }
        }
    }
}

/// A pass of some rows over tiles of keys.
struct Int16KeyPass<'a, const VNNI: bool> {
    simd: Avx2<VNNI>,
    keys: &'a KeyTiles<'a>,
    table: __m128i,
}

impl<const VNNI: bool> Int16KeyPass<'_, VNNI> {
    /// `R` rows from `row` on against the 16 tokens of a tile, `Q` quarters at a time.
    ///
    /// # Safety
    /// The rows and the tile exist in `keys`, whose codec is `C`.
    #[inline(always)]
    unsafe fn tile<C: Codec, const R: usize, const Q: usize>(&self, tile: usize, row: usize) {
        let keys = self.keys;
        let width = keys.scales.len();
        for quarter in (0..QUARTERS).step_by(Q) {
            // SAFETY: the token proves AVX2. `KeyTiles` has checked that eight scales and scores
            // of tokens of the tile lie inside their slices.
            unsafe {
                let sums = self.quarters::<C, R, Q>(tile, row, quarter);
                for pair in 0..Q / 2 {
                    let token = tile * 16 + (quarter + 2 * pair) * 4;
                    let scales = _mm_loadu_si128(keys.scales.as_ptr().add(token).cast());
                    let scales = _mm256_cvtph_ps(scales);
                    for r in 0..R {
                        let mut sum = row_sums(sums[r][2 * pair], sums[r][2 * pair + 1]);
                        if C::KEYS_OFFSET {
                            let offset = _mm256_set1_epi32(keys.from.offsets[row + r]);
                            sum = _mm256_add_epi32(sum, offset);
                        }
                        let step = _mm256_set1_ps(keys.from.query_steps[row + r] * keys.step);
                        let unit = _mm256_mul_ps(scales, step);
                        let score = _mm256_mul_ps(_mm256_cvtepi32_ps(sum), unit);
                        _mm256_storeu_ps(keys.out.add((row + r) * width + token), score);
                    }
                }
            }
        }
    }

    /// Sums of `R` rows and `Q` quarters over all coordinates.
    ///
    /// # Safety
    /// See [`Self::tile`]; the quarters exist.
    #[inline(always)]
    unsafe fn quarters<C: Codec, const R: usize, const Q: usize>(
        &self,
        tile: usize,
        row: usize,
        quarter: usize,
    ) -> [[__m256i; Q]; R] {
        let Self { simd, keys, table } = *self;
        // SAFETY: the token proves AVX2. `KeyTiles` has checked that every unit of the tile lies
        // inside `codes`, and every four words of the rows inside `queries`.
        unsafe {
            let mut sums = [[_mm256_setzero_si256(); Q]; R];
            let mut codes = keys.codes.as_ptr().add(tile * keys.tile_bytes);
            let mut queries = keys.from.queries.as_ptr().cast::<i16>().add(row * keys.dim);
            for _ in 0..keys.tile_bytes / C::UNIT_BYTES {
                if quarter == 0 && row == 0 {
                    keys.ahead.fetch(simd, codes);
                }
                let mut words = [[_mm256_setzero_si256(); 4]; Q];
                for q in 0..Q {
                    words[q] = C::quarter::<true>(codes, quarter + q, table);
                }
                for g in 0..C::GROUPS {
                    for r in 0..R {
                        let query = four_words(queries.add(r * keys.dim + 4 * g));
                        for q in 0..Q {
                            let products = _mm256_madd_epi16(words[q][g], query);
                            sums[r][q] = _mm256_add_epi32(sums[r][q], products);
                        }
                    }
                }
                codes = codes.add(C::UNIT_BYTES);
                queries = queries.add(4 * C::GROUPS);
            }
            sums
        }
    }
}

/// Adds the weighted values of all `chunks`, whose codec is `C`.
#[inline(always)]
fn gather_values<C: Codec, const VNNI: bool>(simd: Avx2<VNNI>, mut chunks: ValueChunks<'_>) {
    // SAFETY: the table has 16 bytes.
    let table = unsafe { _mm_loadu_si128(chunks.table.as_ptr().cast()) };
    while let Some(chunk) = chunks.next() {
        // Rows after the first ones read codes that are in the cache.
        let ahead = (chunk.row == 0).then_some(chunks.ahead);
        let pass = Int16ValuePass { simd, table, ahead, steps: &chunks.steps[chunk.row..] };
        // SAFETY: the chunk has these rows and coordinates.
        unsafe {
            match (chunk.rows, chunk.sixteens) {
                (1, 2) => pass.run::<C, 1, 2, 2>(&chunk),
                (2, 2) => pass.run::<C, 2, 2, 2>(&chunk),
                (3, 2) => pass.run::<C, 3, 2, 1>(&chunk),
                (_, 2) => pass.run::<C, 4, 2, 1>(&chunk),
                (1, _) => pass.run::<C, 1, 1, 2>(&chunk),
                (2, _) => pass.run::<C, 2, 1, 2>(&chunk),
                (3, _) => pass.run::<C, 3, 1, 2>(&chunk),
                _ => pass.run::<C, 4, 1, 2>(&chunk),
            }
        }
    }
}

/// A pass of some rows over a chunk of values.
struct Int16ValuePass<'a, const VNNI: bool> {
    simd: Avx2<VNNI>,
    table: __m128i,
    /// Lines to ask for; `None` for codes that were read before.
    ahead: Option<Ahead>,
    /// Value of one unit of each row's sums.
    steps: &'a [f32],
}

impl<const VNNI: bool> Int16ValuePass<'_, VNNI> {
    /// `R` rows of `G` × 16 coordinates over all quads of tokens, `Q` quarters at a time.
    ///
    /// # Safety
    /// `chunk` has `R` rows and `G` sixteens of coordinates, and its codec is `C`.
    #[inline(always)]
    unsafe fn run<C: Codec, const R: usize, const G: usize, const Q: usize>(
        &self,
        chunk: &ValueChunk,
    ) {
        for quarter in (0..QUARTERS).step_by(Q) {
            // SAFETY: the token proves AVX2. `ValueChunks` has checked that the outputs of every
            // row lie inside their slice.
            unsafe {
                let sums = self.quarters::<C, R, G, Q>(chunk, quarter);
                for r in 0..R {
                    for g in 0..G {
                        for q in 0..Q {
                            let column = g * 16 + (quarter + q) * 4;
                            let target = chunk.out.add(r * chunk.stride + column);
                            // Both halves of a row of quarters are the same four coordinates.
                            let sum = row_sums(sums[r][g][q], sums[r][g][q]);
                            let sum = _mm_cvtepi32_ps(_mm256_castsi256_si128(sum));
                            let step = _mm_set1_ps(self.steps[r]);
                            _mm_storeu_ps(target, _mm_fmadd_ps(sum, step, _mm_loadu_ps(target)));
                        }
                    }
                }
            }
        }
    }

    /// Sums of `R` rows, `G` groups and `Q` quarters over all quads of tokens.
    ///
    /// # Safety
    /// See [`Self::run`]; the quarters exist.
    #[inline(always)]
    unsafe fn quarters<C: Codec, const R: usize, const G: usize, const Q: usize>(
        &self,
        chunk: &ValueChunk,
        quarter: usize,
    ) -> [[[__m256i; Q]; G]; R] {
        // Groups per step: whole units, and whole quads.
        let per_step = const { if C::GROUPS > G { C::GROUPS } else { G } };
        let units = per_step / C::GROUPS;
        // SAFETY: the token proves AVX2. `ValueChunks` has checked that the codes and a row of 256
        // words for every row lie inside their slices.
        unsafe {
            let mut sums = [[[_mm256_setzero_si256(); Q]; G]; R];
            let mut codes = chunk.codes;
            let mut weights = chunk.weights.cast::<i16>();
            for _ in 0..chunk.quads * G / per_step {
                for q in 0..Q {
                    let mut words = C::quarter::<false>(codes, quarter + q, self.table);
                    if units == 2 {
                        let second = codes.add(C::UNIT_BYTES);
                        words[1] = C::quarter::<false>(second, quarter + q, self.table)[0];
                    }
                    for quad in 0..per_step / G {
                        for r in 0..R {
                            let weight = four_words(weights.add(r * KV_BLOCK_TOKENS + 4 * quad));
                            for g in 0..G {
                                let products = _mm256_madd_epi16(words[quad * G + g], weight);
                                sums[r][g][q] = _mm256_add_epi32(sums[r][g][q], products);
                            }
                        }
                    }
                }
                if let Some(ahead) = self.ahead.as_ref().filter(|_| quarter == 0) {
                    for unit in 0..units {
                        ahead.fetch(self.simd, codes.add(unit * C::UNIT_BYTES));
                    }
                }
                codes = codes.add(units * C::UNIT_BYTES);
                weights = weights.add(4 * per_step / G);
            }
            sums
        }
    }
}
