//! The layers of a sequence's cache, of one kernel set.
//!
//! [`LayerCaches`] applies the operations of a layer's cache ([`LayerCache`]) and of a recurrent state
//! ([`StateCache`]) to all layers, for both kernel sets.

use std::any::Any;

use mlx_ffi::Array;
use mlxcel_estimator::{ComputeDtype, KvMode, KvStorage};
use mlxcel_kernels::Pool;
use mlxcel_kernels::slab::Slab;

use super::saved::SavedLayer;
use crate::attention::LayerLayout;
use crate::error::SavedCacheProblem;
use crate::recurrent::StateLayout;
use crate::{Error, Result};

/// Storage of a sequence's layers, whatever the kernel set.
pub(crate) trait CacheStorage: Any {
    /// An independent copy; blocks are shared until one of the two writes.
    fn fork(&self) -> Box<dyn CacheStorage>;

    /// Adds empty states of recurrent layers.
    fn add_states(&mut self, layout: &[StateLayout]);

    /// Adds empty caches of cross-attention layers.
    fn add_cross(&mut self, layout: &[LayerLayout]) -> Result<()>;

    /// Returns true if there are recurrent layers.
    fn has_states(&self) -> bool;

    /// Number of cross-attention layers.
    fn cross_layers(&self) -> usize;

    /// Calls `visit` with the identity and the bytes of every allocation.
    fn allocations(&self, visit: &mut dyn FnMut(usize, usize));

    /// Allocates memory for tokens from `position` up to `end`.
    fn reserve(&mut self, position: usize, end: usize) -> Result<()>;

    /// Fails where a layer cannot be trimmed to `tokens` tokens.
    fn check_trim(&self, tokens: usize) -> Result<()>;

    /// Drops the tokens from `tokens` on.
    fn trim(&mut self, tokens: usize) -> Result<()>;

    /// Clears recurrent states and cross-attention layers.
    fn clear(&mut self);

    /// Fills empty cross-attention layer `index` with keys and values, `[rows, kv_heads · dim]`.
    fn fill_cross(&mut self, pool: &Pool, index: usize, keys: &Array, values: &Array)
    -> Result<()>;

    /// Fills empty layers with `tokens` pseudo-random tokens.
    fn fill_synthetic(&mut self, pool: &Pool, tokens: usize) -> Result<()>;

    /// Contents and coding of each layer, as text.
    fn layout_texts(&self) -> Vec<String>;

    /// State and bytes of each layer.
    fn save(&self) -> Result<Vec<SavedLayer>>;

    /// Replaces empty layers by saved ones of `tokens` tokens.
    fn restore(&mut self, saved: &[SavedLayer], tokens: usize) -> Result<()>;
}

/// Cache of one attention layer. Cloning makes an independent one, which may share memory until
/// either of the two is written.
pub(crate) trait LayerCache: Clone + 'static {
    /// An empty cache.
    fn new(layout: &LayerLayout, format: KvStorage) -> Result<Self>;

    /// Drops tokens that no query from `position` on attends to, and returns the bytes that are
    /// missing for tokens up to `end`.
    fn make_room(&mut self, position: usize, end: usize) -> Result<usize>;

    /// Takes the missing memory from `slab`; [`Self::make_room`] was called before.
    fn reserve(&mut self, slab: &mut Slab, position: usize, end: usize) -> Result<()>;

    /// Calls `visit` with the identity and the bytes of every allocation.
    fn allocations(&self, visit: &mut dyn FnMut(usize, usize));

    /// Fails where the next query after a trim to `tokens` would miss tokens, or could not be
    /// written.
    fn check_trim(&self, tokens: usize) -> Result<()>;

    /// Drops the tokens from `tokens` on.
    fn trim(&mut self, tokens: usize) -> Result<()>;

    /// Drops everything, memory included.
    fn clear(&mut self);

    /// Fills an empty cache with keys and values, `[rows, kv_heads · dim]`, computed at once.
    fn fill(&mut self, pool: &Pool, keys: &Array, values: &Array) -> Result<()>;

    /// Fills an empty cache with `tokens` pseudo-random tokens.
    fn fill_synthetic(&mut self, pool: &Pool, tokens: usize) -> Result<()>;

    /// Contents and coding as text: caches of equal texts have interchangeable bytes.
    fn layout_text(&self) -> String;

    /// State and bytes.
    fn save(&self) -> Result<SavedLayer>;

    /// Restores the result of [`Self::save`] for a sequence of `tokens` tokens; `None` when the
    /// bytes are not those of that many tokens.
    fn restore(&mut self, saved: &SavedLayer, tokens: usize) -> Result<Option<()>>;
}

/// State of one recurrent layer.
pub(crate) trait StateCache: Clone + 'static {
    /// An empty state.
    fn new(layout: &StateLayout, dtype: ComputeDtype) -> Self;

    /// Resets the state to that before the first token.
    fn clear(&mut self);

    /// Marks the state, still zeros, as that after `tokens` tokens.
    fn fill_synthetic(&mut self, tokens: usize);

    /// Bytes of the state.
    fn bytes(&self) -> usize;
}

/// Caches of all layers of a sequence.
#[derive(Clone)]
pub(crate) struct LayerCaches<L, S> {
    format: KvStorage,
    layers: Vec<L>,
    states: Vec<S>,
    cross: Vec<L>,
}

