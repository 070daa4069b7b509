//! Products with a quantised matrix row by row: each weight is unpacked once for up to four
//! tokens. For decoding, alone or in a small batch, where reading the weights is the bound. A
//! token's sums are taken in one order, independently of the other tokens.
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
    ///
    /// # Safety
    /// No other thread accesses these rows of the output meanwhile.
    ///
    /// # Panics
    /// If the matrix, the input or the output lacks one of the rows, tokens or columns.
    pub(super) unsafe fn dispatch(&self, cpu: Cpu) {
        let first = self.first_token;
        let end = self.first_token + self.tokens;
        let layout = self.input.layout;
        assert!(end <= layout.tokens && layout.group == self.weights.group(), "{layout:?} {end}");
        self.weights.check(self.rows, layout.cols);
        self.out.check(&(first..end), self.rows);
        let at_once = TOKENS_AT_ONCE[self.input.layout.digits - 1];
        for first_token in (first..end).step_by(at_once) {
            let tokens = at_once.min(end - first_token);
            Self { first_token, tokens, ..*self }.dispatch_width(cpu);
        }
    }

    /// Computes the products of tokens that go at once.
    fn dispatch_width(&self, cpu: Cpu) {
        with_coding!(self.weights, coding => dispatch(cpu, CodingDot { dot: *self, coding }));
    }
}

/// [`CodeDot`] for one coding, of tokens that go at once.
struct CodingDot<'a, C> {
    dot: CodeDot<'a>,
    coding: C,
}

impl<'c, C: Coding<'c>> Kernel for CodingDot<'_, C> {
    const INTEGER_DOTS: bool = true;
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for block in 0..self.dot.input.layout.blocks() {
            if S::PORTABLE {
                simd.outline(self.block::<4, 3>(block));
                continue;
            }
            // Every number of tokens and digits is a function of its own.
            match (self.dot.tokens, self.dot.input.layout.digits) {
                (1, 1) => simd.outline(self.block::<1, 1>(block)),
                (2, 1) => simd.outline(self.block::<2, 1>(block)),
                (3, 1) => simd.outline(self.block::<3, 1>(block)),
                (4, 1) => simd.outline(self.block::<4, 1>(block)),
                (1, 2) => simd.outline(self.block::<1, 2>(block)),
                (2, 2) => simd.outline(self.block::<2, 2>(block)),
                (3, 2) => simd.outline(self.block::<3, 2>(block)),
                (4, 2) => simd.outline(self.block::<4, 2>(block)),
                (1, 3) => simd.outline(self.block::<1, 3>(block)),
                (2, 3) => simd.outline(self.block::<2, 3>(block)),
                (tokens, digits) => unreachable!("{tokens} tokens of {digits} digits at once"),
            }
        }
    }
}

impl<'a, 'c, C: Coding<'c>> CodingDot<'a, C> {
    /// The products within one column block, of at most `T` tokens and `D` digits.
    fn block<const T: usize, const D: usize>(&self, block: usize) -> BlockDot<'a, C, T, D> {
        let Self { dot, coding } = *self;
        let layout = dot.input.layout;
        let last_token = dot.first_token + dot.tokens - 1;
        let planes = std::array::from_fn(|t| {
            let token = (dot.first_token + t).min(last_token);
            std::array::from_fn(|d| dot.input.plane(block, d.min(layout.digits - 1), token))
        });
        BlockDot {
            dot,
            coding,
            planes,
            first_col: layout.first_col(block),
            cols: layout.block_cols(block),
            all_cols: layout.cols,
        }
    }
}

/// [`CodeDot`] for one column block, one coding and `T` tokens of `D` digits, or at most as many
/// with the portable set. What the loops need is held by value: behind a pointer it would be read
/// again after every result that is stored.
#[derive(Clone, Copy)]
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
        if S::WIDE_TILES && T <= 2 {
            while row + 4 <= self.dot.rows.end {
                // SAFETY: `CodeDot::dispatch` has checked the rows, which are this call's.
                unsafe { self.rows::<S, 4>(simd, row) };
                row += 4;
            }
        } else if S::WIDE_TILES || T * D == 1 {
            while row + 2 <= self.dot.rows.end {
                // SAFETY: `CodeDot::dispatch` has checked the rows, which are this call's.
                unsafe { self.rows::<S, 2>(simd, row) };
                row += 2;
            }
        }
        while row < self.dot.rows.end {
            // SAFETY: `CodeDot::dispatch` has checked the rows, which are this call's.
            unsafe { self.rows::<S, 1>(simd, row) };
            row += 1;
        }
    }
}

