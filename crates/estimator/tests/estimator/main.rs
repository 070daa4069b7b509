//! Tests of the crate's public interface, in one binary.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod acceptance;
mod bad_input;
mod embedding;
mod families;
mod layers;
mod properties;
mod shared_configs;
