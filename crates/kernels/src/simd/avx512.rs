//! AVX-512 with VBMI and VNNI: one register per logical vector.

use super::tables::{Places, code_shifts, spread_bytes};
use super::{EXP2, Kernel, LANES, Simd, intrinsics};
use crate::attention::int8_avx512::Int8Products;
use crate::weights::FloatType;
use std::arch::x86_64::*;

/// Token of AVX-512; made by [`run`] only.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(());

/// Runs `kernel` with AVX-512.
///
/// # Safety
/// The processor has the features enabled here.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vnni,fma,f16c")]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx512(()))
}

/// The four even, then the four odd codes of eight.
const EVEN_ODD: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];
const EVEN: [usize; 8] = [0, 2, 4, 6, 8, 10, 12, 14];
const ODD: [usize; 8] = [1, 3, 5, 7, 9, 11, 13, 15];
const EVEN_DWORDS: [i32; LANES] = [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30];
const ODD_DWORDS: [i32; LANES] = [1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31];

impl Simd for Avx512 {
    const WIDE_TILES: bool = true;
    /// Six rows would fit, but their loop comes out with 42 copies between registers.
    const ATTENTION_ROWS: usize = 5;
    const ATTENTION_VECTORS: usize = 4;
    const ATTENTION_LEAD_BYTES: usize = 4096;
    type CodeProducts = Int8Products;
    type F = __m512;
    type I = __m512i;
    type B = __m512i;
    type Table = __m512;

