//! Scores and outputs of int8 and Turbo caches by 8-bit dot products (AVX512-VNNI).
//!
//! One `vpdpbusd` multiplies 64 unsigned bytes by 64 signed ones and adds them, four by four, to
//! 16 lanes; blocks are laid out so that the lanes are 16 tokens (keys) or 16 coordinates
//! (values), and no horizontal sums are needed. Keys are the unsigned side: int8 codes and Turbo
//! levels plus 128, corrected by −128·Σq, which is what the sums start from. Values are the
//! signed side, and the softmax weights (times the values' scales) the unsigned one.
//!
//! Queries and weights are rounded to one or two bytes ([`super::rounding`]); high byte and low
//! byte take one dot product each.

use super::avx512::Avx512;
use super::codec::{Bytes, Codec, Crumbs, Nibbles};
use super::lanes::{Ahead, Lanes};
use super::rounding::{ByteScratch, MAX_ROWS, Planes};
use super::softmax::State;
use super::tiles::{elements, meaning};
use crate::kv::block::HeadView;
use crate::kv::{KV_BLOCK_TOKENS, KvFormat};
use half::f16;
use std::arch::x86_64::*;
use std::ops::Range;

/// How far ahead of the codes being read the next ones are asked for, at least.
const LEAD_BYTES: usize = 4096;
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
        match (view.coding.format, Planes::of(view.coding.format)) {
            (KvFormat::Turbo4, Planes::One) => {
                keys::<Nibbles, 1>(view, tokens, next, rows, from, out)
            }
            (KvFormat::Turbo4, Planes::Two) => {
                keys::<Nibbles, 2>(view, tokens, next, rows, from, out)
            }
            (KvFormat::Turbo3, Planes::One) => {
                keys::<Crumbs, 1>(view, tokens, next, rows, from, out)
            }
            (KvFormat::Turbo3, Planes::Two) => {
                keys::<Crumbs, 2>(view, tokens, next, rows, from, out)
            }
            _ => keys::<Bytes, 2>(view, tokens, next, rows, from, out),
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
unsafe fn keys<C: Codec, const P: usize>(
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
    assert!(from.queries.len() >= 2 * MAX_ROWS * dim && out.len() >= rows * tokens.len());
    let tile_bytes = dim / 4 / C::GROUPS * C::UNIT_BYTES;
    let codes = &view.codes[tokens.start / 16 * tile_bytes..tokens.end / 16 * tile_bytes];
    // SAFETY: the processor is the caller's; the table has 16 bytes.
    let table = unsafe { Avx512::flip(Avx512::table(&table)) };
    let scales = &elements::<f16>(view.scales)[tokens.clone()];
    let ahead = Ahead::new(view.codes, next, (2 * tile_bytes).max(LEAD_BYTES));
    let keys = Keys { codes, scales, tile_bytes, dim, step, table, ahead };
    let tiles = tokens.len() / 16;
    for row in (0..rows).step_by(PASS_ROWS) {
        let mut tile = 0;
        while tile < tiles {
            let left = tiles - tile;
            // SAFETY: rows and tiles are in range, and the lengths were checked.
            tile += unsafe {
                match (rows - row, left >= 2) {
                    (1, true) => key_tiles::<C, P, 1, 2>(&keys, tile, row, from, out),
                    (2, true) => key_tiles::<C, P, 2, 2>(&keys, tile, row, from, out),
                    (3, true) => key_tiles::<C, P, 3, 2>(&keys, tile, row, from, out),
                    (_, true) => key_tiles::<C, P, 4, 2>(&keys, tile, row, from, out),
                    (1, false) => key_tiles::<C, P, 1, 1>(&keys, tile, row, from, out),
                    (2, false) => key_tiles::<C, P, 2, 1>(&keys, tile, row, from, out),
                    (3, false) => key_tiles::<C, P, 3, 1>(&keys, tile, row, from, out),
                    (_, false) => key_tiles::<C, P, 4, 1>(&keys, tile, row, from, out),
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
unsafe fn key_tiles<C: Codec, const P: usize, const R: usize, const N: usize>(
    keys: &Keys<'_>,
    tile: usize,
    row: usize,
    from: &ByteScratch<'_>,
    out: &mut [f32],
) -> usize {
    let width = keys.scales.len();
    // SAFETY: the caller's. A unit of tile `tile + n` lies inside `codes`; a query group of 4
    // bytes inside `queries`; 16 scores of row `row + r` inside `out`.
    unsafe {
        let mut sums = [[[_mm512_setzero_si512(); N]; R]; P];
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
        for n in 0..N {
            let scale = Avx512::load_f16(keys.scales.as_ptr().add((tile + n) * 16));
            for r in 0..R {
                let score = join::<P>(std::array::from_fn(|p| sums[p][r][n]));
                let step = Avx512::splat(from.steps[row + r] * keys.step);
                let at = out.as_mut_ptr().add((row + r) * width + (tile + n) * 16);
                score.mul(scale.mul(step)).store(at);
            }
        }
    }
    N
}

/// High and low sums as one number.
///
/// # Safety
/// The processor must have AVX-512 F.
#[inline(always)]
unsafe fn join<const P: usize>(sums: [__m512i; P]) -> Avx512 {
    // SAFETY: the caller's.
    unsafe {
        let high = Avx512::from_ints(sums[0]);
        if P == 1 {
            return high;
        }
        high.mul_add(Avx512::splat(256.0), Avx512::from_ints(sums[P - 1]))
    }
}

/// Adds the values `tokens` (whole sixteens) of `view`, weighted by `weights` (`[rows, tokens]`,
/// not negative), to the outputs in `state`.
///
/// # Safety
/// The processor must have AVX-512 F, BW, VL, DQ and VNNI.
#[inline(always)]
pub(crate) unsafe fn gather(
    view: &HeadView<'_>,
    tokens: Range<usize>,
    next: &[u8],
    rows: usize,
    weights: &mut [f32],
    scratch: &mut ByteScratch<'_>,
    state: &mut State<'_>,
) {
    let format = view.coding.format;
    let planes = Planes::of(format);
    // SAFETY: the processor is the caller's.
    unsafe {
        let steps = round_weights(planes, view, &tokens, rows, weights, scratch);
        match (format, planes) {
            (KvFormat::Turbo4, Planes::One) => {
                values::<Nibbles, 1>(view, tokens, next, rows, scratch, &steps, state);
            }
            (KvFormat::Turbo4, Planes::Two) => {
                values::<Nibbles, 2>(view, tokens, next, rows, scratch, &steps, state);
            }
            (KvFormat::Turbo3, Planes::One) => {
                values::<Crumbs, 1>(view, tokens, next, rows, scratch, &steps, state);
            }
            (KvFormat::Turbo3, Planes::Two) => {
                values::<Crumbs, 2>(view, tokens, next, rows, scratch, &steps, state);
            }
            _ => values::<Bytes, 2>(view, tokens, next, rows, scratch, &steps, state),
        }
    }
}

/// Added to weights before they are cut to 8 bits: evenly spread over a unit, so that many weights
/// below one unit keep their sum instead of all becoming 0.
static DITHER: [f32; 16] = {
    let mut dither = [0.0; 16];
    let mut i = 0;
    while i < 16 {
        // Bit reversal spreads neighbours.
        let reversed = (i & 1) << 3 | (i & 2) << 1 | (i & 4) >> 1 | (i & 8) >> 3;
        dither[i] = (reversed as f32 + 0.5) / 16.0;
        i += 1;
    }
    dither
};

/// Multiplies the weights by the values' scales and rounds them; returns each row's unit.
///
/// # Safety
/// As [`gather`].
#[inline(always)]
unsafe fn round_weights(
    planes: Planes,
    view: &HeadView<'_>,
    tokens: &Range<usize>,
    rows: usize,
    weights: &mut [f32],
    scratch: &mut ByteScratch<'_>,
) -> [f32; MAX_ROWS] {
    let width = tokens.len();
    assert!(rows <= MAX_ROWS && width <= KV_BLOCK_TOKENS && width.is_multiple_of(16));
    assert!(scratch.weights.len() >= 2 * MAX_ROWS * KV_BLOCK_TOKENS);
    let most = if planes == Planes::One { 255.0 } else { 65535.0 };
    let scales = &elements::<f16>(view.scales)[tokens.clone()];
    let mut steps = [0.0; MAX_ROWS];
    for (row, weights) in weights.chunks_exact_mut(width).take(rows).enumerate() {
        // SAFETY: the processor is the caller's; chunks have 16 elements, and 16 bytes from
        // `row·256 + column` lie inside each plane of `scratch.weights`.
        unsafe {
            let mut largest = _mm512_setzero_ps();
            for (weights, scales) in weights.chunks_exact_mut(16).zip(scales.chunks_exact(16)) {
                let weight = _mm512_loadu_ps(weights.as_ptr());
                let scale = _mm512_cvtph_ps(_mm256_loadu_si256(scales.as_ptr().cast()));
                // A weight of 0 hides its scale, which may be stale.
                let seen = _mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(weight, _mm512_setzero_ps());
                let product = _mm512_maskz_mul_ps(seen, weight, scale);
                _mm512_storeu_ps(weights.as_mut_ptr(), product);
                largest = _mm512_max_ps(largest, product);
            }
            let largest = _mm512_reduce_max_ps(largest);
            steps[row] = largest / most;
            let inverse = _mm512_set1_ps(if largest > 0.0 { most / largest } else { 0.0 });
            let dither = _mm512_loadu_ps(DITHER.as_ptr());
            let high = scratch.weights.as_mut_ptr().add(row * KV_BLOCK_TOKENS);
            let low = high.add(MAX_ROWS * KV_BLOCK_TOKENS);
            for (i, weights) in weights.chunks_exact(16).enumerate() {
                let weight = _mm512_loadu_ps(weights.as_ptr());
                let whole = match planes {
                    Planes::One => _mm512_cvttps_epi32(_mm512_fmadd_ps(weight, inverse, dither)),
                    Planes::Two => _mm512_cvtps_epi32(_mm512_mul_ps(weight, inverse)),
                };
                let store = |to: *mut u8, x| {
                    _mm_storeu_si128(to.add(16 * i).cast(), _mm512_cvtepi32_epi8(x));
                };
                if planes == Planes::One {
                    store(high, whole);
                } else {
                    store(high, _mm512_srli_epi32::<8>(whole));
                    store(low, whole);
                }
            }
        }
    }
    steps
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
unsafe fn values<C: Codec, const P: usize>(
    view: &HeadView<'_>,
    tokens: Range<usize>,
    next: &[u8],
    rows: usize,
    scratch: &ByteScratch<'_>,
    steps: &[f32; MAX_ROWS],
    state: &mut State<'_>,
) {
    let (dim, (step, table)) = (view.coding.dim, meaning(view));
    assert!(rows <= MAX_ROWS && dim.is_multiple_of(16) && state.stride == dim, "{rows} × {dim}");
    assert!(C::GROUPS == 1 || dim.is_multiple_of(32), "Turbo chunks are whole");
    assert!(tokens.start.is_multiple_of(16) && tokens.len().is_multiple_of(16), "{tokens:?}");
    assert!(state.acc.len() >= rows * dim);
    let steps = steps.map(|weight| weight * step);
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
                    weights: scratch.weights.as_ptr().add(row * KV_BLOCK_TOKENS),
                    quads: tokens.len() / 4,
                    out: state.acc.as_mut_ptr().add(row * dim + coord),
                    stride: dim,
                    table: Avx512::table(&table),
                    ahead: Ahead::new(view.codes, next, LEAD_BYTES),
                };
                let steps = &steps[row..];
                match (rows - row, wide) {
                    (1, 2) => value_chunk::<C, P, 1, 2>(&chunk, steps),
                    (2, 2) => value_chunk::<C, P, 2, 2>(&chunk, steps),
                    (3, 2) => value_chunk::<C, P, 3, 2>(&chunk, steps),
                    (_, 2) => value_chunk::<C, P, 4, 2>(&chunk, steps),
                    (1, _) => value_chunk::<C, P, 1, 1>(&chunk, steps),
                    (2, _) => value_chunk::<C, P, 2, 1>(&chunk, steps),
                    (3, _) => value_chunk::<C, P, 3, 1>(&chunk, steps),
                    _ => value_chunk::<C, P, 4, 1>(&chunk, steps),
                }
            }
        }
    }
}

/// `R` rows of `G` × 16 coordinates over all quads of tokens.
///
/// # Safety
/// As [`gather`]; the pointers of `chunk` must be valid for the rows, quads and coordinates.
#[inline(always)]
unsafe fn value_chunk<C: Codec, const P: usize, const R: usize, const G: usize>(
    chunk: &Chunk,
    steps: &[f32],
) {
    // Groups per step: whole units, and whole quads.
    let per_step = C::GROUPS.max(G);
    // SAFETY: the caller's.
    unsafe {
        let mut sums = [[[_mm512_setzero_si512(); G]; R]; P];
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
                let sum = join::<P>(std::array::from_fn(|p| sums[p][r][g]));
                sum.mul_add(Avx512::splat(steps[r]), Avx512::load(at)).store(at);
            }
        }
    }
}
