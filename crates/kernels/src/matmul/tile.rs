//! Products tile by tile: `16·R` rows by `N` tokens at a time, accumulated in registers.
//! For prompts and batches, where arithmetic is the bound.
#![expect(clippy::needless_range_loop, reason = "tiles of registers, indexed alike")]

use super::input::{
    DIGIT_COLS, DIGIT_STRIDE, Digits, FLOAT_COLS, FLOAT_STRIDE, Floats, GROUP_STRIDE, INT_BIAS,
    Plane,
};
use super::panel::{
    CodePanel, PANEL_ROWS, TILE_CODES, TILE_FLOATS, TILE_SCALES, TileSource, pack_codes,
    pack_floats,
};
use super::task::{Out, RowRange};
use crate::isa::Cpu;
use crate::simd::{Kernel, LANES, Simd, UNIT, dispatch};
use crate::weights::{Affine, FloatType};
use std::hint::black_box;

/// Calls `$call` with `$R` row tiles and as many tokens `$N` at once as registers allow, until
/// `$tokens` is used up.
macro_rules! for_token_blocks {
    ($S:ident, $tiles:expr, $tokens:expr, |$token:ident, $R:ident, $N:ident| $call:expr) => {{
        let mut $token = $tokens.start;
        while $token < $tokens.end {
            let left = $tokens.end - $token;
            macro_rules! block {
                ($r:literal, $n:literal) => {{
                    const $R: usize = $r;
                    const $N: usize = $n;
                    $call;
                    $token += $n;
                }};
            }
            // One constant condition, so that the other branch is never compiled.
            if $S::WIDE_TILES {
                match ($tiles, left) {
                    (2, 12..) => block!(2, 12),
                    (2, 8..) => block!(2, 8),
                    (2, 4..) => block!(2, 4),
                    (2, 2..) => block!(2, 2),
                    (2, _) => block!(2, 1),
                    (_, 8..) => block!(1, 8),
                    (_, 2..) => block!(1, 2),
                    _ => block!(1, 1),
                }
            } else {
                match left {
                    4.. => block!(1, 4),
                    2.. => block!(1, 2),
                    _ => block!(1, 1),
                }
            }
        }
    }};
}

/// Row tiles that one pass over the activations uses.
const fn tiles_at_once<S: Simd>() -> usize {
    if S::WIDE_TILES { 2 } else { 1 }
}

/// `out[token][row] = Σ w·x` for up to [`PANEL_ROWS`] rows of an affine matrix and any tokens.
pub(super) struct AffineTiles<'a> {
    pub(super) weights: &'a Affine<'a>,
    pub(super) input: &'a Digits<'a>,
    pub(super) first_token: usize,
    pub(super) tokens: usize,
    pub(super) rows: RowRange,
    pub(super) out: Out<'a>,
    pub(super) panel: CodePanel,
}

impl AffineTiles<'_> {
    /// Computes the products; each step is a function of its own.
    pub(super) fn dispatch(&self, cpu: Cpu) {
        assert!(self.input.layout.is_blocked(), "tiles need blocks of digits");
        for block in 0..self.input.layout.blocks() {
            match self.weights.bits {
                2 => dispatch(cpu, Pack::<2>(self, block)),
                3 => dispatch(cpu, Pack::<3>(self, block)),
                4 => dispatch(cpu, Pack::<4>(self, block)),
                5 => dispatch(cpu, Pack::<5>(self, block)),
                6 => dispatch(cpu, Pack::<6>(self, block)),
                _ => dispatch(cpu, Pack::<8>(self, block)),
            }
            for digit in 0..self.input.layout.digits {
                // Without VNNI the dot product of 8-bit codes takes more instructions.
                if self.weights.bits < 8 {
                    dispatch(cpu, Multiply::<7>(self, block, digit));
                } else {
                    dispatch(cpu, Multiply::<8>(self, block, digit));
                }
            }
        }
    }
}

/// Unpacks the rows within a column block into the panel.
struct Pack<'a, const BITS: u32>(&'a AffineTiles<'a>, usize);

impl<const BITS: u32> Kernel for Pack<'_, BITS> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self(this, block) = self;
        assert!(this.rows.len() <= PANEL_ROWS, "too many rows for a panel");
        for (tile, row) in this.rows.iter().step_by(LANES).enumerate() {
            let source = TileSource {
                row,
                last_row: this.rows.end - 1,
                cols: this.input.layout.cols,
                first_col: block * DIGIT_COLS,
                block_cols: this.input.layout.block_cols(block),
            };
            // SAFETY: the rows and the block exist, and so does the tile.
            unsafe { pack_codes::<S, BITS>(simd, this.weights, source, this.panel.tile(tile)) };
        }
    }
}

