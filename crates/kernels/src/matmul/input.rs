//! Activations prepared for the products: fixed-point digits for quantised weights, padded
//! blocks of `f32` for dense ones.
//!
//! # Digits
//! Per token and weight group, `x ≈ scale · X` with an integer `X` of 1, 2 or 3 signed bytes
//! (*digits*): `X = d₀ + 256·d₁ + 65536·d₂`. Each digit is one *plane* with its own scale
//! (`scale · 256^d`), so that a product is one integer dot product per digit and group, exact
//! until it is scaled. One digit is what int8 activations mean; three keep 23 bits of the
//! largest element of the group, as much as an `f32` sum of 64 terms does.
//! A group with an infinity or NaN gets a NaN scale; one below 1e-30 counts as zero.
//!
//! Tiles want column blocks of a constant size, so that they address all their tokens by
//! constant offsets from one pointer (the padding keeps tokens off the same cache sets); rows
//! that are only met by dot products are one block.

use crate::pool::Pool;
use crate::simd::{Kernel, LANES, Simd, UNIT, dispatch};

/// Columns of a block of digits for tiles.
pub(super) const DIGIT_COLS: usize = 2048;
/// Bytes from one token to the next within a block of digits for tiles.
pub(super) const DIGIT_STRIDE: usize = DIGIT_COLS + 64;
/// Groups of such a block, at the smallest group size; also the stride of scales and sums.
pub(super) const GROUP_STRIDE: usize = DIGIT_COLS / 32;
/// Columns of a block of floats.
pub(super) const FLOAT_COLS: usize = 512;
/// Floats from one token to the next within a block of floats.
pub(super) const FLOAT_STRIDE: usize = FLOAT_COLS + LANES;

/// Fixed-point value of the largest element of a group for 1, 2, 3 signed digits: just below
/// what they can hold (127 in every digit), so that rounding cannot overflow the last one.
const LARGEST: [f32; 3] = [127.0, 32639.0, 8_355_000.0];
/// Start of integer sums that are read as floats: the bits of 1.5·2²³, so
/// that adding `n` (below 2²² in size) to the bits adds `n` to the float. Three products with
/// the scale then need no conversion.
pub(super) const INT_BIAS: f32 = 12_582_912.0;

/// Groups whose largest element is below this count as zero.
const NEGLIGIBLE: f32 = 1e-30;

/// Sizes of a quantised input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DigitLayout {
    pub(super) tokens: usize,
    pub(super) cols: usize,
    /// Elements that share a scale: the group size of the weights.
    pub(super) group: usize,
    /// Digits per element, 1 to 3.
    pub(super) digits: usize,
    /// Columns of a block but the last.
    block: usize,
    /// Bytes of a plane's digits.
    digit_stride: usize,
    /// Groups of a plane, rounded up to whole vectors.
    group_stride: usize,
}

impl DigitLayout {
    /// A layout of one block.
    pub(super) fn flat(tokens: usize, cols: usize, group: usize, digits: usize) -> Self {
        let digit_stride = cols.next_multiple_of(UNIT);
        let group_stride = (cols / group).next_multiple_of(LANES);
        Self { tokens, cols, group, digits, block: digit_stride, digit_stride, group_stride }
    }
    /// A layout in the blocks that tiles need.
    pub(super) fn blocked(tokens: usize, cols: usize, group: usize, digits: usize) -> Self {
        let digit_stride = DIGIT_STRIDE;
        let group_stride = GROUP_STRIDE;
        Self { tokens, cols, group, digits, block: DIGIT_COLS, digit_stride, group_stride }
    }
    /// Returns true if tiles can use it.
    pub(super) fn is_blocked(self) -> bool {
        self.digit_stride == DIGIT_STRIDE && self.group_stride == GROUP_STRIDE
    }
    /// Column blocks.
    pub(super) fn blocks(self) -> usize {
        self.cols.div_ceil(self.block)
    }
    /// First column of block `block`.
    pub(super) fn first_col(self, block: usize) -> usize {
        block * self.block
    }
    /// Columns of block `block`.
    pub(super) fn block_cols(self, block: usize) -> usize {
        (self.cols - block * self.block).min(self.block)
    }
    fn planes(self) -> usize {
        self.blocks() * self.digits * self.tokens
    }
    fn digit_bytes(self) -> usize {
        self.planes() * self.digit_stride
    }
    fn group_floats(self) -> usize {
        self.planes() * self.group_stride
    }
    /// Bytes of the whole.
    pub(super) fn bytes(self) -> usize {
        self.digit_bytes() + 3 * size_of::<f32>() * self.group_floats()
    }
}

