//! The maintenance tasks of mlxcel, as functions; `main.rs` gives them a command line.
//!
//! Nothing here links MLX, so that `cargo xtask …` builds in seconds. Tests of other crates
//! may use this library as a dev-dependency to make random-weights checkpoints ([`synth`]).

pub mod bench;
pub mod bindings;
pub mod calibrate;
pub mod ci;
pub mod dist;
pub mod golden;
pub mod paths;
pub mod synth;
pub mod tidy;
