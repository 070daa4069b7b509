//! Shapes between MLX's `i32` and this crate's `usize`.

use mlx_ffi::Array;

use crate::{Error, Result};

/// The dimensions of `array`.
pub(crate) fn dims(array: &Array) -> Vec<usize> {
    array.shape().iter().map(|&d| usize::try_from(d).unwrap_or(0)).collect()
}

/// The rows and columns of a matrix; an array of another rank has its leading dimensions folded.
pub(crate) fn rows_cols(array: &Array) -> (usize, usize) {
    let dims = dims(array);
    let cols = dims.last().copied().unwrap_or(1);
    (array.size() / cols.max(1), cols)
}

/// `shape` as MLX takes it.
pub(crate) fn ints<const N: usize>(shape: [usize; N]) -> Result<[i32; N]> {
    let mut out = [0; N];
    for (to, from) in out.iter_mut().zip(shape) {
        *to = int(from)?;
    }
    Ok(out)
}

/// One dimension as MLX takes it.
pub(crate) fn int(n: usize) -> Result<i32> {
    i32::try_from(n).map_err(|_| Error::Config {
        what: format!("a dimension of {n} exceeds MLX's limit of 2^31"),
    })
}
