//! The matrices of a layer's experts, stacked or one by one, and those of latent attention.

use std::ops::Range;

use mlxcel_core::AbsorbedStorage;
use mlxcel_core::experts::{ExpertMatrices, Experts, RouteRule};
use mlxcel_core::layers::Weight;

use super::Weights;
use super::checkpoint::Rows;
use crate::Result;

/// Sizes and names of the experts of a layer.
#[derive(Clone, Copy, Debug)]
pub struct ExpertShape {
    /// Elements of their input and output.
    pub hidden: usize,
    /// Elements between their matrices.
    pub inner: usize,
    /// Names of gate, up and down where each expert has its own tensors.
    pub names: [&'static str; 3],
}

/// A tensor `[experts, rows, cols]`.
#[derive(Clone, Copy)]
struct FusedExperts<'a> {
    name: &'a str,
    experts: usize,
    rows: usize,
    cols: usize,
}

/// Sizes of the matrices of latent attention.
#[derive(Clone, Copy, Debug)]
pub struct LatentShape {
    /// Query heads.
    pub heads: usize,
    /// Elements of the latent.
    pub latent: usize,
    /// Elements of a query without its rotary part.
    pub nope: usize,
    /// Elements of a value.
    pub value: usize,
}

impl Weights<'_> {
    /// The experts of a layer: `switch_mlp.{gate,up,down}_proj` with all of them in each (as MLX's
    /// checkpoints have them), or `experts.N.` and the names that `shape` gives.
    ///
    /// `bias` names the bias on the scores for the choice, where there is one.
    ///
    /// # Errors
    /// Missing or misshapen tensors, by name, and a rule that cannot choose.
    pub fn experts(
        &self,
        shape: ExpertShape,
        rule: RouteRule,
        bias: Option<&str>,
    ) -> Result<Experts> {
        rule.check().map_err(mlxcel_core::Error::from)?;
        let ExpertShape { hidden, inner, names } = shape;
        let [gate, up, down] = names;
        let matrices = [
            self.expert_matrices("gate_proj", gate, rule.experts, inner, hidden)?,
            self.expert_matrices("up_proj", up, rule.experts, inner, hidden)?,
            self.expert_matrices("down_proj", down, rule.experts, hidden, inner)?,
        ];
        let bias = match bias {
            Some(name) => Some(self.vector(name, Rows::all(rule.experts))?),
            None => None,
        };
        Ok(Experts::new(matrices, rule, bias)?)
    }

    /// The experts of files that hold all matrices in two tensors, not quantised: gate and up one after
    /// the other, `[experts, 2 · inner, hidden]`, and down, `[experts, hidden, inner]`. Files without
    /// the first are read by [`Self::experts`].
    ///
    /// # Errors
    /// Errors of [`Self::experts`].
    pub(crate) fn fused_experts(
        &self,
        shape: ExpertShape,
        rule: RouteRule,
        [gate_up, down]: [&str; 2],
    ) -> Result<Experts> {
        if !self.has(gate_up) {
            return self.experts(shape, rule, None);
        }
        rule.check().map_err(mlxcel_core::Error::from)?;
        let experts = rule.experts;
        let hidden = shape.hidden;
        let inner = shape.inner;
        let gate_up = FusedExperts { name: gate_up, experts, rows: 2 * inner, cols: hidden };
        let down = FusedExperts { name: down, experts, rows: hidden, cols: inner };
        let matrices = [
            self.expert_rows(gate_up, 0..inner)?,
            self.expert_rows(gate_up, inner..2 * inner)?,
            self.expert_rows(down, 0..hidden)?,
        ];
        Ok(Experts::new(matrices, rule, None)?)
    }

    /// Rows `range` of each expert's matrix.
    fn expert_rows(&self, tensor: FusedExperts<'_>, range: Range<usize>) -> Result<ExpertMatrices> {
        let FusedExperts { name, experts, rows, cols } = tensor;
        let all = Rows::stack(experts, rows);
        let mut matrices = Vec::with_capacity(experts);
        for expert in 0..experts {
            let own = Rows { first: expert * rows + range.start, count: range.len(), ..all };
            let stored = self.stored_tensor(name, &[all.total, cols], own)?;
            matrices.push(self.ops().matrix(Weight::Dense(stored))?);
        }
        Ok(self.ops().expert_matrices(matrices)?)
    }

    fn expert_matrices(
        &self,
        stacked: &str,
        separate: &str,
        experts: usize,
        rows: usize,
        cols: usize,
    ) -> Result<ExpertMatrices> {
        let stack = self.at(&format!("switch_mlp.{stacked}"));
        if stack.has("weight") {
            return Ok(ExpertMatrices::Stacked(stack.matrix(Rows::stack(experts, rows), cols)?));
        }
        let mut matrices = Vec::with_capacity(experts);
        for expert in 0..experts {
            let own = self.at(&format!("experts.{expert}.{separate}"));
            matrices.push(own.matrix(Rows::all(rows), cols)?);
        }
        Ok(self.ops().expert_matrices(matrices)?)
    }

    /// The matrices of absorbed latent attention, from a head's query to the latent and from the
    /// latent to a head's value: `embed_q` and `unembed_out` where the files hold them (as MLX's
    /// newer checkpoints do), else made of `kv_b_proj`.
    ///
    /// # Errors
    /// Missing or misshapen tensors, by name.
    pub(crate) fn latent_matrices(
        &self,
        shape: LatentShape,
        storage: AbsorbedStorage,
    ) -> Result<[Weight; 2]> {
        let LatentShape { heads, latent, nope, value } = shape;
        let embed = self.at("embed_q");
        let unembed = self.at("unembed_out");
        if embed.has("weight") {
            return Ok([
                embed.matrix(Rows::stack(heads, latent), nope)?,
                unembed.matrix(Rows::stack(heads, value), latent)?,
            ]);
        }
        let rows = Rows::all(heads * (nope + value));
        let stored = self.at("kv_b_proj").stored_matrix(rows, latent)?;
        Ok(self.ops().absorbed(&stored, heads, nope, storage)?)
    }
}
