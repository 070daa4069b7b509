//! The f32 matrix product behind scores (q·K) and outputs (p·V), on register tiles.
//!
//! B is read in vectors of 16 elements at any pair of strides, so the same code reads f32, fp16
//! and bf16 caches in place, keys (`[tokens/16][dim][16]`) and values (`[tokens][dim]`) alike.

use super::lanes::{Ahead, Element, Lanes};

/// C (`[rows, 16·blocks]`) ← or += A (`[rows, depth]`) · B (`[depth, 16·blocks]`).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) rows: usize,
    pub(crate) depth: usize,
    /// Vectors of 16 columns.
    pub(crate) blocks: usize,
    /// Elements between rows of A.
    pub(crate) a_row: usize,
    /// Elements of B between rows, and between vectors of a row.
    pub(crate) b_row: usize,
    pub(crate) b_block: usize,
    /// Elements between rows of C.
    pub(crate) c_row: usize,
    /// Whether the product is added to C.
    pub(crate) accumulate: bool,
}

impl Shape {
    /// Panics unless every element that the product touches is inside its slice.
    fn check(&self, a: usize, b: usize, c: usize) {
        let Self { rows, depth, blocks, .. } = *self;
        let last = |n: usize, stride: usize| n.saturating_sub(1) * stride;
        assert!(rows == 0 || last(rows, self.a_row) + depth <= a, "A is too short: {self:?} {a}");
        assert!(rows == 0 || last(rows, self.c_row) + 16 * blocks <= c, "C is too short: {self:?}");
        let b_end = last(depth, self.b_row) + last(blocks, self.b_block) + 16;
        assert!(depth * blocks == 0 || b_end <= b, "B is too short: {self:?} {b}");
    }
}

/// Rows of B that are asked for in advance, where B is read row by row.
const LEAD_ROWS: usize = 32;

/// The product with the instructions of `L`; after B, the caller will read `next`.
///
/// # Safety
/// The processor must have them.
#[inline(always)]
pub(crate) unsafe fn matmul<L: Lanes, T: Element>(
    s: &Shape,
    a: &[f32],
    b: &[T],
    next: &[u8],
    c: &mut [f32],
) {
    s.check(a.len(), b.len(), c.len());
    // Keys are read a strip at a time, values some rows at a time.
    let lead = if s.b_block > s.b_row { L::TILE_BLOCKS * s.b_block } else { LEAD_ROWS * s.b_row };
    let ahead = Ahead::new(b, next, (lead * size_of::<T>()).max(L::LEAD_BYTES));
    let (a, b, c) = (a.as_ptr(), b.as_ptr(), c.as_mut_ptr());
    let mut block = 0;
    while block < s.blocks {
        let left = (s.blocks - block).min(L::TILE_BLOCKS);
        // SAFETY: `check` proved every element of the product inside its slice; the tile starts
        // at a vector below `blocks`.
        unsafe {
            let (b, c) = (b.add(block * s.b_block), c.add(block * 16));
            block += match left {
                4.. => strip::<L, T, 4>(s, &ahead, a, b, c),
                2..=3 => strip::<L, T, 2>(s, &ahead, a, b, c),
                _ => strip::<L, T, 1>(s, &ahead, a, b, c),
            };
        }
    }
}

/// All rows of `N` vectors of columns; returns `N`.
///
/// # Safety
/// As [`tile`], for all rows.
#[inline(always)]
unsafe fn strip<L: Lanes, T: Element, const N: usize>(
    s: &Shape,
    ahead: &Ahead,
    a: *const f32,
    b: *const T,
    c: *mut f32,
) -> usize {
    // Tiles of equal height: 8 rows are 4 + 4, not 6 + 2.
    let tiles = s.rows.div_ceil(L::TILE_ROWS);
    let mut row = 0;
    for tile_index in 0..tiles {
        let height = (s.rows - row).div_ceil(tiles - tile_index);
        // SAFETY: rows `row..row + height` are rows of A and C.
        unsafe {
            let (a, c) = (a.add(row * s.a_row), c.add(row * s.c_row));
            match height {
                1 => tile::<L, T, 1, N>(s, ahead, a, b, c),
                2 => tile::<L, T, 2, N>(s, ahead, a, b, c),
                3 => tile::<L, T, 3, N>(s, ahead, a, b, c),
                4 => tile::<L, T, 4, N>(s, ahead, a, b, c),
                5 => tile::<L, T, 5, N>(s, ahead, a, b, c),
                _ => tile::<L, T, 6, N>(s, ahead, a, b, c),
            }
        }
        row += height;
    }
    N
}

/// One register tile of `M` rows and `N` vectors.
///
/// # Safety
/// The processor must have the instructions of `L`; `a`, `b` and `c` must be valid for `M` rows
/// and `N` vectors of the product.
#[inline(always)]
unsafe fn tile<L: Lanes, T: Element, const M: usize, const N: usize>(
    s: &Shape,
    ahead: &Ahead,
    a: *const f32,
    b: *const T,
    c: *mut f32,
) {
    // SAFETY: the caller's.
    unsafe {
        let mut sum = [[L::splat(0.0); N]; M];
        let mut b_row = b;
        for k in 0..s.depth {
            let mut row = [L::splat(0.0); N];
            for (n, row) in row.iter_mut().enumerate() {
                let p = b_row.add(n * s.b_block);
                *row = T::load(p);
                ahead.fetch::<L>(p.cast());
            }
            for (m, sum) in sum.iter_mut().enumerate() {
                let x = L::splat(*a.add(m * s.a_row + k));
                for n in 0..N {
                    sum[n] = x.mul_add(row[n], sum[n]);
                }
            }
            b_row = b_row.wrapping_add(s.b_row);
        }
        for (m, sum) in sum.iter().enumerate() {
            for (n, sum) in sum.iter().enumerate() {
                let p = c.add(m * s.c_row + n * 16);
                if s.accumulate { sum.add(L::load(p)).store(p) } else { sum.store(p) }
            }
        }
    }
}
