//! Parameters by name and shape, as the kernel set wants them.

use std::cell::RefCell;

use mlxcel_core::layers::{AffineWeight, Embedding, LayerNorm, Linear, Norm, RmsNorm, Weight};
use mlxcel_core::{Array, Ops};

use super::Checkpoint;
use super::checkpoint::Rows;
use super::quantization::{Quantization, Scheme};
use crate::progress::Progress;
use crate::{Error, Result};

/// Whether a projection has a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bias {
    /// It has none.
    None,
    /// It must have one.
    Required,
}

impl Bias {
    /// Required when the configuration says so.
    #[must_use]
    pub fn when(configured: bool) -> Self {
        if configured { Self::Required } else { Self::None }
    }
}

/// What kind of norm a family has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// Root mean square.
    Rms,
    /// Root mean square whose files hold the weight minus 1.
    RmsPlusOne,
    /// Mean and variance, with a bias.
    Layer,
}

/// A kind of norm and what it adds to the variance or mean square.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormRule {
    /// What is computed.
    pub kind: NormKind,
    /// Added under the root.
    pub eps: f32,
}

/// A checkpoint's tensors below a path such as `model.layers.3.mlp`.
pub struct Weights<'a> {
    source: &'a Source<'a>,
    prefix: String,
}

/// What all views of one checkpoint share.
pub struct Source<'a> {
    checkpoint: &'a Checkpoint,
    quantization: Quantization,
    ops: &'a Ops,
    progress: RefCell<&'a mut dyn Progress>,
}

impl<'a> Source<'a> {
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

    fn path(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_owned() } else { format!("{}.{name}", self.prefix) }
    }

    /// Whether `name` is among the tensors.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.source.checkpoint.has(&self.path(name))
    }

    /// Builds layers `{name}.0` to `{name}.{count − 1}`, reporting progress.
    ///
    /// # Errors
    /// What `build` fails with.
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
    /// As [`Self::linear`].
    pub fn fused_linear<const N: usize>(
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

    /// The same where the files hold the matrix as `[in, out]` (GPT-2): a transposed copy.
    ///
    /// # Errors
    /// As [`Self::linear`].
    pub fn transposed_linear<const N: usize>(
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
    /// As [`Self::linear`].
    pub fn embedding(&self, name: &str, vocab: usize, hidden: usize) -> Result<Embedding> {
        Ok(Embedding { weight: self.at(name).matrix(Rows::all(vocab), hidden)? })
    }

    /// The output head, or `None` where the embedding serves as one.
    ///
    /// A configuration that does not say (`tied` is `None`) means what the files hold.
    ///
    /// # Errors
    /// As [`Self::linear`].
    pub fn lm_head(
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
    /// As [`Self::linear`].
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
    /// As [`Self::linear`], and a rule of another kind.
    pub fn rms_norm(&self, name: &str, dim: usize, rule: NormRule) -> Result<RmsNorm> {
        let layer = self.at(name);
        let weight = match rule.kind {
            NormKind::Rms => layer.vector("weight", Rows::all(dim))?,
            NormKind::RmsPlusOne => {
                let stored = layer.stored_vector("weight", Rows::all(dim))?;
                self.source.ops.shifted_vector(stored, 1.0)?
            }
            NormKind::Layer => return Err(Error::config(format!("{name} is no RMS norm"))),
        };
        Ok(RmsNorm { weight, group: dim, eps: rule.eps })
    }

    /// The elements of the vector `name` in fp32.
    ///
    /// # Errors
    /// As [`Self::linear`].
    pub fn values(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        Ok(self.source.ops.to_f32(&self.stored_vector(name, Rows::all(len))?)?)
    }

    fn bias(&self, bias: Bias, rows: Rows) -> Result<Option<Array>> {
        match bias {
            Bias::None => Ok(None),
            Bias::Required => self.vector("bias", rows).map(Some),
        }
    }

    /// What the tensors are prepared for.
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
        let (name, shape) = (self.path("weight"), [rows.total, cols]);
        Ok(Weight::Dense(self.source.checkpoint.tensor(&name, &shape, rows)?))
    }

    fn affine(&self, rows: Rows, cols: usize, group_size: usize, bits: usize) -> Result<Weight> {
        let known = [2, 3, 4, 5, 6, 8].contains(&bits) && [32, 64, 128].contains(&group_size);
        if !known || !cols.is_multiple_of(group_size) || !(cols * bits).is_multiple_of(32) {
            return Err(Error::config(format!(
                "{}: {cols} columns cannot be quantised to {bits} bits in groups of {group_size}",
                self.prefix
            )));
        }
        let part = |name: &str, width: usize| {
            self.source.checkpoint.tensor(&self.path(name), &[rows.total, width], rows)
        };
        let codes = part("weight", cols * bits / 32)?;
        let groups = cols / group_size;
        Ok(Weight::Affine(AffineWeight::new(
            codes,
            part("scales", groups)?,
            part("biases", groups)?,
            group_size,
            bits,
        )?))
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
    parts.try_into().map_err(|_| Error::config("a fused projection has no parts"))
}
