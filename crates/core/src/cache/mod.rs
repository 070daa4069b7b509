//! KV caches and recurrent states of a sequence between passes.
//!
//! Owns storage, growth, trimming, forking and byte counts. With the host kernel set a layer's cache
//! is a list of 256-token blocks that never move and may be shared between sequences (copy on
//! write); with the MLX kernel set it is a contiguous buffer grown in steps of 256 tokens. The bytes
//! of a layout come from `mlxcel_estimator::kv`.
//!
//! A [`SequenceCache`] is owned by its sequence: a pass borrows it mutably, and sharing is explicit
//! ([`SequenceCache::fork`]).

mod blocks;
mod contiguous;
mod formats;
mod saved;
mod states;
mod storage;

use std::any::Any;

use mlxcel_estimator::{KV_BLOCK_TOKENS, KvMode, KvStorage};
use mlxcel_kernels::Pool;

pub(crate) use self::blocks::BlockCache;
pub(crate) use self::contiguous::{ContiguousCache, KvView};
pub(crate) use self::formats::sealed_image;
pub use self::saved::{SavedCache, SavedLayer};
pub(crate) use self::states::{ArrayState, HostState};
pub(crate) use self::storage::{CacheStorage, LayerCaches};
use crate::attention::LayerLayout;
use crate::cross::{CrossImage, CrossRows, concatenated};
use crate::error::TrimLimit;
use crate::images::{CachedImages, ImageRows};
use crate::recurrent::StateLayout;
use crate::{Array, Error, Result};

/// Storage of the host kernel set.
pub(crate) type HostCaches = LayerCaches<BlockCache, HostState>;

/// Storage of the MLX kernel set.
pub(crate) type ArrayCaches = LayerCaches<ContiguousCache, ArrayState>;

/// Keys, values and recurrent states of all layers of one sequence.
///
/// A cache has one owner. [`Self::fork`] makes an independent one, whose blocks are shared until
/// either of the two writes.
pub struct SequenceCache {
    format: KvStorage,
    storage: Box<dyn CacheStorage>,
    tokens: usize,
    images: CachedImages,
    cross_rows: CrossRows,
}

impl SequenceCache {
    /// An empty cache over `storage`.
    pub(crate) fn over(format: KvStorage, storage: Box<dyn CacheStorage>) -> Self {
        let images = CachedImages::default();
        let cross_rows = CrossRows::default();
        Self { format, storage, tokens: 0, images, cross_rows }
    }

    /// Adds the states of recurrent layers to an empty cache.
    #[must_use]
    pub fn with_states(mut self, layout: &[StateLayout]) -> Self {
        self.storage.add_states(layout);
        self
    }

    /// Adds room for the images that cross-attention layers attend to.
    ///
    /// # Errors
    /// A layer whose vectors cannot be stored.
    pub fn with_cross(mut self, layout: &[LayerLayout]) -> Result<Self> {
        self.storage.add_cross(layout)?;
        Ok(self)
    }

    /// Returns true if [`Self::trim`] can go back to a place before the last token: not with recurrent
    /// layers, whose state is that after all tokens. A fork of it stands for all of them or none.
    #[must_use]
    pub fn can_trim(&self) -> bool {
        !self.storage.has_states()
    }

    /// Bytes that one token takes in all layers of `layout`, scales included, in the long run (a
    /// window that is full takes no more).
    ///
    /// # Errors
    /// A mode that cannot hold a layer's vectors.
    pub fn bytes_per_token(layout: &[LayerLayout], format: impl Into<KvStorage>) -> Result<u64> {
        let format = format.into();
        layout.iter().try_fold(0, |sum, layer| {
            Ok(sum + formats::block_bytes(layer, format)? / KV_BLOCK_TOKENS)
        })
    }

    /// Storage mode of keys and values.
    #[must_use]
    pub fn mode(&self) -> KvMode {
        self.format.mode
    }

    /// Tokens of the sequence so far.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Bytes allocated for all layers.
    #[must_use]
    pub fn allocated_bytes(&self) -> usize {
        let mut sum = 0;
        self.allocations(&mut |_, bytes| sum += bytes);
        sum
    }

    /// Calls `visit` with every allocation of all layers, states and images included: an identity,
    /// and its bytes. Blocks that sequences share have one identity, so that a sum over several
    /// caches can count once what is held once.
    pub fn allocations(&self, visit: &mut dyn FnMut(usize, usize)) {
        self.storage.allocations(visit);
    }

