//! Weights unpacked for the tiles: 16 rows side by side, so that a product of a tile needs no
//! horizontal sums. A panel covers some rows and one column block and lives in the L2 cache.

use super::ahead::{LINE, near};
use super::coding::{Coding, unpack};
use super::input::{DIGIT_COLS, FLOAT_COLS, GROUP_STRIDE};
use crate::simd::{LANES, Simd, UNIT, row_pointers};
use crate::weights::FloatType;

/// Most rows of a panel.
pub(super) const PANEL_ROWS: usize = 128;
/// Bytes of the codes of 16 rows in a column block.
pub(super) const TILE_CODES: usize = LANES * DIGIT_COLS;
/// Floats of the scales (or biases) of 16 rows in a column block.
pub(super) const TILE_SCALES: usize = LANES * GROUP_STRIDE;
/// Floats of 16 rows in a column block of a dense matrix.
pub(super) const TILE_FLOATS: usize = LANES * FLOAT_COLS;
/// Bytes of the largest panel.
pub(super) const PANEL_BYTES: usize =
    PANEL_ROWS / LANES * (TILE_CODES + 2 * TILE_SCALES * size_of::<f32>());

/// A panel of codes. Each part is `[tile of 16 rows]`:
/// codes `[quad of 4 columns][row][4]`, where quads `2i` and `2i + 1` are the even and the odd
/// columns of `8i..8i + 8`; scales and biases `[group][row]`.
#[derive(Clone, Copy)]
pub(super) struct CodePanel {
    pub(super) codes: *mut u8,
    pub(super) scales: *mut f32,
    pub(super) biases: *mut f32,
}

impl CodePanel {
    /// A panel in `buf`, which has [`PANEL_BYTES`] bytes and is aligned to 64.
    pub(super) fn new(buf: &mut [u8]) -> Self {
        assert!(buf.len() >= PANEL_BYTES, "panel buffer is too small");
        let tiles = PANEL_ROWS / LANES;
        let (codes, floats) = buf.split_at_mut(tiles * TILE_CODES);
        let (scales, biases) =
            bytemuck::cast_slice_mut::<u8, f32>(floats).split_at_mut(tiles * TILE_SCALES);
        Self { codes: codes.as_mut_ptr(), scales: scales.as_mut_ptr(), biases: biases.as_mut_ptr() }
    }

    /// Tile `tile` of the panel.
    ///
    /// # Safety
    /// `tile` is below `PANEL_ROWS / 16`.
    #[inline(always)]
    pub(super) unsafe fn tile(&self, tile: usize) -> Self {
        // SAFETY: the panel has that many tiles.
        unsafe {
            Self {
                codes: self.codes.add(tile * TILE_CODES),
                scales: self.scales.add(tile * TILE_SCALES),
                biases: self.biases.add(tile * TILE_SCALES),
            }
        }
    }
}

/// The part of a matrix that one tile of a panel holds.
#[derive(Clone, Copy)]
pub(super) struct TileSource {
    /// First of the 16 rows.
    pub(super) row: usize,
    /// Rows beyond `last_row` repeat it.
    pub(super) last_row: usize,
    /// Stored elements from one row to the next.
    pub(super) stride: usize,
    /// First column.
    pub(super) first_col: usize,
    /// Columns of the block.
    pub(super) block_cols: usize,
}

impl TileSource {
    /// Element index of the first column of the tile's row `i`.
    #[inline(always)]
    fn start(&self, i: usize) -> usize {
        (self.row + i).min(self.last_row) * self.stride + self.first_col
    }
}

/// Unpacks codes, scales and biases of 16 rows into a tile.
///
/// # Safety
/// `source` lies within the matrix and `tile` is a tile of a panel, used by this thread only.
#[inline(always)]
pub(super) unsafe fn pack_codes<'c, S: Simd, C: Coding<'c>>(
    simd: S,
    weights: C,
    source: TileSource,
    tile: CodePanel,
) {
    // SAFETY: the caller keeps `source` inside the matrix, and the tile to this thread; a unit is
    // 32 quads of 64 bytes in the tile.
    unsafe {
        let units = source.block_cols.div_ceil(UNIT);
        for unit in 0..units {
            read_ahead(simd, weights.codes().as_ptr(), C::BITS as usize, source, unit, units);
            let cols = (source.block_cols - unit * UNIT).min(UNIT);
            let target = tile.codes.add(unit * LANES * UNIT);
            let mut rows = [std::ptr::null::<u8>(); LANES];
            for (i, row) in rows.iter_mut().enumerate() {
                let at = (source.start(i) + unit * UNIT) / 8 * C::BITS as usize;
                *row = weights.codes().get_unchecked(at..).as_ptr();
                near(simd, *row);
            }
            if C::BITS == 4 && cols == UNIT {
                pack_nibbles::<S, C>(simd, &rows, target);
            } else {
                let end = weights.codes().as_ptr_range().end;
                pack_unit::<S, C>(simd, &rows, end, cols, target);
            }
        }
        pack_groups(simd, weights, source, tile);
    }
}

