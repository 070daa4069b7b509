//! Rows and parts of rows.

use mlx_ffi::{Array, ops};

use crate::shape::{int, ints, rows_cols};
use crate::{Error, Result};

/// The rows `rows` of `x`, all of which it has.
pub(crate) fn take(x: &Array, rows: &[usize]) -> Result<Array> {
    let index = rows.iter().map(|&row| int(row)).collect::<Result<Vec<_>>>()?;
    let index = Array::from_slice(&index, &[int(index.len())?])?;
    Ok(ops::take(x, &index, 0)?)
}

/// The first `at` elements of each head of `x`, and the others.
pub(crate) fn split_heads(x: &Array, heads: usize, at: usize) -> Result<[Array; 2]> {
    let (rows, width) = rows_cols(x);
    let dim = width / heads;
    let by_head = ops::reshape(x, &ints([rows, heads, dim])?)?;
    let part = |from: usize, to: usize| {
        let part = ops::slice_axis(&by_head, -1, int(from)?, int(to)?)?;
        let flat = ops::reshape(&part, &ints([rows, heads * (to - from)])?)?;
        Ok::<_, Error>(ops::contiguous(&flat)?)
    };
    Ok([part(0, at)?, part(at, dim)?])
}

/// The heads of `a` and `b`, one after the other within each head.
pub(crate) fn join_heads(a: &Array, b: &Array, heads: usize) -> Result<Array> {
    let ((rows, first), (_, second)) = (rows_cols(a), rows_cols(b));
    let by_head = |x: &Array, width: usize| {
        ops::reshape(x, &ints([rows, heads, width / heads])?).map_err(Error::from)
    };
    let joined = ops::concatenate(&[&by_head(a, first)?, &by_head(b, second)?], -1)?;
    Ok(ops::reshape(&joined, &ints([rows, first + second])?)?)
}
