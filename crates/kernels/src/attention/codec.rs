//! Decoding units of int8 and Turbo codes into byte groups (see [`crate::kv::layout`]).

use crate::simd::Simd;

/// A code format: decodes units of storage to groups of 64 bytes.
pub(super) trait Codec {
    /// Groups per unit.
    const GROUPS: usize;
    /// Bytes per unit.
    const UNIT_BYTES: usize;

    /// Decodes the unit at `ptr`: the first `GROUPS` entries are its groups, looked up in `table`.
    ///
    /// # Safety
    /// `UNIT_BYTES` bytes are readable at `ptr`.
    unsafe fn unit<S: Simd>(simd: S, ptr: *const u8, table: S::B) -> [S::B; 4];

    /// True if keys are stored plus 128.
    #[cfg(target_arch = "x86_64")]
    const KEYS_OFFSET: bool;

    /// Decodes a *quarter*, four of the sixteen rows of a group, of the unit at `ptr` to 16-bit
    /// words: the first `GROUPS` entries are that quarter of its groups. Keys that are stored plus
    /// 128 stay so, all others are signed.
    ///
    /// # Safety
    /// The processor has AVX2; `UNIT_BYTES` bytes are readable at `ptr`; `quarter` is below 4.
    #[cfg(target_arch = "x86_64")]
    unsafe fn quarter<const KEYS: bool>(
        ptr: *const u8,
        quarter: usize,
        table: std::arch::x86_64::__m128i,
    ) -> [std::arch::x86_64::__m256i; 4];
}

/// Runs `$body` with `$codec` as the [`Codec`] of a quantised format.
macro_rules! with_codec {
    ($format:expr, $codec:ident => $body:expr) => {{
        use $crate::attention::codec::{Bytes, Crumbs, Nibbles};
        match $format {
            $crate::kv::KvFormat::Turbo4 => {
                type $codec = Nibbles;
                $body
            }
            $crate::kv::KvFormat::Turbo3 => {
                type $codec = Crumbs;
                $body
            }
            _ => {
                type $codec = Bytes;
                $body
            }
        }
    }};
}
pub(super) use with_codec;

/// One byte per code; the table is not used.
pub(super) struct Bytes;
/// Two nibbles per byte.
pub(super) struct Nibbles;
/// Two magnitude bits in each byte for each of four groups, and four sign masks.
pub(super) struct Crumbs;

impl Codec for Bytes {
    const GROUPS: usize = 1;
    const UNIT_BYTES: usize = 64;
    #[cfg(target_arch = "x86_64")]
    const KEYS_OFFSET: bool = true;

    #[inline(always)]
    unsafe fn unit<S: Simd>(simd: S, ptr: *const u8, _table: S::B) -> [S::B; 4] {
        // SAFETY: the caller keeps the 64 bytes of a unit readable.
        [unsafe { simd.load_bytes(ptr) }; 4]
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn quarter<const KEYS: bool>(
        ptr: *const u8,
        quarter: usize,
        _table: std::arch::x86_64::__m128i,
    ) -> [std::arch::x86_64::__m256i; 4] {
        // SAFETY: the caller has AVX2 and keeps the 64 bytes of a unit readable, of which a
        // quarter is 16.
        unsafe { words::bytes::<KEYS>(ptr, quarter) }
    }
}

impl Codec for Nibbles {
    const GROUPS: usize = 2;
    const UNIT_BYTES: usize = 64;
    #[cfg(target_arch = "x86_64")]
    const KEYS_OFFSET: bool = false;

    #[inline(always)]
    unsafe fn unit<S: Simd>(simd: S, ptr: *const u8, table: S::B) -> [S::B; 4] {
        // SAFETY: the caller keeps the 64 bytes of a unit readable.
        let codes = unsafe { simd.load_bytes(ptr) };
        let low = simd.lookup(table, simd.bit_field::<0>(codes, 15));
        let high = simd.lookup(table, simd.bit_field::<4>(codes, 15));
        [low, high, low, high]
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn quarter<const KEYS: bool>(
        ptr: *const u8,
        quarter: usize,
        table: std::arch::x86_64::__m128i,
    ) -> [std::arch::x86_64::__m256i; 4] {
        // SAFETY: the caller has AVX2 and keeps the 64 bytes of a unit readable, of which a
        // quarter is 16.
        unsafe { words::nibbles(ptr, quarter, table) }
    }
}

impl Codec for Crumbs {
    const GROUPS: usize = 4;
    const UNIT_BYTES: usize = 96;
    #[cfg(target_arch = "x86_64")]
    const KEYS_OFFSET: bool = false;

