//! A conversation of several turns over one cache.
//!
//! Owns the messages, the cache and what is in it. A turn renders the whole conversation anew and
//! reads only what the cache does not hold already: where a template rewrites what was said before
//! (Qwen3 drops old thoughts), the cache is cut back to the common beginning; where it cannot be
//! cut (a sliding window has dropped that place), it starts afresh. So a turn's answer is the one
//! that the whole conversation would get from an empty cache.
//!
//! Without a chat template the model continues one text: an answer goes on where the message ends,
//! and the next message begins a line.

use std::ops::ControlFlow;
use std::path::Path;

use mlxcel_core::SequenceCache;
use serde::{Deserialize, Serialize};

use crate::engine::{Engine, Finish, Generation, Outcome, Progress, generate_into, room};
use crate::sampling::SamplingParams;
use crate::text::{ChatMessage, ChatPrompt, Content};
use crate::{Error, Processor, Result};

/// What a saved conversation calls its format.
const SCHEMA: &str = "mlxcel.chat/1";

/// A length that no answer reaches, for a model that states no context.
const UNLIMITED_TOKENS: usize = 1 << 20;

/// How an answer is made.
#[derive(Clone, Debug)]
pub struct AnswerOptions {
    /// Tokens that the conversation may have.
    pub context: Option<usize>,
    /// Tokens that an answer may have; `None`: what is left of the context.
    pub max_tokens: Option<usize>,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// Texts that end an answer.
    pub stop: Vec<String>,
}

/// Several turns with one model.
pub struct Conversation<'a> {
    engine: &'a Engine,
    text: &'a Processor,
    system: Option<String>,
    messages: Vec<ChatMessage>,
    cache: SequenceCache,
    /// The tokens that the cache holds.
    held: Vec<u32>,
}

#[derive(Serialize, Deserialize)]
struct Saved {
    schema: String,
    messages: Vec<ChatMessage>,
}

impl<'a> Conversation<'a> {
    /// An empty conversation; `system` stands before it, also after [`Self::clear`].
    ///
    /// # Errors
    /// A cache mode that the model cannot take.
    pub fn new(engine: &'a Engine, text: &'a Processor, system: Option<&str>) -> Result<Self> {
        let (messages, held) = (Vec::new(), Vec::new());
        let system = system.map(str::to_owned);
        let mut new = Self { engine, text, system, messages, cache: engine.new_cache()?, held };
        new.clear();
        Ok(new)
    }

    /// Forgets everything that was said. What of the cache the next turn can use stays.
    pub fn clear(&mut self) {
        let system = self.system.iter().map(|text| ChatMessage::text("system", text));
        self.messages = system.collect();
    }

    /// What was said, the system message first where there is one.
    #[must_use]
    pub fn messages(&self) -> &[ChatMessage] {
        &self.messages
    }

    /// Tokens in the cache.
    #[must_use]
    pub fn cached_tokens(&self) -> usize {
        self.cache.tokens()
    }

    /// Bytes of the cache.
    #[must_use]
    pub fn cache_bytes(&self) -> usize {
        self.cache.allocated_bytes()
    }

    /// Says `message` and generates the answer; `emit` receives its text as it becomes final, and
    /// may break off: what was said until then stays in the conversation.
    ///
    /// # Errors
    /// A conversation that has no room in the context, or that the template refuses; a prompt that
    /// was broken off; failed operations. The message is not part of the conversation then.
    pub fn answer(
        &mut self,
        message: &str,
        options: &AnswerOptions,
        progress: &mut dyn Progress,
        emit: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Outcome> {
        self.messages.push(ChatMessage::text("user", message));
        let mut said = String::new();
        let mut record = |piece: &str| {
            said.push_str(piece);
            emit(piece)
        };
        let outcome = self.generate(options, progress, &mut record);
        match &outcome {
            Ok(_) => self.messages.push(ChatMessage::text("assistant", said)),
            Err(_) => drop(self.messages.pop()),
        }
        outcome
    }

    fn generate(
        &mut self,
        options: &AnswerOptions,
        progress: &mut dyn Progress,
        emit: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Outcome> {
        let prompt = self.prompt()?;
        let wanted = options.max_tokens;
        let max_tokens = room(options.context, prompt.len(), wanted, UNLIMITED_TOKENS)?;
        self.reuse(&prompt)?;
        let request = Generation {
            prompt: &prompt,
            max_tokens,
            sampling: options.sampling.clone(),
            stop: &options.stop,
            ignore_eos: false,
        };
        let tokenizer = self.text.tokenizer();
        let cache = &mut self.cache;
        let outcome = generate_into(self.engine, tokenizer, &request, cache, progress, emit);
        self.held = prompt;
        if let Ok(outcome) = &outcome {
            self.held.extend_from_slice(&outcome.tokens);
        }
        // The last token was sampled and not read; after a failure less than the prompt was.
        self.held.truncate(self.cache.tokens());
        outcome
    }

    /// The conversation as the model reads it.
    fn prompt(&self) -> Result<Vec<u32>> {
        if self.text.template().is_some() {
            return self.text.encode_chat(&ChatPrompt::new(&self.messages));
        }
        let mut all = String::new();
        for message in &self.messages {
            if message.role == "user" && !all.is_empty() {
                all.push('\n');
            }
            if let Some(Content::Text(text)) = &message.content {
                all.push_str(text);
            }
        }
        Ok(self.text.tokenizer().encode_prompt(&all)?)
    }

    /// Cuts the cache back to what it has in common with `prompt`, and at least one token short of
    /// it, since the last one must be read to know what follows.
    fn reuse(&mut self, prompt: &[u32]) -> Result<()> {
        let same = self.held.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        let keep = same.min(prompt.len().saturating_sub(1));
        if self.cache.trim(keep).is_err() {
            self.cache = self.engine.new_cache()?;
        }
        self.held.truncate(self.cache.tokens());
        Ok(())
    }

    /// Writes what was said to `path`, as JSON.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let saved = Saved { schema: SCHEMA.to_owned(), messages: self.messages.clone() };
        let json = serde_json::to_string_pretty(&saved).map_err(|error| invalid(path, error))?;
        crate::disk::write_atomically(path, &(json + "\n"))
            .map_err(|source| Error::Io { path: path.to_owned(), source })
    }

    /// Goes on with the conversation that was saved to `path`.
    ///
    /// # Errors
    /// A file that cannot be read or is no saved conversation; this one is unchanged then.
    pub fn load(&mut self, path: &Path) -> Result<()> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| Error::Io { path: path.to_owned(), source })?;
        let saved: Saved = serde_json::from_str(&text).map_err(|error| invalid(path, error))?;
        if saved.schema != SCHEMA {
            return Err(invalid(path, format!("its schema is not {SCHEMA}")));
        }
        self.messages = saved.messages;
        Ok(())
    }
}

fn invalid(path: &Path, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    let source = std::io::Error::new(std::io::ErrorKind::InvalidData, error);
    Error::Io { path: path.to_owned(), source }
}

/// Whether an answer was broken off.
#[must_use]
pub fn was_interrupted(outcome: &Result<Outcome>) -> bool {
    match outcome {
        Ok(outcome) => outcome.finish == Finish::Interrupted,
        Err(error) => matches!(error, Error::Interrupted),
    }
}
