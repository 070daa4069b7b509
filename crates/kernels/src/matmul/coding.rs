//! Conversion of stored codes to the unsigned bytes that products are made of:
//! `w = scale · byte + bias`, where scale and bias belong to a group of columns.
//!
//! MLX's affine format is that already. A 4-bit float of MXFP4 is half of `byte − 12`, for a byte
//! below 25 that a table of sixteen gives, so that the integer kernels take it as it is.

use super::task::RowRange;
use crate::simd::{Simd, UNIT};
use crate::weights::{Affine, E2M1_BYTES, E2M1_OFFSET, Mxfp4, e8m0};

/// Distance in bytes from the scales and biases in use to the ones that are prefetched.
const GROUP_PREFETCH_BYTES: usize = 2048;

/// A quantised matrix of either format.
#[derive(Clone, Copy)]
pub(super) enum Quantised<'a> {
    Affine(&'a Affine<'a>),
    Mxfp4(&'a Mxfp4<'a>),
}

impl Quantised<'_> {
    /// Columns per group.
    pub(super) fn group(self) -> usize {
        match self {
            Self::Affine(affine) => affine.group,
            Self::Mxfp4(_) => Mxfp4::GROUP,
        }
    }

    /// Panics unless the matrix has `rows` of `cols` columns.
    pub(super) fn check(self, rows: RowRange, cols: usize) {
        let group = self.group();
        assert!(cols.is_multiple_of(group), "{cols} columns in groups of {group}");
        let (bits, step, code_bytes, group_bytes) = match self {
            Self::Affine(affine) => {
                let bytes = affine.scale_type.bytes();
                let groups = affine.scales.len().min(affine.biases.len()) / bytes;
                (affine.bits as usize, 1, affine.codes.len(), groups)
            }
            Self::Mxfp4(mxfp4) => (4, mxfp4.step, mxfp4.codes.len(), mxfp4.scales.len()),
        };
        let stored = if rows.end == 0 { 0 } else { (rows.end - 1) * step + 1 };
        assert!(stored * cols / 8 * bits <= code_bytes, "{rows:?} of {code_bytes} bytes of codes");
        assert!(stored * cols / group <= group_bytes, "{rows:?} of {group_bytes} groups");
    }

    /// Returns true if bytes may be above 127.
    pub(super) fn is_wide(self) -> bool {
        matches!(self, Self::Affine(Affine { bits: 8, .. }))
    }
}

/// Runs `$body` with `$coding` bound to the [`Coding`] of a [`Quantised`] matrix: a function of its
/// own for each.
macro_rules! with_coding {
    ($weights:expr, $coding:ident => $body:expr) => {{
        use $crate::matmul::coding::{E2m1, Integers, Quantised};
        match $weights {
            Quantised::Affine(affine) => match affine.bits {
                2 => with_coding!(@ Integers::<2>(*affine), $coding => $body),
                3 => with_coding!(@ Integers::<3>(*affine), $coding => $body),
                4 => with_coding!(@ Integers::<4>(*affine), $coding => $body),
                5 => with_coding!(@ Integers::<5>(*affine), $coding => $body),
                6 => with_coding!(@ Integers::<6>(*affine), $coding => $body),
                _ => with_coding!(@ Integers::<8>(*affine), $coding => $body),
            },
            Quantised::Mxfp4(mxfp4) => with_coding!(@ E2m1(mxfp4), $coding => $body),
        }
    }};
    (@ $value:expr, $coding:ident => $body:expr) => {{
        let $coding = $value;
        $body
    }};
}
pub(super) use with_coding;

/// A matrix with one way of reading its codes.
pub(super) trait Coding<'a>: Copy {
    /// Bits of a stored code.
    const BITS: u32;
    /// True if all groups are as narrow as they get.
    const NARROW_ONLY: bool = false;

    /// Columns per group: 32, 64 or 128.
    fn group(self) -> usize;

    /// Codes of the whole matrix.
    fn codes(self) -> &'a [u8];

    /// Stored rows from one row of the matrix to the next.
    fn step(self) -> usize {
        1
    }

    /// One unit of codes as bytes, in unit order; see [`UNIT`].
    ///
    /// # Safety
    /// `readable >= 16 * Self::BITS` bytes are readable at `ptr`.
    unsafe fn unpack<S: Simd>(simd: S, ptr: *const u8, readable: usize) -> (S::B, S::B);

    /// [`Simd::dot_unit`] with bytes `u` of [`Self::unpack`].
    fn dot_unit<S: Simd>(simd: S, u: (S::B, S::B), s: (S::B, S::B)) -> S::I;

    /// [`Simd::dot_unit_wide`] with bytes `u` of [`Self::unpack`].
    fn dot_unit_wide<S: Simd>(
        simd: S,
        u: (S::B, S::B),
        high: (S::B, S::B),
        low: (S::B, S::B),
    ) -> S::I;

    /// Scales and biases of `count` ≤ 16 groups from the one that stored element `first` begins;
    /// the other lanes are zero. Later ones are asked for.
    ///
    /// # Safety
    /// The matrix has these groups.
    unsafe fn groups<S: Simd>(self, simd: S, first: usize, count: usize) -> (S::F, S::F);
}

