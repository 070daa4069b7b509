//! State that layers keep of a sequence, and its index: keys and values per token, a recurrent state,
//! both or neither. Caches and states are numbered separately, each over the layers that have one.

use mlxcel_core::recurrent::StateLayout;
use mlxcel_core::{Array, LayerLayout, Pass};

use super::dense::Mixer;
use crate::Result;

/// State that a layer keeps of a sequence.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LayerState {
    /// Keys and values per token.
    pub(super) cache: Option<LayerLayout>,
    /// Recurrent state of fixed size.
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

/// Index of a layer's cache among the caches, and of its state among the states.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct StateIndex {
    pub(super) cache: usize,
    pub(super) state: usize,
}

impl StateIndex {
    /// Index of the layer that follows one with state `layer`.
    pub(super) fn after(self, layer: LayerState) -> Self {
        Self {
            cache: self.cache + usize::from(layer.cache.is_some()),
            state: self.state + usize::from(layer.state.is_some()),
        }
    }
}

/// For models with layers of several kinds.
impl Mixer for Box<dyn Mixer> {
    fn layer_state(&self) -> LayerState {
        self.as_ref().layer_state()
    }

    fn forward(&self, pass: &mut Pass<'_>, index: StateIndex, x: &Array) -> Result<Array> {
        self.as_ref().forward(pass, index, x)
    }
}
