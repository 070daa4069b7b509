//! Test support for the other crates: random-weights checkpoints ([`synth`]), the goldens that go
//! with them ([`golden`]), and a hub on 127.0.0.1 ([`fake_hub`]).
//!
//! Nothing here links MLX, so that `xtask`, which makes checkpoints and goldens too, builds in
//! seconds. Helpers that need the runtime stay in the tests of their crate.

mod error;
pub mod fake_hub;
pub mod golden;
pub mod paths;
pub mod synth;

pub use error::{Result, TestingError};
