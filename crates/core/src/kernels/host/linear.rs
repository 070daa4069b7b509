//! Matrix products, embeddings and the gated activation.

use mlx_ffi::host::{HostInputs, call, call_one};
use mlx_ffi::{Array, Dtype};
use mlxcel_kernels::elementwise::Glu;
use mlxcel_kernels::matmul::{GatedPair, matmul, matmul_glu, matmul_heads};
use mlxcel_kernels::weights::{Affine, FloatType, WeightMatrix};

use super::HostKernels;
use crate::kernels::Kernels;
use crate::layers::{Embedding, Linear, Weight};
use crate::shape::{ints, rows_cols};
use crate::{Error, Result};

/// Shape and coding of a matrix: all that a kernel needs besides its bytes.
#[derive(Clone, Copy, PartialEq)]
pub(super) struct MatrixShape {
    rows: usize,
    cols: usize,
    coding: MatrixCoding,
}

/// MatrixCoding of the elements of a matrix.
#[derive(Clone, Copy, PartialEq)]
enum MatrixCoding {
    Dense(FloatType),
    Affine { bits: u32, group: usize, float: FloatType },
    Mxfp4,
}

impl MatrixShape {
    pub(super) fn of(weight: &Weight) -> Result<Self> {
        let (rows, cols) = weight.shape();
        let coding = match weight {
            Weight::Dense(array) => MatrixCoding::Dense(float_type(array.dtype())?),
            Weight::Affine(w) => {
                let bits = u32::try_from(w.bits).expect("`AffineWeight::new` checked the bits");
                let float = float_type(w.scales.dtype())?;
                MatrixCoding::Affine { bits, group: w.group_size, float }
            }
            Weight::Mxfp4(_) => MatrixCoding::Mxfp4,
        };
        Ok(Self { rows, cols, coding })
    }

    /// Number of a call's inputs that hold the matrix.
    pub(super) fn inputs(&self) -> usize {
        match self.coding {
            MatrixCoding::Dense(_) => 1,
            MatrixCoding::Affine { .. } => 3,
            MatrixCoding::Mxfp4 => 2,
        }
    }

    /// The matrix over the inputs from `at` on.
    pub(super) fn view<'a>(&self, inputs: &HostInputs<'a>, at: usize) -> Result<WeightMatrix<'a>> {
        Ok(match self.coding {
            MatrixCoding::Dense(float) => {
                WeightMatrix::dense(self.rows, self.cols, float, inputs.bytes(at)?)?
            }
            MatrixCoding::Mxfp4 => {
                let codes = inputs.bytes(at)?;
                let scales = inputs.bytes(at + 1)?;
                WeightMatrix::mxfp4(self.rows, self.cols, codes, scales)?
            }
            MatrixCoding::Affine { bits, group, float } => {
                let affine = Affine {
                    bits,
                    group,
                    codes: inputs.bytes(at)?,
                    scales: inputs.bytes(at + 1)?,
                    biases: inputs.bytes(at + 2)?,
                    scale_type: float,
                };
                WeightMatrix::affine(self.rows, self.cols, affine)?
            }
        })
    }
}

/// A layer's matrix, and its bias where it has one.
#[derive(Clone, Copy)]
struct LinearView<'a> {
    matrix: WeightMatrix<'a>,
    bias: Option<&'a [f32]>,
}

/// Several layers as the inputs of one call, after the activations (input 0).
struct LinearInputs {
    layers: Vec<LinearShape>,
}

/// A layer's matrix, and whether there is a bias.
struct LinearShape {
    matrix: MatrixShape,
    has_bias: bool,
}

impl LinearInputs {
    /// The shapes, and `x` followed by the arrays of each layer: matrix, then bias.
    fn of<'a>(x: &'a Array, layers: &[&'a Linear]) -> Result<(Self, Vec<&'a Array>)> {
        let mut inputs = vec![x];
        let mut shapes = Vec::with_capacity(layers.len());
        for layer in layers {
            inputs.extend(layer.weight.arrays());
            inputs.extend(&layer.bias);
            let matrix = MatrixShape::of(&layer.weight)?;
            shapes.push(LinearShape { matrix, has_bias: layer.bias.is_some() });
        }
        Ok((Self { layers: shapes }, inputs))
    }

    /// The matrices, and the biases where there are any.
    fn views<'a>(&self, inputs: &HostInputs<'a>) -> Result<Vec<LinearView<'a>>> {
        let mut at = 1;
        let mut views = Vec::with_capacity(self.layers.len());
        for LinearShape { matrix, has_bias } in &self.layers {
            let next = at + matrix.inputs() + usize::from(*has_bias);
            let bias = if *has_bias { Some(inputs.f32(next - 1)?) } else { None };
            views.push(LinearView { matrix: matrix.view(inputs, at)?, bias });
            at = next;
        }
        Ok(views)
    }
}

