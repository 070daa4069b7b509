//! Checkpoints by name: in the local Hugging Face cache, and on a hub.
//!
//! Owns finding checkpoints ([`resolve`]), listing and removing those in the cache ([`list`],
//! [`remove`]), downloading into it ([`Hub::download`]) and sizing remote checkpoints
//! ([`Hub::sized`]). The cache has the layout of `huggingface_hub`, locks included, so that the tools
//! can share it.
//!
//! Invariants: only [`Hub`] touches the network; every name from outside is checked before it
//! becomes a path; a file gets its final name once its checksum is verified.

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
pub use self::download::{Download, DownloadPlan};
pub use self::error::{HubError, HubResult, UnexpectedResponse};
pub use self::info::{RemoteFile, RepoInfo};
pub use self::local::{default_cache, resolve, resolve_in};
pub use self::models::{LIST_SCHEMA, ModelEntry, list, remove};
