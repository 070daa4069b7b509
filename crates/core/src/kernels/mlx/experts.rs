//! Mixtures of experts.

use mlx_ffi::device::{Device, default_device};
use mlx_ffi::ops::{Gather, Orientation, Precision};
use mlx_ffi::{Array, Dtype, ops};

use super::activations::gated_unit;
use super::linear::{unfold, unfolded};
use crate::Result;
use crate::experts::{ExpertMatrices, Experts, GroupLimit, GroupScore, RouteRule, Scores};
use crate::layers::Weight;
use crate::quantized::{affine, mxfp4};
use crate::shape::{int, ints, rows_cols};

/// Pairs of token and expert from which tokens are sorted by expert, so that each expert is read
/// once.
const SORTED_PAIRS: usize = 64;

pub(super) fn experts(x: &Array, logits: &Array, layer: &Experts) -> Result<Array> {
    let rule = layer.rule();
    let (tokens, hidden) = rows_cols(x);
    let active = rule.active;
    let (chosen, weights) = choose(logits, rule, layer.bias())?;
    let pairs = tokens * active;
    let sorted = pairs >= SORTED_PAIRS;
    let y = if sorted {
        let flat = ops::reshape(&chosen, &ints([pairs])?)?;
        let order = ops::argsort(&flat, 0)?;
        let back = ops::argsort(&order, 0)?;
        let token = ops::floor_divide(&order, &uint(active)?)?;
        let x = ops::take(&ops::reshape(x, &ints([tokens, 1, hidden])?)?, &token, 0)?;
        let y = feed_forward(&x, layer, &ops::take(&flat, &order, 0)?, sorted)?;
        ops::take(&y, &back, 0)?
    } else {
        feed_forward(&ops::reshape(x, &ints([tokens, 1, 1, hidden])?)?, layer, &chosen, sorted)?
    };
    let y = ops::reshape(&y, &ints([tokens, active, hidden])?)?;
    let weighted = ops::multiply(&y, &ops::expand_dims(&weights, -1)?)?;
    Ok(ops::astype(&ops::sum(&weighted, -2, false)?, x.dtype())?)
}

fn uint(n: usize) -> Result<Array> {
    let value = u32::try_from(int(n)?).expect("a number below 2^31");
    Ok(Array::from_slice(&[value], &[1])?)
}

/// Experts and weights of each token, `[tokens, active]`.
fn choose(logits: &Array, rule: &RouteRule, bias: Option<&Array>) -> Result<(Array, Array)> {
    let scores = match rule.scores {
        Scores::Softmax => ops::softmax(logits, -1, Precision::Float32)?,
        Scores::Sigmoid => ops::sigmoid(&ops::astype(logits, Dtype::Float32)?)?,
        Scores::SoftmaxOfChosen => logits.clone(),
    };
    let mut ranks = match bias {
        Some(bias) => ops::add(&scores, bias)?,
        None => scores.clone(),
    };
    if let Some(limit) = rule.limit.filter(|limit| limit.active < limit.groups) {
        ranks = drop_groups(&ranks, rule.experts, limit)?;
    }
    let active = int(rule.active)?;
    let order = ops::argpartition(&ops::negative(&ranks)?, active - 1, -1)?;
    let chosen = ops::slice_axis(&order, -1, 0, active)?;
    let mut weights = ops::take_along_axis(&scores, &chosen, -1)?;
    if rule.scores == Scores::SoftmaxOfChosen {
        weights = ops::softmax(&weights, -1, Precision::Float32)?;
    }
    if rule.normalise {
        weights = ops::divide(&weights, &ops::sum(&weights, -1, true)?)?;
    }
    if (rule.scale - 1.0).abs() > f32::EPSILON {
        weights = ops::multiply_scalar(&weights, rule.scale.into())?;
    }
    Ok((chosen, weights))
}

/// Sets the scores of all but the best groups to 0.
fn drop_groups(ranks: &Array, experts: usize, limit: GroupLimit) -> Result<Array> {
    let (tokens, _) = rows_cols(ranks);
    let grouped = ops::reshape(ranks, &ints([tokens, limit.groups, experts / limit.groups])?)?;
    let worth = match limit.score {
        GroupScore::Best => ops::max(&grouped, -1, true)?,
        GroupScore::BestTwo => ops::sum(&ops::topk(&grouped, 2, -1)?, -1, true)?,
    };
    let dropped = int(limit.groups - limit.active)?;
    let order = ops::argpartition(&worth, dropped - 1, -2)?;
    let worst = ops::slice_axis(&order, -2, 0, dropped)?;
    let zero = Array::scalar(0.0, ranks.dtype())?;
    let kept = ops::put_along_axis(&grouped, &worst, &zero, -2)?;
    Ok(ops::reshape(&kept, ranks.shape())?)
}

fn feed_forward(x: &Array, layer: &Experts, chosen: &Array, sorted: bool) -> Result<Array> {
    let products = ExpertProducts {
        experts: layer.rule().experts,
        chosen,
        gather: Gather { lhs: None, rhs: Some(chosen), sorted },
    };
    let [gate, up, down] = layer.matrices();
    let [gate_bias, up_bias, down_bias] = match layer.biases() {
        Some(biases) => biases.each_ref().map(Some),
        None => [None; 3],
    };
    let up = products.linear(x, up, up_bias)?;
    let gate = products.linear(x, gate, gate_bias)?;
    let hidden = gated_unit(&gate, &up, layer.activation())?;
    products.linear(&hidden, down, down_bias)
}

/// Products of tokens with the matrices of their experts.
struct ExpertProducts<'a> {
    /// Number of experts.
    experts: usize,
    /// Expert of each row.
    chosen: &'a Array,
    gather: Gather<'a>,
}

impl ExpertProducts<'_> {
    fn linear(&self, x: &Array, matrices: &ExpertMatrices, bias: Option<&Array>) -> Result<Array> {
        let y = self.product(x, matrices)?;
        let Some(bias) = bias else { return Ok(y) };
        let rows = bias.size() / self.experts;
        let by_expert = ops::reshape(bias, &ints([self.experts, rows])?)?;
        let own = ops::expand_dims(&ops::take(&by_expert, self.chosen, 0)?, -2)?;
        Ok(ops::add(&y, &own)?)
    }

    fn product(&self, x: &Array, matrices: &ExpertMatrices) -> Result<Array> {
        let ExpertMatrices::Stacked(weight) = matrices else {
            unreachable!("`prepare` stacks the experts for MLX");
        };
        Ok(match weight {
            Weight::Dense(array) => {
                let stack = ops::swapaxes(&unfold(array, self.experts)?, -1, -2)?;
                if default_device()? == Device::Cpu {
                    // MLX's CPU backend gathers fp32 matrices only.
                    let wide = ops::astype(x, Dtype::Float32)?;
                    let stack = ops::astype(&stack, Dtype::Float32)?;
                    let y = ops::gather_mm(&wide, &stack, self.gather)?;
                    return Ok(ops::astype(&y, x.dtype())?);
                }
                ops::gather_mm(x, &stack, self.gather)?
            }
            Weight::Affine(w) => {
                let stack = unfolded(affine(w)?, self.experts)?;
                ops::gather_qmm(x, &stack, Orientation::Transposed, self.gather)?
            }
            Weight::Mxfp4(w) => {
                let stack = unfolded(mxfp4(w), self.experts)?;
                ops::gather_qmm(x, &stack, Orientation::Transposed, self.gather)?
            }
        })
    }
}