/// One plane of a quantised input: a token's digits of one significance in one column block.
#[derive(Clone, Copy)]
pub(super) struct Plane {
    /// Digits, in unit order; with blocks, the next token's are [`DIGIT_STRIDE`] further on.
    pub(super) digits: *const u8,
    /// Scale per group; with blocks, the next token's are [`GROUP_STRIDE`] further on.
    pub(super) scales: *const f32,
    /// Sum of the scaled digits per group; strides as `scales`.
    pub(super) sums: *const f32,
    /// −[`INT_BIAS`] · scale per group; strides as `scales`.
    pub(super) offsets: *const f32,
}

/// A quantised input: `[block][digit][token]` planes.
#[derive(Clone, Copy)]
pub(super) struct Digits<'a> {
    pub(super) layout: DigitLayout,
    digits: &'a [u8],
    scales: &'a [f32],
    sums: &'a [f32],
    offsets: &'a [f32],
}

impl Digits<'_> {
    /// The plane of `digit` of `token` in column block `block`.
    pub(super) fn plane(&self, block: usize, digit: usize, token: usize) -> Plane {
        let plane = (block * self.layout.digits + digit) * self.layout.tokens + token;
        Plane {
            digits: self.digits[plane * self.layout.digit_stride..].as_ptr(),
            scales: self.scales[plane * self.layout.group_stride..].as_ptr(),
            sums: self.sums[plane * self.layout.group_stride..].as_ptr(),
            offsets: self.offsets[plane * self.layout.group_stride..].as_ptr(),
        }
    }
}

/// Source of the rows of activations.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    /// `[tokens, cols]`.
    pub(super) x: &'a [f32],
    pub(super) cols: usize,
    /// Row of `x` per prepared token, or the identity.
    pub(super) gather: Option<&'a [u32]>,
}

impl<'a> Source<'a> {
    /// The row of prepared token `token`.
    pub(super) fn row(&self, token: usize) -> &'a [f32] {
        let row = self.gather.map_or(token, |rows| rows[token] as usize);
        &self.x[row * self.cols..][..self.cols]
    }
}

/// Quantises `source` into `buf`, which has `layout.bytes()` bytes.
pub(super) fn quantize<'b>(
    pool: &Pool,
    source: Source<'_>,
    layout: DigitLayout,
    buf: &'b mut [u8],
) -> Digits<'b> {
    let (digits, floats) = buf[..layout.bytes()].split_at_mut(layout.digit_bytes());
    let floats: &mut [f32] = bytemuck::cast_slice_mut(floats);
    let (scales, floats) = floats.split_at_mut(layout.group_floats());
    let (sums, offsets) = floats.split_at_mut(layout.group_floats());
    let target = Target {
        digits: digits.as_mut_ptr(),
        scales: scales.as_mut_ptr(),
        sums: sums.as_mut_ptr(),
        offsets: offsets.as_mut_ptr(),
    };
    // A token of a few thousand elements takes less than a parallel region.
    let chunk = if layout.tokens < 4 { layout.tokens } else { 4 };
    pool.for_chunks(layout.tokens, chunk, |_, tokens| {
        for token in tokens {
            let row = source.row(token);
            dispatch(pool.cpu(), QuantizeToken { row, token, layout, target: &target });
        }
    });
    Digits { layout, digits, scales, sums, offsets }
}

