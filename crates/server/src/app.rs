//! What handlers of requests share: the served model, limits, and the state of the server.

use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use mlxcel_runtime::Processor;
use mlxcel_runtime::vision::ImageProcessor;

use super::admission::Admission;
use super::job::Command;
use super::shared::Shared;

/// What handlers need.
pub(super) struct App {
    /// The model, or why there is none.
    pub(super) model: Result<Served, String>,
    pub(super) name: String,
    pub(super) total_memory_bytes: Option<u64>,
    pub(super) api_key: Option<String>,
    pub(super) max_body_bytes: usize,
    pub(super) read_timeout: Duration,
    /// Whether the server is ending.
    pub(super) ending: AtomicBool,
    pub(super) started: SystemTime,
}

/// A model that is loaded.
pub(super) struct Served {
    pub(super) text: Processor,
    /// What prepares images, or why there are none.
    pub(super) images: Result<ImageProcessor, String>,
    pub(super) admission: Arc<Admission>,
    pub(super) shared: Arc<Shared>,
    pub(super) commands: Mutex<Sender<Command>>,
    /// Tokens of a sequence at most.
    pub(super) context: usize,
    /// Tokens of an answer where nothing is said.
    pub(super) max_tokens: usize,
    pub(super) jobs: AtomicU64,
    /// What was resident before the load, where that does not count.
    pub(super) baseline_bytes: u64,
}
