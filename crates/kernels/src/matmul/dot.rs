//! Products with a quantised matrix row by row: each weight is unpacked once for up to four
//! tokens. For decoding, alone or in a small batch, where reading the weights is the bound. A
//! token's sums are taken in the same order whatever comes with it.
#![expect(clippy::needless_range_loop, reason = "tiles of registers, indexed alike")]

use super::ahead::{ReadAhead, near};
use super::coding::{Coding, Quantised, unpack, with_coding};
use super::input::{Digits, Plane};
use super::task::{Out, RowRange};
use crate::isa::Cpu;
use crate::simd::tables::{NARROW_GROUP, Places};
use crate::simd::{Kernel, LANES, Simd, UNIT, dispatch};
use std::ops::Range;

/// Most tokens that meet an unpacked unit at once, by digits less one.
const TOKENS_AT_ONCE: [usize; 3] = [4, 4, 2];

/// `out[token][row] = Σ w·x` for some rows of a quantised matrix and a few tokens.
#[derive(Clone, Copy)]
pub(super) struct CodeDot<'a> {
    pub(super) weights: Quantised<'a>,
    pub(super) input: &'a Digits<'a>,
    pub(super) first_token: usize,
    pub(super) tokens: usize,
    pub(super) rows: RowRange,
    pub(super) out: Out<'a>,
}

impl CodeDot<'_> {
    /// Computes the products.
    pub(super) fn dispatch(&self, cpu: Cpu) {
        let (first, end) = (self.first_token, self.first_token + self.tokens);
        let at_once = TOKENS_AT_ONCE[self.input.layout.digits - 1];
        for first_token in (first..end).step_by(at_once) {
            let tokens = at_once.min(end - first_token);
            Self { first_token, tokens, ..*self }.dispatch_width(cpu);
        }
    }

    /// Computes the products of tokens that go at once. Every coding and number of tokens is a
    /// function of its own.
    fn dispatch_width(&self, cpu: Cpu) {
        with_coding!(self.weights, coding => self.dispatch_coding(cpu, coding));
    }

    fn dispatch_coding<'c, C: Coding<'c>>(&self, cpu: Cpu, coding: C) {
        for block in 0..self.input.layout.blocks() {
            match (self.tokens, self.input.layout.digits) {
                (1, 1) => dispatch(cpu, self.block::<C, 1, 1>(coding, block)),
                (2, 1) => dispatch(cpu, self.block::<C, 2, 1>(coding, block)),
                (3, 1) => dispatch(cpu, self.block::<C, 3, 1>(coding, block)),
                (4, 1) => dispatch(cpu, self.block::<C, 4, 1>(coding, block)),
                (1, 2) => dispatch(cpu, self.block::<C, 1, 2>(coding, block)),
                (2, 2) => dispatch(cpu, self.block::<C, 2, 2>(coding, block)),
                (3, 2) => dispatch(cpu, self.block::<C, 3, 2>(coding, block)),
                (4, 2) => dispatch(cpu, self.block::<C, 4, 2>(coding, block)),
                (1, 3) => dispatch(cpu, self.block::<C, 1, 3>(coding, block)),
                (2, 3) => dispatch(cpu, self.block::<C, 2, 3>(coding, block)),
                (tokens, digits) => unreachable!("{tokens} tokens of {digits} digits at once"),
            }
        }
    }

    /// The products within one column block.
    fn block<'c, C: Coding<'c>, const T: usize, const D: usize>(
        &self,
        coding: C,
        block: usize,
    ) -> BlockDot<'_, C, T, D> {
        let layout = self.input.layout;
        let planes = std::array::from_fn(|token| {
            std::array::from_fn(|digit| self.input.plane(block, digit, self.first_token + token))
        });
        let (first_col, cols) = (layout.first_col(block), layout.block_cols(block));
        BlockDot { dot: *self, coding, planes, first_col, cols, all_cols: layout.cols }
    }
}

/// [`CodeDot`] for one column block, one coding and `T` tokens of `D` digits. What the loops need
/// is held by value: behind a pointer it would be read again after every result that is stored.
struct BlockDot<'a, C, const T: usize, const D: usize> {
    dot: CodeDot<'a>,
    coding: C,
    planes: [[Plane; D]; T],
    first_col: usize,
    cols: usize,
    all_cols: usize,
}

impl<'c, C: Coding<'c>, const T: usize, const D: usize> Kernel for BlockDot<'_, C, T, D> {
    const INTEGER_DOTS: bool = true;
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
    /// Each row's codes from its next unit on, and as far as the matrix goes.
    codes: [&'a [u8]; R],
    ahead: ReadAhead,
    acc: [[S::F; T]; R],
}

