//! Shapes: reshaping, slicing, joining, indexing.

use super::{make, maximum, minimum, ops};
use crate::array::{Array, handles};
use crate::bindings as sys;
use crate::{Dtype, Error, Result};

ops! {
    /// Inserts an axis of size 1 at `axis`.
    expand_dims(a: array, axis: int) => mlxcel_expand_dims;
    /// Merges axes `start..=end`.
    flatten(a: array, start: int, end: int) => mlxcel_flatten;
    /// Moves `axis` to position `to`.
    moveaxis(a: array, axis: int, to: int) => mlxcel_moveaxis;
    /// Repeats each element `times` times along `axis`.
    repeat(a: array, times: int, axis: int) => mlxcel_repeat;
    /// Removes `axis`, which has size 1.
    squeeze(a: array, axis: int) => mlxcel_squeeze;
    /// Swaps two axes.
    swapaxes(a: array, first: int, second: int) => mlxcel_swapaxes;
    /// Zeros above diagonal `k` of the last two axes.
    tril(a: array, k: int) => mlxcel_tril;
    /// Zeros below diagonal `k` of the last two axes.
    triu(a: array, k: int) => mlxcel_triu;
    /// Copies to row-major order without gaps; free for arrays that already are.
    contiguous(a: array) => mlxcel_contiguous;
}

/// Changes the shape; one entry of `shape` may be -1.
///
/// # Errors
/// The sizes differ.
pub fn reshape(a: &Array, shape: &[i32]) -> Result<Array> {
    make!("reshape", mlxcel_reshape(a.raw(), shape.as_ptr(), shape.len()))
}

/// Repeats `a` along its axes of size 1 (and new leading ones) to `shape`.
///
/// # Errors
/// The shapes cannot be broadcast.
pub fn broadcast_to(a: &Array, shape: &[i32]) -> Result<Array> {
    make!("broadcast_to", mlxcel_broadcast_to(a.raw(), shape.as_ptr(), shape.len()))
}

/// Permutes the axes to the order `axes`.
///
/// # Errors
/// `axes` is not a permutation.
pub fn transpose(a: &Array, axes: &[i32]) -> Result<Array> {
    make!("transpose", mlxcel_transpose(a.raw(), axes.as_ptr(), axes.len()))
}

/// Joins `arrays` along `axis`.
///
/// # Errors
/// Other axes differ, or there are no arrays.
pub fn concatenate(arrays: &[&Array], axis: i32) -> Result<Array> {
    let handles = handles(arrays);
    make!("concatenate", mlxcel_concatenate(handles.as_ptr(), handles.len(), axis))
}

/// Joins `arrays` of the same shape along a new axis at `axis`.
///
/// # Errors
/// Shapes differ, or there are no arrays.
pub fn stack(arrays: &[&Array], axis: i32) -> Result<Array> {
    let handles = handles(arrays);
    make!("stack", mlxcel_stack(handles.as_ptr(), handles.len(), axis))
}

/// Splits `a` along `axis` before each of `indices`, into one part more than there are indices.
///
/// # Errors
/// The axis does not exist.
pub fn split(a: &Array, indices: &[i32], axis: i32) -> Result<Vec<Array>> {
    Array::many_from_call("split", indices.len() + 1, |outs| {
        // SAFETY: `a` keeps its handle alive, the pointer to the indices is passed with their number,
        // and `outs` has the slot that the shim fills for each part.
        unsafe { sys::mlxcel_split(outs, a.raw(), indices.as_ptr(), indices.len(), axis) }
    })
}

/// `a[start..stop]` with `strides`, one entry of each per axis.
///
/// # Errors
/// [`Error::AxisCount`], or MLX rejects the bounds.
pub fn slice_strided(a: &Array, start: &[i32], stop: &[i32], strides: &[i32]) -> Result<Array> {
    expect_entry_per_axis("slice", a, &[start, stop, strides])?;
    make!("slice", mlxcel_slice(a.raw(), start.as_ptr(), stop.as_ptr(), strides.as_ptr(), a.ndim()))
}

/// `a[start..stop]`, one entry of each per axis.
///
/// # Errors
/// See [`slice_strided`].
pub fn slice(a: &Array, start: &[i32], stop: &[i32]) -> Result<Array> {
    slice_strided(a, start, stop, &vec![1; start.len()])
}

/// `a[…, start..stop, …]` along `axis`; negative bounds count from the end.
///
/// # Errors
/// [`Error::NoAxis`].
pub fn slice_axis(a: &Array, axis: i32, start: i32, stop: i32) -> Result<Array> {
    let index = axis_index("slice", a, axis)?;
    let mut from = vec![0; a.ndim()];
    let mut to = a.shape().to_vec();
    from[index] = start;
    to[index] = stop;
    slice(a, &from, &to)
}

