//! Bodies of requests: what OpenAI's API calls the fields, and what they mean.
//!
//! Every field that is understood has an effect, or cannot change the answer ([`Body::user`] and
//! the like); any other is refused by name, so that nobody is answered something else than asked.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use super::error::ApiError;
use super::images::{self, Album};
use super::prompt::{ImageKey, Prompt};
use super::prompts::Prompts;
use mlxcel_runtime::sampling::{SamplingOptions, SamplingParams};
use mlxcel_runtime::text::{ChatMessage, ChatPrompt};
use mlxcel_runtime::{Processor, PromptInput};

/// Answers to one request at most.
const MAX_ANSWERS: usize = 128;
/// Stop strings of one request at most.
const MAX_STOPS: usize = 16;

/// A body of `/v1/chat/completions` or `/v1/completions`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Body {
    pub(super) model: Option<String>,
    messages: Option<Vec<ChatMessage>>,
    chat_template_kwargs: Option<Map<String, Value>>,
    prompt: Option<Prompts>,
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
    /// Who asks, and how the asker files it: nothing that an answer could depend on.
    #[expect(dead_code, reason = "known, and of no consequence")]
    user: Option<IgnoredAny>,
    #[expect(dead_code, reason = "known, and of no consequence")]
    metadata: Option<IgnoredAny>,
    #[expect(dead_code, reason = "known, and of no consequence")]
    store: Option<IgnoredAny>,
    #[expect(dead_code, reason = "known, and of no consequence")]
    safety_identifier: Option<IgnoredAny>,
    #[expect(dead_code, reason = "known, and of no consequence")]
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

/// Chat asks yes or no, completions ask for a number.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(untagged)]
enum Logprobs {
    Wanted(bool),
    Count(usize),
}

/// Which of the two APIs asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Api {
    Chat,
    Completions,
}

