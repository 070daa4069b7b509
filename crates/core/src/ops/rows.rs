//! Operations on rows of activations.

use mlx_ffi::{Array, ops};

use super::{Activation, Ops};
use crate::Result;
use crate::shape::{as_dtype, int, ints, rows_cols, shape_error};

impl Ops {
    /// Rows `rows` of `x`, `[n, dim]`, in that order.
    ///
    /// # Errors
    /// A row that `x` does not have.
    pub fn rows(&self, x: &Array, rows: &[usize]) -> Result<Array> {
        let (n, _) = rows_cols(x);
        if rows.len() == n && rows.iter().enumerate().all(|(i, r)| i == *r) {
            return Ok(x.clone());
        }
        if rows.iter().any(|row| *row >= n) {
            return Err(shape_error("rows", "x", x, format!("rows {rows:?}")));
        }
        self.implementation().take_rows(x, rows)
    }

    /// Rows of `parts`, all of one width, one part after the other; a vector is a row.
    ///
    /// # Errors
    /// Widths that differ.
    pub fn concatenate_rows(&self, parts: &[&Array]) -> Result<Array> {
        let mut matrices = Vec::with_capacity(parts.len());
        for part in parts {
            let (rows, width) = rows_cols(part);
            matrices.push(ops::reshape(part, &ints([rows, width])?)?);
        }
        let all = ops::concatenate(&matrices.iter().collect::<Vec<_>>(), 0)?;
        Ok(ops::contiguous(&all)?)
    }

    /// `x`, `[rows, width]`, with `count` more rows of zeros.
    ///
    /// # Errors
    /// Errors of [`Self::embed`].
    pub fn pad_rows(&self, x: &Array, count: usize) -> Result<Array> {
        let zeros = Array::zeros(&ints([count, rows_cols(x).1])?, x.dtype())?;
        self.concatenate_rows(&[x, &zeros])
    }

    /// Each row of `x`, `[rows, width]`, as `count` rows: `[rows · count, width / count]`.
    ///
    /// # Errors
    /// A width that does not divide.
    pub fn split_rows(&self, x: &Array, count: usize) -> Result<Array> {
        let (rows, width) = rows_cols(x);
        if count == 0 || !width.is_multiple_of(count) {
            return Err(shape_error("split_rows", "x", x, format!("rows of {count} parts")));
        }
        let parts = ops::reshape(x, &ints([rows * count, width / count])?)?;
        Ok(ops::contiguous(&parts)?)
    }

    /// Every `count` rows of `x`, `[rows, width]`, as one: `[rows / count, count · width]`.
    ///
    /// # Errors
    /// Rows that do not divide.
    pub fn merge_rows(&self, x: &Array, count: usize) -> Result<Array> {
        let (rows, width) = rows_cols(x);
        if count == 0 || !rows.is_multiple_of(count) {
            return Err(shape_error("merge_rows", "x", x, format!("a multiple of {count} rows")));
        }
        let merged = ops::reshape(x, &ints([rows / count, count * width])?)?;
        Ok(ops::contiguous(&merged)?)
    }

    /// In each row the elements of `first`, followed by those of `others`, of one shape, interleaved:
    /// the first element of each, then the second of each.
    ///
    /// # Errors
    /// Shapes that differ, or no others.
    pub fn append_interleaved(&self, first: &Array, others: &[Array]) -> Result<Array> {
        let (rows, width) = rows_cols(first);
        let stacked = ops::stack(&others.iter().collect::<Vec<_>>(), -1)?;
        let interleaved = ops::reshape(&stacked, &ints([rows, width * others.len()])?)?;
        let all = ops::concatenate(&[first, &interleaved], 1)?;
        Ok(ops::contiguous(&all)?)
    }

    /// Each row of `x`, `[rows, width]`, times its factor.
    pub(crate) fn scale_rows(&self, x: &Array, factors: &[f32]) -> Result<Array> {
        let factors = Array::from_slice(factors, &ints([factors.len(), 1])?)?;
        self.gated(&as_dtype(factors, x.dtype())?, x, Activation::Identity)
    }

    /// `x` with `rows` in place of its rows from `start` on.
    pub(crate) fn replace_rows(&self, x: &Array, start: usize, rows: &Array) -> Result<Array> {
        let (all, width) = rows_cols(x);
        let (count, own_width) = rows_cols(rows);
        if own_width != width || start + count > all {
            let expected = format!("rows of {width} within {all}");
            return Err(shape_error("replace_rows", "rows", rows, expected));
        }
        let rows = as_dtype(rows.clone(), x.dtype())?;
        let first = [int(start)?, 0];
        let end = [int(start + count)?, int(width)?];
        let replaced = ops::slice_update(x, &rows, &first, &end)?;
        Ok(ops::contiguous(&replaced)?)
    }
}
