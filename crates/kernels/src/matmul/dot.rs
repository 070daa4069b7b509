//! Products row by row: each weight is read once and meets up to four *planes* of activations
//! (tokens, or digits of a token). For decoding, where reading the weights is the bound.

use super::input::{DIGIT_COLS, Digits, Plane};
use super::task::{Out, RowRange};
use crate::simd::{Kernel, LANES, Simd, UNIT, tables};
use crate::weights::{Affine, FloatType};

/// Most planes that [`AffineDot`] takes at once.
pub(super) const MAX_PLANES: usize = 4;
/// Most tokens that [`DenseDot`] takes at once.
pub(super) const MAX_TOKENS: usize = 4;

/// `out[token][row] = Σ w·x` for some rows of an affine matrix and a few tokens.
pub(super) struct AffineDot<'a> {
    pub(super) weights: &'a Affine<'a>,
    pub(super) input: &'a Digits<'a>,
    /// First token of the input; the number of tokens times digits is at most [`MAX_PLANES`].
    pub(super) first_token: usize,
    pub(super) tokens: usize,
    pub(super) rows: RowRange,
    pub(super) out: Out<'a>,
}

impl Kernel for AffineDot<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        match self.weights.bits {
            2 => self.run_bits::<S, 2>(simd),
            3 => self.run_bits::<S, 3>(simd),
            4 => self.run_bits::<S, 4>(simd),
            5 => self.run_bits::<S, 5>(simd),
            6 => self.run_bits::<S, 6>(simd),
            _ => self.run_bits::<S, 8>(simd),
        }
    }
}

impl AffineDot<'_> {
    #[inline(always)]
    fn run_bits<S: Simd, const BITS: u32>(&self, simd: S) {
        match self.tokens * self.input.layout.digits {
            1 => self.run_planes::<S, BITS, 1>(simd),
            2 => self.run_planes::<S, BITS, 2>(simd),
            3 => self.run_planes::<S, BITS, 3>(simd),
            _ => self.run_planes::<S, BITS, 4>(simd),
        }
    }

    #[inline(always)]
    fn run_planes<S: Simd, const BITS: u32, const P: usize>(&self, simd: S) {
        let digits = self.input.layout.digits;
        debug_assert_eq!(P, self.tokens * digits);
        for row in self.rows.iter() {
            let sums = self.row::<S, BITS, P>(simd, row);
            for (token, sums) in sums.chunks_exact(digits).enumerate() {
                // The most significant digit comes last and is the largest: add it last.
                let sum = sums.iter().sum();
                // SAFETY: this call owns these rows of the output.
                unsafe { self.out.write(self.first_token + token, row, sum) };
            }
        }
    }

    /// The products of one row with all planes.
    #[inline(always)]
    fn row<S: Simd, const BITS: u32, const P: usize>(&self, simd: S, row: usize) -> [f32; P] {
        let layout = self.input.layout;
        let mut acc = [simd.zero(); P];
        for block in 0..layout.blocks() {
            let planes: [Plane; P] = std::array::from_fn(|p| {
                let (token, digit) = (p / layout.digits, p % layout.digits);
                self.input.plane(block, digit, self.first_token + token)
            });
            // SAFETY: the planes are those of this block of columns.
            unsafe { self.block::<S, BITS, P>(simd, row, block, &planes, &mut acc) };
        }
        let mut sums = [0.0; P];
        for p in 0..P {
            sums[p] = simd.sum(acc[p]);
        }
        sums
    }

    /// Adds the products of one row within one block of columns to `acc`.
    ///
    /// # Safety
    /// `planes` hold the digits, scales and sums of column block `block`.
    #[inline(always)]
    unsafe fn block<S: Simd, const BITS: u32, const P: usize>(
        &self,
        simd: S,
        row: usize,
        block: usize,
        planes: &[Plane; P],
        acc: &mut [S::F; P],
    ) {
        let Affine { group, scale_type, .. } = *self.weights;
        let cols = self.input.layout.block_cols(block);
        let first_group = (row * self.input.layout.cols + block * DIGIT_COLS) / group;
        for chunk in (0..cols / group).step_by(LANES) {
            let groups = (cols / group - chunk).min(LANES);
            let at = (first_group + chunk) * scale_type.bytes();
            let mut scales = [simd.zero(); P];
            // SAFETY: the row has `groups` more groups from `at` on; planes have scales and
            // sums for a multiple of 16 groups.
            unsafe {
                let weight_scales =
                    simd.load_some_floats(scale_type, self.weights.scales[at..].as_ptr(), groups);
                let biases =
                    simd.load_some_floats(scale_type, self.weights.biases[at..].as_ptr(), groups);
                for p in 0..P {
                    let sums = simd.load(planes[p].sums.add(chunk));
                    acc[p] = simd.fma(biases, sums, acc[p]);
                    scales[p] = simd.mul(weight_scales, simd.load(planes[p].scales.add(chunk)));
                }
            }
            let first = (first_group + chunk) * group;
            let span = Span { codes: first / 8 * BITS as usize, cols: groups * group };
            // SAFETY: the span is `groups` groups of the row, and the planes' digits go with it.
            unsafe { self.units::<S, BITS, P>(simd, span, chunk * group, planes, &scales, acc) };
        }
    }

    /// Adds the products of up to 16 groups to `acc`.
    ///
    /// # Safety
    /// `span` lies within a row; `planes` have digits for it from column `digit` of the block on.
    #[inline(always)]
    unsafe fn units<S: Simd, const BITS: u32, const P: usize>(
        &self,
        simd: S,
        span: Span,
        digit: usize,
        planes: &[Plane; P],
        scales: &[S::F; P],
        acc: &mut [S::F; P],
    ) {
        let expand = tables::expand_table(self.weights.group);
        let codes = &self.weights.codes[span.codes..];
        for unit in 0..span.cols.div_ceil(UNIT) {
            let start = unit * 16 * BITS as usize;
            let cols = (span.cols - unit * UNIT).min(UNIT);
            // SAFETY: the unit has `cols` codes from `start` on; the planes have whole units.
            unsafe {
                let rest = codes.get_unchecked(start..);
                let (even, odd) = unpack::<S, BITS>(simd, rest, cols);
                for p in 0..P {
                    let x = planes[p].digits.add(digit + unit * UNIT);
                    let dot = simd.dot::<BITS>(simd.zero_int(), even, simd.load_bytes(x));
                    let dot = simd.dot::<BITS>(dot, odd, simd.load_bytes(x.add(64)));
                    let scale = simd.expand(scales[p], &expand[unit % LANES]);
                    acc[p] = simd.fma(simd.to_float(dot), scale, acc[p]);
                }
            }
        }
    }
}

