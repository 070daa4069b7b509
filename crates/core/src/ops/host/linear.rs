//! Matrix products, embeddings and the gated activation.

use mlx_ffi::host::{HostInputs, call, call_one};
use mlx_ffi::{Array, Dtype};
use mlxcel_kernels::elementwise::{self as kernel, Glu};
use mlxcel_kernels::matmul::{GatedPair, matmul, matmul_glu};
use mlxcel_kernels::weights::{Affine, FloatType, WeightMatrix};

use super::elementwise;
use crate::layers::{Embedding, Linear, Weight};
use crate::ops::Ops;
use crate::shape::{ints, rows_cols};
use crate::{Error, Result};

/// What a kernel needs to know of a matrix besides its bytes.
#[derive(Clone, Copy, PartialEq)]
pub(super) struct MatrixShape {
    rows: usize,
    cols: usize,
    coding: Coding,
}

/// How a kernel reads the elements of a matrix.
#[derive(Clone, Copy, PartialEq)]
enum Coding {
    Dense(FloatType),
    Affine { bits: u32, group: usize, float: FloatType },
    Mxfp4,
}

impl MatrixShape {
    pub(super) fn of(weight: &Weight) -> Result<Self> {
        let (rows, cols) = weight.shape();
        let coding = match weight {
            Weight::Dense(array) => Coding::Dense(float_type(array.dtype())?),
            Weight::Affine(w) => {
                let bits = u32::try_from(w.bits)
                    .map_err(|_| Error::Config { what: format!("{} bits", w.bits) })?;
                let float = float_type(w.scales.dtype())?;
                Coding::Affine { bits, group: w.group_size, float }
            }
            Weight::Mxfp4(_) => Coding::Mxfp4,
        };
        Ok(Self { rows, cols, coding })
    }

    /// How many inputs of a call hold the matrix.
    pub(super) fn inputs(&self) -> usize {
        match self.coding {
            Coding::Dense(_) => 1,
            Coding::Affine { .. } => 3,
            Coding::Mxfp4 => 2,
        }
    }

