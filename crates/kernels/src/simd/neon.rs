//! AArch64 Advanced SIMD: four registers per logical vector.

use super::tables::Places;
use super::{EXP2, Kernel, LANES, Simd, intrinsics};
use crate::attention::NoProducts;
use std::arch::aarch64::*;

/// Token of Advanced SIMD; made by [`run`] only.
#[derive(Clone, Copy)]
pub(super) struct Neon(());

/// Runs `kernel` with Advanced SIMD.
///
/// # Safety
/// The processor has the features enabled here.
#[inline(never)]
#[target_feature(enable = "neon")]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Neon(()))
}

type F = [float32x4_t; 4];
type I = [int32x4_t; 4];
type B = [uint8x16_t; 4];

/// Applies an intrinsic to the four registers of each argument.
macro_rules! each {
    ($op:expr; $($arg:expr),*) => {
        [$op($($arg[0]),*), $op($($arg[1]),*), $op($($arg[2]),*), $op($($arg[3]),*)]
    };
}

/// The even, then the odd bytes of each eight.
const EVEN_ODD: [u8; 16] = [0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15];

impl Simd for Neon {
    const WIDE_TILES: bool = false;
    /// Twenty of 32 registers are sums, four a row of keys or values.
    const ATTENTION_ROWS: usize = 5;
    const ATTENTION_VECTORS: usize = 1;
    const ATTENTION_LEAD_BYTES: usize = 0;
    /// A dot product of bytes takes about twelve instructions without `dotprod`, more than decoding
    /// the codes and multiplying floats.
    type CodeProducts = NoProducts;
    type F = F;
    type I = I;
    type B = B;
    type Table = uint8x16x4_t;

