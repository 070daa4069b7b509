//! AVX2 with FMA and F16C, and AVX-VNNI where there is one: two registers per logical vector.

use super::tables::Places;
use super::{EXP2, Kernel, LANES, Simd, intrinsics};
use crate::attention::int16_avx2::Int16Products;
use crate::weights::FloatType;
use std::arch::x86_64::*;

/// Token of AVX2; made by [`run`] and [`run_vnni`] only.
#[derive(Clone, Copy)]
pub(crate) struct Avx2<const VNNI: bool>(());

/// Runs `kernel` with AVX2.
///
/// # Safety
/// The processor has the features enabled here.
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx2::<false>(()))
}

/// Runs `kernel` with AVX2 and AVX-VNNI.
///
/// # Safety
/// The processor has the features enabled here.
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
pub(super) unsafe fn run_vnni<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx2::<true>(()))
}

type F = [__m256; 2];
type I = [__m256i; 2];

impl<const VNNI: bool> Simd for Avx2<VNNI> {
    const NARROW_DOTS: bool = !VNNI;
    const NARROW_EXPAND: bool = true;
    const WIDE_TILES: bool = false;
    const ATTENTION_ROWS: usize = 6;
    const ATTENTION_VECTORS: usize = 1;
    /// Into the second-level cache, and this far: fp16 caches were read 1.35 times as fast on Zen
    /// as by asking into the first-level one, which has few buffers for misses.
    const ATTENTION_LEAD_BYTES: usize = 8192;
    type CodeProducts = Int16Products;
    type F = F;
    type I = I;
    type B = I;
    type Table = [f32; LANES];

