//! The host kernel set: `mlxcel-kernels` as MLX graph nodes. Activations are fp32, row-contiguous.

mod attention;
mod experts;
mod linear;
mod recurrent;

use std::sync::Arc;

use mlx_ffi::host::{HostInputs, HostOutputs, call_one};
use mlx_ffi::{Array, Dtype};
use mlxcel_kernels::elementwise::{self as kernel, Glu, Map, add_assign};
use mlxcel_kernels::rope::{Pairing, Rotation, rope as rotate};
use mlxcel_kernels::{Pool, norm};

pub(super) use self::attention::{
    attention, cross_attention, encoder_attention, padded_encoder_attention,
};
pub(super) use self::experts::{experts, heads};
pub(super) use self::linear::{embed, glu, linears};
pub(super) use self::recurrent::{convolve, scan};
use super::Ops;
use crate::layers::{LayerNorm, RmsNorm};
use crate::shape::rows_cols;
use crate::{Result, Rope};

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
    let (eps, group) = (norm.eps, norm.group);
    elementwise(ops, "rms_norm", &[x, &norm.weight], move |pool, inputs, out| {
        let weight = (inputs.f32(1)?, group);
        Ok(norm::grouped_rms_norm(pool, inputs.f32(0)?, weight, eps, out)?)
    })
}

pub(super) fn layer_norm(ops: &Ops, x: &Array, norm: &LayerNorm) -> Result<Array> {
    let eps = norm.eps;
    let mut inputs = vec![x, &norm.weight];
    inputs.extend(&norm.bias);
    let biased = norm.bias.is_some();
    elementwise(ops, "layer_norm", &inputs, move |pool, inputs, out| {
        let bias = if biased { inputs.f32(2)? } else { &[] };
        Ok(norm::layer_norm(pool, inputs.f32(0)?, (inputs.f32(1)?, bias), eps, out)?)
    })
}

pub(super) fn map(ops: &Ops, x: &Array, function: Map) -> Result<Array> {
    elementwise(ops, "map", &[x], move |pool, inputs, out| {
        out.copy_from_slice(inputs.f32(0)?);
        kernel::map(pool, function, out);
        Ok(())
    })
}

pub(super) fn gated(ops: &Ops, gate: &Array, x: &Array, activation: Glu) -> Result<Array> {
    elementwise(ops, "gated", &[gate, x], move |pool, inputs, out| {
        out.copy_from_slice(inputs.f32(0)?);
        Ok(kernel::glu(pool, activation, out, inputs.f32(1)?)?)
    })
}

pub(super) fn gated_rows(ops: &Ops, gate: &Array, x: &Array, activation: Glu) -> Result<Array> {
    elementwise(ops, "gated_rows", &[x, gate], move |pool, inputs, out| {
        out.copy_from_slice(inputs.f32(0)?);
        Ok(kernel::gate_rows(pool, activation, inputs.f32(1)?, out)?)
    })
}

pub(super) fn add(ops: &Ops, a: &Array, b: &Array) -> Result<Array> {
    elementwise(ops, "add", &[a, b], move |pool, inputs, out| {
        out.copy_from_slice(inputs.f32(0)?);
        Ok(add_assign(pool, out, inputs.f32(1)?)?)
    })
}

pub(super) fn rope(
    ops: &Ops,
    x: &Array,
    heads: usize,
    rope: &Rope,
    (positions, sections): (&Arc<[i32]>, &Arc<[usize]>),
) -> Result<Array> {
    let head_dim = rows_cols(x).1 / heads;
    let (positions, sections, rope) = (Arc::clone(positions), Arc::clone(sections), rope.clone());
    elementwise(ops, "rope", &[x], move |pool, inputs, out| {
        out.copy_from_slice(inputs.f32(0)?);
        let pairing = if rope.traditional() { Pairing::Neighbours } else { Pairing::Halves };
        let (inverse, scale) = (rope.inverse_freqs(), rope.input_scale());
        let rotation = Rotation { inverse: &inverse, sections: &sections, pairing, scale };
        Ok(rotate(pool, out, head_dim, &positions, &rotation)?)
    })
}
