//! The `mlxcel` command from outside: what it refuses, what it prints, how it stops.

#![cfg(test)]

mod bad_models;
mod bad_requests;
mod everyday;
#[path = "../../../runtime/tests/hub/server.rs"]
#[expect(dead_code, reason = "the tests of the runtime use all of it")]
mod hub_server;
mod images;
mod manners;
#[cfg(target_os = "linux")]
mod offers;
#[cfg(target_os = "linux")]
mod read_only;
mod recommended;
mod support;
#[cfg(unix)]
mod terminal;
