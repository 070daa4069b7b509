//! The maintenance tasks of mlxcel, as functions; `main.rs` gives them a command line.
//!
//! Nothing here links MLX, so that `cargo xtask …` builds in seconds.

pub mod bench;
pub mod bindings;
pub mod calibrate;
pub mod ci;
pub mod dist;
pub mod golden;
pub mod tidy;