    #[inline(always)]
    fn outline<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: `self` proves AVX2, and AVX-VNNI where `VNNI`.
        unsafe { if VNNI { run_vnni(kernel) } else { run(kernel) } }
    }

    intrinsics! {
        fn splat(value: f32) -> F { [_mm256_set1_ps(value); 2] }
        fn add(a: F, b: F) -> F { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
        fn sub(a: F, b: F) -> F { [_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])] }
        fn mul(a: F, b: F) -> F { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
        fn div(a: F, b: F) -> F { [_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])] }
        fn fma(a: F, b: F, c: F) -> F {
            [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])]
        }
        fn max(a: F, b: F) -> F { [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])] }
        fn min(a: F, b: F) -> F { [_mm256_min_ps(a[0], b[0]), _mm256_min_ps(a[1], b[1])] }
        fn abs(a: F) -> F {
            let sign = _mm256_set1_ps(-0.0);
            [_mm256_andnot_ps(sign, a[0]), _mm256_andnot_ps(sign, a[1])]
        }
        fn pow2(n: I) -> F { [pow2(n[0]), pow2(n[1])] }
        fn exp2(x: F) -> F { [exp2(x[0]), exp2(x[1])] }
        fn hadamard(x: F) -> F {
            let low = hadamard8(x[0]);
            let high = hadamard8(x[1]);
            [_mm256_add_ps(low, high), _mm256_sub_ps(low, high)]
        }
        fn softmax_sum(a: F) -> f32 {
            let mut lanes = [0.0f32; 8];
            _mm256_storeu_ps(lanes.as_mut_ptr(), _mm256_add_ps(a[0], a[1]));
            lanes.iter().sum()
        }
        fn sum(a: F) -> f32 {
            let a = _mm256_add_ps(a[0], a[1]);
            let a = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let a = _mm_add_ps(a, _mm_movehl_ps(a, a));
            _mm_cvtss_f32(_mm_add_ss(a, _mm_movehdup_ps(a)))
        }
        fn max_lane(a: F) -> f32 {
            let a = _mm256_max_ps(a[0], a[1]);
            let a = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let a = _mm_max_ps(a, _mm_movehl_ps(a, a));
            _mm_cvtss_f32(_mm_max_ss(a, _mm_movehdup_ps(a)))
        }
        fn to_int(a: F) -> I { [_mm256_cvtps_epi32(a[0]), _mm256_cvtps_epi32(a[1])] }
        fn to_float(a: I) -> F { [_mm256_cvtepi32_ps(a[0]), _mm256_cvtepi32_ps(a[1])] }
        fn float_bits(a: F) -> I { [_mm256_castps_si256(a[0]), _mm256_castps_si256(a[1])] }
        fn bits_float(a: I) -> F { [_mm256_castsi256_ps(a[0]), _mm256_castsi256_ps(a[1])] }
        fn zero_int() -> I { [_mm256_setzero_si256(); 2] }
        fn table(values: F) -> [f32; LANES] {
            let mut table = [0.0; LANES];
            _mm256_storeu_ps(table.as_mut_ptr(), values[0]);
            _mm256_storeu_ps(table.as_mut_ptr().add(8), values[1]);
            table
        }
        fn byte_table(entries: &[u8; 16]) -> I {
            [_mm256_broadcastsi128_si256(_mm_loadu_si128(entries.as_ptr().cast())); 2]
        }
        fn lookup(table: I, indices: I) -> I {
            [_mm256_shuffle_epi8(table[0], indices[0]), _mm256_shuffle_epi8(table[1], indices[1])]
        }
        fn flip_sign(bytes: I) -> I {
            let top = _mm256_set1_epi8(-128);
            [_mm256_xor_si256(bytes[0], top), _mm256_xor_si256(bytes[1], top)]
        }
        fn times_256(a: I) -> I { [_mm256_slli_epi32::<8>(a[0]), _mm256_slli_epi32::<8>(a[1])] }
        fn split_digit(a: I) -> (I, I) {
            let (h0, l0) = split_digit(a[0]);
            let (h1, l1) = split_digit(a[1]);
            ([h0, h1], [l0, l1])
        }
    }

    #[inline(always)]
    fn select(self, from: usize, to: usize, a: F, b: F) -> F {
        // SAFETY: `self` proves AVX2; `LANE_NUMBERS` has 16 values.
        unsafe {
            let lanes = self.load(LANE_NUMBERS.as_ptr());
            let from = _mm256_set1_ps(from as f32);
            let to = _mm256_set1_ps(to as f32);
            [pick(lanes[0], from, to, a[0], b[0]), pick(lanes[1], from, to, a[1], b[1])]
        }
    }
    #[inline(always)]
    fn bit_field<const SHIFT: u32>(self, bytes: I, mask: u8) -> I {
        // SAFETY: `self` proves AVX2. The mask drops the bits that cross a byte.
        unsafe {
            let mask = _mm256_set1_epi8(mask.cast_signed());
            let count = _mm_cvtsi32_si128(SHIFT.cast_signed());
            [
                _mm256_and_si256(_mm256_srl_epi16(bytes[0], count), mask),
                _mm256_and_si256(_mm256_srl_epi16(bytes[1], count), mask),
            ]
        }
    }
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the two halves of 64 bits")]
    fn add_where(self, bytes: I, mask: u64, value: u8) -> I {
        // SAFETY: `self` proves AVX2.
        unsafe {
            let value = _mm256_set1_epi8(value.cast_signed());
            let low = _mm256_and_si256(byte_mask(mask as u32), value);
            let high = _mm256_and_si256(byte_mask((mask >> 32) as u32), value);
            [_mm256_add_epi8(bytes[0], low), _mm256_add_epi8(bytes[1], high)]
        }
    }
    #[inline(always)]
    fn byte_to_float<const COLUMN: u32>(self, bytes: I) -> F {
        // SAFETY: `self` proves AVX2.
        unsafe { [byte_to_float::<COLUMN>(bytes[0]), byte_to_float::<COLUMN>(bytes[1])] }
    }
    #[inline(always)]
    fn expand<const NARROW: bool>(self, table: &[f32; LANES], places: Places, unit: usize) -> F {
        // SAFETY: `self` proves AVX2. A broadcast from memory needs no arithmetic unit.
        unsafe {
            if NARROW {
                let first = 4 * unit;
                return [
                    _mm256_blend_ps::<0xf0>(lane(table, first), lane(table, first + 1)),
                    _mm256_blend_ps::<0xf0>(lane(table, first + 2), lane(table, first + 3)),
                ];
            }
            [lane(table, places.group(2 * unit)), lane(table, places.group(2 * unit + 1))]
        }
    }
    #[inline(always)]
    fn dot<const BITS: u32>(self, acc: I, u: I, s: I) -> I {
        // SAFETY: `self` proves AVX2, and AVX-VNNI where `VNNI`.
        unsafe {
            if VNNI {
                let low = _mm256_dpbusd_avx_epi32(acc[0], u[0], s[0]);
                [low, _mm256_dpbusd_avx_epi32(acc[1], u[1], s[1])]
            } else {
                [dot_plain::<BITS>(acc[0], u[0], s[0]), dot_plain::<BITS>(acc[1], u[1], s[1])]
            }
        }
    }
    #[inline(always)]
    fn dot_unit<const BITS: u32>(self, u: (I, I), s: (I, I)) -> I {
        if VNNI || !pairs_fit(BITS) {
            return self.dot::<BITS>(self.dot::<BITS>(self.zero_int(), u.0, s.0), u.1, s.1);
        }
        // SAFETY: `self` proves AVX2.
        unsafe {
            let ones = _mm256_set1_epi16(1);
            let first = pairs((u.0[0], u.1[0]), (s.0[0], s.1[0]));
            let second = pairs((u.0[1], u.1[1]), (s.0[1], s.1[1]));
            [_mm256_madd_epi16(first, ones), _mm256_madd_epi16(second, ones)]
        }
    }
    #[inline(always)]
    fn dot_unit_wide<const BITS: u32>(self, u: (I, I), high: (I, I), low: (I, I)) -> I {
        if VNNI || !pairs_fit(BITS) {
            let high = self.times_256(self.dot_unit::<BITS>(u, high));
            return self.dot::<BITS>(self.dot::<BITS>(high, u.0, low.0), u.1, low.1);
        }
        // SAFETY: `self` proves AVX2.
        unsafe {
            let first = (u.0[0], u.1[0]);
            let second = (u.0[1], u.1[1]);
            [
                wide(pairs(first, (high.0[0], high.1[0])), pairs(first, (low.0[0], low.1[0]))),
                wide(pairs(second, (high.0[1], high.1[1])), pairs(second, (low.0[1], low.1[1]))),
            ]
        }
    }
    #[inline(always)]
    fn prefetch(self, ptr: *const u8) {
        // SAFETY: a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(ptr.cast()) }
    }
    #[inline(always)]
    fn prefetch_far(self, ptr: *const u8) {
        // SAFETY: a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(ptr.cast()) }
    }
    #[inline(always)]
    unsafe fn load(self, ptr: *const f32) -> F {
        // SAFETY: the caller keeps 64 bytes readable at `ptr`.
        unsafe { [_mm256_loadu_ps(ptr), _mm256_loadu_ps(ptr.add(8))] }
    }
    #[inline(always)]
    unsafe fn store(self, ptr: *mut f32, value: F) {
        // SAFETY: the caller keeps 64 bytes writable at `ptr`.
        unsafe {
            _mm256_storeu_ps(ptr, value[0]);
            _mm256_storeu_ps(ptr.add(8), value[1]);
        }
    }
    #[inline(always)]
    unsafe fn load_f16(self, ptr: *const u8) -> F {
        // SAFETY: the caller keeps 32 bytes readable at `ptr`.
        unsafe {
            let low = _mm256_cvtph_ps(_mm_loadu_si128(ptr.cast()));
            [low, _mm256_cvtph_ps(_mm_loadu_si128(ptr.add(16).cast()))]
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, ptr: *const u8) -> F {
        // SAFETY: the caller keeps 32 bytes readable at `ptr`.
        unsafe {
            let low = _mm_loadu_si128(ptr.cast());
            [widen_bf16(low), widen_bf16(_mm_loadu_si128(ptr.add(16).cast()))]
        }
    }
    #[inline(always)]
    unsafe fn load_some_floats(self, ty: FloatType, ptr: *const u8, count: usize) -> F {
        if count >= LANES {
            // SAFETY: the caller keeps `count >= 16` values readable.
            return unsafe { self.load_floats(ty, ptr) };
        }
        // SAFETY: masks keep the loads to `count` values.
        unsafe {
            if ty == FloatType::F32 {
                let second = first_dwords(count.saturating_sub(8));
                let low = _mm256_maskload_ps(ptr.cast(), first_dwords(count.min(8)));
                return [low, _mm256_maskload_ps(ptr.cast::<f32>().wrapping_add(8), second)];
            }
            let mut halves = _mm256_maskload_epi32(ptr.cast(), first_dwords(count / 2));
            if !count.is_multiple_of(2) {
                // Half a dword: the last value by itself.
                let last = ptr.cast::<u16>().add(count - 1).read_unaligned();
                let dword =
                    _mm256_andnot_si256(first_dwords(count / 2), first_dwords(count / 2 + 1));
                let last = _mm256_and_si256(dword, _mm256_set1_epi32(i32::from(last)));
                halves = _mm256_or_si256(halves, last);
            }
            let low = _mm256_castsi256_si128(halves);
            let high = _mm256_extracti128_si256::<1>(halves);
            if ty == FloatType::F16 {
                return [_mm256_cvtph_ps(low), _mm256_cvtph_ps(high)];
            }
            [widen_bf16(low), widen_bf16(high)]
        }
    }
    #[inline(always)]
    unsafe fn load_bytes(self, ptr: *const u8) -> I {
        // SAFETY: the caller keeps 64 bytes readable at `ptr`.
        unsafe { [_mm256_loadu_si256(ptr.cast()), _mm256_loadu_si256(ptr.add(32).cast())] }
    }
    #[inline(always)]
    unsafe fn store_bytes(self, ptr: *mut u8, value: I) {
        // SAFETY: the caller keeps 64 bytes writable at `ptr`.
        unsafe {
            _mm256_storeu_si256(ptr.cast(), value[0]);
            _mm256_storeu_si256(ptr.add(32).cast(), value[1]);
        }
    }
    #[inline(always)]
    unsafe fn splat_quad(self, ptr: *const u8) -> I {
        // SAFETY: the caller keeps 4 bytes readable at `ptr`.
        unsafe { [_mm256_set1_epi32(ptr.cast::<i32>().read_unaligned()); 2] }
    }
    #[inline(always)]
    unsafe fn unpack<const BITS: u32>(self, ptr: *const u8, readable: usize) -> (I, I) {
        // SAFETY: the 4- and 8-bit arms read 16·BITS bytes. The others read 8 bytes from each
        // of 16 places BITS apart, so less than 16·BITS + 8 bytes, which are either readable
        // or have been copied.
        unsafe {
            match BITS {
                4 => {
                    let [low, high] = self.load_bytes(ptr);
                    let (e0, o0) = nibbles(low);
                    let (e1, o1) = nibbles(high);
                    ([e0, e1], [o0, o1])
                }
                8 => {
                    let (e0, o0) = split_dwords(even_odd(ptr), even_odd(ptr.add(32)));
                    let (e1, o1) = split_dwords(even_odd(ptr.add(64)), even_odd(ptr.add(96)));
                    ([e0, e1], [o0, o1])
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
            let low = _mm256_set1_epi32(255);
            let words =
                _mm256_packs_epi32(_mm256_and_si256(ints[0], low), _mm256_and_si256(ints[1], low));
            let words = _mm256_permute4x64_epi64::<0xd8>(words);
            let a = _mm256_castsi256_si128(words);
            let b = _mm256_extracti128_si256::<1>(words);
            _mm_storeu_si128(ptr.cast(), _mm_packus_epi16(a, b));
        }
    }
    #[inline(always)]
    unsafe fn transpose(self, rows: &[*const u32; LANES], dst: *mut u32, dst_stride: usize) {
        for (row, column) in [(0, 0), (0, 8), (8, 0), (8, 8)] {
            // SAFETY: the four 8×8 blocks are inside the rows and columns that the caller keeps valid.
            unsafe {
                let target = dst.add(column * dst_stride + row);
                transpose8(&rows[row..row + 8], column, target, dst_stride);
            }
        }
    }
}

/// `table[index]` in every lane; `index` is below 16.
///
/// # Safety
/// AVX2.
#[inline(always)]
unsafe fn lane(table: &[f32; LANES], index: usize) -> __m256 {
    // SAFETY: registers and a reference only.
    unsafe { _mm256_broadcast_ss(&table[index % LANES]) }
}

/// # Safety
/// AVX2.
#[inline(always)]
unsafe fn pow2(n: __m256i) -> __m256 {
    // SAFETY: registers only.
    unsafe {
        let biased = _mm256_add_epi32(n, _mm256_set1_epi32(127));
        _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
    }
}

/// # Safety
/// AVX2 and FMA.
#[inline(always)]
unsafe fn exp2(x: __m256) -> __m256 {
    // SAFETY: registers only. `max` keeps its second operand when the first is NaN, so x comes
    // second; below −126 the result is 2^−126, which is 0 beside 1.
    unsafe {
        let x = _mm256_max_ps(_mm256_set1_ps(-126.0), x);
        let whole = _mm256_round_ps::<8>(x);
        let fraction = _mm256_sub_ps(x, whole);
        let mut sum = _mm256_set1_ps(EXP2[5]);
        for coefficient in EXP2[..5].iter().rev() {
            sum = _mm256_fmadd_ps(sum, fraction, _mm256_set1_ps(*coefficient));
        }
        let exponent = _mm256_slli_epi32::<23>(_mm256_cvtps_epi32(whole));
        _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(sum), exponent))
    }
}

