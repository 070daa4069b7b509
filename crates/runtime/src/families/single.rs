//! Layers of a mixer alone behind a norm, `x + mixer(norm(x))`, and the `backbone` that state space
//! models make of them.

use mlxcel_core::layers::Norm;
use mlxcel_core::{Array, Batch};

use super::dense::{Layer, Mixer, Model};
use super::kept::{Kept, Slot};
use crate::Result;
use crate::loading::{NormRule, Weights};

/// A layer of one part.
struct Single {
    norm: Norm,
    mixer: Box<dyn Mixer>,
}

impl Layer for Single {
    fn kept(&self) -> Kept {
        self.mixer.kept()
    }

    fn forward(&self, cx: &Batch, slot: Slot, x: &Array) -> Result<Array> {
        let y = self.mixer.forward(cx, slot, &cx.ops().norm(x, &self.norm)?)?;
        Ok(cx.ops().add(x, &y)?)
    }
}

/// The sizes of a `backbone`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub(super) vocab_size: usize,
    pub(super) hidden_size: usize,
    pub(super) layers: usize,
    pub(super) tied: Option<bool>,
    pub(super) norm: NormRule,
}

/// Reads `backbone.embeddings`, `backbone.layers`, `backbone.norm_f` and `lm_head`; `mixer` builds
/// that of a layer from its `mixer` tensors and its index.
pub(super) fn backbone<M: Mixer + 'static>(
    w: &Weights,
    s: &Sizes,
    mixer: impl Fn(&Weights, usize) -> Result<M>,
) -> Result<Model> {
    let backbone = w.at("backbone");
    let layer = |w: &Weights, index| {
        let norm = w.norm("norm", s.hidden_size, s.norm)?;
        let mixer = Box::new(mixer(&w.at("mixer"), index)?);
        Ok(Box::new(Single { norm, mixer }) as Box<dyn Layer>)
    };
    Ok(Model {
        embed_tokens: backbone.embedding("embeddings", s.vocab_size, s.hidden_size)?,
        positions: None,
        embed_scale: None,
        layers: backbone.layers("layers", s.layers, layer)?,
        norm: backbone.norm("norm_f", s.hidden_size, s.norm)?,
        lm_head: w.lm_head(s.tied, s.hidden_size, s.vocab_size)?,
        logits: None,
    })
}
