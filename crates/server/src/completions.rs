//! Completions as OpenAI's JSON objects, whole or in chunks.

use std::collections::BTreeMap;

use mlxcel_runtime::engine::Finish;
use mlxcel_runtime::sampling::{TokenLogprob, TokenLogprobs};
use mlxcel_runtime::text::Tokenizer;
use serde::Serialize;
use serde_json::{Value, json};

use super::messages::EngineEvent;
use super::request::Api;

/// Log-probability of an impossible token in OpenAI's API, since JSON has no infinity.
const MIN_LOGPROB: f32 = -9999.0;

/// Fields that all parts of one response have in common.
#[derive(Clone, Debug)]
pub(super) struct ResponseBuilder {
    pub(super) api: Api,
    pub(super) id: String,
    /// Seconds since 1970.
    pub(super) created: u64,
    pub(super) model: String,
    pub(super) tokenizer: Tokenizer,
    pub(super) prompt_tokens: usize,
    /// Number of completions.
    pub(super) completions: usize,
}

/// Token counts at the end of a response.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Usage {
    pub(super) cached_tokens: usize,
    pub(super) generated_tokens: usize,
}

/// Log-probabilities of the completions API; the fields are the JSON's keys.
#[derive(Debug, Default, Serialize)]
struct LogprobLists {
    tokens: Vec<String>,
    token_logprobs: Vec<f32>,
    top_logprobs: Vec<BTreeMap<String, f32>>,
    text_offset: Vec<usize>,
}

impl ResponseBuilder {
    fn object(&self, object: &str, choices: Vec<Value>, usage: Option<Usage>) -> Value {
        let mut value = json!({
            "id": self.id, "object": object, "created": self.created, "model": self.model,
            "choices": choices,
        });
        if let (Some(usage), Value::Object(object)) = (usage, &mut value) {
            object.insert("usage".into(), self.usage(usage));
        }
        value
    }

    fn usage(&self, usage: Usage) -> Value {
        json!({
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": usage.generated_tokens,
            "total_tokens": self.prompt_tokens + usage.generated_tokens,
            "prompt_tokens_details": { "cached_tokens": usage.cached_tokens },
        })
    }

    /// A chunk of a stream with `choices`.
    pub(super) fn chunk(&self, choices: Vec<Value>, usage: Option<Usage>) -> Value {
        let object = match self.api {
            Api::Chat => "chat.completion.chunk",
            Api::Completions => "text_completion",
        };
        self.object(object, choices, usage)
    }

    /// The first choice of a chat completion, which states its role; the completions API has none.
    pub(super) fn opening(&self, index: usize) -> Option<Value> {
        (self.api == Api::Chat).then(|| {
            json!({
                "index": index, "delta": { "role": "assistant", "content": "" },
                "logprobs": null, "finish_reason": null,
            })
        })
    }

    /// A choice with the next text of a completion.
    pub(super) fn piece(
        &self,
        index: usize,
        text: &str,
        logprobs: Value,
        finish: Option<Finish>,
    ) -> Value {
        let finish_reason = finish.map(Finish::name);
        match self.api {
            Api::Chat => {
                let delta = if text.is_empty() { json!({}) } else { json!({ "content": text }) };
                json!({
                    "index": index, "delta": delta, "logprobs": logprobs,
                    "finish_reason": finish_reason,
                })
            }
            Api::Completions => json!({
                "index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason,
            }),
        }
    }

