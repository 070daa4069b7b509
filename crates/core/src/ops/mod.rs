//! Every operation of a model, with one dispatch point each.
//!
//! [`Ops`] chooses between two kernel sets, not between devices: `host` runs `mlxcel-kernels` over
//! the memory of MLX's arrays, at once, activations in fp32; `mlx` emits the MLX operations that
//! mlx-lm emits, activations in the checkpoint's type, which are nodes of MLX's graph until they are
//! evaluated. `MLXCEL_KERNELS=mlx` runs the latter on the CPU, so that what a GPU would run is tested
//! everywhere.

mod host;
mod kinds;
mod mlx;
mod vision;

use std::ops::Range;
use std::sync::Arc;

use mlx_ffi::device::{Device, default_device};
use mlx_ffi::{Array, Dtype};
pub use mlxcel_estimator::ComputeDtype;
pub use mlxcel_kernels::elementwise::{Glu as Activation, Map};
use mlxcel_kernels::matmul::Sums;
pub use mlxcel_kernels::matmul::{FEW_TOKENS, Precision};
use mlxcel_kernels::{Order, Pool};

use crate::attention::AttentionSpec;
use crate::batch::Batch;
use crate::layers::{Embedding, LayerNorm, Linear, Norm, RmsNorm, Weight};
use crate::shape::{dims, int, rows_cols};
use crate::{Error, Result, Rope};

/// Rows from which [`Ops::settle`] computes at once: below, activations are small and waiting
/// for each layer would cost time.
const SETTLED_TOKENS: usize = 32;

/// Which kernels run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelSet {
    /// Rust kernels on the CPU.
    Host,
    /// MLX's own operations on MLX's default device.
    Mlx,
}

impl KernelSet {
    /// `MLXCEL_KERNELS` (`host` or `mlx`); without it, `mlx` when MLX has a GPU, else `host`.
    ///
    /// # Errors
    /// Any other word.
    pub fn from_env() -> Result<Self> {
        match std::env::var("MLXCEL_KERNELS").as_deref() {
            Ok("host") => Ok(Self::Host),
            Ok("mlx") => Ok(Self::Mlx),
            Ok("") | Err(_) if Device::Gpu.is_available()? => Ok(Self::Mlx),
            Ok("") | Err(_) => Ok(Self::Host),
            Ok(other) => Err(Error::UnknownWord {
                what: "MLXCEL_KERNELS",
                found: other.to_owned(),
                known: "host, mlx",
            }),
        }
    }
}

/// How [`Ops::absorbed`] stores what it makes of a quantised matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absorbed {
    /// As floats.
    Float,
    /// Quantised anew in the same format, as mlx-lm does for DeepSeek V3.
    AsStored,
}

/// How [`Ops`] computes.
#[derive(Clone, Debug)]
pub struct OpsConfig {
    /// Which kernels run.
    pub kernels: KernelSet,
    /// CPU threads of the host kernels; `None` is all cores.
    pub threads: Option<usize>,
    /// Activations of host matrix products.
    pub precision: Precision,
    /// Activations and caches.
    pub dtype: ComputeDtype,
}

/// The operations of a model on one kernel set.
pub struct Ops {
    config: OpsConfig,
    pool: Arc<Pool>,
    order: Order,
}

impl Ops {
    /// Starts the thread pool of the host kernels.
    ///
    /// # Errors
    /// When the machine lacks what `MLXCEL_ISA` asks for, or threads cannot be started.
    pub fn new(config: &OpsConfig) -> Result<Self> {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
        let pool = Pool::new(config.threads.unwrap_or(cores))?;
        Ok(Self { config: config.clone(), pool: Arc::new(pool), order: Order::Fastest })
    }

    /// The same for reading prompts, on the same threads: with host kernels, a token's keys, values
    /// and output are then the same to the bit wherever the passes over its prompt begin and end.
    /// For a few tokens it is slower. MLX's kernels choose their order themselves.
    #[must_use]
    pub fn for_prompts(&self) -> Self {
        let (config, pool) = (self.config.clone(), Arc::clone(&self.pool));
        Self { config, pool, order: Order::Fixed }
    }

    /// Which kernels run.
    #[must_use]
    pub fn kernels(&self) -> KernelSet {
        self.config.kernels
    }

    /// What activations and caches are computed in.
    #[must_use]
    pub fn dtype(&self) -> ComputeDtype {
        self.config.dtype
    }

