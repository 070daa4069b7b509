//! Activations and norms.

use mlx_ffi::{Array, fast, ops};
use mlxcel_kernels::elementwise::{
    CLAMPED_SWISH_LIMIT, CLAMPED_SWISH_SLOPE, Glu as Activation, Map,
};

use crate::Result;
use crate::layers::RmsNorm;
use crate::shape::{ints, rows_cols};

/// `activation(gate) · up`; the clamped swish also clamps and shifts `up`.
pub(super) fn gated_unit(gate: &Array, up: &Array, activation: Activation) -> Result<Array> {
    if activation != Activation::ClampedSwish {
        return Ok(ops::multiply(&activate(gate, activation)?, up)?);
    }
    let most = Array::scalar(CLAMPED_SWISH_LIMIT.into(), up.dtype())?;
    let least = Array::scalar((-CLAMPED_SWISH_LIMIT).into(), up.dtype())?;
    let up = ops::maximum(&ops::minimum(up, &most)?, &least)?;
    Ok(ops::multiply(&ops::add_scalar(&up, 1.0)?, &activate(gate, activation)?)?)
}

pub(super) fn activate(x: &Array, activation: Activation) -> Result<Array> {
    Ok(match activation {
        Activation::Silu => ops::silu(x)?,
        Activation::Sigmoid => ops::sigmoid(x)?,
        Activation::ReluSquared => ops::square(&ops::maximum(x, &Array::scalar(0.0, x.dtype())?)?)?,
        Activation::Identity => x.clone(),
        Activation::ClampedSwish => {
            let limit = Array::scalar(CLAMPED_SWISH_LIMIT.into(), x.dtype())?;
            let x = ops::minimum(x, &limit)?;
            let inner = ops::multiply_scalar(&x, CLAMPED_SWISH_SLOPE.into())?;
            ops::multiply(&x, &ops::sigmoid(&inner)?)?
        }
        Activation::GeluErf => {
            let erf = ops::erf(&ops::divide_scalar(x, std::f64::consts::SQRT_2)?)?;
            ops::divide_scalar(&ops::multiply(x, &ops::add_scalar(&erf, 1.0)?)?, 2.0)?
        }
        Activation::GeluTanh => {
            let cube = ops::multiply(&ops::square(x)?, x)?;
            let inner = ops::add(x, &ops::multiply_scalar(&cube, 0.044_715)?)?;
            let root = (2.0 / std::f64::consts::PI).sqrt();
            let tanh = ops::tanh(&ops::multiply_scalar(&inner, root)?)?;
            ops::multiply(&ops::multiply_scalar(x, 0.5)?, &ops::add_scalar(&tanh, 1.0)?)?
        }
    })
}

pub(super) fn map(x: &Array, function: Map) -> Result<Array> {
    Ok(match function {
        Map::Activation(activation) => activate(x, activation)?,
        Map::Scale(factor) => ops::multiply_scalar(x, factor.into())?,
        Map::Softcap(cap) => softcap(x, cap)?,
    })
}

pub(super) fn softcap(x: &Array, cap: f32) -> Result<Array> {
    let inner = ops::tanh(&ops::divide_scalar(x, cap.into())?)?;
    Ok(ops::multiply_scalar(&inner, cap.into())?)
}

pub(super) fn rms_norm(x: &Array, norm: &RmsNorm) -> Result<Array> {
    let (_, cols) = rows_cols(x);
    let (_, length) = rows_cols(&norm.weight);
    if norm.group < length {
        let groups = ints([x.size() / norm.group, norm.group])?;
        let normed = fast::rms_norm(&ops::reshape(x, &groups)?, None, norm.eps)?;
        let rows = ops::reshape(&normed, &ints([x.size() / length, length])?)?;
        return Ok(ops::reshape(&ops::multiply(&rows, &norm.weight)?, x.shape())?);
    }
    if cols == length {
        return Ok(fast::rms_norm(x, Some(&norm.weight), norm.eps)?);
    }
    let rows = ops::reshape(x, &ints([x.size() / length, length])?)?;
    let normed = fast::rms_norm(&rows, Some(&norm.weight), norm.eps)?;
    Ok(ops::reshape(&normed, x.shape())?)
}
