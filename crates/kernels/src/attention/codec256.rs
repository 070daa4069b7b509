//! Int8 and Turbo codes as 16-bit words, sixteen bytes of a group at a time (AVX2).

use super::codec::{Bytes, Codec, Crumbs, Nibbles};
use std::arch::x86_64::*;

/// How a *quarter*, four of the sixteen rows of a group, becomes words.
pub(crate) trait Words: Codec {
    /// Whether keys are stored plus 128.
    const KEYS_OFFSET: bool;

    /// The first `GROUPS` entries are the quarters `quarter` of the groups of the unit at `p`: keys
    /// that are stored plus 128 as they are, all others signed.
    ///
    /// # Safety
    /// The processor must have AVX2; `p` must be valid for `UNIT_BYTES`.
    unsafe fn quarter<const KEYS: bool>(
        p: *const u8,
        quarter: usize,
        table: __m128i,
    ) -> [__m256i; 4];
}

impl Words for Bytes {
    const KEYS_OFFSET: bool = true;

    #[inline(always)]
    unsafe fn quarter<const KEYS: bool>(
        p: *const u8,
        quarter: usize,
        _table: __m128i,
    ) -> [__m256i; 4] {
        // SAFETY: the caller's; a quarter is 16 of the 64 bytes.
        unsafe {
            let codes = _mm_loadu_si128(p.add(16 * quarter).cast());
            [if KEYS { _mm256_cvtepu8_epi16(codes) } else { _mm256_cvtepi8_epi16(codes) }; 4]
        }
    }
}

impl Words for Nibbles {
    const KEYS_OFFSET: bool = false;

    #[inline(always)]
    unsafe fn quarter<const KEYS: bool>(
        p: *const u8,
        quarter: usize,
        table: __m128i,
    ) -> [__m256i; 4] {
        // SAFETY: the caller's; a quarter is 16 of the 64 bytes.
        unsafe {
            let (codes, nibble) = (_mm_loadu_si128(p.add(16 * quarter).cast()), _mm_set1_epi8(15));
            let low = _mm_and_si128(codes, nibble);
            let high = _mm_and_si128(_mm_srli_epi16::<4>(codes), nibble);
            let low = _mm256_cvtepi8_epi16(_mm_shuffle_epi8(table, low));
            let high = _mm256_cvtepi8_epi16(_mm_shuffle_epi8(table, high));
            [low, high, low, high]
        }
    }
}

impl Words for Crumbs {
    const KEYS_OFFSET: bool = false;

    #[inline(always)]
    unsafe fn quarter<const KEYS: bool>(
        p: *const u8,
        quarter: usize,
        table: __m128i,
    ) -> [__m256i; 4] {
        // SAFETY: the caller's; the masks are the last 32 of the 96 bytes, 8 to a group.
        unsafe {
            let codes = _mm_loadu_si128(p.add(16 * quarter).cast());
            let signs = p.add(64 + 2 * quarter).cast::<u16>();
            [
                crumbs::<0>(codes, signs, table),
                crumbs::<2>(codes, signs.add(4), table),
                crumbs::<4>(codes, signs.add(8), table),
                crumbs::<6>(codes, signs.add(12), table),
            ]
        }
    }
}

/// The words of sixteen codes whose magnitudes are the bits `SHIFT` and `SHIFT + 1` of each byte
/// and whose signs are the bits at `signs`.
///
/// # Safety
/// The processor must have AVX2; `signs` must be valid.
#[inline(always)]
unsafe fn crumbs<const SHIFT: i32>(codes: __m128i, signs: *const u16, table: __m128i) -> __m256i {
    // SAFETY: the caller's. Byte i gets byte i/8 of the mask, then its bit of it.
    unsafe {
        let magnitude = _mm_and_si128(_mm_srli_epi16::<SHIFT>(codes), _mm_set1_epi8(3));
        let mask = _mm_cvtsi32_si128(i32::from(u16::from_le(signs.read_unaligned())));
        let mask = _mm_shuffle_epi8(mask, _mm_set_epi64x(0x0101_0101_0101_0101, 0));
        let bits = _mm_set1_epi64x(0x8040_2010_0804_0201_u64.cast_signed());
        let negative = _mm_cmpeq_epi8(_mm_and_si128(mask, bits), bits);
        let level = _mm_or_si128(magnitude, _mm_and_si128(negative, _mm_set1_epi8(4)));
        _mm256_cvtepi8_epi16(_mm_shuffle_epi8(table, level))
    }
}