    /// The matrix over the inputs from `at` on.
    pub(super) fn view<'a>(&self, inputs: &HostInputs<'a>, at: usize) -> Result<WeightMatrix<'a>> {
        Ok(match self.coding {
            Coding::Dense(float) => {
                WeightMatrix::dense(self.rows, self.cols, float, inputs.bytes(at)?)?
            }
            Coding::Mxfp4 => {
                let (codes, scales) = (inputs.bytes(at)?, inputs.bytes(at + 1)?);
                WeightMatrix::mxfp4(self.rows, self.cols, codes, scales)?
            }
            Coding::Affine { bits, group, float } => {
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
type LayerView<'a> = (WeightMatrix<'a>, Option<&'a [f32]>);

/// Several layers as the inputs of one call, after the activations (input 0).
struct Layers {
    /// Of the matrix, and whether there is a bias.
    shapes: Vec<(MatrixShape, bool)>,
}

impl Layers {
    /// The shapes, and `x` followed by the arrays of each layer: matrix, then bias.
    fn of<'a>(x: &'a Array, layers: &[&'a Linear]) -> Result<(Self, Vec<&'a Array>)> {
        let mut inputs = vec![x];
        for layer in layers {
            inputs.extend(layer.weight.arrays());
            inputs.extend(&layer.bias);
        }
        let shape = |layer: &&Linear| Ok((MatrixShape::of(&layer.weight)?, layer.bias.is_some()));
        let shapes = layers.iter().map(shape).collect::<Result<_>>()?;
        Ok((Self { shapes }, inputs))
    }

    /// The matrices, and the biases where there are any.
    fn views<'a>(&self, inputs: &HostInputs<'a>) -> Result<Vec<LayerView<'a>>> {
        let mut at = 1;
        let mut views = Vec::with_capacity(self.shapes.len());
        for (shape, biased) in &self.shapes {
            let next = at + shape.inputs() + usize::from(*biased);
            let bias = if *biased { Some(inputs.f32(next - 1)?) } else { None };
            views.push((shape.view(inputs, at)?, bias));
            at = next;
        }
        Ok(views)
    }
}

pub(crate) fn linears<const N: usize>(
    ops: &Ops,
    x: &Array,
    layers: [&Linear; N],
) -> Result<[Array; N]> {
    let (shapes, inputs) = Layers::of(x, &layers)?;
    let (tokens, _) = rows_cols(x);
    let outputs = shapes
        .shapes
        .iter()
        .map(|(shape, _)| ints([tokens, shape.rows]))
        .collect::<Result<Vec<_>>>()?;
    let specs: Vec<_> = outputs.iter().map(|shape| (&shape[..], Dtype::Float32)).collect();
    let results = call("linear", &inputs, &specs, |inputs, mut outputs| {
        let views = shapes.views(&inputs)?;
        let matrices: Vec<_> = views.iter().map(|(matrix, _)| *matrix).collect();
        let mut outs = (0..N).map(|i| outputs.f32(i)).collect::<mlx_ffi::Result<Vec<_>>>()?;
        matmul(ops.pool(), inputs.f32(0)?, &matrices, &mut outs, ops.sums())?;
        for ((_, bias), out) in views.iter().zip(outs) {
            add_bias(*bias, out);
        }
        Ok::<_, Error>(())
    });
    results?.try_into().map_err(|_| Error::Config { what: "a projection is missing".into() })
}

fn add_bias(bias: Option<&[f32]>, out: &mut [f32]) {
    let Some(bias) = bias else { return };
    for row in out.chunks_exact_mut(bias.len()) {
        for (y, b) in row.iter_mut().zip(bias) {
            *y += b;
        }
    }
}

pub(crate) fn glu(
    ops: &Ops,
    x: &Array,
    (gate, up): (&Linear, &Linear),
    activation: Glu,
) -> Result<Array> {
    if gate.bias.is_some() || up.bias.is_some() {
        let [gate, up] = linears(ops, x, [gate, up])?;
        return elementwise(ops, "glu", &[&gate, &up], |pool, inputs, out| {
            out.copy_from_slice(inputs.f32(0)?);
            Ok(kernel::glu(pool, activation, out, inputs.f32(1)?)?)
        });
    }
    let (shapes, inputs) = Layers::of(x, &[gate, up])?;
    let shape = ints([rows_cols(x).0, gate.weight.shape().0])?;
    call_one("glu", &inputs, (&shape, Dtype::Float32), |inputs, mut outputs| {
        let views = shapes.views(&inputs)?;
        let [(gate, _), (up, _)] = views[..] else {
            return Err(Error::Config { what: "a gated layer has two matrices".into() });
        };
        let (x, out) = (inputs.f32(0)?, outputs.f32(0)?);
        Ok(matmul_glu(ops.pool(), x, GatedPair { gate, up, activation }, out, ops.sums())?)
    })
}

pub(crate) fn embed(tokens: &Array, table: &Embedding) -> Result<Array> {
    let table = Linear { weight: table.weight.clone(), bias: None };
    let (shapes, inputs) = Layers::of(tokens, &[&table])?;
    let (rows, cols) = table.weight.shape();
    let shape = ints([tokens.size(), cols])?;
    call_one("embed", &inputs, (&shape, Dtype::Float32), |inputs, mut outputs| {
        let views = shapes.views(&inputs)?;
        let [(matrix, _)] = views[..] else {
            return Err(Error::Config { what: "an embedding has one matrix".into() });
        };
        for (token, out) in
            inputs.slice::<i32>(0)?.iter().zip(outputs.f32(0)?.chunks_exact_mut(cols))
        {
            let row = usize::try_from(*token).ok().filter(|row| *row < rows);
            let row = row.ok_or_else(|| Error::Config {
                what: format!("token {token} is outside the embedding table of {rows} rows"),
            })?;
            matrix.dequantize_row(row, out)?;
        }
        Ok(())
    })
}

fn float_type(dtype: Dtype) -> Result<FloatType> {
    match dtype {
        Dtype::Float32 => Ok(FloatType::F32),
        Dtype::Float16 => Ok(FloatType::F16),
        Dtype::Bfloat16 => Ok(FloatType::Bf16),
        other => Err(Error::Config {
            what: format!("weights of type {other:?} are not supported by the host kernels"),
        }),
    }
}
