//! The `mlxcel` command from outside: what it refuses, what it prints, how it stops.

#![cfg(test)]

mod bad_models;
mod bad_requests;
mod recommended;
mod support;
#[cfg(unix)]
mod terminal;
