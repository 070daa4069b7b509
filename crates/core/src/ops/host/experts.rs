//! Experts, and products with one matrix per head.

use mlx_ffi::host::{HostInputs, call_one};
use mlx_ffi::{Array, Dtype};
use mlxcel_kernels::matmul::{Expert, Layer, Routes, experts as run_experts, matmul_heads};
use mlxcel_kernels::route::route;

use super::linear::MatrixShape;
use crate::experts::{ExpertMatrices, Experts};
use crate::layers::Weight;
use crate::ops::Ops;
use crate::shape::{ints, rows_cols};
use crate::{Error, Result};

/// Where the inputs of a call hold the matrices of all experts.
struct Stack {
    /// Of a part.
    shape: MatrixShape,
    /// First input.
    at: usize,
    /// 1, or as many as there are experts.
    parts: usize,
    /// Rows of one expert.
    rows: usize,
    /// Which of how many take turns.
    turn: Option<(usize, usize)>,
    /// Input with the biases, where there are any.
    bias: Option<usize>,
}

impl Stack {
    /// Adds the arrays of `matrices` to `inputs`.
    fn push<'a>(
        matrices: &'a ExpertMatrices,
        bias: Option<&'a Array>,
        experts: usize,
        inputs: &mut Vec<&'a Array>,
    ) -> Result<Self> {
        let (weights, turn) = match matrices {
            ExpertMatrices::Stacked(weight) => (std::slice::from_ref(weight), None),
            ExpertMatrices::Separate(weights) => (&weights[..], None),
            ExpertMatrices::TakingTurns { weight, part, parts } => {
                (std::slice::from_ref(weight), Some((*part, *parts)))
            }
        };
        let (at, parts) = (inputs.len(), weights.len());
        let shapes = weights.iter().map(MatrixShape::of).collect::<Result<Vec<_>>>()?;
        let Some(shape) = shapes.first().copied().filter(|first| shapes.iter().all(|s| s == first))
        else {
            return Err(Error::Config { what: "experts of different formats".into() });
        };
        inputs.extend(weights.iter().flat_map(Weight::arrays));
        let rows = weights[0].shape().0 * parts / experts / turn.map_or(1, |(_, parts)| parts);
        let bias = bias.map(|bias| {
            inputs.push(bias);
            inputs.len() - 1
        });
        Ok(Self { shape, at, parts, rows, turn, bias })
    }

    fn view<'a>(&self, inputs: &HostInputs<'a>, expert: usize) -> Result<Layer<'a>> {
        let weights = if self.parts == 1 {
            let mut all = self.shape.view(inputs, self.at)?;
            if let Some((part, parts)) = self.turn {
                all = all.every_nth_row(part, parts)?;
            }
            all.row_range(expert * self.rows, self.rows)?
        } else {
            self.shape.view(inputs, self.at + expert * self.shape.inputs())?
        };
        let bias = match self.bias {
            Some(at) => inputs.f32(at)?.get(expert * self.rows..(expert + 1) * self.rows),
            None => None,
        };
        Ok(Layer { weights, bias })
    }
}

pub(crate) fn experts(ops: &Ops, x: &Array, logits: &Array, layer: &Experts) -> Result<Array> {
    let rule = *layer.rule();
    let mut inputs = vec![x, logits];
    inputs.extend(layer.bias());
    let mut stacks = Vec::with_capacity(3);
    for (i, matrices) in layer.matrices().into_iter().enumerate() {
        let bias = layer.biases().map(|biases| &biases[i]);
        stacks.push(Stack::push(matrices, bias, rule.experts, &mut inputs)?);
    }
    call_one("experts", &inputs, (x.shape(), Dtype::Float32), |inputs, mut outputs| {
        let bias = if layer.bias().is_some() { Some(inputs.f32(2)?) } else { None };
        let (chosen, weights) = route(inputs.f32(1)?, &rule, bias)?;
        let routes = Routes::new(&chosen, weights, rule.active, rule.experts)?;
        let expert = |index| {
            let [gate, up, down] = &stacks[..] else {
                return Err(Error::Config { what: "an expert has three matrices".into() });
            };
            let view = |stack: &Stack| stack.view(&inputs, index);
            Ok(Expert { gate: view(gate)?, up: view(up)?, down: view(down)? })
        };
        let used = routes.used().map(expert).collect::<Result<Vec<_>>>()?;
        let (x, out) = (inputs.f32(0)?, outputs.f32(0)?);
        Ok(run_experts(ops.pool(), x, &routes, &used, layer.activation(), out, ops.sums())?)
    })
}

pub(crate) fn heads(ops: &Ops, x: &Array, weight: &Weight, heads: usize) -> Result<Array> {
    let mut inputs = vec![x];
    inputs.extend(weight.arrays());
    let shape = MatrixShape::of(weight)?;
    let output = ints([rows_cols(x).0, weight.shape().0])?;
    call_one("heads", &inputs, (&output, Dtype::Float32), |inputs, mut outputs| {
        let matrix = shape.view(&inputs, 1)?;
        let (x, out) = (inputs.f32(0)?, outputs.f32(0)?);
        Ok(matmul_heads(ops.pool(), x, &matrix, heads, out, ops.sums())?)
    })
}
