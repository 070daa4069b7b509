//! `smollm3`: SmolLM 3: llama's layout, where every fourth layer has no rotary embedding but the
//! window, if there is one.

use serde::Deserialize;

use super::config::DecoderConfig;
use super::dense::{Attention, Mlp, Model, ProjectionBias};
use crate::loading::{Bias, Weights};
use crate::{Error, Result};

#[derive(Debug, Deserialize)]
pub(super) struct Config {
    #[serde(flatten)]
    decoder: DecoderConfig,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    no_rope_layers: Option<Vec<u8>>,
    no_rope_layer_interval: Option<usize>,
}

impl Config {
    /// Returns true if layer `layer` has rotary embeddings (`no_rope_layers` holds 1 where it does).
    fn rotates(&self, layer: usize) -> Result<bool> {
        let interval = self.no_rope_layer_interval.unwrap_or(4).max(1);
        match &self.no_rope_layers {
            None => Ok(!(layer + 1).is_multiple_of(interval)),
            Some(list) if list.len() == self.decoder.sizes.num_hidden_layers => {
                Ok(list[layer] != 0)
            }
            Some(list) => Err(Error::config(format!(
                "no_rope_layers has {} entries for {} layers",
                list.len(),
                self.decoder.sizes.num_hidden_layers
            ))),
        }
    }
}

pub(super) fn load(w: &Weights, c: &Config) -> Result<Model> {
    let heads = c.decoder.heads()?;
    let bias = ProjectionBias::all(Bias::when(c.attention_bias));
    let rope = c.decoder.rope.build(heads.head_dim)?;
    Model::pre_norm(
        w,
        &c.decoder,
        |w, layer| {
            let rotates = c.rotates(layer)?;
            let rope = rotates.then(|| rope.clone());
            Attention::load(w, c.decoder.sizes.hidden_size, heads, bias, rope)?
                .windowed(c.decoder.windows.opt_in_where(layer, !rotates)?)
        },
        |w| Mlp::load(w, &c.decoder.sizes, Bias::when(c.mlp_bias)),
    )
}