/// Multiplies the panel with one digit of the activations in a column block.
struct Multiply<'a, const BITS: u32>(&'a AffineTiles<'a>, usize, usize);

impl<const BITS: u32> Kernel for Multiply<'_, BITS> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self(this, block, digit) = self;
        // SAFETY: the panel has just been packed for this block.
        unsafe { this.multiply::<S, BITS>(simd, block, digit) };
    }
}

impl AffineTiles<'_> {
    /// Adds the products of one digit in one column block to the output; the first ones start it.
    ///
    /// # Safety
    /// The panel holds the rows within this block.
    #[inline(always)]
    unsafe fn multiply<S: Simd, const BITS: u32>(&self, simd: S, block: usize, digit: usize) {
        let groups = self.input.layout.block_cols(block) / self.weights.group;
        let step = tiles_at_once::<S>();
        let row_tiles = self.rows.len().div_ceil(LANES);
        let mut tile = 0;
        while tile < row_tiles {
            let tiles = step.min(row_tiles - tile);
            let tokens = self.first_token..self.first_token + self.tokens;
            for_token_blocks!(S, tiles, tokens, |token, R, N| {
                let product = TileProduct {
                    // SAFETY: `tile` is below the number of tiles.
                    panel: unsafe { self.panel.tile(tile) },
                    plane: self.input.plane(block, digit, token),
                    group: self.weights.group,
                    groups,
                };
                // SAFETY: `R` tiles and `N` tokens exist from there on.
                let sums = unsafe { product.run::<S, R, N, BITS>(simd) };
                let place =
                    Place { row: self.rows.first + tile * LANES, end: self.rows.end, token };
                let add = block + digit > 0;
                // SAFETY: this call owns these rows of the output.
                unsafe { place.store(simd, &self.out, &sums, add) };
            });
            tile += tiles;
        }
    }
}

/// The product of a few row tiles with a few tokens over the groups of one column block.
#[derive(Clone, Copy)]
struct TileProduct {
    panel: CodePanel,
    plane: Plane,
    group: usize,
    groups: usize,
}

impl TileProduct {
    /// # Safety
    /// The panel has `R` tiles and the plane `N` tokens, with at least `groups` groups.
    #[inline(always)]
    unsafe fn run<S: Simd, const R: usize, const N: usize, const BITS: u32>(
        self,
        simd: S,
    ) -> [[S::F; R]; N] {
        let mut sums = [[simd.zero(); R]; N];
        for group in 0..self.groups {
            // SAFETY: `group` exists in the panel and the plane.
            unsafe {
                let dots = self.dots::<S, R, N, BITS>(simd, group);
                // The integer sums need all registers. Behind a black box the float sums stay in
                // memory, instead of moving back and forth.
                self.scale(simd, group, &dots, black_box(&mut sums));
            }
        }
        sums
    }

    /// Integer dot products of one group, from the bits of [`INT_BIAS`] on.
    ///
    /// # Safety
    /// As for [`Self::run`], and `group` is below `groups`.
    #[inline(always)]
    unsafe fn dots<S: Simd, const R: usize, const N: usize, const BITS: u32>(
        &self,
        simd: S,
        group: usize,
    ) -> [[S::I; R]; N] {
        let mut dots = [[simd.float_bits(simd.splat(INT_BIAS)); R]; N];
        let first = group * self.group;
        // SAFETY: eight columns are two quads of 64 bytes in the panel; in the plane they are
        // the dwords `l` of the two halves of a unit, and a group never leaves its unit.
        unsafe {
            let mut codes = self.panel.codes.add(first * LANES).cast_const();
            let mut x = self.plane.digits.add(first / UNIT * UNIT + first % UNIT / 2);
            let last = codes.add((self.group / 8 - 1) * 128);
            // Not a `for` loop, which the compiler would prepare to run zero times.
            loop {
                for half in [0, 64] {
                    let mut w = [simd.load_bytes(codes.add(half)); R];
                    for (r, w) in w.iter_mut().enumerate().skip(1) {
                        *w = simd.load_bytes(codes.add(r * TILE_CODES + half));
                    }
                    for n in 0..N {
                        let x = simd.splat_quad(x.add(n * DIGIT_STRIDE + half));
                        for r in 0..R {
                            dots[n][r] = simd.dot::<BITS>(dots[n][r], w[r], x);
                        }
                    }
                }
                if codes == last {
                    break;
                }
                codes = codes.add(128);
                x = x.add(4);
            }
        }
        dots
    }

