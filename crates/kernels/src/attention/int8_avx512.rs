//! [`CodeProducts`] by 8-bit dot products (AVX512-VNNI).
//!
//! One `vpdpbusd` multiplies 64 unsigned bytes by 64 signed ones and adds them, four by four, to
//! 16 lanes; blocks are laid out so that the lanes are 16 tokens (keys) or 16 coordinates
//! (values), and no horizontal sums are needed. Keys are the unsigned side: int8 codes and Turbo
//! levels plus 128, corrected by −128·Σq, which is what the sums start from. Values are the
//! signed side, and the softmax weights (times the values' scales) the unsigned one.
//!
//! Queries and weights are rounded to two bytes ([`super::rounding`]), stored as two planes of
//! bytes, high ones first; each byte takes one dot product.

#![expect(clippy::needless_range_loop, reason = "register tiles read best by index")]

use super::codec::{Codec, with_codec};
use super::products::{
    CodeProducts, GatherCodes, KeyTiles, PASS_ROWS, ScoreCodes, ValueChunk, ValueChunks,
};
use super::rounding::{MAX_ROWS, PLANES, RoundedRows};
use crate::kv::KV_BLOCK_TOKENS;
use crate::simd::Simd;
use crate::simd::avx512::Avx512;
use std::arch::x86_64::*;

/// Bytes of a plane of weights.
const PLANE: usize = MAX_ROWS * KV_BLOCK_TOKENS;

/// Products by `vpdpbusd`.
pub(crate) struct Int8Products;

impl CodeProducts<Avx512> for Int8Products {
    const MAX_DIM: usize = usize::MAX;
    const LARGEST_WEIGHT: f32 = 65535.0;

    #[inline(always)]
    unsafe fn store_query(
        simd: Avx512,
        q: &[f32],
        inverse: f32,
        row: usize,
        to: &mut RoundedRows<'_>,
    ) {
        let dim = q.len();
        let inverse = simd.splat(inverse);
        // SAFETY: `simd` proves AVX-512. The caller has room for row `row` of `dim` bytes, whole
        // sixteens, in both planes of `to.queries`.
        unsafe {
            let mut high_sum = _mm512_setzero_si512();
            let mut low_sum = _mm512_setzero_si512();
            for (i, q) in q.as_chunks::<16>().0.iter().enumerate() {
                let whole = simd.to_int(simd.mul(simd.load(q.as_ptr()), inverse));
                let (high, low) = simd.split_digit(whole);
                high_sum = _mm512_add_epi32(high_sum, high);
                low_sum = _mm512_add_epi32(low_sum, low);
                let target = to.queries.as_mut_ptr().add(row * dim + 16 * i).cast::<u8>();
                simd.store_low_bytes(target, high);
                simd.store_low_bytes(target.add(MAX_ROWS * dim), low);
            }
            to.offsets[row] = _mm512_reduce_add_epi32(high_sum).wrapping_mul(-128);
            to.offsets[MAX_ROWS + row] = _mm512_reduce_add_epi32(low_sum).wrapping_mul(-128);
        }
    }

    #[inline(always)]
    unsafe fn store_weights(
        simd: Avx512,
        weights: __m512,
        row: usize,
        column: usize,
        to: &mut [u8],
    ) {
        let whole = simd.to_int(weights);
        // SAFETY: `simd` proves AVX-512; the caller has room for 16 bytes from there on in both
        // planes.
        unsafe {
            let high = to.as_mut_ptr().add(row * KV_BLOCK_TOKENS + column);
            simd.store_low_bytes(high, _mm512_srli_epi32::<8>(whole));
            simd.store_low_bytes(high.add(PLANE), whole);
        }
    }

    #[inline(always)]
    unsafe fn store_many_weights(
        simd: Avx512,
        weights: [__m512; 4],
        row: usize,
        column: usize,
        to: &mut [u8],
    ) {
        let whole = weights.map(|weights| simd.to_int(weights));
        // SAFETY: `simd` proves AVX-512; the caller has room for 64 bytes from there on in both
        // planes.
        unsafe {
            let (high, low) = split_bytes(whole);
            let target = to.as_mut_ptr().add(row * KV_BLOCK_TOKENS + column);
            simd.store_bytes(target, high);
            simd.store_bytes(target.add(PLANE), low);
        }
    }

    #[inline(always)]
    fn scores(simd: Avx512, task: ScoreCodes<'_>) {
        let format = task.view.coding.format;
        let keys = KeyTiles::new(task, Avx512::ATTENTION_LEAD_BYTES);
        with_codec!(format, C => score_keys::<C>(simd, &keys));
    }

    #[inline(always)]
    fn gather(simd: Avx512, task: GatherCodes<'_, '_>) {
        let format = task.view.coding.format;
        let chunks = ValueChunks::new(task, KV_BLOCK_TOKENS, Avx512::ATTENTION_LEAD_BYTES);
        with_codec!(format, C => gather_values::<C>(simd, chunks));
    }
}

