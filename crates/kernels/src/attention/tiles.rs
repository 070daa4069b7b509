//! Decoding a tile of keys or values of any format to f32, for the matrix product.
//!
//! Turbo vectors stay in their rotated basis. A decoded key tile is `[tokens/16][dim][16]`, a
//! decoded value tile `[tokens][stride]` with the stride a multiple of 16.

use super::codec::{Codec, with_codec};
use super::matmul::Element;
use crate::kv::block::HeadView;
use crate::kv::{KV_BLOCK_TOKENS, KvFormat};
use crate::simd::{Kernel, LANES, Simd};
use crate::turbo::{Side, level_step, negate};
use half::{bf16, f16};
use std::ops::Range;

/// Elements of a head's float codes. Blocks are 64-byte aligned and heads a multiple of 256
/// elements long, so the cast cannot fail on a block of ours.
pub(super) fn elements<T: bytemuck::AnyBitPattern>(codes: &[u8]) -> &[T] {
    bytemuck::cast_slice(codes)
}

/// Value of one level of a code, without its vector's scale, and the level of each code.
pub(super) fn meaning(view: &HeadView<'_>) -> (f32, [i8; 16]) {
    match view.coding.format.turbo() {
        Some(bits) => (level_step(bits, view.coding.dim), bits.codebook().shuffle_table()),
        None => (1.0, [0; 16]),
    }
}

/// Decodes the keys or values `tokens` (whole sixteens) of `view`, by its side, into `out`.
pub(super) struct Decode<'a> {
    pub(super) view: &'a HeadView<'a>,
    pub(super) tokens: Range<usize>,
    pub(super) out: &'a mut [f32],
}

impl Decode<'_> {
    /// Decodes the formats and dimensions that no vector kernel has; returns whether it did.
    pub(super) fn decode_irregular(&mut self) -> bool {
        let dim = self.view.coding.dim;
        match self.view.coding.side {
            Side::Key if self.view.coding.format != KvFormat::Int8 || dim.is_multiple_of(4) => {
                return false;
            }
            Side::Value if dim.is_multiple_of(LANES) => return false,
            Side::Key => irregular_keys(self.view, self.tokens.clone(), self.out),
            Side::Value => irregular_values(self.view, self.tokens.clone(), self.out),
        }
        true
    }
}

impl Kernel for Decode<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { view, tokens, out } = self;
        let dim = view.coding.dim;
        assert!(tokens.start.is_multiple_of(LANES) && tokens.end.is_multiple_of(LANES));
        let out = &mut out[..tokens.len() * dim];
        let range = tokens.start * dim..tokens.end * dim;
        match (view.coding.format, view.coding.side) {
            (KvFormat::F32, _) => floats::<S, f32>(simd, &elements(view.codes)[range], out),
            (KvFormat::F16, _) => floats::<S, f16>(simd, &elements(view.codes)[range], out),
            (KvFormat::Bf16, _) => floats::<S, bf16>(simd, &elements(view.codes)[range], out),
            (format, Side::Key) => {
                with_codec!(format, C => key_codes::<S, C>(simd, view, tokens, out));
            }
            (format, Side::Value) => {
                with_codec!(format, C => value_codes::<S, C>(simd, view, tokens, out));
            }
        }
    }
}

#[inline(always)]
fn floats<S: Simd, T: Element>(simd: S, from: &[T], to: &mut [f32]) {
    assert!(from.len() == to.len() && to.len().is_multiple_of(LANES), "whole vectors");
    for (from, to) in from.as_chunks::<LANES>().0.iter().zip(to.as_chunks_mut::<LANES>().0) {
        // SAFETY: both chunks have 16 elements.
        unsafe { simd.store(to.as_mut_ptr(), T::load(simd, from.as_ptr())) };
    }
}

