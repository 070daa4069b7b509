//! `gpt_oss`: a window over every other layer, learnt sinks in every softmax, experts with biases and
//! a clamped gate, weighted by the softmax of the chosen ones' logits.

use std::sync::Arc;

use mlxcel_core::Activation;
use mlxcel_core::experts::{RouteRule, Scores};
use serde::Deserialize;

use super::config::{DecoderConfig, RopeDefaults};
use super::dense::{Attention, DecoderBlock, Model, ProjectionBias};
use super::moe::{Moe, NAMES};
use crate::loading::{Bias, ExpertShape, NormKind, Weights};
use crate::{Error, Result};

/// Defaults of the family's class.
const ROPE: RopeDefaults = RopeDefaults { theta: 150_000.0, traditional: false, partial: 1.0 };

#[derive(Debug, Deserialize)]
pub(super) struct Config {
    #[serde(flatten)]
    decoder: DecoderConfig,
    attention_bias: Option<bool>,
    num_local_experts: usize,
    num_experts_per_tok: usize,
    swiglu_limit: Option<f32>,
}

fn attention(w: &Weights, c: &Config, layer: usize) -> Result<Attention> {
    let heads = c.decoder.heads()?;
    let bias = ProjectionBias::all(Bias::when(c.attention_bias.unwrap_or(true)));
    let rope = c.decoder.rope.build_or(heads.head_dim, ROPE)?;
    let plain = Attention::load(w, c.decoder.sizes.hidden_size, heads, bias, Some(rope))?;
    let sinks: Arc<[f32]> = w.values("sinks", heads.query_heads)?.into();
    let spec = plain.spec.with_sinks(sinks)?;
    Attention { spec, ..plain }.windowed(c.decoder.windows.of(layer, layer.is_multiple_of(2))?)
}

fn mlp(w: &Weights, c: &Config) -> Result<Moe> {
    let sizes = &c.decoder.sizes;
    let hidden = sizes.hidden_size;
    let inner = sizes.intermediate_size;
    let shape = ExpertShape { hidden, inner, names: NAMES };
    let rule = RouteRule {
        scores: Scores::SoftmaxOfChosen,
        ..RouteRule::softmax(c.num_local_experts, c.num_experts_per_tok, false)
    };
    let experts = w.biased_experts(shape, rule, Activation::ClampedSwish)?;
    let gate = w.linear("router", hidden, rule.experts, Bias::Required)?;
    Ok(Moe { gate, experts, shared_experts: None })
}

pub(super) fn load(w: &Weights, c: &Config) -> Result<Model> {
    if let Some(limit) = c.swiglu_limit.filter(|limit| (limit - 7.0).abs() > f32::EPSILON) {
        return Err(Error::config(format!("swiglu_limit is {limit} (supported: 7)")));
    }
    let norm = c.decoder.sizes.norm(NormKind::Rms)?;
    Model::load(w, &c.decoder.sizes, norm, |w, layer| {
        let attention = attention(&w.at("self_attn"), c, layer)?;
        DecoderBlock::pre_norm(
            w,
            c.decoder.sizes.hidden_size,
            norm,
            attention,
            mlp(&w.at("mlp"), c)?,
        )
    })
}
