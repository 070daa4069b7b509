//! `mistral`: Mistral 7B and its descendants: llama's layout, with a sliding window over every
//! layer where the configuration has one.

use serde::Deserialize;

use super::config::DecoderConfig;
use super::dense::{Attention, Mlp, Model, ProjectionBias};
use crate::Result;
use crate::loading::{Bias, Weights};

/// Nothing: sizes say everything.
#[derive(Debug, Deserialize)]
pub(super) struct MistralConfig {}

pub(super) fn load(w: &Weights, d: &DecoderConfig, _: &MistralConfig) -> Result<Model> {
    let bias = ProjectionBias::all(Bias::None);
    let rope = d.rope.build(d.head_dim()?)?;
    let hidden = d.sizes.hidden_size;
    Model::pre_norm(
        w,
        d,
        |w, layer| Attention::load(w, hidden, d.heads(layer)?, bias, Some(rope.clone())),
        |w, layer| Mlp::load(w, hidden, d.inner(layer)?, Bias::None),
    )
}