pub(super) fn linears(kernels: &HostKernels, x: &Array, layers: &[&Linear]) -> Result<Vec<Array>> {
    let (shapes, inputs) = LinearInputs::of(x, layers)?;
    let (tokens, _) = rows_cols(x);
    let mut outputs = Vec::with_capacity(layers.len());
    for layer in &shapes.layers {
        outputs.push(ints([tokens, layer.matrix.rows])?);
    }
    let specs: Vec<_> = outputs.iter().map(|shape| (&shape[..], Dtype::Float32)).collect();
    call("linear", &inputs, &specs, |inputs, mut outputs| {
        let views = shapes.views(&inputs)?;
        let matrices: Vec<_> = views.iter().map(|view| view.matrix).collect();
        let outs = (0..views.len()).map(|i| outputs.f32(i));
        let mut outs = outs.collect::<mlx_ffi::Result<Vec<_>>>()?;
        matmul(&kernels.pool, inputs.f32(0)?, &matrices, &mut outs, kernels.sums)?;
        for (view, out) in views.iter().zip(outs) {
            add_bias(view.bias, out);
        }
        Ok::<_, Error>(())
    })
}

fn add_bias(bias: Option<&[f32]>, out: &mut [f32]) {
    let Some(bias) = bias else { return };
    for row in out.chunks_exact_mut(bias.len()) {
        for (y, b) in row.iter_mut().zip(bias) {
            *y += b;
        }
    }
}

pub(super) fn glu(
    kernels: &HostKernels,
    x: &Array,
    gate: &Linear,
    up: &Linear,
    activation: Glu,
) -> Result<Array> {
    if gate.bias.is_some() || up.bias.is_some() {
        let outputs = linears(kernels, x, &[gate, up])?;
        return kernels.gated(&outputs[0], &outputs[1], activation);
    }
    let (shapes, inputs) = LinearInputs::of(x, &[gate, up])?;
    let shape = ints([rows_cols(x).0, gate.weight.shape().0])?;
    call_one("glu", &inputs, (&shape, Dtype::Float32), |inputs, mut outputs| {
        let views = shapes.views(&inputs)?;
        let pair = GatedPair { gate: views[0].matrix, up: views[1].matrix, activation };
        let x = inputs.f32(0)?;
        let out = outputs.f32(0)?;
        Ok(matmul_glu(&kernels.pool, x, pair, out, kernels.sums)?)
    })
}

pub(super) fn linear_per_head(
    kernels: &HostKernels,
    x: &Array,
    weight: &Weight,
    heads: usize,
) -> Result<Array> {
    let mut inputs = vec![x];
    inputs.extend(weight.arrays());
    let shape = MatrixShape::of(weight)?;
    let output = ints([rows_cols(x).0, weight.shape().0])?;
    call_one("linear_per_head", &inputs, (&output, Dtype::Float32), |inputs, mut outputs| {
        let matrix = shape.view(&inputs, 1)?;
        let x = inputs.f32(0)?;
        let out = outputs.f32(0)?;
        Ok(matmul_heads(&kernels.pool, x, &matrix, heads, out, kernels.sums)?)
    })
}

pub(super) fn embed(ids: &[i32], table: &Embedding) -> Result<Array> {
    let matrix = MatrixShape::of(&table.weight)?;
    let (rows, cols) = table.weight.shape();
    let shape = ints([ids.len(), cols])?;
    let inputs = table.weight.arrays();
    call_one("embed", &inputs, (&shape, Dtype::Float32), |inputs, mut outputs| {
        let matrix = matrix.view(&inputs, 0)?;
        for (id, out) in ids.iter().zip(outputs.f32(0)?.chunks_exact_mut(cols)) {
            let index = usize::try_from(*id).unwrap_or(usize::MAX);
            if index >= rows {
                return Err(Error::OutOfRange { what: "embedding row", index, len: rows });
            }
            matrix.dequantize_row(index, out)?;
        }
        Ok(())
    })
}

fn float_type(dtype: Dtype) -> Result<FloatType> {
    match dtype {
        Dtype::Float32 => Ok(FloatType::F32),
        Dtype::Float16 => Ok(FloatType::F16),
        Dtype::Bfloat16 => Ok(FloatType::Bf16),
        other => Err(Error::Value {
            name: "the type of weights",
            value: format!("{other:?}"),
            expected: "one of Float32, Float16 and Bfloat16",
        }),
    }
}