    #[inline(always)]
    fn outline<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: `self` proves the features that `run` enables.
        unsafe { run(kernel) }
    }

    intrinsics! {
        fn splat(value: f32) -> __m512 { _mm512_set1_ps(value) }
        fn add(a: __m512, b: __m512) -> __m512 { _mm512_add_ps(a, b) }
        fn sub(a: __m512, b: __m512) -> __m512 { _mm512_sub_ps(a, b) }
        fn mul(a: __m512, b: __m512) -> __m512 { _mm512_mul_ps(a, b) }
        fn div(a: __m512, b: __m512) -> __m512 { _mm512_div_ps(a, b) }
        fn fma(a: __m512, b: __m512, c: __m512) -> __m512 { _mm512_fmadd_ps(a, b, c) }
        fn max(a: __m512, b: __m512) -> __m512 { _mm512_max_ps(a, b) }
        fn min(a: __m512, b: __m512) -> __m512 { _mm512_min_ps(a, b) }
        fn abs(a: __m512) -> __m512 { _mm512_abs_ps(a) }
        fn pow2(n: __m512i) -> __m512 {
            let biased = _mm512_add_epi32(n, _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased))
        }
        fn exp2(x: __m512) -> __m512 {
            // Adding 1.5·2²³ rounds to an integer; that is cheaper than `vrndscaleps`.
            let magic = _mm512_set1_ps(12_582_912.0);
            let whole = _mm512_sub_ps(_mm512_add_ps(x, magic), magic);
            let fraction = _mm512_sub_ps(x, whole);
            let mut sum = _mm512_set1_ps(EXP2[5]);
            for coefficient in EXP2[..5].iter().rev() {
                sum = _mm512_fmadd_ps(sum, fraction, _mm512_set1_ps(*coefficient));
            }
            _mm512_scalef_ps(sum, whole)
        }
        fn hadamard(x: __m512) -> __m512 {
            let x = butterfly(x, _mm512_permute_ps::<0b10_11_00_01>(x), 0xAAAA);
            let x = butterfly(x, _mm512_permute_ps::<0b01_00_11_10>(x), 0xCCCC);
            let x = butterfly(x, _mm512_shuffle_f32x4::<0b10_11_00_01>(x, x), 0xF0F0);
            butterfly(x, _mm512_shuffle_f32x4::<0b01_00_11_10>(x, x), 0xFF00)
        }
        fn select(from: usize, to: usize, a: __m512, b: __m512) -> __m512 {
            _mm512_mask_blend_ps(lanes_below(to) & !lanes_below(from), b, a)
        }
        fn sum(a: __m512) -> f32 { _mm512_reduce_add_ps(a) }
        fn max_lane(a: __m512) -> f32 { _mm512_reduce_max_ps(a) }
        fn to_int(a: __m512) -> __m512i { _mm512_cvtps_epi32(a) }
        fn to_float(a: __m512i) -> __m512 { _mm512_cvtepi32_ps(a) }
        fn float_bits(a: __m512) -> __m512i { _mm512_castps_si512(a) }
        fn bits_float(a: __m512i) -> __m512 { _mm512_castsi512_ps(a) }
        fn zero_int() -> __m512i { _mm512_setzero_si512() }
        fn byte_table(entries: &[u8; 16]) -> __m512i {
            _mm512_broadcast_i32x4(_mm_loadu_si128(entries.as_ptr().cast()))
        }
        fn lookup(table: __m512i, indices: __m512i) -> __m512i {
            _mm512_shuffle_epi8(table, indices)
        }
        fn flip_sign(bytes: __m512i) -> __m512i {
            _mm512_xor_si512(bytes, _mm512_set1_epi8(-128))
        }
        fn add_where(bytes: __m512i, mask: u64, value: u8) -> __m512i {
            _mm512_mask_add_epi8(bytes, mask, bytes, _mm512_set1_epi8(value.cast_signed()))
        }
        fn times_256(a: __m512i) -> __m512i { _mm512_slli_epi32::<8>(a) }
        fn split_digit(a: __m512i) -> (__m512i, __m512i) {
            let high = _mm512_srai_epi32::<8>(_mm512_add_epi32(a, _mm512_set1_epi32(128)));
            (high, _mm512_sub_epi32(a, _mm512_slli_epi32::<8>(high)))
        }
    }

    #[inline(always)]
    fn bit_field<const SHIFT: u32>(self, bytes: __m512i, mask: u8) -> __m512i {
        // SAFETY: `self` proves AVX-512. The mask drops the bits that cross a byte.
        unsafe {
            let mask = _mm512_set1_epi8(mask.cast_signed());
            _mm512_and_si512(_mm512_srli_epi16::<SHIFT>(bytes), mask)
        }
    }
    #[inline(always)]
    fn byte_to_float<const COLUMN: u32>(self, bytes: __m512i) -> __m512 {
        // SAFETY: `self` proves AVX-512. The left shift brings the byte to the top of its lane.
        unsafe {
            let top = match COLUMN {
                0 => _mm512_slli_epi32::<24>(bytes),
                1 => _mm512_slli_epi32::<16>(bytes),
                2 => _mm512_slli_epi32::<8>(bytes),
                _ => bytes,
            };
            _mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(top))
        }
    }
    #[inline(always)]
    fn prefetch_kv(self, ptr: *const u8) {
        self.prefetch(ptr);
    }
    #[inline(always)]
    fn table(self, values: __m512) -> __m512 {
        values
    }
    #[inline(always)]
    fn expand<const NARROW: bool>(self, table: &__m512, places: Places, unit: usize) -> __m512 {
        let lanes = places.lanes(unit).as_ptr();
        // SAFETY: `self` proves AVX-512; the row has 64 bytes.
        unsafe { _mm512_permutexvar_ps(_mm512_loadu_si512(lanes.cast()), *table) }
    }
    #[inline(always)]
    fn dot<const BITS: u32>(self, acc: __m512i, u: __m512i, s: __m512i) -> __m512i {
        // SAFETY: `self` proves AVX512-VNNI.
        unsafe { _mm512_dpbusd_epi32(acc, u, s) }
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
    unsafe fn load(self, ptr: *const f32) -> __m512 {
        // SAFETY: the caller keeps 64 bytes readable at `ptr`.
        unsafe { _mm512_loadu_ps(ptr) }
    }
    #[inline(always)]
    unsafe fn store(self, ptr: *mut f32, value: __m512) {
        // SAFETY: the caller keeps 64 bytes writable at `ptr`.
        unsafe { _mm512_storeu_ps(ptr, value) }
    }
    #[inline(always)]
    unsafe fn load_f16(self, ptr: *const u8) -> __m512 {
        // SAFETY: the caller keeps 32 bytes readable at `ptr`. `_mm512_cvtph_ps` could not read from memory
        // itself.
        unsafe { _mm512_cvt_roundph_ps::<_MM_FROUND_CUR_DIRECTION>(_mm256_loadu_si256(ptr.cast())) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, ptr: *const u8) -> __m512 {
        // SAFETY: the caller keeps 32 bytes readable at `ptr`; a bfloat16 is the upper half of an `f32`.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(ptr.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    unsafe fn load_some_floats(self, ty: FloatType, ptr: *const u8, count: usize) -> __m512 {
        let mask = lanes_below(count);
        // SAFETY: the mask keeps the loads to the first `count` values, which are readable.
        unsafe {
            if ty == FloatType::F32 {
                return _mm512_maskz_loadu_ps(mask, ptr.cast());
            }
            let halves = _mm256_maskz_loadu_epi16(mask, ptr.cast());
            if ty == FloatType::F16 {
                return _mm512_cvt_roundph_ps::<_MM_FROUND_CUR_DIRECTION>(halves);
            }
            let wide = _mm512_cvtepu16_epi32(halves);
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    unsafe fn load_bytes(self, ptr: *const u8) -> __m512i {
        // SAFETY: the caller keeps 64 bytes readable at `ptr`.
        unsafe { _mm512_loadu_si512(ptr.cast()) }
    }
    #[inline(always)]
    unsafe fn store_bytes(self, ptr: *mut u8, value: __m512i) {
        // SAFETY: the caller keeps 64 bytes writable at `ptr`.
        unsafe { _mm512_storeu_si512(ptr.cast(), value) }
    }
    #[inline(always)]
    unsafe fn splat_quad(self, ptr: *const u8) -> __m512i {
        // SAFETY: the caller keeps 4 bytes readable at `ptr`.
        unsafe { _mm512_set1_epi32(ptr.cast::<i32>().read_unaligned()) }
    }
    #[inline(always)]
    unsafe fn unpack<const BITS: u32>(
        self,
        ptr: *const u8,
        _readable: usize,
    ) -> (__m512i, __m512i) {
        // SAFETY: every arm reads 16·BITS bytes, and masked loads do not touch the rest.
        unsafe {
            match BITS {
                4 => {
                    let codes = _mm512_loadu_si512(ptr.cast());
                    let mask = _mm512_set1_epi8(15);
                    let high = _mm512_srli_epi16::<4>(codes);
                    (_mm512_and_si512(codes, mask), _mm512_and_si512(high, mask))
                }
                2 => unpack_narrow(ptr, 2, &const { Narrow::new(2) }),
                3 => unpack_narrow(ptr, 3, &const { Narrow::new(3) }),
                5 => unpack_wide(ptr, 5, &const { Wide::new(5) }),
                6 => unpack_wide(ptr, 6, &const { Wide::new(6) }),
                _ => unpack_bytes(ptr),
            }
        }
    }
    #[inline(always)]
    unsafe fn store_low_bytes(self, ptr: *mut u8, ints: __m512i) {
        // SAFETY: the caller keeps 16 bytes writable at `ptr`.
        unsafe { _mm_storeu_si128(ptr.cast(), _mm512_cvtepi32_epi8(ints)) }
    }
    #[inline(always)]
    unsafe fn transpose(self, rows: &[*const u32; LANES], dst: *mut u32, dst_stride: usize) {
        // SAFETY: `self` proves AVX-512; the rows and columns are the caller's.
        unsafe { transpose(rows, dst, dst_stride) }
    }
}

/// Mask of the lanes below `n`; all of them from 16 on.
#[inline(always)]
fn lanes_below(n: usize) -> __mmask16 {
    /// By number of lanes. A shift would have to shift all sixteen bits out for one end.
    static BELOW: [__mmask16; LANES + 1] = {
        let mut masks = [0; LANES + 1];
        let mut n = 1;
        while n <= LANES {
            masks[n] = (masks[n - 1] << 1) | 1;
            n += 1;
        }
        masks
    };
    BELOW[n.min(LANES)]
}

/// One stage of a Walsh–Hadamard transform: `x + partner`, or `partner − x` in the lanes `second`.
///
/// # Safety
/// AVX-512.
#[inline(always)]
unsafe fn butterfly(x: __m512, partner: __m512, second: __mmask16) -> __m512 {
    // SAFETY: registers only.
    unsafe { _mm512_mask_sub_ps(_mm512_add_ps(x, partner), second, partner, x) }
}

/// Shuffles for codes of at most 4 bits, where 16 codes fit into a qword.
struct Narrow {
    bytes: [u8; 64],
    even: [u8; 64],
    odd: [u8; 64],
}

impl Narrow {
    const fn new(bits: usize) -> Self {
        Self {
            bytes: spread_bytes(2 * bits),
            even: code_shifts(bits, EVEN),
            odd: code_shifts(bits, ODD),
        }
    }
}

/// # Safety
/// AVX-512 VBMI; `16 * bits` bytes are readable at `ptr`.
#[inline(always)]
unsafe fn unpack_narrow(ptr: *const u8, bits: u32, shuffle: &Narrow) -> (__m512i, __m512i) {
    // SAFETY: the mask keeps the load to 4·bits dwords; the tables are 64 bytes each.
    unsafe {
        let codes = _mm512_maskz_loadu_epi32((1 << (4 * bits)) - 1, ptr.cast());
        let spread = _mm512_permutexvar_epi8(table(&shuffle.bytes), codes);
        let mask = code_mask(bits);
        let even = _mm512_multishift_epi64_epi8(table(&shuffle.even), spread);
        let odd = _mm512_multishift_epi64_epi8(table(&shuffle.odd), spread);
        (_mm512_and_si512(even, mask), _mm512_and_si512(odd, mask))
    }
}

/// Shuffles for 5- and 6-bit codes, of which 8 fit into a qword.
struct Wide {
    bytes: [u8; 64],
    shifts: [u8; 64],
}

impl Wide {
    const fn new(bits: usize) -> Self {
        Self { bytes: spread_bytes(bits), shifts: code_shifts(bits, EVEN_ODD) }
    }
}

/// # Safety
/// AVX-512 VBMI; `16 * bits` bytes are readable at `ptr`.
#[inline(always)]
unsafe fn unpack_wide(ptr: *const u8, bits: u32, shuffle: &Wide) -> (__m512i, __m512i) {
    // SAFETY: each half reads 2·bits dwords; the tables are 64 bytes each.
    unsafe {
        let load = (1 << (2 * bits)) - 1;
        let first = _mm512_maskz_loadu_epi32(load, ptr.cast());
        let second = _mm512_maskz_loadu_epi32(load, ptr.add(8 * bits as usize).cast());
        let bytes = table(&shuffle.bytes);
        let shifts = table(&shuffle.shifts);
        let mask = code_mask(bits);
        let first = _mm512_multishift_epi64_epi8(shifts, _mm512_permutexvar_epi8(bytes, first));
        let second = _mm512_multishift_epi64_epi8(shifts, _mm512_permutexvar_epi8(bytes, second));
        split_dwords(_mm512_and_si512(first, mask), _mm512_and_si512(second, mask))
    }
}

/// # Safety
/// AVX-512; 128 bytes are readable at `ptr`.
#[inline(always)]
unsafe fn unpack_bytes(ptr: *const u8) -> (__m512i, __m512i) {
    // SAFETY: 128 bytes are readable.
    unsafe {
        let order = _mm512_set1_epi64(0x0705_0301_0604_0200);
        let in_lanes = _mm512_set4_epi32(0x0808_0808, 0x0808_0808, 0, 0);
        let order = _mm512_add_epi8(order, in_lanes);
        let first = _mm512_shuffle_epi8(_mm512_loadu_si512(ptr.cast()), order);
        let second = _mm512_shuffle_epi8(_mm512_loadu_si512(ptr.add(64).cast()), order);
        split_dwords(first, second)
    }
}

/// The even and the odd dwords of 32.
///
/// # Safety
/// AVX-512.
#[inline(always)]
unsafe fn split_dwords(first: __m512i, second: __m512i) -> (__m512i, __m512i) {
    // SAFETY: the tables are 64 bytes each.
    unsafe {
        let even = _mm512_loadu_si512(EVEN_DWORDS.as_ptr().cast());
        let odd = _mm512_loadu_si512(ODD_DWORDS.as_ptr().cast());
        (
            _mm512_permutex2var_epi32(first, even, second),
            _mm512_permutex2var_epi32(first, odd, second),
        )
    }
}

/// # Safety
/// AVX-512.
#[inline(always)]
unsafe fn table(bytes: &[u8; 64]) -> __m512i {
    // SAFETY: 64 bytes are readable.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

/// # Safety
/// AVX-512.
#[inline(always)]
unsafe fn code_mask(bits: u32) -> __m512i {
    // SAFETY: registers only.
    unsafe { _mm512_set1_epi8((1 << bits) - 1) }
}

/// Transposes 16×16 dwords; see [`Simd::transpose`].
///
/// # Safety
/// AVX-512, and as for [`Simd::transpose`].
#[inline(always)]
unsafe fn transpose(rows: &[*const u32; LANES], dst: *mut u32, dst_stride: usize) {
    // SAFETY: the caller keeps rows 0..16 of 64 bytes readable and columns 0..16 writable.
    unsafe {
        let mut r = [_mm512_setzero_si512(); LANES];
        for (i, row) in r.iter_mut().enumerate() {
            *row = _mm512_loadu_si512(rows[i].cast());
        }
        let mut t = r;
        for i in 0..8 {
            t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
            t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
        }
        for i in 0..4 {
            let q = 4 * i;
            r[q] = _mm512_unpacklo_epi64(t[q], t[q + 2]);
            r[q + 1] = _mm512_unpackhi_epi64(t[q], t[q + 2]);
            r[q + 2] = _mm512_unpacklo_epi64(t[q + 1], t[q + 3]);
            r[q + 3] = _mm512_unpackhi_epi64(t[q + 1], t[q + 3]);
        }
        // `r[4i + c]` now holds, in 128-bit lane `k`, column `4k + c` of rows `4i..4i+4`.
        for c in 0..4 {
            let low = (
                _mm512_shuffle_i32x4::<0x88>(r[c], r[c + 4]),
                _mm512_shuffle_i32x4::<0xdd>(r[c], r[c + 4]),
            );
            let high = (
                _mm512_shuffle_i32x4::<0x88>(r[c + 8], r[c + 12]),
                _mm512_shuffle_i32x4::<0xdd>(r[c + 8], r[c + 12]),
            );
            let columns = [
                (c, _mm512_shuffle_i32x4::<0x88>(low.0, high.0)),
                (c + 4, _mm512_shuffle_i32x4::<0x88>(low.1, high.1)),
                (c + 8, _mm512_shuffle_i32x4::<0xdd>(low.0, high.0)),
                (c + 12, _mm512_shuffle_i32x4::<0xdd>(low.1, high.1)),
            ];
            for (column, value) in columns {
                _mm512_storeu_si512(dst.add(column * dst_stride).cast(), value);
            }
        }
    }
}