/// Some whole groups of a row.
#[derive(Clone, Copy)]
struct Span {
    /// Offset of the first code's byte.
    codes: usize,
    cols: usize,
}

/// Unpacks the first `cols` ≤ 128 codes of `codes`; the others count as zero.
///
/// # Safety
/// `codes` holds at least `cols` codes of `BITS` bits; `cols` is a multiple of 32.
#[inline(always)]
pub(super) unsafe fn unpack<S: Simd, const BITS: u32>(
    simd: S,
    codes: &[u8],
    cols: usize,
) -> (S::B, S::B) {
    // SAFETY: a whole unit is read from `codes`, a part from a padded copy.
    unsafe {
        if cols == UNIT {
            return simd.unpack::<BITS>(codes.as_ptr(), codes.len());
        }
        let mut copy = [0u8; 2 * UNIT];
        let bytes = cols / 8 * BITS as usize;
        codes.as_ptr().copy_to_nonoverlapping(copy.as_mut_ptr(), bytes);
        simd.unpack::<BITS>(copy.as_ptr(), copy.len())
    }
}

/// `out[token][row] = Σ w·x` for some rows of a dense matrix and up to [`MAX_TOKENS`] tokens.
pub(super) struct DenseDot<'a> {
    pub(super) ty: FloatType,
    /// `[rows, cols]` of `ty`.
    pub(super) weights: &'a [u8],
    /// One row of `cols` activations per token.
    pub(super) x: &'a [&'a [f32]],
    /// Token of the output that the first row of `x` belongs to.
    pub(super) first_token: usize,
    pub(super) rows: RowRange,
    pub(super) out: Out<'a>,
}

impl Kernel for DenseDot<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        match self.x.len() {
            1 => self.run_tokens::<S, 1>(simd),
            2 => self.run_tokens::<S, 2>(simd),
            3 => self.run_tokens::<S, 3>(simd),
            _ => self.run_tokens::<S, 4>(simd),
        }
    }
}

impl DenseDot<'_> {
    #[inline(always)]
    fn run_tokens<S: Simd, const T: usize>(&self, simd: S) {
        for row in self.rows.iter() {
            let sums = match self.ty {
                FloatType::F32 => self.row::<S, T>(simd, FloatType::F32, row),
                FloatType::F16 => self.row::<S, T>(simd, FloatType::F16, row),
                FloatType::Bf16 => self.row::<S, T>(simd, FloatType::Bf16, row),
            };
            for (token, sum) in sums.into_iter().enumerate() {
                // SAFETY: this call owns these rows of the output.
                unsafe { self.out.write(self.first_token + token, row, sum) };
            }
        }
    }

    /// The products of one row with all tokens.
    #[inline(always)]
    fn row<S: Simd, const T: usize>(&self, simd: S, ty: FloatType, row: usize) -> [f32; T] {
        let cols = self.x[0].len();
        let weights = &self.weights[row * cols * ty.bytes()..][..cols * ty.bytes()];
        // Two accumulators per token hide the latency of the additions.
        let mut acc = [[simd.zero(); 2]; T];
        let whole = cols - cols % (2 * LANES);
        for col in (0..whole).step_by(2 * LANES) {
            // SAFETY: columns `col..col + 32` exist in the row and in every `x`.
            unsafe {
                let at = weights.as_ptr().add(col * ty.bytes());
                let first = simd.load_floats(ty, at);
                let second = simd.load_floats(ty, at.add(LANES * ty.bytes()));
                for t in 0..T {
                    let x = self.x.get_unchecked(t).as_ptr().add(col);
                    acc[t][0] = simd.fma(first, simd.load(x), acc[t][0]);
                    acc[t][1] = simd.fma(second, simd.load(x.add(LANES)), acc[t][1]);
                }
            }
        }
        let mut sums = [0.0; T];
        for t in 0..T {
            let tail = (whole..cols).map(|col| ty.get(weights, col) * self.x[t][col]);
            sums[t] = simd.sum(simd.add(acc[t][0], acc[t][1])) + tail.sum::<f32>();
        }
        sums
    }
}
