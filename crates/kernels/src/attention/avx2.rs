//! [`Lanes`] for AVX2 with FMA and F16C: two 256-bit registers.

use super::lanes::{EXP2, Lanes};
use half::{bf16, f16};
use std::arch::x86_64::*;

/// Lanes 0..8 and 8..16.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(__m256, __m256);

/// Lane numbers, as f32 for comparison.
const LANES: [f32; 16] = [0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.];

/// # Safety
/// The processor must have AVX2 and FMA.
#[inline(always)]
unsafe fn exp2(x: __m256) -> __m256 {
    // SAFETY: the caller's; no memory is touched. `max` keeps its second operand when the first
    // is NaN, so x comes second; below −126 the result is 2^−126, which is 0 beside 1.
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

/// 4 in each byte whose bit is set.
///
/// # Safety
/// The processor must have AVX2.
#[inline(always)]
unsafe fn fours(signs: u32) -> __m256i {
    // SAFETY: the caller's; no memory is touched. Byte i gets byte i/8 of `signs`, then its bit.
    unsafe {
        let spread = _mm256_setr_epi64x(
            0,
            0x0101_0101_0101_0101,
            0x0202_0202_0202_0202,
            0x0303_0303_0303_0303,
        );
        let bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(signs.cast_signed()), spread);
        let bits = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64.cast_signed());
        let set = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bits), bits);
        _mm256_and_si256(set, _mm256_set1_epi8(4))
    }
}

/// # Safety
/// The processor must have AVX2.
#[inline(always)]
unsafe fn widen<const COLUMN: u32>(bytes: __m256i) -> __m256 {
    // SAFETY: the caller's; no memory is touched.
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

impl Avx2 {
    /// The nearest integers, of 16 bits.
    ///
    /// # Safety
    /// The processor must have AVX2.
    #[inline(always)]
    pub(crate) unsafe fn to_words(self) -> __m256i {
        // SAFETY: the caller's; no memory is touched. The pack interleaves the halves of its
        // operands; the permutation puts them in order.
        unsafe {
            let (low, high) = (_mm256_cvtps_epi32(self.0), _mm256_cvtps_epi32(self.1));
            _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(low, high))
        }
    }
}

macro_rules! lanewise {
    ($($name:ident = $intrinsic:ident;)*) => {$(
        #[inline(always)]
        unsafe fn $name(self, other: Self) -> Self {
            // SAFETY: the trait's contract.
            unsafe { Self($intrinsic(self.0, other.0), $intrinsic(self.1, other.1)) }
        }
    )*};
}

// SAFETY comments below refer to the trait's contract: the processor has these instructions, and
// pointers are valid for the elements read or written.
impl Lanes for Avx2 {
    type Bytes = (__m256i, __m256i);
    const TILE_ROWS: usize = 6;
    const TILE_BLOCKS: usize = 1;
    /// Into the second-level cache, and this far: fp16 caches were read 1.35 times as fast on Zen as by
    /// asking into the first-level one, which has few buffers for misses.
    const LEAD_BYTES: usize = 8192;

