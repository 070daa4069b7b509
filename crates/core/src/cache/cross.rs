//! Keys and values of the images that cross-attention layers see, of one sequence.
//!
//! They are written once, before the first token, in half precision whatever the mode of the tokens'
//! cache, and stay as long as the sequence holds a token.

use std::cell::{Ref, RefCell};
use std::rc::Rc;

use mlx_ffi::Array;
use mlxcel_estimator::KvMode;

use super::{LayerCache, SequenceCache};
use crate::attention::LayerLayout;
use crate::cross::{CrossImage, SeenImages, joined};
use crate::ops::Ops;
use crate::shape::rows_cols;
use crate::{Error, Result};

/// What the cross-attention layers of one sequence hold.
#[derive(Clone, Default)]
pub(super) struct CrossCache {
    layers: Rc<[LayerCache]>,
    seen: Rc<RefCell<SeenImages>>,
}

impl CrossCache {
    fn new(ops: &Ops, layout: &[LayerLayout]) -> Result<Self> {
        let layer = |layout| LayerCache::new(ops, layout, KvMode::Fp16);
        let layers = layout.iter().map(layer).collect::<Result<_>>()?;
        Ok(Self { layers, seen: Rc::default() })
    }

    pub(super) fn layers(&self) -> &[LayerCache] {
        &self.layers
    }

    pub(super) fn is_empty(&self) -> bool {
        self.seen.borrow().is_empty()
    }

    /// Forgets all images.
    pub(super) fn clear(&self) -> Result<()> {
        self.seen.replace(SeenImages::default());
        self.layers.iter().try_for_each(|layer| match layer {
            LayerCache::Blocks(blocks) => LayerCache::lock(blocks).trim(0),
            LayerCache::Contiguous(cache) => cache.borrow_mut().clear(),
        })
    }

    /// An independent one; blocks are shared.
    pub(super) fn fork(&self) -> Self {
        let layers = self.layers.iter().map(LayerCache::fork).collect();
        let seen = Rc::new(RefCell::new(self.seen.borrow().clone()));
        Self { layers, seen }
    }
}

impl SequenceCache {
    /// The same, empty, with room for the images that cross-attention layers see.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_cross(self, ops: &Ops, layout: &[LayerLayout]) -> Result<Self> {
        Ok(Self { cross: CrossCache::new(ops, layout)?, ..self })
    }

    /// Shows the sequence its images, in order, before its first token. `project` makes keys and
    /// values, `[rows, kv_heads · dim]` each, of cross-attention layer `index` from the rows of all
    /// images.
    ///
    /// # Errors
    /// A sequence that holds tokens or images, a model without such layers, images out of order, and
    /// what `project` fails with.
    pub fn show<E: From<Error>>(
        &self,
        ops: &Ops,
        images: &[CrossImage],
        project: impl Fn(usize, &Array) -> std::result::Result<[Array; 2], E>,
    ) -> std::result::Result<(), E> {
        let CrossCache { layers, seen } = &self.cross;
        if images.is_empty() {
            return Ok(());
        }
        let wrong = |what: String| Err(E::from(Error::Cache { what }));
        if layers.is_empty() {
            return wrong("this sequence has no cross-attention layers to see images".into());
        }
        if self.tokens() > 0 || !self.cross.is_empty() {
            let tokens = self.tokens();
            return wrong(format!(
                "images are shown once, before the first token, not behind {tokens} tokens"
            ));
        }
        let shown = SeenImages::of(images)?;
        let rows = joined(images)?;
        for (index, layer) in layers.iter().enumerate() {
            let [keys, values] = project(index, &rows)?;
            layer.fill(ops, &keys, &values)?;
        }
        seen.replace(shown);
        Ok(())
    }

    /// What the sequence sees of images.
    pub(crate) fn seen(&self) -> Ref<'_, SeenImages> {
        self.cross.seen.borrow()
    }

    /// The keys and values of cross-attention layer `index`.
    pub(crate) fn cross_layer(&self, index: usize) -> Result<&LayerCache> {
        let layers = self.cross.layers.len();
        let missing =
            || Error::Cache { what: format!("cross-attention layer {index} of {layers}") };
        self.cross.layers.get(index).ok_or_else(missing)
    }
}

impl LayerCache {
    /// Fills an empty cache with `keys` and `values`, `[rows, kv_heads · dim]`, computed at once.
    fn fill(&self, ops: &Ops, keys: &Array, values: &Array) -> Result<()> {
        match self {
            Self::Blocks(blocks) => {
                let mut blocks = Self::lock(blocks);
                blocks.reserve_alone(0, rows_cols(keys).0)?;
                blocks.append(ops.pool(), 0, &ops.to_f32(keys)?, &ops.to_f32(values)?)
            }
            Self::Contiguous(cache) => cache.borrow_mut().fill(keys, values),
        }
    }
}
