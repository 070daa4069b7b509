//! Matrices of 4-bit floats, and the experts of gpt-oss that are made of them.
//!
//! Its published files hold `NAME_blocks`, `[…, groups, 16]` bytes, and `NAME_scales`, the rows of
//! gate and up taking turns; MLX's hold `NAME.weight` and `NAME.scales`, gate and up apart.

use mlxcel_core::experts::{ExpertMatrices, Experts, RouteRule};
use mlxcel_core::layers::{Mxfp4Weight, Weight};
use mlxcel_core::{Activation, Array};

use super::Weights;
use super::checkpoint::Rows;
use super::experts::ExpertShape;
use crate::{Error, Result};

const GROUP: usize = Mxfp4Weight::GROUP;

impl Weights<'_> {
    /// The experts of a layer, with biases: those of `experts.gate_up_proj_blocks` and
    /// `experts.down_proj_blocks` where the files have such, else the names of `shape` with all
    /// experts in each.
    ///
    /// # Errors
    /// Missing or misshapen tensors, by name, and a rule that cannot choose.
    pub fn biased_experts(
        &self,
        shape: ExpertShape,
        rule: RouteRule,
        activation: Activation,
    ) -> Result<Experts> {
        rule.check().map_err(mlxcel_core::Error::from)?;
        let own = self.at("experts");
        let published = own.has("gate_up_proj_blocks");
        let load = if published { Self::published_experts } else { Self::converted_experts };
        let (matrices, biases) = load(&own, shape, rule.experts)?;
        let experts = Experts::new(matrices, rule, None)?.with_biases(biases)?;
        Ok(experts.with_activation(activation))
    }

    fn published_experts(
        &self,
        shape: ExpertShape,
        experts: usize,
    ) -> Result<([ExpertMatrices; 3], [Array; 3])> {
        let ExpertShape { hidden, inner, .. } = shape;
        let pair = self.blocks("gate_up_proj", Rows::stack(experts, 2 * inner), hidden)?;
        let pair = self.ops().deinterleave(&pair, 2)?;
        let [gate, up] = pair
            .try_into()
            .map_err(|_| Error::config("gate and up of the experts are not a pair"))?;
        let down = self.blocks("down_proj", Rows::stack(experts, hidden), inner)?;
        let down = ExpertMatrices::Stacked(self.ops().matrix(down)?);
        let both = self.expert_bias("gate_up_proj_bias", experts, 2 * inner)?;
        let turn = |part| Ok::<_, Error>(self.ops().deinterleave_values(&both, part, 2)?);
        let bias = |array| Ok::<_, Error>(self.ops().vector(array)?);
        let down_bias = bias(self.expert_bias("down_proj_bias", experts, hidden)?)?;
        Ok(([gate, up, down], [bias(turn(0)?)?, bias(turn(1)?)?, down_bias]))
    }

    fn converted_experts(
        &self,
        shape: ExpertShape,
        experts: usize,
    ) -> Result<([ExpertMatrices; 3], [Array; 3])> {
        let ExpertShape { hidden, inner, names: [gate, up, down] } = shape;
        let stack = |name: &str, rows: usize, cols: usize| {
            let matrix = self.at(name).matrix(Rows::stack(experts, rows), cols)?;
            Ok::<_, Error>(ExpertMatrices::Stacked(matrix))
        };
        let bias = |name: &str, rows: usize| {
            let stored = self.at(name).expert_bias("bias", experts, rows)?;
            Ok::<_, Error>(self.ops().vector(stored)?)
        };
        let matrices =
            [stack(gate, inner, hidden)?, stack(up, inner, hidden)?, stack(down, hidden, inner)?];
        Ok((matrices, [bias(gate, inner)?, bias(up, inner)?, bias(down, hidden)?]))
    }

    /// `[experts, rows]` in the type of the files.
    fn expert_bias(&self, name: &str, experts: usize, rows: usize) -> Result<Array> {
        self.stored_tensor(name, &[experts, rows], Rows::all(experts))
    }

    /// The matrix of `NAME_blocks` and `NAME_scales`.
    fn blocks(&self, name: &str, rows: Rows, cols: usize) -> Result<Weight> {
        let groups = self.groups(cols)?;
        let part = |suffix: &str, shape: &[usize]| {
            self.stored_tensor(&format!("{name}_{suffix}"), shape, rows)
        };
        let codes = part("blocks", &[rows.total, groups, GROUP / 2])?;
        Ok(Weight::Mxfp4(Mxfp4Weight::new(codes, part("scales", &[rows.total, groups])?)?))
    }

    /// The matrix of `weight` and `scales`, as MLX has it.
    pub(super) fn mxfp4(&self, rows: Rows, cols: usize) -> Result<Weight> {
        let groups = self.groups(cols)?;
        let codes = self.stored_tensor("weight", &[rows.total, groups * GROUP / 8], rows)?;
        let scales = self.stored_tensor("scales", &[rows.total, groups], rows)?;
        Ok(Weight::Mxfp4(Mxfp4Weight::new(codes, scales)?))
    }

    fn groups(&self, cols: usize) -> Result<usize> {
        if cols.is_multiple_of(GROUP) {
            return Ok(cols / GROUP);
        }
        let what = format!("{cols} columns cannot be quantised to mxfp4, whose groups are {GROUP}");
        Err(Error::config(what))
    }
}
