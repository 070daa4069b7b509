//! Tests of the crate's public interface, in one binary.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod advice;
mod rules;
mod shared_configs;
