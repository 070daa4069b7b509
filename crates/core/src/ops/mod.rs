//! Operations of a model: shape checks in front of the kernel set that computes.
//!
//! [`Ops`] has the operations that need no cache; [`crate::Pass`] has those of a sequence. Which
//! kernels run, and on which device MLX runs, are two questions: `MLXCEL_KERNELS=mlx` runs MLX's
//! operations on the CPU, so that a GPU's graph is tested everywhere.

mod caches;
mod heads;
mod rows;
mod vision;

use std::sync::Arc;

use mlx_ffi::Array;
pub use mlxcel_kernels::elementwise::{Glu as Activation, Map};
pub use mlxcel_kernels::matmul::FEW_TOKENS;
use mlxcel_kernels::{Order, Pool};

use crate::config::{ComputeDtype, KernelSet, OpsConfig, Precision};
use crate::experts::Experts;
use crate::kernels::{self, Kernels};
use crate::layers::{Embedding, LayerNorm, Linear, Norm, RmsNorm, Weight};
use crate::shape::{dims, last_dim, rows_cols, shape_error, to_f32};
use crate::{Result, Rope};

/// The operations of a model on one kernel set.
pub struct Ops {
    config: OpsConfig,
    pool: Arc<Pool>,
    kernels: Box<dyn Kernels>,
}

impl Ops {
    /// Starts the thread pool of the host kernels.
    ///
    /// # Errors
    /// A machine without the instruction set of `MLXCEL_ISA`, or threads that cannot be started.
    pub fn new(config: &OpsConfig) -> Result<Self> {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
        let pool = Arc::new(Pool::new(config.threads.unwrap_or(cores))?);
        let kernels = kernels::create(config, &pool, Order::Fastest);
        Ok(Self { config: config.clone(), pool, kernels })
    }

    /// Operations for prefill, on the same threads.
    ///
    /// Host kernels then add up in a fixed order, so that a token's keys, values and output are equal
    /// to the bit wherever the passes over its prompt begin and end. That is slower for a few tokens.
    /// MLX's kernels choose their order themselves.
    #[must_use]
    pub fn for_prefill(&self) -> Self {
        let kernels = kernels::create(&self.config, &self.pool, Order::Fixed);
        Self { config: self.config.clone(), pool: Arc::clone(&self.pool), kernels }
    }

    /// The kernel set that computes.
    #[must_use]
    pub fn kernels(&self) -> KernelSet {
        self.config.kernels
    }

    /// Type of activations and caches.
    #[must_use]
    pub fn dtype(&self) -> ComputeDtype {
        self.config.dtype
    }

    /// Precision of activations in host matrix products.
    #[must_use]
    pub fn precision(&self) -> Precision {
        self.config.precision
    }

    /// The thread pool of the host kernels.
    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// The implementation of the operations.
    pub(crate) fn implementation(&self) -> &dyn Kernels {
        &*self.kernels
    }

    /// Rows `ids` of the table: `[ids, hidden]`.
    ///
    /// # Errors
    /// An id that the table does not have, where the kernel set finds it; otherwise operations that
    /// cannot be computed or added to the graph, as in every operation below.
    pub fn embed(&self, ids: &[i32], table: &Embedding) -> Result<Array> {
        self.kernels.embed(ids, table)
    }

    /// `x · Wᵀ + b` for `x` `[rows, in]`.
    ///
    /// # Errors
    /// An `x` that does not have the matrix's number of columns.
    pub fn linear(&self, x: &Array, layer: &Linear) -> Result<Array> {
        let [y] = self.linears(x, [layer])?;
        Ok(y)
    }

    /// Several projections of one `x`, which are one parallel region on the host.
    ///
    /// # Errors
    /// Errors of [`Self::linear`].
    pub fn linears<const N: usize>(&self, x: &Array, layers: [&Linear; N]) -> Result<[Array; N]> {
        for layer in layers {
            check_columns(x, &layer.weight)?;
        }
        let outputs = self.kernels.linears(x, &layers)?;
        Ok(outputs.try_into().expect("a kernel set returns an output per layer"))
    }

    /// Logits from a tied head: `x · Eᵀ`.
    ///
    /// # Errors
    /// Errors of [`Self::linear`].
    pub fn embedding_logits(&self, x: &Array, table: &Embedding) -> Result<Array> {
        self.linear(x, &Linear { weight: table.weight.clone(), bias: None })
    }

    /// `activation(x · gateᵀ) · (x · upᵀ)`.
    ///
    /// # Errors
    /// Errors of [`Self::linear`].
    pub fn glu(
        &self,
        x: &Array,
        gate: &Linear,
        up: &Linear,
        activation: Activation,
    ) -> Result<Array> {
        check_columns(x, &gate.weight)?;
        check_columns(x, &up.weight)?;
        self.kernels.glu(x, gate, up, activation)
    }

    /// Sum of the experts that `logits`, `[tokens, experts]`, choose for each row of `x`,
    /// `[tokens, hidden]`, with their weights. Experts that no token chose are not read.
    ///
    /// # Errors
    /// Shapes that do not match.
    pub fn experts(&self, x: &Array, logits: &Array, layer: &Experts) -> Result<Array> {
        let (tokens, _) = rows_cols(x);
        let experts = layer.rule().experts;
        if dims(logits) != [tokens, experts] {
            let expected = format!("[{tokens}, {experts}]");
            return Err(shape_error("experts", "logits", logits, expected));
        }
        self.kernels.experts(x, logits, layer)
    }

