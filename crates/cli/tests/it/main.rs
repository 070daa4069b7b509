//! The `mlxcel` command from outside.

#![cfg(test)]

mod command;
mod server;
mod sizing;
