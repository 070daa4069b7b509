//! Parameters by name and shape, in the form that the kernel set reads.

use std::cell::RefCell;

use mlxcel_core::layers::{AffineWeight, Embedding, LayerNorm, Linear, Norm, RmsNorm, Weight};
use mlxcel_core::{Array, Ops};

use super::Checkpoint;
use super::checkpoint::Rows;
use super::quantization::{Quantization, Scheme};
use crate::progress::Progress;
use crate::{Error, Result, TensorProblem};

/// Presence of a projection's bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bias {
    /// No bias.
    None,
    /// A bias, which must be in the files.
    Required,
}

impl Bias {
    /// [`Self::Required`] if the configuration asks for a bias.
    #[must_use]
    pub fn when(configured: bool) -> Self {
        if configured { Self::Required } else { Self::None }
    }
}

/// Kind of a norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// Root mean square.
    Rms,
    /// Root mean square whose files hold the weight minus 1.
    RmsPlusOne,
    /// Mean and variance, with a bias.
    Layer,
}

/// Kind of a norm and its epsilon.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormRule {
    /// Kind of the norm.
    pub kind: NormKind,
    /// Added under the root.
    pub eps: f32,
}

/// A checkpoint's tensors below a path such as `model.layers.3.mlp`.
pub struct Weights<'a> {
    source: &'a WeightSource<'a>,
    prefix: String,
}

/// A checkpoint and the operations that its tensors are prepared for.
pub struct WeightSource<'a> {
    checkpoint: &'a Checkpoint,
    quantization: Quantization,
    ops: &'a Ops,
    progress: RefCell<&'a mut dyn Progress>,
}

impl<'a> WeightSource<'a> {
    /// Reads the quantisation of the checkpoint.
    ///
    /// # Errors
    /// A quantisation that is neither MLX's affine format nor MXFP4.
    pub fn new(
        checkpoint: &'a Checkpoint,
        ops: &'a Ops,
        progress: &'a mut dyn Progress,
    ) -> Result<Self> {
        let quantization = Quantization::from_config(checkpoint.config())?;
        Ok(Self { checkpoint, quantization, ops, progress: RefCell::new(progress) })
    }

    /// The view of all tensors.
    #[must_use]
    pub fn root(&'a self) -> Weights<'a> {
        Weights { source: self, prefix: String::new() }
    }
}

impl<'a> Weights<'a> {
    /// The tensors below `name`.
    #[must_use]
    pub fn at(&self, name: &str) -> Self {
        Self { source: self.source, prefix: self.path(name) }
    }

    /// All tensors of the checkpoint.
    #[must_use]
    pub fn root(&self) -> Self {
        self.source.root()
    }

    /// The tensors below `path`, which may be empty, of the whole checkpoint.
    #[must_use]
    pub fn below(&self, path: &str) -> Self {
        if path.is_empty() { self.root() } else { self.at(path) }
    }

    pub(super) fn path(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_owned() } else { format!("{}.{name}", self.prefix) }
    }

