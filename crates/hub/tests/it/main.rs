//! Downloads and remote estimates against a small hub of our own.

#![cfg(test)]

mod downloads;
mod estimates;
mod troubles;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mlxcel_hub::{Download, Hub, HubOptions, HubResult};
use mlxcel_testing::fake_hub::FakeHub;

pub(crate) const NAME: &str = "org/model-1.0";

/// A hub that asks `server` and downloads into `cache`.
pub(crate) fn hub(server: &FakeHub, cache: &Path) -> Hub {
    Hub::new(HubOptions {
        endpoint: server.endpoint.clone(),
        token: None,
        offline: false,
        cache: Some(cache.to_owned()),
        retry_delay: Duration::from_millis(1),
    })
}

/// Downloads everything that is needed.
pub(crate) fn fetch(hub: &Hub) -> HubResult<PathBuf> {
    let planned = hub.plan(&Download { name: NAME, revision: "main", include: &[] })?;
    hub.download(&planned, &mut |_, _, _| ControlFlow::Continue(()))
}

/// Bytes without a pattern that a lost or a repeated piece would keep.
pub(crate) fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..bytes).map(|_| next()).collect()
}

/// A repository with two files that matter and two that do not.
pub(crate) fn files() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("config.json", b"{\"model_type\": \"llama\"}".to_vec()),
        ("model.safetensors", noise(200_000)),
        ("consolidated.safetensors", noise(10)),
        ("original/model.pth", noise(10)),
    ]
}