    /// The response of a request without `stream`.
    pub(super) fn whole(&self, collected: &CollectedCompletions) -> Value {
        let choices = collected.completions.iter().enumerate().map(|(index, completion)| {
            let logprobs = match completion.logprobs.is_empty() {
                true => Value::Null,
                false => self.logprobs(&completion.logprobs, 0),
            };
            let finish_reason = completion.finish.map(Finish::name);
            match self.api {
                Api::Chat => json!({
                    "index": index, "logprobs": logprobs, "finish_reason": finish_reason,
                    "message": { "role": "assistant", "content": completion.text, "refusal": null },
                }),
                Api::Completions => json!({
                    "index": index, "text": completion.text, "logprobs": logprobs,
                    "finish_reason": finish_reason,
                }),
            }
        });
        let object = match self.api {
            Api::Chat => "chat.completion",
            Api::Completions => "text_completion",
        };
        self.object(object, choices.collect(), Some(collected.usage))
    }

    /// Log-probabilities of consecutive tokens. The first one starts `offset` characters after the
    /// prompt.
    pub(super) fn logprobs(&self, tokens: &[TokenLogprobs], offset: usize) -> Value {
        match self.api {
            Api::Chat => {
                let content = tokens.iter().map(|token| {
                    let mut entry = self.entry(token.chosen);
                    entry["top_logprobs"] = token.top.iter().map(|top| self.entry(*top)).collect();
                    entry
                });
                json!({ "content": content.collect::<Vec<_>>(), "refusal": null })
            }
            Api::Completions => {
                let mut lists = LogprobLists::default();
                let mut offset = offset;
                for token in tokens {
                    let text = self.text(token.chosen);
                    lists.text_offset.push(offset);
                    offset += text.chars().count();
                    lists.tokens.push(text);
                    lists.token_logprobs.push(number(token.chosen.logprob));
                    let top = token.top.iter();
                    let top = top.map(|top| (self.text(*top), number(top.logprob)));
                    lists.top_logprobs.push(top.collect());
                }
                json!(lists)
            }
        }
    }

    /// Number of characters of a token.
    pub(super) fn characters(&self, token: &TokenLogprobs) -> usize {
        self.text(token.chosen).chars().count()
    }

    fn entry(&self, token: TokenLogprob) -> Value {
        let bytes = self.tokenizer.token_bytes(token.token).unwrap_or_default();
        json!({
            "token": String::from_utf8_lossy(&bytes),
            "logprob": number(token.logprob),
            "bytes": bytes,
        })
    }

    fn text(&self, token: TokenLogprob) -> String {
        let bytes = self.tokenizer.token_bytes(token.token).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

fn number(logprob: f32) -> f32 {
    logprob.max(MIN_LOGPROB)
}

/// Completions of a request without `stream`, collected from events.
#[derive(Debug, Default)]
pub(super) struct CollectedCompletions {
    completions: Vec<CollectedCompletion>,
    open: usize,
    usage: Usage,
}

#[derive(Debug, Default)]
struct CollectedCompletion {
    text: String,
    logprobs: Vec<TokenLogprobs>,
    finish: Option<Finish>,
}

impl CollectedCompletions {
    /// Room for `n` completions.
    pub(super) fn new(n: usize) -> Self {
        let completions = (0..n).map(|_| CollectedCompletion::default()).collect();
        Self { open: n, completions, usage: Usage::default() }
    }

    /// Returns true if all completions are finished.
    pub(super) fn is_complete(&self) -> bool {
        self.open == 0
    }

    /// Adds an event other than a failure.
    pub(super) fn add(&mut self, event: EngineEvent) {
        match event {
            EngineEvent::Started { cached_tokens } => self.usage.cached_tokens += cached_tokens,
            EngineEvent::Token { index, text, logprobs } => {
                if let Some(completion) = self.completions.get_mut(index) {
                    completion.text.push_str(&text);
                    completion.logprobs.extend(logprobs);
                }
            }
            EngineEvent::Finished { index, finish, text, generated_tokens } => {
                if let Some(completion) = self.completions.get_mut(index) {
                    completion.text.push_str(&text);
                    completion.finish = Some(finish);
                }
                self.usage.generated_tokens += generated_tokens;
                self.open = self.open.saturating_sub(1);
            }
            EngineEvent::Failed(_) => {}
        }
    }
}
