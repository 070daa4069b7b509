//! A portable vector of sixteen lanes, and the dispatch to the instruction set that runs it.
//!
//! Kernels are written once, over [`Simd`], and compiled once per instruction set by
//! [`dispatch`]. A logical vector holds 16 `f32` ([`Simd::F`]), 16 `i32` ([`Simd::I`]) or 64
//! bytes ([`Simd::B`]); AVX-512 keeps it in one register, AVX2 in two, NEON in four.
//!
//! A value of a `Simd` type is a proof that the processor has its instructions: only
//! [`dispatch`] makes one, from a [`Cpu`]. So methods are safe, except those that take pointers.
//! All methods are `#[inline(always)]`: they must end up inside the function that enables the
//! target features, and kernels must not wrap them in closures that might not be inlined.
//!
//! # The unit order of codes
//! Codes (and quantised activations) are processed in units of [`UNIT`] = 128 elements, held as
//! two byte vectors: dword lane `l` of the first holds elements `8l + {0,2,4,6}`, of the second
//! `8l + {1,3,5,7}`. For 4-bit codes these are the low and high nibbles of a 64-byte load, and
//! for every width a lane touches only eight neighbours, hence one quantisation group.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;
pub(crate) mod tables;

use self::tables::Places;
use crate::attention::CodeProducts;
use crate::isa::{Cpu, Isa};
use crate::weights::FloatType;

/// Lanes of a logical vector.
pub(crate) const LANES: usize = 16;
/// Elements of a unit of codes.
pub(crate) const UNIT: usize = 128;