/// Walsh–Hadamard transform of eight lanes. Each stage adds every lane's partner to the lane,
/// negated where the lane is the second of the pair.
///
/// # Safety
/// AVX2.
#[inline(always)]
unsafe fn hadamard8(x: __m256) -> __m256 {
    // SAFETY: registers only.
    unsafe {
        let y = _mm256_permute_ps::<0b10_11_00_01>(x);
        let x = _mm256_blend_ps::<0xAA>(_mm256_add_ps(x, y), _mm256_sub_ps(y, x));
        let y = _mm256_permute_ps::<0b01_00_11_10>(x);
        let x = _mm256_blend_ps::<0xCC>(_mm256_add_ps(x, y), _mm256_sub_ps(y, x));
        let y = _mm256_permute2f128_ps::<1>(x, x);
        _mm256_blend_ps::<0xF0>(_mm256_add_ps(x, y), _mm256_sub_ps(y, x))
    }
}

/// Lane numbers, as floats for comparison.
static LANE_NUMBERS: [f32; LANES] =
    [0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.];

/// `a` in the lanes whose number is in `from..to`, `b` in the others.
///
/// # Safety
/// AVX2.
#[inline(always)]
unsafe fn pick(lanes: __m256, from: __m256, to: __m256, a: __m256, b: __m256) -> __m256 {
    // SAFETY: registers only.
    unsafe {
        let low = _mm256_cmp_ps::<_CMP_GE_OQ>(lanes, from);
        let high = _mm256_cmp_ps::<_CMP_LT_OQ>(lanes, to);
        _mm256_blendv_ps(b, a, _mm256_and_ps(low, high))
    }
}