    /// Allocates memory for `tokens` more tokens.
    pub(crate) fn reserve(&mut self, tokens: usize) -> Result<()> {
        let end = self.tokens.checked_add(tokens).ok_or(Error::Value {
            name: "the number of tokens",
            value: format!("{} + {tokens}", self.tokens),
            expected: "no overflow",
        })?;
        self.storage.reserve(self.tokens, end)
    }

    /// Difference between the number of tokens and the next rotary position.
    pub(crate) fn position_delta(&self) -> usize {
        self.images.position_delta()
    }

    /// Records `tokens` appended tokens.
    pub(crate) fn advance(&mut self, tokens: usize) {
        self.tokens += tokens;
    }

    /// Records the image of `rows` if it ends with them; its first row is token `position`.
    pub(crate) fn push_image(&mut self, rows: &ImageRows, position: usize) {
        self.images.push(rows, position);
    }

    /// Rows of the sequence's images that its tokens attend to.
    pub(crate) fn cross_rows(&self) -> &CrossRows {
        &self.cross_rows
    }

    /// The storage, which is of kind `T`.
    pub(crate) fn storage<T: CacheStorage>(&self) -> &T {
        let storage: &dyn Any = &*self.storage;
        storage.downcast_ref().expect("a pass runs on the kernel set that made its caches")
    }

    /// The storage, which is of kind `T`, to be changed.
    pub(crate) fn storage_mut<T: CacheStorage>(&mut self) -> &mut T {
        let storage: &mut dyn Any = &mut *self.storage;
        storage.downcast_mut().expect("a pass runs on the kernel set that made its caches")
    }

    /// Drops all tokens from `tokens` on.
    ///
    /// # Errors
    /// More tokens than there are, a place that a sliding window has already dropped, one inside a
    /// sealed block (`turbo4-delegated`; its start is fine) or an image whose rows attend to each
    /// other, and with recurrent layers any place but the start and the end. Nothing is dropped then.
    pub fn trim(&mut self, tokens: usize) -> Result<()> {
        if tokens > self.tokens {
            let limit = TrimLimit::Length { held: self.tokens };
            return Err(Error::Trim { to: tokens, limit });
        }
        if !self.can_trim() && tokens != 0 && tokens != self.tokens {
            return Err(Error::Trim { to: tokens, limit: TrimLimit::RecurrentState });
        }
        self.images.check_trim(tokens)?;
        self.storage.check_trim(tokens)?;
        if tokens == 0 {
            self.storage.clear();
            self.cross_rows = CrossRows::default();
        }
        self.storage.trim(tokens)?;
        self.images.trim(tokens);
        self.tokens = tokens;
        Ok(())
    }

    /// An independent cache with the same tokens. Blocks are shared until one of the two writes.
    #[must_use]
    pub fn fork(&self) -> Self {
        Self {
            format: self.format,
            storage: self.storage.fork(),
            tokens: self.tokens,
            images: self.images.clone(),
            cross_rows: self.cross_rows.clone(),
        }
    }

    /// Fills an empty cache with `tokens` pseudo-random tokens.
    pub(crate) fn fill_with_noise(&mut self, pool: &Pool, tokens: usize) -> Result<()> {
        if self.tokens != 0 {
            return Err(Error::NotEmpty { action: "a synthetic fill", tokens: self.tokens });
        }
        if i32::try_from(tokens).is_err() {
            return Err(Error::Value {
                name: "the number of tokens",
                value: tokens.to_string(),
                expected: "less than 2^31",
            });
        }
        self.storage.fill_synthetic(pool, tokens)?;
        self.tokens = tokens;
        Ok(())
    }

    /// Stores keys and values of `images`, which `project` makes of their rows for each
    /// cross-attention layer.
    pub(crate) fn store_cross_images<E: From<Error>>(
        &mut self,
        pool: &Pool,
        images: &[CrossImage],
        project: impl Fn(usize, &Array) -> std::result::Result<[Array; 2], E>,
    ) -> std::result::Result<(), E> {
        if images.is_empty() {
            return Ok(());
        }
        let layers = self.storage.cross_layers();
        if layers == 0 {
            let feature = "attaching images with no cross-attention layers";
            return Err(Error::Unsupported { feature }.into());
        }
        if self.tokens > 0 || !self.cross_rows.is_empty() {
            return Err(Error::NotEmpty { action: "attaching images", tokens: self.tokens }.into());
        }
        let cross_rows = CrossRows::of(images)?;
        let rows = concatenated(images)?;
        for index in 0..layers {
            let [keys, values] = project(index, &rows)?;
            self.storage.fill_cross(pool, index, &keys, &values)?;
        }
        self.cross_rows = cross_rows;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
