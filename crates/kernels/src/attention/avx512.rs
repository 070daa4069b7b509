//! [`Lanes`] for AVX-512 F, BW, VL and DQ.

use super::lanes::{EXP2, Lanes};
use half::{bf16, f16};
use std::arch::x86_64::*;

/// One 512-bit register.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(__m512);

/// Masks of the lanes below n.
static BELOW: [__mmask16; 17] = {
    let mut masks = [0; 17];
    let mut n = 1;
    while n <= 16 {
        masks[n] = (masks[n - 1] << 1) | 1;
        n += 1;
    }
    masks
};

impl Avx512 {
    /// Sixteen integers as floats.
    ///
    /// # Safety
    /// The processor must have AVX-512 F.
    #[inline(always)]
    pub(crate) unsafe fn from_ints(x: __m512i) -> Self {
        // SAFETY: the caller's.
        Self(unsafe { _mm512_cvtepi32_ps(x) })
    }

    /// The nearest integers.
    ///
    /// # Safety
    /// The processor must have AVX-512 F.
    #[inline(always)]
    pub(crate) unsafe fn to_ints(self) -> __m512i {
        // SAFETY: the caller's.
        unsafe { _mm512_cvtps_epi32(self.0) }
    }
}

// SAFETY comments below refer to the trait's contract: the processor has these instructions, and
// pointers are valid for the elements read or written.
impl Lanes for Avx512 {
    type Bytes = __m512i;
    // Six rows would fit, but their loop comes out with 42 copies between registers.
    const TILE_ROWS: usize = 5;
    const TILE_BLOCKS: usize = 4;
    const LEAD_BYTES: usize = 4096;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: the trait's contract.
        Self(unsafe { _mm512_set1_ps(x) })
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: the trait's contract.
        Self(unsafe { _mm512_loadu_ps(p) })
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const f16) -> Self {
        // SAFETY: the trait's contract. `_mm512_cvtph_ps` could not read from memory itself.
        Self(unsafe {
            _mm512_cvt_roundph_ps::<_MM_FROUND_CUR_DIRECTION>(_mm256_loadu_si256(p.cast()))
        })
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const bf16) -> Self {
        // SAFETY: the trait's contract.
        let wide = unsafe { _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast())) };
        // SAFETY: the trait's contract.
        Self(unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide)) })
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: the trait's contract.
        unsafe { _mm512_storeu_ps(p, self.0) }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: the trait's contract.
        Self(unsafe { _mm512_add_ps(self.0, other.0) })
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        // SAFETY: the trait's contract.
        Self(unsafe { _mm512_sub_ps(self.0, other.0) })
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        // SAFETY: the trait's contract.
        Self(unsafe { _mm512_mul_ps(self.0, other.0) })
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        // SAFETY: the trait's contract.
        Self(unsafe { _mm512_div_ps(self.0, other.0) })
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        // SAFETY: the trait's contract.
        Self(unsafe { _mm512_max_ps(self.0, other.0) })
    }
    #[inline(always)]
    unsafe fn mul_add(self, a: Self, b: Self) -> Self {
        // SAFETY: the trait's contract.
        Self(unsafe { _mm512_fmadd_ps(self.0, a.0, b.0) })
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        // SAFETY: a prefetch of any address is harmless.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
    #[inline(always)]
    unsafe fn exp2(self) -> Self {
        // SAFETY: the trait's contract. `fraction` is self minus its nearest integer.
        unsafe {
            // Adding 1.5·2²³ rounds to an integer; that is cheaper than `vrndscaleps`.
            let magic = _mm512_set1_ps(12_582_912.0);
            let whole = _mm512_sub_ps(_mm512_add_ps(self.0, magic), magic);
            let fraction = _mm512_sub_ps(self.0, whole);
            let mut sum = _mm512_set1_ps(EXP2[5]);
            for coefficient in EXP2[..5].iter().rev() {
                sum = _mm512_fmadd_ps(sum, fraction, _mm512_set1_ps(*coefficient));
            }
            Self(_mm512_scalef_ps(sum, whole))
        }
    }
    #[inline(always)]
    unsafe fn hadamard(self) -> Self {
        // SAFETY: the trait's contract. Each stage adds every lane's partner to the lane, negated
        // where the lane is the second of the pair.
        unsafe {
            let stage = |x, partner, second: __mmask16| {
                _mm512_mask_sub_ps(_mm512_add_ps(x, partner), second, partner, x)
            };
            let x = stage(self.0, _mm512_permute_ps::<0b10_11_00_01>(self.0), 0xAAAA);
            let x = stage(x, _mm512_permute_ps::<0b01_00_11_10>(x), 0xCCCC);
            let x = stage(x, _mm512_shuffle_f32x4::<0b10_11_00_01>(x, x), 0xF0F0);
            Self(stage(x, _mm512_shuffle_f32x4::<0b01_00_11_10>(x, x), 0xFF00))
        }
    }
    #[inline(always)]
    unsafe fn reduce_add(self) -> f32 {
        // SAFETY: the trait's contract.
        unsafe { _mm512_reduce_add_ps(self.0) }
    }
    #[inline(always)]
    unsafe fn reduce_max(self) -> f32 {
        // SAFETY: the trait's contract.
        unsafe { _mm512_reduce_max_ps(self.0) }
    }
    #[inline(always)]
    unsafe fn keep(self, from: usize, to: usize, other: Self) -> Self {
        let below = |n: usize| BELOW[n.min(16)];
        let mask = below(to) & !below(from);
        // SAFETY: the trait's contract.
        Self(unsafe { _mm512_mask_blend_ps(mask, other.0, self.0) })
    }
    #[inline(always)]
    unsafe fn bytes(p: *const u8) -> __m512i {
        // SAFETY: the trait's contract.
        unsafe { _mm512_loadu_si512(p.cast()) }
    }
    #[inline(always)]
    unsafe fn table(entries: &[i8; 16]) -> __m512i {
        // SAFETY: the trait's contract; `entries` has 16 bytes.
        unsafe { _mm512_broadcast_i32x4(_mm_loadu_si128(entries.as_ptr().cast())) }
    }
    #[inline(always)]
    unsafe fn flip(bytes: __m512i) -> __m512i {
        // SAFETY: the trait's contract.
        unsafe { _mm512_xor_si512(bytes, _mm512_set1_epi8(-128)) }
    }
    #[inline(always)]
    unsafe fn field<const SHIFT: u32>(bytes: __m512i, mask: u8) -> __m512i {
        // SAFETY: the trait's contract. The mask drops the bits that cross a byte.
        unsafe {
            let mask = _mm512_set1_epi8(mask.cast_signed());
            _mm512_and_si512(_mm512_srli_epi16::<SHIFT>(bytes), mask)
        }
    }
    #[inline(always)]
    unsafe fn add_four(bytes: __m512i, signs: u64) -> __m512i {
        // SAFETY: the trait's contract.
        unsafe { _mm512_mask_add_epi8(bytes, signs, bytes, _mm512_set1_epi8(4)) }
    }
    #[inline(always)]
    unsafe fn lookup(table: __m512i, bytes: __m512i) -> __m512i {
        // SAFETY: the trait's contract.
        unsafe { _mm512_shuffle_epi8(table, bytes) }
    }
    #[inline(always)]
    unsafe fn widen<const COLUMN: u32>(bytes: __m512i) -> Self {
        // SAFETY: the trait's contract. The left shift brings the byte to the top of its row.
        unsafe {
            let top = match COLUMN {
                0 => _mm512_slli_epi32::<24>(bytes),
                1 => _mm512_slli_epi32::<16>(bytes),
                2 => _mm512_slli_epi32::<8>(bytes),
                _ => bytes,
            };
            Self(_mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(top)))
        }
    }
}