    /// How host matrix products treat activations.
    #[must_use]
    pub fn precision(&self) -> Precision {
        self.config.precision
    }

    /// In which order host kernels add up.
    pub(crate) fn order(&self) -> Order {
        self.order
    }

    /// How host matrix products are summed.
    pub(crate) fn sums(&self) -> Sums {
        Sums { precision: self.config.precision, order: self.order }
    }

    /// The thread pool of the host kernels.
    #[must_use]
    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// A vector parameter (norm weight, bias) as this kernel set wants it.
    ///
    /// # Errors
    /// When the conversion cannot be built.
    pub fn vector(&self, array: Array) -> Result<Array> {
        match self.config.kernels {
            KernelSet::Host => as_dtype(array, Dtype::Float32),
            KernelSet::Mlx => self.float(array),
        }
    }

    /// A vector parameter plus `value`, in the type that [`Self::vector`] gives it.
    ///
    /// # Errors
    /// As [`Self::vector`].
    pub fn shifted_vector(&self, array: Array, value: f64) -> Result<Array> {
        Ok(mlx_ffi::ops::add_scalar(&self.vector(array)?, value)?)
    }

    /// The columns `columns` of a dense matrix, as rows: a copy, made at once.
    ///
    /// # Errors
    /// Columns that the matrix does not have.
    pub fn transposed(&self, matrix: &Array, columns: Range<usize>) -> Result<Array> {
        let part = mlx_ffi::ops::slice_axis(matrix, 1, int(columns.start)?, int(columns.end)?)?;
        let rows = mlx_ffi::ops::contiguous(&mlx_ffi::ops::swapaxes(&part, 0, 1)?)?;
        rows.eval()?;
        Ok(rows)
    }

    /// A matrix parameter as this kernel set wants it: host kernels read any storage type.
    ///
    /// # Errors
    /// When the conversion cannot be built.
    pub fn matrix(&self, weight: Weight) -> Result<Weight> {
        if self.config.kernels == KernelSet::Host {
            return Ok(weight);
        }
        Ok(match weight {
            Weight::Dense(array) => Weight::Dense(self.float(array)?),
            Weight::Affine(mut w) => {
                w.scales = self.float(w.scales)?;
                w.biases = self.float(w.biases)?;
                Weight::Affine(w)
            }
            Weight::Mxfp4(w) => Weight::Mxfp4(mlx::in_words(w)?),
        })
    }

    fn float(&self, array: Array) -> Result<Array> {
        match self.config.dtype {
            ComputeDtype::Checkpoint => Ok(array),
            ComputeDtype::Fp32 => as_dtype(array, Dtype::Float32),
        }
    }

    /// Rows of the embedding table: `[tokens]` ids to `[tokens, hidden]`.
    ///
    /// # Errors
    /// When it cannot be computed or added to the graph, as in every operation below.
    pub fn embed(&self, tokens: &Array, table: &Embedding) -> Result<Array> {
        match self.config.kernels {
            KernelSet::Host => host::embed(tokens, table),
            KernelSet::Mlx => mlx::embed(tokens, table, self.config.dtype),
        }
    }

    /// `x · Wᵀ + b` for `x` `[rows, in]`.
    ///
    /// # Errors
    /// When `x` does not have the matrix's number of columns.
    pub fn linear(&self, x: &Array, layer: &Linear) -> Result<Array> {
        let [y] = self.linears(x, [layer])?;
        Ok(y)
    }

    /// Several projections of the same `x`: one parallel region on the host.
    ///
    /// # Errors
    /// As [`Self::linear`].
    pub fn linears<const N: usize>(&self, x: &Array, layers: [&Linear; N]) -> Result<[Array; N]> {
        for layer in layers {
            check_columns(x, &layer.weight)?;
        }
        match self.config.kernels {
            KernelSet::Host => host::linears(self, x, layers),
            KernelSet::Mlx => mlx::linears(x, layers),
        }
    }

    /// Logits from a tied head: `x · Eᵀ`.
    ///
    /// # Errors
    /// As [`Self::linear`].
    pub fn embedding_logits(&self, x: &Array, table: &Embedding) -> Result<Array> {
        self.linear(x, &Linear { weight: table.weight.clone(), bias: None })
    }

