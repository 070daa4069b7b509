//! Request bodies: the fields of OpenAI's API, and their validation.
//!
//! Every accepted field has an effect, or cannot change a completion ([`Body::user`] and the like).
//! Any other field is refused by name, so that no request is silently answered differently.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use super::error::ApiError;
use super::images::{self, DecodedImages};
use super::prompt::{Prompt, PromptImage};
use super::prompt_field::PromptField;
use mlxcel_runtime::sampling::{SamplingOptions, SamplingParams};
use mlxcel_runtime::text::{ChatMessage, ChatPrompt};
use mlxcel_runtime::{Processor, PromptInput};

/// Maximum number of completions of one request.
const MAX_COMPLETIONS: usize = 128;
/// Maximum number of stop strings of one request.
const MAX_STOPS: usize = 16;

/// A body of `/v1/chat/completions` or `/v1/completions`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Body {
    pub(super) model: Option<String>,
    messages: Option<Vec<ChatMessage>>,
    chat_template_kwargs: Option<Map<String, Value>>,
    prompt: Option<PromptField>,
    #[serde(default)]
    pub(super) stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    max_tokens: Option<usize>,
    max_completion_tokens: Option<usize>,
    n: Option<usize>,
    stop: Option<Stops>,
    seed: Option<i64>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    top_k: Option<i64>,
    #[serde(alias = "repeat_penalty")]
    repetition_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    logit_bias: Option<BTreeMap<String, f32>>,
    logprobs: Option<Logprobs>,
    top_logprobs: Option<usize>,
    ignore_eos: Option<bool>,
    /// Identity and bookkeeping of the client: nothing that a completion could depend on.
    #[expect(dead_code, reason = "accepted, without effect")]
    user: Option<IgnoredAny>,
    #[expect(dead_code, reason = "accepted, without effect")]
    metadata: Option<IgnoredAny>,
    #[expect(dead_code, reason = "accepted, without effect")]
    store: Option<IgnoredAny>,
    #[expect(dead_code, reason = "accepted, without effect")]
    safety_identifier: Option<IgnoredAny>,
    #[expect(dead_code, reason = "accepted, without effect")]
    prompt_cache_key: Option<IgnoredAny>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Stops {
    One(String),
    Many(Vec<String>),
}

/// A flag in chat, a number in completions.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(untagged)]
enum Logprobs {
    Wanted(bool),
    Count(usize),
}

/// The two APIs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Api {
    Chat,
    Completions,
}

/// A valid request, with its prompts tokenized.
#[derive(Clone, Debug)]
pub(super) struct ValidatedRequest {
    pub(super) prompts: Vec<Prompt>,
    pub(super) n: usize,
    pub(super) max_tokens: Option<usize>,
    pub(super) sampling: SamplingParams,
    pub(super) stop: Vec<String>,
    pub(super) ignore_eos: bool,
    pub(super) stream: bool,
    pub(super) include_usage: bool,
}

