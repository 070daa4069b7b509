//! Writing and reading single head vectors of one head's codes and scales.
//!
//! These are the scalar definitions of every format: what appends write, and what tests, saved
//! caches and the MLX kernel set read back. Attention kernels read the same bytes in bulk.

use super::format::KvFormat;
use super::layout::{
    float_key_index, int8_key_index, int8_value_index, turbo_key_position, turbo_value_position,
};
use crate::turbo::{self, ScaleRule, Side, TurboBits};
use half::{bf16, f16};

/// The largest int8 code; the smallest is its negative.
pub const INT8_LARGEST: f32 = 127.0;

/// A coordinate of more than this many scales would clip: its vector takes the next fp16 as scale.
pub const INT8_CLIPS: f32 = 127.5;

/// SideCoding of one side of a head.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SideCoding {
    pub(crate) side: Side,
    pub(crate) format: KvFormat,
    pub(crate) dim: usize,
    pub(crate) rule: ScaleRule,
}

/// Room for one vector while it is quantised.
pub(crate) struct Work {
    values: Vec<f32>,
    codes: Vec<u8>,
}

impl Work {
    pub(crate) fn new(dim: usize) -> Self {
        Self { values: vec![0.0; dim], codes: vec![0; dim] }
    }
}

impl SideCoding {
    /// Index of a float element of this side.
    #[inline(always)]
    fn float_index(&self, token: usize, coord: usize) -> usize {
        match self.side {
            Side::Key => float_key_index(self.dim, token, coord),
            Side::Value => token * self.dim + coord,
        }
    }

    #[inline(always)]
    fn int8_index(&self, token: usize, coord: usize) -> usize {
        match self.side {
            Side::Key => int8_key_index(self.dim, token, coord),
            Side::Value => int8_value_index(self.dim, token, coord),
        }
    }

    #[inline(always)]
    fn turbo_position(&self, token: usize, coord: usize) -> (usize, usize) {
        match self.side {
            Side::Key => turbo_key_position(self.dim, token, coord),
            Side::Value => turbo_value_position(token, coord),
        }
    }

    /// Offset of an int8 code in storage.
    #[inline(always)]
    fn int8_offset(&self) -> u8 {
        match self.side {
            Side::Key => 128,
            Side::Value => 0,
        }
    }

    /// Stores `x` (`[dim]`) as `token` of a head with these code and scale bytes.
    #[inline(always)]
    pub(crate) fn write(
        &self,
        codes: &mut [u8],
        scales: &mut [u8],
        token: usize,
        x: &[f32],
        work: &mut Work,
    ) {
        match self.format {
            KvFormat::F32 => self.write_floats(codes, token, x, f32::to_ne_bytes),
            KvFormat::F16 => {
                self.write_floats(codes, token, x, |x| f16::from_f32(x).to_ne_bytes());
            }
            KvFormat::Bf16 => {
                self.write_floats(codes, token, x, |x| bf16::from_f32(x).to_ne_bytes());
            }
            KvFormat::Int8 => {
                let scale = int8_scale(x);
                let inverse = inverse(scale.to_f32());
                let offset = self.int8_offset();
                for (coord, &x) in x.iter().enumerate() {
                    let code = to_int8(x * inverse);
                    codes[self.int8_index(token, coord)] = code.cast_unsigned() ^ offset;
                }
                put_scale(scales, token, scale);
            }
            KvFormat::Turbo4 => self.write_turbo(TurboBits::Four, codes, scales, token, x, work),
            KvFormat::Turbo3 => self.write_turbo(TurboBits::Three, codes, scales, token, x, work),
        }
    }

    #[inline(always)]
    fn write_floats<const N: usize>(
        &self,
        codes: &mut [u8],
        token: usize,
        x: &[f32],
        bytes: impl Fn(f32) -> [u8; N],
    ) {
        for (coord, &x) in x.iter().enumerate() {
            let at = self.float_index(token, coord) * N;
            codes[at..at + N].copy_from_slice(&bytes(x));
        }
    }

    #[inline(always)]
    fn write_turbo(
        &self,
        bits: TurboBits,
        codes: &mut [u8],
        scales: &mut [u8],
        token: usize,
        x: &[f32],
        work: &mut Work,
    ) {
        work.values.copy_from_slice(x);
        let scale = turbo::encode(self.side, bits, self.rule, &mut work.values, &mut work.codes);
        put_scale(scales, token, f16::from_f32(scale));
        for (coord, &code) in work.codes.iter().enumerate() {
            let (group, byte) = self.turbo_position(token, coord);
            match bits {
                TurboBits::Four => put_turbo4(codes, group, byte, code),
                TurboBits::Three => put_turbo3(codes, group, byte, code),
            }
        }
    }

