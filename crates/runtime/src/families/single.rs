//! Layers that are a mixer after a norm, `x + mixer(norm(x))`, and the `backbone` that state space
//! models make of them.

use mlxcel_core::layers::Norm;
use mlxcel_core::{Array, Pass};

use super::config::DecoderConfig;
use super::dense::{DecoderLayer, Mixer, Model};
use super::layer_state::{LayerState, StateIndex};
use crate::Result;
use crate::loading::{NormRule, Weights};

/// A layer of one part.
struct SingleMixerBlock {
    norm: Norm,
    mixer: Box<dyn Mixer>,
}

impl DecoderLayer for SingleMixerBlock {
    fn layer_state(&self) -> LayerState {
        self.mixer.layer_state()
    }

    fn forward(&self, pass: &mut Pass<'_>, index: StateIndex, x: &Array) -> Result<Array> {
        let y = self.mixer.forward(pass, index, &pass.ops().norm(x, &self.norm)?)?;
        Ok(pass.ops().add(x, &y)?)
    }
}

/// Reads `backbone.embeddings`, `backbone.layers`, `backbone.norm_f` and `lm_head`; `mixer` builds
/// that of a layer from its `mixer` tensors and its index.
pub(super) fn backbone<M: Mixer + 'static>(
    w: &Weights,
    d: &DecoderConfig,
    norm: NormRule,
    mixer: impl Fn(&Weights, usize) -> Result<M>,
) -> Result<Model> {
    let backbone = w.at("backbone");
    let s = &d.sizes;
    let layers = backbone.layers("layers", s.num_hidden_layers, |w, index| {
        let norm = w.norm("norm", s.hidden_size, norm)?;
        let mixer = Box::new(mixer(&w.at("mixer"), index)?);
        Ok(Box::new(SingleMixerBlock { norm, mixer }) as Box<dyn DecoderLayer>)
    })?;
    Ok(Model {
        embed_tokens: backbone.embedding("embeddings", s.vocab_size, s.hidden_size)?,
        positions: None,
        embed_scale: None,
        layers,
        norm: backbone.norm("norm_f", s.hidden_size, norm)?,
        lm_head: w.lm_head(s.tie_word_embeddings, s.hidden_size, s.vocab_size)?,
        logits: None,
    })
}