    #[inline(always)]
    fn outline<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: `self` proves the features that `run` enables.
        unsafe { run(kernel) }
    }

    intrinsics! {
        fn splat(value: f32) -> F { [vdupq_n_f32(value); 4] }
        fn add(a: F, b: F) -> F { each!(vaddq_f32; a, b) }
        fn sub(a: F, b: F) -> F { each!(vsubq_f32; a, b) }
        fn mul(a: F, b: F) -> F { each!(vmulq_f32; a, b) }
        fn div(a: F, b: F) -> F { each!(vdivq_f32; a, b) }
        fn fma(a: F, b: F, c: F) -> F { each!(vfmaq_f32; c, a, b) }
        fn max(a: F, b: F) -> F { each!(vmaxq_f32; a, b) }
        fn min(a: F, b: F) -> F { each!(vminq_f32; a, b) }
        fn abs(a: F) -> F { each!(vabsq_f32; a) }
        fn pow2(n: I) -> F { each!(pow2; n) }
        fn exp2(x: F) -> F { each!(exp2; x) }
        fn hadamard(x: F) -> F {
            let [a, b, c, d] = each!(hadamard4; x);
            let low = vaddq_f32(a, b);
            let low_difference = vsubq_f32(a, b);
            let high = vaddq_f32(c, d);
            let high_difference = vsubq_f32(c, d);
            [
                vaddq_f32(low, high),
                vaddq_f32(low_difference, high_difference),
                vsubq_f32(low, high),
                vsubq_f32(low_difference, high_difference),
            ]
        }
        fn select(from: usize, to: usize, a: F, b: F) -> F {
            let from = vdupq_n_u32(from.min(LANES) as u32);
            let to = vdupq_n_u32(to.min(LANES) as u32);
            [
                pick_lanes(0, from, to, a[0], b[0]),
                pick_lanes(4, from, to, a[1], b[1]),
                pick_lanes(8, from, to, a[2], b[2]),
                pick_lanes(12, from, to, a[3], b[3]),
            ]
        }
        fn sum(a: F) -> f32 {
            vaddvq_f32(vaddq_f32(vaddq_f32(a[0], a[2]), vaddq_f32(a[1], a[3])))
        }
        fn max_lane(a: F) -> f32 {
            vmaxvq_f32(vmaxq_f32(vmaxq_f32(a[0], a[2]), vmaxq_f32(a[1], a[3])))
        }
        fn to_int(a: F) -> I { each!(vcvtnq_s32_f32; a) }
        fn to_float(a: I) -> F { each!(vcvtq_f32_s32; a) }
        fn float_bits(a: F) -> I { each!(vreinterpretq_s32_f32; a) }
        fn bits_float(a: I) -> F { each!(vreinterpretq_f32_s32; a) }
        fn zero_int() -> I { [vdupq_n_s32(0); 4] }
        fn table(values: F) -> uint8x16x4_t {
            let [a, b, c, d] = each!(vreinterpretq_u8_f32; values);
            uint8x16x4_t(a, b, c, d)
        }
        fn byte_table(entries: &[u8; 16]) -> B { [vld1q_u8(entries.as_ptr()); 4] }
        fn lookup(table: B, indices: B) -> B { each!(vqtbl1q_u8; table, indices) }
        fn flip_sign(bytes: B) -> B { each!(flip_sign; bytes) }
        fn add_where(bytes: B, mask: u64, value: u8) -> B {
            [
                add_where(bytes[0], mask as u16, value),
                add_where(bytes[1], (mask >> 16) as u16, value),
                add_where(bytes[2], (mask >> 32) as u16, value),
                add_where(bytes[3], (mask >> 48) as u16, value),
            ]
        }
        fn times_256(a: I) -> I { each!(vshlq_n_s32::<8>; a) }
        fn split_digit(a: I) -> (I, I) {
            let high = each!(high_digit; a);
            (high, each!(low_digit; a, high))
        }
    }

    #[inline(always)]
    fn bit_field<const SHIFT: u32>(self, bytes: B, mask: u8) -> B {
        // SAFETY: `self` proves Advanced SIMD; registers only.
        unsafe {
            let count = vdupq_n_s8(-(SHIFT as i8));
            let mask = vdupq_n_u8(mask);
            [
                vandq_u8(vshlq_u8(bytes[0], count), mask),
                vandq_u8(vshlq_u8(bytes[1], count), mask),
                vandq_u8(vshlq_u8(bytes[2], count), mask),
                vandq_u8(vshlq_u8(bytes[3], count), mask),
            ]
        }
    }
    #[inline(always)]
    fn byte_to_float<const COLUMN: u32>(self, bytes: B) -> F {
        // SAFETY: `self` proves Advanced SIMD; registers only.
        unsafe { each!(byte_to_float::<COLUMN>; bytes) }
    }
    #[inline(always)]
    fn expand<const NARROW: bool>(self, table: &uint8x16x4_t, places: Places, unit: usize) -> F {
        let lanes = places.lanes(unit).as_ptr();
        // SAFETY: `self` proves NEON; the row has 64 bytes.
        unsafe {
            [
                pick(*table, lanes),
                pick(*table, lanes.add(4)),
                pick(*table, lanes.add(8)),
                pick(*table, lanes.add(12)),
            ]
        }
    }
    #[inline(always)]
    fn dot<const BITS: u32>(self, acc: I, u: B, s: B) -> I {
        // SAFETY: `self` proves Advanced SIMD; registers only.
        unsafe { each!(dot; acc, u, s) }
    }
    #[inline(always)]
    unsafe fn load(self, ptr: *const f32) -> F {
        // SAFETY: the caller keeps 64 bytes readable at `ptr`.
        unsafe {
            [vld1q_f32(ptr), vld1q_f32(ptr.add(4)), vld1q_f32(ptr.add(8)), vld1q_f32(ptr.add(12))]
        }
    }
    #[inline(always)]
    unsafe fn store(self, ptr: *mut f32, value: F) {
        for (i, value) in value.into_iter().enumerate() {
            // SAFETY: the caller keeps 64 bytes writable at `ptr`.
            unsafe { vst1q_f32(ptr.add(4 * i), value) };
        }
    }
    #[inline(always)]
    unsafe fn load_f16(self, ptr: *const u8) -> F {
        let mut wide = [0.0f32; LANES];
        for (i, wide) in wide.iter_mut().enumerate() {
            // SAFETY: the caller keeps 32 bytes readable at `ptr`.
            *wide = unsafe { ptr.add(2 * i).cast::<half::f16>().read_unaligned() }.to_f32();
        }
        // SAFETY: 16 floats are readable.
        unsafe { self.load(wide.as_ptr()) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, ptr: *const u8) -> F {
        // SAFETY: the caller keeps 32 bytes readable at `ptr`; a bfloat16 is the upper half of an `f32`.
        unsafe {
            let low = vreinterpretq_u16_u8(vld1q_u8(ptr));
            let high = vreinterpretq_u16_u8(vld1q_u8(ptr.add(16)));
            [
                widen_bf16(vget_low_u16(low)),
                widen_bf16(vget_high_u16(low)),
                widen_bf16(vget_low_u16(high)),
                widen_bf16(vget_high_u16(high)),
            ]
        }
    }
    #[inline(always)]
    unsafe fn load_bytes(self, ptr: *const u8) -> B {
        // SAFETY: the caller keeps 64 bytes readable at `ptr`.
        unsafe {
            [vld1q_u8(ptr), vld1q_u8(ptr.add(16)), vld1q_u8(ptr.add(32)), vld1q_u8(ptr.add(48))]
        }
    }
    #[inline(always)]
    unsafe fn store_bytes(self, ptr: *mut u8, value: B) {
        for (i, value) in value.into_iter().enumerate() {
            // SAFETY: the caller keeps 64 bytes writable at `ptr`.
            unsafe { vst1q_u8(ptr.add(16 * i), value) };
        }
    }
    #[inline(always)]
    unsafe fn splat_quad(self, ptr: *const u8) -> B {
        // SAFETY: the caller keeps 4 bytes readable at `ptr`.
        unsafe { [vreinterpretq_u8_u32(vdupq_n_u32(ptr.cast::<u32>().read_unaligned())); 4] }
    }
    #[inline(always)]
    unsafe fn unpack<const BITS: u32>(self, ptr: *const u8, readable: usize) -> (B, B) {
        // SAFETY: the 4- and 8-bit arms read 16·BITS bytes. The others read 8 bytes from each
        // of 16 places BITS apart, so less than 16·BITS + 8 bytes, which are either readable
        // or have been copied.
        unsafe {
            match BITS {
                4 => {
                    let codes = self.load_bytes(ptr);
                    let even = each!(low_nibbles; codes);
                    (even, each!(vshrq_n_u8::<4>; codes))
                }
                8 => {
                    let low = self.load_bytes(ptr);
                    let high = self.load_bytes(ptr.add(64));
                    let (e0, o0) = split_dwords(even_odd(low[0]), even_odd(low[1]));
                    let (e1, o1) = split_dwords(even_odd(low[2]), even_odd(low[3]));
                    let (e2, o2) = split_dwords(even_odd(high[0]), even_odd(high[1]));
                    let (e3, o3) = split_dwords(even_odd(high[2]), even_odd(high[3]));
                    ([e0, e1, e2, e3], [o0, o1, o2, o3])
                }
                _ if readable >= 16 * BITS as usize + 8 => unpack_words::<BITS>(ptr),
                _ => {
                    let mut copy = [0u8; 136];
                    ptr.copy_to_nonoverlapping(copy.as_mut_ptr(), 16 * BITS as usize);
                    unpack_words::<BITS>(copy.as_ptr())
                }
            }
        }
    }
    #[inline(always)]
    unsafe fn store_low_bytes(self, ptr: *mut u8, ints: I) {
        // SAFETY: the caller keeps 16 bytes writable at `ptr`.
        unsafe {
            let low = vcombine_s16(vmovn_s32(ints[0]), vmovn_s32(ints[1]));
            let high = vcombine_s16(vmovn_s32(ints[2]), vmovn_s32(ints[3]));
            let bytes = vcombine_s8(vmovn_s16(low), vmovn_s16(high));
            vst1q_u8(ptr, vreinterpretq_u8_s8(bytes));
        }
    }
    #[inline(always)]
    unsafe fn transpose(self, rows: &[*const u32; LANES], dst: *mut u32, dst_stride: usize) {
        for block in 0..16 {
            let row = block / 4 * 4;
            let column = block % 4 * 4;
            // SAFETY: the 4×4 blocks are inside the rows and columns that the caller keeps valid.
            unsafe {
                let target = dst.add(column * dst_stride + row);
                transpose4(&rows[row..row + 4], column, target, dst_stride);
            }
        }
    }
}

