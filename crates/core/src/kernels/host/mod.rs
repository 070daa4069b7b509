//! The host kernel set: `mlxcel-kernels` over the memory of MLX's arrays, run at once. Activations
//! are fp32, row-contiguous.

mod attention;
mod encoder;
mod experts;
mod linear;
mod recurrent;
mod rows;

use std::sync::Arc;

use mlx_ffi::host::{HostInputs, call_one};
use mlx_ffi::{Array, Dtype};
use mlxcel_estimator::{ComputeDtype, KvMode, KvStorage};
use mlxcel_kernels::elementwise::{self, Glu, Map, add_assign};
use mlxcel_kernels::matmul::Sums;
use mlxcel_kernels::rope::{Pairing, Rotation};
use mlxcel_kernels::{Pool, norm};

use super::{AttentionInputs, EncoderInputs, Kernels, MatrixForm, ParameterLayout, Runs};
use crate::attention::{AttentionSpec, LayerLayout};
use crate::batch::Batch;
use crate::cache::{HostCaches, SequenceCache};
use crate::experts::Experts;
use crate::layers::{Embedding, LayerNorm, Linear, RmsNorm, Weight};
use crate::recurrent::{Convolution, Scan};
use crate::shape::{dims, rows_cols};
use crate::{Result, Rope};

/// Rust kernels on a thread pool.
pub(super) struct HostKernels {
    pub(super) pool: Arc<Pool>,
    /// Precision and order of sums.
    pub(super) sums: Sums,
    /// Type of caches.
    pub(super) dtype: ComputeDtype,
}

impl HostKernels {
    /// A call with fp32 inputs and one fp32 output shaped like the first.
    fn elementwise(
        &self,
        name: &'static str,
        inputs: &[&Array],
        f: impl FnOnce(&Pool, HostInputs<'_>, &mut [f32]) -> Result<()>,
    ) -> Result<Array> {
        let shape = inputs.first().map_or(&[][..], |x| x.shape());
        call_one(name, inputs, (shape, Dtype::Float32), |inputs, mut outputs| {
            f(&self.pool, inputs, outputs.f32(0)?)
        })
    }

    /// Rotates rows by `positions`, `[rows, sections]` or `[rows]` where there are no sections.
    fn rotate(
        &self,
        x: &Array,
        heads: usize,
        rope: &Rope,
        sections: &[usize],
        positions: &[i32],
    ) -> Result<Array> {
        let head_dim = rows_cols(x).1 / heads;
        self.elementwise("rope", &[x], |pool, inputs, out| {
            out.copy_from_slice(inputs.f32(0)?);
            let rotation = Rotation {
                inverse: rope.inverse_freqs(),
                sections,
                pairing: if rope.traditional() { Pairing::Neighbours } else { Pairing::Halves },
                scale: rope.input_scale(),
            };
            Ok(mlxcel_kernels::rope::rope(pool, out, head_dim, positions, &rotation)?)
        })
    }
}

impl Kernels for HostKernels {
    fn parameters(&self) -> ParameterLayout {
        ParameterLayout { vectors: Some(Dtype::Float32), matrices: None, form: MatrixForm::InPlace }
    }

    fn activation_dtype(&self, _: &Weight) -> Dtype {
        Dtype::Float32
    }

    /// Activations are computed already.
    fn eval_layer(&self, _: &Array) -> Result<()> {
        Ok(())
    }

    fn new_cache(&self, layout: &[LayerLayout], mode: KvMode) -> Result<SequenceCache> {
        let format = KvStorage { mode, dtype: self.dtype };
        Ok(SequenceCache::over(format, Box::new(HostCaches::new(layout, format)?)))
    }

    fn embed(&self, ids: &[i32], table: &Embedding) -> Result<Array> {
        linear::embed(ids, table)
    }

    fn linears(&self, x: &Array, layers: &[&Linear]) -> Result<Vec<Array>> {
        linear::linears(self, x, layers)
    }

    fn linear_per_head(&self, x: &Array, weight: &Weight, heads: usize) -> Result<Array> {
        linear::linear_per_head(self, x, weight, heads)
    }

    fn glu(&self, x: &Array, gate: &Linear, up: &Linear, activation: Glu) -> Result<Array> {
        linear::glu(self, x, gate, up, activation)
    }

