//! `mixtral`: Mistral's layout with experts in every layer, weighted by the softmax over all experts,
//! normalised over the chosen ones.

use mlxcel_core::experts::RouteRule;
use serde::Deserialize;

use super::config::DecoderConfig;
use super::dense::{Attention, DecoderBlock, Model, ProjectionBias};
use super::moe::Moe;
use crate::Result;
use crate::loading::{Bias, ExpertShape, NormKind, Weights};

/// Nothing: sizes say everything.
#[derive(Debug, Deserialize)]
pub(super) struct MixtralConfig {}

pub(super) fn load(w: &Weights, d: &DecoderConfig, _: &MixtralConfig) -> Result<Model> {
    let bias = ProjectionBias::all(Bias::None);
    let rope = d.rope.build(d.head_dim()?)?;
    let norm = d.sizes.norm(NormKind::Rms)?;
    let hidden = d.sizes.hidden_size;
    Model::load(w, &d.sizes, norm, |w, layer| {
        let rope = Some(rope.clone());
        let attention = Attention::load(&w.at("self_attn"), hidden, d.heads(layer)?, bias, rope)?;
        let mixture = d.mixture(layer)?;
        let rule = RouteRule::softmax(mixture.experts, mixture.active, true);
        let shape = ExpertShape { hidden, inner: mixture.inner, names: ["w1", "w3", "w2"] };
        let moe = Moe::load(&w.at("block_sparse_moe"), shape, rule, None)?;
        DecoderBlock::pre_norm(w, hidden, norm, attention, moe)
    })
}
