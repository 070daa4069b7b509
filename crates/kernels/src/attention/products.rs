//! Integer products of rounded queries and weights with the codes of int8 and Turbo caches: the
//! parts that every instruction set shares.
//!
//! [`CodeProducts`] is implemented once for each kind of integer instruction; [`KeyTiles`] and
//! [`ValueChunks`] find the codes that it multiplies and check every length that it relies on.

#![cfg_attr(
    not(target_arch = "x86_64"),
    expect(dead_code, reason = "other processors have no integer products")
)]

use super::ahead::Ahead;
use super::rounding::{MAX_ROWS, PLANES, RoundedRows};
use super::softmax::SoftmaxState;
use super::tiles::{elements, meaning};
use crate::isa::Cpu;
use crate::kv::KV_BLOCK_TOKENS;
use crate::kv::block::HeadView;
use crate::simd::{Kernel, Simd, dispatch};
use half::f16;
use std::ops::Range;

/// Rows that share one pass over the codes.
pub(super) const PASS_ROWS: usize = 4;

/// Integer products with cache codes on one instruction set.
pub(crate) trait CodeProducts<S: Simd> {
    /// Most coordinates of a key whose sums fit in 32 bits; 0 where there are no such products.
    const MAX_DIM: usize;
    /// Largest integer that a weight is rounded to.
    const LARGEST_WEIGHT: f32;

    /// Stores the query `q`, times `inverse`, as row `row` of `to.queries`, and its offsets.
    ///
    /// # Safety
    /// The length of `q` is a multiple of 16, `row` is below [`MAX_ROWS`], and `to.queries` holds
    /// [`MAX_ROWS`] such queries of [`PLANES`] bytes a coordinate.
    unsafe fn store_query(simd: S, q: &[f32], inverse: f32, row: usize, to: &mut RoundedRows<'_>);

    /// Stores the sixteen `weights` from `column` of `row` on in `to`.
    ///
    /// # Safety
    /// `row` is below [`MAX_ROWS`], `column + 16` at most [`KV_BLOCK_TOKENS`], and `to` holds all
    /// rows of [`KV_BLOCK_TOKENS`] weights of [`PLANES`] bytes.
    unsafe fn store_weights(simd: S, weights: S::F, row: usize, column: usize, to: &mut [u8]);

    /// Stores 64 weights.
    ///
    /// # Safety
    /// See [`Self::store_weights`]; here for four vectors from `column` on.
    #[inline(always)]
    unsafe fn store_many_weights(
        simd: S,
        weights: [S::F; 4],
        row: usize,
        column: usize,
        to: &mut [u8],
    ) {
        for (i, weights) in weights.into_iter().enumerate() {
            // SAFETY: the caller's row has room for 64 weights from `column` on.
            unsafe { Self::store_weights(simd, weights, row, column + 16 * i, to) };
        }
    }

    /// Computes `task`.
    fn scores(simd: S, task: ScoreCodes<'_>);

    /// Computes `task`.
    fn gather(simd: S, task: GatherCodes<'_, '_>);
}

/// No integer products: codes are decoded to floats.
pub(crate) struct NoProducts;

impl<S: Simd> CodeProducts<S> for NoProducts {
    const MAX_DIM: usize = 0;
    const LARGEST_WEIGHT: f32 = 0.0;

    unsafe fn store_query(_: S, _: &[f32], _: f32, _: usize, _: &mut RoundedRows<'_>) {
        unreachable!("{NOT_CHOSEN}")
    }
    unsafe fn store_weights(_: S, _: S::F, _: usize, _: usize, _: &mut [u8]) {
        unreachable!("{NOT_CHOSEN}")
    }
    fn scores(_: S, _: ScoreCodes<'_>) {
        unreachable!("{NOT_CHOSEN}")
    }
    fn gather(_: S, _: GatherCodes<'_, '_>) {
        unreachable!("{NOT_CHOSEN}")
    }
}

/// Reason that [`NoProducts`] is never reached.
const NOT_CHOSEN: &str = "no key has so few coordinates that integer products are chosen";

/// [`CodeProducts::MAX_DIM`] of `cpu`.
pub(super) fn max_dim(cpu: Cpu) -> usize {
    dispatch(cpu, MaxDim)
}

struct MaxDim;

impl Kernel for MaxDim {
    type Output = usize;
    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> usize {
        S::CodeProducts::MAX_DIM
    }
}

/// Scores of `rows` rounded queries against the keys `tokens` (whole sixteens) of `view`, written
/// to `out` (`[rows, tokens]`); `next` is read afterwards.
pub(crate) struct ScoreCodes<'a> {
    pub(super) view: &'a HeadView<'a>,
    pub(super) tokens: Range<usize>,
    pub(super) next: &'a [u8],
    pub(super) rows: usize,
    pub(super) from: &'a RoundedRows<'a>,
    pub(super) out: &'a mut [f32],
}

impl Kernel for ScoreCodes<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        S::CodeProducts::scores(simd, self);
    }
}

