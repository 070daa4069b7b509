//! Shapes between MLX's `i32` and this crate's `usize`, and element types.

use mlx_ffi::{Array, Dtype, ops};

use crate::{Error, Result};

/// Dimensions of `array`.
pub(crate) fn dims(array: &Array) -> Vec<usize> {
    array.shape().iter().map(|&d| usize::try_from(d).unwrap_or(0)).collect()
}

/// Rows and columns of a matrix; an array of another rank has its leading dimensions folded.
pub(crate) fn rows_cols(array: &Array) -> (usize, usize) {
    let dims = dims(array);
    let cols = dims.last().copied().unwrap_or(1);
    (array.size() / cols.max(1), cols)
}

/// Last dimension of `array`.
pub(crate) fn last_dim(array: &Array) -> usize {
    rows_cols(array).1
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
    i32::try_from(n).map_err(|_| Error::Value {
        name: "a dimension",
        value: n.to_string(),
        expected: "less than 2^31, MLX's limit,",
    })
}

/// `array` with elements of type `dtype`.
pub(crate) fn as_dtype(array: Array, dtype: Dtype) -> Result<Array> {
    if array.dtype() == dtype { Ok(array) } else { Ok(ops::astype(&array, dtype)?) }
}

/// Evaluates `x` and copies its elements as fp32.
pub(crate) fn to_f32(x: &Array) -> Result<Vec<f32>> {
    Ok(as_dtype(x.clone(), Dtype::Float32)?.to_vec()?)
}

/// The error of an operand that has another shape than `expected`.
pub(crate) fn shape_error(
    op: &'static str,
    operand: &'static str,
    array: &Array,
    expected: String,
) -> Error {
    Error::Shape { op, operand, found: dims(array), expected }
}
