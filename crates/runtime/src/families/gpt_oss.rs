//! `gpt_oss`: a window over every other layer, learnt sinks in every softmax, experts with biases and
//! a clamped gate, weighted by the softmax of the chosen ones' logits.

use std::sync::Arc;

use mlxcel_core::Activation;
use mlxcel_core::experts::{RouteRule, Scores};
use serde::Deserialize;

use super::config::{DecoderConfig, Mixture, RopeDefaults};
use super::dense::{Attention, DecoderBlock, Model, ProjectionBias};
use super::moe::{Moe, NAMES};
use crate::loading::{Bias, ExpertShape, NormKind, Weights};
use crate::{Error, Result};

/// Defaults of the family's class.
const ROPE: RopeDefaults = RopeDefaults { theta: 150_000.0, traditional: false, partial: 1.0 };

#[derive(Debug, Deserialize)]
pub(super) struct GptOssConfig {
    attention_bias: Option<bool>,
    swiglu_limit: Option<f32>,
}

fn attention(w: &Weights, d: &DecoderConfig, c: &GptOssConfig, layer: usize) -> Result<Attention> {
    let heads = d.heads(layer)?;
    let bias = ProjectionBias::all(Bias::when(c.attention_bias.unwrap_or(true)));
    let rope = d.rope.build_or(heads.head_dim, ROPE)?;
    let plain = Attention::load(w, d.sizes.hidden_size, heads, bias, Some(rope))?;
    let sinks: Arc<[f32]> = w.values("sinks", heads.query_heads)?.into();
    let spec = plain.spec.with_sinks(sinks)?;
    Ok(Attention { spec, ..plain })
}

fn mlp(w: &Weights, hidden: usize, mixture: Mixture) -> Result<Moe> {
    let shape = ExpertShape { hidden, inner: mixture.inner, names: NAMES };
    let rule = RouteRule {
        scores: Scores::SoftmaxOfChosen,
        ..RouteRule::softmax(mixture.experts, mixture.active, false)
    };
    let experts = w.biased_experts(shape, rule, Activation::ClampedSwish)?;
    let gate = w.linear("router", hidden, rule.experts, Bias::Required)?;
    Ok(Moe { gate, experts, shared_experts: None })
}

pub(super) fn load(w: &Weights, d: &DecoderConfig, c: &GptOssConfig) -> Result<Model> {
    if let Some(limit) = c.swiglu_limit.filter(|limit| (limit - 7.0).abs() > f32::EPSILON) {
        return Err(Error::unsupported_value("swiglu_limit", limit, "7"));
    }
    let norm = d.sizes.norm(NormKind::Rms)?;
    let hidden = d.sizes.hidden_size;
    Model::load(w, &d.sizes, norm, |w, layer| {
        let attention = attention(&w.at("self_attn"), d, c, layer)?;
        let mlp = mlp(&w.at("mlp"), hidden, d.mixture(layer)?)?;
        DecoderBlock::pre_norm(w, hidden, norm, attention, mlp)
    })
}
