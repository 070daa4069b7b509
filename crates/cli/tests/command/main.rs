//! Black-box tests of the `mlxcel` command: refusals, output, exit codes, interruption.

#![cfg(test)]

mod bad_models;
mod bad_requests;
mod conventions;
mod everyday;
#[path = "../../../runtime/tests/hub/server.rs"]
#[expect(dead_code, reason = "shared with the tests of the runtime, which use all of it")]
mod hub_server;
mod images;
#[cfg(target_os = "linux")]
mod offers;
#[cfg(target_os = "linux")]
mod read_only;
mod recommended;
mod support;
#[cfg(unix)]
mod terminal;
