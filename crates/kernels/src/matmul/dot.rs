//! Products with an affine matrix row by row: each weight is unpacked once for up to four tokens.
//! For decoding, alone or in a small batch, where reading the weights is the bound. A token's
//! sums are taken in the same order whatever comes with it.
#![expect(clippy::needless_range_loop, reason = "tiles of registers, indexed alike")]

use super::ahead::{ReadAhead, near};
use super::input::{Digits, Plane};
use super::task::{Out, RowRange};
use crate::isa::Cpu;
use crate::simd::{Kernel, LANES, Simd, UNIT, dispatch, tables};
use crate::weights::Affine;
use std::ops::Range;

/// Most tokens that meet an unpacked unit at once, by digits less one.
const TOKENS_AT_ONCE: [usize; 3] = [4, 4, 2];
/// How far ahead of the scales and biases in use the processor is told to read.
const GROUP_PREFETCH_BYTES: usize = 2048;

/// `out[token][row] = Σ w·x` for some rows of an affine matrix and a few tokens.
pub(super) struct AffineDot<'a> {
    pub(super) weights: &'a Affine<'a>,
    pub(super) input: &'a Digits<'a>,
    pub(super) first_token: usize,
    pub(super) tokens: usize,
    pub(super) rows: RowRange,
    pub(super) out: Out<'a>,
}

impl AffineDot<'_> {
    /// Computes the products.
    pub(super) fn dispatch(&self, cpu: Cpu) {
        let (first, end) = (self.first_token, self.first_token + self.tokens);
        let at_once = TOKENS_AT_ONCE[self.input.layout.digits - 1];
        for first_token in (first..end).step_by(at_once) {
            let tokens = at_once.min(end - first_token);
            Self { first_token, tokens, ..*self }.dispatch_width(cpu);
        }
    }

    /// Computes the products of tokens that go at once. Every width of codes and number of
    /// tokens is a function of its own.
    fn dispatch_width(&self, cpu: Cpu) {
        match self.weights.bits {
            2 => self.dispatch_bits::<2>(cpu),
            3 => self.dispatch_bits::<3>(cpu),
            4 => self.dispatch_bits::<4>(cpu),
            5 => self.dispatch_bits::<5>(cpu),
            6 => self.dispatch_bits::<6>(cpu),
            _ => self.dispatch_bits::<8>(cpu),
        }
    }

    fn dispatch_bits<const BITS: u32>(&self, cpu: Cpu) {
        for block in 0..self.input.layout.blocks() {
            match (self.tokens, self.input.layout.digits) {
                (1, 1) => dispatch(cpu, self.block::<BITS, 1, 1>(block)),
                (2, 1) => dispatch(cpu, self.block::<BITS, 2, 1>(block)),
                (3, 1) => dispatch(cpu, self.block::<BITS, 3, 1>(block)),
                (4, 1) => dispatch(cpu, self.block::<BITS, 4, 1>(block)),
                (1, 2) => dispatch(cpu, self.block::<BITS, 1, 2>(block)),
                (2, 2) => dispatch(cpu, self.block::<BITS, 2, 2>(block)),
                (3, 2) => dispatch(cpu, self.block::<BITS, 3, 2>(block)),
                (4, 2) => dispatch(cpu, self.block::<BITS, 4, 2>(block)),
                (1, 3) => dispatch(cpu, self.block::<BITS, 1, 3>(block)),
                (2, 3) => dispatch(cpu, self.block::<BITS, 2, 3>(block)),
                (tokens, digits) => unreachable!("{tokens} tokens of {digits} digits at once"),
            }
        }
    }

    /// The products within one column block.
    fn block<const BITS: u32, const T: usize, const D: usize>(
        &self,
        block: usize,
    ) -> BlockDot<'_, BITS, T, D> {
        let layout = self.input.layout;
        let planes = std::array::from_fn(|token| {
            std::array::from_fn(|digit| self.input.plane(block, digit, self.first_token + token))
        });
        let (first_col, cols) = (layout.first_col(block), layout.block_cols(block));
        BlockDot { dot: self, planes, first_col, cols }
    }
}

