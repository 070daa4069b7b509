//! The f32 matrix product behind scores (q·K) and outputs (p·V), on register tiles.
//!
//! B is read in vectors of 16 elements at any pair of strides, so the same code reads f32, fp16
//! and bf16 caches in place, keys (`[tokens/16][dim][16]`) and values (`[tokens][dim]`) alike.

use super::ahead::Ahead;
use crate::simd::{Kernel, LANES, Simd};
use half::{bf16, f16};

/// C (`[rows, 16·blocks]`) ← or += A (`[rows, depth]`) · B (`[depth, 16·blocks]`).
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) rows: usize,
    pub(super) depth: usize,
    /// Vectors of 16 columns.
    pub(super) blocks: usize,
    /// Elements between rows of A.
    pub(super) a_row: usize,
    /// Elements of B between rows.
    pub(super) b_row: usize,
    /// Elements of B between vectors of a row.
    pub(super) b_block: usize,
    /// Elements between rows of C.
    pub(super) c_row: usize,
    /// Adds the product to C instead of replacing it.
    pub(super) accumulate: bool,
}

impl Shape {
    /// Panics unless every element that the product touches is inside its slice.
    fn check(&self, a: usize, b: usize, c: usize) {
        let Self { rows, depth, blocks, .. } = *self;
        if rows == 0 || blocks == 0 {
            return;
        }
        let a_end = (rows - 1) * self.a_row + depth;
        assert!(a_end <= a, "A is too short: {self:?} {a}");
        let c_end = (rows - 1) * self.c_row + LANES * blocks;
        assert!(c_end <= c, "C is too short: {self:?} {c}");
        if depth > 0 {
            let b_end = (depth - 1) * self.b_row + (blocks - 1) * self.b_block + LANES;
            assert!(b_end <= b, "B is too short: {self:?} {b}");
        }
    }
}

/// A float that caches store.
pub(super) trait Element: Copy {
    /// Loads 16 of them.
    ///
    /// # Safety
    /// 16 elements are readable at `ptr`.
    unsafe fn load<S: Simd>(simd: S, ptr: *const Self) -> S::F;
}

impl Element for f32 {
    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, ptr: *const Self) -> S::F {
        // SAFETY: the caller keeps 16 elements of 4 bytes readable.
        unsafe { simd.load(ptr) }
    }
}

impl Element for f16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, ptr: *const Self) -> S::F {
        // SAFETY: the caller keeps 16 elements of 2 bytes readable.
        unsafe { simd.load_f16(ptr.cast()) }
    }
}

impl Element for bf16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, ptr: *const Self) -> S::F {
        // SAFETY: the caller keeps 16 elements of 2 bytes readable.
        unsafe { simd.load_bf16(ptr.cast()) }
    }
}

/// Rows of B that are asked for in advance, where B is read row by row.
const LEAD_ROWS: usize = 32;

/// The product of `shape`; `next` is read after B.
pub(super) struct Product<'a, T> {
    pub(super) shape: Shape,
    pub(super) a: &'a [f32],
    pub(super) b: &'a [T],
    pub(super) next: &'a [u8],
    pub(super) c: &'a mut [f32],
}

impl<T: Element> Kernel for Product<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { shape, a, b, next, c } = self;
        shape.check(a.len(), b.len(), c.len());
        // Keys are read a strip at a time, values some rows at a time.
        let by_strips = shape.b_block > shape.b_row;
        let lead =
            if by_strips { S::ATTENTION_VECTORS * shape.b_block } else { LEAD_ROWS * shape.b_row };
        let lead_bytes = (lead * size_of::<T>()).max(S::ATTENTION_LEAD_BYTES);
        let tiles = ProductTiles { simd, shape, ahead: Ahead::new(b, next, lead_bytes) };
        let mut block = 0;
        while block < shape.blocks {
            let left = (shape.blocks - block).min(S::ATTENTION_VECTORS);
            // SAFETY: `check` proved every element of the product inside its slice; the tile
            // starts at a vector below `blocks` and has no more than are left.
            unsafe {
                let b = b.as_ptr().wrapping_add(block * shape.b_block);
                let c = c.as_mut_ptr().add(block * LANES);
                block += match left {
                    4.. => tiles.strip::<T, 4>(a.as_ptr(), b, c),
                    2..=3 => tiles.strip::<T, 2>(a.as_ptr(), b, c),
                    _ => tiles.strip::<T, 1>(a.as_ptr(), b, c),
                };
            }
        }
    }
}

