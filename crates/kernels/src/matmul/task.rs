//! The work of one worker: some rows of a matrix, and the place of their results.

use std::marker::PhantomData;
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
    data: *mut f32,
    /// Tokens of the output.
    tokens: usize,
    /// Floats from one token to the next.
    stride: usize,
    /// Row of the matrix that `data` starts at.
    origin: usize,
    /// Token that `data` starts at, if there is no `scatter`.
    first_token: usize,
    /// Row of the output for each prepared token, if they are permuted.
    scatter: Option<&'a [u32]>,
    borrow: PhantomData<&'a mut [f32]>,
}

// SAFETY: `Out` is a mutably borrowed slice of plain floats, which any thread may write; the unsafe
// methods demand that callers on different threads write different rows.
unsafe impl Send for Out<'_> {}
// SAFETY: a shared `Out` writes only through those unsafe methods.
unsafe impl Sync for Out<'_> {}

impl<'a> Out<'a> {
    /// The output `data` `[tokens, rows]`, whose tokens `scatter` may permute.
    ///
    /// # Panics
    /// If `scatter` leads out of the output.
    pub(super) fn new(data: &'a mut [f32], rows: usize, scatter: Option<&'a [u32]>) -> Self {
        let tokens = data.len().checked_div(rows).unwrap_or(0);
        let mut places = scatter.unwrap_or(&[]).iter();
        assert!(places.all(|&place| (place as usize) < tokens), "a place beyond the output");
        Self {
            data: data.as_mut_ptr(),
            tokens,
            stride: rows,
            origin: 0,
            first_token: 0,
            scatter,
            borrow: PhantomData,
        }
    }

    /// A temporary output of `rows` for the tokens from `first_token` on.
    pub(super) fn chunk(data: &'a mut [f32], first_token: usize, rows: RowRange) -> Self {
        let out = Self::new(data, rows.len(), None);
        Self { origin: rows.first, first_token, ..out }
    }

    /// Panics unless the output has `rows` for all of `tokens`.
    pub(super) fn check(&self, tokens: &Range<usize>, rows: RowRange) {
        let end = self.scatter.map_or(self.first_token + self.tokens, <[u32]>::len);
        let first = if self.scatter.is_some() { 0 } else { self.first_token };
        assert!(first <= tokens.start && tokens.end <= end, "{tokens:?} of {first}..{end}");
        let columns = self.origin..self.origin + self.stride;
        assert!(
            columns.start <= rows.first && rows.first <= rows.end && rows.end <= columns.end,
            "{rows:?} of {columns:?}"
        );
    }

    /// Address of the result of `row` for prepared token `token`.
    ///
    /// # Safety
    /// The token and the row exist in the output: see [`Self::check`].
    #[inline(always)]
    pub(super) unsafe fn at(&self, token: usize, row: usize) -> *mut f32 {
        let token = match self.scatter {
            Some(rows) => rows[token] as usize,
            None => token - self.first_token,
        };
        // SAFETY: the caller's token and row exist in the output.
        unsafe { self.data.add(token * self.stride + row - self.origin) }
    }

    /// Stores one result.
    ///
    /// # Safety
    /// See [`Self::at`]; no other thread accesses this row.
    #[inline(always)]
    pub(super) unsafe fn write(&self, token: usize, row: usize, value: f32) {
        // SAFETY: the caller's element exists, and no other thread accesses it.
        unsafe { *self.at(token, row) = value }
    }
}
