//! The host kernel set: `mlxcel-kernels` over the memory of MLX's arrays, run at once. Activations
//! are fp32, row-contiguous.

mod attention;
mod experts;
mod linear;
mod recurrent;
mod rows;

use mlx_ffi::host::{HostInputs, call_one};
use mlx_ffi::{Array, Dtype};
use mlxcel_kernels::elementwise::{self as kernel, Glu, Map, add_assign};
use mlxcel_kernels::rope::{Pairing, Rotation, rope as rotate};
use mlxcel_kernels::{Pool, norm as kernels};

pub(super) use self::attention::{
    attention, cross_attention, encoder_attention, padded_encoder_attention,
};
pub(super) use self::experts::{experts, heads};
pub(super) use self::linear::{embed, glu, linears};
pub(super) use self::recurrent::{convolve, scan};
pub(super) use self::rows::{join_heads, split_heads, take};
use super::Ops;
use crate::layers::{LayerNorm, RmsNorm};
use crate::shape::rows_cols;
use crate::{Result, Rope};

/// A call with fp32 inputs, one fp32 output shaped like the first, and the pool.
fn elementwise(
    ops: &Ops,
    name: &'static str,
    inputs: &[&Array],
    f: impl FnOnce(&Pool, HostInputs<'_>, &mut [f32]) -> Result<()>,
) -> Result<Array> {
    let shape = inputs.first().map_or(&[][..], |x| x.shape());
    call_one(name, inputs, (shape, Dtype::Float32), |inputs, mut outputs| {
        f(ops.pool(), inputs, outputs.f32(0)?)
    })
}

pub(super) fn rms_norm(ops: &Ops, x: &Array, norm: &RmsNorm) -> Result<Array> {
    elementwise(ops, "rms_norm", &[x, &norm.weight], |pool, inputs, out| {
        let weight = inputs.f32(1)?;
        Ok(kernels::grouped_rms_norm(pool, inputs.f32(0)?, weight, norm.group, norm.eps, out)?)
    })
}

pub(super) fn layer_norm(ops: &Ops, x: &Array, norm: &LayerNorm) -> Result<Array> {
    let mut inputs = vec![x, &norm.weight];
    inputs.extend(&norm.bias);
    elementwise(ops, "layer_norm", &inputs, |pool, inputs, out| {
        let bias = if norm.bias.is_some() { inputs.f32(2)? } else { &[] };
        Ok(kernels::layer_norm(pool, inputs.f32(0)?, inputs.f32(1)?, bias, norm.eps, out)?)
    })
}

pub(super) fn map(ops: &Ops, x: &Array, function: Map) -> Result<Array> {
    elementwise(ops, "map", &[x], |pool, inputs, out| {
        out.copy_from_slice(inputs.f32(0)?);
        kernel::map(pool, function, out);
        Ok(())
    })
}

pub(super) fn gated(ops: &Ops, gate: &Array, x: &Array, activation: Glu) -> Result<Array> {
    elementwise(ops, "gated", &[gate, x], |pool, inputs, out| {
        out.copy_from_slice(inputs.f32(0)?);
        Ok(kernel::glu(pool, activation, out, inputs.f32(1)?)?)
    })
}

pub(super) fn gated_rows(ops: &Ops, gate: &Array, x: &Array, activation: Glu) -> Result<Array> {
    elementwise(ops, "gated_rows", &[x, gate], |pool, inputs, out| {
        out.copy_from_slice(inputs.f32(0)?);
        Ok(kernel::gate_rows(pool, activation, inputs.f32(1)?, out)?)
    })
}

pub(super) fn add(ops: &Ops, a: &Array, b: &Array) -> Result<Array> {
    elementwise(ops, "add", &[a, b], |pool, inputs, out| {
        out.copy_from_slice(inputs.f32(0)?);
        Ok(add_assign(pool, out, inputs.f32(1)?)?)
    })
}

pub(super) fn rope(
    ops: &Ops,
    x: &Array,
    heads: usize,
    rope: &Rope,
    (positions, sections): (&[i32], &[usize]),
) -> Result<Array> {
    let head_dim = rows_cols(x).1 / heads;
    elementwise(ops, "rope", &[x], |pool, inputs, out| {
        out.copy_from_slice(inputs.f32(0)?);
        let pairing = if rope.traditional() { Pairing::Neighbours } else { Pairing::Halves };
        let (inverse, scale) = (rope.inverse_freqs(), rope.input_scale());
        let rotation = Rotation { inverse: &inverse, sections, pairing, scale };
        Ok(rotate(pool, out, head_dim, positions, &rotation)?)
    })
}
