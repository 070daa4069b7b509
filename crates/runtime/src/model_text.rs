//! A model's text side in one value: tokenizer, chat template, default sampling.

use mlxcel_estimator::Workload;
use serde::Deserialize;
use serde_json::Value;

use crate::families::read_config;
use crate::loading::size_of;
use crate::sampling::SamplingOptions;
use crate::source::ModelSource;
use crate::text::{ChatPrompt, ChatTemplate, TextError, TextFiles, Tokenizer};
use crate::vision::{ImagePlaces, Reading, RgbImage};
use crate::{Result, builtin};

/// Everything that turns a person's text into a model's tokens and back.
pub struct ModelText {
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
    sampling: SamplingOptions,
    context: Option<usize>,
    config: Value,
    source: ModelSource,
}

/// A prompt's text before its images have their tokens.
#[derive(Clone, Copy, Debug)]
pub enum Unexpanded<'a> {
    /// Through the chat template.
    Chat(&'a ChatPrompt<'a>),
    /// As it stands.
    Plain(&'a str),
}

/// A prompt with room for images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImagePrompt {
    /// All tokens, those of images included.
    pub tokens: Vec<u32>,
    /// The first token of each image.
    pub starts: Vec<usize>,
    /// How many tokens each image has.
    pub image_tokens: Vec<usize>,
    /// How the decoder reads them.
    pub reading: Reading,
}

impl ImagePrompt {
    /// A prompt without images.
    #[must_use]
    pub fn text(tokens: Vec<u32>) -> Self {
        let reading = Reading::Divided;
        Self { tokens, starts: Vec::new(), image_tokens: Vec::new(), reading }
    }

    /// Tokens that a pass takes at least: those of the largest image that no pass divides.
    #[must_use]
    pub fn least_pass_tokens(&self) -> usize {
        let whole = self.image_tokens.iter().filter(|_| self.reading == Reading::Whole);
        whole.max().copied().unwrap_or(0)
    }

    /// `workload` with the images among each sequence's tokens, or beside them.
    #[must_use]
    pub fn images_in(&self, workload: Workload) -> Workload {
        let images = self.image_tokens.iter();
        match self.reading {
            Reading::Beside { rows } => {
                workload.with_images_beside(&images.map(|_| rows as u64).collect::<Vec<_>>())
            }
            Reading::Divided | Reading::Whole => {
                workload.with_images(&images.map(|tokens| *tokens as u64).collect::<Vec<_>>())
            }
        }
    }
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
        let config = read_config(source)?;
        let context = size_of(&config, "max_position_embeddings");
        let files = files(source);
        let template = match ChatTemplate::load(&files) {
            Ok(template) => Some(template),
            Err(TextError::NoChatTemplate { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        let defaults: GenerationConfig = files.json("generation_config.json")?.unwrap_or_default();
        let tokenizer = Tokenizer::load(&files)?;
        let (sampling, source) = (defaults.sampling(), source.clone());
        Ok(Self { tokenizer, template, sampling, context, config, source })
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

    /// How the model marks the places of images in a prompt.
    ///
    /// # Errors
    /// A model that reads none ([`crate::vision::ImageError::TextModel`]), or that does not say how
    /// they are prepared.
    pub fn image_places(&self) -> Result<ImagePlaces> {
        ImagePlaces::of(&self.config, &self.tokenizer, &files(&self.source))
    }

    /// The tokens of a prompt with room for `pictures`.
    ///
    /// # Errors
    /// As [`Self::encode_chat`] and [`Self::image_places`]; a prompt with another number of places, and
    /// a picture whose shape the model does not take.
    pub fn encode_with_images(
        &self,
        prompt: Unexpanded<'_>,
        pictures: &[RgbImage],
    ) -> Result<ImagePrompt> {
        let places = self.image_places()?;
        let image_tokens: Vec<usize> = pictures
            .iter()
            .map(|picture| places.tokens(picture))
            .collect::<std::result::Result<_, _>>()?;
        let tokens = match prompt {
            Unexpanded::Plain(text) => {
                self.tokenizer.encode_prompt(&places.expand(text, &image_tokens)?)?
            }
            Unexpanded::Chat(prompt) => {
                let missing = || TextError::NoChatTemplate { origin: "the model".to_owned() };
                let text = self.template.as_ref().ok_or_else(missing)?.render(prompt)?;
                self.tokenizer.encode_verbatim(&places.expand(&text, &image_tokens)?)?
            }
        };
        let starts = places.starts(&tokens, &image_tokens)?;
        Ok(ImagePrompt { tokens, starts, image_tokens, reading: places.reading() })
    }
}

/// Where the model's files are.
fn files(source: &ModelSource) -> TextFiles<'_> {
    match source {
        ModelSource::BuiltIn => TextFiles::Embedded(builtin::FILES),
        ModelSource::Folder(dir) => TextFiles::Folder(dir),
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
