//! Scores and outputs of int8 and Turbo caches by 16-bit products (AVX2).
//!
//! One `vpmaddwd` multiplies 16 words by 16 words and adds the products, two by two, to 8 lanes.
//! Sixteen bytes of a group, a *quarter*, are four rows (tokens of keys, coordinates of values) of
//! four codes: widened to words they meet the same four query coordinates, or weights, in every
//! row, and each row ends up as two lanes, which are added at the very end. Sums wrap: a whole
//! sum fits, whatever its parts did.

#![expect(clippy::needless_range_loop, reason = "register tiles read best by index")]

use super::avx2::Avx2;
use super::codec::{Bytes, Crumbs, Nibbles};
use super::codec256::Words;
use super::lanes::{Ahead, Lanes};
use super::rounding::{ByteScratch, MAX_ROWS, PLANES};
use super::softmax::State;
use super::tiles::{elements, meaning};
use crate::kv::block::HeadView;
use crate::kv::{KV_BLOCK_TOKENS, KvFormat};
use half::f16;
use std::arch::x86_64::*;
use std::ops::Range;

/// Coordinates up to which a sum of rounded queries times codes fits in 32 bits.
pub(crate) const MAX_DIM: usize = 512;
/// Rows that share one pass over the codes.
const PASS_ROWS: usize = 4;
/// Quarters of a group.
const QUARTERS: usize = 4;

/// Four words at `p`, four times.
///
/// # Safety
/// The processor must have AVX2; `p` must be valid for four words.
#[inline(always)]
unsafe fn four_words(p: *const i16) -> __m256i {
    // SAFETY: the caller's.
    unsafe { _mm256_set1_epi64x(p.cast::<i64>().read_unaligned()) }
}

/// The rows of two quarters as eight sums, in order.
///
/// # Safety
/// The processor must have AVX2.
#[inline(always)]
unsafe fn rows(first: __m256i, second: __m256i) -> __m256i {
    // SAFETY: the caller's; no memory is touched. The sums of pairs come two of the first, two of
    // the second, and again.
    unsafe { _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_hadd_epi32(first, second)) }
}

/// Scores of `rows` rounded queries against the keys `tokens` (whole sixteens) of `view`, to
/// `out` (`[rows, tokens]`).
///
/// # Safety
/// The processor must have AVX2, FMA and F16C.
#[inline(always)]
pub(crate) unsafe fn scores(
    view: &HeadView<'_>,
    tokens: Range<usize>,
    next: &[u8],
    rows: usize,
    from: &ByteScratch<'_>,
    out: &mut [f32],
) {
    // SAFETY: the processor is the caller's.
    unsafe {
        match view.coding.format {
            KvFormat::Turbo4 => keys::<Nibbles>(view, tokens, next, rows, from, out),
            KvFormat::Turbo3 => keys::<Crumbs>(view, tokens, next, rows, from, out),
            _ => keys::<Bytes>(view, tokens, next, rows, from, out),
        }
    }
}

/// One call of [`scores`] for a code format.
struct Keys<'a> {
    codes: &'a [u8],
    scales: &'a [f16],
    tile_bytes: usize,
    dim: usize,
    step: f32,
    table: __m128i,
    ahead: Ahead,
}

/// # Safety
/// As [`scores`].
#[inline(always)]
unsafe fn keys<C: Words>(
    view: &HeadView<'_>,
    tokens: Range<usize>,
    next: &[u8],
    rows: usize,
    from: &ByteScratch<'_>,
    out: &mut [f32],
) {
    let (dim, (step, table)) = (view.coding.dim, meaning(view));
    assert!(rows <= MAX_ROWS && dim <= MAX_DIM, "{rows} queries of {dim}");
    assert!(dim.is_multiple_of(4 * C::GROUPS), "{dim} is no number of units");
    assert!(tokens.start.is_multiple_of(16) && tokens.len().is_multiple_of(16), "{tokens:?}");
    assert!(from.queries.len() >= PLANES * MAX_ROWS * dim && out.len() >= rows * tokens.len());
    let tile_bytes = dim / 4 / C::GROUPS * C::UNIT_BYTES;
    let codes = &view.codes[tokens.start / 16 * tile_bytes..tokens.end / 16 * tile_bytes];
    // SAFETY: the processor is the caller's; the table has 16 bytes.
    let table = unsafe { _mm_loadu_si128(table.as_ptr().cast()) };
    let scales = &elements::<f16>(view.scales)[tokens.clone()];
    let ahead = Ahead::new(view.codes, next, (2 * tile_bytes).max(Avx2::LEAD_BYTES));
    let keys = Keys { codes, scales, tile_bytes, dim, step, table, ahead };
    for tile in 0..tokens.len() / 16 {
        for row in (0..rows).step_by(PASS_ROWS) {
            // SAFETY: rows and tiles are in range, and the lengths were checked.
            unsafe {
                match rows - row {
                    1 => key_tile::<C, 1, 4>(&keys, tile, row, from, out),
                    2 => key_tile::<C, 2, 4>(&keys, tile, row, from, out),
                    3 => key_tile::<C, 3, 2>(&keys, tile, row, from, out),
                    _ => key_tile::<C, 4, 2>(&keys, tile, row, from, out),
                }
            }
        }
    }
}

