//! Scores and outputs of int8 and Turbo caches by 8-bit dot products (AVX512-VNNI).
//!
//! One `vpdpbusd` multiplies 64 unsigned bytes by 64 signed ones and adds them, four by four, to
//! 16 lanes; blocks are laid out so that the lanes are 16 tokens (keys) or 16 coordinates
//! (values), and no horizontal sums are needed. Keys are the unsigned side: int8 codes and Turbo
//! levels plus 128, corrected by −128·Σq, which is what the sums start from. Values are the
//! signed side, and the softmax weights (times the values' scales) the unsigned one.
//!
//! Queries and weights are rounded to two bytes ([`super::rounding`]); each byte takes one dot
//! product.

#![expect(clippy::needless_range_loop, reason = "register tiles read best by index")]

use super::avx512::Avx512;
use super::codec::{Bytes, Codec, Crumbs, Nibbles};
use super::lanes::{Ahead, Lanes};
use super::rounding::{ByteScratch, MAX_ROWS, PLANES};
use super::softmax::State;
use super::tiles::{elements, meaning};
use crate::kv::block::HeadView;
use crate::kv::{KV_BLOCK_TOKENS, KvFormat};
use half::f16;
use std::arch::x86_64::*;
use std::ops::Range;

/// Rows that share one pass over the codes.
const PASS_ROWS: usize = 4;

/// Scores of `rows` rounded queries against the keys `tokens` (whole sixteens) of `view`, to
/// `out` (`[rows, tokens]`).
///
/// # Safety
/// The processor must have AVX-512 F, BW, VL, DQ and VNNI.
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
    table: __m512i,
    ahead: Ahead,
}

/// # Safety
/// As [`scores`].
#[inline(always)]
unsafe fn keys<C: Codec>(
    view: &HeadView<'_>,
    tokens: Range<usize>,
    next: &[u8],
    rows: usize,
    from: &ByteScratch<'_>,
    out: &mut [f32],
) {
    let (dim, (step, table)) = (view.coding.dim, meaning(view));
    assert!(rows <= MAX_ROWS && dim.is_multiple_of(4 * C::GROUPS), "{rows} rows of {dim}");
    assert!(tokens.start.is_multiple_of(16) && tokens.len().is_multiple_of(16), "{tokens:?}");
    assert!(from.queries.len() >= PLANES * MAX_ROWS * dim && out.len() >= rows * tokens.len());
    let tile_bytes = dim / 4 / C::GROUPS * C::UNIT_BYTES;
    let codes = &view.codes[tokens.start / 16 * tile_bytes..tokens.end / 16 * tile_bytes];
    // SAFETY: the processor is the caller's; the table has 16 bytes.
    let table = unsafe { Avx512::flip(Avx512::table(&table)) };
    let scales = &elements::<f16>(view.scales)[tokens.clone()];
    let ahead = Ahead::new(view.codes, next, (2 * tile_bytes).max(Avx512::LEAD_BYTES));
    let keys = Keys { codes, scales, tile_bytes, dim, step, table, ahead };
    let tiles = tokens.len() / 16;
    for row in (0..rows).step_by(PASS_ROWS) {
        let mut tile = 0;
        while tile < tiles {
            let left = tiles - tile;
            // SAFETY: rows and tiles are in range, and the lengths were checked.
            tile += unsafe {
                match (rows - row, left >= 2) {
                    (1, true) => key_tiles::<C, 1, 2>(&keys, tile, row, from, out),
                    (2, true) => key_tiles::<C, 2, 2>(&keys, tile, row, from, out),
                    (3, true) => key_tiles::<C, 3, 2>(&keys, tile, row, from, out),
                    (_, true) => key_tiles::<C, 4, 2>(&keys, tile, row, from, out),
                    (1, false) => key_tiles::<C, 1, 1>(&keys, tile, row, from, out),
                    (2, false) => key_tiles::<C, 2, 1>(&keys, tile, row, from, out),
                    (3, false) => key_tiles::<C, 3, 1>(&keys, tile, row, from, out),
                    (_, false) => key_tiles::<C, 4, 1>(&keys, tile, row, from, out),
                }
            };
        }
    }
}

