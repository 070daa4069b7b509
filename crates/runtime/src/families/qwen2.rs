//! `qwen2`: Qwen 1.5, 2 and 2.5: llama's layout with biases on q, k and v.

use mlxcel_core::Rope;
use serde::Deserialize;

use super::config::DecoderConfig;
use super::dense::{Attention, DecoderBlock, Mlp, Model, ProjectionBias};
use crate::Result;
use crate::loading::{Bias, NormKind, Weights};

#[derive(Debug, Deserialize)]
pub(super) struct Config {
    #[serde(flatten)]
    pub(super) decoder: DecoderConfig,
}

pub(super) fn load(w: &Weights, c: &Config) -> Result<Model> {
    let rope = c.decoder.rope.build(c.decoder.heads()?.head_dim)?;
    load_at([&w.at("model"), w], c, &rope)
}

/// Reads the decoder below the first of `places` and the head below the second, with another rope.
pub(super) fn load_at(places: [&Weights; 2], c: &Config, rope: &Rope) -> Result<Model> {
    let d = &c.decoder;
    let heads = c.decoder.heads()?;
    let hidden = d.sizes.hidden_size;
    let norm = d.sizes.norm(NormKind::Rms)?;
    let bias = ProjectionBias { qkv: Bias::Required, output: Bias::None };
    Model::load_with(places, &d.sizes, "norm", norm, |w, layer| {
        let attention =
            Attention::load(&w.at("self_attn"), hidden, heads, bias, Some(rope.clone()))?
                .windowed(d.windows.opt_in(layer)?)?;
        let mlp = Mlp::load(&w.at("mlp"), &d.sizes, Bias::None)?;
        DecoderBlock::pre_norm(w, hidden, norm, attention, mlp)
    })
}