/// `R` rows from `row` on against the 16 tokens of a tile, `Q` quarters at a time.
///
/// # Safety
/// As [`scores`]; rows and the tile must be in range.
#[inline(always)]
unsafe fn key_tile<C: Words, const R: usize, const Q: usize>(
    keys: &Keys<'_>,
    tile: usize,
    row: usize,
    from: &ByteScratch<'_>,
    out: &mut [f32],
) {
    let width = keys.scales.len();
    for quarter in (0..QUARTERS).step_by(Q) {
        // SAFETY: the caller's. Eight scales and scores of tokens of the tile lie inside.
        unsafe {
            let sums = key_quarters::<C, R, Q>(keys, tile, row, quarter, from);
            for pair in 0..Q / 2 {
                let token = tile * 16 + (quarter + 2 * pair) * 4;
                let scales = _mm_loadu_si128(keys.scales.as_ptr().add(token).cast());
                let scales = _mm256_cvtph_ps(scales);
                for r in 0..R {
                    let mut sum = rows(sums[r][2 * pair], sums[r][2 * pair + 1]);
                    if C::KEYS_OFFSET {
                        sum = _mm256_add_epi32(sum, _mm256_set1_epi32(from.offsets[row + r]));
                    }
                    let step = _mm256_set1_ps(from.query_steps[row + r] * keys.step);
                    let score = _mm256_mul_ps(_mm256_cvtepi32_ps(sum), _mm256_mul_ps(scales, step));
                    _mm256_storeu_ps(out.as_mut_ptr().add((row + r) * width + token), score);
                }
            }
        }
    }
}