/// `R` rows from `row` on against `N` tiles of 16 tokens from `tile` on; returns `N`.
///
/// # Safety
/// As [`scores`]; rows and tiles must be in range.
#[inline(always)]
unsafe fn key_tiles<C: Codec, const R: usize, const N: usize>(
    keys: &Keys<'_>,
    tile: usize,
    row: usize,
    from: &ByteScratch<'_>,
    out: &mut [f32],
) -> usize {
    // SAFETY: the caller's. A unit of tile `tile + n` lies inside `codes`, a query group of 4
    // bytes inside `queries`.
    unsafe {
        let mut sums = [[[_mm512_setzero_si512(); N]; R]; PLANES];
        for (p, sums) in sums.iter_mut().enumerate() {
            for (r, sums) in sums.iter_mut().enumerate() {
                *sums = [_mm512_set1_epi32(from.offsets[p * MAX_ROWS + row + r]); N];
            }
        }
        let codes = keys.codes.as_ptr().add(tile * keys.tile_bytes);
        let queries = from.queries.as_ptr().add(row * keys.dim);
        for unit in 0..keys.tile_bytes / C::UNIT_BYTES {
            let mut groups = [[keys.table; 4]; N];
            for (n, groups) in groups.iter_mut().enumerate() {
                let at = n * keys.tile_bytes + unit * C::UNIT_BYTES;
                *groups = C::unit::<Avx512>(codes.add(at), keys.table);
                keys.ahead.fetch::<Avx512>(codes.add(at));
            }
            for g in 0..C::GROUPS {
                let query = queries.add((unit * C::GROUPS + g) * 4);
                for (p, sums) in sums.iter_mut().enumerate() {
                    for (r, sums) in sums.iter_mut().enumerate() {
                        let q = query.add((p * MAX_ROWS + r) * keys.dim).cast::<i32>();
                        let q = _mm512_set1_epi32(q.read_unaligned());
                        for n in 0..N {
                            sums[n] = _mm512_dpbusd_epi32(sums[n], groups[n][g], q);
                        }
                    }
                }
            }
        }
        finish_scores(keys, tile, row, &sums, from, out);
    }
    N
}

/// Multiplies sums by the units of queries and keys and stores them as scores.
///
/// # Safety
/// As [`key_tiles`].
#[inline(always)]
unsafe fn finish_scores<const R: usize, const N: usize>(
    keys: &Keys<'_>,
    tile: usize,
    row: usize,
    sums: &[[[__m512i; N]; R]; PLANES],
    from: &ByteScratch<'_>,
    out: &mut [f32],
) {
    let width = keys.scales.len();
    // SAFETY: the caller's. 16 scales of tile `tile + n` lie inside `scales`, 16 scores of row
    // `row + r` inside `out`.
    unsafe {
        for n in 0..N {
            let scale = Avx512::load_f16(keys.scales.as_ptr().add((tile + n) * 16));
            for r in 0..R {
                let score = join(sums[0][r][n], sums[1][r][n]);
                let step = Avx512::splat(from.query_steps[row + r] * keys.step);
                let at = out.as_mut_ptr().add((row + r) * width + (tile + n) * 16);
                score.mul(scale.mul(step)).store(at);
            }
        }
    }
}

/// High and low sums as one number.
///
/// # Safety
/// The processor must have AVX-512 F.
#[inline(always)]
unsafe fn join(high: __m512i, low: __m512i) -> Avx512 {
    // SAFETY: the caller's.
    unsafe { Avx512::from_ints(high).mul_add(Avx512::splat(256.0), Avx512::from_ints(low)) }
}

/// Adds the values `tokens` (whole sixteens) of `view`, weighted by the rounded weights in `from`,
/// to the outputs in `state`; the caller will read `next`.
///
/// # Safety
/// The processor must have AVX-512 F, BW, VL, DQ and VNNI.
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