impl<L: LayerCache, S: StateCache> LayerCaches<L, S> {
    /// Empty caches of attention layers.
    pub(crate) fn new(layout: &[LayerLayout], format: KvStorage) -> Result<Self> {
        let layers = empty_layers(layout, format)?;
        Ok(Self { format, layers, states: Vec::new(), cross: Vec::new() })
    }

    /// Cache of attention layer `index`.
    pub(crate) fn layer_mut(&mut self, index: usize) -> Result<&mut L> {
        let len = self.layers.len();
        let missing = Error::OutOfRange { what: "attention layer", index, len };
        self.layers.get_mut(index).ok_or(missing)
    }

    /// State of recurrent layer `index`.
    pub(crate) fn state_mut(&mut self, index: usize) -> Result<&mut S> {
        let len = self.states.len();
        let missing = Error::OutOfRange { what: "recurrent layer", index, len };
        self.states.get_mut(index).ok_or(missing)
    }

    /// Keys and values of cross-attention layer `index`.
    pub(crate) fn cross_layer(&self, index: usize) -> Result<&L> {
        let len = self.cross.len();
        self.cross.get(index).ok_or(Error::OutOfRange { what: "cross-attention layer", index, len })
    }
}

/// Empty caches. Layers of one layout share arrays that depend on it alone, such as codebooks.
fn empty_layers<L: LayerCache>(layout: &[LayerLayout], format: KvStorage) -> Result<Vec<L>> {
    let mut layers: Vec<L> = Vec::with_capacity(layout.len());
    for (index, layer) in layout.iter().enumerate() {
        let known = layout[..index].iter().position(|known| known == layer);
        layers.push(match known {
            Some(known) => layers[known].clone(),
            None => L::new(layer, format)?,
        });
    }
    Ok(layers)
}

impl<L: LayerCache, S: StateCache> CacheStorage for LayerCaches<L, S> {
    fn fork(&self) -> Box<dyn CacheStorage> {
        Box::new(self.clone())
    }

    fn add_states(&mut self, layout: &[StateLayout]) {
        self.states = layout.iter().map(|layout| S::new(layout, self.format.dtype)).collect();
    }

    fn add_cross(&mut self, layout: &[LayerLayout]) -> Result<()> {
        // Half precision, whatever the mode of the tokens' cache.
        let format = KvStorage { mode: KvMode::Fp16, ..self.format };
        self.cross = layout.iter().map(|layout| L::new(layout, format)).collect::<Result<_>>()?;
        Ok(())
    }

    fn has_states(&self) -> bool {
        !self.states.is_empty()
    }

    fn cross_layers(&self) -> usize {
        self.cross.len()
    }

    fn allocations(&self, visit: &mut dyn FnMut(usize, usize)) {
        for layer in self.layers.iter().chain(&self.cross) {
            layer.allocations(visit);
        }
        for state in &self.states {
            visit(std::ptr::from_ref(state).addr(), state.bytes());
        }
    }

    fn reserve(&mut self, position: usize, end: usize) -> Result<()> {
        let mut bytes = 0_usize;
        for layer in &mut self.layers {
            bytes = bytes.saturating_add(layer.make_room(position, end)?);
        }
        // The new blocks of all layers are adjacent in memory.
        let mut slab = Slab::new(bytes)?;
        self.layers.iter_mut().try_for_each(|layer| layer.reserve(&mut slab, position, end))
    }

    fn check_trim(&self, tokens: usize) -> Result<()> {
        self.layers.iter().try_for_each(|layer| layer.check_trim(tokens))
    }

    fn trim(&mut self, tokens: usize) -> Result<()> {
        self.layers.iter_mut().try_for_each(|layer| layer.trim(tokens))
    }

    fn clear(&mut self) {
        self.states.iter_mut().for_each(S::clear);
        self.cross.iter_mut().for_each(L::clear);
    }

    fn fill_cross(
        &mut self,
        pool: &Pool,
        index: usize,
        keys: &Array,
        values: &Array,
    ) -> Result<()> {
        self.cross[index].fill(pool, keys, values)
    }

    fn fill_synthetic(&mut self, pool: &Pool, tokens: usize) -> Result<()> {
        self.layers.iter_mut().try_for_each(|layer| layer.fill_synthetic(pool, tokens))?;
        self.states.iter_mut().for_each(|state| state.fill_synthetic(tokens));
        Ok(())
    }

    fn layout_texts(&self) -> Vec<String> {
        self.layers.iter().map(L::layout_text).collect()
    }

    fn save(&self) -> Result<Vec<SavedLayer>> {
        self.layers.iter().map(L::save).collect()
    }

    fn restore(&mut self, saved: &[SavedLayer], tokens: usize) -> Result<()> {
        if saved.len() != self.layers.len() {
            let problem =
                SavedCacheProblem::Layers { found: saved.len(), needed: self.layers.len() };
            return Err(Error::SavedCache(problem));
        }
        for (index, (layer, saved)) in self.layers.iter_mut().zip(saved).enumerate() {
            if layer.restore(saved, tokens)?.is_none() {
                return Err(Error::SavedCache(SavedCacheProblem::Layer { index, tokens }));
            }
        }
        Ok(())
    }
}
