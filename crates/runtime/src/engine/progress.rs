//! What a front end can show while a model loads and a prompt is read.

use std::ops::ControlFlow;

use super::Statistics;

/// Receives progress; every method has a default that ignores it.
pub trait Progress {
    /// `done` of `total` layers are built.
    fn loading(&mut self, done: usize, total: usize) {
        let _ = (done, total);
    }

    /// The model is loaded.
    fn loaded(&mut self) {}

    /// `done` of `total` prompt tokens are in the cache. `Break` stops before the next chunk.
    fn prefilled(&mut self, done: usize, total: usize) -> ControlFlow<()> {
        let _ = (done, total);
        ControlFlow::Continue(())
    }

    /// A token is sampled, and the counts are `so_far`. `Break` ends the generation, also where a
    /// token made no text.
    fn decoded(&mut self, so_far: &Statistics) -> ControlFlow<()> {
        let _ = so_far;
        ControlFlow::Continue(())
    }
}

/// Shows nothing.
pub struct NoProgress;

impl Progress for NoProgress {}
