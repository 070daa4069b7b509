//! The block cache of the host kernel set: what a block of 256 tokens holds and how it is filled.
//!
//! A sequence's cache is a list of [`KvBlock`]s that never move when it grows. The caller
//! (`core`) decides which blocks a sequence owns or shares and when one is copied; this module
//! owns the bytes: layout ([`BlockLayout`]), quantisation on append ([`append()`]), copies,
//! conversion of sealed blocks, and reading back.

pub mod append;
pub mod block;
pub mod format;
pub mod layout;
pub(crate) mod store;

pub use append::append;
pub use block::{BlockSide, KvBlock};
pub use format::KvFormat;
pub use layout::{AreaBytes, BlockLayout, KV_BLOCK_TOKENS, ValueStore};
pub use store::{INT8_CLIPS, INT8_LARGEST};

#[cfg(test)]
mod tests;