/// One chunk of 32 coordinates in [`values`].
struct Chunk {
    codes: *const u8,
    /// First of the weights.
    weights: *const u8,
    quads: usize,
    /// First output.
    out: *mut f32,
    stride: usize,
    table: __m512i,
    ahead: Ahead,
}

/// # Safety
/// As [`gather`].
#[inline(always)]
unsafe fn values<C: Codec>(
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
            // weights a row of 256 bytes per plane, and the outputs `rows` rows of `dim`.
            unsafe {
                let chunk = Chunk {
                    codes: codes.as_ptr(),
                    weights: from.weights.as_ptr().add(row * KV_BLOCK_TOKENS),
                    quads: tokens.len() / 4,
                    out: state.acc.as_mut_ptr().add(row * dim + coord),
                    stride: dim,
                    table: Avx512::table(&table),
                    ahead: Ahead::new(view.codes, next, Avx512::LEAD_BYTES),
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
unsafe fn value_rows<C: Codec>(chunk: &Chunk, rows: usize, wide: usize, steps: &[f32]) {
    // SAFETY: the caller's.
    unsafe {
        match (rows, wide) {
            (1, 2) => value_chunk::<C, 1, 2>(chunk, steps),
            (2, 2) => value_chunk::<C, 2, 2>(chunk, steps),
            (3, 2) => value_chunk::<C, 3, 2>(chunk, steps),
            (_, 2) => value_chunk::<C, 4, 2>(chunk, steps),
            (1, _) => value_chunk::<C, 1, 1>(chunk, steps),
            (2, _) => value_chunk::<C, 2, 1>(chunk, steps),
            (3, _) => value_chunk::<C, 3, 1>(chunk, steps),
            _ => value_chunk::<C, 4, 1>(chunk, steps),
        }
    }
}

/// `R` rows of `G` × 16 coordinates over all quads of tokens.
///
/// # Safety
/// As [`gather`]; the pointers of `chunk` must be valid for the rows, quads and coordinates.
#[inline(always)]
unsafe fn value_chunk<C: Codec, const R: usize, const G: usize>(chunk: &Chunk, steps: &[f32]) {
    // Groups per step: whole units, and whole quads.
    let per_step = C::GROUPS.max(G);
    // SAFETY: the caller's.
    unsafe {
        let mut sums = [[[_mm512_setzero_si512(); G]; R]; PLANES];
        for step in 0..chunk.quads * G / per_step {
            let codes = chunk.codes.add(step * per_step / C::GROUPS * C::UNIT_BYTES);
            chunk.ahead.fetch::<Avx512>(codes);
            let mut groups = C::unit::<Avx512>(codes, chunk.table);
            if C::GROUPS < G {
                chunk.ahead.fetch::<Avx512>(codes.add(C::UNIT_BYTES));
                groups[1] = C::unit::<Avx512>(codes.add(C::UNIT_BYTES), chunk.table)[0];
            }
            for quad in 0..per_step / G {
                let weights = chunk.weights.add((step * per_step / G + quad) * 4);
                for (p, sums) in sums.iter_mut().enumerate() {
                    for (r, sums) in sums.iter_mut().enumerate() {
                        let weight = weights.add((p * MAX_ROWS + r) * KV_BLOCK_TOKENS);
                        let weight = _mm512_set1_epi32(weight.cast::<i32>().read_unaligned());
                        for g in 0..G {
                            sums[g] = _mm512_dpbusd_epi32(sums[g], weight, groups[quad * G + g]);
                        }
                    }
                }
            }
        }
        for r in 0..R {
            for g in 0..G {
                let at = chunk.out.add(r * chunk.stride + g * 16);
                let sum = join(sums[0][r][g], sums[1][r][g]);
                sum.mul_add(Avx512::splat(steps[r]), Avx512::load(at)).store(at);
            }
        }
    }
}