/// MLX's affine format: the codes themselves.
#[derive(Clone, Copy)]
pub(super) struct Integers<'a, const BITS: u32>(pub(super) Affine<'a>);

impl<'a, const BITS: u32> Coding<'a> for Integers<'a, BITS> {
    const BITS: u32 = BITS;

    #[inline(always)]
    fn group(self) -> usize {
        self.0.group
    }
    #[inline(always)]
    fn codes(self) -> &'a [u8] {
        self.0.codes
    }
    #[inline(always)]
    unsafe fn unpack<S: Simd>(simd: S, ptr: *const u8, readable: usize) -> (S::B, S::B) {
        // SAFETY: the caller keeps `readable` bytes, at least a unit, readable at `ptr`.
        unsafe { simd.unpack::<BITS>(ptr, readable) }
    }
    #[inline(always)]
    fn dot_unit<S: Simd>(simd: S, u: (S::B, S::B), s: (S::B, S::B)) -> S::I {
        simd.dot_unit::<BITS>(u, s)
    }
    #[inline(always)]
    fn dot_unit_wide<S: Simd>(
        simd: S,
        u: (S::B, S::B),
        high: (S::B, S::B),
        low: (S::B, S::B),
    ) -> S::I {
        simd.dot_unit_wide::<BITS>(u, high, low)
    }
    #[inline(always)]
    unsafe fn groups<S: Simd>(self, simd: S, first: usize, count: usize) -> (S::F, S::F) {
        let Affine { group, scale_type: ty, scales, biases, .. } = self.0;
        // All groups are 32, 64 or 128: a shift instead of a division.
        let at = (first >> group.trailing_zeros()) * ty.bytes();
        // SAFETY: the groups exist.
        unsafe {
            let scales = scales.as_ptr().add(at);
            let biases = biases.as_ptr().add(at);
            simd.prefetch_far(scales.wrapping_add(GROUP_PREFETCH_BYTES));
            simd.prefetch_far(biases.wrapping_add(GROUP_PREFETCH_BYTES));
            let scale = simd.load_some_floats(ty, scales, count);
            (scale, simd.load_some_floats(ty, biases, count))
        }
    }
}

/// MXFP4: each code through a table.
#[derive(Clone, Copy)]
pub(super) struct E2m1<'a>(pub(super) &'a Mxfp4<'a>);

impl<'a> Coding<'a> for E2m1<'a> {
    const BITS: u32 = 4;
    const NARROW_ONLY: bool = true;

    #[inline(always)]
    fn group(self) -> usize {
        Mxfp4::GROUP
    }
    #[inline(always)]
    fn codes(self) -> &'a [u8] {
        self.0.codes
    }
    #[inline(always)]
    fn step(self) -> usize {
        self.0.step
    }
    #[inline(always)]
    unsafe fn unpack<S: Simd>(simd: S, ptr: *const u8, readable: usize) -> (S::B, S::B) {
        // SAFETY: the caller keeps `readable` bytes, at least a unit, readable at `ptr`.
        let (even, odd) = unsafe { simd.unpack::<4>(ptr, readable) };
        let table = simd.byte_table(&E2M1_BYTES);
        (simd.lookup(table, even), simd.lookup(table, odd))
    }
    #[inline(always)]
    fn dot_unit<S: Simd>(simd: S, u: (S::B, S::B), s: (S::B, S::B)) -> S::I {
        simd.dot_unit::<5>(u, s)
    }
    #[inline(always)]
    fn dot_unit_wide<S: Simd>(
        simd: S,
        u: (S::B, S::B),
        high: (S::B, S::B),
        low: (S::B, S::B),
    ) -> S::I {
        simd.dot_unit_wide::<5>(u, high, low)
    }
    #[inline(always)]
    unsafe fn groups<S: Simd>(self, simd: S, first: usize, count: usize) -> (S::F, S::F) {
        let at = first / Mxfp4::GROUP;
        simd.prefetch_far(self.0.scales.as_ptr().wrapping_add(at + GROUP_PREFETCH_BYTES));
        let mut halves = [0.0f32; crate::simd::LANES];
        for (half, scale) in halves.iter_mut().zip(&self.0.scales[at..at + count]) {
            *half = 0.5 * e8m0(*scale);
        }
        // SAFETY: `halves` has 16 values.
        let scale = unsafe { simd.load(halves.as_ptr()) };
        (scale, simd.mul(scale, simd.splat(-E2M1_OFFSET)))
    }
}

/// Unpacks the first `cols` ≤ 128 codes of `codes`; the others count as zero.
///
/// # Safety
/// `codes` holds at least `cols` codes; `cols` is a multiple of 32.
#[inline(always)]
pub(super) unsafe fn unpack<'a, S: Simd, C: Coding<'a>>(
    simd: S,
    codes: &[u8],
    cols: usize,
) -> (S::B, S::B) {
    // SAFETY: a whole unit is read from `codes`, a part from a padded copy.
    unsafe {
        if cols == UNIT {
            return C::unpack(simd, codes.as_ptr(), codes.len());
        }
        let mut copy = [0u8; 2 * UNIT];
        let bytes = cols / 8 * C::BITS as usize;
        codes.as_ptr().copy_to_nonoverlapping(copy.as_mut_ptr(), bytes);
        C::unpack(simd, copy.as_ptr(), copy.len())
    }
}
