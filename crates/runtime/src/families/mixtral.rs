//! `mixtral`: Mistral's layout with experts in every layer, weighted by the softmax over all experts,
//! normalised over the chosen ones.

use mlxcel_core::experts::RouteRule;
use serde::Deserialize;

use super::config::DecoderConfig;
use super::dense::{Attention, DecoderBlock, Model, ProjectionBias};
use super::moe::Moe;
use crate::Result;
use crate::loading::{Bias, ExpertShape, NormKind, Weights};

#[derive(Debug, Deserialize)]
pub(super) struct Config {
    #[serde(flatten)]
    decoder: DecoderConfig,
    num_experts: usize,
    num_experts_per_tok: usize,
}

pub(super) fn load(w: &Weights, c: &Config) -> Result<Model> {
    let heads = c.decoder.heads()?;
    let s = &c.decoder.sizes;
    let bias = ProjectionBias::all(Bias::None);
    let rope = c.decoder.rope.build(heads.head_dim)?;
    let norm = s.norm(NormKind::Rms)?;
    let hidden = s.hidden_size;
    let inner = s.intermediate_size;
    let shape = ExpertShape { hidden, inner, names: ["w1", "w3", "w2"] };
    let rule = RouteRule::softmax(c.num_experts, c.num_experts_per_tok, true);
    Model::load(w, s, norm, |w, layer| {
        let attention =
            Attention::load(&w.at("self_attn"), hidden, heads, bias, Some(rope.clone()))?
                .windowed(c.decoder.windows.of(layer, true)?)?;
        let moe = Moe::load(&w.at("block_sparse_moe"), shape, rule, None)?;
        DecoderBlock::pre_norm(w, hidden, norm, attention, moe)
    })
}
