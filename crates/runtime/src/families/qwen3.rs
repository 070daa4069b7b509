//! `qwen3`: the dense Qwen 3 models: llama's layout with RMS norms over each query and key head.

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
    #[serde(default)]
    attention_bias: bool,
}

pub(super) fn load(w: &Weights, c: &Config) -> Result<Model> {
    let heads = c.heads.shape(c.sizes.hidden_size)?;
    let bias = ProjectionBias::all(Bias::when(c.attention_bias));
    let rope = c.rope.build(heads.head_dim)?;
    let attention = |w: &Weights, layer| {
        let norm = |name| w.rms_norm(name, heads.head_dim, c.sizes.rms_norm_eps);
        let plain = Attention::load(w, c.sizes.hidden_size, heads, bias, Some(rope.clone()))?;
        let normed = Attention { qk_norm: Some((norm("q_norm")?, norm("k_norm")?)), ..plain };
        normed.windowed(c.windows.opt_in(layer)?)
    };
    Model::load(w, &c.sizes, attention, |w| Mlp::load(w, &c.sizes, Bias::None))
}