    fn experts(&self, x: &Array, logits: &Array, layer: &Experts) -> Result<Array> {
        experts::experts(self, x, logits, layer)
    }

    fn map(&self, x: &Array, function: Map) -> Result<Array> {
        self.elementwise("map", &[x], |pool, inputs, out| {
            out.copy_from_slice(inputs.f32(0)?);
            elementwise::map(pool, function, out);
            Ok(())
        })
    }

    fn add(&self, a: &Array, b: &Array) -> Result<Array> {
        self.elementwise("add", &[a, b], |pool, inputs, out| {
            out.copy_from_slice(inputs.f32(0)?);
            Ok(add_assign(pool, out, inputs.f32(1)?)?)
        })
    }

    fn gated(&self, gate: &Array, x: &Array, activation: Glu) -> Result<Array> {
        let (rows, width) = rows_cols(x);
        if width != 1 && dims(gate) == [rows, 1] {
            return self.elementwise("gated_rows", &[x, gate], |pool, inputs, out| {
                out.copy_from_slice(inputs.f32(0)?);
                Ok(elementwise::gate_rows(pool, activation, inputs.f32(1)?, out)?)
            });
        }
        self.elementwise("gated", &[gate, x], |pool, inputs, out| {
            out.copy_from_slice(inputs.f32(0)?);
            Ok(elementwise::glu(pool, activation, out, inputs.f32(1)?)?)
        })
    }

    fn layer_norm(&self, x: &Array, layer: &LayerNorm) -> Result<Array> {
        let mut inputs = vec![x, &layer.weight];
        inputs.extend(&layer.bias);
        self.elementwise("layer_norm", &inputs, |pool, inputs, out| {
            let bias = if layer.bias.is_some() { inputs.f32(2)? } else { &[] };
            Ok(norm::layer_norm(pool, inputs.f32(0)?, inputs.f32(1)?, bias, layer.eps, out)?)
        })
    }

    fn rms_norm(&self, x: &Array, layer: &RmsNorm) -> Result<Array> {
        self.elementwise("rms_norm", &[x, &layer.weight], |pool, inputs, out| {
            let weight = inputs.f32(1)?;
            Ok(norm::grouped_rms_norm(pool, inputs.f32(0)?, weight, layer.group, layer.eps, out)?)
        })
    }

    fn take_rows(&self, x: &Array, rows: &[usize]) -> Result<Array> {
        rows::take(x, rows)
    }

    fn split_heads(&self, x: &Array, heads: usize, at: usize) -> Result<[Array; 2]> {
        rows::split_heads(x, heads, at)
    }

    fn join_heads(&self, a: &Array, b: &Array, heads: usize) -> Result<Array> {
        rows::join_heads(a, b, heads)
    }

    fn rope(&self, batch: &Batch, x: &Array, heads: usize, rope: &Rope) -> Result<Array> {
        self.rotate(x, heads, rope, &[], batch.positions())
    }

    fn rope_on_grid(&self, x: &Array, heads: usize, rope: &Rope, grid: &[i32]) -> Result<Array> {
        self.rotate(x, heads, rope, rope.sections(), grid)
    }

    fn encoder_attention(&self, inputs: EncoderInputs<'_>, segments: &[usize]) -> Result<Array> {
        encoder::attention(&self.pool, inputs, segments)
    }

    fn padded_encoder_attention(&self, inputs: EncoderInputs<'_>, real: usize) -> Result<Array> {
        encoder::padded_attention(&self.pool, inputs, real)
    }

    fn attention(&self, runs: Runs<'_, '_>, inputs: &AttentionInputs<'_>) -> Result<Array> {
        attention::attention(self, runs, inputs)
    }

    fn cross_attention(
        &self,
        runs: Runs<'_, '_>,
        layer: usize,
        q: &Array,
        spec: &AttentionSpec,
    ) -> Result<Array> {
        attention::cross_attention(self, &runs, layer, q, spec)
    }

    fn convolve(
        &self,
        runs: Runs<'_, '_>,
        index: usize,
        x: &Array,
        layer: &Convolution,
    ) -> Result<Array> {
        recurrent::convolve(&self.pool, runs, index, x, layer)
    }

    fn scan(
        &self,
        runs: Runs<'_, '_>,
        index: usize,
        steps: &[&Array],
        scan: &Scan,
    ) -> Result<Array> {
        recurrent::scan(&self.pool, runs, index, steps, scan)
    }
}