impl<'c, C: Coding<'c>, const T: usize, const D: usize> BlockDot<'_, C, T, D> {
    /// Computes `R` rows with all tokens.
    #[inline(always)]
    fn rows<S: Simd, const R: usize>(&self, simd: S, row: usize) {
        let all = self.coding.codes();
        let codes = std::array::from_fn(|r| &all[self.start(row + r) / 8 * C::BITS as usize..]);
        let mut rows =
            Rows::<S, T, R> { codes, ahead: ReadAhead::new(codes[0]), acc: [[simd.zero(); T]; R] };
        // All groups are 32, 64 or 128: a shift instead of a division.
        let groups = self.cols >> self.coding.group().trailing_zeros();
        for chunk in (0..groups).step_by(LANES) {
            // SAFETY: the rows have these groups.
            unsafe { self.groups(simd, row, chunk..groups.min(chunk + LANES), &mut rows) };
        }
        self.store(simd, row, &rows.acc);
    }

    /// Stored element that the block begins with in row `row`.
    #[inline(always)]
    fn start(&self, row: usize) -> usize {
        row * self.coding.step() * self.all_cols + self.first_col
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
        let group = self.coding.group();
        let shift = group.trailing_zeros();
        // Scale of the codes times scale of the lowest digit. Apart from `rows`, which thereby
        // stays in registers.
        let mut scales = [[simd.table(simd.zero()); T]; R];
        for r in 0..R {
            let first = self.start(row + r) + (groups.start << shift);
            // SAFETY: the row has these groups; planes have scales and sums for whole vectors.
            unsafe {
                let (scale, bias) = self.coding.groups(simd, first, groups.len());
                for t in 0..T {
                    for digit in 0..D {
                        let sums = simd.load(self.planes[t][digit].sums.add(groups.start));
                        rows.acc[r][t] = simd.fma(bias, sums, rows.acc[r][t]);
                    }
                    let lowest = simd.load(self.planes[t][0].scales.add(groups.start));
                    scales[r][t] = simd.table(simd.mul(scale, lowest));
                }
            }
        }
        let cols = groups.start << shift..groups.end << shift;
        // SAFETY: these are the columns of the groups.
        unsafe {
            if group == NARROW_GROUP {
                self.units::<S, R, true>(simd, cols, &scales, rows);
            } else {
                self.units::<S, R, false>(simd, cols, &scales, rows);
            }
        }
    }

    /// Adds the products of the columns `cols`, of up to 16 groups.
    ///
    /// # Safety
    /// As for [`Self::unit`].
    #[inline(always)]
    unsafe fn units<S: Simd, const R: usize, const NARROW: bool>(
        &self,
        simd: S,
        cols: Range<usize>,
        scales: &[[S::Table; T]; R],
        rows: &mut Rows<'_, S, T, R>,
    ) {
        let (units, places) = (cols.len() / UNIT, Places::of(self.coding.group()));
        for unit in 0..units {
            let at = cols.start + unit * UNIT;
            // SAFETY: by contract.
            unsafe {
                self.unit::<S, R, NARROW, true>(simd, (places, unit), at..at + UNIT, scales, rows);
            }
        }
        if !cols.len().is_multiple_of(UNIT) {
            let at = cols.start + units * UNIT;
            // SAFETY: by contract.
            unsafe {
                self.unit::<S, R, NARROW, false>(simd, (places, units), at..cols.end, scales, rows);
            }
        }
    }

    /// Adds the products of the columns `cols`, a unit if `WHOLE`: the next of the rows, and the
    /// `unit`-th since their scales were looked up.
    ///
    /// # Safety
    /// The rows have these columns, in groups of [`NARROW_GROUP`] if `NARROW` and in wider ones
    /// otherwise; the planes have whole units of digits.
    #[inline(always)]
    unsafe fn unit<S: Simd, const R: usize, const NARROW: bool, const WHOLE: bool>(
        &self,
        simd: S,
        (places, unit): (Places, usize),
        cols: Range<usize>,
        scales: &[[S::Table; T]; R],
        rows: &mut Rows<'_, S, T, R>,
    ) {
        let bytes = UNIT / 8 * C::BITS as usize;
        for r in 0..R {
            let codes = rows.codes[r];
            // SAFETY: by contract.
            unsafe {
                let (even, odd) = if WHOLE {
                    rows.codes[r] = codes.get_unchecked(bytes..);
                    C::unpack(simd, codes.as_ptr(), codes.len())
                } else {
                    unpack::<S, C>(simd, codes, cols.len())
                };
                for t in 0..T {
                    let dot = self.digits::<S>(simd, t, cols.start, (even, odd));
                    let scale = simd.expand::<NARROW>(&scales[r][t], places, unit);
                    rows.acc[r][t] = simd.fma(dot, scale, rows.acc[r][t]);
                }
                near(simd, codes.as_ptr());
                rows.ahead.step(simd, bytes);
            }
        }
    }

    /// The product of a unit of codes with token `t`, in multiples of its lowest digit's scale.
    ///
    /// # Safety
    /// The planes have whole units of digits at `col`.
    #[inline(always)]
    unsafe fn digits<S: Simd>(&self, simd: S, t: usize, col: usize, codes: (S::B, S::B)) -> S::F {
        // Two digits of eight products fit into 32 bits, three need not.
        // SAFETY: by contract.
        unsafe {
            let low = self.digit(simd, (t, 0, col));
            if D == 1 {
                return simd.to_float(C::dot_unit(simd, codes, low));
            }
            let two = C::dot_unit_wide(simd, codes, self.digit(simd, (t, 1, col)), low);
            if D == 2 {
                return simd.to_float(two);
            }
            let third = simd.to_float(C::dot_unit(simd, codes, self.digit(simd, (t, 2, col))));
            simd.fma(third, simd.splat(65536.0), simd.to_float(two))
        }
    }

    /// A unit of one digit of token `t`, from column `col` of the block on.
    ///
    /// # Safety
    /// As for [`Self::digits`]; the token has the digit.
    #[inline(always)]
    unsafe fn digit<S: Simd>(
        &self,
        simd: S,
        (t, digit, col): (usize, usize, usize),
    ) -> (S::B, S::B) {
        // SAFETY: by contract.
        unsafe {
            let x = self.planes[t][digit].digits.add(col);
            (simd.load_bytes(x), simd.load_bytes(x.add(64)))
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
