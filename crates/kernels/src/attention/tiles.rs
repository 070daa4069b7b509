//! Decoding a tile of keys or values of any format to f32, for the matrix product.
//!
//! Turbo vectors stay in their rotated basis. A decoded key tile is `[tokens/16][dim][16]`, a
//! decoded value tile `[tokens][stride]` with the stride a multiple of 16.

use super::codec::{Bytes, Codec, Crumbs, Nibbles};
use super::lanes::{Element, Lanes};
use crate::kv::block::HeadView;
use crate::kv::{KV_BLOCK_TOKENS, KvFormat};
use crate::turbo::{Side, level_step, negate};
use half::{bf16, f16};
use std::ops::Range;

/// Elements of a head's float codes. Blocks are 64-byte aligned and heads a multiple of 256
/// elements long, so the cast cannot fail on a block of ours.
pub(crate) fn elements<T: bytemuck::AnyBitPattern>(codes: &[u8]) -> &[T] {
    bytemuck::cast_slice(codes)
}

/// What one code is worth, besides its vector's scale, and the table it is looked up in.
pub(crate) fn meaning(view: &HeadView<'_>) -> (f32, [i8; 16]) {
    match view.coding.format.turbo() {
        Some(bits) => (level_step(bits, view.coding.dim), bits.codebook().shuffle_table()),
        None => (1.0, [0; 16]),
    }
}

/// Decodes the keys `tokens` (whole sixteens) into `out`.
///
/// # Safety
/// The processor must have the instructions of `L`.
#[inline(always)]
pub(crate) unsafe fn keys<L: Lanes>(view: &HeadView<'_>, tokens: Range<usize>, out: &mut [f32]) {
    let dim = view.coding.dim;
    assert!(tokens.start.is_multiple_of(16) && tokens.end.is_multiple_of(16), "{tokens:?}");
    let out = &mut out[..tokens.len() * dim];
    let at = tokens.start * dim..tokens.end * dim;
    // SAFETY: the processor is the caller's.
    unsafe {
        match view.coding.format {
            KvFormat::F32 => floats::<L, f32>(&elements(view.codes)[at], out),
            KvFormat::F16 => floats::<L, f16>(&elements(view.codes)[at], out),
            KvFormat::Bf16 => floats::<L, bf16>(&elements(view.codes)[at], out),
            KvFormat::Int8 if dim.is_multiple_of(4) => key_codes::<L, Bytes>(view, tokens, out),
            KvFormat::Int8 => irregular_keys(view, tokens, out),
            KvFormat::Turbo4 => key_codes::<L, Nibbles>(view, tokens, out),
            KvFormat::Turbo3 => key_codes::<L, Crumbs>(view, tokens, out),
        }
    }
}

/// # Safety
/// The processor must have the instructions of `L`.
#[inline(always)]
unsafe fn floats<L: Lanes, T: Element>(from: &[T], to: &mut [f32]) {
    assert!(from.len() == to.len() && to.len().is_multiple_of(16), "whole vectors");
    for (from, to) in from.chunks_exact(16).zip(to.chunks_exact_mut(16)) {
        // SAFETY: both chunks have 16 elements.
        unsafe { T::load::<L>(from.as_ptr()).store(to.as_mut_ptr()) };
    }
}

