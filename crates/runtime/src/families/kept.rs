//! What layers keep of a sequence, and where: keys and values per token, a recurrent state, both or
//! neither. Caches and states are numbered apart, each over the layers that have one.

use mlxcel_core::recurrent::StateLayout;
use mlxcel_core::{Array, Batch, LayerLayout};

use super::dense::Mixer;
use crate::Result;

/// What a layer keeps.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Kept {
    /// Per token.
    pub(super) cache: Option<LayerLayout>,
    /// Whatever the length.
    pub(super) state: Option<StateLayout>,
}

impl From<LayerLayout> for Kept {
    fn from(layout: LayerLayout) -> Self {
        Self { cache: Some(layout), state: None }
    }
}

impl From<StateLayout> for Kept {
    fn from(layout: StateLayout) -> Self {
        Self { cache: None, state: Some(layout) }
    }
}

/// Where a layer keeps it: how many layers before it have a cache, and how many a state.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Slot {
    pub(super) cache: usize,
    pub(super) state: usize,
}

impl Slot {
    /// That of the next layer behind one that keeps `kept`.
    pub(super) fn after(self, kept: Kept) -> Self {
        Self {
            cache: self.cache + usize::from(kept.cache.is_some()),
            state: self.state + usize::from(kept.state.is_some()),
        }
    }
}

/// Layers of several kinds in one model.
impl Mixer for Box<dyn Mixer> {
    fn kept(&self) -> Kept {
        self.as_ref().kept()
    }

    fn forward(&self, cx: &Batch, slot: Slot, x: &Array) -> Result<Array> {
        self.as_ref().forward(cx, slot, x)
    }
}
