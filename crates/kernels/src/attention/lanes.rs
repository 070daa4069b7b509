//! Sixteen f32 lanes and 64 bytes of codes: what every attention kernel is written in.
//!
//! [`Lanes`] is the vector of one instruction set; kernels are generic over it, inlined into
//! functions compiled for that set (see [`super::ops`]). This file has the portable one, which is
//! also the reference for the others.

use half::{bf16, f16};

/// Sixteen f32 and the byte operations that decode cache codes into them.
///
/// # Safety
/// Every method is unsafe for two reasons, which callers argue once for all of them: the processor
/// must have the instruction set of the implementation, and a pointer must be valid for the 16
/// elements (64 bytes for [`Lanes::bytes`]) that are read or written; alignment does not matter.
pub(crate) trait Lanes: Copy {
    /// Sixteen rows of 4 code bytes.
    type Bytes: Copy;
    /// Rows of the register tile of a matrix product.
    const TILE_ROWS: usize;
    /// Vectors per row of that tile: 4, 2 or 1.
    const TILE_BLOCKS: usize;
    /// How far ahead of the codes being read the next ones are asked for, at least.
    const LEAD_BYTES: usize;

    unsafe fn splat(x: f32) -> Self;
    unsafe fn load(p: *const f32) -> Self;
    unsafe fn load_f16(p: *const f16) -> Self;
    unsafe fn load_bf16(p: *const bf16) -> Self;
    unsafe fn store(self, p: *mut f32);
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    unsafe fn div(self, other: Self) -> Self;
    /// The larger one; `other` where either is NaN.
    unsafe fn max(self, other: Self) -> Self;
    /// self·a + b.
    unsafe fn mul_add(self, a: Self, b: Self) -> Self;
    /// Asks for the cache line at `p`, which may be any address.
    unsafe fn prefetch(p: *const u8);
    /// 2^self within 2 ulp for self ≤ 127; values below −126 may give 0. NaN stays NaN.
    unsafe fn exp2(self) -> Self;
    /// The Walsh–Hadamard transform of the 16 lanes, not normalised.
    unsafe fn hadamard(self) -> Self;
    unsafe fn reduce_add(self) -> f32;
    unsafe fn reduce_max(self) -> f32;
    /// Lanes `from..to` of self, the rest of `other`.
    unsafe fn keep(self, from: usize, to: usize, other: Self) -> Self;

    unsafe fn bytes(p: *const u8) -> Self::Bytes;
    /// A 16-entry table for [`Lanes::lookup`].
    unsafe fn table(entries: &[i8; 16]) -> Self::Bytes;
    /// Every byte with its top bit flipped: between signed and offset-128.
    unsafe fn flip(bytes: Self::Bytes) -> Self::Bytes;
    /// `(byte >> SHIFT) & mask`.
    unsafe fn field<const SHIFT: u32>(bytes: Self::Bytes, mask: u8) -> Self::Bytes;
    /// Adds 4 to the bytes whose bit is set in `signs`.
    unsafe fn add_four(bytes: Self::Bytes, signs: u64) -> Self::Bytes;
    /// `table[byte]` for bytes below 16.
    unsafe fn lookup(table: Self::Bytes, bytes: Self::Bytes) -> Self::Bytes;
    /// The signed byte `COLUMN` of each of the sixteen rows.
    unsafe fn widen<const COLUMN: u32>(bytes: Self::Bytes) -> Self;
}

/// Where reading goes on, so that the next lines are on their way: within one area up to its end,
/// then in another one.
///
/// Each core reads a share of the memory bandwidth that its outstanding misses allow; the
/// processor's own prefetchers stop at every page and every jump between areas.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ahead {
    end: *const u8,
    next: *const u8,
    bytes: usize,
}

impl Ahead {
    /// Reads `area` in steps of at most `bytes` that are each in any order, and then `next`.
    pub(crate) fn new<T, U>(area: &[T], next: &[U], bytes: usize) -> Self {
        Self { end: area.as_ptr_range().end.cast(), next: next.as_ptr().cast(), bytes }
    }

    /// Asks for what is read some time after `p`.
    ///
    /// # Safety
    /// The processor must have the instructions of `L`.
    #[inline(always)]
    pub(crate) unsafe fn fetch<L: Lanes>(&self, p: *const u8) {
        let ahead = p.wrapping_add(self.bytes);
        let over = (ahead as usize).wrapping_sub(self.end as usize);
        let beyond = self.next.wrapping_add(over);
        // SAFETY: the caller's; any address may be asked for.
        unsafe { L::prefetch(if ahead < self.end { ahead } else { beyond }) }
    }
}