    /// `activation(x · gateᵀ) · (x · upᵀ)`.
    ///
    /// # Errors
    /// As [`Self::linear`].
    pub fn glu(
        &self,
        x: &Array,
        gate: &Linear,
        up: &Linear,
        activation: Activation,
    ) -> Result<Array> {
        check_columns(x, &gate.weight)?;
        check_columns(x, &up.weight)?;
        match self.config.kernels {
            KernelSet::Host => host::glu(self, x, (gate, up), activation),
            KernelSet::Mlx => mlx::glu(x, (gate, up), activation),
        }
    }

    /// `function` of every element.
    ///
    /// # Errors
    /// As [`Self::embed`].
    pub fn map(&self, x: &Array, function: Map) -> Result<Array> {
        match self.config.kernels {
            KernelSet::Host => host::map(self, x, function),
            KernelSet::Mlx => mlx::map(x, function),
        }
    }

    /// A norm of either kind.
    ///
    /// # Errors
    /// As [`Self::rms_norm`] and [`Self::layer_norm`].
    pub fn norm(&self, x: &Array, norm: &Norm) -> Result<Array> {
        match norm {
            Norm::Rms(norm) => self.rms_norm(x, norm),
            Norm::Layer(norm) => self.layer_norm(x, norm),
        }
    }

    /// `(x − mean) / √(variance + eps) · weight + bias` over the last dimension.
    ///
    /// # Errors
    /// When the last dimension is not the weight's length.
    pub fn layer_norm(&self, x: &Array, norm: &LayerNorm) -> Result<Array> {
        let dim = last_dim(&norm.weight);
        if last_dim(x) != dim {
            return Err(shape_error("layer_norm", "x", x, format!("rows of {dim}")));
        }
        match self.config.kernels {
            KernelSet::Host => host::layer_norm(self, x, norm),
            KernelSet::Mlx => mlx::layer_norm(x, norm),
        }
    }

    /// RMS norm over groups of the last dimension.
    ///
    /// # Errors
    /// When the last dimension is no multiple of the weight's length, or that of the group.
    pub fn rms_norm(&self, x: &Array, norm: &RmsNorm) -> Result<Array> {
        let (last, length) = (last_dim(x), last_dim(&norm.weight));
        if length == 0 || !last.is_multiple_of(length) {
            return Err(shape_error("rms_norm", "x", x, format!("rows of a multiple of {length}")));
        }
        if norm.group == 0 || !length.is_multiple_of(norm.group) {
            let expected = format!("a multiple of groups of {}", norm.group);
            return Err(shape_error("rms_norm", "weight", &norm.weight, expected));
        }
        match self.config.kernels {
            KernelSet::Host => host::rms_norm(self, x, norm),
            KernelSet::Mlx => mlx::rms_norm(x, norm),
        }
    }

    /// `a + b`, shapes equal.
    ///
    /// # Errors
    /// When shapes differ.
    pub fn add(&self, a: &Array, b: &Array) -> Result<Array> {
        if a.shape() != b.shape() {
            return Err(shape_error("add", "b", b, format!("{:?}", a.shape())));
        }
        match self.config.kernels {
            KernelSet::Host => host::add(self, a, b),
            KernelSet::Mlx => Ok(mlx_ffi::ops::add(a, b)?),
        }
    }

    /// See [`Batch::rope`].
    pub(crate) fn rope(
        &self,
        batch: &Batch,
        x: &Array,
        heads: usize,
        rope: &Rope,
    ) -> Result<Array> {
        check_heads(x, heads, rope)?;
        match self.config.kernels {
            KernelSet::Host => host::rope(self, x, heads, rope, (batch.positions(), &[])),
            KernelSet::Mlx => mlx::rope(batch, x, heads, rope),
        }
    }

    /// Rotates `x`, `[rows, heads · head_dim]`, each row by its coordinates: `positions` is
    /// `[rows, sections of the rope]`.
    ///
    /// # Errors
    /// When shapes do not match, and a rope without sections.
    pub fn rope_on_grid(
        &self,
        x: &Array,
        heads: usize,
        rope: &Rope,
        positions: &Arc<[i32]>,
    ) -> Result<Array> {
        check_heads(x, heads, rope)?;
        let (sections, rows) = (rope.sections(), rows_cols(x).0);
        if sections.is_empty() || positions.len() != rows * sections.len() {
            let found = positions.len();
            let expected = format!("{} coordinates a row, not {found} in all", sections.len());
            return Err(shape_error("rope_on_grid", "x", x, expected));
        }
        match self.config.kernels {
            KernelSet::Host => host::rope(self, x, heads, rope, (positions, sections)),
            KernelSet::Mlx => mlx::rope_on_grid(x, heads, rope, positions),
        }
    }

