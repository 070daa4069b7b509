//! KV caches: what a sequence keeps between passes.
//!
//! Owns storage, growth, trimming, forking and byte counts. With the host kernel set a layer's cache
//! is a list of 256-token blocks that never move and may be shared between sequences (copy on
//! write); with the MLX kernel set it is a contiguous buffer grown in steps of 256 tokens. The bytes
//! of a layout come from `mlxcel_estimator::kv`.

mod blocks;
mod contiguous;
mod cross;
mod modes;
mod saved;
mod states;

use std::cell::{Cell, Ref, RefCell, RefMut};
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mlxcel_estimator::{KV_BLOCK_TOKENS, KvMode, KvStorage};
use mlxcel_kernels::slab::Slab;

pub(crate) use self::blocks::BlockCache;
pub(crate) use self::contiguous::{ContiguousCache, Held};
use self::cross::CrossCache;
pub(crate) use self::modes::sealed_image;
pub use self::saved::{SavedCache, SavedLayer};
pub(crate) use self::states::{ArrayState, HostState, StateCache};
use crate::attention::LayerLayout;
use crate::images::HeldImages;
use crate::ops::{KernelSet, Ops};
use crate::recurrent::StateLayout;
use crate::{Error, Result};

/// The caches of all layers of one sequence. Cloning shares; [`Self::fork`] makes an independent one.
#[derive(Clone)]
pub struct SequenceCache {
    mode: KvMode,
    layers: Rc<[LayerCache]>,
    states: Rc<[StateCache]>,
    cross: CrossCache,
    tokens: Rc<Cell<usize>>,
    images: Rc<RefCell<HeldImages>>,
}

/// One layer's cache.
#[derive(Clone)]
pub(crate) enum LayerCache {
    /// Blocks that host kernels read.
    Blocks(Arc<Mutex<BlockCache>>),
    /// MLX arrays.
    Contiguous(Box<RefCell<ContiguousCache>>),
}

impl LayerCache {
    fn new(ops: &Ops, layout: &LayerLayout, mode: KvMode) -> Result<Self> {
        let storage = KvStorage { mode, dtype: ops.dtype() };
        Ok(match ops.kernels() {
            KernelSet::Host => {
                Self::Blocks(Arc::new(Mutex::new(BlockCache::new(layout, storage)?)))
            }
            KernelSet::Mlx => {
                Self::Contiguous(Box::new(RefCell::new(ContiguousCache::new(layout, storage)?)))
            }
        })
    }

