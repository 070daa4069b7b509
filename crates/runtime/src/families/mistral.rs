//! `mistral`: Mistral 7B and its descendants: llama's layout, with a sliding window over every
//! layer where the configuration has one.

use serde::Deserialize;

use super::config::{Heads, LayerWindows, RopeConfig};
use super::dense::{Attention, Mlp, Model, ProjectionBias, Sizes};
use crate::Result;
use crate::loading::{Bias, Weights};

#[derive(Debug, Deserialize)]
pub(super) struct Config {
    #[serde(flatten)]
    sizes: Sizes,
    #[serde(flatten)]
    heads: Heads,
    #[serde(flatten)]
    rope: RopeConfig,
    #[serde(flatten)]
    windows: LayerWindows,
}

pub(super) fn load(w: &Weights, c: &Config) -> Result<Model> {
    let heads = c.heads.shape(c.sizes.hidden_size)?;
    let bias = ProjectionBias::all(Bias::None);
    let rope = c.rope.build(heads.head_dim)?;
    Model::load(
        w,
        &c.sizes,
        |w, layer| {
            Attention::load(w, c.sizes.hidden_size, heads, bias, Some(rope.clone()))?
                .windowed(c.windows.of(layer, true)?)
        },
        |w| Mlp::load(w, &c.sizes, Bias::None),
    )
}