/// `a` with `a[start..stop]` replaced by `update`; one entry of each bound per axis.
///
/// # Errors
/// [`Error::AxisCount`], or `update` cannot be broadcast to the slice.
pub fn slice_update(a: &Array, update: &Array, start: &[i32], stop: &[i32]) -> Result<Array> {
    let strides = vec![1; start.len()];
    expect_entry_per_axis("slice_update", a, &[start, stop, &strides])?;
    make!(
        "slice_update",
        mlxcel_slice_update(
            a.raw(),
            update.raw(),
            start.as_ptr(),
            stop.as_ptr(),
            strides.as_ptr(),
            a.ndim()
        )
    )
}

/// Pads with `value`: `low` elements before and `high` after, one entry of each per axis.
///
/// # Errors
/// [`Error::AxisCount`], or a negative entry.
pub fn pad(a: &Array, low: &[i32], high: &[i32], value: f64) -> Result<Array> {
    expect_entry_per_axis("pad", a, &[low, high])?;
    make!("pad", mlxcel_pad(a.raw(), low.as_ptr(), high.as_ptr(), a.ndim(), value))
}

/// Selects slices of `a` along `axis`; the shape of `indices` replaces that axis.
///
/// Indices are clamped to the axis, since MLX's kernels would access other memory; negative ones count
/// from the end.
///
/// # Errors
/// [`Error::NoAxis`]; [`Error::BadIndices`] for an empty axis or indices that are not integers.
pub fn take(a: &Array, indices: &Array, axis: i32) -> Result<Array> {
    let indices = clamped_to_axis("take", a, indices, axis)?;
    make!("take", mlxcel_take(a.raw(), indices.raw(), axis))
}

/// Selects elements of `a` along `axis`, as many as `indices` has there. Clamps like [`take`].
///
/// # Errors
/// See [`take`]; also shapes that do not match.
pub fn take_along_axis(a: &Array, indices: &Array, axis: i32) -> Result<Array> {
    let indices = clamped_to_axis("take_along_axis", a, indices, axis)?;
    make!("take_along_axis", mlxcel_take_along_axis(a.raw(), indices.raw(), axis))
}

/// `a` with `values` stored at `indices` along `axis`. Clamps like [`take`].
///
/// # Errors
/// See [`take`]; also shapes that do not match.
pub fn put_along_axis(a: &Array, indices: &Array, values: &Array, axis: i32) -> Result<Array> {
    let indices = clamped_to_axis("put_along_axis", a, indices, axis)?;
    make!("put_along_axis", mlxcel_put_along_axis(a.raw(), indices.raw(), values.raw(), axis))
}

fn clamped_to_axis(op: &'static str, a: &Array, indices: &Array, axis: i32) -> Result<Array> {
    let index = axis_index(op, a, axis)?;
    clamped_indices(op, indices, a.shape()[index])
}

/// `indices` clamped to `0..len`, or `-len..len` for signed types.
///
/// Limits that the type of the indices cannot hold need no check.
pub(super) fn clamped_indices(op: &'static str, indices: &Array, len: i32) -> Result<Array> {
    let dtype = indices.dtype();
    let (least, greatest) = match dtype {
        Dtype::Uint8 => (0, u8::MAX.into()),
        Dtype::Uint16 => (0, u16::MAX.into()),
        Dtype::Uint32 | Dtype::Uint64 => (0, i64::from(u32::MAX)),
        Dtype::Int8 => (i8::MIN.into(), i8::MAX.into()),
        Dtype::Int16 => (i16::MIN.into(), i16::MAX.into()),
        Dtype::Int32 | Dtype::Int64 => (i32::MIN.into(), i32::MAX.into()),
        _ => return Err(Error::BadIndices { op, dtype, len }),
    };
    if len <= 0 {
        // Nothing is selected by no indices, which MLX handles.
        return if indices.size() == 0 {
            Ok(indices.clone())
        } else {
            Err(Error::BadIndices { op, dtype, len })
        };
    }
    let mut clamped = indices.clone();
    if greatest >= i64::from(len) {
        clamped = minimum(&clamped, &Array::scalar(f64::from(len - 1), dtype)?)?;
    }
    if least < -i64::from(len) {
        clamped = maximum(&clamped, &Array::scalar(-f64::from(len), dtype)?)?;
    }
    Ok(clamped)
}

/// The position of `axis`, which counts from the end if negative.
fn axis_index(op: &'static str, a: &Array, axis: i32) -> Result<usize> {
    let index = match isize::try_from(axis) {
        Ok(offset) if offset < 0 => a.ndim().checked_add_signed(offset),
        Ok(offset) => Some(offset.unsigned_abs()),
        Err(_) => None,
    };
    let missing = Error::NoAxis { op, axis, shape: a.shape().to_vec() };
    index.filter(|&index| index < a.ndim()).ok_or(missing)
}

/// Checks the lengths of `lists`: the C ABI takes pointers to one entry per axis.
fn expect_entry_per_axis(op: &'static str, a: &Array, lists: &[&[i32]]) -> Result<()> {
    match lists.iter().find(|list| list.len() != a.ndim()) {
        Some(list) => Err(Error::AxisCount { op, found: list.len(), axes: a.ndim() }),
        None => Ok(()),
    }
}