impl Body {
    /// Parses a body.
    ///
    /// # Errors
    /// 400 with the position of the mistake.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, ApiError> {
        parse_json(bytes)
    }

    /// Takes the files of images out of the messages, in order.
    ///
    /// # Errors
    /// Errors of [`images::take_files`].
    pub(super) fn take_images(&mut self) -> Result<Vec<Vec<u8>>, ApiError> {
        self.messages.as_deref_mut().map_or_else(|| Ok(Vec::new()), images::take_files)
    }

    /// Checks all fields and tokenizes the prompts. The model's own sampling is the default;
    /// `images` are those that were taken out of the messages.
    ///
    /// # Errors
    /// Values out of range, and prompts that cannot be tokenized.
    pub(super) fn validate(
        &self,
        api: Api,
        processor: &Processor,
        images: &DecodedImages,
    ) -> Result<ValidatedRequest, ApiError> {
        let n = self.n.unwrap_or(1);
        let options = self.sampling(api, processor.sampling())?;
        let sampling = SamplingParams::new(options)?;
        let stop = match &self.stop {
            None => Vec::new(),
            Some(Stops::One(stop)) => vec![stop.clone()],
            Some(Stops::Many(stops)) => stops.clone(),
        };
        if stop.len() > MAX_STOPS || stop.iter().any(String::is_empty) {
            let message = format!("`stop` takes at most {MAX_STOPS} texts, none of them empty");
            return Err(ApiError::parameter("stop", message));
        }
        let prompts = self.prompts(api, processor, images)?;
        if n == 0 || prompts.is_empty() || n.saturating_mul(prompts.len()) > MAX_COMPLETIONS {
            let message = format!("1 to {MAX_COMPLETIONS} completions may be requested at once");
            return Err(ApiError::parameter("n", message));
        }
        let stream = self.stream.unwrap_or(false);
        if self.stream_options.is_some() && !stream {
            let message = "`stream_options` needs `stream`: true";
            return Err(ApiError::parameter("stream_options", message));
        }
        Ok(ValidatedRequest {
            prompts,
            n,
            max_tokens: self.max_tokens()?,
            sampling,
            stop,
            ignore_eos: self.ignore_eos.unwrap_or(false),
            stream,
            include_usage: self.stream_options.as_ref().is_some_and(|o| o.include_usage),
        })
    }

    fn max_tokens(&self) -> Result<Option<usize>, ApiError> {
        match (self.max_completion_tokens, self.max_tokens) {
            (Some(new), Some(old)) if new != old => Err(ApiError::parameter(
                "max_tokens",
                "`max_tokens` and `max_completion_tokens` contradict each other",
            )),
            (new, old) => match new.or(old) {
                Some(0) => Err(ApiError::parameter("max_tokens", "`max_tokens` is at least 1")),
                tokens => Ok(tokens),
            },
        }
    }

    fn prompts(
        &self,
        api: Api,
        processor: &Processor,
        images: &DecodedImages,
    ) -> Result<Vec<Prompt>, ApiError> {
        match (api, &self.messages, &self.prompt) {
            (Api::Chat, Some(messages), None) => {
                let variables = self.chat_template_kwargs.as_ref();
                let prompt = ChatPrompt { variables, ..ChatPrompt::new(messages) };
                Ok(vec![encode_chat(&prompt, processor, images)?])
            }
            (Api::Completions, None, Some(prompts)) => {
                if self.chat_template_kwargs.is_some() {
                    let message = "completions do not use the chat template";
                    return Err(ApiError::parameter("chat_template_kwargs", message));
                }
                encode_prompts(prompts, processor)
            }
            (Api::Chat, ..) => {
                Err(ApiError::parameter("messages", "chat needs `messages`, and no `prompt`"))
            }
            (Api::Completions, ..) => {
                Err(ApiError::parameter("prompt", "completions need `prompt`, and no `messages`"))
            }
        }
    }

    fn sampling(&self, api: Api, model: &SamplingOptions) -> Result<SamplingOptions, ApiError> {
        let top_k = self.top_k.map(|k| usize::try_from(k).ok().filter(|k| *k > 0));
        Ok(SamplingOptions {
            temperature: self.temperature.unwrap_or(model.temperature),
            top_k: top_k.unwrap_or(model.top_k),
            top_p: self.top_p.or(model.top_p),
            min_p: self.min_p.or(model.min_p),
            repetition_penalty: self.repetition_penalty.or(model.repetition_penalty),
            presence_penalty: self.presence_penalty.or(model.presence_penalty),
            frequency_penalty: self.frequency_penalty.or(model.frequency_penalty),
            logit_bias: self.logit_bias()?,
            seed: self.seed.map(i64::cast_unsigned),
            logprobs: self.logprobs(api)?,
            ..model.clone()
        })
    }

    fn logit_bias(&self) -> Result<Vec<(u32, f32)>, ApiError> {
        let pairs = self.logit_bias.iter().flatten().map(|(token, bias)| {
            let token = token.parse().map_err(|_| {
                ApiError::parameter("logit_bias", "the keys of `logit_bias` are token ids")
            })?;
            Ok((token, *bias))
        });
        pairs.collect()
    }

    /// Number of alternatives to report per token; `None` for no log-probabilities at all.
    fn logprobs(&self, api: Api) -> Result<Option<usize>, ApiError> {
        let error = match (api, self.logprobs, self.top_logprobs) {
            (_, None | Some(Logprobs::Wanted(false)), None) => return Ok(None),
            (Api::Chat, Some(Logprobs::Wanted(true)), top) => return Ok(Some(top.unwrap_or(0))),
            (Api::Completions, Some(Logprobs::Count(count)), None) => return Ok(Some(count)),
            (Api::Chat, None | Some(Logprobs::Wanted(false)), Some(_)) => {
                ApiError::parameter("top_logprobs", "`top_logprobs` needs `logprobs`: true")
            }
            (Api::Completions, _, Some(_)) => {
                ApiError::parameter("top_logprobs", "completions take a number as `logprobs`")
            }
            (Api::Completions, ..) => {
                ApiError::parameter("logprobs", "`logprobs` is a number here")
            }
            (Api::Chat, ..) => ApiError::parameter("logprobs", "`logprobs` is true or false here"),
        };
        Err(error)
    }
}

/// Tokens of a conversation, with placeholders for images.
fn encode_chat(
    prompt: &ChatPrompt<'_>,
    processor: &Processor,
    images: &DecodedImages,
) -> Result<Prompt, ApiError> {
    if images.images.is_empty() {
        return Ok(Prompt::text(processor.encode_chat(prompt)?));
    }
    let encoded = processor.encode_with_images(PromptInput::Chat(prompt), &images.images)?;
    let places = encoded.image_starts.iter().zip(&encoded.image_tokens).zip(&images.digests);
    let images = places.map(|((start, tokens), digest)| PromptImage {
        tokens: *start..start + tokens,
        digest: *digest,
        placement: encoded.placement,
    });
    let images = images.collect();
    Ok(Prompt { tokens: encoded.tokens, images })
}