    /// Returns true if `name` is among the tensors.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.source.checkpoint.has(&self.path(name))
    }

    /// Builds layers `{name}.0` to `{name}.{count − 1}`, reporting progress.
    ///
    /// # Errors
    /// Errors of `build`.
    pub fn layers<T>(
        &self,
        name: &str,
        count: usize,
        build: impl Fn(&Weights<'a>, usize) -> Result<T>,
    ) -> Result<Vec<T>> {
        let mut layers = Vec::with_capacity(count);
        for i in 0..count {
            layers.push(build(&self.at(&format!("{name}.{i}")), i)?);
            self.source.progress.borrow_mut().loading(i + 1, count);
        }
        Ok(layers)
    }

    /// A projection from `cols` to `rows` dimensions, dense or quantised as the files have it.
    ///
    /// # Errors
    /// Missing or misshapen tensors, by name.
    pub fn linear(&self, name: &str, cols: usize, rows: usize, bias: Bias) -> Result<Linear> {
        let [layer] = self.fused_linear(name, cols, [rows], bias)?;
        Ok(layer)
    }

    /// Projections that the files hold stacked in one matrix: row ranges of it, without a copy.
    ///
    /// # Errors
    /// Errors of [`Self::linear`].
    pub(crate) fn fused_linear<const N: usize>(
        &self,
        name: &str,
        cols: usize,
        sizes: [usize; N],
        bias: Bias,
    ) -> Result<[Linear; N]> {
        let layer = self.at(name);
        stacked(sizes, |rows| {
            Ok(Linear { weight: layer.matrix(rows, cols)?, bias: layer.bias(bias, rows)? })
        })
    }

    /// Projections that the files hold stacked in one matrix as `[in, out]` (GPT-2): transposed copies.
    ///
    /// # Errors
    /// Errors of [`Self::linear`].
    pub(crate) fn transposed_linear<const N: usize>(
        &self,
        name: &str,
        cols: usize,
        sizes: [usize; N],
        bias: Bias,
    ) -> Result<[Linear; N]> {
        let layer = self.at(name);
        let total = sizes.iter().sum();
        let shape = [cols, total];
        let path = layer.path("weight");
        let stored = self.source.checkpoint.tensor(&path, &shape, Rows::all(cols))?;
        stacked(sizes, |rows| {
            let range = rows.first..rows.first + rows.count;
            let weight = Weight::Dense(self.source.ops.transposed(&stored, range)?);
            Ok(Linear { weight: self.source.ops.matrix(weight)?, bias: layer.bias(bias, rows)? })
        })
    }

    /// A token embedding table.
    ///
    /// # Errors
    /// Errors of [`Self::linear`].
    pub fn embedding(&self, name: &str, vocab: usize, hidden: usize) -> Result<Embedding> {
        Ok(Embedding { weight: self.at(name).matrix(Rows::all(vocab), hidden)? })
    }

    /// The output head, or `None` where the embedding serves as one.
    ///
    /// Without an entry in the configuration (`tied` is `None`) the files decide.
    ///
    /// # Errors
    /// Errors of [`Self::linear`].
    pub(crate) fn lm_head(
        &self,
        tied: Option<bool>,
        hidden: usize,
        vocab: usize,
    ) -> Result<Option<Linear>> {
        let tied = tied.unwrap_or_else(|| !self.has("lm_head.weight"));
        if tied { Ok(None) } else { self.linear("lm_head", hidden, vocab, Bias::None).map(Some) }
    }

    /// A norm over `dim` dimensions.
    ///
    /// # Errors
    /// Errors of [`Self::linear`].
    pub fn norm(&self, name: &str, dim: usize, rule: NormRule) -> Result<Norm> {
        if rule.kind != NormKind::Layer {
            return self.rms_norm(name, dim, rule).map(Norm::Rms);
        }
        let layer = self.at(name);
        let weight = layer.vector("weight", Rows::all(dim))?;
        let bias = layer.bias(Bias::Required, Rows::all(dim))?;
        Ok(Norm::Layer(LayerNorm { weight, bias, eps: rule.eps }))
    }

    /// An RMS norm over `dim` dimensions.
    ///
    /// # Errors
    /// Errors of [`Self::linear`].
    ///
    /// # Panics
    /// A rule of another kind.
    pub fn rms_norm(&self, name: &str, dim: usize, rule: NormRule) -> Result<RmsNorm> {
        let layer = self.at(name);
        let weight = match rule.kind {
            NormKind::Rms => layer.vector("weight", Rows::all(dim))?,
            NormKind::RmsPlusOne => {
                let stored = layer.stored_vector("weight", Rows::all(dim))?;
                self.source.ops.shifted_vector(stored, 1.0)?
            }
            NormKind::Layer => unreachable!("families ask for RMS norms with a rule of that kind"),
        };
        Ok(RmsNorm { weight, group: dim, eps: rule.eps })
    }

    /// The elements of the vector `name` in fp32.
    ///
    /// # Errors
    /// Errors of [`Self::linear`].
    pub fn values(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        Ok(self.source.ops.to_f32(&self.stored_vector(name, Rows::all(len))?)?)
    }

    fn bias(&self, bias: Bias, rows: Rows) -> Result<Option<Array>> {
        match bias {
            Bias::None => Ok(None),
            Bias::Required => self.vector("bias", rows).map(Some),
        }
    }

    /// The operations that the tensors are prepared for.
    pub(super) fn ops(&self) -> &Ops {
        self.source.ops
    }

    pub(super) fn vector(&self, name: &str, rows: Rows) -> Result<Array> {
        Ok(self.source.ops.vector(self.stored_vector(name, rows)?)?)
    }

    /// The tensor `name` in the type of the files.
    pub(super) fn stored_tensor(&self, name: &str, shape: &[usize], rows: Rows) -> Result<Array> {
        self.source.checkpoint.tensor(&self.path(name), shape, rows)
    }

    fn stored_vector(&self, name: &str, rows: Rows) -> Result<Array> {
        self.source.checkpoint.tensor(&self.path(name), &[rows.total], rows)
    }

    pub(super) fn matrix(&self, rows: Rows, cols: usize) -> Result<Weight> {
        Ok(self.source.ops.matrix(self.stored_matrix(rows, cols)?)?)
    }

    /// The matrix in the types of the files.
    pub(super) fn stored_matrix(&self, rows: Rows, cols: usize) -> Result<Weight> {
        if self.has("scales") {
            return match self.source.quantization.scheme(&self.prefix)? {
                Scheme::Affine { group_size, bits } => self.affine(rows, cols, group_size, bits),
                Scheme::Mxfp4 => self.mxfp4(rows, cols),
            };
        }
        let name = self.path("weight");
        let shape = [rows.total, cols];
        Ok(Weight::Dense(self.source.checkpoint.tensor(&name, &shape, rows)?))
    }

    fn affine(&self, rows: Rows, cols: usize, group_size: usize, bits: usize) -> Result<Weight> {
        let known = [2, 3, 4, 5, 6, 8].contains(&bits) && [32, 64, 128].contains(&group_size);
        if !known || !cols.is_multiple_of(group_size) || !(cols * bits).is_multiple_of(32) {
            let problem = TensorProblem::Affine { columns: cols, bits, group_size };
            return Err(Error::tensor(&self.path("weight"), problem));
        }
        let groups = [rows.total, cols / group_size];
        let codes = self.stored_tensor("weight", &[rows.total, cols * bits / 32], rows)?;
        let scales = self.stored_tensor("scales", &groups, rows)?;
        let biases = self.stored_tensor("biases", &groups, rows)?;
        Ok(Weight::Affine(AffineWeight::new(codes, scales, biases, group_size, bits)?))
    }
}

/// Calls `part` with the row range of each of `sizes`, stacked in this order.
fn stacked<const N: usize>(
    sizes: [usize; N],
    part: impl Fn(Rows) -> Result<Linear>,
) -> Result<[Linear; N]> {
    let total = sizes.iter().sum();
    let mut first = 0;
    let mut parts = Vec::with_capacity(N);
    for count in sizes {
        parts.push(part(Rows { first, count, total, parts: None })?);
        first += count;
    }
    Ok(parts.try_into().unwrap_or_else(|_| unreachable!("each of the N sizes pushed one part")))
}
