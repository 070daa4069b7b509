//! `mistral`: Mistral 7B and its descendants: llama's layout, with a sliding window over every
//! layer where the configuration has one.

use serde::Deserialize;

use super::config::DecoderConfig;
use super::dense::{Attention, Mlp, Model, ProjectionBias};
use crate::Result;
use crate::loading::{Bias, Weights};

#[derive(Debug, Deserialize)]
pub(super) struct Config {
    #[serde(flatten)]
    decoder: DecoderConfig,
}

pub(super) fn load(w: &Weights, c: &Config) -> Result<Model> {
    let heads = c.decoder.heads()?;
    let bias = ProjectionBias::all(Bias::None);
    let rope = c.decoder.rope.build(heads.head_dim)?;
    Model::pre_norm(
        w,
        &c.decoder,
        |w, layer| {
            Attention::load(w, c.decoder.sizes.hidden_size, heads, bias, Some(rope.clone()))?
                .windowed(c.decoder.windows.of(layer, true)?)
        },
        |w| Mlp::load(w, &c.decoder.sizes, Bias::None),
    )
}
