//! Layers of a single part behind a norm, `x + part(norm(x))`, and the `backbone` that state space
//! models make of them.

use mlxcel_core::layers::Norm;
use mlxcel_core::{Array, Batch};

use super::dense::{FeedForward, Layer, Mixer, Model};
use super::kept::{Kept, Slot};
use crate::Result;
use crate::loading::{NormRule, Weights};

/// The one part of a layer.
pub(super) enum Part {
    Mixer(Box<dyn Mixer>),
    FeedForward(Box<dyn FeedForward>),
}

/// A layer of one part.
pub(super) struct Single {
    norm: Norm,
    part: Part,
}

impl Layer for Single {
    fn kept(&self) -> Kept {
        match &self.part {
            Part::Mixer(mixer) => mixer.kept(),
            Part::FeedForward(_) => Kept::default(),
        }
    }

    fn forward(&self, cx: &Batch, slot: Slot, x: &Array) -> Result<Array> {
        let normed = cx.ops().norm(x, &self.norm)?;
        let y = match &self.part {
            Part::Mixer(mixer) => mixer.forward(cx, slot, &normed)?,
            Part::FeedForward(mlp) => mlp.forward(cx, &normed)?,
        };
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

/// Reads `backbone.embeddings`, `backbone.layers`, `backbone.norm_f` and `lm_head`; `part` builds a
/// layer's part from its `mixer` tensors and its index.
pub(super) fn backbone(
    w: &Weights,
    s: &Sizes,
    part: impl Fn(&Weights, usize) -> Result<Part>,
) -> Result<Model> {
    let backbone = w.at("backbone");
    let layer = |w: &Weights, i: usize| {
        let norm = w.norm("norm", s.hidden_size, s.norm)?;
        Ok(Box::new(Single { norm, part: part(&w.at("mixer"), i)? }) as Box<dyn Layer>)
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
