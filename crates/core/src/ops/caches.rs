//! Construction and filling of caches, which need the kernel set that will read them.

use mlx_ffi::Array;
use mlxcel_estimator::KvMode;

use super::Ops;
use crate::attention::LayerLayout;
use crate::cache::{SavedCache, SequenceCache};
use crate::cross::CrossImage;
use crate::{Error, Result};

impl SequenceCache {
    /// An empty cache.
    ///
    /// # Errors
    /// [`Error::KvMode`] with the reason when `mode` cannot run on some layer.
    pub fn new(ops: &Ops, layout: &[LayerLayout], mode: KvMode) -> Result<Self> {
        ops.implementation().new_cache(layout, mode)
    }

    /// Fails when `mode` cannot run on some layer.
    ///
    /// # Errors
    /// Errors of [`Self::new`].
    pub fn check(ops: &Ops, layout: &[LayerLayout], mode: KvMode) -> Result<()> {
        Self::new(ops, layout, mode).map(drop)
    }

    /// The cache that [`Self::save`] saved, for a model called `model` that runs in `mode`.
    ///
    /// # Errors
    /// [`Error::SavedCache`] for another version, model, mode or layout, and for bytes that are not
    /// those of the header.
    pub fn restore(
        ops: &Ops,
        layout: &[LayerLayout],
        mode: KvMode,
        model: &str,
        saved: &SavedCache,
    ) -> Result<Self> {
        Self::new(ops, layout, mode)?.restored(model, saved)
    }

    /// Fills an empty cache with `tokens` pseudo-random tokens, for measurements at depth.
    ///
    /// # Errors
    /// A cache that already holds tokens, or no memory.
    pub fn fill_synthetic(&mut self, ops: &Ops, tokens: usize) -> Result<()> {
        self.fill_with_noise(ops.pool(), tokens)
    }

    /// Attaches the images that cross-attention layers attend to, in order, before the first token.
    /// `project` makes keys and values, `[rows, kv_heads · dim]` each, of cross-attention layer
    /// `index` from the rows of all images.
    ///
    /// # Errors
    /// A sequence that holds tokens or images, a model without such layers, images out of order, and
    /// errors of `project`.
    pub fn attach_images<E: From<Error>>(
        &mut self,
        ops: &Ops,
        images: &[CrossImage],
        project: impl Fn(usize, &Array) -> std::result::Result<[Array; 2], E>,
    ) -> std::result::Result<(), E> {
        self.store_cross_images(ops.pool(), images, project)
    }
}
