//! Black-box tests of the `mlxcel` command: refusals, output, exit codes, interruption.

mod bad_models;
mod bad_requests;
mod conventions;
mod everyday;
mod images;
#[cfg(target_os = "linux")]
mod offers;
#[cfg(target_os = "linux")]
mod read_only;
mod recommended;
mod support;
#[cfg(unix)]
mod terminal;
