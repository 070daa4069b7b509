//! Experts, and products with one matrix per head, of the operations that mlx-lm emits.

use mlx_ffi::device::{Device, default_device};
use mlx_ffi::ops::{Gather, Orientation, Precision, Quantized};
use mlx_ffi::{Array, Dtype, ops};

use super::{affine, gated_unit, in_words, mxfp4, scheme};
use crate::experts::{ExpertMatrices, Experts, GroupLimit, GroupScore, RouteRule, Scores};
use crate::layers::{AffineWeight, Mxfp4Weight, Weight};
use crate::shape::{int, ints, rows_cols};
use crate::{Error, Result};

/// Slots from which tokens are sorted by expert, so that each expert is read once.
const SORTED_SLOTS: usize = 64;

pub(crate) fn experts(x: &Array, logits: &Array, layer: &Experts) -> Result<Array> {
    let rule = layer.rule();
    let ((tokens, hidden), active) = (rows_cols(x), rule.active);
    let (chosen, weights) = choose(logits, rule, layer.bias())?;
    let slots = tokens * active;
    let sorted = slots >= SORTED_SLOTS;
    let y = if sorted {
        let flat = ops::reshape(&chosen, &ints([slots])?)?;
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
    let value = u32::try_from(n).map_err(|_| Error::Config { what: format!("{n} experts") })?;
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
        ranks = forget_groups(&ranks, rule.experts, limit)?;
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
fn forget_groups(ranks: &Array, experts: usize, limit: GroupLimit) -> Result<Array> {
    let (tokens, _) = rows_cols(ranks);
    let grouped = ops::reshape(ranks, &ints([tokens, limit.groups, experts / limit.groups])?)?;
    let worth = match limit.score {
        GroupScore::Best => ops::max(&grouped, -1, true)?,
        GroupScore::BestTwo => ops::sum(&ops::topk(&grouped, 2, -1)?, -1, true)?,
    };
    let forgotten = int(limit.groups - limit.active)?;
    let order = ops::argpartition(&worth, forgotten - 1, -2)?;
    let worst = ops::slice_axis(&order, -2, 0, forgotten)?;
    let zero = Array::scalar(0.0, ranks.dtype())?;
    let kept = ops::put_along_axis(&grouped, &worst, &zero, -2)?;
    Ok(ops::reshape(&kept, ranks.shape())?)
}

fn feed_forward(x: &Array, layer: &Experts, chosen: &Array, sorted: bool) -> Result<Array> {
    let gather = Gather { lhs: None, rhs: Some(chosen), sorted };
    let [gate, up, down] = layer.matrices();
    let experts = layer.rule().experts;
    let biased = |x: &Array, matrices: &ExpertMatrices, part: usize| {
        let y = product(x, matrices, experts, gather)?;
        let Some(biases) = layer.biases() else { return Ok(y) };
        let rows = biases[part].size() / experts;
        let by_expert = ops::reshape(&biases[part], &ints([experts, rows])?)?;
        let own = ops::expand_dims(&ops::take(&by_expert, chosen, 0)?, -2)?;
        Ok::<_, Error>(ops::add(&y, &own)?)
    };
    let up = biased(x, up, 1)?;
    let gate = biased(x, gate, 0)?;
    biased(&gated_unit(&gate, &up, layer.activation())?, down, 2)
}

fn product(
    x: &Array,
    matrices: &ExpertMatrices,
    experts: usize,
    gather: Gather<'_>,
) -> Result<Array> {
    let ExpertMatrices::Stacked(weight) = matrices else {
        return Err(Error::Config { what: "MLX's kernels want the experts stacked".into() });
    };
    Ok(match weight {
        Weight::Dense(array) => {
            let stack = ops::swapaxes(&unfold(array, experts)?, -1, -2)?;
            if default_device()? == Device::Cpu {
                // MLX's CPU backend gathers fp32 matrices only.
                let wide = |x: &Array| ops::astype(x, Dtype::Float32);
                let y = ops::gather_mm(&wide(x)?, &wide(&stack)?, gather)?;
                return Ok(ops::astype(&y, x.dtype())?);
            }
            ops::gather_mm(x, &stack, gather)?
        }
        Weight::Affine(w) => {
            ops::gather_qmm(x, &unfolded(affine(w)?, experts)?, Orientation::Transposed, gather)?
        }
        Weight::Mxfp4(w) => {
            ops::gather_qmm(x, &unfolded(mxfp4(w), experts)?, Orientation::Transposed, gather)?
        }
    })
}

pub(crate) fn heads(x: &Array, weight: &Weight, heads: usize) -> Result<Array> {
    let (tokens, width) = rows_cols(x);
    let by_head = ops::reshape(x, &ints([tokens, heads, width / heads])?)?;
    let by_head = ops::transpose(&by_head, &[1, 0, 2])?;
    let y = match weight {
        Weight::Dense(array) => {
            ops::matmul(&by_head, &ops::swapaxes(&unfold(array, heads)?, -1, -2)?)?
        }
        Weight::Affine(w) => {
            ops::quantized_matmul(&by_head, &unfolded(affine(w)?, heads)?, Orientation::Transposed)?
        }
        Weight::Mxfp4(w) => {
            ops::quantized_matmul(&by_head, &unfolded(mxfp4(w), heads)?, Orientation::Transposed)?
        }
    };
    let rows = ints([tokens, weight.shape().0])?;
    Ok(ops::reshape(&ops::transpose(&y, &[1, 0, 2])?, &rows)?)
}

/// `[parts · rows, cols]` as `[parts, rows, cols]`.
fn unfold(array: &Array, parts: usize) -> Result<Array> {
    let (rows, cols) = rows_cols(array);
    Ok(ops::reshape(array, &ints([parts, rows / parts, cols])?)?)
}

fn unfolded(w: Quantized, parts: usize) -> Result<Quantized> {
    Ok(Quantized {
        weight: unfold(&w.weight, parts)?,
        scales: unfold(&w.scales, parts)?,
        biases: w.biases.map(|biases| unfold(&biases, parts)).transpose()?,
        quantization: w.quantization,
    })
}

/// Rows `part`, `part + parts`, … of an MXFP4 matrix, by themselves.
pub(crate) fn every_nth_row(weight: &Weight, part: usize, parts: usize) -> Result<Weight> {
    let Weight::Mxfp4(w) = weight else {
        return Err(Error::Config { what: "matrices that take turns are MXFP4".into() });
    };
    let w = in_words(w.clone())?;
    let own = |array: &Array| {
        let (rows, cols) = rows_cols(array);
        let by_turn = ops::reshape(array, &ints([rows / parts, parts * cols])?)?;
        let part = ops::slice_axis(&by_turn, 1, int(part * cols)?, int((part + 1) * cols)?)?;
        Ok::<_, Error>(ops::contiguous(&part)?)
    };
    Ok(Weight::Mxfp4(Mxfp4Weight::new(own(&w.codes)?, own(&w.scales)?)?))
}

/// The matrices of `weights` one after the other.
pub(crate) fn stack(weights: &[Weight]) -> Result<Weight> {
    let join = |arrays: Vec<&Array>| Ok::<_, Error>(ops::concatenate(&arrays, 0)?);
    let dense = weights.iter().map(|weight| match weight {
        Weight::Dense(array) => Some(array),
        _ => None,
    });
    if let Some(arrays) = dense.collect::<Option<Vec<_>>>() {
        return Ok(Weight::Dense(join(arrays)?));
    }
    let affine = weights.iter().map(|weight| match weight {
        Weight::Affine(w) => Some(w),
        _ => None,
    });
    let mixed = || Error::Config { what: "experts of different formats".into() };
    let affine: Vec<&AffineWeight> = affine.collect::<Option<_>>().ok_or_else(mixed)?;
    let first = affine.first().ok_or_else(mixed)?;
    let same = |w: &&AffineWeight| (w.bits, w.group_size) == (first.bits, first.group_size);
    if !affine.iter().all(same) {
        return Err(mixed());
    }
    Ok(Weight::Affine(AffineWeight::new(
        join(affine.iter().map(|w| &w.codes).collect())?,
        join(affine.iter().map(|w| &w.scales).collect())?,
        join(affine.iter().map(|w| &w.biases).collect())?,
        first.group_size,
        first.bits,
    )?))
}

/// The parts of [`crate::Ops::absorbed`] as floats, of type `dtype` or that of the scales.
pub(crate) fn absorbed(
    kv_b: &Weight,
    heads: usize,
    nope: usize,
    dtype: Option<Dtype>,
) -> Result<[Array; 2]> {
    let (rows, latent) = kv_b.shape();
    let floats = match kv_b {
        Weight::Dense(array) => array.clone(),
        Weight::Affine(w) => {
            // MLX computes in the type of the scales, whatever the type of the result.
            let dtype = dtype.unwrap_or(w.scales.dtype());
            let stored = Quantized {
                weight: w.codes.clone(),
                scales: ops::astype(&w.scales, dtype)?,
                biases: Some(ops::astype(&w.biases, dtype)?),
                quantization: scheme(w)?,
            };
            ops::dequantize(&stored, None)?
        }
        Weight::Mxfp4(w) => ops::dequantize(&mxfp4(&in_words(w.clone())?), dtype)?,
    };
    let each = rows / heads;
    let by_head = unfold(&floats, heads)?;
    let keys = ops::swapaxes(&ops::slice_axis(&by_head, 1, 0, int(nope)?)?, -1, -2)?;
    let values = ops::slice_axis(&by_head, 1, int(nope)?, int(each)?)?;
    let flat = |part: &Array, rows: usize, cols: usize| {
        ops::reshape(&ops::contiguous(part)?, &ints([heads * rows, cols])?).map_err(Error::from)
    };
    Ok([flat(&keys, latent, nope)?, flat(&values, each - nope, latent)?])
}

/// `floats` in the format of `like`, where its rows divide into groups.
pub(crate) fn stored_like(floats: Array, like: &Weight) -> Result<Weight> {
    let Weight::Affine(w) = like else { return Ok(Weight::Dense(floats)) };
    if !rows_cols(&floats).1.is_multiple_of(w.group_size) {
        return Ok(Weight::Dense(floats));
    }
    let q = ops::quantize(&floats, scheme(w)?)?;
    let missing = || Error::Config { what: "affine weights have biases".into() };
    let biases = q.biases.ok_or_else(missing)?;
    Ok(Weight::Affine(AffineWeight::new(q.weight, q.scales, biases, w.group_size, w.bits)?))
}
