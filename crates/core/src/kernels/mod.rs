//! The two kernel sets behind one trait.
//!
//! `host` runs `mlxcel-kernels` over the memory of MLX's arrays, at once, activations in fp32; `mlx`
//! emits the MLX operations that mlx-lm emits, activations in the checkpoint's type, as nodes of MLX's
//! graph until they are evaluated. [`create`] is the only place that chooses between them. Callers
//! ([`crate::Ops`], [`crate::Pass`]) have checked shapes.

mod host;
mod mlx;

use std::sync::Arc;

use mlx_ffi::{Array, Dtype};
use mlxcel_estimator::KvMode;
use mlxcel_kernels::elementwise::{Glu as Activation, Map};
use mlxcel_kernels::matmul::Sums;
use mlxcel_kernels::{Order, Pool};

use crate::attention::{AttentionSpec, LayerLayout};
use crate::batch::Batch;
use crate::cache::SequenceCache;
use crate::config::{KernelSet, OpsConfig};
use crate::experts::Experts;
use crate::layers::{Embedding, LayerNorm, Linear, RmsNorm, Weight};
use crate::recurrent::{Convolution, Scan};
use crate::{Result, Rope};

/// Creates the kernel set of `config`; host kernels run on `pool` and add up in `order`.
pub(crate) fn create(config: &OpsConfig, pool: &Arc<Pool>, order: Order) -> Box<dyn Kernels> {
    match config.kernels {
        KernelSet::Host => {
            let sums = Sums { precision: config.precision, order };
            Box::new(host::HostKernels { pool: Arc::clone(pool), sums, dtype: config.dtype })
        }
        KernelSet::Mlx => Box::new(mlx::MlxKernels { dtype: config.dtype }),
    }
}

/// Form in which a kernel set reads a model's parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ParameterLayout {
    /// Type of vectors; `None` is that of the checkpoint.
    pub(crate) vectors: Option<Dtype>,
    /// Type of floats in matrices; `None` is that of the checkpoint.
    pub(crate) matrices: Option<Dtype>,
    /// Form of matrices.
    pub(crate) form: MatrixForm,
}

/// Form in which a kernel set reads matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MatrixForm {
    /// Each where the files hold it, interleaved rows included.
    InPlace,
    /// MXFP4 codes in 32-bit words, a layer's experts in one array.
    Packed,
}

/// Queries, keys and values of one attention layer in a pass.
pub(crate) struct AttentionInputs<'a> {
    /// Layer, counted over those with a KV cache.
    pub(crate) layer: usize,
    /// `[total tokens, query_heads · key_dim]`.
    pub(crate) q: &'a Array,
    /// `[total tokens, kv_heads · key_dim]`.
    pub(crate) k: &'a Array,
    /// `[total tokens, kv_heads · value_dim]`; the keys again where values are part of them.
    pub(crate) v: &'a Array,
    pub(crate) spec: &'a AttentionSpec,
}

/// Queries, keys and values of an encoder layer, `[rows, heads · head_dim]` each.
#[derive(Clone, Copy)]
pub(crate) struct EncoderInputs<'a> {
    pub(crate) q: &'a Array,
    pub(crate) k: &'a Array,
    pub(crate) v: &'a Array,
    pub(crate) heads: usize,
}

impl<'a> EncoderInputs<'a> {
    /// Queries, keys and values.
    fn arrays(self) -> [&'a Array; 3] {
        [self.q, self.k, self.v]
    }
}

/// A pass's batch and the cache of each of its runs.
pub(crate) struct Runs<'a, 'c> {
    pub(crate) batch: &'a Batch,
    pub(crate) caches: &'a mut [&'c mut SequenceCache],
}

/// Operations of a model on one kernel set. [`crate::Ops`] and [`crate::Pass`] document them, and
/// check shapes before they call.
pub(crate) trait Kernels {
    /// Form in which parameters are read.
    fn parameters(&self) -> ParameterLayout;

    /// Type of activations that are multiplied by `weight`.
    fn activation_dtype(&self, weight: &Weight) -> Dtype;

    /// Computes the activations of a layer now where that bounds memory.
    fn eval_layer(&self, x: &Array) -> Result<()>;

    /// An empty cache.
    fn new_cache(&self, layout: &[LayerLayout], mode: KvMode) -> Result<SequenceCache>;

    fn embed(&self, ids: &[i32], table: &Embedding) -> Result<Array>;
    fn linears(&self, x: &Array, layers: &[&Linear]) -> Result<Vec<Array>>;
    fn linear_per_head(&self, x: &Array, weight: &Weight, heads: usize) -> Result<Array>;
    fn glu(&self, x: &Array, gate: &Linear, up: &Linear, activation: Activation) -> Result<Array>;
    fn experts(&self, x: &Array, logits: &Array, layer: &Experts) -> Result<Array>;

    fn map(&self, x: &Array, function: Map) -> Result<Array>;
    fn add(&self, a: &Array, b: &Array) -> Result<Array>;
    fn gated(&self, gate: &Array, x: &Array, activation: Activation) -> Result<Array>;
    fn layer_norm(&self, x: &Array, norm: &LayerNorm) -> Result<Array>;
    fn rms_norm(&self, x: &Array, norm: &RmsNorm) -> Result<Array>;

    fn take_rows(&self, x: &Array, rows: &[usize]) -> Result<Array>;
    fn split_heads(&self, x: &Array, heads: usize, at: usize) -> Result<[Array; 2]>;
    fn join_heads(&self, a: &Array, b: &Array, heads: usize) -> Result<Array>;

    fn rope(&self, batch: &Batch, x: &Array, heads: usize, rope: &Rope) -> Result<Array>;
    fn rope_on_grid(&self, x: &Array, heads: usize, rope: &Rope, grid: &[i32]) -> Result<Array>;

    fn encoder_attention(&self, inputs: EncoderInputs<'_>, segments: &[usize]) -> Result<Array>;
    fn padded_encoder_attention(&self, inputs: EncoderInputs<'_>, real: usize) -> Result<Array>;

    fn attention(&self, runs: Runs<'_, '_>, inputs: &AttentionInputs<'_>) -> Result<Array>;
    fn cross_attention(
        &self,
        runs: Runs<'_, '_>,
        layer: usize,
        q: &Array,
        spec: &AttentionSpec,
    ) -> Result<Array>;
    fn convolve(
        &self,
        runs: Runs<'_, '_>,
        index: usize,
        x: &Array,
        layer: &Convolution,
    ) -> Result<Array>;
    fn scan(
        &self,
        runs: Runs<'_, '_>,
        index: usize,
        steps: &[&Array],
        scan: &Scan,
    ) -> Result<Array>;
}