/// A request that makes sense, its prompts tokenized.
#[derive(Clone, Debug)]
pub(super) struct Asked {
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
    /// Reads a body.
    ///
    /// # Errors
    /// What is wrong with it, and where.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, ApiError> {
        parse_json(bytes)
    }

    /// Takes the images out of the messages, as files, in order.
    ///
    /// # Errors
    /// As [`images::take`].
    pub(super) fn take_images(&mut self) -> Result<Vec<Vec<u8>>, ApiError> {
        self.messages.as_deref_mut().map_or_else(|| Ok(Vec::new()), images::take)
    }

    /// What is asked for, with the model's own sampling where nothing is said; `album` has the
    /// images that were taken out.
    ///
    /// # Errors
    /// Values that cannot be, and prompts that cannot be tokenized.
    pub(super) fn understand(
        &self,
        api: Api,
        text: &Processor,
        album: &Album,
    ) -> Result<Asked, ApiError> {
        let n = self.n.unwrap_or(1);
        let options = self.sampling(api, text.sampling())?;
        let sampling = SamplingParams::new(options).map_err(mlxcel_runtime::Error::from)?;
        let stop = match &self.stop {
            None => Vec::new(),
            Some(Stops::One(stop)) => vec![stop.clone()],
            Some(Stops::Many(stops)) => stops.clone(),
        };
        if stop.len() > MAX_STOPS || stop.iter().any(String::is_empty) {
            let message = format!("`stop` takes at most {MAX_STOPS} texts, none of them empty");
            return Err(ApiError::parameter("stop", message));
        }
        let prompts = self.prompts(api, text, album)?;
        if n == 0 || prompts.is_empty() || n.saturating_mul(prompts.len()) > MAX_ANSWERS {
            let message = format!("1 to {MAX_ANSWERS} answers may be asked for at once");
            return Err(ApiError::parameter("n", message));
        }
        let stream = self.stream.unwrap_or(false);
        if self.stream_options.is_some() && !stream {
            let message = "`stream_options` means nothing without `stream`";
            return Err(ApiError::parameter("stream_options", message));
        }
        Ok(Asked {
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

    fn prompts(&self, api: Api, text: &Processor, album: &Album) -> Result<Vec<Prompt>, ApiError> {
        match (api, &self.messages, &self.prompt) {
            (Api::Chat, Some(messages), None) => {
                let variables = self.chat_template_kwargs.as_ref();
                let prompt = ChatPrompt { variables, ..ChatPrompt::new(messages) };
                Ok(vec![encode_chat(&prompt, text, album)?])
            }
            (Api::Completions, None, Some(prompts)) => {
                if self.chat_template_kwargs.is_some() {
                    let message = "completions use no chat template";
                    return Err(ApiError::parameter("chat_template_kwargs", message));
                }
                encode(prompts, text)
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

    /// How many alternatives are reported per token; `None` for no log-probabilities at all.
    fn logprobs(&self, api: Api) -> Result<Option<usize>, ApiError> {
        let wrong = |param, message: &str| Err(ApiError::parameter(param, message));
        match (api, self.logprobs, self.top_logprobs) {
            (_, None | Some(Logprobs::Wanted(false)), None) => Ok(None),
            (Api::Chat, Some(Logprobs::Wanted(true)), top) => Ok(Some(top.unwrap_or(0))),
            (Api::Chat, None | Some(Logprobs::Wanted(false)), Some(_)) => {
                wrong("top_logprobs", "`top_logprobs` needs `logprobs`: true")
            }
            (Api::Completions, Some(Logprobs::Count(count)), None) => Ok(Some(count)),
            (Api::Completions, _, Some(_)) => {
                wrong("top_logprobs", "completions take a number as `logprobs`")
            }
            (Api::Completions, ..) => wrong("logprobs", "`logprobs` is a number here"),
            (Api::Chat, ..) => wrong("logprobs", "`logprobs` is true or false here"),
        }
    }
}

/// The tokens of a conversation, with room for images.
fn encode_chat(
    prompt: &ChatPrompt<'_>,
    text: &Processor,
    album: &Album,
) -> Result<Prompt, ApiError> {
    if album.pictures.is_empty() {
        return Ok(Prompt::text(text.encode_chat(prompt)?));
    }
    let encoded = text.encode_with_images(PromptInput::Chat(prompt), &album.pictures)?;
    let reading = encoded.placement;
    let places = encoded.image_starts.iter().zip(&encoded.image_tokens);
    let key = |((start, tokens), digest): ((&usize, &usize), &[u8; 32])| ImageKey {
        tokens: *start..start + tokens,
        digest: *digest,
        reading,
    };
    let images = places.zip(&album.digests).map(key).collect();
    Ok(Prompt { tokens: encoded.tokens, images })
}

fn encode(prompts: &Prompts, text: &Processor) -> Result<Vec<Prompt>, ApiError> {
    let tokenizer = text.tokenizer();
    let encode = |text: &String| {
        Ok(Prompt::text(tokenizer.encode_prompt(text).map_err(mlxcel_runtime::Error::from)?))
    };
    match prompts {
        Prompts::Texts(texts) => texts.iter().map(encode).collect(),
        Prompts::Tokens(prompts) => Ok(prompts.iter().cloned().map(Prompt::text).collect()),
    }
}

/// Reads JSON; what is wrong with it is a 400.
///
/// # Errors
/// What serde says, shortened.
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
    /// Whether the special tokens around a prompt are added.
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

    use super::super::intake::{Intake, Wait};
    use super::*;
    use mlxcel_runtime::engine::ModelSource;

    fn understand(api: Api, body: &str) -> Result<Asked, String> {
        let text = Processor::load(&ModelSource::BuiltIn).unwrap();
        let body = Body::parse(body.as_bytes());
        let asked = body.and_then(|body| {
            let ticket = Arc::new(Intake::new(0)).ticket();
            let none = Album::decode(Vec::new(), ticket, &Wait::new(Duration::ZERO).1).unwrap();
            body.understand(api, &text, &none)
        });
        asked.map_err(|error| error.json()["error"]["message"].as_str().unwrap().to_owned())
    }

    #[test]
    fn every_field_arrives() {
        let body = r#"{"prompt": "Once", "max_tokens": 7, "n": 2, "stop": ["a", "b"], "seed": -1,
            "temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.1, "presence_penalty": 0.25,
            "frequency_penalty": -0.5, "repeat_penalty": 1.5, "logit_bias": {"5": -100},
            "logprobs": 3, "stream": true, "stream_options": {"include_usage": true}}"#;
        let asked = understand(Api::Completions, body).unwrap();
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
        assert_eq!(asked.sampling.options(), &expected);
        assert_eq!((asked.max_tokens, asked.n, asked.stream), (Some(7), 2, true));
        assert_eq!((asked.stop, asked.include_usage), (vec!["a".into(), "b".into()], true));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let check = |api, body: &str, expected: &str| {
            let error = understand(api, body).unwrap_err();
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
