//! Operations of particular kinds of layers: experts, latent attention, recurrent layers.

use mlx_ffi::{Array, Dtype};

use super::{Absorbed, Activation, ComputeDtype, KernelSet, Ops, host, last_dim, mlx, shape_error};
use crate::batch::Batch;
use crate::experts::{ExpertMatrices, Experts};
use crate::layers::Weight;
use crate::recurrent::{Convolution, Scan};
use crate::shape::{dims, int, ints, rows_cols};
use crate::{Error, Result};

impl Ops {
    /// The matrices of all experts as this kernel set wants them: host kernels read each where it
    /// is, MLX's want one array (a copy).
    ///
    /// # Errors
    /// Matrices of different formats, for MLX.
    pub fn expert_matrices(&self, weights: Vec<Weight>) -> Result<ExpertMatrices> {
        if self.config.kernels == KernelSet::Host {
            return Ok(ExpertMatrices::Separate(weights));
        }
        let stacked = mlx::stack(&weights)?;
        mlx_ffi::eval(&stacked.arrays())?;
        Ok(ExpertMatrices::Stacked(stacked))
    }

    /// `parts` stacks of matrices whose rows take turns in `weight`, as this kernel set wants them:
    /// host kernels read each where it is, MLX's want each by itself (a copy).
    ///
    /// # Errors
    /// Rows that do not divide, or a format that host kernels do not read so.
    pub fn take_turns(&self, weight: &Weight, parts: usize) -> Result<Vec<ExpertMatrices>> {
        let one = |part| {
            if self.config.kernels == KernelSet::Host {
                return Ok(ExpertMatrices::TakingTurns { weight: weight.clone(), part, parts });
            }
            let own = mlx::every_nth_row(weight, part, parts)?;
            mlx_ffi::eval(&own.arrays())?;
            Ok(ExpertMatrices::Stacked(self.matrix(own)?))
        };
        let (rows, _) = weight.shape();
        match (weight, rows.checked_rem(parts)) {
            (Weight::Mxfp4(_), Some(0)) => (0..parts).map(one).collect(),
            _ => Err(Error::Config {
                what: format!("{rows} rows of {parts} matrices in turn that are not MXFP4"),
            }),
        }
    }

    /// Values `part`, `part + parts`, … of a vector parameter, in the type of the files.
    ///
    /// # Errors
    /// A number of values that does not divide.
    pub fn every_nth_value(&self, values: &Array, part: usize, parts: usize) -> Result<Array> {
        let count = values.size();
        if !count.is_multiple_of(parts) || part >= parts {
            return Err(shape_error("every_nth_value", "values", values, format!("{parts} parts")));
        }
        let by_turn = mlx_ffi::ops::reshape(values, &ints([count / parts, parts])?)?;
        let own = mlx_ffi::ops::slice_axis(&by_turn, 1, int(part)?, int(part + 1)?)?;
        let flat =
            mlx_ffi::ops::contiguous(&mlx_ffi::ops::reshape(&own, &ints([count / parts])?)?)?;
        flat.eval()?;
        Ok(flat)
    }

    /// The experts that `logits`, `[tokens, experts]`, choose for each row of `x`,
    /// `[tokens, hidden]`, summed with their weights. Experts that nobody chose are not read.
    ///
    /// # Errors
    /// When the shapes do not match.
    pub fn experts(&self, x: &Array, logits: &Array, layer: &Experts) -> Result<Array> {
        let (tokens, experts) = (rows_cols(x).0, layer.rule().experts);
        if dims(logits) != [tokens, experts] {
            let expected = format!("[{tokens}, {experts}]");
            return Err(shape_error("experts", "logits", logits, expected));
        }
        match self.config.kernels {
            KernelSet::Host => host::experts(self, x, logits, layer),
            KernelSet::Mlx => mlx::experts(x, logits, layer),
        }
    }

    /// Head `h` of each row of `x`, `[tokens, heads · cols]`, with the rows of `weight`,
    /// `[heads · rows, cols]`, that are its own: `[tokens, heads · rows]`.
    ///
    /// # Errors
    /// When the shapes do not match.
    pub fn heads(&self, x: &Array, weight: &Weight, heads: usize) -> Result<Array> {
        let (rows, cols) = weight.shape();
        if heads == 0 || !rows.is_multiple_of(heads) || last_dim(x) != heads * cols {
            let expected = format!("rows of {heads} heads of {cols}");
            return Err(shape_error("heads", "x", x, expected));
        }
        match self.config.kernels {
            KernelSet::Host => host::heads(self, x, weight, heads),
            KernelSet::Mlx => mlx::heads(x, weight, heads),
        }
    }

