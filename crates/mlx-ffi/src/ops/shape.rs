//! Shapes: reshaping, slicing, joining, indexing.

use super::{make, ops};
use crate::array::{Array, handles};
use crate::bindings as sys;
use crate::{Error, Result};

ops! {
    /// A new axis of size 1 at `axis`.
    expand_dims(a: array, axis: int) => mlxcel_expand_dims;
    /// Axes `start..=end` become one.
    flatten(a: array, start: int, end: int) => mlxcel_flatten;
    /// `axis` moves to position `to`.
    moveaxis(a: array, axis: int, to: int) => mlxcel_moveaxis;
    /// Each element `times` times along `axis`.
    repeat(a: array, times: int, axis: int) => mlxcel_repeat;
    /// Without `axis`, which has size 1.
    squeeze(a: array, axis: int) => mlxcel_squeeze;
    /// Two axes change places.
    swapaxes(a: array, first: int, second: int) => mlxcel_swapaxes;
    /// The slices of `a` along `axis` at `indices`, whose shape replaces that axis.
    ///
    /// Indices are not checked: one beyond the axis reads other memory on the CPU.
    take(a: array, indices: array, axis: int) => mlxcel_take;
    /// Element by element along `axis`, as many as `indices` has there. Unchecked, as [`take`].
    take_along_axis(a: array, indices: array, axis: int) => mlxcel_take_along_axis;
    /// `a` with `values` at `indices` along `axis`. Unchecked, as [`take`].
    put_along_axis(a: array, indices: array, values: array, axis: int) => mlxcel_put_along_axis;
    /// Zeros above diagonal `k` of the last two axes.
    tril(a: array, k: int) => mlxcel_tril;
    /// Zeros below diagonal `k` of the last two axes.
    triu(a: array, k: int) => mlxcel_triu;
    /// The same elements in row-major order without gaps; free if they are already.
    contiguous(a: array) => mlxcel_contiguous;
}

/// The same elements in another `shape`, of which one entry may be -1.
///
/// # Errors
/// When the sizes differ.
pub fn reshape(a: &Array, shape: &[i32]) -> Result<Array> {
    let (a, dims, len) = (a.raw(), shape.as_ptr(), shape.len());
    make!("reshape", mlxcel_reshape(a, dims, len))
}

/// `a` repeated along its axes of size 1 (and new leading ones) to `shape`.
///
/// # Errors
/// When another axis would have to change.
pub fn broadcast_to(a: &Array, shape: &[i32]) -> Result<Array> {
    let (a, dims, len) = (a.raw(), shape.as_ptr(), shape.len());
    make!("broadcast_to", mlxcel_broadcast_to(a, dims, len))
}

/// The axes in the order `axes`.
///
/// # Errors
/// When `axes` is not a permutation.
pub fn transpose(a: &Array, axes: &[i32]) -> Result<Array> {
    let (a, dims, len) = (a.raw(), axes.as_ptr(), axes.len());
    make!("transpose", mlxcel_transpose(a, dims, len))
}

/// `arrays` one after the other along `axis`.
///
/// # Errors
/// When other axes differ, or there are no arrays.
pub fn concatenate(arrays: &[&Array], axis: i32) -> Result<Array> {
    let handles = handles(arrays);
    let (data, len) = (handles.as_ptr(), handles.len());
    make!("concatenate", mlxcel_concatenate(data, len, axis))
}

/// `arrays` of one shape along a new axis at `axis`.
///
/// # Errors
/// When shapes differ, or there are no arrays.
pub fn stack(arrays: &[&Array], axis: i32) -> Result<Array> {
    let handles = handles(arrays);
    let (data, len) = (handles.as_ptr(), handles.len());
    make!("stack", mlxcel_stack(data, len, axis))
}

/// `a` cut along `axis` before each of `indices`: one part more than there are indices.
///
/// # Errors
/// When there is no such axis.
pub fn split(a: &Array, indices: &[i32], axis: i32) -> Result<Vec<Array>> {
    Array::many_from_call("split", indices.len() + 1, |outs| {
        // SAFETY: a live handle, a slice with its length, and one slot more than indices.
        unsafe { sys::mlxcel_split(outs, a.raw(), indices.as_ptr(), indices.len(), axis) }
    })
}

/// `a[start..stop]` in steps of `strides`, one entry of each per axis.
///
/// # Errors
/// When there is not one entry per axis, or MLX refuses them.
pub fn slice_strided(a: &Array, start: &[i32], stop: &[i32], strides: &[i32]) -> Result<Array> {
    let len = same_len("slice", a, &[start, stop, strides])?;
    let (a, start, stop, strides) = (a.raw(), start.as_ptr(), stop.as_ptr(), strides.as_ptr());
    make!("slice", mlxcel_slice(a, start, stop, strides, len))
}

/// `a[start..stop]`, one entry of each per axis.
///
/// # Errors
/// As for [`slice_strided`].
pub fn slice(a: &Array, start: &[i32], stop: &[i32]) -> Result<Array> {
    slice_strided(a, start, stop, &vec![1; start.len()])
}

/// `a[…, start..stop, …]` along `axis`; negative ends count from the back.
///
/// # Errors
/// When there is no such axis.
pub fn slice_axis(a: &Array, axis: i32, start: i32, stop: i32) -> Result<Array> {
    let mut from = vec![0; a.ndim()];
    let mut to = a.shape().to_vec();
    let index = if axis < 0 { axis + i32::try_from(a.ndim()).unwrap_or(0) } else { axis };
    let index = usize::try_from(index).ok().filter(|&index| index < a.ndim());
    let Some(index) = index else {
        let message = format!("there is no axis {axis} in {a:?}");
        return Err(Error::Mlx { op: "slice", message });
    };
    from[index] = start;
    to[index] = stop;
    slice(a, &from, &to)
}

/// `a` with `update` at `start..stop`, one entry of each per axis.
///
/// # Errors
/// When there is not one entry per axis, or `update` does not broadcast to the place.
pub fn slice_update(a: &Array, update: &Array, start: &[i32], stop: &[i32]) -> Result<Array> {
    let strides = vec![1; start.len()];
    let len = same_len("slice_update", a, &[start, stop, &strides])?;
    let (a, update) = (a.raw(), update.raw());
    let (start, stop, strides) = (start.as_ptr(), stop.as_ptr(), strides.as_ptr());
    make!("slice_update", mlxcel_slice_update(a, update, start, stop, strides, len))
}

/// `low` and `high` elements of `value` before and after, one entry of each per axis.
///
/// # Errors
/// When there is not one entry per axis, or one is negative.
pub fn pad(a: &Array, low: &[i32], high: &[i32], value: f64) -> Result<Array> {
    let len = same_len("pad", a, &[low, high])?;
    let (a, low, high) = (a.raw(), low.as_ptr(), high.as_ptr());
    make!("pad", mlxcel_pad(a, low, high, len, value))
}

/// The number of axes of `a`, which each of `lists` must have entries for: C gets one length.
fn same_len(op: &'static str, a: &Array, lists: &[&[i32]]) -> Result<usize> {
    if lists.iter().all(|list| list.len() == a.ndim()) {
        return Ok(a.ndim());
    }
    let message = format!("one entry per axis of {a:?} is needed, not {lists:?}");
    Err(Error::Mlx { op, message })
}