/// All bits of each byte whose bit is set in `mask`.
///
/// # Safety
/// AVX2.
#[inline(always)]
unsafe fn byte_mask(mask: u32) -> __m256i {
    // SAFETY: registers only. Byte i gets byte i/8 of the mask, then its bit of it.
    unsafe {
        let spread = _mm256_setr_epi64x(
            0,
            0x0101_0101_0101_0101,
            0x0202_0202_0202_0202,
            0x0303_0303_0303_0303,
        );
        let bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(mask.cast_signed()), spread);
        let bits = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64.cast_signed());
        _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bits), bits)
    }
}

/// The signed byte `COLUMN` of each dword as a float.
///
/// # Safety
/// AVX2.
#[inline(always)]
unsafe fn byte_to_float<const COLUMN: u32>(bytes: __m256i) -> __m256 {
    // SAFETY: registers only.
    unsafe {
        let top = match COLUMN {
            0 => _mm256_slli_epi32::<24>(bytes),
            1 => _mm256_slli_epi32::<16>(bytes),
            2 => _mm256_slli_epi32::<8>(bytes),
            _ => bytes,
        };
        _mm256_cvtepi32_ps(_mm256_srai_epi32::<24>(top))
    }
}

/// # Safety
/// AVX2.
#[inline(always)]
unsafe fn split_digit(a: __m256i) -> (__m256i, __m256i) {
    // SAFETY: registers only.
    unsafe {
        let high = _mm256_srai_epi32::<8>(_mm256_add_epi32(a, _mm256_set1_epi32(128)));
        (high, _mm256_sub_epi32(a, _mm256_slli_epi32::<8>(high)))
    }
}

