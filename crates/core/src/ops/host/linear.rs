//! Matrix products, embeddings and the gated activation.

use std::sync::Arc;

use mlx_ffi::host::{HostInputs, HostOutputs, call};
use mlx_ffi::{Array, Dtype};
use mlxcel_kernels::weights::{Affine, FloatType, WeightMatrix};

use super::elementwise;
use crate::layers::{Embedding, Linear, Weight};
use crate::ops::{Ops, Precision};
use crate::shape::{int, rows_cols};
use crate::{Error, Result};

/// What a kernel needs to know of a matrix besides its bytes.
#[derive(Clone, Copy)]
struct MatrixShape {
    rows: usize,
    cols: usize,
    /// Bits and group size; `None` for a dense matrix.
    affine: Option<(u32, usize)>,
    float: FloatType,
    bias: bool,
}

impl MatrixShape {
    fn of(layer: &Linear) -> Result<Self> {
        let (rows, cols) = layer.weight.shape();
        let (affine, floats) = match &layer.weight {
            Weight::Dense(array) => (None, array),
            Weight::Affine(w) => {
                let bits = u32::try_from(w.bits).map_err(|_| Error::Config { what: format!("{} bits", w.bits) })?;
                (Some((bits, w.group_size)), &w.scales)
            }
        };
        Ok(Self { rows, cols, affine, float: float_type(floats.dtype())?, bias: layer.bias.is_some() })
    }

    /// How many inputs of a node hold this layer.
    fn inputs(&self) -> usize {
        usize::from(self.bias) + if self.affine.is_some() { 3 } else { 1 }
    }

    /// The matrix over the inputs from `at` on.
    fn view<'a>(&self, inputs: &HostInputs<'a>, at: usize) -> Result<WeightMatrix<'a>> {
        Ok(match self.affine {
            None => WeightMatrix::dense(self.rows, self.cols, self.float, inputs.bytes(at)?)?,
            Some((bits, group)) => {
                let affine = Affine {
                    bits,
                    group,
                    codes: inputs.bytes(at)?,
                    scales: inputs.bytes(at + 1)?,
                    biases: inputs.bytes(at + 2)?,
                    scale_type: self.float,
                };
                WeightMatrix::affine(self.rows, self.cols, affine)?
            }
        })
    }
}

pub(crate) fn embed(_ops: &Ops, _tokens: &Array, _table: &Embedding) -> Result<Array> { Err(Error::Config { what: "soon".into() }) }
pub(crate) fn linears<const N: usize>(_ops: &Ops, _x: &Array, _layers: [&Linear; N]) -> Result<[Array; N]> { Err(Error::Config { what: "soon".into() }) }
pub(crate) fn swiglu(_ops: &Ops, _gate: &Array, _up: &Array) -> Result<Array> { Err(Error::Config { what: "soon".into() }) }

fn float_type(dtype: Dtype) -> Result<FloatType> {
    match dtype {
        Dtype::Float32 => Ok(FloatType::F32),
        Dtype::Float16 => Ok(FloatType::F16),
        Dtype::Bfloat16 => Ok(FloatType::Bf16),
        other => Err(Error::Config { what: format!("weights of type {other:?} are not supported by the host kernels") }),
    }
}
