//! Rows and parts of rows, copied.

use mlx_ffi::host::{call, call_one};
use mlx_ffi::{Array, Dtype};

use crate::shape::{ints, rows_cols};
use crate::{Error, Result};

pub(super) fn take(x: &Array, rows: &[usize]) -> Result<Array> {
    let (_, width) = rows_cols(x);
    let bytes = width * x.dtype().size_bytes();
    let shape = ints([rows.len(), width])?;
    call_one("rows", &[x], (&shape, x.dtype()), |inputs, mut outputs| {
        let x = inputs.bytes(0)?;
        for (out, row) in outputs.take_bytes(0)?.chunks_exact_mut(bytes).zip(rows) {
            out.copy_from_slice(&x[row * bytes..(row + 1) * bytes]);
        }
        Ok(())
    })
}

pub(super) fn split_heads(x: &Array, heads: usize, at: usize) -> Result<[Array; 2]> {
    let (rows, width) = rows_cols(x);
    let dim = width / heads;
    let shapes = [ints([rows, heads * at])?, ints([rows, heads * (dim - at)])?];
    let outputs = [(&shapes[0][..], Dtype::Float32), (&shapes[1][..], Dtype::Float32)];
    let parts = call("split_heads", &[x], &outputs, |inputs, mut outputs| {
        let firsts = outputs.f32(0)?.chunks_exact_mut(at);
        let seconds = outputs.f32(1)?.chunks_exact_mut(dim - at);
        for ((head, first), second) in inputs.f32(0)?.chunks_exact(dim).zip(firsts).zip(seconds) {
            first.copy_from_slice(&head[..at]);
            second.copy_from_slice(&head[at..]);
        }
        Ok::<_, Error>(())
    })?;
    Ok(parts.try_into().expect("a call returns as many arrays as it was asked for"))
}

pub(super) fn join_heads(a: &Array, b: &Array, heads: usize) -> Result<Array> {
    let (rows, first) = rows_cols(a);
    let (_, second) = rows_cols(b);
    let shape = ints([rows, first + second])?;
    call_one("join_heads", &[a, b], (&shape, Dtype::Float32), |inputs, mut outputs| {
        let at = first / heads;
        let dim = (first + second) / heads;
        let firsts = inputs.f32(0)?.chunks_exact(at);
        let seconds = inputs.f32(1)?.chunks_exact(dim - at);
        let heads = outputs.f32(0)?.chunks_exact_mut(dim);
        for ((head, first), second) in heads.zip(firsts).zip(seconds) {
            head[..at].copy_from_slice(first);
            head[at..].copy_from_slice(second);
        }
        Ok(())
    })
}