/// The second and the lowest bytes of 64 integers below 2¹⁶, in order.
///
/// # Safety
/// The processor has AVX-512 F and BW.
#[inline(always)]
unsafe fn split_bytes(whole: [__m512i; 4]) -> (__m512i, __m512i) {
    // SAFETY: registers only. The packs interleave 128-bit lanes of their operands; the last
    // permutation puts the quads of bytes in order.
    unsafe {
        let first = _mm512_packus_epi32(whole[0], whole[1]);
        let second = _mm512_packus_epi32(whole[2], whole[3]);
        let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        let byte = _mm512_set1_epi16(255);
        let high =
            _mm512_packus_epi16(_mm512_srli_epi16::<8>(first), _mm512_srli_epi16::<8>(second));
        let low =
            _mm512_packus_epi16(_mm512_and_si512(first, byte), _mm512_and_si512(second, byte));
        (_mm512_permutexvar_epi32(order, high), _mm512_permutexvar_epi32(order, low))
    }
}

/// All scores of `keys`, whose codec is `C`.
#[inline(always)]
fn score_keys<C: Codec>(simd: Avx512, keys: &KeyTiles<'_>) {
    let table = simd.flip_sign(simd.byte_table(&keys.table.map(i8::cast_unsigned)));
    for row in (0..keys.rows).step_by(PASS_ROWS) {
        let mut tile = 0;
        while tile < keys.tiles() {
            let pair = keys.tiles() - tile >= 2;
            // SAFETY: the rows and tiles exist.
            tile += unsafe {
                match (keys.rows - row, pair) {
                    (1, true) => key_tiles::<C, 1, 2>(simd, keys, table, tile, row),
                    (2, true) => key_tiles::<C, 2, 2>(simd, keys, table, tile, row),
                    (3, true) => key_tiles::<C, 3, 2>(simd, keys, table, tile, row),
                    (_, true) => key_tiles::<C, 4, 2>(simd, keys, table, tile, row),
                    (1, false) => key_tiles::<C, 1, 1>(simd, keys, table, tile, row),
                    (2, false) => key_tiles::<C, 2, 1>(simd, keys, table, tile, row),
                    (3, false) => key_tiles::<C, 3, 1>(simd, keys, table, tile, row),
                    (_, false) => key_tiles::<C, 4, 1>(simd, keys, table, tile, row),
                }
            };
        }
    }
}

/// `R` rows from `row` on against `N` tiles of 16 tokens from `tile` on; returns `N`.
///
/// # Safety
/// The rows and tiles exist in `keys`, whose codec is `C`.
#[inline(always)]
unsafe fn key_tiles<C: Codec, const R: usize, const N: usize>(
    simd: Avx512,
    keys: &KeyTiles<'_>,
    table: __m512i,
    tile: usize,
    row: usize,
) -> usize {
    // SAFETY: `simd` proves AVX-512. `KeyTiles` has checked that unit `unit` of tile `tile + n`
    // lies inside `codes` and a query group of 4 bytes inside `queries`.
    unsafe {
        let mut sums = [[[_mm512_setzero_si512(); N]; R]; PLANES];
        for (p, sums) in sums.iter_mut().enumerate() {
            for (r, sums) in sums.iter_mut().enumerate() {
                *sums = [_mm512_set1_epi32(keys.from.offsets[p * MAX_ROWS + row + r]); N];
            }
        }
        let codes = keys.codes.as_ptr().add(tile * keys.tile_bytes);
        let queries = keys.from.queries.as_ptr().cast::<u8>().add(row * keys.dim);
        for unit in 0..keys.tile_bytes / C::UNIT_BYTES {
            let mut groups = [[table; 4]; N];
            for (n, groups) in groups.iter_mut().enumerate() {
                let at = codes.add(n * keys.tile_bytes + unit * C::UNIT_BYTES);
                *groups = C::unit(simd, at, table);
                keys.ahead.fetch(simd, at);
            }
            for g in 0..C::GROUPS {
                let query = queries.add((unit * C::GROUPS + g) * 4);
                for (p, sums) in sums.iter_mut().enumerate() {
                    for (r, sums) in sums.iter_mut().enumerate() {
                        let q = simd.splat_quad(query.add((p * MAX_ROWS + r) * keys.dim));
                        for n in 0..N {
                            sums[n] = simd.dot::<8>(sums[n], groups[n][g], q);
                        }
                    }
                }
            }
        }
        finish_scores(simd, keys, tile, row, &sums);
    }
    N
}

