//! A dense decoder and its image encoder, where the checkpoint has one.

use mlxcel_core::{Array, LayerLayout, Ops, Pass};

use super::dense::Model;
use super::{ImageEncoder, LanguageModel};
use crate::Result;

/// The decoder, which takes image rows in place of embeddings, and the encoder that makes them.
pub(super) struct WithEncoder<E> {
    pub(super) language_model: Model,
    pub(super) encoder: Option<E>,
}

impl<E: ImageEncoder> LanguageModel for WithEncoder<E> {
    fn cache_layout(&self) -> Vec<LayerLayout> {
        self.language_model.cache_layout()
    }

    fn forward(&self, pass: &mut Pass<'_>) -> Result<Array> {
        self.language_model.forward(pass)
    }

    fn logits(&self, ops: &Ops, hidden: &Array) -> Result<Array> {
        self.language_model.logits(ops, hidden)
    }

    fn images(&self) -> Option<&dyn ImageEncoder> {
        self.encoder.as_ref().map(|encoder| encoder as &dyn ImageEncoder)
    }
}
