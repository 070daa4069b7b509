//! What a worker is given: some rows of a matrix, and where their results go.

use std::ops::Range;

/// Consecutive rows (outputs) of a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RowRange {
    pub(super) first: usize,
    pub(super) end: usize,
}

impl RowRange {
    pub(super) fn iter(self) -> Range<usize> {
        self.first..self.end
    }
    pub(super) fn len(self) -> usize {
        self.end - self.first
    }
}

/// An output `[tokens, stride]` that several workers write, each its own rows of the matrix
/// (columns of the output).
#[derive(Clone, Copy)]
pub(super) struct Out<'a> {
    /// Output of the first token, row `origin`.
    pub(super) data: *mut f32,
    /// Floats from one token to the next.
    pub(super) stride: usize,
    /// Row of the matrix that `data` starts at.
    pub(super) origin: usize,
    /// Token that `data` starts at, if there is no `scatter`.
    pub(super) first_token: usize,
    /// Row of the output for each prepared token, if they are permuted.
    pub(super) scatter: Option<&'a [u32]>,
}

// SAFETY: `Out` is a pointer into a mutably borrowed slice; the unsafe methods require that
// their callers write disjoint rows.
unsafe impl Send for Out<'_> {}
// SAFETY: as above.
unsafe impl Sync for Out<'_> {}

impl<'a> Out<'a> {
    /// The output `data` `[tokens, rows]`, whose rows `scatter` may permute.
    ///
    /// The caller keeps `data` borrowed while the result is used.
    pub(super) fn new(data: &mut [f32], rows: usize, scatter: Option<&'a [u32]>) -> Self {
        Self { data: data.as_mut_ptr(), stride: rows, origin: 0, first_token: 0, scatter }
    }

    /// A temporary output of `rows` for the tokens from `first_token` on.
    pub(super) fn chunk(data: &mut [f32], first_token: usize, rows: RowRange) -> Self {
        let (stride, origin) = (rows.len(), rows.first);
        Self { data: data.as_mut_ptr(), stride, origin, first_token, scatter: None }
    }

    /// Where the result of `row` for prepared token `token` goes.
    ///
    /// # Safety
    /// The token and the row exist in the output.
    #[inline(always)]
    pub(super) unsafe fn at(&self, token: usize, row: usize) -> *mut f32 {
        let token = match self.scatter {
            Some(rows) => rows[token] as usize,
            None => token - self.first_token,
        };
        // SAFETY: by contract the element exists.
        unsafe { self.data.add(token * self.stride + row - self.origin) }
    }

    /// Stores one result.
    ///
    /// # Safety
    /// As for [`Self::at`], and no other thread accesses this row.
    #[inline(always)]
    pub(super) unsafe fn write(&self, token: usize, row: usize, value: f32) {
        // SAFETY: by contract.
        unsafe { *self.at(token, row) = value }
    }
}
