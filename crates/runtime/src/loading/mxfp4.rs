//! Matrices of 4-bit floats, and the experts of gpt-oss that are made of them.
//!
//! Published files hold `NAME_blocks`, `[…, groups, 16]` bytes, and `NAME_scales`, the rows of gate and
//! up interleaved; MLX's hold `NAME.weight` and `NAME.scales`, gate and up separately.

use mlxcel_core::experts::{ExpertMatrices, Experts, RouteRule};
use mlxcel_core::layers::{Mxfp4Weight, Weight};
use mlxcel_core::{Activation, Array};

use super::Weights;
use super::checkpoint::Rows;
use super::experts::ExpertShape;
use crate::{Error, Result, TensorProblem};

const GROUP: usize = Mxfp4Weight::GROUP;

impl Weights<'_> {
    /// The experts of a layer, with biases: those of `experts.gate_up_proj_blocks` and
    /// `experts.down_proj_blocks` where the files have such, else the names of `shape` with all
    /// experts in each.
    ///
    /// # Errors
    /// Missing or misshapen tensors, by name, and a rule that cannot choose.
    pub(crate) fn biased_experts(
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
            .unwrap_or_else(|_| unreachable!("a matrix deinterleaved by 2 is a pair"));
        let down = self.blocks("down_proj", Rows::stack(experts, hidden), inner)?;
        let down = ExpertMatrices::Stacked(self.ops().matrix(down)?);
        let both = self.expert_bias("gate_up_proj_bias", experts, 2 * inner)?;
        let ops = self.ops();
        let gate_bias = ops.vector(ops.deinterleave_values(&both, 0, 2)?)?;
        let up_bias = ops.vector(ops.deinterleave_values(&both, 1, 2)?)?;
        let down_bias = ops.vector(self.expert_bias("down_proj_bias", experts, hidden)?)?;
        Ok(([gate, up, down], [gate_bias, up_bias, down_bias]))
    }

    fn converted_experts(
        &self,
        shape: ExpertShape,
        experts: usize,
    ) -> Result<([ExpertMatrices; 3], [Array; 3])> {
        let ExpertShape { hidden, inner, names: [gate, up, down] } = shape;
        let (gate, gate_bias) = self.at(gate).biased_stack(experts, inner, hidden)?;
        let (up, up_bias) = self.at(up).biased_stack(experts, inner, hidden)?;
        let (down, down_bias) = self.at(down).biased_stack(experts, hidden, inner)?;
        Ok(([gate, up, down], [gate_bias, up_bias, down_bias]))
    }

    /// One matrix of all experts, `[experts, rows, cols]`, and its bias.
    fn biased_stack(
        &self,
        experts: usize,
        rows: usize,
        cols: usize,
    ) -> Result<(ExpertMatrices, Array)> {
        let matrix = self.matrix(Rows::stack(experts, rows), cols)?;
        let bias = self.ops().vector(self.expert_bias("bias", experts, rows)?)?;
        Ok((ExpertMatrices::Stacked(matrix), bias))
    }

    /// `[experts, rows]` in the type of the files.
    fn expert_bias(&self, name: &str, experts: usize, rows: usize) -> Result<Array> {
        self.stored_tensor(name, &[experts, rows], Rows::all(experts))
    }

    /// The matrix of `NAME_blocks` and `NAME_scales`.
    fn blocks(&self, name: &str, rows: Rows, cols: usize) -> Result<Weight> {
        let groups = self.groups(&format!("{name}_blocks"), cols)?;
        let shape = [rows.total, groups, GROUP / 2];
        let codes = self.stored_tensor(&format!("{name}_blocks"), &shape, rows)?;
        let scales = self.stored_tensor(&format!("{name}_scales"), &shape[..2], rows)?;
        Ok(Weight::Mxfp4(Mxfp4Weight::new(codes, scales)?))
    }

    /// The matrix of `weight` and `scales`, as MLX has it.
    pub(super) fn mxfp4(&self, rows: Rows, cols: usize) -> Result<Weight> {
        let groups = self.groups("weight", cols)?;
        let codes = self.stored_tensor("weight", &[rows.total, groups * GROUP / 8], rows)?;
        let scales = self.stored_tensor("scales", &[rows.total, groups], rows)?;
        Ok(Weight::Mxfp4(Mxfp4Weight::new(codes, scales)?))
    }

    fn groups(&self, name: &str, cols: usize) -> Result<usize> {
        if cols.is_multiple_of(GROUP) {
            return Ok(cols / GROUP);
        }
        let problem = TensorProblem::Mxfp4 { columns: cols, group_size: GROUP };
        Err(Error::tensor(&self.path(name), problem))
    }
}
