//! Checkpoints by name: in the local Hugging Face cache, and on a hub.
//!
//! Owns finding ([`resolve`]), listing and removing what is in the cache ([`list`], [`remove`]),
//! fetching into it ([`Hub::download`]) and sizing what is not there yet ([`Hub::sized`]). The cache
//! is laid out as `huggingface_hub` does it, locks included, so that the tools can share it.
//!
//! Invariants: only [`Hub`] touches the network; every name from outside is checked before it
//! becomes a path; a file gets its final name after its checksum agreed.

mod client;
mod download;
mod error;
mod fetch;
mod hash;
mod info;
mod local;
mod models;
mod remote;

pub use self::client::{Hub, HubOptions};
pub use self::download::{Download, Planned};
pub use self::error::{HubError, HubResult};
pub use self::info::{RemoteFile, RepoInfo};
pub use self::local::{cache_folder, default_cache, is_repository, resolve, resolve_in};
pub use self::models::{LIST_SCHEMA, ModelEntry, list, remove};