    /// See [`Batch::attention`]; `qkv` are the queries, keys and values.
    pub(crate) fn attention(
        &self,
        batch: &Batch,
        layer: usize,
        qkv: [&Array; 3],
        spec: &AttentionSpec,
    ) -> Result<Array> {
        let layout = spec.layout();
        let value_dim = if layout.latent { layout.key_dim } else { layout.value_dim };
        let widths = [
            spec.query_heads() * layout.key_dim,
            layout.kv_heads * layout.key_dim,
            layout.kv_heads * value_dim,
        ];
        for ((array, width), name) in qkv.iter().zip(widths).zip(["q", "k", "v"]) {
            if last_dim(array) != width {
                return Err(shape_error("attention", name, array, format!("rows of {width}")));
            }
        }
        match self.config.kernels {
            KernelSet::Host => host::attention(self, batch, layer, qkv, spec),
            KernelSet::Mlx => mlx::attention(batch, layer, qkv, spec),
        }
    }

    /// The rows `rows` of `x` `[n, dim]`, in that order.
    ///
    /// # Errors
    /// A row that `x` does not have.
    pub fn rows(&self, x: &Array, rows: &[usize]) -> Result<Array> {
        let (n, _) = rows_cols(x);
        if rows.len() == n && rows.iter().enumerate().all(|(i, r)| i == *r) {
            return Ok(x.clone());
        }
        if rows.iter().any(|row| *row >= n) {
            return Err(shape_error("rows", "x", x, format!("rows {rows:?}")));
        }
        match self.config.kernels {
            KernelSet::Host => host::take(x, rows),
            KernelSet::Mlx => mlx::take(x, rows),
        }
    }

    /// With MLX's kernels on the CPU, computes a wide `x`, `[tokens, width]`, at once, so that only
    /// one layer's activations and scores are alive: MLX dispatches up to a hundred nodes ahead of
    /// its thread and allocates the outputs of all of them. Otherwise does nothing: host kernels have
    /// computed it already, and a GPU does better with the whole graph.
    ///
    /// # Errors
    /// Whatever fails while computing.
    pub fn settle(&self, x: &Array) -> Result<()> {
        let wide = self.config.kernels == KernelSet::Mlx && rows_cols(x).0 >= SETTLED_TOKENS;
        if wide && default_device()? == Device::Cpu { self.evaluate(x) } else { Ok(()) }
    }

    /// Evaluates `x` and discards it: its caches are then filled.
    ///
    /// # Errors
    /// Whatever fails while computing.
    pub fn evaluate(&self, x: &Array) -> Result<()> {
        Ok(x.eval()?)
    }

    /// Evaluates `x` and copies its elements as fp32.
    ///
    /// # Errors
    /// Whatever fails while computing.
    pub fn to_f32(&self, x: &Array) -> Result<Vec<f32>> {
        Ok(as_dtype(x.clone(), Dtype::Float32)?.to_vec()?)
    }
}

fn as_dtype(array: Array, dtype: Dtype) -> Result<Array> {
    if array.dtype() == dtype { Ok(array) } else { Ok(mlx_ffi::ops::astype(&array, dtype)?) }
}

fn last_dim(array: &Array) -> usize {
    rows_cols(array).1
}

fn check_columns(x: &Array, weight: &Weight) -> Result<()> {
    let (_, cols) = weight.shape();
    if x.ndim() == 2 && last_dim(x) == cols {
        Ok(())
    } else {
        Err(shape_error("linear", "x", x, format!("[rows, {cols}]")))
    }
}

fn check_heads(x: &Array, heads: usize, rope: &Rope) -> Result<()> {
    let last = last_dim(x);
    if heads == 0 || !last.is_multiple_of(heads) || last / heads < rope.dims() {
        let expected = format!("{heads} heads of at least {} dimensions", rope.dims());
        return Err(shape_error("rope", "x", x, expected));
    }
    Ok(())
}

fn shape_error(op: &'static str, operand: &'static str, array: &Array, expected: String) -> Error {
    Error::Shape { op, operand, found: dims(array), expected }
}

#[cfg(test)]
mod tests;
