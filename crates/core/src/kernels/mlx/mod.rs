//! The MLX kernel set: the operations that mlx-lm emits, run by run where MLX takes one sequence.

mod activations;
mod attention;
mod experts;
mod heads;
mod linear;
mod recurrent;
mod rope;

use mlx_ffi::device::{Device, default_device};
use mlx_ffi::{Array, Dtype, ops};
use mlxcel_estimator::{ComputeDtype, KvMode, KvStorage};
use mlxcel_kernels::elementwise::{Glu as Activation, Map};

use super::{AttentionInputs, EncoderInputs, Kernels, MatrixForm, ParameterLayout, Runs};
use crate::Result;
use crate::attention::{AttentionSpec, LayerLayout};
use crate::batch::Batch;
use crate::cache::{ArrayCaches, SequenceCache};
use crate::experts::Experts;
use crate::layers::{Embedding, LayerNorm, Linear, RmsNorm, Weight};
use crate::recurrent::{Convolution, Scan};
use crate::rope::Rope;
use crate::shape::{int, rows_cols};

/// Rows from which a layer is computed before the next one is built: below, activations are small
/// and waiting for each layer would cost time.
const EVAL_TOKENS: usize = 32;

/// MLX's own operations.
pub(super) struct MlxKernels {
    /// Type of activations and caches.
    pub(super) dtype: ComputeDtype,
}

impl MlxKernels {
    /// The type that floats are converted to; `None` is that of the checkpoint.
    fn floats(&self) -> Option<Dtype> {
        match self.dtype {
            ComputeDtype::Checkpoint => None,
            ComputeDtype::Fp32 => Some(Dtype::Float32),
        }
    }
}

impl Kernels for MlxKernels {
    fn parameters(&self) -> ParameterLayout {
        let floats = self.floats();
        ParameterLayout { vectors: floats, matrices: floats, form: MatrixForm::Packed }
    }

    fn activation_dtype(&self, weight: &Weight) -> Dtype {
        match weight {
            Weight::Dense(array) => array.dtype(),
            Weight::Affine(w) => w.scales.dtype(),
            Weight::Mxfp4(_) => Dtype::Bfloat16,
        }
    }

    /// On a CPU MLX dispatches up to a hundred nodes ahead of its thread and allocates the outputs of
    /// all of them; so a wide pass is computed layer by layer. A GPU does better with the whole
    /// graph.
    fn eval_layer(&self, x: &Array) -> Result<()> {
        let wide = rows_cols(x).0 >= EVAL_TOKENS;
        if wide && default_device()? == Device::Cpu {
            x.eval()?;
        }
        Ok(())
    }

    fn new_cache(&self, layout: &[LayerLayout], mode: KvMode) -> Result<SequenceCache> {
        let format = KvStorage { mode, dtype: self.dtype };
        Ok(SequenceCache::over(format, Box::new(ArrayCaches::new(layout, format)?)))
    }

    fn embed(&self, ids: &[i32], table: &Embedding) -> Result<Array> {
        linear::embed(ids, table, self.floats())
    }

    fn linears(&self, x: &Array, layers: &[&Linear]) -> Result<Vec<Array>> {
        layers.iter().map(|layer| linear::linear(x, layer)).collect()
    }

    fn linear_per_head(&self, x: &Array, weight: &Weight, heads: usize) -> Result<Array> {
        linear::linear_per_head(x, weight, heads)
    }

    fn glu(&self, x: &Array, gate: &Linear, up: &Linear, activation: Activation) -> Result<Array> {
        let gate = linear::linear(x, gate)?;
        let up = linear::linear(x, up)?;
        activations::gated_unit(&gate, &up, activation)
    }

    fn experts(&self, x: &Array, logits: &Array, layer: &Experts) -> Result<Array> {
        experts::experts(x, logits, layer)
    }

    fn map(&self, x: &Array, function: Map) -> Result<Array> {
        activations::map(x, function)
    }

    fn add(&self, a: &Array, b: &Array) -> Result<Array> {
        Ok(ops::add(a, b)?)
    }

    fn gated(&self, gate: &Array, x: &Array, activation: Activation) -> Result<Array> {
        Ok(ops::multiply(&activations::activate(gate, activation)?, x)?)
    }

    fn layer_norm(&self, x: &Array, norm: &LayerNorm) -> Result<Array> {
        Ok(mlx_ffi::fast::layer_norm(x, Some(&norm.weight), norm.bias.as_ref(), norm.eps)?)
    }

    fn rms_norm(&self, x: &Array, norm: &RmsNorm) -> Result<Array> {
        activations::rms_norm(x, norm)
    }

    fn take_rows(&self, x: &Array, rows: &[usize]) -> Result<Array> {
        let index = rows.iter().map(|&row| int(row)).collect::<Result<Vec<_>>>()?;
        let index = Array::from_slice(&index, &[int(index.len())?])?;
        Ok(ops::take(x, &index, 0)?)
    }

    fn split_heads(&self, x: &Array, heads: usize, at: usize) -> Result<[Array; 2]> {
        heads::split(x, heads, at)
    }

    fn join_heads(&self, a: &Array, b: &Array, heads: usize) -> Result<Array> {
        heads::join(a, b, heads)
    }

    fn rope(&self, batch: &Batch, x: &Array, heads: usize, rope: &Rope) -> Result<Array> {
        rope::rope(batch, x, heads, rope)
    }

    fn rope_on_grid(&self, x: &Array, heads: usize, rope: &Rope, grid: &[i32]) -> Result<Array> {
        rope::rope_on_grid(x, heads, rope, grid)
    }

    fn encoder_attention(&self, inputs: EncoderInputs<'_>, segments: &[usize]) -> Result<Array> {
        attention::encoder(inputs, segments)
    }

    fn padded_encoder_attention(&self, inputs: EncoderInputs<'_>, real: usize) -> Result<Array> {
        attention::padded_encoder(inputs, real)
    }

    fn attention(&self, runs: Runs<'_, '_>, inputs: &AttentionInputs<'_>) -> Result<Array> {
        attention::attention(runs, inputs)
    }

    fn cross_attention(
        &self,
        runs: Runs<'_, '_>,
        layer: usize,
        q: &Array,
        spec: &AttentionSpec,
    ) -> Result<Array> {
        attention::cross(&runs, layer, q, spec)
    }

    fn convolve(
        &self,
        runs: Runs<'_, '_>,
        index: usize,
        x: &Array,
        layer: &Convolution,
    ) -> Result<Array> {
        recurrent::convolve(runs, index, x, layer)
    }

    fn scan(
        &self,
        runs: Runs<'_, '_>,
        index: usize,
        steps: &[&Array],
        scan: &Scan,
    ) -> Result<Array> {
        recurrent::scan(runs, index, steps, scan)
    }
}
