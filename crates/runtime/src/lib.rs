//! The runtime of mlxcel: text in, tokens through a model, text out.

pub mod text;