    /// The first `at` elements of each head of `x`, `[rows, heads · dim]`, and the others.
    ///
    /// # Errors
    /// Heads of fewer elements.
    pub fn split_heads(&self, x: &Array, heads: usize, at: usize) -> Result<[Array; 2]> {
        let (_, width) = rows_cols(x);
        if heads == 0 || !width.is_multiple_of(heads) || !(1..width / heads).contains(&at) {
            let expected = format!("rows of {heads} heads of more than {at}, which is not 0");
            return Err(shape_error("split_heads", "x", x, expected));
        }
        match self.config.kernels {
            KernelSet::Host => host::split_heads(x, heads, at),
            KernelSet::Mlx => mlx::split_heads(x, heads, at),
        }
    }

    /// The heads of `a` and `b`, `[rows, heads · dim]` each, one after the other within each head.
    ///
    /// # Errors
    /// Rows that are not heads, and another number of them.
    pub fn join_heads(&self, a: &Array, b: &Array, heads: usize) -> Result<Array> {
        let ((rows, first), (others, second)) = (rows_cols(a), rows_cols(b));
        if rows != others {
            return Err(shape_error("join_heads", "b", b, format!("{rows} rows")));
        }
        for (array, width) in [(a, first), (b, second)] {
            if heads == 0 || width == 0 || !width.is_multiple_of(heads) {
                let expected = format!("rows of {heads} heads");
                return Err(shape_error("join_heads", "operand", array, expected));
            }
        }
        match self.config.kernels {
            KernelSet::Host => host::join_heads(a, b, heads),
            KernelSet::Mlx => mlx::join_heads(a, b, heads),
        }
    }

    /// The two matrices of absorbed latent attention, made of `kv_b`,
    /// `[heads · (nope + value), latent]`, as stored: from a head's query to the latent,
    /// `[heads · latent, nope]`, and from the latent to a head's value, `[heads · value, latent]`.
    /// Copies.
    ///
    /// # Errors
    /// When the copies cannot be made.
    pub fn absorbed(
        &self,
        kv_b: &Weight,
        heads: usize,
        nope: usize,
        storage: Absorbed,
    ) -> Result<[Weight; 2]> {
        let exact = (self.config.dtype == ComputeDtype::Fp32).then_some(Dtype::Float32);
        let parts = match storage {
            Absorbed::Float => mlx::absorbed(kv_b, heads, nope, exact)?.map(Weight::Dense),
            Absorbed::AsStored => {
                let [keys, values] = mlx::absorbed(kv_b, heads, nope, None)?;
                [mlx::stored_like(keys, kv_b)?, mlx::stored_like(values, kv_b)?]
            }
        };
        for part in &parts {
            mlx_ffi::eval(&part.arrays())?;
        }
        let [keys, values] = parts;
        Ok([self.matrix(keys)?, self.matrix(values)?])
    }

    /// `activation(gate) · x`, shapes equal, or one gate per row, `[rows, 1]`.
    ///
    /// # Errors
    /// Other shapes.
    pub fn gated(&self, gate: &Array, x: &Array, activation: Activation) -> Result<Array> {
        let (rows, width) = rows_cols(x);
        let by_row = dims(gate) == [rows, 1] && width != 1;
        if !by_row && gate.shape() != x.shape() {
            let expected = format!("{:?} or [{rows}, 1]", x.shape());
            return Err(shape_error("gated", "gate", gate, expected));
        }
        match self.config.kernels {
            KernelSet::Host if by_row => host::gated_rows(self, gate, x, activation),
            KernelSet::Host => host::gated(self, gate, x, activation),
            KernelSet::Mlx => mlx::gated(gate, x, activation),
        }
    }

    /// See [`Batch::convolve`].
    pub(crate) fn convolve(
        &self,
        batch: &Batch,
        index: usize,
        x: &Array,
        layer: &Convolution,
    ) -> Result<Array> {
        if last_dim(x) != layer.channels() {
            let expected = format!("rows of {}", layer.channels());
            return Err(shape_error("convolve", "x", x, expected));
        }
        match self.config.kernels {
            KernelSet::Host => host::convolve(self, batch, index, x, layer),
            KernelSet::Mlx => mlx::convolve(batch, index, x, layer),
        }
    }

    /// See [`Batch::scan`].
    pub(crate) fn scan(
        &self,
        batch: &Batch,
        index: usize,
        steps: &[&Array],
        scan: &Scan,
    ) -> Result<Array> {
        let (rows, widths) = (batch.positions().len(), scan.input_widths());
        for (array, width) in steps.iter().zip(&widths) {
            if dims(array) != [rows, *width] {
                return Err(shape_error("scan", "input", array, format!("[{rows}, {width}]")));
            }
        }
        if steps.len() != widths.len() {
            let what = format!("a scan of {} inputs was given {}", widths.len(), steps.len());
            return Err(Error::Config { what });
        }
        match self.config.kernels {
            KernelSet::Host => host::scan(self, batch, index, steps, scan),
            KernelSet::Mlx => mlx::scan(batch, index, steps, scan),
        }
    }
}
