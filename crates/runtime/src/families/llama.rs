//! `llama`: Llama 2 and 3, SmolLM, TinyLlama, and the many checkpoints that share their layout.

use serde::Deserialize;

use super::config::DecoderConfig;
use super::dense::{Attention, Mlp, Model, ProjectionBias};
use crate::Result;
use crate::loading::{Bias, Weights};

#[derive(Debug, Deserialize)]
pub(super) struct LlamaConfig {
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
}

pub(super) fn load(w: &Weights, d: &DecoderConfig, c: &LlamaConfig) -> Result<Model> {
    let bias = ProjectionBias::all(Bias::when(c.attention_bias));
    let rope = d.rope.build(d.head_dim()?)?;
    let hidden = d.sizes.hidden_size;
    Model::pre_norm(
        w,
        d,
        |w, layer| Attention::load(w, hidden, d.heads(layer)?, bias, Some(rope.clone())),
        |w, layer| Mlp::load(w, hidden, d.inner(layer)?, Bias::when(c.mlp_bias)),
    )
}
