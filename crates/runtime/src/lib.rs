//! The runtime of mlxcel: text in, tokens through a model, text out.

pub mod sampling;
pub mod text;