/// Sums of `R` rows and `Q` quarters over all coordinates.
///
/// # Safety
/// As [`key_tile`].
#[inline(always)]
unsafe fn key_quarters<C: Words, const R: usize, const Q: usize>(
    keys: &Keys<'_>,
    tile: usize,
    row: usize,
    quarter: usize,
    from: &ByteScratch<'_>,
) -> [[__m256i; Q]; R] {
    // SAFETY: the caller's. A unit of the tile lies inside `codes`, four words inside `queries`.
    unsafe {
        let mut sums = [[_mm256_setzero_si256(); Q]; R];
        let mut codes = keys.codes.as_ptr().add(tile * keys.tile_bytes);
        let mut queries = from.queries.as_ptr().cast::<i16>().add(row * keys.dim);
        for _ in 0..keys.tile_bytes / C::UNIT_BYTES {
            if quarter == 0 && row == 0 {
                keys.ahead.fetch::<Avx2>(codes);
            }
            let mut words = [[_mm256_setzero_si256(); 4]; Q];
            for q in 0..Q {
                words[q] = C::quarter::<true>(codes, quarter + q, keys.table);
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

/// Adds the values `tokens` (whole sixteens) of `view`, weighted by the rounded weights in `from`,
/// to the outputs in `state`; the caller will read `next`.
///
/// # Safety
/// The processor must have AVX2, FMA and F16C.
#[inline(always)]
pub(crate) unsafe fn gather(
    view: &HeadView<'_>,
    tokens: Range<usize>,
    next: &[u8],
    rows: usize,
    from: &ByteScratch<'_>,
    state: &mut State<'_>,
) {
    // SAFETY: the processor is the caller's.
    unsafe {
        match view.coding.format {
            KvFormat::Turbo4 => values::<Nibbles>(view, tokens, next, rows, from, state),
            KvFormat::Turbo3 => values::<Crumbs>(view, tokens, next, rows, from, state),
            _ => values::<Bytes>(view, tokens, next, rows, from, state),
        }
    }
}

/// One chunk of 32 coordinates in [`values`], and the rows that read it.
struct Chunk {
    codes: *const u8,
    /// First of the weights.
    weights: *const i16,
    quads: usize,
    /// First output.
    out: *mut f32,
    stride: usize,
    table: __m128i,
    /// Where reading goes on; nowhere, when the codes were read before.
    ahead: Option<Ahead>,
}

/// # Safety
/// As [`gather`].
#[inline(always)]
unsafe fn values<C: Words>(
    view: &HeadView<'_>,
    tokens: Range<usize>,
    next: &[u8],
    rows: usize,
    from: &ByteScratch<'_>,
    state: &mut State<'_>,
) {
    let (dim, (step, table)) = (view.coding.dim, meaning(view));
    assert!(rows <= MAX_ROWS && dim.is_multiple_of(16) && state.stride == dim, "{rows} × {dim}");
    assert!(C::GROUPS == 1 || dim.is_multiple_of(32), "Turbo chunks are whole");
    assert!(tokens.start.is_multiple_of(16) && tokens.len().is_multiple_of(16), "{tokens:?}");
    assert!(state.acc.len() >= rows * dim && tokens.len() <= KV_BLOCK_TOKENS);
    assert!(from.weights.len() >= PLANES * MAX_ROWS * KV_BLOCK_TOKENS);
    let steps: [f32; MAX_ROWS] = std::array::from_fn(|row| from.weight_steps[row] * step);
    let group_bytes = |groups: usize| groups * C::UNIT_BYTES / C::GROUPS;
    for coord in (0..dim).step_by(32) {
        let wide = (dim - coord).min(32) / 16;
        let start = group_bytes(coord / 32 * (KV_BLOCK_TOKENS / 4 * 2) + tokens.start / 4 * wide);
        let codes = &view.codes[start..][..group_bytes(tokens.len() / 4 * wide)];
        for row in (0..rows).step_by(PASS_ROWS) {
            // SAFETY: the processor is the caller's; `codes` holds the chunk's groups, the
            // weights rows of 256 words, and the outputs `rows` rows of `dim`.
            unsafe {
                let chunk = Chunk {
                    codes: codes.as_ptr(),
                    weights: from.weights.as_ptr().cast::<i16>().add(row * KV_BLOCK_TOKENS),
                    quads: tokens.len() / 4,
                    out: state.acc.as_mut_ptr().add(row * dim + coord),
                    stride: dim,
                    table: _mm_loadu_si128(table.as_ptr().cast()),
                    ahead: (row == 0).then(|| Ahead::new(view.codes, next, Avx2::LEAD_BYTES)),
                };
                value_rows::<C>(&chunk, rows - row, wide, &steps[row..]);
            }
        }
    }
}

/// Up to [`PASS_ROWS`] of `rows` rows of `wide` × 16 coordinates.
///
/// # Safety
/// As [`value_chunk`].
#[inline(always)]
unsafe fn value_rows<C: Words>(chunk: &Chunk, rows: usize, wide: usize, steps: &[f32]) {
    // SAFETY: the caller's.
    unsafe {
        match (rows, wide) {
            (1, 2) => value_chunk::<C, 1, 2, 2>(chunk, steps),
            (2, 2) => value_chunk::<C, 2, 2, 2>(chunk, steps),
            (3, 2) => value_chunk::<C, 3, 2, 1>(chunk, steps),
            (_, 2) => value_chunk::<C, 4, 2, 1>(chunk, steps),
            (1, _) => value_chunk::<C, 1, 1, 2>(chunk, steps),
            (2, _) => value_chunk::<C, 2, 1, 2>(chunk, steps),
            (3, _) => value_chunk::<C, 3, 1, 2>(chunk, steps),
            _ => value_chunk::<C, 4, 1, 2>(chunk, steps),
        }
    }
}

/// `R` rows of `G` × 16 coordinates over all quads of tokens, `Q` quarters at a time.
///
/// # Safety
/// As [`gather`]; the pointers of `chunk` must be valid for the rows, quads and coordinates.
#[inline(always)]
unsafe fn value_chunk<C: Words, const R: usize, const G: usize, const Q: usize>(
    chunk: &Chunk,
    steps: &[f32],
) {
    for quarter in (0..QUARTERS).step_by(Q) {
        // SAFETY: the caller's.
        unsafe {
            let sums = value_quarters::<C, R, G, Q>(chunk, quarter);
            for r in 0..R {
                for g in 0..G {
                    for q in 0..Q {
                        let at = chunk.out.add(r * chunk.stride + g * 16 + (quarter + q) * 4);
                        let sum = _mm256_castsi256_si128(rows(sums[r][g][q], sums[r][g][q]));
                        // Both halves of a row of quarters are the same four coordinates.
                        let sum = _mm_cvtepi32_ps(sum);
                        let out = _mm_fmadd_ps(sum, _mm_set1_ps(steps[r]), _mm_loadu_ps(at));
                        _mm_storeu_ps(at, out);
                    }
                }
            }
        }
    }
}

/// Sums of `R` rows, `G` groups and `Q` quarters over all quads of tokens.
///
/// # Safety
/// As [`value_chunk`].
#[inline(always)]
unsafe fn value_quarters<C: Words, const R: usize, const G: usize, const Q: usize>(
    chunk: &Chunk,
    quarter: usize,
) -> [[[__m256i; Q]; G]; R] {
    // Groups per step: whole units, and whole quads.
    let per_step = if C::GROUPS > G { C::GROUPS } else { G };
    let units = per_step / C::GROUPS;
    // SAFETY: the caller's.
    unsafe {
        let mut sums = [[[_mm256_setzero_si256(); Q]; G]; R];
        let (mut codes, mut weights) = (chunk.codes, chunk.weights);
        for _ in 0..chunk.quads * G / per_step {
            for q in 0..Q {
                let mut words = C::quarter::<false>(codes, quarter + q, chunk.table);
                if units == 2 {
                    let second = codes.add(C::UNIT_BYTES);
                    words[1] = C::quarter::<false>(second, quarter + q, chunk.table)[0];
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
            if let Some(ahead) = chunk.ahead.as_ref().filter(|_| quarter == 0) {
                for unit in 0..units {
                    ahead.fetch::<Avx2>(codes.add(unit * C::UNIT_BYTES));
                }
            }
            codes = codes.add(units * C::UNIT_BYTES);
            weights = weights.add(4 * per_step / G);
        }
        sums
    }
}