/// Start of the parts of the output.
struct Target {
    digits: *mut u8,
    scales: *mut f32,
    sums: *mut f32,
    offsets: *mut f32,
}

// SAFETY: the workers of `quantize` write disjoint planes, those of their own tokens.
unsafe impl Sync for Target {}

struct QuantizeToken<'a> {
    row: &'a [f32],
    token: usize,
    layout: DigitLayout,
    target: &'a Target,
}

impl Kernel for QuantizeToken<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        match self.layout.digits {
            1 => self.run_digits::<S, 1>(simd),
            2 => self.run_digits::<S, 2>(simd),
            _ => self.run_digits::<S, 3>(simd),
        }
    }
}

impl QuantizeToken<'_> {
    #[inline(always)]
    fn run_digits<S: Simd, const D: usize>(&self, simd: S) {
        let layout = self.layout;
        for block in 0..layout.blocks() {
            let cols = layout.block_cols(block);
            let row = &self.row[layout.first_col(block)..][..cols];
            let plane = block * D * layout.tokens + self.token;
            for (unit, x) in row.chunks(UNIT).enumerate() {
                // SAFETY: the planes of this token are written by this call alone, and lie
                // within the parts that `quantize` sized by the same layout.
                unsafe { self.unit::<S, D>(simd, x, plane, unit) };
            }
            // SAFETY: these planes, too, are this token's and inside of the parts that `quantize` sized.
            unsafe { self.clear_groups(D, plane, cols / layout.group) };
        }
    }

    /// Zeroes the scales and sums that belong to no group, for kernels that load 16 at once.
    ///
    /// # Safety
    /// `plane + d·tokens`, `d` in `0..digits`, are planes that no other thread uses.
    unsafe fn clear_groups(&self, digits: usize, plane: usize, groups: usize) {
        let stride = self.layout.group_stride;
        for digit in 0..digits {
            let first = (plane + digit * self.layout.tokens) * stride + groups;
            // SAFETY: `groups <= stride`, so this is the rest of the plane.
            unsafe {
                self.target.scales.add(first).write_bytes(0, stride - groups);
                self.target.sums.add(first).write_bytes(0, stride - groups);
            }
        }
    }

    /// Quantises at most [`UNIT`] elements `x` into unit `unit` of the planes from `plane` on.
    ///
    /// # Safety
    /// See [`Self::clear_groups`]; the unit lies within the block.
    #[inline(always)]
    unsafe fn unit<S: Simd, const D: usize>(&self, simd: S, x: &[f32], plane: usize, unit: usize) {
        let group = self.layout.group;
        let mut bytes = [[0u8; UNIT]; D];
        for (i, x) in x.chunks_exact(group).enumerate() {
            let (scale, inverse) = fixed_point::<S, D>(simd, x);
            let sums = group_digits::<S, D>(simd, x, inverse, &mut bytes, i * group);
            for (digit, sum) in sums.into_iter().enumerate() {
                let weight = [1.0, 256.0, 65536.0][digit];
                let plane = plane + digit * self.layout.tokens;
                let at = plane * self.layout.group_stride + unit * UNIT / group;
                // SAFETY: group `unit·128/group + i` of a plane of this token.
                unsafe {
                    *self.target.scales.add(at + i) = scale * weight;
                    *self.target.sums.add(at + i) = sum * (scale * weight);
                    *self.target.offsets.add(at + i) = -INT_BIAS * (scale * weight);
                }
            }
        }
        for (digit, bytes) in bytes.iter().enumerate() {
            let plane = plane + digit * self.layout.tokens;
            // SAFETY: `bytes` has 128 bytes; the unit is 128 bytes of a plane of this token.
            unsafe {
                let target = self.target.digits.add(plane * self.layout.digit_stride + unit * UNIT);
                let (even, odd) = simd.unpack::<8>(bytes.as_ptr(), UNIT);
                simd.store_bytes(target, even);
                simd.store_bytes(target.add(64), odd);
            }
        }
    }
}