/// Operations on logical vectors; see the module documentation.
pub(crate) trait Simd: Copy + Send + Sync + 'static {
    /// True for the portable set, for which kernels are not specialised.
    const PORTABLE: bool = false;
    /// True if [`Simd::dot`] is faster when its unsigned bytes are known to stay below 128.
    const NARROW_DOTS: bool = false;
    /// True if [`Simd::expand`] differs for the narrowest groups.
    const NARROW_EXPAND: bool = false;
    /// True if a matrix tile may use 24 accumulators (32 registers) instead of 8 (16 registers).
    const WIDE_TILES: bool;
    /// Rows of the register tile of attention's `f32` products, at most 6.
    const ATTENTION_ROWS: usize;
    /// Logical vectors per row of that tile: 4, 2 or 1.
    const ATTENTION_VECTORS: usize;
    /// Least distance in bytes at which attention asks for the cache that it reads next.
    const ATTENTION_LEAD_BYTES: usize;
    /// Attention's products with the codes of quantised caches, for which every instruction set
    /// has other integer instructions, or none.
    type CodeProducts: CodeProducts<Self>;
    /// 16 lanes of `f32`.
    type F: Copy;
    /// 16 lanes of `i32`.
    type I: Copy;
    /// 64 bytes.
    type B: Copy;
    /// Table for [`Simd::expand`].
    type Table: Copy;

    /// Runs `kernel` as a function of its own, compiled for this instruction set.
    fn outline<K: Kernel>(self, kernel: K) -> K::Output;
    /// All lanes `value`.
    fn splat(self, value: f32) -> Self::F;
    /// All lanes zero.
    fn zero(self) -> Self::F {
        self.splat(0.0)
    }
    /// `a + b`.
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a - b`.
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b`.
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a / b`.
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The larger of each pair of lanes: NaN where `b` is, and `b` or NaN where only `a` is.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// The smaller of each pair of lanes: NaN where `b` is, and `b` or NaN where only `a` is.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// Absolute values.
    fn abs(self, a: Self::F) -> Self::F;
    /// 2ⁿ for lanes in −126..=127.
    fn pow2(self, n: Self::I) -> Self::F;
    /// 2ˣ within 2 ulp for finite lanes up to 127; below −126 the result is 0 or about 2^−126. NaN
    /// stays NaN.
    fn exp2(self, x: Self::F) -> Self::F;
    /// Walsh–Hadamard transform of the lanes, not normalised.
    fn hadamard(self, x: Self::F) -> Self::F;
    /// Lanes `from..to` of `a` and the others of `b`; both ends may lie beyond the last lane.
    fn select(self, from: usize, to: usize, a: Self::F, b: Self::F) -> Self::F;
    /// Sum of the lanes.
    fn sum(self, a: Self::F) -> f32;
    /// Sum of the lanes in the order in which the softmax adds them, which differs from that of
    /// [`Simd::sum`] on AVX2.
    #[inline(always)]
    fn softmax_sum(self, a: Self::F) -> f32 {
        self.sum(a)
    }
    /// Sums of the lanes of several vectors.
    #[inline(always)]
    fn sums<const N: usize>(self, a: [Self::F; N]) -> [f32; N] {
        let mut sums = [0.0; N];
        for i in 0..N {
            sums[i] = self.sum(a[i]);
        }
        sums
    }
    /// Largest lane.
    fn max_lane(self, a: Self::F) -> f32;
    /// Nearest integers (ties to even); lanes stay within ±2²³.
    fn to_int(self, a: Self::F) -> Self::I;
    /// Integers as floats.
    fn to_float(self, a: Self::I) -> Self::F;
    /// The bits of floats.
    fn float_bits(self, a: Self::F) -> Self::I;
    /// The floats with these bits.
    fn bits_float(self, a: Self::I) -> Self::F;
    /// `(sum − bias) · scale` for an integer sum that started from the bits of the float `bias`,
    /// a multiple of 2²²; `offset` is −`bias · scale`, exactly.
    #[inline(always)]
    fn unbias(self, sum: Self::I, _bias: f32, scale: Self::F, offset: Self::F) -> Self::F {
        self.fma(self.bits_float(sum), scale, offset)
    }
    /// All lanes zero.
    fn zero_int(self) -> Self::I;
    /// `acc + Σ₄ u·s` per dword lane: `u` unsigned and `s` signed bytes.
    /// With `BITS` ≤ 7, `u` must stay below 2^`BITS`; the sum must fit into an `i32`.
    fn dot<const BITS: u32>(self, acc: Self::I, u: Self::B, s: Self::B) -> Self::I;
    /// [`Simd::dot`] over both vectors of a unit, from zero.
    #[inline(always)]
    fn dot_unit<const BITS: u32>(self, u: (Self::B, Self::B), s: (Self::B, Self::B)) -> Self::I {
        self.dot::<BITS>(self.dot::<BITS>(self.zero_int(), u.0, s.0), u.1, s.1)
    }
    /// [`Simd::dot_unit`] with numbers of two digits: `Σ u·(256·high + low)`.
    #[inline(always)]
    fn dot_unit_wide<const BITS: u32>(
        self,
        u: (Self::B, Self::B),
        high: (Self::B, Self::B),
        low: (Self::B, Self::B),
    ) -> Self::I {
        let high = self.times_256(self.dot_unit::<BITS>(u, high));
        self.dot::<BITS>(self.dot::<BITS>(high, u.0, low.0), u.1, low.1)
    }
    /// Sixteen values as a table for [`Simd::expand`].
    fn table(self, values: Self::F) -> Self::Table;
    /// The value of each dword lane's group in unit `unit` of those that 16 groups make; `table`
    /// has a value for each group. `NARROW` if they are [`tables::NARROW_GROUP`] wide.
    fn expand<const NARROW: bool>(
        self,
        table: &Self::Table,
        places: Places,
        unit: usize,
    ) -> Self::F;

    /// Loads 16 values.
    ///
    /// # Safety
    /// 64 bytes are readable at `ptr`; no alignment is needed.
    unsafe fn load(self, ptr: *const f32) -> Self::F;
    /// Stores 16 values.
    ///
    /// # Safety
    /// 64 bytes are writable at `ptr`; no alignment is needed.
    unsafe fn store(self, ptr: *mut f32, value: Self::F);
    /// Loads 16 half-precision values.
    ///
    /// # Safety
    /// 32 bytes are readable at `ptr`; no alignment is needed.
    unsafe fn load_f16(self, ptr: *const u8) -> Self::F;
    /// Loads 16 bfloat16 values.
    ///
    /// # Safety
    /// 32 bytes are readable at `ptr`; no alignment is needed.
    unsafe fn load_bf16(self, ptr: *const u8) -> Self::F;
    /// Loads 64 bytes.
    ///
    /// # Safety
    /// 64 bytes are readable at `ptr`; no alignment is needed.
    unsafe fn load_bytes(self, ptr: *const u8) -> Self::B;
    /// Stores 64 bytes.
    ///
    /// # Safety
    /// 64 bytes are writable at `ptr`; no alignment is needed.
    unsafe fn store_bytes(self, ptr: *mut u8, value: Self::B);
    /// The four bytes at `ptr` in every dword lane.
    ///
    /// # Safety
    /// 4 bytes are readable at `ptr`; no alignment is needed.
    unsafe fn splat_quad(self, ptr: *const u8) -> Self::B;
    /// One unit of packed `BITS`-bit codes in unit order; see [`UNIT`].
    ///
    /// # Safety
    /// `readable >= 16 * BITS` bytes are readable at `ptr`; no alignment is needed.
    unsafe fn unpack<const BITS: u32>(self, ptr: *const u8, readable: usize) -> (Self::B, Self::B);
    /// Sixteen bytes as a table for [`Simd::lookup`].
    fn byte_table(self, entries: &[u8; 16]) -> Self::B;
    /// Entry `i` of the [`Simd::byte_table`] for each byte `i` of `indices`, all below 16.
    fn lookup(self, table: Self::B, indices: Self::B) -> Self::B;
    /// Every byte with its top bit flipped, which converts between signed and offset 128.
    fn flip_sign(self, bytes: Self::B) -> Self::B;
    /// `(byte >> SHIFT) & mask` for each byte; `mask` has at most 8 − `SHIFT` bits.
    fn bit_field<const SHIFT: u32>(self, bytes: Self::B, mask: u8) -> Self::B;
    /// Adds `value` to the bytes whose bit is set in `mask`.
    fn add_where(self, bytes: Self::B, mask: u64, value: u8) -> Self::B;
    /// The signed byte `COLUMN` of each dword lane as a float.
    fn byte_to_float<const COLUMN: u32>(self, bytes: Self::B) -> Self::F;
    /// Stores the low bytes of 16 integers.
    ///
    /// # Safety
    /// 16 bytes are writable at `ptr`; no alignment is needed.
    unsafe fn store_low_bytes(self, ptr: *mut u8, ints: Self::I);
    /// `256 · a`; it must fit into an `i32`.
    fn times_256(self, a: Self::I) -> Self::I;
    /// Splits `a` into `(high, low)` with `a == 256 · high + low` and `low` in −128..=127.
    fn split_digit(self, a: Self::I) -> (Self::I, Self::I);
    /// Transposes 16 rows of 16 dwords: `dst[dst_stride·c + r] = rows[r][c]`.
    ///
    /// # Safety
    /// 64 bytes are readable at each row, and writable at `dst + c·dst_stride` for `c` in 0..16;
    /// no alignment is needed.
    unsafe fn transpose(self, rows: &[*const u32; LANES], dst: *mut u32, dst_stride: usize);

    /// Asks for the cache line at `ptr`, which may be any address.
    fn prefetch(self, _ptr: *const u8) {}
    /// Asks for the cache line at `ptr`, in the second-level cache; it may be any address.
    fn prefetch_far(self, _ptr: *const u8) {}

    /// Asks for the cache line at `ptr`, which attention reads at least
    /// [`Simd::ATTENTION_LEAD_BYTES`] later; it may be any address.
    #[inline(always)]
    fn prefetch_kv(self, ptr: *const u8) {
        self.prefetch_far(ptr);
    }

    /// Loads 16 values of `ty`.
    ///
    /// # Safety
    /// `16 * ty.bytes()` bytes are readable at `ptr`; no alignment is needed.
    #[inline(always)]
    unsafe fn load_floats(self, ty: FloatType, ptr: *const u8) -> Self::F {
        // SAFETY: the caller keeps 16 values of `ty` readable, which is what each arm reads.
        unsafe {
            match ty {
                FloatType::F32 => self.load(ptr.cast()),
                FloatType::F16 => self.load_f16(ptr),
                FloatType::Bf16 => self.load_bf16(ptr),
            }
        }
    }

    /// Loads the first `count` ≤ 16 values of `ty`; the other lanes are zero.
    ///
    /// # Safety
    /// `count * ty.bytes()` bytes are readable at `ptr`; no alignment is needed.
    #[inline(always)]
    unsafe fn load_some_floats(self, ty: FloatType, ptr: *const u8, count: usize) -> Self::F {
        if count >= LANES {
            // SAFETY: the caller keeps `count >= 16` values readable.
            return unsafe { self.load_floats(ty, ptr) };
        }
        let mut padded = [0u16; 32];
        for (i, padded) in padded.iter_mut().enumerate().take(count * ty.bytes() / 2) {
            // SAFETY: `count` values of an even number of bytes are readable.
            *padded = unsafe { ptr.add(2 * i).cast::<u16>().read_unaligned() };
        }
        // SAFETY: `padded` has 64 bytes.
        unsafe { self.load_floats(ty, padded.as_ptr().cast()) }
    }
}

/// Defines safe methods whose body is intrinsics of the implementing type's instruction set.
macro_rules! intrinsics {
    ($(fn $name:ident($($arg:ident: $ty:ty),*) -> $ret:ty { $($body:tt)* })*) => {$(
        #[inline(always)]
        fn $name(self, $($arg: $ty),*) -> $ret {
            // SAFETY: `self` exists only where the processor has this type's features, and the
            // intrinsics used here touch registers only.
            unsafe { $($body)* }
        }
    )*};
}
use intrinsics;

/// A computation that runs on any instruction set.
pub(crate) trait Kernel {
    /// True if it takes 8-bit dot products. Kernels that do not are identical code on processors
    /// that differ in nothing else, and are compiled once for both.
    #[cfg_attr(
        not(target_arch = "x86_64"),
        expect(dead_code, reason = "only x86 has a set with and without them")
    )]
    const INTEGER_DOTS: bool = false;
    /// Result of the computation.
    type Output;
    /// Runs it; implementations are `#[inline(always)]`.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// Runs `kernel` compiled for the instruction set of `cpu`.
