//! What layers keep of a sequence, and where: keys and values per token, a recurrent state, both or
//! neither. Caches and states are numbered apart, each over the layers that have one.

use mlxcel_core::recurrent::StateLayout;
use mlxcel_core::{Array, LayerLayout, Pass};

use super::dense::Mixer;
use crate::Result;

/// What a layer keeps.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LayerState {
    /// Per token.
    pub(super) cache: Option<LayerLayout>,
    /// Whatever the length.
    pub(super) state: Option<StateLayout>,
}

impl From<LayerLayout> for LayerState {
    fn from(layout: LayerLayout) -> Self {
        Self { cache: Some(layout), state: None }
    }
}

impl From<StateLayout> for LayerState {
    fn from(layout: StateLayout) -> Self {
        Self { cache: None, state: Some(layout) }
    }
}

/// Where a layer keeps it: how many layers before it have a cache, and how many a state.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct StateIndex {
    pub(super) cache: usize,
    pub(super) state: usize,
}

impl StateIndex {
    /// That of the next layer behind one that keeps `kept`.
    pub(super) fn after(self, kept: LayerState) -> Self {
        Self {
            cache: self.cache + usize::from(kept.cache.is_some()),
            state: self.state + usize::from(kept.state.is_some()),
        }
    }
}

/// Layers of several kinds in one model.
impl Mixer for Box<dyn Mixer> {
    fn layer_state(&self) -> LayerState {
        self.as_ref().layer_state()
    }

    fn forward(&self, pass: &mut Pass<'_>, index: StateIndex, x: &Array) -> Result<Array> {
        self.as_ref().forward(pass, index, x)
    }
}