/// Four bfloat16 as floats, whose upper halves they are.
///
/// # Safety
/// Advanced SIMD.
#[inline(always)]
unsafe fn widen_bf16(halves: uint16x4_t) -> float32x4_t {
    // SAFETY: registers only.
    unsafe { vreinterpretq_f32_u32(vshll_n_u16::<16>(halves)) }
}

/// # Safety
/// Advanced SIMD.
#[inline(always)]
unsafe fn pow2(n: int32x4_t) -> float32x4_t {
    // SAFETY: registers only.
    unsafe { vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(n, vdupq_n_s32(127)))) }
}

/// # Safety
/// Advanced SIMD.
#[inline(always)]
unsafe fn exp2(x: float32x4_t) -> float32x4_t {
    // SAFETY: registers only. `vmaxq_f32` keeps a NaN; below −126 the result is 2^−126, which is
    // 0 beside 1.
    unsafe {
        let x = vmaxq_f32(vdupq_n_f32(-126.0), x);
        let whole = vrndnq_f32(x);
        let fraction = vsubq_f32(x, whole);
        let mut sum = vdupq_n_f32(EXP2[5]);
        for coefficient in EXP2[..5].iter().rev() {
            sum = vfmaq_f32(vdupq_n_f32(*coefficient), sum, fraction);
        }
        let exponent = vshlq_n_s32::<23>(vcvtnq_s32_f32(whole));
        vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(sum), exponent))
    }
}