/// # Safety
/// The processor must have the instructions of `L`.
#[inline(always)]
unsafe fn key_codes<L: Lanes, C: Codec>(
    view: &HeadView<'_>,
    tokens: Range<usize>,
    out: &mut [f32],
) {
    let (dim, (step, table)) = (view.coding.dim, meaning(view));
    let tile_bytes = dim / 4 / C::GROUPS * C::UNIT_BYTES;
    let codes = &view.codes[tokens.start / 16 * tile_bytes..tokens.end / 16 * tile_bytes];
    let scales = &elements::<f16>(view.scales)[tokens];
    let int8 = C::GROUPS == 1;
    for ((codes, scales), out) in codes
        .chunks_exact(tile_bytes)
        .zip(scales.chunks_exact(16))
        .zip(out.chunks_exact_mut(16 * dim))
    {
        // SAFETY: `scales` has 16 elements; units and rows of 4 × 16 outputs are exact chunks.
        unsafe {
            let table = L::table(&table);
            let scale = L::load_f16(scales.as_ptr()).mul(L::splat(step));
            let units = codes.chunks_exact(C::UNIT_BYTES);
            for (unit, out) in units.zip(out.chunks_exact_mut(64 * C::GROUPS)) {
                let groups = C::unit::<L>(unit.as_ptr(), table);
                for (group, out) in groups.into_iter().zip(out.chunks_exact_mut(64)) {
                    let group = if int8 { L::flip(group) } else { group };
                    let out = out.as_mut_ptr();
                    L::widen::<0>(group).mul(scale).store(out);
                    L::widen::<1>(group).mul(scale).store(out.add(16));
                    L::widen::<2>(group).mul(scale).store(out.add(32));
                    L::widen::<3>(group).mul(scale).store(out.add(48));
                }
            }
        }
    }
}

/// Int8 keys whose dimension is no multiple of 4.
fn irregular_keys(view: &HeadView<'_>, tokens: Range<usize>, out: &mut [f32]) {
    let dim = view.coding.dim;
    let mut key = vec![0.0; dim];
    for (index, token) in tokens.enumerate() {
        view.coding.read_rotated(view.codes, view.scales, token, &mut key);
        for (coord, &x) in key.iter().enumerate() {
            out[(index / 16 * dim + coord) * 16 + index % 16] = x;
        }
    }
}

/// Decodes the values `tokens` (whole sixteens) of `view` into `out`.
///
/// # Safety
/// The processor must have the instructions of `L`.
#[inline(always)]
pub(crate) unsafe fn values<L: Lanes>(view: &HeadView<'_>, tokens: Range<usize>, out: &mut [f32]) {
    let dim = view.coding.dim;
    let stride = dim.next_multiple_of(16);
    assert!(tokens.start.is_multiple_of(16) && tokens.end.is_multiple_of(16), "{tokens:?}");
    let out = &mut out[..tokens.len() * stride];
    let at = tokens.start * dim..tokens.end * dim;
    // SAFETY: the processor is the caller's.
    unsafe {
        match view.coding.format {
            _ if dim != stride => irregular_values(view, tokens, out),
            KvFormat::F32 => floats::<L, f32>(&elements(view.codes)[at], out),
            KvFormat::F16 => floats::<L, f16>(&elements(view.codes)[at], out),
            KvFormat::Bf16 => floats::<L, bf16>(&elements(view.codes)[at], out),
            KvFormat::Int8 => value_codes::<L, Bytes>(view, tokens, out),
            KvFormat::Turbo4 => value_codes::<L, Nibbles>(view, tokens, out),
            KvFormat::Turbo3 => value_codes::<L, Crumbs>(view, tokens, out),
        }
    }
}

/// # Safety
/// The processor must have the instructions of `L`.
#[inline(always)]
unsafe fn value_codes<L: Lanes, C: Codec>(
    view: &HeadView<'_>,
    tokens: Range<usize>,
    out: &mut [f32],
) {
    let (dim, (step, table)) = (view.coding.dim, meaning(view));
    let mut scales = [0.0f32; KV_BLOCK_TOKENS];
    let stored = elements::<f16>(view.scales)[tokens.clone()].chunks_exact(16);
    for (to, from) in scales.chunks_exact_mut(16).zip(stored) {
        // SAFETY: both chunks have 16 elements.
        unsafe { L::load_f16(from.as_ptr()).mul(L::splat(step)).store(to.as_mut_ptr()) };
    }
    for chunk in 0..dim.div_ceil(32) {
        let wide = (dim - 32 * chunk).min(32) / 16;
        let quad_bytes = wide * C::UNIT_BYTES / C::GROUPS;
        let start = chunk * KV_BLOCK_TOKENS / 4 * 2 * C::UNIT_BYTES / C::GROUPS;
        let codes =
            &view.codes[start + tokens.start / 4 * quad_bytes..][..tokens.len() / 4 * quad_bytes];
        // SAFETY: units are exact chunks; group i of this chunk is quad i / wide, sixteen
        // i % wide, so token 4·quad + column < tokens.len() and the row of 16 lies inside `out`.
        unsafe {
            let table = L::table(&table);
            for (index, unit) in codes.chunks_exact(C::UNIT_BYTES).enumerate() {
                let groups = C::unit::<L>(unit.as_ptr(), table);
                for (i, group) in (index * C::GROUPS..).zip(groups.into_iter().take(C::GROUPS)) {
                    let token = i / wide * 4;
                    let to = out.as_mut_ptr().add(token * dim + chunk * 32 + i % wide * 16);
                    let scale = &scales[token..token + 4];
                    L::widen::<0>(group).mul(L::splat(scale[0])).store(to);
                    L::widen::<1>(group).mul(L::splat(scale[1])).store(to.add(dim));
                    L::widen::<2>(group).mul(L::splat(scale[2])).store(to.add(2 * dim));
                    L::widen::<3>(group).mul(L::splat(scale[3])).store(to.add(3 * dim));
                }
            }
        }
    }
}

