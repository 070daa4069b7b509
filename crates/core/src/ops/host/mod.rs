//! The host kernel set: `mlxcel-kernels` as MLX graph nodes. Activations are fp32, row-contiguous.

mod attention;
mod linear;

use std::sync::Arc;

use mlx_ffi::host::{HostInputs, HostOutputs, call_one};
use mlx_ffi::{Array, Dtype};
use mlxcel_kernels::Pool;

pub(super) use self::attention::attention;
pub(super) use self::linear::{embed, linears, swiglu};
use super::Ops;
use crate::batch::Batch;
use crate::layers::RmsNorm;
use crate::shape::rows_cols;
use crate::{Error, Result, Rope};

/// A node with fp32 inputs, one fp32 output shaped like the first, and the pool.
fn elementwise<F>(ops: &Ops, name: &'static str, inputs: &[&Array], f: F) -> Result<Array>
where
    F: FnOnce(&Pool, HostInputs<'_>, &mut [f32]) -> Result<()> + Send + 'static,
{
    let pool = Arc::clone(ops.pool());
    let shape = inputs.first().map(|x| x.shape().to_vec()).unwrap_or_default();
    let node = call_one(
        name,
        inputs,
        (&shape, Dtype::Float32),
        move |inputs, mut outputs: HostOutputs<'_>| f(&pool, inputs, outputs.f32(0)?),
    );
    Ok(node?)
}

pub(super) fn rms_norm(ops: &Ops, x: &Array, norm: &RmsNorm) -> Result<Array> {
    let eps = norm.eps;
    elementwise(ops, "rms_norm", &[x, &norm.weight], move |pool, inputs, out| {
        let _ = pool;
        let (x, w) = (inputs.f32(0)?, inputs.f32(1)?);
        for (x, o) in x.chunks_exact(w.len()).zip(out.chunks_exact_mut(w.len())) {
            let ms = x.iter().map(|v| v * v).sum::<f32>() / w.len() as f32;
            let r = 1.0 / (ms + eps).sqrt();
            for i in 0..w.len() {
                o[i] = x[i] * r * w[i];
            }
        }
        Ok(())
    })
}

pub(super) fn add(ops: &Ops, a: &Array, b: &Array) -> Result<Array> {
    elementwise(ops, "add", &[a, b], move |pool, inputs, out| {
        out.copy_from_slice(inputs.f32(0)?);
        Ok(mlxcel_kernels::elementwise::add_assign(pool, out, inputs.f32(1)?)?)
    })
}

pub(super) fn rope(
    ops: &Ops,
    batch: &Batch,
    x: &Array,
    heads: usize,
    rope: &Rope,
) -> Result<Array> {
    let (_, width) = rows_cols(x);
    let (positions, rope) = (Arc::clone(batch.positions()), rope.clone());
    elementwise(ops, "rope", &[x], move |pool, inputs, out| {
        out.copy_from_slice(inputs.f32(0)?);
        let _ = pool;
        let d = width / heads;
        let h = rope.dims() / 2;
        let inv = rope.inverse_freqs();
        for (row, p) in out.chunks_exact_mut(width).zip(positions.iter()) {
            for x in row.chunks_exact_mut(d) {
                for i in 0..h {
                    let (a, b) = if rope.traditional() { (2 * i, 2 * i + 1) } else { (i, i + h) };
                    let (s, c) = (*p as f32 * inv[i]).sin_cos();
                    let (u, v) = (x[a] * rope.input_scale(), x[b] * rope.input_scale());
                    x[a] = u * c - v * s;
                    x[b] = u * s + v * c;
                }
            }
        }
        Ok(())
    })
}
