//! A model's text side in one value: tokenizer, chat template, default sampling.

use serde::Deserialize;

use crate::engine::ModelSource;
use crate::loading::{read_config, size_of};
use crate::sampling::SamplingOptions;
use crate::text::{ChatPrompt, ChatTemplate, TextError, TextFiles, Tokenizer};
use crate::{Result, builtin};

/// Everything that turns a person's text into a model's tokens and back.
pub struct ModelText {
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
    sampling: SamplingOptions,
    context: Option<usize>,
}

/// The part of `generation_config.json` that concerns sampling.
#[derive(Debug, Default, Deserialize)]
struct GenerationConfig {
    #[serde(default)]
    do_sample: bool,
    temperature: Option<f32>,
    top_k: Option<usize>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
}

impl ModelText {
    /// Reads the model's text files.
    ///
    /// # Errors
    /// A model that [`read_config`] refuses, then a missing or broken `tokenizer.json`, chat
    /// template or `generation_config.json`.
    pub fn load(source: &ModelSource) -> Result<Self> {
        let context = size_of(&read_config(source)?, "max_position_embeddings");
        let files = match source {
            ModelSource::BuiltIn => TextFiles::Embedded(builtin::FILES),
            ModelSource::Folder(dir) => TextFiles::Folder(dir),
        };
        let template = match ChatTemplate::load(&files) {
            Ok(template) => Some(template),
            Err(TextError::NoChatTemplate { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        let config: GenerationConfig = files.json("generation_config.json")?.unwrap_or_default();
        let tokenizer = Tokenizer::load(&files)?;
        Ok(Self { tokenizer, template, sampling: config.sampling(), context })
    }

    /// The model's own limit on tokens per sequence, where its configuration states one.
    #[must_use]
    pub fn context(&self) -> Option<usize> {
        self.context
    }

    /// The tokenizer.
    #[must_use]
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The chat template, where the model has one.
    #[must_use]
    pub fn template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref()
    }

    /// How the model's makers sample: `generation_config.json`, or greedily without `do_sample`.
    #[must_use]
    pub fn sampling(&self) -> &SamplingOptions {
        &self.sampling
    }

    /// The tokens of a conversation, through the chat template.
    ///
    /// # Errors
    /// A template that refuses the conversation; [`TextError::NoChatTemplate`] without one.
    pub fn encode_chat(&self, prompt: &ChatPrompt<'_>) -> Result<Vec<u32>> {
        let missing = || TextError::NoChatTemplate { origin: "the model".to_owned() };
        let text = self.template.as_ref().ok_or_else(missing)?.render(prompt)?;
        Ok(self.tokenizer.encode_verbatim(&text)?)
    }
}

impl GenerationConfig {
    fn sampling(self) -> SamplingOptions {
        let plain = SamplingOptions {
            repetition_penalty: self.repetition_penalty,
            ..SamplingOptions::default()
        };
        if !self.do_sample {
            return plain;
        }
        SamplingOptions {
            temperature: self.temperature.unwrap_or(1.0),
            top_k: self.top_k.filter(|k| *k > 0),
            top_p: self.top_p,
            min_p: self.min_p,
            ..plain
        }
    }
}