/// State of `R` rows while their groups are read.
struct RowSums<'a, S: Simd, const T: usize, const R: usize> {
    /// Each row's codes from its next unit to the end of the matrix.
    codes: [&'a [u8]; R],
    ahead: ReadAhead,
    acc: [[S::F; T]; R],
}

impl<'c, C: Coding<'c>, const T: usize, const D: usize> BlockDot<'_, C, T, D> {
    /// Tokens that go at once.
    #[inline(always)]
    fn tokens<S: Simd>(&self) -> usize {
        if S::PORTABLE { self.dot.tokens } else { T }
    }

    /// Digits of an activation.
    #[inline(always)]
    fn digits<S: Simd>(&self) -> usize {
        if S::PORTABLE { self.dot.input.layout.digits } else { D }
    }

    /// Computes `R` rows with all tokens.
    ///
    /// # Safety
    /// The matrix, the input and the output have these rows and tokens; no other thread accesses
    /// these rows of the output.
    #[inline(always)]
    unsafe fn rows<S: Simd, const R: usize>(&self, simd: S, row: usize) {
        let all = self.coding.codes();
        let codes = std::array::from_fn(|r| &all[self.start(row + r) / 8 * C::BITS as usize..]);
        let mut rows = RowSums::<S, T, R> {
            codes,
            ahead: ReadAhead::new(codes[0]),
            acc: [[simd.zero(); T]; R],
        };
        // All groups are 32, 64 or 128: a shift instead of a division.
        let groups = self.cols >> self.coding.group().trailing_zeros();
        for chunk in (0..groups).step_by(LANES) {
            // SAFETY: the rows have these groups.
            unsafe { self.groups(simd, row, chunk..groups.min(chunk + LANES), &mut rows) };
        }
        // SAFETY: the caller's rows are in the output, and this thread's alone.
        unsafe { self.store(simd, row, &rows.acc) };
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
        rows: &mut RowSums<'_, S, T, R>,
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
                for t in 0..self.tokens::<S>() {
                    for digit in 0..self.digits::<S>() {
                        let sums = simd.load(self.planes[t][digit].sums.add(groups.start));
                        rows.acc[r][t] = simd.fma(bias, sums, rows.acc[r][t]);
                    }
                    let lowest = simd.load(self.planes[t][0].scales.add(groups.start));
                    scales[r][t] = simd.table(simd.mul(scale, lowest));
                }
            }
        }
        let cols = groups.start << shift..groups.end << shift;
        let narrow = S::NARROW_EXPAND && (C::NARROW_ONLY || group == NARROW_GROUP);
        // SAFETY: these are the columns of the groups.
        unsafe {
            if narrow {
                self.units::<S, R, true>(simd, cols, &scales, rows);
            } else {
                self.units::<S, R, false>(simd, cols, &scales, rows);
            }
        }
    }

    /// Adds the products of the columns `cols`, of up to 16 groups, which are of [`NARROW_GROUP`]
    /// if `NARROW` and wider otherwise where [`Simd::NARROW_EXPAND`].
    ///
    /// # Safety
    /// The rows have these columns; the planes have whole units of digits.
    #[inline(always)]
    unsafe fn units<S: Simd, const R: usize, const NARROW: bool>(
        &self,
        simd: S,
        cols: Range<usize>,
        scales: &[[S::Table; T]; R],
        rows: &mut RowSums<'_, S, T, R>,
    ) {
        let units = cols.len() / UNIT;
        let places = Places::of(self.coding.group());
        let bytes = UNIT / 8 * C::BITS as usize;
        for unit in 0..units {
            let col = cols.start + unit * UNIT;
            for r in 0..R {
                let codes = rows.codes[r];
                // SAFETY: the row has the unit, and the planes its digits.
                unsafe {
                    rows.codes[r] = codes.get_unchecked(bytes..);
                    let unpacked = C::unpack(simd, codes.as_ptr(), codes.len());
                    for t in 0..self.tokens::<S>() {
                        let dot = self.dot(simd, t, col, unpacked);
                        let scale = simd.expand::<NARROW>(&scales[r][t], places, unit);
                        rows.acc[r][t] = simd.fma(dot, scale, rows.acc[r][t]);
                    }
                }
                near(simd, codes.as_ptr());
                rows.ahead.step(simd, bytes);
            }
        }
        if !cols.len().is_multiple_of(UNIT) {
            for r in 0..R {
                let mut dots = [[0.0; LANES]; T];
                let cols = cols.start + units * UNIT..cols.end;
                simd.outline(LastUnit {
                    block: *self,
                    codes: rows.codes[r],
                    cols,
                    dots: &mut dots,
                });
                for t in 0..self.tokens::<S>() {
                    // SAFETY: `dots` has 16 values for each token.
                    let dot = unsafe { simd.load(dots[t].as_ptr()) };
                    let scale = simd.expand::<NARROW>(&scales[r][t], places, units);
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
    unsafe fn dot<S: Simd>(&self, simd: S, t: usize, col: usize, codes: (S::B, S::B)) -> S::F {
        let digits = self.digits::<S>();
        // Two digits of eight products fit into 32 bits, three need not.
        // SAFETY: the token has these digits, and the caller the unit.
        unsafe {
            let low = self.digit(simd, t, 0, col);
            if digits == 1 {
                return simd.to_float(C::dot_unit(simd, codes, low));
            }
            let two = C::dot_unit_wide(simd, codes, self.digit(simd, t, 1, col), low);
            if digits == 2 {
                return simd.to_float(two);
            }
            let third = simd.to_float(C::dot_unit(simd, codes, self.digit(simd, t, 2, col)));
            simd.fma(third, simd.splat(65536.0), simd.to_float(two))
        }
    }

    /// A unit of one digit of token `t`, from column `col` of the block on.
    ///
    /// # Safety
    /// See [`Self::dot`]; the token has the digit.
    #[inline(always)]
    unsafe fn digit<S: Simd>(&self, simd: S, t: usize, digit: usize, col: usize) -> (S::B, S::B) {
        // SAFETY: the caller's plane has a unit of 128 bytes at `col`.
        unsafe {
            let x = self.planes[t][digit].digits.add(col);
            (simd.load_bytes(x), simd.load_bytes(x.add(64)))
        }
    }

    /// Writes the sums of `R` rows; a block after the first adds to what is there.
    ///
    /// # Safety
    /// The output has these rows, which no other thread accesses.
    #[inline(always)]
    unsafe fn store<S: Simd, const R: usize>(&self, simd: S, row: usize, acc: &[[S::F; T]; R]) {
        for token in 0..self.tokens::<S>() {
            let mut totals = [simd.zero(); R];
            for r in 0..R {
                totals[r] = acc[r][token];
            }
            let sums = simd.sums(totals);
            for r in 0..R {
                // SAFETY: the caller's rows are in the output, and this thread's alone.
                unsafe {
                    let target = self.dot.out.at(self.dot.first_token + token, row + r);
                    let before = if self.first_col > 0 { *target } else { 0.0 };
                    *target = before + sums[r];
                }
            }
        }
    }
}

/// The products of the last columns of a row, which are no whole unit. Apart from the others: it
/// is rare, and would be compiled into each of them.
struct LastUnit<'a, 'o, C, const T: usize, const D: usize> {
    block: BlockDot<'a, C, T, D>,
    /// Codes of the row from these columns on.
    codes: &'a [u8],
    cols: Range<usize>,
    dots: &'o mut [[f32; LANES]; T],
}

impl<'c, C: Coding<'c>, const T: usize, const D: usize> Kernel for LastUnit<'_, '_, C, T, D> {
    const INTEGER_DOTS: bool = true;
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        // SAFETY: the row has these columns, and the planes whole units of digits.
        unsafe {
            let unpacked = unpack::<S, C>(simd, self.codes, self.cols.len());
            for t in 0..self.block.tokens::<S>() {
                let dot = self.block.dot(simd, t, self.cols.start, unpacked);
                simd.store(self.dots[t].as_mut_ptr(), dot);
            }
        }
    }
}