    #[inline(always)]
    unsafe fn unit<S: Simd>(simd: S, ptr: *const u8, table: S::B) -> [S::B; 4] {
        // SAFETY: the caller keeps the 96 bytes of a unit readable; the masks are the last 32.
        unsafe {
            let codes = simd.load_bytes(ptr);
            [
                signed_crumbs::<S, 0>(simd, codes, ptr.add(64), table),
                signed_crumbs::<S, 2>(simd, codes, ptr.add(72), table),
                signed_crumbs::<S, 4>(simd, codes, ptr.add(80), table),
                signed_crumbs::<S, 6>(simd, codes, ptr.add(88), table),
            ]
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn quarter<const KEYS: bool>(
        ptr: *const u8,
        quarter: usize,
        table: std::arch::x86_64::__m128i,
    ) -> [std::arch::x86_64::__m256i; 4] {
        // SAFETY: the caller has AVX2 and keeps the 96 bytes of a unit readable; the masks are the
        // last 32, 8 to a group, of which a quarter takes 2.
        unsafe {
            let masks = ptr.add(64 + 2 * quarter).cast::<u16>();
            words::crumbs(ptr.add(16 * quarter), masks, table)
        }
    }
}

/// The group whose magnitudes are the bits `SHIFT` and `SHIFT + 1` of each byte and whose signs are
/// the 64 bits at `signs`.
///
/// # Safety
/// 8 bytes are readable at `signs`.
#[inline(always)]
unsafe fn signed_crumbs<S: Simd, const SHIFT: u32>(
    simd: S,
    codes: S::B,
    signs: *const u8,
    table: S::B,
) -> S::B {
    // SAFETY: the caller keeps 8 bytes readable.
    let signs = u64::from_le(unsafe { signs.cast::<u64>().read_unaligned() });
    simd.lookup(table, simd.add_where(simd.bit_field::<SHIFT>(codes, 3), signs, 4))
}

/// Quarters of groups as 16-bit words.
#[cfg(target_arch = "x86_64")]
mod words {
    use std::arch::x86_64::*;

    /// Sixteen codes of a byte each.
    ///
    /// # Safety
    /// AVX2; 64 bytes are readable at `ptr`.
    #[inline(always)]
    pub(super) unsafe fn bytes<const KEYS: bool>(ptr: *const u8, quarter: usize) -> [__m256i; 4] {
        // SAFETY: the caller's quarter is below 4, and so 16 of the 64 bytes.
        unsafe {
            let codes = _mm_loadu_si128(ptr.add(16 * quarter).cast());
            [if KEYS { _mm256_cvtepu8_epi16(codes) } else { _mm256_cvtepi8_epi16(codes) }; 4]
        }
    }

    /// Sixteen codes of a nibble each, of two groups.
    ///
    /// # Safety
    /// AVX2; 64 bytes are readable at `ptr`.
    #[inline(always)]
    pub(super) unsafe fn nibbles(ptr: *const u8, quarter: usize, table: __m128i) -> [__m256i; 4] {
        // SAFETY: the caller's quarter is below 4, and so 16 of the 64 bytes.
        unsafe {
            let codes = _mm_loadu_si128(ptr.add(16 * quarter).cast());
            let nibble = _mm_set1_epi8(15);
            let low = _mm_and_si128(codes, nibble);
            let high = _mm_and_si128(_mm_srli_epi16::<4>(codes), nibble);
            let low = _mm256_cvtepi8_epi16(_mm_shuffle_epi8(table, low));
            let high = _mm256_cvtepi8_epi16(_mm_shuffle_epi8(table, high));
            [low, high, low, high]
        }
    }

    /// Sixteen codes of four groups: magnitudes in the bytes at `ptr`, signs at `masks`.
    ///
    /// # Safety
    /// AVX2; 16 bytes are readable at `ptr`, and 2 at `masks` and 8, 16 and 24 bytes after it.
    #[inline(always)]
    pub(super) unsafe fn crumbs(ptr: *const u8, masks: *const u16, table: __m128i) -> [__m256i; 4] {
        // SAFETY: the caller keeps these bytes readable.
        unsafe {
            let codes = _mm_loadu_si128(ptr.cast());
            [
                signed::<0>(codes, masks, table),
                signed::<2>(codes, masks.add(4), table),
                signed::<4>(codes, masks.add(8), table),
                signed::<6>(codes, masks.add(12), table),
            ]
        }
    }

    /// The words of sixteen codes whose magnitudes are the bits `SHIFT` and `SHIFT + 1` of each
    /// byte and whose signs are the bits at `signs`.
    ///
    /// # Safety
    /// AVX2; 2 bytes are readable at `signs`.
    #[inline(always)]
    unsafe fn signed<const SHIFT: i32>(
        codes: __m128i,
        signs: *const u16,
        table: __m128i,
    ) -> __m256i {
        // SAFETY: the caller keeps 2 bytes readable. Byte i gets byte i/8 of the mask, then its
        // bit of it.
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
}
