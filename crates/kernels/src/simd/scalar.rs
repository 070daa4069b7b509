//! The portable implementation: plain arrays, for every processor and as a second opinion.
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "codes, digits and exponents are within the ranges that the trait demands"
)]

use super::tables::Places;
use super::{Kernel, LANES, Simd};
use crate::attention::NoProducts;
use half::{bf16, f16};

/// Token of the portable implementation.
#[derive(Clone, Copy)]
pub(super) struct Scalar;

/// Runs `kernel` with portable code.
#[inline(never)]
pub(super) fn run<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Scalar)
}

type F = [f32; LANES];
type I = [i32; LANES];

/// Applies `f` lane by lane.
#[inline(always)]
fn map<A: Copy, B>(a: [A; LANES], f: impl Fn(A) -> B) -> [B; LANES] {
    a.map(f)
}

/// Applies `f` to pairs of lanes.
#[inline(always)]
fn zip<A: Copy, B: Copy, C>(a: [A; LANES], b: [B; LANES], f: impl Fn(A, B) -> C) -> [C; LANES] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

impl Simd for Scalar {
    const PORTABLE: bool = true;
    const WIDE_TILES: bool = false;
    const ATTENTION_ROWS: usize = 2;
    const ATTENTION_VECTORS: usize = 1;
    const ATTENTION_LEAD_BYTES: usize = 0;
    type CodeProducts = NoProducts;
    type F = F;
    type I = I;
    type B = [u8; 64];
    type Table = F;