#[inline(always)]
pub(crate) fn dispatch<K: Kernel>(cpu: Cpu, kernel: K) -> K::Output {
    match cpu.isa() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a `Cpu` with this instruction set exists only where `probe` found its features.
        Isa::Avx512 => unsafe { avx512::run(kernel) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a `Cpu` with this instruction set exists only where `probe` found its features.
        Isa::Avx2 if K::INTEGER_DOTS && cpu.has_vnni() => unsafe { avx2::run_vnni(kernel) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a `Cpu` with this instruction set exists only where `probe` found its features.
        Isa::Avx2 => unsafe { avx2::run(kernel) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: a `Cpu` with this instruction set exists only where `probe` found its features.
        Isa::Neon => unsafe { neon::run(kernel) },
        _ => scalar::run(kernel),
    }
}

/// Minimax polynomial of 2ˣ on [−1/2, 1/2], ascending powers; relative error 7.5e-8.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
const EXP2: [f32; 6] =
    [1.000_000_1, 0.693_146_94, 0.240_221_2, 0.055_507_135, 0.009_675_541, 0.001_327_647_2];

/// Pointers to the rows of a 16×16 block.
pub(crate) fn row_pointers<T>(rows: &[[T; LANES]; LANES]) -> [*const u32; LANES] {
    const { assert!(size_of::<T>() == size_of::<u32>()) };
    let mut pointers = [std::ptr::null(); LANES];
    for (pointer, row) in pointers.iter_mut().zip(rows) {
        *pointer = row.as_ptr().cast();
    }
    pointers
}

#[cfg(test)]
mod tests;