/// [`AffineDot`] for one column block, one width of codes and `T` tokens of `D` digits.
struct BlockDot<'a, const BITS: u32, const T: usize, const D: usize> {
    dot: &'a AffineDot<'a>,
    planes: [[Plane; D]; T],
    first_col: usize,
    cols: usize,
}

impl<const BITS: u32, const T: usize, const D: usize> Kernel for BlockDot<'_, BITS, T, D> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let mut row = self.dot.rows.first;
        // Several rows share the loads of the activations and hide each other's latencies.
        while S::WIDE_TILES && T <= 2 && row + 4 <= self.dot.rows.end {
            self.rows::<S, 4>(simd, row);
            row += 4;
        }
        while (S::WIDE_TILES || T * D == 1) && row + 2 <= self.dot.rows.end {
            self.rows::<S, 2>(simd, row);
            row += 2;
        }
        while row < self.dot.rows.end {
            self.rows::<S, 1>(simd, row);
            row += 1;
        }
    }
}

/// What is known of `R` rows while their groups are gone through.
struct Rows<'a, S: Simd, const T: usize, const R: usize> {
    /// Codes of the whole matrix.
    codes: &'a [u8],
    /// Offset of each row's first code of the block.
    starts: [usize; R],
    ahead: ReadAhead,
    /// Scale of the codes times scale of the lowest digit, for up to 16 groups.
    scales: [[S::F; T]; R],
    acc: [[S::F; T]; R],
}