/// A mask of the first `count` ≤ 8 dwords.
///
/// # Safety
/// AVX2.
#[inline(always)]
unsafe fn first_dwords(count: usize) -> __m256i {
    const WINDOW: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];
    // SAFETY: eight entries lie behind any of the first nine.
    unsafe { _mm256_loadu_si256(WINDOW.as_ptr().add(8 - count).cast()) }
}

/// # Safety
/// AVX2.
#[inline(always)]
unsafe fn widen_bf16(halves: __m128i) -> __m256 {
    // SAFETY: registers only; a bfloat16 is the upper half of an `f32`.
    unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(halves))) }
}

/// The dot product without VNNI. `vpmaddubsw` adds two products of at most 255·128 into an
/// `i16`, which holds for 7-bit `u` only; the top bit of 8-bit codes is counted apart.
///
/// # Safety
/// AVX2.
#[inline(always)]
unsafe fn dot_plain<const BITS: u32>(acc: __m256i, u: __m256i, s: __m256i) -> __m256i {
    // SAFETY: registers only.
    unsafe {
        let ones = _mm256_set1_epi16(1);
        if BITS < 8 {
            let pairs = _mm256_maddubs_epi16(u, s);
            return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, ones));
        }
        let low = _mm256_maddubs_epi16(_mm256_and_si256(u, _mm256_set1_epi8(127)), s);
        let top = _mm256_and_si256(_mm256_srli_epi16::<7>(u), _mm256_set1_epi8(1));
        let top = _mm256_maddubs_epi16(top, s);
        let acc = _mm256_add_epi32(acc, _mm256_madd_epi16(low, ones));
        _mm256_add_epi32(acc, _mm256_madd_epi16(top, _mm256_set1_epi16(128)))
    }
}