/// Walsh–Hadamard transform of four lanes. Each stage adds every lane's partner to the lane,
/// negated where the lane is the second of the pair.
///
/// # Safety
/// Advanced SIMD.
#[inline(always)]
unsafe fn hadamard4(x: float32x4_t) -> float32x4_t {
    const ODD: [u32; 4] = [0, u32::MAX, 0, u32::MAX];
    const UPPER: [u32; 4] = [0, 0, u32::MAX, u32::MAX];
    // SAFETY: both masks have four values; otherwise registers only.
    unsafe {
        let partner = vrev64q_f32(x);
        let x = vbslq_f32(vld1q_u32(ODD.as_ptr()), vsubq_f32(partner, x), vaddq_f32(x, partner));
        let partner = vextq_f32::<2>(x, x);
        vbslq_f32(vld1q_u32(UPPER.as_ptr()), vsubq_f32(partner, x), vaddq_f32(x, partner))
    }
}

/// `a` in the lanes whose number is in `from..to`, `b` in the others; the first lane is `first`.
///
/// # Safety
/// Advanced SIMD.
#[inline(always)]
unsafe fn pick_lanes(
    first: u32,
    from: uint32x4_t,
    to: uint32x4_t,
    a: float32x4_t,
    b: float32x4_t,
) -> float32x4_t {
    const NUMBERS: [u32; 4] = [0, 1, 2, 3];
    // SAFETY: `NUMBERS` has four values; otherwise registers only.
    unsafe {
        let lanes = vaddq_u32(vld1q_u32(NUMBERS.as_ptr()), vdupq_n_u32(first));
        vbslq_f32(vandq_u32(vcgeq_u32(lanes, from), vcltq_u32(lanes, to)), a, b)
    }
}

/// # Safety
/// Advanced SIMD.
#[inline(always)]
unsafe fn flip_sign(bytes: uint8x16_t) -> uint8x16_t {
    // SAFETY: registers only.
    unsafe { veorq_u8(bytes, vdupq_n_u8(128)) }
}

/// Adds `value` to the bytes whose bit is set in `mask`.
///
/// # Safety
/// Advanced SIMD.
#[inline(always)]
unsafe fn add_where(bytes: uint8x16_t, mask: u16, value: u8) -> uint8x16_t {
    const BITS: [u8; 16] = [1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128];
    let [low, high] = mask.to_le_bytes();
    // SAFETY: `BITS` has 16 values; otherwise registers only.
    unsafe {
        let spread = vcombine_u8(vdup_n_u8(low), vdup_n_u8(high));
        let set = vtstq_u8(spread, vld1q_u8(BITS.as_ptr()));
        vaddq_u8(bytes, vandq_u8(set, vdupq_n_u8(value)))
    }
}