/// Asks for the next 16 rows in the same column block, `step` of `steps` of them; an element
/// has `bits`. Row by row, since the processor itself only follows one stream in a page.
#[inline(always)]
fn read_ahead<S: Simd>(
    simd: S,
    weights: *const u8,
    bits: usize,
    source: TileSource,
    step: usize,
    steps: usize,
) {
    for i in step * LANES / steps..(step + 1) * LANES / steps {
        let first = (source.row + LANES + i) * source.stride + source.first_col;
        let row = weights.wrapping_add(first * bits / 8);
        for line in (0..source.block_cols * bits / 8).step_by(LINE) {
            simd.prefetch_far(row.wrapping_add(line));
        }
    }
}

/// Unpacks one unit of 16 rows of 4-bit codes. Transposing before unpacking halves the shuffles:
/// a dword holds the even and the odd quad of eight columns.
///
/// # Safety
/// 64 bytes are readable at each row; `target` has room for a unit.
#[inline(always)]
unsafe fn pack_nibbles<'c, S: Simd, C: Coding<'c>>(
    simd: S,
    rows: &[*const u8; LANES],
    target: *mut u8,
) {
    let mut transposed = [[0u32; LANES]; LANES];
    // SAFETY: the caller keeps 64 bytes readable at each row and room for a unit, which is 32 quads
    // of 64 bytes, at `target`.
    unsafe {
        simd.transpose(&rows.map(<*const u8>::cast), transposed.as_mut_ptr().cast(), LANES);
        for (i, column) in transposed.iter().enumerate() {
            let (even, odd) = C::unpack(simd, column.as_ptr().cast(), 64);
            simd.store_bytes(target.add(128 * i), even);
            simd.store_bytes(target.add(128 * i + 64), odd);
        }
    }
}

/// Unpacks one unit, or its first `cols` columns, of 16 rows.
///
/// # Safety
/// The rows have `cols` codes each, and their matrix ends at `end`; `target` has room for a unit.
#[inline(always)]
unsafe fn pack_unit<'c, S: Simd, C: Coding<'c>>(
    simd: S,
    rows: &[*const u8; LANES],
    end: *const u8,
    cols: usize,
    target: *mut u8,
) {
    let mut halves = [[[0u32; LANES]; LANES]; 2];
    // SAFETY: the caller's rows have `cols` codes and lie before `end`; `target` has room for a unit.
    unsafe {
        for (i, &row) in rows.iter().enumerate() {
            let codes = std::slice::from_raw_parts(row, end.offset_from_unsigned(row));
            let (even, odd) = unpack::<S, C>(simd, codes, cols);
            simd.store_bytes(halves[0][i].as_mut_ptr().cast(), even);
            simd.store_bytes(halves[1][i].as_mut_ptr().cast(), odd);
        }
        // Lane `l` of the even half becomes quad 2l, of the odd half quad 2l + 1.
        simd.transpose(&row_pointers(&halves[0]), target.cast(), 2 * LANES);
        simd.transpose(&row_pointers(&halves[1]), target.add(64).cast(), 2 * LANES);
    }
}

/// Converts and transposes the scales and biases of 16 rows.
///
/// # Safety
/// See [`pack_codes`].
#[inline(always)]
unsafe fn pack_groups<'c, S: Simd, C: Coding<'c>>(
    simd: S,
    weights: C,
    source: TileSource,
    tile: CodePanel,
) {
    let groups = source.block_cols / weights.group();
    // SAFETY: the caller keeps `source` inside the matrix; the tile has room for whole blocks of 16
    // groups.
    unsafe {
        let mut rows = [[[0.0f32; LANES]; LANES]; 2];
        for first in (0..groups).step_by(LANES) {
            let [scale_rows, bias_rows] = &mut rows;
            for (i, (scale_row, bias_row)) in scale_rows.iter_mut().zip(bias_rows).enumerate() {
                let at = source.start(i) + first * weights.group();
                let (scales, biases) = weights.groups(simd, at, (groups - first).min(LANES));
                simd.store(scale_row.as_mut_ptr(), scales);
                simd.store(bias_row.as_mut_ptr(), biases);
            }
            for (rows, target) in rows.iter().zip([tile.scales, tile.biases]) {
                let target = target.add(first * LANES);
                simd.transpose(&row_pointers(rows), target.cast(), LANES);
            }
        }
    }
}

/// Converts 16 rows of a dense matrix to `[column][row]`, zero-padded to a multiple of 16 columns.
///
/// # Safety
/// `source` lies within the matrix `weights` of `ty`; `target` has room for the padded columns
/// times 16 floats, used by this thread only.
#[inline(always)]
pub(super) unsafe fn pack_floats<S: Simd>(
    simd: S,
    ty: FloatType,
    weights: &[u8],
    source: TileSource,
    target: *mut f32,
) {
    let steps = source.block_cols.div_ceil(LANES);
    // SAFETY: the caller keeps `source` inside the matrix, and room for the padded columns at
    // `target`.
    unsafe {
        let mut rows = [[0.0f32; LANES]; LANES];
        for step in 0..steps {
            read_ahead(simd, weights.as_ptr(), 8 * ty.bytes(), source, step, steps);
            let first = step * LANES;
            let count = (source.block_cols - first).min(LANES);
            for (i, row) in rows.iter_mut().enumerate() {
                let values =
                    weights.get_unchecked((source.start(i) + first) * ty.bytes()..).as_ptr();
                simd.store(row.as_mut_ptr(), simd.load_some_floats(ty, values, count));
            }
            let target = target.add(first * LANES);
            simd.transpose(&row_pointers(&rows), target.cast(), LANES);
        }
    }
}
