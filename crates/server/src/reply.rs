//! Answers on the wire: OpenAI's objects, whole or in chunks.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::job::Event;
use super::request::Api;
use mlxcel_runtime::engine::Finish;
use mlxcel_runtime::sampling::{TokenLogprob, TokenLogprobs};
use mlxcel_runtime::text::Tokenizer;

/// What OpenAI's API writes for a probability of 0, since JSON has no infinity.
const IMPOSSIBLE: f32 = -9999.0;

/// What all parts of one reply have in common.
#[derive(Clone, Debug)]
pub(super) struct Reply {
    pub(super) api: Api,
    pub(super) id: String,
    /// Seconds since 1970.
    pub(super) created: u64,
    pub(super) model: String,
    pub(super) tokenizer: Tokenizer,
    pub(super) prompt_tokens: usize,
    /// Answers in all.
    pub(super) answers: usize,
}

/// Counts that a reply ends with.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Usage {
    pub(super) cached_tokens: usize,
    pub(super) generated_tokens: usize,
}

impl Reply {
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

    /// A chunk of a stream, with these choices.
    pub(super) fn chunk(&self, choices: Vec<Value>, usage: Option<Usage>) -> Value {
        let object = match self.api {
            Api::Chat => "chat.completion.chunk",
            Api::Completions => "text_completion",
        };
        self.object(object, choices, usage)
    }

    /// The first chunk of an answer, which says whose it is; completions have none.
    pub(super) fn opening(&self, answer: usize) -> Option<Value> {
        (self.api == Api::Chat).then(|| {
            json!({
                "index": answer, "delta": { "role": "assistant", "content": "" },
                "logprobs": null, "finish_reason": null,
            })
        })
    }

    /// A piece of an answer.
    pub(super) fn piece(
        &self,
        answer: usize,
        text: &str,
        logprobs: Value,
        finish: Option<Finish>,
    ) -> Value {
        let finish_reason = finish.map(Finish::name);
        match self.api {
            Api::Chat => {
                let delta = if text.is_empty() { json!({}) } else { json!({ "content": text }) };
                json!({
                    "index": answer, "delta": delta, "logprobs": logprobs,
                    "finish_reason": finish_reason,
                })
            }
            Api::Completions => json!({
                "index": answer, "text": text, "logprobs": logprobs, "finish_reason": finish_reason,
            }),
        }
    }

    /// A whole reply.
    pub(super) fn whole(&self, gathered: &Gathered) -> Value {
        let choices = gathered.answers.iter().enumerate().map(|(index, answer)| {
            let logprobs = match answer.logprobs.is_empty() {
                true => Value::Null,
                false => self.logprobs(&answer.logprobs, 0),
            };
            let finish_reason = answer.finish.map(Finish::name);
            match self.api {
                Api::Chat => json!({
                    "index": index, "logprobs": logprobs, "finish_reason": finish_reason,
                    "message": { "role": "assistant", "content": answer.text, "refusal": null },
                }),
                Api::Completions => json!({
                    "index": index, "text": answer.text, "logprobs": logprobs,
                    "finish_reason": finish_reason,
                }),
            }
        });
        let object = match self.api {
            Api::Chat => "chat.completion",
            Api::Completions => "text_completion",
        };
        self.object(object, choices.collect(), Some(gathered.usage))
    }

    /// Log-probabilities of consecutive tokens, the first of which starts `offset` characters
    /// after the prompt.
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
                let top = |token: &TokenLogprobs| {
                    let pairs = token.top.iter().map(|top| (self.text(*top), number(top.logprob)));
                    pairs.collect::<BTreeMap<_, _>>()
                };
                let mut offset = offset;
                let offsets: Vec<usize> = tokens
                    .iter()
                    .map(|t| {
                        let start = offset;
                        offset += self.text(t.chosen).chars().count();
                        start
                    })
                    .collect();
                json!({
                    "tokens": tokens.iter().map(|t| self.text(t.chosen)).collect::<Vec<_>>(),
                    "token_logprobs":
                        tokens.iter().map(|t| number(t.chosen.logprob)).collect::<Vec<_>>(),
                    "top_logprobs": tokens.iter().map(top).collect::<Vec<_>>(),
                    "text_offset": offsets,
                })
            }
        }
    }

    /// Characters that a token stands for.
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
    logprob.max(IMPOSSIBLE)
}

/// Answers as they come together.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    answers: Vec<Gathering>,
    open: usize,
    usage: Usage,
}

#[derive(Debug, Default)]
struct Gathering {
    text: String,
    logprobs: Vec<TokenLogprobs>,
    finish: Option<Finish>,
}

impl Gathered {
    /// Room for `answers` answers.
    pub(super) fn new(answers: usize) -> Self {
        let answers: Vec<_> = (0..answers).map(|_| Gathering::default()).collect();
        Self { open: answers.len(), answers, usage: Usage::default() }
    }

    /// Whether all are complete.
    pub(super) fn complete(&self) -> bool {
        self.open == 0
    }

    /// Takes an event that is no failure.
    pub(super) fn take(&mut self, event: Event) {
        match event {
            Event::Started { cached_tokens } => self.usage.cached_tokens += cached_tokens,
            Event::Token { answer, text, logprobs } => {
                if let Some(gathering) = self.answers.get_mut(answer) {
                    gathering.text.push_str(&text);
                    gathering.logprobs.extend(logprobs);
                }
            }
            Event::Finished { answer, finish, text, generated_tokens } => {
                if let Some(gathering) = self.answers.get_mut(answer) {
                    gathering.text.push_str(&text);
                    gathering.finish = Some(finish);
                }
                self.usage.generated_tokens += generated_tokens;
                self.open = self.open.saturating_sub(1);
            }
            Event::Failed(_) => {}
        }
    }
}
