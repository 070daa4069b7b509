//! `qwen2`: Qwen 1.5, 2 and 2.5: llama's layout with biases on q, k and v.

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
    let bias = ProjectionBias { qkv: Bias::Required, output: Bias::None };
    let rope = c.decoder.rope.build(heads.head_dim)?;
    Model::pre_norm(
        w,
        &c.decoder,
        |w, layer| {
            Attention::load(w, c.decoder.sizes.hidden_size, heads, bias, Some(rope.clone()))?
                .windowed(c.decoder.windows.opt_in(layer)?)
        },
        |w| Mlp::load(w, &c.decoder.sizes, Bias::None),
    )
}
