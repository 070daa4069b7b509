//! Parts of heads, and rows as heads.

use mlx_ffi::{Array, ops};

use crate::Result;
use crate::batch::Span;
use crate::shape::{dims, int, ints, rows_cols};

/// The first `at` elements of each head of `x`, and the others.
pub(super) fn split(x: &Array, heads: usize, at: usize) -> Result<[Array; 2]> {
    let (rows, width) = rows_cols(x);
    let dim = width / heads;
    let by_head = ops::reshape(x, &ints([rows, heads, dim])?)?;
    let first = ops::slice_axis(&by_head, -1, 0, int(at)?)?;
    let rest = ops::slice_axis(&by_head, -1, int(at)?, int(dim)?)?;
    let first = ops::reshape(&first, &ints([rows, heads * at])?)?;
    let rest = ops::reshape(&rest, &ints([rows, heads * (dim - at)])?)?;
    Ok([ops::contiguous(&first)?, ops::contiguous(&rest)?])
}

/// The heads of `a` and `b`, one after the other within each head.
pub(super) fn join(a: &Array, b: &Array, heads: usize) -> Result<Array> {
    let (rows, first) = rows_cols(a);
    let (_, second) = rows_cols(b);
    let a = ops::reshape(a, &ints([rows, heads, first / heads])?)?;
    let b = ops::reshape(b, &ints([rows, heads, second / heads])?)?;
    let joined = ops::concatenate(&[&a, &b], -1)?;
    Ok(ops::reshape(&joined, &ints([rows, first + second])?)?)
}

/// Rows of one run as `[1, heads, tokens, head_dim]`.
pub(super) fn to_heads(x: &Array, span: &Span, heads: usize) -> Result<Array> {
    let (_, width) = rows_cols(x);
    let run = ops::slice(x, &ints([span.start, 0])?, &ints([span.start + span.len, width])?)?;
    let by_head = ops::reshape(&run, &ints([1, span.len, heads, width / heads])?)?;
    Ok(ops::transpose(&by_head, &[0, 2, 1, 3])?)
}

/// `[1, heads, tokens, head_dim]` back to rows.
pub(super) fn from_heads(x: &Array) -> Result<Array> {
    let dims = dims(x);
    let rows = ints([dims[2], dims[1] * dims[3]])?;
    Ok(ops::reshape(&ops::transpose(x, &[0, 2, 1, 3])?, &rows)?)
}

/// Rows of all runs, one run after the other.
pub(super) fn concatenate_runs(runs: &[Array]) -> Result<Array> {
    match runs {
        [one] => Ok(one.clone()),
        many => Ok(ops::concatenate(&many.iter().collect::<Vec<_>>(), 0)?),
    }
}
