//! The matrices of a layer's experts, stacked or one by one, and those of latent attention.

use mlxcel_core::AbsorbedStorage;
use mlxcel_core::experts::{ExpertMatrices, Experts, RouteRule};
use mlxcel_core::layers::Weight;

use super::Weights;
use super::checkpoint::Rows;
use crate::Result;

/// What the experts of a layer are called and how large they are.
#[derive(Clone, Copy, Debug)]
pub struct ExpertShape {
    /// Elements of their input and output.
    pub hidden: usize,
    /// Elements between their matrices.
    pub inner: usize,
    /// What gate, up and down are called where each expert has tensors of its own.
    pub names: [&'static str; 3],
}

impl Weights<'_> {
    /// The experts of a layer: `switch_mlp.{gate,up,down}_proj` with all of them in each (as MLX's
    /// checkpoints have them), or `experts.N.` and the names that `shape` gives.
    ///
    /// `bias` names the vector that is added to the scores for the choice, where there is one.
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
            self.expert_matrices("gate_proj", gate, rule.experts, (inner, hidden))?,
            self.expert_matrices("up_proj", up, rule.experts, (inner, hidden))?,
            self.expert_matrices("down_proj", down, rule.experts, (hidden, inner))?,
        ];
        let bias = match bias {
            Some(name) => Some(self.vector(name, Rows::all(rule.experts))?),
            None => None,
        };
        Ok(Experts::new(matrices, rule, bias)?)
    }

    /// The same of files that hold the matrices of all experts in two tensors, not quantised: gate
    /// and up one after the other, `[experts, 2 · inner, hidden]`, and down, `[experts, hidden, inner]`;
    /// where they lack the first, as [`Self::experts`].
    ///
    /// # Errors
    /// As [`Self::experts`].
    pub fn fused_experts(
        &self,
        shape: ExpertShape,
        rule: RouteRule,
        [gate_up, down]: [&str; 2],
    ) -> Result<Experts> {
        if !self.has(gate_up) {
            return self.experts(shape, rule, None);
        }
        rule.check().map_err(mlxcel_core::Error::from)?;
        let (experts, hidden, inner) = (rule.experts, shape.hidden, shape.inner);
        let part = |name: &str, (first, count): (usize, usize), [rows, cols]: [usize; 2]| {
            let each = (0..experts).map(|expert| {
                let all = Rows::stack(experts, rows);
                let range = Rows { first: expert * rows + first, count, ..all };
                let stored = self.stored_tensor(name, &[all.total, cols], range)?;
                Ok(self.ops().matrix(Weight::Dense(stored))?)
            });
            Ok::<_, crate::Error>(self.ops().expert_matrices(each.collect::<Result<_>>()?)?)
        };
        let matrices = [
            part(gate_up, (0, inner), [2 * inner, hidden])?,
            part(gate_up, (inner, inner), [2 * inner, hidden])?,
            part(down, (0, hidden), [hidden, inner])?,
        ];
        Ok(Experts::new(matrices, rule, None)?)
    }

    fn expert_matrices(
        &self,
        stacked: &str,
        separate: &str,
        experts: usize,
        (rows, cols): (usize, usize),
    ) -> Result<ExpertMatrices> {
        let stack = self.at(&format!("switch_mlp.{stacked}"));
        if stack.has("weight") {
            return Ok(ExpertMatrices::Stacked(stack.matrix(Rows::stack(experts, rows), cols)?));
        }
        let one = |expert| self.at(&format!("experts.{expert}.{separate}"));
        let each = (0..experts).map(|expert| one(expert).matrix(Rows::all(rows), cols));
        Ok(self.ops().expert_matrices(each.collect::<Result<_>>()?)?)
    }

    /// The matrices of absorbed latent attention, from a head's query to the latent and from the
    /// latent to a head's value: `embed_q` and `unembed_out` where the files hold them (as MLX's
    /// newer checkpoints do), else made of `kv_b_proj`.
    ///
    /// # Errors
    /// Missing or misshapen tensors, by name.
    pub fn latent_matrices(
        &self,
        heads: usize,
        latent: usize,
        (nope, value): (usize, usize),
        storage: AbsorbedStorage,
    ) -> Result<[Weight; 2]> {
        let (embed, unembed) = (self.at("embed_q"), self.at("unembed_out"));
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
