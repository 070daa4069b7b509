//! `qwen3_moe`: Qwen 3 with experts: qwen3's attention; the experts with the highest softmax.

use mlxcel_core::experts::RouteRule;
use serde::Deserialize;

use super::config::DecoderConfig;
use super::dense::{DecoderBlock, FeedForward, Mlp, Model, ProjectionBias};
use super::moe::{Moe, NAMES};
use super::qwen3::attention;
use crate::Result;
use crate::loading::{Bias, ExpertShape, NormKind, Weights};

#[derive(Debug, Deserialize)]
pub(super) struct Qwen3MoeConfig {
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    norm_topk_prob: bool,
}

fn feed_forward(
    w: &Weights,
    d: &DecoderConfig,
    c: &Qwen3MoeConfig,
    layer: usize,
) -> Result<Box<dyn FeedForward>> {
    let hidden = d.sizes.hidden_size;
    let Some(mixture) = d.experts(layer)? else {
        return Ok(Box::new(Mlp::load(w, hidden, d.inner(layer)?, Bias::None)?));
    };
    let rule = RouteRule::softmax(mixture.experts, mixture.active, c.norm_topk_prob);
    let shape = ExpertShape { hidden, inner: mixture.inner, names: NAMES };
    Ok(Box::new(Moe::load(w, shape, rule, None)?))
}

pub(super) fn load(w: &Weights, d: &DecoderConfig, c: &Qwen3MoeConfig) -> Result<Model> {
    let norm = d.sizes.norm(NormKind::Rms)?;
    let rope = d.rope.build(d.head_dim()?)?;
    let bias = ProjectionBias::all(Bias::when(c.attention_bias));
    Model::load(w, &d.sizes, norm, |w, layer| {
        let attention = attention(&w.at("self_attn"), d, d.heads(layer)?, bias, &rope)?;
        let mlp = feed_forward(&w.at("mlp"), d, c, layer)?;
        DecoderBlock::pre_norm(w, d.sizes.hidden_size, norm, attention, mlp)
    })
}