/// The fixed-point scale of a group, and its inverse.
#[inline(always)]
fn fixed_point<S: Simd, const D: usize>(simd: S, x: &[f32]) -> (f32, f32) {
    let mut largest = simd.zero();
    let mut poison = simd.zero();
    for x in x.as_chunks::<LANES>().0 {
        // SAFETY: 16 floats are readable.
        let x = unsafe { simd.load(x.as_ptr()) };
        largest = simd.max(simd.abs(x), largest);
        poison = simd.fma(x, simd.zero(), poison);
    }
    // Zero, or NaN if any element is infinite or NaN.
    let poison = simd.sum(poison);
    let largest = simd.max_lane(largest);
    if largest < NEGLIGIBLE {
        return (poison, 0.0);
    }
    // Without its last two bits, the scale times `INT_BIAS` is exact; rounding it up keeps the
    // quotient within bounds.
    let scale = largest * (1.0 / LARGEST[D - 1]) + poison;
    let scale = f32::from_bits((scale.to_bits() & !3) + 4);
    (scale, 1.0 / scale)
}

/// Writes the digits of a group to `bytes[digit][first..]` and returns their sums.
#[inline(always)]
fn group_digits<S: Simd, const D: usize>(
    simd: S,
    x: &[f32],
    inverse: f32,
    bytes: &mut [[u8; UNIT]; D],
    first: usize,
) -> [f32; D] {
    let inverse = simd.splat(inverse);
    let mut sums = [simd.zero(); D];
    for (i, x) in x.as_chunks::<LANES>().0.iter().enumerate() {
        // SAFETY: 16 floats are readable.
        let mut rest = simd.to_int(simd.mul(unsafe { simd.load(x.as_ptr()) }, inverse));
        for digit in 0..D {
            let (high, low) = if digit + 1 < D { simd.split_digit(rest) } else { (rest, rest) };
            sums[digit] = simd.add(sums[digit], simd.to_float(low));
            let bytes = &mut bytes[digit][first + i * LANES..][..LANES];
            // SAFETY: 16 bytes are writable.
            unsafe { simd.store_low_bytes(bytes.as_mut_ptr(), low) };
            rest = high;
        }
    }
    let mut totals = [0.0; D];
    for digit in 0..D {
        totals[digit] = simd.sum(sums[digit]);
    }
    totals
}

/// A padded input of floats: `[block][token][FLOAT_STRIDE]`, zero beyond the columns.
#[derive(Clone, Copy)]
pub(super) struct Floats<'a> {
    pub(super) tokens: usize,
    pub(super) cols: usize,
    data: &'a [f32],
}

impl Floats<'_> {
    /// Bytes of a padded input.
    pub(super) fn bytes(tokens: usize, cols: usize) -> usize {
        cols.div_ceil(FLOAT_COLS) * tokens * FLOAT_STRIDE * size_of::<f32>()
    }

    /// The columns of `token` in column block `block`.
    pub(super) fn block(&self, block: usize, token: usize) -> *const f32 {
        self.data[(block * self.tokens + token) * FLOAT_STRIDE..].as_ptr()
    }
}

/// Copies `source` into padded blocks in `buf`, which has [`Floats::bytes`] bytes.
pub(super) fn pad<'b>(
    pool: &Pool,
    source: Source<'_>,
    tokens: usize,
    buf: &'b mut [u8],
) -> Floats<'b> {
    let cols = source.cols;
    let data = bytemuck::cast_slice_mut::<u8, f32>(&mut buf[..Floats::bytes(tokens, cols)]);
    pool.for_rows_mut(data, FLOAT_STRIDE, 16, |_, first, rows| {
        for (i, padded) in rows.chunks_exact_mut(FLOAT_STRIDE).enumerate() {
            let block = (first + i) / tokens;
            let token = (first + i) % tokens;
            let start = block * FLOAT_COLS;
            let row = &source.row(token)[start..cols.min(start + FLOAT_COLS)];
            padded[..row.len()].copy_from_slice(row);
            padded[row.len()..].fill(0.0);
        }
    });
    Floats { tokens, cols, data }
}
