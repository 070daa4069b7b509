//! `qwen2`: Qwen 1.5, 2 and 2.5: llama's layout with biases on q, k and v.

use mlxcel_core::Rope;
use serde::Deserialize;

use super::config::DecoderConfig;
use super::dense::{Attention, Mlp, Model, ProjectionBias};
use crate::Result;
use crate::loading::{Bias, Weights};

#[derive(Debug, Deserialize)]
pub(super) struct Config {
    #[serde(flatten)]
    pub(super) decoder: DecoderConfig,
}

pub(super) fn load(w: &Weights, c: &Config) -> Result<Model> {
    let rope = c.decoder.rope.build(c.decoder.heads()?.head_dim)?;
    load_at([&w.at("model"), w], c, &rope)
}

/// The same of what lies in other places, below `model` and beside `lm_head`, with another rotation.
pub(super) fn load_at(places: [&Weights; 2], c: &Config, rope: &Rope) -> Result<Model> {
    let heads = c.decoder.heads()?;
    let bias = ProjectionBias { qkv: Bias::Required, output: Bias::None };
    Model::pre_norm_at(
        places,
        &c.decoder,
        |w, layer| {
            Attention::load(w, c.decoder.sizes.hidden_size, heads, bias, Some(rope.clone()))?
                .windowed(c.decoder.windows.opt_in(layer)?)
        },
        |w| Mlp::load(w, &c.decoder.sizes, Bias::None),
    )
}