    /// Reads `token` into `out` (`[dim]`). A Turbo vector is left in its rotated basis.
    pub(crate) fn read_rotated(&self, codes: &[u8], scales: &[u8], token: usize, out: &mut [f32]) {
        let float = |coord, size| {
            let at = self.float_index(token, coord) * size;
            &codes[at..at + size]
        };
        match self.format {
            KvFormat::F32 => fill(out, |coord| f32::from_bits(word32(float(coord, 4)))),
            KvFormat::F16 => fill(out, |coord| f16::from_bits(word16(float(coord, 2))).to_f32()),
            KvFormat::Bf16 => fill(out, |coord| bf16::from_bits(word16(float(coord, 2))).to_f32()),
            KvFormat::Int8 => {
                let scale = get_scale(scales, token);
                let offset = self.int8_offset();
                fill(out, |coord| {
                    let code = codes[self.int8_index(token, coord)] ^ offset;
                    f32::from(code.cast_signed()) * scale
                });
            }
            KvFormat::Turbo4 => self.read_turbo(TurboBits::Four, codes, scales, token, out),
            KvFormat::Turbo3 => self.read_turbo(TurboBits::Three, codes, scales, token, out),
        }
    }

    /// Reads `token` into `out` (`[dim]`) as the attention kernels understand it.
    pub(crate) fn read(&self, codes: &[u8], scales: &[u8], token: usize, out: &mut [f32]) {
        self.read_rotated(codes, scales, token, out);
        if self.format.turbo().is_some() {
            turbo::rotate_back(self.side, out);
        }
    }

    fn read_turbo(
        &self,
        bits: TurboBits,
        codes: &[u8],
        scales: &[u8],
        token: usize,
        out: &mut [f32],
    ) {
        let step = turbo::level_step(bits, self.dim) * get_scale(scales, token);
        let book = bits.codebook();
        fill(out, |coord| {
            let (group, byte) = self.turbo_position(token, coord);
            let code = match bits {
                TurboBits::Four => get_turbo4(codes, group, byte),
                TurboBits::Three => get_turbo3(codes, group, byte),
            };
            f32::from(book.level(code)) * step
        });
    }
}

fn fill(out: &mut [f32], value: impl Fn(usize) -> f32) {
    for (coord, out) in out.iter_mut().enumerate() {
        *out = value(coord);
    }
}

/// The fp16 scale of an int8 vector: largest magnitude over 127, rounded so that nothing clips.
#[inline(always)]
fn int8_scale(x: &[f32]) -> f16 {
    if x.iter().any(|x| x.is_nan()) {
        return f16::NAN;
    }
    let largest = x.iter().fold(0.0f32, |acc, x| acc.max(x.abs()));
    let scale = f16::from_f32(largest / INT8_LARGEST);
    // fp16 below 6.1e-5 is coarse: a scale rounded down would clip the largest coordinate.
    let clips = largest > scale.to_f32() * INT8_CLIPS;
    if clips && scale < f16::MAX { f16::from_bits(scale.to_bits() + 1) } else { scale }
}

/// The nearest of −127 to 127, of two equally near ones the even one.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "clamped")]
fn to_int8(x: f32) -> i8 {
    x.round_ties_even().clamp(-INT8_LARGEST, INT8_LARGEST) as i8
}

#[inline(always)]
fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

#[inline(always)]
fn put_scale(scales: &mut [u8], token: usize, scale: f16) {
    scales[2 * token..2 * token + 2].copy_from_slice(&scale.to_ne_bytes());
}

#[inline(always)]
fn get_scale(scales: &[u8], token: usize) -> f32 {
    f16::from_bits(word16(&scales[2 * token..2 * token + 2])).to_f32()
}

fn word16(bytes: &[u8]) -> u16 {
    u16::from_ne_bytes([bytes[0], bytes[1]])
}

fn word32(bytes: &[u8]) -> u32 {
    u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

#[inline(always)]
fn put_turbo4(codes: &mut [u8], group: usize, byte: usize, code: u8) {
    let shift = 4 * (group % 2);
    let slot = &mut codes[group / 2 * 64 + byte];
    *slot = *slot & !(0xF << shift) | code << shift;
}

fn get_turbo4(codes: &[u8], group: usize, byte: usize) -> u8 {
    codes[group / 2 * 64 + byte] >> (4 * (group % 2)) & 0xF
}

#[inline(always)]
fn put_turbo3(codes: &mut [u8], group: usize, byte: usize, code: u8) {
    let unit = &mut codes[group / 4 * 96..][..96];
    let shift = 2 * (group % 4);
    unit[byte] = unit[byte] & !(3 << shift) | (code & 3) << shift;
    let sign = &mut unit[64 + group % 4 * 8 + byte / 8];
    *sign = *sign & !(1 << (byte % 8)) | code >> 2 << (byte % 8);
}

fn get_turbo3(codes: &[u8], group: usize, byte: usize) -> u8 {
    let unit = &codes[group / 4 * 96..][..96];
    let magnitude = unit[byte] >> (2 * (group % 4)) & 3;
    let sign = unit[64 + group % 4 * 8 + byte / 8] >> (byte % 8) & 1;
    magnitude | sign << 2
}