    fn outline<K: Kernel>(self, kernel: K) -> K::Output {
        run(kernel)
    }
    fn splat(self, value: f32) -> F {
        [value; LANES]
    }
    fn add(self, a: F, b: F) -> F {
        zip(a, b, |a, b| a + b)
    }
    fn sub(self, a: F, b: F) -> F {
        zip(a, b, |a, b| a - b)
    }
    fn mul(self, a: F, b: F) -> F {
        zip(a, b, |a, b| a * b)
    }
    fn div(self, a: F, b: F) -> F {
        zip(a, b, |a, b| a / b)
    }
    fn fma(self, a: F, b: F, c: F) -> F {
        // Two roundings: `f32::mul_add` is a library call where there is no FMA instruction.
        zip(zip(a, b, |a, b| a * b), c, |ab, c| ab + c)
    }
    fn max(self, a: F, b: F) -> F {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    fn min(self, a: F, b: F) -> F {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    fn abs(self, a: F) -> F {
        map(a, f32::abs)
    }
    fn pow2(self, n: I) -> F {
        map(n, |n| f32::from_bits(((n + 127) << 23) as u32))
    }
    fn exp2(self, x: F) -> F {
        map(x, f32::exp2)
    }
    fn hadamard(self, x: F) -> F {
        let mut x = x;
        for half in [1, 2, 4, 8] {
            x = std::array::from_fn(|i| {
                let first = x[i & !half];
                let second = x[i | half];
                if i & half == 0 { first + second } else { first - second }
            });
        }
        x
    }
    fn select(self, from: usize, to: usize, a: F, b: F) -> F {
        std::array::from_fn(|i| if (from..to).contains(&i) { a[i] } else { b[i] })
    }
    fn sum(self, a: F) -> f32 {
        let mut width = LANES / 2;
        let mut a = a;
        while width > 0 {
            for i in 0..width {
                a[i] += a[i + width];
            }
            width /= 2;
        }
        a[0]
    }
    fn max_lane(self, a: F) -> f32 {
        a.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
    fn to_int(self, a: F) -> I {
        map(a, |a| a.round_ties_even() as i32)
    }
    fn to_float(self, a: I) -> F {
        map(a, |a| a as f32)
    }
    fn float_bits(self, a: F) -> I {
        map(a, |a| a.to_bits() as i32)
    }
    fn bits_float(self, a: I) -> F {
        map(a, |a| f32::from_bits(a as u32))
    }
    fn unbias(self, sum: I, bias: f32, scale: F, _offset: F) -> F {
        // Without a fused product the difference must come first.
        zip(self.sub(self.bits_float(sum), self.splat(bias)), scale, |sum, scale| sum * scale)
    }
    fn zero_int(self) -> I {
        [0; LANES]
    }
    fn dot<const BITS: u32>(self, acc: I, u: [u8; 64], s: [u8; 64]) -> I {
        let mut acc = acc;
        for (lane, acc) in acc.iter_mut().enumerate() {
            for i in 4 * lane..4 * lane + 4 {
                *acc += i32::from(u[i]) * i32::from(s[i] as i8);
            }
        }
        acc
    }
    fn table(self, values: F) -> F {
        values
    }
    fn expand<const NARROW: bool>(self, table: &F, places: Places, unit: usize) -> F {
        map(*places.lanes(unit), |lane| table[lane as usize % LANES])
    }
    unsafe fn load(self, ptr: *const f32) -> F {
        // SAFETY: the caller keeps 64 bytes readable at `ptr`.
        unsafe { ptr.cast::<F>().read_unaligned() }
    }
    unsafe fn store(self, ptr: *mut f32, value: F) {
        // SAFETY: the caller keeps 64 bytes writable at `ptr`.
        unsafe { ptr.cast::<F>().write_unaligned(value) }
    }
    unsafe fn load_f16(self, ptr: *const u8) -> F {
        // SAFETY: the caller keeps 32 bytes readable at `ptr`.
        map(unsafe { ptr.cast::<[u16; LANES]>().read_unaligned() }, |h| f16::from_bits(h).to_f32())
    }
    unsafe fn load_bf16(self, ptr: *const u8) -> F {
        // SAFETY: the caller keeps 32 bytes readable at `ptr`.
        map(unsafe { ptr.cast::<[u16; LANES]>().read_unaligned() }, |h| bf16::from_bits(h).to_f32())
    }
    unsafe fn load_bytes(self, ptr: *const u8) -> [u8; 64] {
        // SAFETY: the caller keeps 64 bytes readable at `ptr`.
        unsafe { ptr.cast::<[u8; 64]>().read_unaligned() }
    }
    unsafe fn store_bytes(self, ptr: *mut u8, value: [u8; 64]) {
        // SAFETY: the caller keeps 64 bytes writable at `ptr`.
        unsafe { ptr.cast::<[u8; 64]>().write_unaligned(value) }
    }
    unsafe fn splat_quad(self, ptr: *const u8) -> [u8; 64] {
        // SAFETY: the caller keeps 4 bytes readable at `ptr`.
        let quad = unsafe { ptr.cast::<[u8; 4]>().read_unaligned() };
        std::array::from_fn(|i| quad[i % 4])
    }
    unsafe fn unpack<const BITS: u32>(
        self,
        ptr: *const u8,
        _readable: usize,
    ) -> ([u8; 64], [u8; 64]) {
        let bytes = BITS as usize;
        let mask = u64::from(u8::MAX >> (8 - BITS));
        let mut even = [0; 64];
        let mut odd = [0; 64];
        for lane in 0..LANES {
            let mut codes = [0; 8];
            // SAFETY: lane `l` of 16 reads bytes `BITS·l .. BITS·(l+1)` of the 16·BITS readable.
            unsafe {
                ptr.add(lane * bytes).copy_to_nonoverlapping(codes.as_mut_ptr(), bytes);
            }
            let codes = u64::from_le_bytes(codes);
            for i in 0..4 {
                even[4 * lane + i] = (codes >> (bytes * 2 * i) & mask) as u8;
                odd[4 * lane + i] = (codes >> (bytes * (2 * i + 1)) & mask) as u8;
            }
        }
        (even, odd)
    }
    fn byte_table(self, entries: &[u8; 16]) -> [u8; 64] {
        std::array::from_fn(|i| entries[i % 16])
    }
    fn lookup(self, table: [u8; 64], indices: [u8; 64]) -> [u8; 64] {
        indices.map(|index| table[usize::from(index % 16)])
    }
    fn flip_sign(self, bytes: [u8; 64]) -> [u8; 64] {
        bytes.map(|byte| byte ^ 128)
    }
    fn bit_field<const SHIFT: u32>(self, bytes: [u8; 64], mask: u8) -> [u8; 64] {
        bytes.map(|byte| byte >> SHIFT & mask)
    }
    fn add_where(self, bytes: [u8; 64], mask: u64, value: u8) -> [u8; 64] {
        std::array::from_fn(|i| {
            let added = if mask >> i & 1 == 1 { value } else { 0 };
            bytes[i].wrapping_add(added)
        })
    }
    fn byte_to_float<const COLUMN: u32>(self, bytes: [u8; 64]) -> F {
        std::array::from_fn(|i| f32::from(bytes[4 * i + COLUMN as usize].cast_signed()))
    }
    unsafe fn store_low_bytes(self, ptr: *mut u8, ints: I) {
        // SAFETY: the caller keeps 16 bytes writable at `ptr`.
        unsafe { ptr.cast::<[u8; LANES]>().write_unaligned(map(ints, |i| i as u8)) }
    }
    fn times_256(self, a: I) -> I {
        map(a, |a| a << 8)
    }
    fn split_digit(self, a: I) -> (I, I) {
        let high = map(a, |a| a.wrapping_add(128) >> 8);
        (high, zip(a, high, |a, high| a.wrapping_sub(high << 8)))
    }
    unsafe fn transpose(self, rows: &[*const u32; LANES], dst: *mut u32, dst_stride: usize) {
        for (i, row) in rows.iter().enumerate() {
            for col in 0..LANES {
                // SAFETY: both are inside the rows and columns that the caller keeps valid.
                unsafe {
                    let value = row.add(col).read_unaligned();
                    dst.add(col * dst_stride + i).write_unaligned(value);
                }
            }
        }
    }
}
