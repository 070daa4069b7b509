//! Messages between connections and the engine thread: requests one way, events the other.

use std::sync::Arc;
use std::time::Instant;

use mlxcel_runtime::engine::Finish;
use mlxcel_runtime::sampling::{SamplingParams, TokenLogprobs};
use tokio::sync::mpsc::UnboundedSender;

use super::error::ApiError;
use super::images::PreparedImage;
use super::prompt::Prompt;
use super::request_budget::Reservation;

/// One prompt to complete. A request over HTTP with several prompts becomes several of these.
#[derive(Debug)]
pub(super) struct EngineRequest {
    /// Identifies the request in the log and in `/v1/memory`.
    pub(super) id: u64,
    /// Index of its first completion among those of the HTTP request.
    pub(super) first_index: usize,
    /// The prompt, at least one token.
    pub(super) prompt: Arc<Prompt>,
    /// Its images, in order.
    pub(super) images: Vec<PreparedImage>,
    /// Memory reserved for the HTTP request, its images not counted; shared by all of its prompts.
    #[expect(dead_code, reason = "held as long as the request is")]
    pub(super) reservation: Arc<Reservation>,
    /// Number of completions, at least one.
    pub(super) n: usize,
    /// Maximum number of tokens of each completion; they fit the context after the prompt.
    pub(super) max_tokens: usize,
    /// Sampling parameters.
    pub(super) sampling: SamplingParams,
    /// Texts that end a completion.
    pub(super) stop: Vec<String>,
    /// True if end tokens are ignored.
    pub(super) ignore_eos: bool,
    /// Receiver of events; closed once the client is gone.
    pub(super) events: UnboundedSender<EngineEvent>,
    /// Time of arrival.
    pub(super) received: Instant,
}

/// Progress of an [`EngineRequest`].
#[derive(Clone, Debug)]
pub(super) enum EngineEvent {
    /// The request was admitted.
    Started {
        /// Prompt tokens found in the prompt cache.
        cached_tokens: usize,
    },
    /// A token of a completion.
    Token {
        /// Index of the completion.
        index: usize,
        /// Text that has become final, possibly empty.
        text: String,
        /// Log-probabilities, if requested.
        logprobs: Option<TokenLogprobs>,
    },
    /// A completion is finished.
    Finished {
        /// Index of the completion.
        index: usize,
        /// Reason for the end.
        finish: Finish,
        /// Text held back until now.
        text: String,
        /// Number of generated tokens.
        generated_tokens: usize,
    },
    /// The request failed with all of its completions.
    Failed(ApiError),
}

/// Commands to the engine thread.
#[derive(Debug)]
pub(super) enum EngineCommand {
    /// Queues a request.
    Submit(Box<EngineRequest>),
    /// Finishes what is queued and running, then exits.
    Drain,
    /// Fails what is queued and running, then exits.
    Stop,
}