/// The signed byte `COLUMN` of each dword as a float.
///
/// # Safety
/// Advanced SIMD.
#[inline(always)]
unsafe fn byte_to_float<const COLUMN: u32>(bytes: uint8x16_t) -> float32x4_t {
    // SAFETY: registers only.
    unsafe {
        let lanes = vreinterpretq_s32_u8(bytes);
        let top = match COLUMN {
            0 => vshlq_n_s32::<24>(lanes),
            1 => vshlq_n_s32::<16>(lanes),
            2 => vshlq_n_s32::<8>(lanes),
            _ => lanes,
        };
        vcvtq_f32_s32(vshrq_n_s32::<24>(top))
    }
}

/// # Safety
/// Advanced SIMD.
#[inline(always)]
unsafe fn high_digit(a: int32x4_t) -> int32x4_t {
    // SAFETY: registers only.
    unsafe { vshrq_n_s32::<8>(vaddq_s32(a, vdupq_n_s32(128))) }
}

/// # Safety
/// Advanced SIMD.
#[inline(always)]
unsafe fn low_digit(a: int32x4_t, high: int32x4_t) -> int32x4_t {
    // SAFETY: registers only.
    unsafe { vsubq_s32(a, vshlq_n_s32::<8>(high)) }
}

/// # Safety
/// Advanced SIMD.
#[inline(always)]
unsafe fn low_nibbles(codes: uint8x16_t) -> uint8x16_t {
    // SAFETY: registers only.
    unsafe { vandq_u8(codes, vdupq_n_u8(15)) }
}

/// The floats of `table` with the four indices at `lanes`.
///
/// # Safety
/// Advanced SIMD; four indices below 16 are readable.
#[inline(always)]
unsafe fn pick(table: uint8x16x4_t, lanes: *const i32) -> float32x4_t {
    // SAFETY: the caller keeps four indices readable. Byte `b` of float `i` is byte `4i + b` of the table.
    unsafe {
        let first = vmulq_u32(vld1q_u32(lanes.cast()), vdupq_n_u32(0x0404_0404));
        let bytes = vaddq_u32(first, vdupq_n_u32(0x0302_0100));
        vreinterpretq_f32_u8(vqtbl4q_u8(table, vreinterpretq_u8_u32(bytes)))
    }
}

/// `acc + Σ₄ u·s` per dword lane. The products are taken as `(u − 128)·s + 128·s`: both fit
/// into 16 bits, and so do sums of two in 32.
///
/// # Safety
/// Advanced SIMD.
#[inline(always)]
unsafe fn dot(acc: int32x4_t, u: uint8x16_t, s: uint8x16_t) -> int32x4_t {
    // SAFETY: registers only.
    unsafe {
        let s = vreinterpretq_s8_u8(s);
        let half = vdup_n_s16(128);
        let signed = vreinterpretq_s8_u8(veorq_u8(u, vdupq_n_u8(128)));
        let low = vmull_s8(vget_low_s8(signed), vget_low_s8(s));
        let high = vmull_high_s8(signed, s);
        let products = vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high));
        let sums = vpaddlq_s8(s);
        let low = vmull_s16(vget_low_s16(sums), half);
        let high = vmull_s16(vget_high_s16(sums), half);
        vaddq_s32(vaddq_s32(acc, products), vpaddq_s32(low, high))
    }
}

/// # Safety
/// Advanced SIMD.
#[inline(always)]
unsafe fn even_odd(bytes: uint8x16_t) -> uint8x16_t {
    // SAFETY: the table is 16 bytes.
    unsafe { vqtbl1q_u8(bytes, vld1q_u8(EVEN_ODD.as_ptr())) }
}

/// The even and the odd dwords of eight.
///
/// # Safety
/// Advanced SIMD.
#[inline(always)]
unsafe fn split_dwords(first: uint8x16_t, second: uint8x16_t) -> (uint8x16_t, uint8x16_t) {
    // SAFETY: registers only.
    unsafe {
        let a = vreinterpretq_u32_u8(first);
        let b = vreinterpretq_u32_u8(second);
        (vreinterpretq_u8_u32(vuzp1q_u32(a, b)), vreinterpretq_u8_u32(vuzp2q_u32(a, b)))
    }
}