    /// `sums += dots · weight scale · x scale + bias · x sum`.
    ///
    /// # Safety
    /// As for [`Self::dots`].
    #[inline(always)]
    unsafe fn scale<S: Simd, const R: usize, const N: usize>(
        &self,
        simd: S,
        group: usize,
        dots: &[[S::I; R]; N],
        sums: &mut [[S::F; R]; N],
    ) {
        // SAFETY: the group exists in all tiles and for all tokens.
        unsafe {
            let mut groups = [(simd.zero(), simd.zero()); R];
            for (r, group_of) in groups.iter_mut().enumerate() {
                let at = r * TILE_SCALES + group * LANES;
                *group_of =
                    (simd.load(self.panel.scales.add(at)), simd.load(self.panel.biases.add(at)));
            }
            for n in 0..N {
                let at = n * GROUP_STRIDE + group;
                let x_scale = simd.splat(*self.plane.scales.add(at));
                let x_offset = simd.splat(*self.plane.offsets.add(at));
                let x_sum = simd.splat(*self.plane.sums.add(at));
                for r in 0..R {
                    let (scale, bias) = groups[r];
                    let dot = simd.unbias(dots[n][r], INT_BIAS, x_scale, x_offset);
                    let sum = simd.fma(dot, scale, sums[n][r]);
                    sums[n][r] = simd.fma(bias, x_sum, sum);
                }
            }
        }
    }
}

/// Where the sums of a tile go.
#[derive(Clone, Copy)]
struct Place {
    row: usize,
    /// Rows from here on are padding.
    end: usize,
    token: usize,
}

impl Place {
    /// Stores `sums`, added to what is there if `add`.
    ///
    /// # Safety
    /// The rows from `row` up to `end` and the tokens exist in `out`; nobody else uses them.
    #[inline(always)]
    unsafe fn store<S: Simd, const R: usize, const N: usize>(
        self,
        simd: S,
        out: &Out<'_>,
        sums: &[[S::F; R]; N],
        add: bool,
    ) {
        for n in 0..N {
            for r in 0..R {
                let row = self.row + r * LANES;
                let count = (self.end - row).min(LANES);
                // SAFETY: `count` rows exist; a part of 16 goes through a padded copy.
                unsafe {
                    let target = out.at(self.token + n, row);
                    let mut padded = [0.0f32; LANES];
                    let at = if count == LANES { target } else { padded.as_mut_ptr() };
                    if add && count < LANES {
                        at.copy_from_nonoverlapping(target, count);
                    }
                    let before = if add { simd.load(at) } else { simd.zero() };
                    simd.store(at, simd.add(before, sums[n][r]));
                    if count < LANES {
                        target.copy_from_nonoverlapping(at, count);
                    }
                }
            }
        }
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
    pub(super) fn dispatch(&mut self, cpu: Cpu) {
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
                cols,
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

/// Multiplies the panel with the activations in a column block.
struct DenseMultiply<'a, 'b>(&'a DenseTiles<'b>, usize);

impl Kernel for DenseMultiply<'_, '_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        self.0.multiply(simd, self.1);
    }
}

impl DenseTiles<'_> {
    #[inline(always)]
    fn multiply<S: Simd>(&self, simd: S, block: usize) {
        let cols = (self.input.cols - block * FLOAT_COLS).min(FLOAT_COLS);
        let row_tiles = self.rows.len().div_ceil(LANES);
        let mut tile = 0;
        while tile < row_tiles {
            let tiles = tiles_at_once::<S>().min(row_tiles - tile);
            let tokens = self.first_token..self.first_token + self.tokens;
            for_token_blocks!(S, tiles, tokens, |token, R, N| {
                let panel = self.panel[tile * TILE_FLOATS..].as_ptr();
                // SAFETY: `R` tiles and `N` tokens exist from there on, with `cols` columns.
                let sums = unsafe {
                    float_tile::<S, R, N>(simd, panel, self.input.block(block, token), cols)
                };
                let place =
                    Place { row: self.rows.first + tile * LANES, end: self.rows.end, token };
                // SAFETY: this call owns these rows of the output.
                unsafe { place.store(simd, &self.out, &sums, block > 0) };
            });
            tile += tiles;
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
        // SAFETY: by contract.
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