/// Values whose dimension is no multiple of 16.
fn irregular_values(view: &HeadView<'_>, tokens: Range<usize>, out: &mut [f32]) {
    let (dim, stride) = (view.coding.dim, view.coding.dim.next_multiple_of(16));
    for (token, out) in tokens.zip(out.chunks_exact_mut(stride)) {
        view.coding.read_rotated(view.codes, view.scales, token, &mut out[..dim]);
        out[dim..].fill(0.0);
    }
}

/// Values that are the first `value_dim` coordinates of a decoded key tile (`[tokens/16][dim][16]`).
pub(crate) fn values_from_keys(keys: &[f32], key_dim: usize, value_dim: usize, out: &mut [f32]) {
    let stride = value_dim.next_multiple_of(16);
    for (keys, out) in keys.chunks_exact(16 * key_dim).zip(out.chunks_exact_mut(16 * stride)) {
        for (token, out) in out.chunks_exact_mut(stride).enumerate() {
            for (coord, out) in out[..value_dim].iter_mut().enumerate() {
                *out = keys[coord * 16 + token];
            }
            out[value_dim..].fill(0.0);
        }
    }
}

/// x ← H·x for a power of two of at least 16 coordinates: narrow stages in registers, wide ones
/// between them.
///
/// # Safety
/// The processor must have the instructions of `L`.
#[inline(always)]
unsafe fn hadamard<L: Lanes>(x: &mut [f32]) {
    assert!(x.len().is_power_of_two() && x.len() >= 16, "{} coordinates", x.len());
    let (vectors, p) = (x.len() / 16, x.as_mut_ptr());
    // SAFETY: vectors below `vectors` lie inside `x`.
    unsafe {
        let norm = L::splat(1.0 / (x.len() as f32).sqrt());
        for i in 0..vectors {
            L::load(p.add(16 * i)).mul(norm).hadamard().store(p.add(16 * i));
        }
        let mut half = 1;
        while half < vectors {
            for i in (0..vectors).filter(|i| i & half == 0) {
                let (p, q) = (p.add(16 * i), p.add(16 * (i + half)));
                let (a, b) = (L::load(p), L::load(q));
                a.add(b).store(p);
                a.sub(b).store(q);
            }
            half *= 2;
        }
    }
}

/// Rotates rows (`[rows, dim]`, `stride` apart) into or out of the basis of `side`.
///
/// # Safety
/// The processor must have the instructions of `L`.
#[inline(always)]
pub(crate) unsafe fn rotate_rows<L: Lanes>(
    turn: Turn,
    side: Side,
    dim: usize,
    stride: usize,
    x: &mut [f32],
) {
    for row in x.chunks_mut(stride) {
        let row = &mut row[..dim];
        match turn {
            Turn::Into => negate(side, row),
            Turn::Back => {}
        }
        // SAFETY: the caller's.
        unsafe { hadamard::<L>(row) };
        match turn {
            Turn::Into => {}
            Turn::Back => negate(side, row),
        }
    }
}

/// Direction of a change of basis.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Turn {
    /// From the plain basis to the rotated one.
    Into,
    /// Back to the plain basis.
    Back,
}