/// # Safety
/// Advanced SIMD; 8 bytes are readable at each of 16 places `BITS` bytes apart from `ptr` on.
#[inline(always)]
unsafe fn unpack_words<const BITS: u32>(ptr: *const u8) -> (B, B) {
    // SAFETY: block `i` reads the places `2i` and `2i + 1`.
    unsafe {
        let step = 2 * BITS as usize;
        let mut blocks = [vdupq_n_u8(0); 8];
        for (i, block) in blocks.iter_mut().enumerate() {
            *block = unpack_16::<BITS>(ptr.add(i * step));
        }
        let (e0, o0) = split_dwords(blocks[0], blocks[1]);
        let (e1, o1) = split_dwords(blocks[2], blocks[3]);
        let (e2, o2) = split_dwords(blocks[4], blocks[5]);
        let (e3, o3) = split_dwords(blocks[6], blocks[7]);
        ([e0, e1, e2, e3], [o0, o1, o2, o3])
    }
}

/// 16 codes, the even ones of every eight before the odd ones.
///
/// # Safety
/// Advanced SIMD; 8 bytes are readable at `ptr` and at `ptr + BITS`.
#[inline(always)]
unsafe fn unpack_16<const BITS: u32>(ptr: *const u8) -> uint8x16_t {
    let words = const { WordShuffle::new(BITS as usize) };
    // SAFETY: the caller keeps 8 bytes readable at both places; the tables are 16 bytes each.
    unsafe {
        let mask = vdupq_n_u16(0xff >> (8 - BITS));
        let shuffle = vld1q_u8(words.bytes.as_ptr());
        let shift = vld1q_s16(words.shifts.as_ptr());
        let zero = vdup_n_u8(0);
        let first = vqtbl1q_u8(vcombine_u8(vld1_u8(ptr), zero), shuffle);
        let second = vqtbl1q_u8(vcombine_u8(vld1_u8(ptr.add(BITS as usize)), zero), shuffle);
        let first = vandq_u16(vshlq_u16(vreinterpretq_u16_u8(first), shift), mask);
        let second = vandq_u16(vshlq_u16(vreinterpretq_u16_u8(second), shift), mask);
        vcombine_u8(vmovn_u16(first), vmovn_u16(second))
    }
}

/// For word `w`, which holds code `c` of eight (evens first): the two bytes that contain it, and
/// the (negative) left shift that moves it to the bottom.
struct WordShuffle {
    bytes: [u8; 16],
    shifts: [i16; 8],
}

impl WordShuffle {
    #[expect(clippy::cast_possible_truncation, reason = "byte indices below 9, shifts below 8")]
    const fn new(bits: usize) -> Self {
        const CODES: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];
        let mut this = Self { bytes: [0; 16], shifts: [0; 8] };
        let mut word = 0;
        while word < 8 {
            let bit = bits * CODES[word];
            this.bytes[2 * word] = (bit / 8) as u8;
            this.bytes[2 * word + 1] = (bit / 8 + 1) as u8;
            this.shifts[word] = -((bit % 8) as u8 as i16);
            word += 1;
        }
        this
    }
}

/// Transposes 4×4 dwords, those from `column` on of four rows.
///
/// # Safety
/// Advanced SIMD; 16 bytes are readable there, and writable at `dst + r·dst_stride`.
#[inline(always)]
unsafe fn transpose4(rows: &[*const u32], column: usize, dst: *mut u32, dst_stride: usize) {
    // SAFETY: the caller keeps 16 bytes readable in each row from `column` on and writable in each
    // column of the target.
    unsafe {
        let r0 = vld1q_u32(rows[0].add(column));
        let r1 = vld1q_u32(rows[1].add(column));
        let r2 = vld1q_u32(rows[2].add(column));
        let r3 = vld1q_u32(rows[3].add(column));
        let a = vtrn1q_u32(r0, r1);
        let b = vtrn2q_u32(r0, r1);
        let c = vtrn1q_u32(r2, r3);
        let d = vtrn2q_u32(r2, r3);
        let a = vreinterpretq_u64_u32(a);
        let b = vreinterpretq_u64_u32(b);
        let c = vreinterpretq_u64_u32(c);
        let d = vreinterpretq_u64_u32(d);
        let columns = [vtrn1q_u64(a, c), vtrn1q_u64(b, d), vtrn2q_u64(a, c), vtrn2q_u64(b, d)];
        for (i, column) in columns.into_iter().enumerate() {
            vst1q_u32(dst.add(i * dst_stride), vreinterpretq_u32_u64(column));
        }
    }
}
