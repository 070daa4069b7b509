//! Mixtures of experts: routing and the experts' products in one call.

use mlx_ffi::host::{HostInputs, call_one};
use mlx_ffi::{Array, Dtype};
use mlxcel_kernels::matmul::{Expert, Layer, Routes, experts as run_experts};
use mlxcel_kernels::route::route;

use super::HostKernels;
use super::linear::MatrixShape;
use crate::experts::{ExpertMatrices, Experts};
use crate::layers::Weight;
use crate::{Error, Result};

/// The matrices of all experts among the inputs of a call.
struct ExpertInputs {
    /// Shape of each part.
    shape: MatrixShape,
    /// First input.
    at: usize,
    /// 1, or as many as there are experts.
    parts: usize,
    /// Rows of one expert.
    rows: usize,
    /// Index among interleaved matrices, and their number.
    interleaved: Option<(usize, usize)>,
    /// Input with the biases, where there are any.
    bias: Option<usize>,
}

impl ExpertInputs {
    /// Adds the arrays of `matrices` to `inputs`.
    fn push<'a>(
        matrices: &'a ExpertMatrices,
        bias: Option<&'a Array>,
        experts: usize,
        inputs: &mut Vec<&'a Array>,
    ) -> Result<Self> {
        let (weights, interleaved) = match matrices {
            ExpertMatrices::Stacked(weight) => (std::slice::from_ref(weight), None),
            ExpertMatrices::Separate(weights) => (&weights[..], None),
            ExpertMatrices::Interleaved { weight, index, count } => {
                (std::slice::from_ref(weight), Some((*index, *count)))
            }
        };
        let at = inputs.len();
        let parts = weights.len();
        let shapes = weights.iter().map(MatrixShape::of).collect::<Result<Vec<_>>>()?;
        let first = shapes.first().copied();
        let Some(shape) = first.filter(|first| shapes.iter().all(|shape| shape == first)) else {
            return Err(Error::Unsupported { feature: "a layer with experts of several formats" });
        };
        inputs.extend(weights.iter().flat_map(Weight::arrays));
        let matrices = interleaved.map_or(1, |(_, count)| count);
        let rows = weights[0].shape().0 * parts / experts / matrices;
        let bias = bias.map(|bias| {
            inputs.push(bias);
            inputs.len() - 1
        });
        Ok(Self { shape, at, parts, rows, interleaved, bias })
    }

    /// The matrix and the bias of expert `expert`.
    fn view<'a>(&self, inputs: &HostInputs<'a>, expert: usize) -> Result<Layer<'a>> {
        let weights = if self.parts == 1 {
            let mut all = self.shape.view(inputs, self.at)?;
            if let Some((index, count)) = self.interleaved {
                all = all.every_nth_row(index, count)?;
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

pub(super) fn experts(
    kernels: &HostKernels,
    x: &Array,
    logits: &Array,
    layer: &Experts,
) -> Result<Array> {
    let rule = *layer.rule();
    let mut inputs = vec![x, logits];
    inputs.extend(layer.bias());
    let [gate, up, down] = layer.matrices();
    let [gate_bias, up_bias, down_bias] = match layer.biases() {
        Some(biases) => biases.each_ref().map(Some),
        None => [None; 3],
    };
    let gate = ExpertInputs::push(gate, gate_bias, rule.experts, &mut inputs)?;
    let up = ExpertInputs::push(up, up_bias, rule.experts, &mut inputs)?;
    let down = ExpertInputs::push(down, down_bias, rule.experts, &mut inputs)?;
    call_one("experts", &inputs, (x.shape(), Dtype::Float32), |inputs, mut outputs| {
        let bias = if layer.bias().is_some() { Some(inputs.f32(2)?) } else { None };
        let (chosen, weights) = route(inputs.f32(1)?, &rule, bias)?;
        let routes = Routes::new(&chosen, weights, rule.active, rule.experts)?;
        let mut used = Vec::new();
        for index in routes.used() {
            used.push(Expert {
                gate: gate.view(&inputs, index)?,
                up: up.view(&inputs, index)?,
                down: down.view(&inputs, index)?,
            });
        }
        let x = inputs.f32(0)?;
        let out = outputs.f32(0)?;
        let activation = layer.activation();
        Ok(run_experts(&kernels.pool, x, &routes, &used, activation, out, kernels.sums)?)
    })
}