/// Decodes keys of a multiple of 4 coordinates.
#[inline(always)]
fn key_codes<S: Simd, C: Codec>(
    simd: S,
    view: &HeadView<'_>,
    tokens: Range<usize>,
    out: &mut [f32],
) {
    let dim = view.coding.dim;
    let (step, table) = meaning(view);
    let table = simd.byte_table(&table.map(i8::cast_unsigned));
    let tile_bytes = dim / 4 / C::GROUPS * C::UNIT_BYTES;
    let codes = &view.codes[tokens.start / 16 * tile_bytes..tokens.end / 16 * tile_bytes];
    let scales = elements::<f16>(view.scales)[tokens].as_chunks::<LANES>().0;
    let int8 = C::GROUPS == 1;
    let tiles = codes.chunks_exact(tile_bytes).zip(scales);
    for ((codes, scales), out) in tiles.zip(out.chunks_exact_mut(LANES * dim)) {
        // SAFETY: `scales` has 16 elements.
        let scale = unsafe { simd.load_f16(scales.as_ptr().cast()) };
        let scale = simd.mul(scale, simd.splat(step));
        let units = codes.chunks_exact(C::UNIT_BYTES);
        for (unit, out) in units.zip(out.chunks_exact_mut(64 * C::GROUPS)) {
            // SAFETY: the chunk is a unit.
            let groups = unsafe { C::unit(simd, unit.as_ptr(), table) };
            for (group, out) in groups.into_iter().zip(out.as_chunks_mut::<64>().0) {
                let group = if int8 { simd.flip_sign(group) } else { group };
                let target = out.as_mut_ptr();
                // SAFETY: the chunk has room for four vectors of 16.
                unsafe {
                    simd.store(target, simd.mul(simd.byte_to_float::<0>(group), scale));
                    simd.store(target.add(16), simd.mul(simd.byte_to_float::<1>(group), scale));
                    simd.store(target.add(32), simd.mul(simd.byte_to_float::<2>(group), scale));
                    simd.store(target.add(48), simd.mul(simd.byte_to_float::<3>(group), scale));
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

/// Decodes values of a multiple of 16 coordinates to `[tokens, dim]`.
#[inline(always)]
fn value_codes<S: Simd, C: Codec>(
    simd: S,
    view: &HeadView<'_>,
    tokens: Range<usize>,
    out: &mut [f32],
) {
    let dim = view.coding.dim;
    assert!(dim.is_multiple_of(LANES) && out.len() == tokens.len() * dim);
    let (step, table) = meaning(view);
    let table = simd.byte_table(&table.map(i8::cast_unsigned));
    let mut scales = [0.0f32; KV_BLOCK_TOKENS];
    let stored = elements::<f16>(view.scales)[tokens.clone()].as_chunks::<LANES>().0;
    for (to, from) in scales.as_chunks_mut::<LANES>().0.iter_mut().zip(stored) {
        // SAFETY: both chunks have 16 elements.
        unsafe {
            let scale = simd.load_f16(from.as_ptr().cast());
            simd.store(to.as_mut_ptr(), simd.mul(scale, simd.splat(step)));
        }
    }
    for chunk in 0..dim.div_ceil(32) {
        let wide = (dim - 32 * chunk).min(32) / 16;
        let quad_bytes = wide * C::UNIT_BYTES / C::GROUPS;
        let start = chunk * KV_BLOCK_TOKENS / 4 * 2 * C::UNIT_BYTES / C::GROUPS;
        let codes =
            &view.codes[start + tokens.start / 4 * quad_bytes..][..tokens.len() / 4 * quad_bytes];
        for (index, unit) in codes.chunks_exact(C::UNIT_BYTES).enumerate() {
            // SAFETY: the chunk is a unit.
            let groups = unsafe { C::unit(simd, unit.as_ptr(), table) };
            for (i, group) in (index * C::GROUPS..).zip(groups.into_iter().take(C::GROUPS)) {
                // Group i of this chunk is quad i / wide, sixteen i % wide.
                let token = i / wide * 4;
                let scale = &scales[token..token + 4];
                // SAFETY: token `token + 3` is one of `tokens`, which are whole quads, so its
                // sixteen coordinates lie inside `out`, whose length was asserted.
                unsafe {
                    let to = out.as_mut_ptr().add(token * dim + chunk * 32 + i % wide * 16);
                    let row = simd.byte_to_float::<0>(group);
                    simd.store(to, simd.mul(row, simd.splat(scale[0])));
                    let row = simd.byte_to_float::<1>(group);
                    simd.store(to.add(dim), simd.mul(row, simd.splat(scale[1])));
                    let row = simd.byte_to_float::<2>(group);
                    simd.store(to.add(2 * dim), simd.mul(row, simd.splat(scale[2])));
                    let row = simd.byte_to_float::<3>(group);
                    simd.store(to.add(3 * dim), simd.mul(row, simd.splat(scale[3])));
                }
            }
        }
    }
}

/// Values whose dimension is no multiple of 16.
fn irregular_values(view: &HeadView<'_>, tokens: Range<usize>, out: &mut [f32]) {
    let dim = view.coding.dim;
    let stride = dim.next_multiple_of(16);
    for (token, out) in tokens.zip(out.chunks_exact_mut(stride)) {
        view.coding.read_rotated(view.codes, view.scales, token, &mut out[..dim]);
        out[dim..].fill(0.0);
    }
}

/// Values that are the first `value_dim` coordinates of a decoded key tile (`[tokens/16][dim][16]`).
pub(super) fn values_from_keys(keys: &[f32], key_dim: usize, value_dim: usize, out: &mut [f32]) {
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

/// Rotates rows (`[rows, dim]`, `stride` apart) into or out of the basis of `side`.
pub(super) struct Rotate<'a> {
    pub(super) change: BasisChange,
    pub(super) side: Side,
    pub(super) dim: usize,
    pub(super) stride: usize,
    pub(super) x: &'a mut [f32],
}

/// Direction of a change of basis.
#[derive(Clone, Copy, Debug)]
pub(super) enum BasisChange {
    /// From the plain basis to the rotated one.
    Into,
    /// Back to the plain basis.
    Back,
}

impl Kernel for Rotate<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for row in self.x.chunks_mut(self.stride) {
            let row = &mut row[..self.dim];
            match self.change {
                BasisChange::Into => {
                    negate(self.side, row);
                    hadamard(simd, row);
                }
                BasisChange::Back => {
                    hadamard(simd, row);
                    negate(self.side, row);
                }
            }
        }
    }
}

/// x ← H·x for a power of two of at least 16 coordinates: narrow stages in registers, wide ones
/// between them.
#[inline(always)]
fn hadamard<S: Simd>(simd: S, x: &mut [f32]) {
    assert!(x.len().is_power_of_two() && x.len() >= LANES, "{} coordinates", x.len());
    let norm = simd.splat(1.0 / (x.len() as f32).sqrt());
    let vectors = x.as_chunks_mut::<LANES>().0;
    for vector in vectors.iter_mut() {
        // SAFETY: the vector has 16 elements.
        unsafe {
            let scaled = simd.mul(simd.load(vector.as_ptr()), norm);
            simd.store(vector.as_mut_ptr(), simd.hadamard(scaled));
        }
    }
    let mut half = 1;
    while half < vectors.len() {
        for pair in vectors.chunks_exact_mut(2 * half) {
            let (first, second) = pair.split_at_mut(half);
            for (first, second) in first.iter_mut().zip(second) {
                // SAFETY: both vectors have 16 elements.
                unsafe {
                    let a = simd.load(first.as_ptr());
                    let b = simd.load(second.as_ptr());
                    simd.store(first.as_mut_ptr(), simd.add(a, b));
                    simd.store(second.as_mut_ptr(), simd.sub(a, b));
                }
            }
        }
        half *= 2;
    }
}
