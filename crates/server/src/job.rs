//! What travels between connections and the engine's thread: jobs one way, events the other.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc::UnboundedSender;

use super::error::ApiError;
use super::images::Picture;
use super::intake::Ticket;
use super::prompt::Prompt;
use mlxcel_runtime::engine::Finish;
use mlxcel_runtime::sampling::{SamplingParams, TokenLogprobs};

/// One prompt and what is to be made of it.
#[derive(Debug)]
pub(super) struct Job {
    /// Names the job in the log and in `/v1/memory`.
    pub(super) id: u64,
    /// The index of its first answer among those of the request.
    pub(super) first_answer: usize,
    /// The prompt, at least one token.
    pub(super) prompt: Prompt,
    /// Its images, in order.
    pub(super) pictures: Vec<Picture>,
    /// What the request takes besides them, in all its jobs.
    #[expect(dead_code, reason = "held as long as the job is")]
    pub(super) ticket: Arc<Ticket>,
    /// Answers to it, at least one.
    pub(super) n: usize,
    /// Tokens of each answer at most; prompt and answer fit the context.
    pub(super) max_tokens: usize,
    /// How tokens are chosen.
    pub(super) sampling: SamplingParams,
    /// Texts that end an answer.
    pub(super) stop: Vec<String>,
    /// Whether end tokens are ignored.
    pub(super) ignore_eos: bool,
    /// Where answers go; closed when nobody waits for them any more.
    pub(super) events: UnboundedSender<Event>,
    /// Since when it waits.
    pub(super) since: Instant,
}

/// What becomes of a job.
#[derive(Clone, Debug)]
pub(super) enum Event {
    /// It runs now.
    Started {
        /// Tokens of the prompt whose keys and values were there already.
        cached_tokens: usize,
    },
    /// A token of an answer.
    Token {
        /// Which answer.
        answer: usize,
        /// The text that is certain with it, maybe none.
        text: String,
        /// Log-probabilities, where they were asked for.
        logprobs: Option<TokenLogprobs>,
    },
    /// An answer is complete.
    Finished {
        /// Which answer.
        answer: usize,
        /// Why.
        finish: Finish,
        /// Text that was held back until now.
        text: String,
        /// Tokens generated.
        generated_tokens: usize,
    },
    /// The whole job has failed.
    Failed(ApiError),
}

/// What the engine's thread is told.
#[derive(Debug)]
pub(super) enum Command {
    /// A job to queue.
    Submit(Box<Job>),
    /// Take nothing more; finish what is there.
    Drain,
    /// Fail what is left and end.
    Stop,
}
