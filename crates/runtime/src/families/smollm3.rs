//! `smollm3`: SmolLM 3: llama's layout, where every fourth layer has no rotary embedding but the
//! window, if there is one.

use serde::Deserialize;

use super::config::DecoderConfig;
use super::dense::{Attention, Mlp, Model, ProjectionBias};
use crate::Result;
use crate::loading::{Bias, Weights};

#[derive(Debug, Deserialize)]
pub(super) struct SmolLm3Config {
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    no_rope_layers: Option<Vec<u8>>,
    no_rope_layer_interval: Option<usize>,
}

impl SmolLm3Config {
    /// Reports whether layer `layer` rotates (`no_rope_layers` holds 1 if it does).
    fn rotates(&self, layer: usize) -> bool {
        let interval = self.no_rope_layer_interval.unwrap_or(4).max(1);
        match &self.no_rope_layers {
            None => !(layer + 1).is_multiple_of(interval),
            Some(list) => list.get(layer).is_some_and(|entry| *entry != 0),
        }
    }
}

pub(super) fn load(w: &Weights, d: &DecoderConfig, c: &SmolLm3Config) -> Result<Model> {
    let bias = ProjectionBias::all(Bias::when(c.attention_bias));
    let rope = d.rope.build(d.head_dim()?)?;
    let hidden = d.sizes.hidden_size;
    Model::pre_norm(
        w,
        d,
        |w, layer| {
            let rope = c.rotates(layer).then(|| rope.clone());
            Attention::load(w, hidden, d.heads(layer)?, bias, rope)
        },
        |w, layer| Mlp::load(w, hidden, d.inner(layer)?, Bias::when(c.mlp_bias)),
    )
}