/// Adds the values `tokens` (whole sixteens) of `view`, weighted by the rounded weights in `from`,
/// to the outputs of `rows` rows in `state`; `next` is read afterwards.
pub(crate) struct GatherCodes<'a, 's> {
    pub(super) view: &'a HeadView<'a>,
    pub(super) tokens: Range<usize>,
    pub(super) next: &'a [u8],
    pub(super) rows: usize,
    pub(super) from: &'a RoundedRows<'a>,
    pub(super) state: &'a mut SoftmaxState<'s>,
}

impl Kernel for GatherCodes<'_, '_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        S::CodeProducts::gather(simd, self);
    }
}

/// Tiles of 16 keys, and where their scores go.
pub(super) struct KeyTiles<'a> {
    /// Codes of the tiles, `tile_bytes` each.
    pub(super) codes: &'a [u8],
    pub(super) scales: &'a [f16],
    pub(super) tile_bytes: usize,
    pub(super) dim: usize,
    /// Value of one level of a code, without its key's scale.
    pub(super) step: f32,
    /// Level of each code.
    pub(super) table: [i8; 16],
    pub(super) ahead: Ahead,
    pub(super) rows: usize,
    pub(super) from: &'a RoundedRows<'a>,
    /// First score, `[rows, tokens]`.
    pub(super) out: *mut f32,
}

impl<'a> KeyTiles<'a> {
    /// The tiles of `task`, which asks for lines `lead_bytes` ahead.
    ///
    /// # Panics
    /// If `codes` is not a whole number of units, or a slice is shorter than the task needs: every
    /// row has a query and room for a score of each token.
    pub(super) fn new(task: ScoreCodes<'a>, lead_bytes: usize) -> Self {
        let ScoreCodes { view, tokens, next, rows, from, out } = task;
        let dim = view.coding.dim;
        let (step, table) = meaning(view);
        let count = tokens.len();
        assert!(rows <= MAX_ROWS && dim.is_multiple_of(16), "{rows} queries of {dim}");
        assert!(tokens.start.is_multiple_of(16) && count.is_multiple_of(16), "{tokens:?}");
        assert!(from.queries.len() >= PLANES * MAX_ROWS * dim && out.len() >= rows * count);
        assert!(from.query_steps.len() >= MAX_ROWS && from.offsets.len() >= PLANES * MAX_ROWS);
        let tile_bytes = 16 * view.coding.format.code_bytes(dim);
        let codes = &view.codes[tokens.start / 16 * tile_bytes..tokens.end / 16 * tile_bytes];
        let scales = &elements::<f16>(view.scales)[tokens];
        let ahead = Ahead::new(view.codes, next, (2 * tile_bytes).max(lead_bytes));
        let out = out.as_mut_ptr();
        Self { codes, scales, tile_bytes, dim, step, table, ahead, rows, from, out }
    }

    /// Number of tiles.
    pub(super) fn tiles(&self) -> usize {
        self.scales.len() / 16
    }
}

