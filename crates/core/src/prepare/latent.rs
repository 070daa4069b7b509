//! Matrices of absorbed latent attention (MLA).

use mlx_ffi::ops::Quantized;
use mlx_ffi::{Array, Dtype, ops};

use super::in_words;
use crate::Result;
use crate::config::ComputeDtype;
use crate::layers::{AffineWeight, Weight};
use crate::ops::Ops;
use crate::quantized::{affine_scheme, mxfp4};
use crate::shape::{int, ints, rows_cols};

/// Storage of the matrices that [`Ops::absorbed`] makes of a quantised one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AbsorbedStorage {
    /// Floats.
    Float,
    /// Codes, quantised again in the format of the checkpoint, as mlx-lm does for DeepSeek V3.
    AsStored,
}

impl Ops {
    /// The two matrices of absorbed latent attention, made of `kv_b`,
    /// `[heads · (nope + value), latent]`, as stored: from a head's query to the latent,
    /// `[heads · latent, nope]`, and from the latent to a head's value, `[heads · value, latent]`.
    /// Copies.
    ///
    /// # Errors
    /// Copies that cannot be made.
    pub fn absorbed(
        &self,
        kv_b: &Weight,
        heads: usize,
        nope: usize,
        storage: AbsorbedStorage,
    ) -> Result<[Weight; 2]> {
        let exact = (self.dtype() == ComputeDtype::Fp32).then_some(Dtype::Float32);
        let [keys, values] = match storage {
            AbsorbedStorage::Float => float_parts(kv_b, heads, nope, exact)?.map(Weight::Dense),
            AbsorbedStorage::AsStored => {
                let [keys, values] = float_parts(kv_b, heads, nope, None)?;
                [stored_like(keys, kv_b)?, stored_like(values, kv_b)?]
            }
        };
        mlx_ffi::eval(&keys.arrays())?;
        mlx_ffi::eval(&values.arrays())?;
        Ok([self.matrix(keys)?, self.matrix(values)?])
    }
}

/// The parts of [`Ops::absorbed`] as floats, of type `dtype` or that of the scales.
fn float_parts(
    kv_b: &Weight,
    heads: usize,
    nope: usize,
    dtype: Option<Dtype>,
) -> Result<[Array; 2]> {
    let (rows, latent) = kv_b.shape();
    let each = rows / heads;
    let by_head = ops::reshape(&floats(kv_b, dtype)?, &ints([heads, each, latent])?)?;
    let keys = ops::slice_axis(&by_head, 1, 0, int(nope)?)?;
    let keys = ops::contiguous(&ops::swapaxes(&keys, -1, -2)?)?;
    let values = ops::contiguous(&ops::slice_axis(&by_head, 1, int(nope)?, int(each)?)?)?;
    Ok([
        ops::reshape(&keys, &ints([heads * latent, nope])?)?,
        ops::reshape(&values, &ints([heads * (each - nope), latent])?)?,
    ])
}

/// The elements of `weight`, of type `dtype` or that of its scales.
fn floats(weight: &Weight, dtype: Option<Dtype>) -> Result<Array> {
    match weight {
        Weight::Dense(array) => Ok(array.clone()),
        Weight::Affine(w) => {
            // MLX computes in the type of the scales, whatever the type of the result.
            let dtype = dtype.unwrap_or(w.scales.dtype());
            let stored = Quantized {
                weight: w.codes.clone(),
                scales: ops::astype(&w.scales, dtype)?,
                biases: Some(ops::astype(&w.biases, dtype)?),
                quantization: affine_scheme(w)?,
            };
            Ok(ops::dequantize(&stored, None)?)
        }
        Weight::Mxfp4(w) => Ok(ops::dequantize(&mxfp4(&in_words(w.clone())?), dtype)?),
    }
}

/// `floats` in the format of `like`, where its rows divide into groups.
fn stored_like(floats: Array, like: &Weight) -> Result<Weight> {
    let Weight::Affine(w) = like else { return Ok(Weight::Dense(floats)) };
    if !rows_cols(&floats).1.is_multiple_of(w.group_size) {
        return Ok(Weight::Dense(floats));
    }
    let quantized = ops::quantize(&floats, affine_scheme(w)?)?;
    let biases = quantized.biases.expect("affine quantisation has biases");
    let weight =
        AffineWeight::new(quantized.weight, quantized.scales, biases, w.group_size, w.bits)?;
    Ok(Weight::Affine(weight))
}
