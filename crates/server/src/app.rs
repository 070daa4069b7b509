//! State of request handlers: the loaded model, limits, and whether the server is shutting down.

use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use mlxcel_runtime::Processor;
use mlxcel_runtime::vision::ImageProcessor;

use super::admission::MemoryAdmission;
use super::messages::EngineCommand;
use super::status::EngineStatus;

/// State of the server.
pub(super) struct AppState {
    /// The model, or the reason why none is loaded.
    pub(super) model: Result<LoadedModel, String>,
    pub(super) name: String,
    pub(super) total_memory_bytes: Option<u64>,
    pub(super) api_key: Option<String>,
    pub(super) max_body_bytes: usize,
    pub(super) read_timeout: Duration,
    /// True if the server is shutting down.
    pub(super) shutting_down: AtomicBool,
    pub(super) started: SystemTime,
}

/// A loaded model and the way to its engine thread.
pub(super) struct LoadedModel {
    pub(super) processor: Processor,
    /// ImageProcessor of images, or the reason why the model takes none.
    pub(super) images: Result<ImageProcessor, String>,
    pub(super) admission: Arc<MemoryAdmission>,
    pub(super) status: Arc<EngineStatus>,
    pub(super) commands: Mutex<Sender<EngineCommand>>,
    /// Maximum length of a sequence.
    pub(super) context_tokens: usize,
    /// Maximum length of a completion if a request states none.
    pub(super) default_max_tokens: usize,
    /// Id of the next request.
    pub(super) next_request: AtomicU64,
    /// Resident bytes before the load, where they do not count.
    pub(super) baseline_bytes: u64,
}

impl AppState {
    /// Sends a command to the engine thread; ignored if it has exited.
    pub(super) fn send(&self, command: EngineCommand) {
        if let Ok(model) = &self.model {
            let commands = model.commands.lock().unwrap_or_else(PoisonError::into_inner);
            let _ = commands.send(command);
        }
    }
}
