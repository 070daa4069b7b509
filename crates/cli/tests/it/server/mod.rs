//! `mlxcel serve` from outside, through real sockets.

mod api;
mod batching;
mod images;
mod limits;
mod malformed;
mod nothing_dies;
mod page;
mod support;
