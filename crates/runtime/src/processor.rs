//! A model's text and image processing: tokenizer, chat template, image placeholders, and the
//! sampling defaults of `generation_config.json`.

use mlxcel_estimator::Workload;
use serde::Deserialize;
use serde_json::Value;

use crate::families::read_config;
use crate::loading::size_of;
use crate::sampling::SamplingOptions;
use crate::source::ModelSource;
use crate::text::{ChatPrompt, ChatTemplate, TextError, TextFiles, Tokenizer};
use crate::vision::{ImagePlaceholders, ImagePlacement, RgbImage};
use crate::{Result, builtin};

/// Converts prompts into a model's tokens and tokens into text.
pub struct Processor {
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
    sampling: SamplingOptions,
    context: Option<usize>,
    config: Value,
    source: ModelSource,
}

/// A prompt before tokenisation.
#[derive(Clone, Copy, Debug)]
pub enum PromptInput<'a> {
    /// A conversation, rendered by the chat template.
    Chat(&'a ChatPrompt<'a>),
    /// Text, used unchanged.
    Plain(&'a str),
}

/// A tokenised prompt with the positions of its images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedPrompt {
    /// All tokens, image placeholders included.
    pub tokens: Vec<u32>,
    /// Index of each image's first placeholder token.
    pub image_starts: Vec<usize>,
    /// Number of placeholder tokens of each image.
    pub image_tokens: Vec<usize>,
    /// Placement of the images in the sequence.
    pub placement: ImagePlacement,
}

impl EncodedPrompt {
    /// A prompt without images.
    #[must_use]
    pub fn text(tokens: Vec<u32>) -> Self {
        let placement = ImagePlacement::Inline;
        Self { tokens, image_starts: Vec::new(), image_tokens: Vec::new(), placement }
    }

    /// Smallest possible prefill chunk: the tokens of the largest image that must not be divided.
    #[must_use]
    pub fn min_chunk_tokens(&self) -> usize {
        if self.placement != ImagePlacement::InlineBidirectional {
            return 0;
        }
        self.image_tokens.iter().max().copied().unwrap_or(0)
    }

    /// Adds the images to each sequence of `workload`.
    #[must_use]
    pub fn add_images(&self, workload: Workload) -> Workload {
        let images = self.image_tokens.iter();
        match self.placement {
            ImagePlacement::CrossAttention { rows } => {
                workload.with_images_beside(&images.map(|_| rows as u64).collect::<Vec<_>>())
            }
            ImagePlacement::Inline | ImagePlacement::InlineBidirectional => {
                workload.with_images(&images.map(|tokens| *tokens as u64).collect::<Vec<_>>())
            }
        }
    }
}

/// Sampling keys of `generation_config.json`.
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

impl Processor {
    /// Reads the model's text files.
    ///
    /// # Errors
    /// A model that [`read_config`] refuses, then a missing or invalid `tokenizer.json`, chat
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
        let sampling = defaults.sampling();
        Ok(Self { tokenizer, template, sampling, context, config, source: source.clone() })
    }

    /// Context length that the configuration states, in tokens per sequence.
    #[must_use]
    pub fn context(&self) -> Option<usize> {
        self.context
    }

    /// The tokenizer.
    #[must_use]
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The chat template; base models have none.
    #[must_use]
    pub fn template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref()
    }

    /// Default sampling options, from `generation_config.json`; greedy unless it sets `do_sample`.
    #[must_use]
    pub fn sampling(&self) -> &SamplingOptions {
        &self.sampling
    }

    /// Renders a conversation with the chat template and tokenises it.
    ///
    /// # Errors
    /// A template that refuses the conversation; [`TextError::NoChatTemplate`] without one.
    pub fn encode_chat(&self, prompt: &ChatPrompt<'_>) -> Result<Vec<u32>> {
        Ok(self.tokenizer.encode_verbatim(&self.render(prompt)?)?)
    }

    fn render(&self, prompt: &ChatPrompt<'_>) -> std::result::Result<String, TextError> {
        match &self.template {
            Some(template) => template.render(prompt),
            None => Err(TextError::NoChatTemplate { origin: "the model".to_owned() }),
        }
    }

    /// The model's image placeholders.
    ///
    /// # Errors
    /// A model without image input ([`crate::vision::ImageError::TextModel`]), or without a usable
    /// `preprocessor_config.json`.
    pub fn image_placeholders(&self) -> Result<ImagePlaceholders> {
        ImagePlaceholders::load(&self.config, &self.tokenizer, &files(&self.source))
    }

    /// Tokenises a prompt and expands its placeholders for `images`.
    ///
    /// # Errors
    /// The errors of [`Self::encode_chat`] and [`Self::image_placeholders`]; another number of
    /// placeholders than of images; an image whose shape the model does not take.
    pub fn encode_with_images(
        &self,
        prompt: PromptInput<'_>,
        images: &[RgbImage],
    ) -> Result<EncodedPrompt> {
        let placeholders = self.image_placeholders()?;
        let image_tokens: Vec<usize> = images
            .iter()
            .map(|image| placeholders.tokens(image))
            .collect::<std::result::Result<_, _>>()?;
        let tokens = match prompt {
            PromptInput::Plain(text) => {
                self.tokenizer.encode_prompt(&placeholders.expand(text, &image_tokens)?)?
            }
            PromptInput::Chat(prompt) => {
                let text = self.render(prompt)?;
                self.tokenizer.encode_verbatim(&placeholders.expand(&text, &image_tokens)?)?
            }
        };
        let image_starts = placeholders.starts(&tokens, &image_tokens)?;
        let placement = placeholders.placement();
        Ok(EncodedPrompt { tokens, image_starts, image_tokens, placement })
    }
}

/// The model's text files.
fn files(source: &ModelSource) -> TextFiles<'_> {
    match source {
        ModelSource::BuiltIn => TextFiles::Embedded(builtin::FILES),
        ModelSource::Folder(dir) => TextFiles::Folder(dir),
    }
}

impl GenerationConfig {
    fn sampling(self) -> SamplingOptions {
        let greedy = SamplingOptions {
            repetition_penalty: self.repetition_penalty,
            ..SamplingOptions::default()
        };
        if !self.do_sample {
            return greedy;
        }
        SamplingOptions {
            temperature: self.temperature.unwrap_or(1.0),
            top_k: self.top_k.filter(|k| *k > 0),
            top_p: self.top_p,
            min_p: self.min_p,
            ..greedy
        }
    }
}
