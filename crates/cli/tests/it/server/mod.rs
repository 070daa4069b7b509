//! `mlxcel serve` as a process, through real sockets.

mod api;
mod batching;
mod images;
mod limits;
mod malformed;
mod page;
mod stress;
mod support;