/// Returns true if sums of four products of a code and a signed byte fit into an `i16`.
const fn pairs_fit(bits: u32) -> bool {
    bits <= 6
}

/// Sums of four products, in 16 bits: two neighbours of each vector. The codes have at most 6
/// bits ([`pairs_fit`]).
///
/// # Safety
/// AVX2.
#[inline(always)]
unsafe fn pairs(u: (__m256i, __m256i), s: (__m256i, __m256i)) -> __m256i {
    // SAFETY: registers only.
    unsafe { _mm256_add_epi16(_mm256_maddubs_epi16(u.0, s.0), _mm256_maddubs_epi16(u.1, s.1)) }
}

/// `256·high + low` of neighbours, added in 32 bits.
///
/// # Safety
/// AVX2.
#[inline(always)]
unsafe fn wide(high: __m256i, low: __m256i) -> __m256i {
    // SAFETY: registers only.
    unsafe {
        let high = _mm256_madd_epi16(high, _mm256_set1_epi16(256));
        _mm256_add_epi32(high, _mm256_madd_epi16(low, _mm256_set1_epi16(1)))
    }
}

/// # Safety
/// AVX2.
#[inline(always)]
unsafe fn nibbles(codes: __m256i) -> (__m256i, __m256i) {
    // SAFETY: registers only.
    unsafe {
        let mask = _mm256_set1_epi8(15);
        let high = _mm256_srli_epi16::<4>(codes);
        (_mm256_and_si256(codes, mask), _mm256_and_si256(high, mask))
    }
}

