//! `qwen3_moe`: Qwen 3 with experts: qwen3's attention; the experts with the highest softmax.

use mlxcel_core::experts::RouteRule;
use serde::Deserialize;

use super::config::DecoderConfig;
use super::dense::{Attention, DecoderBlock, FeedForward, Mlp, Model, ProjectionBias};
use super::moe::{Moe, NAMES};
use crate::Result;
use crate::loading::{Bias, ExpertShape, NormKind, Weights};

#[derive(Debug, Deserialize)]
pub(super) struct Config {
    #[serde(flatten)]
    decoder: DecoderConfig,
    #[serde(default)]
    attention_bias: bool,
    num_experts: usize,
    num_experts_per_tok: usize,
    moe_intermediate_size: usize,
    #[serde(default)]
    norm_topk_prob: bool,
    decoder_sparse_step: Option<usize>,
    #[serde(default)]
    mlp_only_layers: Vec<usize>,
}

impl Config {
    /// Returns true if layer `layer` has experts.
    fn is_sparse(&self, layer: usize) -> bool {
        let step = self.decoder_sparse_step.unwrap_or(1).max(1);
        self.num_experts > 0
            && !self.mlp_only_layers.contains(&layer)
            && (layer + 1).is_multiple_of(step)
    }
}

fn feed_forward(w: &Weights, c: &Config, layer: usize) -> Result<Box<dyn FeedForward>> {
    if !c.is_sparse(layer) {
        return Ok(Box::new(Mlp::load(w, &c.decoder.sizes, Bias::None)?));
    }
    let hidden = c.decoder.sizes.hidden_size;
    let inner = c.moe_intermediate_size;
    let rule = RouteRule::softmax(c.num_experts, c.num_experts_per_tok, c.norm_topk_prob);
    Ok(Box::new(Moe::load(w, ExpertShape { hidden, inner, names: NAMES }, rule, None)?))
}

fn attention(w: &Weights, c: &Config, layer: usize) -> Result<Attention> {
    let heads = c.decoder.heads()?;
    let norm = c.decoder.sizes.norm(NormKind::Rms)?;
    let bias = ProjectionBias::all(Bias::when(c.attention_bias));
    let rope = c.decoder.rope.build(heads.head_dim)?;
    let plain = Attention::load(w, c.decoder.sizes.hidden_size, heads, bias, Some(rope))?;
    let q_norm = w.rms_norm("q_norm", heads.head_dim, norm)?;
    let k_norm = w.rms_norm("k_norm", heads.head_dim, norm)?;
    let normed = Attention { qk_norm: Some((q_norm, k_norm)), ..plain };
    normed.windowed(c.decoder.windows.opt_in_where(layer, true)?)
}

pub(super) fn load(w: &Weights, c: &Config) -> Result<Model> {
    let norm = c.decoder.sizes.norm(NormKind::Rms)?;
    Model::load(w, &c.decoder.sizes, norm, |w, layer| {
        let attention = attention(&w.at("self_attn"), c, layer)?;
        let mlp = feed_forward(&w.at("mlp"), c, layer)?;
        DecoderBlock::pre_norm(w, c.decoder.sizes.hidden_size, norm, attention, mlp)
    })
}