/// Tokens of the field `prompt`.
fn encode_prompts(field: &PromptField, processor: &Processor) -> Result<Vec<Prompt>, ApiError> {
    match field {
        PromptField::Texts(texts) => {
            let mut prompts = Vec::new();
            for prompt in texts {
                prompts.push(Prompt::text(processor.tokenizer().encode_prompt(prompt)?));
            }
            Ok(prompts)
        }
        PromptField::Tokens(prompts) => Ok(prompts.iter().cloned().map(Prompt::text).collect()),
    }
}

/// Parses JSON.
///
/// # Errors
/// 400 with serde's message, shortened.
pub(super) fn parse_json<T: for<'a> Deserialize<'a>>(bytes: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(bytes).map_err(|error| {
        let text: String = error.to_string().chars().take(300).collect();
        ApiError::invalid(format!("the body is not what this address takes: {text}"))
    })
}

/// A body of `/tokenize`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Tokenize {
    /// The text.
    pub(super) content: String,
    /// True if special tokens are added as around a prompt.
    #[serde(default)]
    pub(super) add_special: bool,
}

/// A body of `/detokenize`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Detokenize {
    /// The tokens.
    pub(super) tokens: Vec<u32>,
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::super::request_budget::{RequestBudget, WaitLimit};
    use super::*;
    use mlxcel_runtime::engine::ModelSource;

    fn validate(api: Api, body: &str) -> Result<ValidatedRequest, String> {
        let processor = Processor::load(&ModelSource::BuiltIn).unwrap();
        let body = Body::parse(body.as_bytes());
        let validated = body.and_then(|body| {
            let reservation = Arc::new(RequestBudget::new(0)).reservation();
            let (_client, limit) = WaitLimit::new(Duration::ZERO);
            let none = DecodedImages::decode(Vec::new(), reservation, &limit).unwrap();
            body.validate(api, &processor, &none)
        });
        validated.map_err(|error| error.message().to_owned())
    }

    #[test]
    fn every_field_has_an_effect() {
        let body = r#"{"prompt": "Once", "max_tokens": 7, "n": 2, "stop": ["a", "b"], "seed": -1,
            "temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.1, "presence_penalty": 0.25,
            "frequency_penalty": -0.5, "repeat_penalty": 1.5, "logit_bias": {"5": -100},
            "logprobs": 3, "stream": true, "stream_options": {"include_usage": true}}"#;
        let request = validate(Api::Completions, body).unwrap();
        let expected = SamplingOptions {
            temperature: 0.5,
            top_k: Some(40),
            top_p: Some(0.9),
            min_p: Some(0.1),
            repetition_penalty: Some(1.5),
            presence_penalty: Some(0.25),
            frequency_penalty: Some(-0.5),
            logit_bias: vec![(5, -100.0)],
            seed: Some(u64::MAX),
            logprobs: Some(3),
            ..SamplingOptions::default()
        };
        assert_eq!(request.sampling.options(), &expected);
        assert_eq!((request.max_tokens, request.n, request.stream), (Some(7), 2, true));
        assert_eq!((request.stop, request.include_usage), (vec!["a".into(), "b".into()], true));
    }

    #[test]
    fn invalid_fields_are_named() {
        let check = |api, body: &str, expected: &str| {
            let error = validate(api, body).unwrap_err();
            assert!(error.contains(expected), "{body}: {error}");
        };
        check(Api::Completions, r#"{"prompt": "a", "best_of": 3}"#, "unknown field `best_of`");
        check(Api::Completions, r#"{"prompt": "a", "n": 0}"#, "1 to 128");
        check(Api::Completions, r#"{"prompt": []}"#, "1 to 128");
        check(Api::Completions, r#"{"prompt": "a", "stop": ""}"#, "none of them empty");
        check(Api::Completions, r#"{"prompt": "a", "temperature": -1}"#, "temperature is -1");
        check(Api::Completions, r#"{"prompt": "a", "logprobs": true}"#, "is a number here");
        check(Api::Completions, r#"{"messages": []}"#, "completions need `prompt`");
        check(Api::Chat, r#"{"prompt": "a"}"#, "chat needs `messages`");
        check(Api::Chat, r#"{"messages": [], "top_logprobs": 2}"#, "needs `logprobs`");
        check(Api::Completions, r#"{"prompt": "a", "max_tokens": 0}"#, "at least 1");
        check(Api::Completions, "{\"prompt\": \"\u{1}\"}", "control character");
        check(Api::Completions, r#"{"prompt": "a", "logit_bias": {"x": 1}}"#, "token ids");
    }
}