/// A chunk of at most 32 coordinates of the values, and the rows that read it.
pub(super) struct ValueChunk {
    pub(super) codes: *const u8,
    /// Weights of the first row.
    pub(super) weights: *const u8,
    /// Fours of tokens.
    pub(super) quads: usize,
    /// Outputs of the first row.
    pub(super) out: *mut f32,
    /// Floats between rows of the output.
    pub(super) stride: usize,
    /// Rows from the first one on.
    pub(super) rows: usize,
    /// Sixteens of coordinates, 1 or 2.
    pub(super) sixteens: usize,
    /// The first row: its chunk has not been read before.
    pub(super) row: usize,
}

/// The chunks of a [`GatherCodes`], each for [`PASS_ROWS`] rows at a time.
pub(super) struct ValueChunks<'a> {
    codes: &'a [u8],
    tokens: Range<usize>,
    dim: usize,
    /// Bytes of 64 codes.
    group_bytes: usize,
    rows: usize,
    weights: &'a [u8],
    /// Bytes of a row of weights, in one plane of them.
    weight_row_bytes: usize,
    acc: *mut f32,
    /// Value of one unit of each row's sums.
    pub(super) steps: [f32; MAX_ROWS],
    /// Level of each code.
    pub(super) table: [i8; 16],
    pub(super) ahead: Ahead,
    coord: usize,
    row: usize,
}

impl<'a> ValueChunks<'a> {
    /// The chunks of `task`, which asks for lines `lead_bytes` ahead, for rows of weights that lie
    /// `weight_row_bytes` apart.
    ///
    /// # Panics
    /// If the codes are not whole units, or a slice is shorter than the task needs: every row has
    /// [`KV_BLOCK_TOKENS`] weights and `dim` outputs.
    pub(super) fn new(
        task: GatherCodes<'a, '_>,
        weight_row_bytes: usize,
        lead_bytes: usize,
    ) -> Self {
        let GatherCodes { view, tokens, next, rows, from, state } = task;
        let dim = view.coding.dim;
        let (step, table) = meaning(view);
        let turbo = view.coding.format.turbo().is_some();
        assert!(
            rows <= MAX_ROWS && dim.is_multiple_of(16) && state.stride == dim,
            "{rows} × {dim}"
        );
        assert!(!turbo || dim.is_multiple_of(32), "Turbo chunks are whole");
        assert!(tokens.start.is_multiple_of(16) && tokens.len().is_multiple_of(16), "{tokens:?}");
        assert!(state.acc.len() >= rows * dim && tokens.len() <= KV_BLOCK_TOKENS);
        assert!(from.weights.len() >= PLANES * MAX_ROWS * KV_BLOCK_TOKENS);
        let steps = std::array::from_fn(|row| from.weight_steps[row] * step);
        Self {
            codes: view.codes,
            tokens,
            dim,
            group_bytes: view.coding.format.code_bytes(64),
            rows,
            weights: from.weights,
            weight_row_bytes,
            acc: state.acc.as_mut_ptr(),
            steps,
            table,
            ahead: Ahead::new(view.codes, next, lead_bytes),
            coord: 0,
            row: 0,
        }
    }

    /// The next chunk. Its codes, weights and outputs are inside the slices of the task.
    #[inline(always)]
    pub(super) fn next(&mut self) -> Option<ValueChunk> {
        if self.row >= self.rows {
            self.row = 0;
            self.coord += 32;
        }
        if self.coord >= self.dim || self.rows == 0 {
            return None;
        }
        let Self { coord, row, dim, .. } = *self;
        let sixteens = (dim - coord).min(32) / 16;
        let groups = coord / 32 * (KV_BLOCK_TOKENS / 4 * 2) + self.tokens.start / 4 * sixteens;
        let quads = self.tokens.len() / 4;
        let codes = &self.codes[groups * self.group_bytes..][..quads * sixteens * self.group_bytes];
        let weights = self.weights[row * self.weight_row_bytes..].as_ptr();
        self.row += PASS_ROWS;
        Some(ValueChunk {
            codes: codes.as_ptr(),
            weights,
            quads,
            // Inside the outputs, which have `rows` rows of `dim`.
            out: self.acc.wrapping_add(row * dim + coord),
            stride: dim,
            rows: self.rows - row,
            sixteens,
            row,
        })
    }
}