/// 32 bytes with the even ones of every eight before the odd ones.
///
/// # Safety
/// AVX2; 32 bytes are readable at `ptr`.
#[inline(always)]
unsafe fn even_odd(ptr: *const u8) -> __m256i {
    // SAFETY: 32 bytes are readable.
    unsafe {
        let order = _mm256_set_epi64x(
            0x0f0d_0b09_0e0c_0a08,
            0x0705_0301_0604_0200,
            0x0f0d_0b09_0e0c_0a08,
            0x0705_0301_0604_0200,
        );
        _mm256_shuffle_epi8(_mm256_loadu_si256(ptr.cast()), order)
    }
}

/// The even and the odd dwords of 16.
///
/// # Safety
/// AVX2.
#[inline(always)]
unsafe fn split_dwords(first: __m256i, second: __m256i) -> (__m256i, __m256i) {
    // SAFETY: registers only.
    unsafe {
        let a = _mm256_castsi256_ps(first);
        let b = _mm256_castsi256_ps(second);
        let even = _mm256_castps_si256(_mm256_shuffle_ps::<0x88>(a, b));
        let odd = _mm256_castps_si256(_mm256_shuffle_ps::<0xdd>(a, b));
        (_mm256_permute4x64_epi64::<0xd8>(even), _mm256_permute4x64_epi64::<0xd8>(odd))
    }
}

/// # Safety
/// AVX2; 8 bytes are readable at each of 16 places `BITS` bytes apart from `ptr` on.
#[inline(always)]
unsafe fn unpack_words<const BITS: u32>(ptr: *const u8) -> (I, I) {
    // SAFETY: quarter `q` reads the places `4q..4q+4`.
    unsafe {
        let quarter = 4 * BITS as usize;
        let second = unpack_quarter::<BITS>(ptr.add(quarter));
        let (e0, o0) = split_dwords(unpack_quarter::<BITS>(ptr), second);
        let third = unpack_quarter::<BITS>(ptr.add(2 * quarter));
        let fourth = unpack_quarter::<BITS>(ptr.add(3 * quarter));
        let (e1, o1) = split_dwords(third, fourth);
        ([e0, e1], [o0, o1])
    }
}