/// Multiplies sums by the units of queries and keys and stores them as scores.
///
/// # Safety
/// See [`key_tiles`].
#[inline(always)]
unsafe fn finish_scores<const R: usize, const N: usize>(
    simd: Avx512,
    keys: &KeyTiles<'_>,
    tile: usize,
    row: usize,
    sums: &[[[__m512i; N]; R]; PLANES],
) {
    let width = keys.scales.len();
    // SAFETY: `KeyTiles` has checked that 16 scales of tile `tile + n` lie inside `scales`, and 16
    // scores of row `row + r` inside the output.
    unsafe {
        for n in 0..N {
            let scale = simd.load_f16(keys.scales.as_ptr().add((tile + n) * 16).cast());
            for r in 0..R {
                let score = join(simd, sums[0][r][n], sums[1][r][n]);
                let step = simd.splat(keys.from.query_steps[row + r] * keys.step);
                let target = keys.out.add((row + r) * width + (tile + n) * 16);
                simd.store(target, simd.mul(score, simd.mul(scale, step)));
            }
        }
    }
}

/// High and low sums as one number.
#[inline(always)]
fn join(simd: Avx512, high: __m512i, low: __m512i) -> __m512 {
    simd.fma(simd.to_float(high), simd.splat(256.0), simd.to_float(low))
}

/// Adds the weighted values of all `chunks`, whose codec is `C`.
#[inline(always)]
fn gather_values<C: Codec>(simd: Avx512, mut chunks: ValueChunks<'_>) {
    let table = simd.byte_table(&chunks.table.map(i8::cast_unsigned));
    let ahead = chunks.ahead;
    while let Some(chunk) = chunks.next() {
        let pass = Int8ValuePass { simd, table, ahead, steps: &chunks.steps[chunk.row..] };
        // SAFETY: the chunk has these rows and coordinates.
        unsafe {
            match (chunk.rows, chunk.sixteens) {
                (1, 2) => pass.run::<C, 1, 2>(&chunk),
                (2, 2) => pass.run::<C, 2, 2>(&chunk),
                (3, 2) => pass.run::<C, 3, 2>(&chunk),
                (_, 2) => pass.run::<C, 4, 2>(&chunk),
                (1, _) => pass.run::<C, 1, 1>(&chunk),
                (2, _) => pass.run::<C, 2, 1>(&chunk),
                (3, _) => pass.run::<C, 3, 1>(&chunk),
                _ => pass.run::<C, 4, 1>(&chunk),
            }
        }
    }
}

/// One pass of some rows over a chunk of values.
struct Int8ValuePass<'a> {
    simd: Avx512,
    table: __m512i,
    ahead: super::ahead::Ahead,
    /// Value of one unit of each row's sums.
    steps: &'a [f32],
}

impl Int8ValuePass<'_> {
    /// `R` rows of `G` × 16 coordinates over all quads of tokens.
    ///
    /// # Safety
    /// `chunk` has `R` rows and `G` sixteens of coordinates, and its codec is `C`.
    #[inline(always)]
    unsafe fn run<C: Codec, const R: usize, const G: usize>(&self, chunk: &ValueChunk) {
        let Self { simd, table, ahead, steps } = *self;
        // Groups per step: whole units, and whole quads.
        let per_step = const { if C::GROUPS > G { C::GROUPS } else { G } };
        // SAFETY: `simd` proves AVX-512. `ValueChunks` has checked that the codes, a row of 256
        // weights per plane and the outputs of every row lie inside their slices.
        unsafe {
            let mut sums = [[[_mm512_setzero_si512(); G]; R]; PLANES];
            for step in 0..chunk.quads * G / per_step {
                let codes = chunk.codes.add(step * per_step / C::GROUPS * C::UNIT_BYTES);
                ahead.fetch(simd, codes);
                let mut groups = C::unit(simd, codes, table);
                if C::GROUPS < G {
                    ahead.fetch(simd, codes.add(C::UNIT_BYTES));
                    groups[1] = C::unit(simd, codes.add(C::UNIT_BYTES), table)[0];
                }
                for quad in 0..per_step / G {
                    let weights = chunk.weights.add((step * per_step / G + quad) * 4);
                    for (p, sums) in sums.iter_mut().enumerate() {
                        for (r, sums) in sums.iter_mut().enumerate() {
                            let weight = weights.add((p * MAX_ROWS + r) * KV_BLOCK_TOKENS);
                            let weight = simd.splat_quad(weight);
                            for g in 0..G {
                                sums[g] = simd.dot::<8>(sums[g], weight, groups[quad * G + g]);
                            }
                        }
                    }
                }
            }
            for r in 0..R {
                for g in 0..G {
                    let target = chunk.out.add(r * chunk.stride + g * 16);
                    let sum = join(simd, sums[0][r][g], sums[1][r][g]);
                    simd.store(target, simd.fma(sum, simd.splat(steps[r]), simd.load(target)));
                }
            }
        }
    }
}