    /// `function` of every element.
    ///
    /// # Errors
    /// Errors of [`Self::embed`].
    pub fn map(&self, x: &Array, function: Map) -> Result<Array> {
        self.kernels.map(x, function)
    }

    /// `activation(gate) · x`, shapes equal, or one gate per row, `[rows, 1]`.
    ///
    /// # Errors
    /// Other shapes.
    pub fn gated(&self, gate: &Array, x: &Array, activation: Activation) -> Result<Array> {
        let (rows, _) = rows_cols(x);
        if dims(gate) != [rows, 1] && gate.shape() != x.shape() {
            let expected = format!("{:?} or [{rows}, 1]", x.shape());
            return Err(shape_error("gated", "gate", gate, expected));
        }
        self.kernels.gated(gate, x, activation)
    }

    /// `a + b`, shapes equal.
    ///
    /// # Errors
    /// Shapes that differ.
    pub fn add(&self, a: &Array, b: &Array) -> Result<Array> {
        if a.shape() != b.shape() {
            return Err(shape_error("add", "b", b, format!("{:?}", a.shape())));
        }
        self.kernels.add(a, b)
    }

    /// A norm of either kind.
    ///
    /// # Errors
    /// Errors of [`Self::rms_norm`] and [`Self::layer_norm`].
    pub fn norm(&self, x: &Array, norm: &Norm) -> Result<Array> {
        match norm {
            Norm::Rms(norm) => self.rms_norm(x, norm),
            Norm::Layer(norm) => self.layer_norm(x, norm),
        }
    }

    /// `(x − mean) / √(variance + eps) · weight + bias` over the last dimension.
    ///
    /// # Errors
    /// A last dimension that is not the weight's length.
    pub fn layer_norm(&self, x: &Array, norm: &LayerNorm) -> Result<Array> {
        let dim = last_dim(&norm.weight);
        if last_dim(x) != dim {
            return Err(shape_error("layer_norm", "x", x, format!("rows of {dim}")));
        }
        self.kernels.layer_norm(x, norm)
    }

    /// RMS norm over groups of the last dimension.
    ///
    /// # Errors
    /// A last dimension that is no multiple of the weight's length, or that of the group.
    pub fn rms_norm(&self, x: &Array, norm: &RmsNorm) -> Result<Array> {
        let length = last_dim(&norm.weight);
        if length == 0 || !last_dim(x).is_multiple_of(length) {
            return Err(shape_error("rms_norm", "x", x, format!("rows of a multiple of {length}")));
        }
        if norm.group == 0 || !length.is_multiple_of(norm.group) {
            let expected = format!("a multiple of groups of {}", norm.group);
            return Err(shape_error("rms_norm", "weight", &norm.weight, expected));
        }
        self.kernels.rms_norm(x, norm)
    }

    /// Rotates `x`, `[rows, heads · head_dim]`, each row by its coordinates: `positions` is
    /// `[rows, sections of the rope]`.
    ///
    /// # Errors
    /// Shapes that do not match, and a rope without sections.
    pub fn rope_on_grid(
        &self,
        x: &Array,
        heads: usize,
        rope: &Rope,
        positions: &[i32],
    ) -> Result<Array> {
        check_rope(x, heads, rope)?;
        let sections = rope.sections().len();
        if sections == 0 || positions.len() != rows_cols(x).0 * sections {
            let found = positions.len();
            let expected = format!("{sections} coordinates a row, not {found} in all");
            return Err(shape_error("rope_on_grid", "x", x, expected));
        }
        self.kernels.rope_on_grid(x, heads, rope, positions)
    }

    /// Computes the output `x`, `[tokens, width]`, of a layer now where MLX would otherwise keep the
    /// activations and scores of many layers alive. Host kernels have computed it already.
    ///
    /// # Errors
    /// Errors of the computation.
    pub fn eval_layer(&self, x: &Array) -> Result<()> {
        self.kernels.eval_layer(x)
    }

    /// Evaluates `x`; the caches that it depends on are then filled.
    ///
    /// # Errors
    /// Errors of the computation.
    pub fn evaluate(&self, x: &Array) -> Result<()> {
        Ok(x.eval()?)
    }

    /// Evaluates `x` and copies its elements as fp32.
    ///
    /// # Errors
    /// Errors of the computation.
    pub fn to_f32(&self, x: &Array) -> Result<Vec<f32>> {
        to_f32(x)
    }
}

fn check_columns(x: &Array, weight: &Weight) -> Result<()> {
    let (_, cols) = weight.shape();
    if x.ndim() == 2 && last_dim(x) == cols {
        Ok(())
    } else {
        Err(shape_error("linear", "x", x, format!("[rows, {cols}]")))
    }
}

/// Fails unless `x` has rows of `heads` heads that `rope` can rotate.
pub(crate) fn check_rope(x: &Array, heads: usize, rope: &Rope) -> Result<()> {
    let last = last_dim(x);
    if heads == 0 || !last.is_multiple_of(heads) || last / heads < rope.dims() {
        let expected = format!("{heads} heads of at least {} dimensions", rope.dims());
        return Err(shape_error("rope", "x", x, expected));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