/// The parts that all tiles of a product share.
struct ProductTiles<S> {
    simd: S,
    shape: Shape,
    ahead: Ahead,
}

impl<S: Simd> ProductTiles<S> {
    /// All rows of `N` vectors of columns; returns `N`.
    ///
    /// # Safety
    /// See [`Self::tile`]; here for all rows.
    #[inline(always)]
    unsafe fn strip<T: Element, const N: usize>(
        &self,
        a: *const f32,
        b: *const T,
        c: *mut f32,
    ) -> usize {
        let Shape { rows, a_row, c_row, .. } = self.shape;
        // ProductTiles of equal height: 8 rows are 4 + 4, not 6 + 2.
        let tiles = rows.div_ceil(S::ATTENTION_ROWS);
        let mut row = 0;
        for tile_index in 0..tiles {
            let height = (rows - row).div_ceil(tiles - tile_index);
            // SAFETY: rows `row..row + height` are rows of A and C.
            unsafe {
                let a = a.add(row * a_row);
                let c = c.add(row * c_row);
                match height {
                    1 => self.tile::<T, 1, N>(a, b, c),
                    2 => self.tile::<T, 2, N>(a, b, c),
                    3 => self.tile::<T, 3, N>(a, b, c),
                    4 => self.tile::<T, 4, N>(a, b, c),
                    5 => self.tile::<T, 5, N>(a, b, c),
                    _ => self.tile::<T, 6, N>(a, b, c),
                }
            }
            row += height;
        }
        N
    }

    /// One register tile of `M` rows and `N` vectors.
    ///
    /// # Safety
    /// `a`, `b` and `c` are valid for `M` rows and `N` vectors of the product.
    #[inline(always)]
    unsafe fn tile<T: Element, const M: usize, const N: usize>(
        &self,
        a: *const f32,
        b: *const T,
        c: *mut f32,
    ) {
        let Self { simd, shape, ahead } = *self;
        let mut sum = [[simd.zero(); N]; M];
        let mut b_row = b;
        for k in 0..shape.depth {
            // SAFETY: row `k` of B has `N` vectors from `b_row` on, and row `m` of A an element
            // `k`: the caller's pointers are valid for them.
            unsafe {
                let mut row = [simd.zero(); N];
                for (n, row) in row.iter_mut().enumerate() {
                    let ptr = b_row.add(n * shape.b_block);
                    *row = T::load(simd, ptr);
                    ahead.fetch(simd, ptr.cast());
                }
                for (m, sum) in sum.iter_mut().enumerate() {
                    let x = simd.splat(*a.add(m * shape.a_row + k));
                    for n in 0..N {
                        sum[n] = simd.fma(x, row[n], sum[n]);
                    }
                }
            }
            b_row = b_row.wrapping_add(shape.b_row);
        }
        for (m, sum) in sum.iter().enumerate() {
            for (n, sum) in sum.iter().enumerate() {
                // SAFETY: the caller's `c` is valid for vector `n` of row `m`.
                unsafe {
                    let target = c.add(m * shape.c_row + n * LANES);
                    if shape.accumulate {
                        simd.store(target, simd.add(*sum, simd.load(target)));
                    } else {
                        simd.store(target, *sum);
                    }
                }
            }
        }
    }
}
