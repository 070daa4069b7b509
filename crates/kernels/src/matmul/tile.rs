//! Products tile by tile: `16·R` rows by `N` tokens at a time, accumulated in registers; and
//! those of quantised matrices. For prompts and batches, where arithmetic is the bound.
#![expect(clippy::needless_range_loop, reason = "tiles of registers, indexed alike")]

use super::coding::{Coding, Quantised, with_coding};
use super::input::{DIGIT_COLS, DIGIT_STRIDE, Digits, GROUP_STRIDE, INT_BIAS, Plane};
use super::panel::{CodePanel, PANEL_ROWS, TILE_CODES, TILE_SCALES, TileSource, pack_codes};
use super::task::{Out, RowRange};
use crate::isa::Cpu;
use crate::simd::{Kernel, LANES, Simd, UNIT, dispatch};
use std::hint::black_box;
use std::ops::Range;

/// Something that can be computed tile by tile.
pub(super) trait Tiles<S: Simd> {
    /// True if six tokens fit beside 16 rows without [`Simd::WIDE_TILES`]: their sums take twelve of
    /// sixteen registers, and hide the latency of additions better than eight.
    const SIX_TOKENS: bool;
    /// Computes `R` row tiles from `tile` on for `N` tokens from `token` on.
    ///
    /// # Safety
    /// These tiles and tokens exist.
    unsafe fn compute<const R: usize, const N: usize>(&self, simd: S, tile: usize, token: usize);
}

/// Computes all of `row_tiles` × `tokens`, in tiles as large as the registers allow.
///
/// # Safety
/// These tiles and tokens exist.
#[inline(always)]
pub(super) unsafe fn cover<S: Simd, T: Tiles<S>>(
    simd: S,
    tiles: &T,
    row_tiles: usize,
    tokens: Range<usize>,
) {
    let mut token = tokens.start;
    while token < tokens.end {
        let left = tokens.end - token;
        // SAFETY: no more tokens are taken than are left of the caller's. The condition is constant,
        // so that the other branch is never compiled.
        token += unsafe {
            if S::WIDE_TILES {
                match left {
                    // Eight and eight rather than twelve and four.
                    16 | 8..12 => rows::<S, T, 2, 8>(simd, tiles, row_tiles, token),
                    12.. => rows::<S, T, 2, 12>(simd, tiles, row_tiles, token),
                    4.. => rows::<S, T, 4, 4>(simd, tiles, row_tiles, token),
                    2.. => rows::<S, T, 4, 2>(simd, tiles, row_tiles, token),
                    _ => rows::<S, T, 4, 1>(simd, tiles, row_tiles, token),
                }
            } else {
                match left {
                    6.. if T::SIX_TOKENS && !S::PORTABLE => {
                        rows::<S, T, 1, 6>(simd, tiles, row_tiles, token)
                    }
                    4.. => rows::<S, T, 1, 4>(simd, tiles, row_tiles, token),
                    2.. if !S::PORTABLE => rows::<S, T, 1, 2>(simd, tiles, row_tiles, token),
                    _ => rows::<S, T, 1, 1>(simd, tiles, row_tiles, token),
                }
            }
        };
    }
}

/// Computes all row tiles for `N` tokens, `R` at a time, and returns `N`.
///
/// # Safety
/// These tiles and tokens exist.
#[inline(always)]
unsafe fn rows<S: Simd, T: Tiles<S>, const R: usize, const N: usize>(
    simd: S,
    tiles: &T,
    row_tiles: usize,
    token: usize,
) -> usize {
    let whole = row_tiles - row_tiles % R;
    for tile in (0..whole).step_by(R) {
        // SAFETY: `R` tiles exist from there on, and the caller's tokens do.
        unsafe { tiles.compute::<R, N>(simd, tile, token) };
    }
    for tile in whole..row_tiles {
        // SAFETY: the tile exists, and the caller's tokens do.
        unsafe { tiles.compute::<1, N>(simd, tile, token) };
    }
    N
}

/// `out[token][row] = Σ w·x` for up to [`PANEL_ROWS`] rows of a quantised matrix and any tokens.
pub(super) struct CodeTiles<'a> {
    pub(super) weights: Quantised<'a>,
    pub(super) input: &'a Digits<'a>,
    pub(super) first_token: usize,
    pub(super) tokens: usize,
    pub(super) rows: RowRange,
    pub(super) out: Out<'a>,
    pub(super) panel: CodePanel,
}