    /// The blocks, where there are some.
    fn blocks(&self) -> Option<MutexGuard<'_, BlockCache>> {
        match self {
            Self::Blocks(blocks) => Some(Self::lock(blocks)),
            Self::Contiguous(_) => None,
        }
    }

    /// The blocks; a panic inside a kernel poisons nothing that matters, since its pass fails.
    pub(crate) fn lock(blocks: &Mutex<BlockCache>) -> MutexGuard<'_, BlockCache> {
        blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SequenceCache {
    /// Fails when `mode` cannot run on some layer.
    ///
    /// # Errors
    /// [`Error::KvMode`] with the reason.
    pub fn check(ops: &Ops, layout: &[LayerLayout], mode: KvMode) -> Result<()> {
        layout.iter().try_for_each(|layer| LayerCache::new(ops, layer, mode).map(drop))
    }

    /// An empty cache.
    ///
    /// # Errors
    /// As [`Self::check`].
    pub fn new(ops: &Ops, layout: &[LayerLayout], mode: KvMode) -> Result<Self> {
        let mut layers: Vec<LayerCache> = Vec::with_capacity(layout.len());
        for (index, layer) in layout.iter().enumerate() {
            // Layers of one layout share what a mode needs to know, such as the arrays of a codebook.
            let same = layout[..index].iter().position(|known| known == layer);
            let same = same.and_then(|known| layers.get(known)).map(LayerCache::fork);
            layers.push(same.map_or_else(|| LayerCache::new(ops, layer, mode), Ok)?);
        }
        let layers = layers.into();
        let (tokens, images, cross) = (Rc::default(), Rc::default(), CrossCache::default());
        Ok(Self { mode, layers, states: Rc::new([]), cross, tokens, images })
    }

    /// The same, empty, with the states of recurrent layers.
    #[must_use]
    pub fn with_states(self, ops: &Ops, layout: &[StateLayout]) -> Self {
        let states = layout.iter().map(|layout| StateCache::new(ops, layout)).collect();
        Self { states, ..self }
    }

    /// Whether [`Self::trim`] can go back to a place before the last token: not with recurrent
    /// layers, whose state is that after all tokens. A fork of it stands for all of them or none.
    #[must_use]
    pub fn can_trim(&self) -> bool {
        self.states.is_empty()
    }

    /// Bytes that one token takes in all layers of `layout`, scales included, in the long run (a
    /// window that is full takes no more).
    ///
    /// # Errors
    /// A mode that cannot hold a layer's vectors.
    pub fn bytes_per_token(layout: &[LayerLayout], storage: impl Into<KvStorage>) -> Result<u64> {
        let storage = storage.into();
        layout.iter().try_fold(0, |sum, layer| {
            Ok(sum + modes::block_bytes(layer, storage)? / KV_BLOCK_TOKENS)
        })
    }

    /// How keys and values are stored.
    #[must_use]
    pub fn mode(&self) -> KvMode {
        self.mode
    }

    /// Tokens of the sequence so far.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.tokens.get()
    }

    /// Bytes allocated for all layers.
    #[must_use]
    pub fn allocated_bytes(&self) -> usize {
        let states: usize = self.states.iter().map(StateCache::allocated_bytes).sum();
        let layers = self.layers.iter().chain(self.cross.layers());
        layers.map(LayerCache::allocated_bytes).sum::<usize>() + states
    }

    /// Tells `visit` every allocation of all layers, states and images included: an identity, and
    /// its bytes. Blocks that sequences share have the same identity in each, so that a sum over
    /// several can count once what is held once.
    pub fn allocations(&self, visit: &mut dyn FnMut(usize, usize)) {
        for layer in self.layers.iter().chain(self.cross.layers()) {
            match layer {
                LayerCache::Blocks(blocks) => LayerCache::lock(blocks).allocations(visit),
                LayerCache::Contiguous(cache) => {
                    visit(std::ptr::from_ref(cache).addr(), cache.borrow().allocated_bytes());
                }
            }
        }
        for (identity, bytes) in self.states.iter().map(StateCache::allocation) {
            visit(identity, bytes);
        }
    }

    /// Allocates what `tokens` more tokens need.
    pub(crate) fn reserve(&self, tokens: usize) -> Result<()> {
        let end = self.tokens().checked_add(tokens);
        let end =
            end.ok_or_else(|| Error::Cache { what: "the number of tokens overflows".into() })?;
        let mut layers: Vec<_> = self.layers.iter().filter_map(LayerCache::blocks).collect();
        let mut bytes = 0_usize;
        for layer in &mut layers {
            bytes = bytes.saturating_add(layer.make_room(self.tokens(), end)?);
        }
        // The new blocks of all layers lie side by side.
        let mut slab = Slab::new(bytes)?;
        layers.iter_mut().try_for_each(|layer| layer.reserve(&mut slab, self.tokens(), end))
    }

    /// The images that the sequence holds.
    pub(crate) fn images(&self) -> Ref<'_, HeldImages> {
        self.images.borrow()
    }

    /// The same, to be changed.
    pub(crate) fn images_mut(&self) -> RefMut<'_, HeldImages> {
        self.images.borrow_mut()
    }

    /// Records `tokens` appended tokens.
    pub(crate) fn advance(&self, tokens: usize) {
        self.tokens.set(self.tokens() + tokens);
    }

    /// The cache of layer `index`.
    pub(crate) fn layer(&self, index: usize) -> Result<&LayerCache> {
        let layers = self.layers.len();
        self.layers
            .get(index)
            .ok_or_else(|| Error::Cache { what: format!("layer {index} of {layers}") })
    }

    /// The state of recurrent layer `index`.
    pub(crate) fn state(&self, index: usize) -> Result<&StateCache> {
        let states = self.states.len();
        let missing = || Error::Cache { what: format!("recurrent layer {index} of {states}") };
        self.states.get(index).ok_or_else(missing)
    }

    /// Forgets all tokens from `tokens` on.
    ///
    /// # Errors
    /// More tokens than there are, a place that a sliding window has already dropped, one inside a
    /// sealed block (`turbo4-delegated`; its start is fine) or an image whose rows see each other,
    /// and with recurrent layers any place but the start and the end. Nothing is forgotten then.
    pub fn trim(&self, tokens: usize) -> Result<()> {
        if tokens > self.tokens() {
            return Err(Error::Cache {
                what: format!("cannot trim {} tokens to {tokens}", self.tokens()),
            });
        }
        if !self.can_trim() && tokens != 0 && tokens != self.tokens() {
            let what = format!(
                "cannot trim {} tokens to {tokens}: a recurrent state cannot go back; trim to 0",
                self.tokens()
            );
            return Err(Error::Cache { what });
        }
        self.images().check_trim(tokens)?;
        for layer in self.layers.iter() {
            match layer {
                LayerCache::Blocks(blocks) => LayerCache::lock(blocks).check_trim(tokens)?,
                LayerCache::Contiguous(cache) => cache.borrow().check_trim(tokens)?,
            }
        }
        if tokens == 0 {
            self.states.iter().for_each(StateCache::clear);
            self.cross.clear()?;
        }
        self.images_mut().trim(tokens);
        for layer in self.layers.iter() {
            match layer {
                LayerCache::Blocks(blocks) => LayerCache::lock(blocks).trim(tokens)?,
                LayerCache::Contiguous(cache) => cache.borrow_mut().trim(tokens)?,
            }
        }
        self.tokens.set(tokens);
        Ok(())
    }

    /// An independent cache with the same tokens. Blocks are shared until one of the two writes.
    #[must_use]
    pub fn fork(&self) -> Self {
        let layers = self.layers.iter().map(LayerCache::fork).collect();
        let tokens = Rc::new(Cell::new(self.tokens()));
        let states = self.states.iter().map(StateCache::fork).collect();
        let images = Rc::new(RefCell::new(self.images().clone()));
        Self { mode: self.mode, layers, states, cross: self.cross.fork(), tokens, images }
    }

    /// Fills an empty cache with `tokens` pseudo-random tokens, for measurements at depth.
    ///
    /// # Errors
    /// A cache that already holds tokens, or no memory.
    pub fn fill_synthetic(&self, ops: &Ops, tokens: usize) -> Result<()> {
        if self.tokens() != 0 {
            return Err(Error::Cache {
                what: "only an empty cache can be filled synthetically".into(),
            });
        }
        if i32::try_from(tokens).is_err() {
            return Err(Error::Cache { what: format!("{tokens} tokens are too many") });
        }
        for layer in self.layers.iter() {
            match layer {
                LayerCache::Blocks(blocks) => {
                    LayerCache::lock(blocks).fill_synthetic(ops.pool(), tokens)?
                }
                LayerCache::Contiguous(cache) => cache.borrow_mut().fill_synthetic(ops, tokens)?,
            }
        }
        self.states.iter().for_each(|state| state.fill_synthetic(tokens));
        self.tokens.set(tokens);
        Ok(())
    }
}

impl LayerCache {
    /// An independent cache; blocks are shared until one of the two writes.
    fn fork(&self) -> Self {
        match self {
            Self::Blocks(blocks) => Self::Blocks(Arc::new(Mutex::new(Self::lock(blocks).clone()))),
            Self::Contiguous(cache) => Self::Contiguous(cache.clone()),
        }
    }

    fn allocated_bytes(&self) -> usize {
        match self {
            Self::Blocks(blocks) => Self::lock(blocks).allocated_bytes(),
            Self::Contiguous(cache) => cache.borrow().allocated_bytes(),
        }
    }
}

#[cfg(test)]
mod tests;
