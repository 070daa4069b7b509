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
    let node = call_one(name, inputs, (&shape, Dtype::Float32), move |inputs, mut outputs: HostOutputs<'_>| {
        f(&pool, inputs, outputs.f32(0)?)
    });
    Ok(node?)
}

pub(super) fn rms_norm(ops: &Ops, x: &Array, norm: &RmsNorm) -> Result<Array> {
    let eps = norm.eps;
    elementwise(ops, "rms_norm", &[x, &norm.weight], move |pool, inputs, out| {
        let _ = (pool, &inputs, eps, out); Err(Error::Config { what: "soon".into() })
    })
}

pub(super) fn add(ops: &Ops, a: &Array, b: &Array) -> Result<Array> {
    elementwise(ops, "add", &[a, b], move |pool, inputs, out| {
        let _ = (pool, &inputs, out); Err(Error::Config { what: "soon".into() })
    })
}

pub(super) fn rope(ops: &Ops, batch: &Batch, x: &Array, heads: usize, rope: &Rope) -> Result<Array> {
    let (_, width) = rows_cols(x);
    let (positions, rope) = (Arc::clone(batch.positions()), rope.clone());
    elementwise(ops, "rope", &[x], move |pool, inputs, out| {
        out.copy_from_slice(inputs.f32(0)?);
        let _ = (pool, heads, width, positions, rope);
        Err(Error::Config { what: "rope".into() })
    })
}
