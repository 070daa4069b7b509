//! Tests of the runtime that need a model.

#![cfg(test)]

mod cache_files;
mod cache_modes;
mod chat_templates;
mod conversation;
mod convert;
mod cross;
mod experts_and_states;
mod families;
mod goldens;
mod invariants;
mod support;
mod vision;