/// A float that caches store.
pub(crate) trait Element: Copy {
    /// # Safety
    /// As [`Lanes`].
    unsafe fn load<L: Lanes>(p: *const Self) -> L;
}

impl Element for f32 {
    #[inline(always)]
    unsafe fn load<L: Lanes>(p: *const Self) -> L {
        // SAFETY: passed on to the caller.
        unsafe { L::load(p) }
    }
}

impl Element for f16 {
    #[inline(always)]
    unsafe fn load<L: Lanes>(p: *const Self) -> L {
        // SAFETY: passed on to the caller.
        unsafe { L::load_f16(p) }
    }
}

impl Element for bf16 {
    #[inline(always)]
    unsafe fn load<L: Lanes>(p: *const Self) -> L {
        // SAFETY: passed on to the caller.
        unsafe { L::load_bf16(p) }
    }
}

/// Minimax polynomial of 2^x on [−1/2, 1/2], ascending powers; relative error 7.5e-8.
pub(crate) const EXP2: [f32; 6] =
    [1.000_000_1, 0.693_146_94, 0.240_221_2, 0.055_507_135, 0.009_675_541, 0.001_327_647_2];

/// The portable lanes.
#[derive(Clone, Copy)]
pub(crate) struct Portable([f32; 16]);

impl Portable {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|i| f(self.0[i], other.0[i])))
    }
}

// SAFETY comments below refer to the trait's contract: 16 readable or writable elements at `p`.
impl Lanes for Portable {
    type Bytes = [u8; 64];
    const TILE_ROWS: usize = 2;
    const TILE_BLOCKS: usize = 1;
    const LEAD_BYTES: usize = 0;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Self([x; 16])
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: the trait's contract.
        Self(unsafe { p.cast::<[f32; 16]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const f16) -> Self {
        // SAFETY: the trait's contract.
        Self(unsafe { p.cast::<[f16; 16]>().read_unaligned() }.map(f16::to_f32))
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const bf16) -> Self {
        // SAFETY: the trait's contract.
        Self(unsafe { p.cast::<[bf16; 16]>().read_unaligned() }.map(bf16::to_f32))
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: the trait's contract.
        unsafe { p.cast::<[f32; 16]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        self.zip(other, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        self.zip(other, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn mul_add(self, a: Self, b: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] * a.0[i] + b.0[i]))
    }
    #[inline(always)]
    unsafe fn prefetch(_p: *const u8) {}
    #[inline(always)]
    unsafe fn exp2(self) -> Self {
        Self(self.0.map(f32::exp2))
    }
    #[inline(always)]
    unsafe fn hadamard(mut self) -> Self {
        for half in [1, 2, 4, 8] {
            self = Self(std::array::from_fn(|i| {
                let (a, b) = (self.0[i & !half], self.0[i | half]);
                if i & half == 0 { a + b } else { a - b }
            }));
        }
        self
    }
    #[inline(always)]
    unsafe fn reduce_add(self) -> f32 {
        self.0.iter().sum()
    }
    #[inline(always)]
    unsafe fn reduce_max(self) -> f32 {
        self.0.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b))
    }
    #[inline(always)]
    unsafe fn keep(self, from: usize, to: usize, other: Self) -> Self {
        Self(std::array::from_fn(|i| if i >= from && i < to { self.0[i] } else { other.0[i] }))
    }
    #[inline(always)]
    unsafe fn bytes(p: *const u8) -> [u8; 64] {
        // SAFETY: the trait's contract.
        unsafe { p.cast::<[u8; 64]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn table(entries: &[i8; 16]) -> [u8; 64] {
        std::array::from_fn(|i| entries[i % 16].cast_unsigned())
    }
    #[inline(always)]
    unsafe fn flip(bytes: [u8; 64]) -> [u8; 64] {
        bytes.map(|b| b ^ 128)
    }
    #[inline(always)]
    unsafe fn field<const SHIFT: u32>(bytes: [u8; 64], mask: u8) -> [u8; 64] {
        bytes.map(|b| b >> SHIFT & mask)
    }
    #[inline(always)]
    unsafe fn add_four(bytes: [u8; 64], signs: u64) -> [u8; 64] {
        std::array::from_fn(|i| bytes[i] + if signs >> i & 1 == 1 { 4 } else { 0 })
    }
    #[inline(always)]
    unsafe fn lookup(table: [u8; 64], bytes: [u8; 64]) -> [u8; 64] {
        bytes.map(|b| table[usize::from(b & 15)])
    }
    #[inline(always)]
    unsafe fn widen<const COLUMN: u32>(bytes: [u8; 64]) -> Self {
        Self(std::array::from_fn(|i| f32::from(bytes[4 * i + COLUMN as usize].cast_signed())))
    }
}
