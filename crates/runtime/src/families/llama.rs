//! `llama`: Llama 2 and 3, SmolLM, TinyLlama, and the many checkpoints that share their layout.

use serde::Deserialize;

use super::config::DecoderConfig;
use super::dense::{Attention, Mlp, Model, ProjectionBias};
use crate::Result;
use crate::loading::{Bias, Weights};

#[derive(Debug, Deserialize)]
pub(super) struct Config {
    #[serde(flatten)]
    decoder: DecoderConfig,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
}

pub(super) fn load(w: &Weights, c: &Config) -> Result<Model> {
    let heads = c.decoder.heads()?;
    let bias = ProjectionBias::all(Bias::when(c.attention_bias));
    let rope = c.decoder.rope.build(heads.head_dim)?;
    Model::pre_norm(
        w,
        &c.decoder,
        |w, layer| {
            Attention::load(w, c.decoder.sizes.hidden_size, heads, bias, Some(rope.clone()))?
                .windowed(c.decoder.windows.of(layer, false)?)
        },
        |w| Mlp::load(w, &c.decoder.sizes, Bias::when(c.mlp_bias)),
    )
}
