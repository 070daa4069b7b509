//! Tests that call MLX: one binary, so that they share one MLX thread.

#![cfg(test)]
#![expect(
    clippy::float_cmp,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "small exact numbers, and oracles in f64 that are rounded to the type under test"
)]

mod array;
mod common;
mod fast;
mod host;
mod mapped;
mod ops;
mod system;
