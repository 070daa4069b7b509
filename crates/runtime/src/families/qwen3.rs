//! `qwen3`: the dense Qwen 3 models: llama's layout with RMS norms over each query and key head.

use serde::Deserialize;

use super::config::DecoderConfig;
use super::dense::{Attention, Mlp, Model, ProjectionBias};
use crate::Result;
use crate::loading::{Bias, NormKind, Weights};

#[derive(Debug, Deserialize)]
pub(super) struct Config {
    #[serde(flatten)]
    decoder: DecoderConfig,
    #[serde(default)]
    attention_bias: bool,
}

pub(super) fn load(w: &Weights, c: &Config) -> Result<Model> {
    let heads = c.decoder.heads()?;
    let bias = ProjectionBias::all(Bias::when(c.attention_bias));
    let norm = c.decoder.sizes.norm(NormKind::Rms)?;
    let rope = c.decoder.rope.build(heads.head_dim)?;
    Model::pre_norm(
        w,
        &c.decoder,
        |w, layer| {
            let q_norm = w.rms_norm("q_norm", heads.head_dim, norm)?;
            let k_norm = w.rms_norm("k_norm", heads.head_dim, norm)?;
            let plain =
                Attention::load(w, c.decoder.sizes.hidden_size, heads, bias, Some(rope.clone()))?;
            let normed = Attention { qk_norm: Some((q_norm, k_norm)), ..plain };
            normed.windowed(c.decoder.windows.opt_in(layer)?)
        },
        |w| Mlp::load(w, &c.decoder.sizes, Bias::None),
    )
}