/// 32 codes, the even ones of every eight before the odd ones. Each code is shuffled into a
/// 16-bit word, moved to its top by a multiplication, and shifted down.
///
/// # Safety
/// AVX2; 8 bytes are readable at each of 4 places `BITS` bytes apart from `ptr` on.
#[inline(always)]
unsafe fn unpack_quarter<const BITS: u32>(ptr: *const u8) -> __m256i {
    let words = const { WordShuffle::new(BITS as usize) };
    let step = BITS as usize;
    // SAFETY: the caller keeps 8 bytes readable at these four places; the tables are 32 bytes.
    unsafe {
        let shuffle = _mm256_loadu_si256(words.bytes.as_ptr().cast());
        let factor = _mm256_loadu_si256(words.factors.as_ptr().cast());
        let even_blocks = load_pair(ptr, ptr.add(2 * step));
        let odd_blocks = load_pair(ptr.add(step), ptr.add(3 * step));
        let shift = _mm_cvtsi32_si128(16 - BITS.cast_signed());
        let spread = _mm256_mullo_epi16(_mm256_shuffle_epi8(even_blocks, shuffle), factor);
        let even = _mm256_srl_epi16(spread, shift);
        let spread = _mm256_mullo_epi16(_mm256_shuffle_epi8(odd_blocks, shuffle), factor);
        _mm256_packus_epi16(even, _mm256_srl_epi16(spread, shift))
    }
}

/// The 8 bytes at `low` and `high`, each in the low half of its 128-bit lane.
///
/// # Safety
/// AVX2; 8 bytes are readable at both.
#[inline(always)]
unsafe fn load_pair(low: *const u8, high: *const u8) -> __m256i {
    // SAFETY: the caller keeps 8 bytes readable at both.
    unsafe {
        let low = _mm256_castsi128_si256(_mm_loadl_epi64(low.cast()));
        _mm256_inserti128_si256::<1>(low, _mm_loadl_epi64(high.cast()))
    }
}

/// For word `w` of a lane, which holds code `c` of eight (evens first): the two bytes that
/// contain it, and the power of two that moves it to the top of the word.
struct WordShuffle {
    bytes: [u8; 32],
    factors: [u16; 16],
}

impl WordShuffle {
    #[expect(clippy::cast_possible_truncation, reason = "byte indices below 8")]
    const fn new(bits: usize) -> Self {
        const CODES: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];
        let mut this = Self { bytes: [0; 32], factors: [0; 16] };
        let mut word = 0;
        while word < 16 {
            let bit = bits * CODES[word % 8];
            this.bytes[2 * word] = (bit / 8) as u8;
            this.bytes[2 * word + 1] = (bit / 8 + 1) as u8;
            this.factors[word] = 1 << ((16 - bits - bit % 8) % 16);
            word += 1;
        }
        this
    }
}

/// Transposes 8×8 dwords, those from `column` on of eight rows.
///
/// # Safety
/// AVX2; 32 bytes are readable there and writable at `dst + r·dst_stride`, `r` in 0..8.
#[inline(always)]
unsafe fn transpose8(rows: &[*const u32], column: usize, dst: *mut u32, dst_stride: usize) {
    // SAFETY: the caller keeps 32 bytes readable in each row from `column` on and writable in each
    // column of the target.
    unsafe {
        let mut r = [_mm256_setzero_ps(); 8];
        for (i, row) in r.iter_mut().enumerate() {
            *row = _mm256_loadu_ps(rows[i].add(column).cast());
        }
        let mut t = r;
        for i in 0..4 {
            t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
            t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
        }
        for i in 0..2 {
            let q = 4 * i;
            r[q] = _mm256_shuffle_ps::<0x44>(t[q], t[q + 2]);
            r[q + 1] = _mm256_shuffle_ps::<0xee>(t[q], t[q + 2]);
            r[q + 2] = _mm256_shuffle_ps::<0x44>(t[q + 1], t[q + 3]);
            r[q + 3] = _mm256_shuffle_ps::<0xee>(t[q + 1], t[q + 3]);
        }
        for c in 0..4 {
            let low = _mm256_permute2f128_ps::<0x20>(r[c], r[c + 4]);
            let high = _mm256_permute2f128_ps::<0x31>(r[c], r[c + 4]);
            _mm256_storeu_ps(dst.add(c * dst_stride).cast(), low);
            _mm256_storeu_ps(dst.add((c + 4) * dst_stride).cast(), high);
        }
    }
}