impl CodeTiles<'_> {
    /// Computes the products; each step is a function of its own.
    ///
    /// # Safety
    /// No other thread accesses the panel or these rows of the output meanwhile.
    ///
    /// # Panics
    /// If the matrix, the input or the output lacks one of the rows or tokens, or the rows are too
    /// many for a panel.
    pub(super) unsafe fn dispatch(&self, cpu: Cpu) {
        let layout = self.input.layout;
        assert!(layout.is_blocked(), "tiles need blocks of digits");
        let tokens = self.first_token..self.first_token + self.tokens;
        assert!(tokens.end <= layout.tokens && layout.group == self.weights.group());
        assert!(self.rows.len() <= PANEL_ROWS, "too many rows for a panel");
        self.weights.check(self.rows, layout.cols);
        self.out.check(&tokens, self.rows);
        for block in 0..self.input.layout.blocks() {
            with_coding!(self.weights, coding => {
                dispatch(cpu, Pack { tiles: self, coding, block });
            });
            for digit in 0..self.input.layout.digits {
                dispatch(cpu, Multiply { tiles: self, block, digit });
            }
        }
    }
}

/// Unpacks the rows within a column block into the panel.
struct Pack<'a, C> {
    tiles: &'a CodeTiles<'a>,
    coding: C,
    block: usize,
}

impl<'c, C: Coding<'c>> Kernel for Pack<'_, C> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { tiles: this, coding, block } = self;
        for (tile, row) in this.rows.iter().step_by(LANES).enumerate() {
            let source = TileSource {
                row,
                last_row: this.rows.end - 1,
                stride: this.input.layout.cols * coding.step(),
                first_col: block * DIGIT_COLS,
                block_cols: this.input.layout.block_cols(block),
            };
            // SAFETY: the rows and the block exist, and so does the tile.
            unsafe { pack_codes(simd, coding, source, this.panel.tile(tile)) };
        }
    }
}

/// Multiplies the panel with one digit of the activations in a column block, and adds that to
/// the output; the first ones start it.
struct Multiply<'a> {
    tiles: &'a CodeTiles<'a>,
    block: usize,
    digit: usize,
}

impl Kernel for Multiply<'_> {
    const INTEGER_DOTS: bool = true;
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let CodeTiles { first_token, tokens, rows, weights, .. } = *self.tiles;
        let row_tiles = rows.len().div_ceil(LANES);
        let tokens = first_token..first_token + tokens;
        // SAFETY: `dispatch` has checked that these tiles and tokens exist.
        unsafe {
            if S::NARROW_DOTS && !weights.is_wide() {
                cover(simd, &MultiplyBits::<7>(self), row_tiles, tokens);
            } else {
                cover(simd, &MultiplyBits::<8>(self), row_tiles, tokens);
            }
        }
    }
}

/// [`Multiply`] for codes below 2^`BITS`.
struct MultiplyBits<'a, const BITS: u32>(Multiply<'a>);

impl<S: Simd, const BITS: u32> Tiles<S> for MultiplyBits<'_, BITS> {
    // Without VNNI a product needs registers of its own.
    const SIX_TOKENS: bool = false;

    #[inline(always)]
    unsafe fn compute<const R: usize, const N: usize>(&self, simd: S, tile: usize, token: usize) {
        let Multiply { tiles: this, block, digit } = self.0;
        let product = TileProduct {
            // SAFETY: the caller's tile exists.
            panel: unsafe { this.panel.tile(tile) },
            plane: this.input.plane(block, digit, token),
            group: this.weights.group(),
            groups: this.input.layout.block_cols(block) / this.weights.group(),
        };
        let place = Place { row: this.rows.first + tile * LANES, end: this.rows.end, token };
        // SAFETY: the caller's `R` tiles and `N` tokens exist from there on, and the panel has just
        // been packed for this block; the caller of `dispatch` owns these rows of the output.
        unsafe {
            let sums = product.run::<S, R, N, BITS>(simd);
            place.store(simd, &this.out, &sums, block + digit > 0);
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
    /// See [`Self::run`]; `group` is below `groups`.
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
    /// See [`Self::dots`].
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

/// Place of a tile's sums in the output.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) row: usize,
    /// Rows from here on are padding.
    pub(super) end: usize,
    pub(super) token: usize,
}

impl Place {
    /// Stores `sums`, added to what is there if `add`.
    ///
    /// # Safety
    /// The rows from `row` up to `end` and the tokens exist in `out`; nobody else uses them.
    #[inline(always)]
    pub(super) unsafe fn store<S: Simd, const R: usize, const N: usize>(
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
