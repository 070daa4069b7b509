//! Products with dense matrices: row by row for a few tokens, tile by tile for more.
#![expect(clippy::needless_range_loop, reason = "tiles of registers, indexed alike")]

use super::ahead::{ReadAhead, near};
use super::input::{FLOAT_COLS, FLOAT_STRIDE, Floats};
use super::panel::{TILE_FLOATS, TileSource, pack_floats};
use super::task::{Out, RowRange};
use super::tile::{Place, Tiles, cover};
use crate::isa::Cpu;
use crate::simd::{Kernel, LANES, Simd, dispatch};
use crate::weights::FloatType;

/// Most tokens that meet a row at once.
const TOKENS_AT_ONCE: usize = 4;

/// `out[token][row] = Σ w·x` for some rows of a dense matrix and a few tokens, each summed in
/// one order, independently of the other tokens.
#[derive(Clone, Copy)]
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

impl DenseDot<'_> {
    /// Computes the products. Every number of tokens at once is a function of its own.
    ///
    /// # Safety
    /// No other thread accesses these rows of the output meanwhile.
    ///
    /// # Panics
    /// If the matrix or the output lacks one of the rows, or an `x` one of the columns.
    pub(super) unsafe fn dispatch(&self, cpu: Cpu) {
        self.out.check(&(self.first_token..self.first_token + self.x.len()), self.rows);
        for (i, x) in self.x.chunks(TOKENS_AT_ONCE).enumerate() {
            let part = Self { x, first_token: self.first_token + i * TOKENS_AT_ONCE, ..*self };
            match x.len() {
                1 => dispatch(cpu, TokenDot::<1>(&part)),
                2 => dispatch(cpu, TokenDot::<2>(&part)),
                3 => dispatch(cpu, TokenDot::<3>(&part)),
                _ => dispatch(cpu, TokenDot::<4>(&part)),
            }
        }
    }
}

/// [`DenseDot`] for `T` tokens.
struct TokenDot<'a, const T: usize>(&'a DenseDot<'a>);

impl<const T: usize> Kernel for TokenDot<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let this = self.0;
        for row in this.rows.iter() {
            let sums = match this.ty {
                FloatType::F32 => this.row::<S, T>(simd, FloatType::F32, row),
                FloatType::F16 => this.row::<S, T>(simd, FloatType::F16, row),
                FloatType::Bf16 => this.row::<S, T>(simd, FloatType::Bf16, row),
            };
            for (token, sum) in sums.into_iter().enumerate() {
                // SAFETY: `dispatch` has checked the output, and its caller owns the rows.
                unsafe { this.out.write(this.first_token + token, row, sum) };
            }
        }
    }
}

impl DenseDot<'_> {
    /// The products of one row with all tokens.
    #[inline(always)]
    fn row<S: Simd, const T: usize>(&self, simd: S, ty: FloatType, row: usize) -> [f32; T] {
        let cols = self.x[0].len();
        let weights = &self.weights[row * cols * ty.bytes()..][..cols * ty.bytes()];
        let x: [&[f32]; T] = std::array::from_fn(|t| &self.x[t][..cols]);
        // Two accumulators per token hide the latency of the additions.
        let mut acc = [[simd.zero(); 2]; T];
        let whole = cols - cols % (2 * LANES);
        let mut ahead = ReadAhead::new(weights);
        for col in (0..whole).step_by(2 * LANES) {
            ahead.step(simd, 2 * LANES * ty.bytes());
            // SAFETY: columns `col..col + 32` exist in the row and in every `x`, all of `cols`.
            unsafe {
                let at = weights.as_ptr().add(col * ty.bytes());
                near(simd, at);
                let first = simd.load_floats(ty, at);
                let second = simd.load_floats(ty, at.add(LANES * ty.bytes()));
                for t in 0..T {
                    let x = x[t].as_ptr().add(col);
                    acc[t][0] = simd.fma(first, simd.load(x), acc[t][0]);
                    acc[t][1] = simd.fma(second, simd.load(x.add(LANES)), acc[t][1]);
                }
            }
        }
        let mut sums = [0.0; T];
        for t in 0..T {
            let tail = (whole..cols).map(|col| ty.get(weights, col) * x[t][col]);
            sums[t] = simd.sum(simd.add(acc[t][0], acc[t][1])) + tail.sum::<f32>();
        }
        sums
    }
}

/// `out[token][row] = Σ w·x` for up to [`PANEL_ROWS`] rows of a dense matrix and any tokens.
pub(super) struct DenseTiles<'a> {
    pub(super) ty: FloatType,
    pub(super) weights: &'a [u8],
    pub(super) input: &'a Floats<'a>,
    pub(super) first_token: usize,
    pub(super) tokens: usize,
    pub(super) rows: RowRange,
    pub(super) out: Out<'a>,
    /// [`TILE_FLOATS`] floats per 16 rows.
    pub(super) panel: &'a mut [f32],
}