    lanewise! {
        add = _mm256_add_ps;
        sub = _mm256_sub_ps;
        mul = _mm256_mul_ps;
        div = _mm256_div_ps;
        max = _mm256_max_ps;
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: the trait's contract.
        unsafe { Self(_mm256_set1_ps(x), _mm256_set1_ps(x)) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: the trait's contract.
        unsafe { Self(_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))) }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const f16) -> Self {
        // SAFETY: the trait's contract.
        unsafe {
            let p = p.cast::<__m128i>();
            let half = |i| _mm256_cvtph_ps(_mm_loadu_si128(p.add(i)));
            Self(half(0), half(1))
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const bf16) -> Self {
        // SAFETY: the trait's contract.
        unsafe {
            let p = p.cast::<__m128i>();
            let half = |i| {
                let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.add(i)));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
            };
            Self(half(0), half(1))
        }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: the trait's contract.
        unsafe {
            _mm256_storeu_ps(p, self.0);
            _mm256_storeu_ps(p.add(8), self.1);
        }
    }
    #[inline(always)]
    unsafe fn mul_add(self, a: Self, b: Self) -> Self {
        // SAFETY: the trait's contract.
        unsafe { Self(_mm256_fmadd_ps(self.0, a.0, b.0), _mm256_fmadd_ps(self.1, a.1, b.1)) }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        // SAFETY: a prefetch of any address is harmless.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }
    #[inline(always)]
    unsafe fn exp2(self) -> Self {
        // SAFETY: the trait's contract.
        unsafe { Self(exp2(self.0), exp2(self.1)) }
    }
    #[inline(always)]
    unsafe fn hadamard(self) -> Self {
        // SAFETY: the trait's contract. Each stage adds every lane's partner to the lane, negated
        // where the lane is the second of the pair.
        unsafe {
            let half = |x| {
                let y = _mm256_permute_ps::<0b10_11_00_01>(x);
                let x = _mm256_blend_ps::<0xAA>(_mm256_add_ps(x, y), _mm256_sub_ps(y, x));
                let y = _mm256_permute_ps::<0b01_00_11_10>(x);
                let x = _mm256_blend_ps::<0xCC>(_mm256_add_ps(x, y), _mm256_sub_ps(y, x));
                let y = _mm256_permute2f128_ps::<1>(x, x);
                _mm256_blend_ps::<0xF0>(_mm256_add_ps(x, y), _mm256_sub_ps(y, x))
            };
            let (a, b) = (half(self.0), half(self.1));
            Self(_mm256_add_ps(a, b), _mm256_sub_ps(a, b))
        }
    }
    #[inline(always)]
    unsafe fn reduce_add(self) -> f32 {
        let mut lanes = [0.0f32; 8];
        // SAFETY: the trait's contract; `lanes` has room for 8.
        unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), _mm256_add_ps(self.0, self.1)) };
        lanes.iter().sum()
    }
    #[inline(always)]
    unsafe fn reduce_max(self) -> f32 {
        let mut lanes = [0.0f32; 8];
        // SAFETY: the trait's contract; `lanes` has room for 8.
        unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), _mm256_max_ps(self.0, self.1)) };
        lanes.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b))
    }
    #[inline(always)]
    unsafe fn keep(self, from: usize, to: usize, other: Self) -> Self {
        // SAFETY: the trait's contract; `LANES` has 16 values.
        unsafe {
            let lanes = Self::load(LANES.as_ptr());
            let (from, to) = (_mm256_set1_ps(from as f32), _mm256_set1_ps(to as f32));
            let pick = |lane, a, b| {
                let low = _mm256_cmp_ps::<_CMP_GE_OQ>(lane, from);
                let high = _mm256_cmp_ps::<_CMP_LT_OQ>(lane, to);
                _mm256_blendv_ps(b, a, _mm256_and_ps(low, high))
            };
            Self(pick(lanes.0, self.0, other.0), pick(lanes.1, self.1, other.1))
        }
    }
    #[inline(always)]
    unsafe fn bytes(p: *const u8) -> Self::Bytes {
        // SAFETY: the trait's contract.
        unsafe { (_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(32).cast())) }
    }
    #[inline(always)]
    unsafe fn table(entries: &[i8; 16]) -> Self::Bytes {
        // SAFETY: the trait's contract; `entries` has 16 bytes.
        let table =
            unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(entries.as_ptr().cast())) };
        (table, table)
    }
    #[inline(always)]
    unsafe fn flip(bytes: Self::Bytes) -> Self::Bytes {
        // SAFETY: the trait's contract.
        unsafe {
            let top = _mm256_set1_epi8(-128);
            (_mm256_xor_si256(bytes.0, top), _mm256_xor_si256(bytes.1, top))
        }
    }
    #[inline(always)]
    unsafe fn field<const SHIFT: u32>(bytes: Self::Bytes, mask: u8) -> Self::Bytes {
        // SAFETY: the trait's contract. The mask drops the bits that cross a byte.
        unsafe {
            let mask = _mm256_set1_epi8(mask.cast_signed());
            let count = _mm_cvtsi32_si128(SHIFT.cast_signed());
            let half = |b| _mm256_and_si256(_mm256_srl_epi16(b, count), mask);
            (half(bytes.0), half(bytes.1))
        }
    }
    #[inline(always)]
    unsafe fn add_four(bytes: Self::Bytes, signs: u64) -> Self::Bytes {
        #[expect(clippy::cast_possible_truncation, reason = "the two halves of 64 bits")]
        let (low, high) = (signs as u32, (signs >> 32) as u32);
        // SAFETY: the trait's contract.
        unsafe { (_mm256_add_epi8(bytes.0, fours(low)), _mm256_add_epi8(bytes.1, fours(high))) }
    }
    #[inline(always)]
    unsafe fn lookup(table: Self::Bytes, bytes: Self::Bytes) -> Self::Bytes {
        // SAFETY: the trait's contract.
        unsafe { (_mm256_shuffle_epi8(table.0, bytes.0), _mm256_shuffle_epi8(table.1, bytes.1)) }
    }
    #[inline(always)]
    unsafe fn widen<const COLUMN: u32>(bytes: Self::Bytes) -> Self {
        // SAFETY: the trait's contract.
        unsafe { Self(widen::<COLUMN>(bytes.0), widen::<COLUMN>(bytes.1)) }
    }
}