impl<const BITS: u32, const T: usize, const D: usize> BlockDot<'_, BITS, T, D> {
    /// Computes `R` rows with all tokens.
    #[inline(always)]
    fn rows<S: Simd, const R: usize>(&self, simd: S, row: usize) {
        let cols = self.dot.input.layout.cols;
        let starts =
            std::array::from_fn(|r| ((row + r) * cols + self.first_col) / 8 * BITS as usize);
        let mut rows = Rows::<S, T, R> {
            codes: self.dot.weights.codes,
            ahead: ReadAhead::new(&self.dot.weights.codes[starts[0]..]),
            starts,
            scales: [[simd.zero(); T]; R],
            acc: [[simd.zero(); T]; R],
        };
        // All groups are 32, 64 or 128: a shift instead of a division.
        let groups = self.cols >> self.dot.weights.group.trailing_zeros();
        for chunk in (0..groups).step_by(LANES) {
            // SAFETY: the rows have these groups.
            unsafe { self.groups(simd, row, chunk..groups.min(chunk + LANES), &mut rows) };
        }
        self.store(simd, row, &rows.acc);
    }

    /// Adds the products of up to 16 groups.
    ///
    /// # Safety
    /// The rows from `row` on exist, and the block has the `groups`.
    #[inline(always)]
    unsafe fn groups<S: Simd, const R: usize>(
        &self,
        simd: S,
        row: usize,
        groups: Range<usize>,
        rows: &mut Rows<'_, S, T, R>,
    ) {
        let Affine { group, scale_type: ty, scales, biases, .. } = *self.dot.weights;
        let shift = group.trailing_zeros();
        for r in 0..R {
            let first = (row + r) * self.dot.input.layout.cols + self.first_col;
            let at = ((first >> shift) + groups.start) * ty.bytes();
            // SAFETY: the row has these groups; planes have scales and sums for whole vectors.
            unsafe {
                let (scales, biases) = (scales.as_ptr().add(at), biases.as_ptr().add(at));
                simd.prefetch_far(scales.wrapping_add(GROUP_PREFETCH_BYTES));
                simd.prefetch_far(biases.wrapping_add(GROUP_PREFETCH_BYTES));
                let scale = simd.load_some_floats(ty, scales, groups.len());
                let bias = simd.load_some_floats(ty, biases, groups.len());
                for t in 0..T {
                    for digit in 0..D {
                        let sums = simd.load(self.planes[t][digit].sums.add(groups.start));
                        rows.acc[r][t] = simd.fma(bias, sums, rows.acc[r][t]);
                    }
                    let lowest = simd.load(self.planes[t][0].scales.add(groups.start));
                    rows.scales[r][t] = simd.mul(scale, lowest);
                }
            }
        }
        let expand = tables::expand_table(group);
        let (col, cols) = (groups.start << shift, groups.len() << shift);
        // SAFETY: these are the columns of the groups; 16 groups are at most 16 units.
        unsafe {
            for unit in 0..cols / UNIT {
                self.unit::<S, R, true>(
                    simd,
                    col + unit * UNIT,
                    UNIT,
                    expand.get_unchecked(unit),
                    rows,
                );
            }
            if !cols.is_multiple_of(UNIT) {
                let unit = cols / UNIT;
                self.unit::<S, R, false>(simd, col + unit * UNIT, cols % UNIT, &expand[unit], rows);
            }
        }
    }

    /// Adds the products of `cols` columns, a unit if `WHOLE`, from column `col` of the block on.
    ///
    /// # Safety
    /// The rows have these columns; the planes have whole units of digits.
    #[inline(always)]
    unsafe fn unit<S: Simd, const R: usize, const WHOLE: bool>(
        &self,
        simd: S,
        col: usize,
        cols: usize,
        lanes: &[i32; LANES],
        rows: &mut Rows<'_, S, T, R>,
    ) {
        for r in 0..R {
            let at = rows.starts[r] + col / 8 * BITS as usize;
            rows.ahead.step(simd, UNIT / 8 * BITS as usize);
            // SAFETY: by contract.
            unsafe {
                let codes = rows.codes.get_unchecked(at..);
                near(simd, codes.as_ptr());
                let (even, odd) = if WHOLE {
                    simd.unpack::<BITS>(codes.as_ptr(), codes.len())
                } else {
                    unpack::<S, BITS>(simd, codes, cols)
                };
                for t in 0..T {
                    let dot = self.digits::<S>(simd, t, col, (even, odd));
                    let scale = simd.expand(rows.scales[r][t], lanes);
                    rows.acc[r][t] = simd.fma(dot, scale, rows.acc[r][t]);
                }
            }
        }
    }

    /// The product of a unit of codes with token `t`, in multiples of its lowest digit's scale.
    ///
    /// # Safety
    /// The planes have whole units of digits at `col`.
    #[inline(always)]
    unsafe fn digits<S: Simd>(&self, simd: S, t: usize, col: usize, codes: (S::B, S::B)) -> S::F {
        let zero = simd.zero_int();
        // Two digits of eight products fit into 32 bits, three need not.
        // SAFETY: by contract.
        unsafe {
            if D == 1 {
                return simd.to_float(self.digit(simd, zero, (t, 0, col), codes));
            }
            let second = simd.times_256(self.digit(simd, zero, (t, 1, col), codes));
            let low = simd.to_float(self.digit(simd, second, (t, 0, col), codes));
            if D == 2 {
                return low;
            }
            let high = simd.to_float(self.digit(simd, zero, (t, 2, col), codes));
            simd.fma(high, simd.splat(65536.0), low)
        }
    }

    /// `before` plus the product of a unit of codes with one digit of token `t`, in 16 lanes.
    ///
    /// # Safety
    /// As for [`Self::digits`]; the token has the digit.
    #[inline(always)]
    unsafe fn digit<S: Simd>(
        &self,
        simd: S,
        before: S::I,
        (t, digit, col): (usize, usize, usize),
        codes: (S::B, S::B),
    ) -> S::I {
        // SAFETY: by contract.
        unsafe {
            let x = self.planes[t][digit].digits.add(col);
            let x = (simd.load_bytes(x), simd.load_bytes(x.add(64)));
            simd.dot_pair::<BITS>(before, codes, x)
        }
    }

    /// Writes the sums of `R` rows; a block after the first adds to what is there.
    #[inline(always)]
    fn store<S: Simd, const R: usize>(&self, simd: S, row: usize, acc: &[[S::F; T]; R]) {
        for token in 0..T {
            let mut totals = [simd.zero(); R];
            for r in 0..R {
                totals[r] = acc[r][token];
            }
            let sums = simd.sums(totals);
            for r in 0..R {
                // SAFETY: this call owns these rows of the output.
                unsafe {
                    let target = self.dot.out.at(self.dot.first_token + token, row + r);
                    let before = if self.first_col > 0 { *target } else { 0.0 };
                    *target = before + sums[r];
                }
            }
        }
    }
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