impl DenseTiles<'_> {
    /// Computes the products; each step is a function of its own.
    ///
    /// # Safety
    /// No other thread accesses these rows of the output meanwhile.
    ///
    /// # Panics
    /// If the matrix, the input or the output lacks one of the rows or tokens, or the panel room
    /// for the rows.
    pub(super) unsafe fn dispatch(&mut self, cpu: Cpu) {
        let tokens = self.first_token..self.first_token + self.tokens;
        assert!(tokens.end <= self.input.tokens, "{tokens:?} of {}", self.input.tokens);
        assert!(self.rows.end * self.input.cols * self.ty.bytes() <= self.weights.len());
        self.out.check(&tokens, self.rows);
        assert!(self.panel.len() >= self.rows.len().div_ceil(LANES) * TILE_FLOATS);
        for block in 0..self.input.cols.div_ceil(FLOAT_COLS) {
            dispatch(cpu, DensePack(self, block));
            dispatch(cpu, DenseMultiply(self, block));
        }
    }
}

/// Converts the rows within a column block.
struct DensePack<'a, 'b>(&'a mut DenseTiles<'b>, usize);

impl Kernel for DensePack<'_, '_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self(this, block) = self;
        let cols = this.input.cols;
        for (tile, row) in this.rows.iter().step_by(LANES).enumerate() {
            let source = TileSource {
                row,
                last_row: this.rows.end - 1,
                stride: cols,
                first_col: block * FLOAT_COLS,
                block_cols: (cols - block * FLOAT_COLS).min(FLOAT_COLS),
            };
            let target = this.panel[tile * TILE_FLOATS..].as_mut_ptr();
            // SAFETY: the rows and the block exist; a tile has room for a whole block.
            unsafe {
                match this.ty {
                    FloatType::F32 => {
                        pack_floats(simd, FloatType::F32, this.weights, source, target);
                    }
                    FloatType::F16 => {
                        pack_floats(simd, FloatType::F16, this.weights, source, target);
                    }
                    FloatType::Bf16 => {
                        pack_floats(simd, FloatType::Bf16, this.weights, source, target);
                    }
                }
            }
        }
    }
}

/// Multiplies the panel with the activations in a column block, and adds that to the output; the
/// first ones start it.
struct DenseMultiply<'a, 'b>(&'a DenseTiles<'b>, usize);

impl Kernel for DenseMultiply<'_, '_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let DenseTiles { first_token, tokens, rows, .. } = *self.0;
        let tokens = first_token..first_token + tokens;
        // SAFETY: `dispatch` has checked that these tiles and tokens exist.
        unsafe { cover(simd, &self, rows.len().div_ceil(LANES), tokens) };
    }
}

impl<S: Simd> Tiles<S> for DenseMultiply<'_, '_> {
    const SIX_TOKENS: bool = true;

    #[inline(always)]
    unsafe fn compute<const R: usize, const N: usize>(&self, simd: S, tile: usize, token: usize) {
        let Self(this, block) = *self;
        let cols = (this.input.cols - block * FLOAT_COLS).min(FLOAT_COLS);
        let panel = this.panel[tile * TILE_FLOATS..].as_ptr();
        let place = Place { row: this.rows.first + tile * LANES, end: this.rows.end, token };
        // SAFETY: the caller's `R` tiles and `N` tokens exist from there on, with `cols` columns;
        // the caller of `dispatch` owns these rows of the output.
        unsafe {
            let x = this.input.block(block, token);
            let sums = float_tile::<S, R, N>(simd, panel, x, cols);
            place.store(simd, &this.out, &sums, block > 0);
        }
    }
}

/// The product of `R` row tiles with `N` tokens over `cols` columns.
///
/// # Safety
/// `panel` has `R` tiles of [`TILE_FLOATS`]; `x` has `N` tokens, [`FLOAT_STRIDE`] apart.
#[inline(always)]
unsafe fn float_tile<S: Simd, const R: usize, const N: usize>(
    simd: S,
    panel: *const f32,
    x: *const f32,
    cols: usize,
) -> [[S::F; R]; N] {
    let mut sums = [[simd.zero(); R]; N];
    for col in 0..cols {
        // SAFETY: the caller's panel has `R` tiles of `cols` columns, and `x` `N` tokens of them.
        unsafe {
            let mut w = [simd.load(panel.add(col * LANES)); R];
            for (r, w) in w.iter_mut().enumerate().skip(1) {
                *w = simd.load(panel.add(r * TILE_FLOATS + col * LANES));
            }
            for n in 0..N {
                let x = simd.splat(*x.add(n * FLOAT_STRIDE + col));
                for r in 0..R {
                    sums[n][r] = simd.fma(w[r], x, sums[n][r]);
                }
            }
        }
    }
    sums
}
