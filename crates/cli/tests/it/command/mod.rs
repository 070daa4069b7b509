//! The `mlxcel` command from outside: what it refuses, what it prints, how it stops.

mod bad_models;
mod bad_requests;
mod everyday;
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
