//! Image placeholders: finds the marker of each image in a prompt and expands it to one token per row
//! of the encoder's output, with the family's tokens before and after.

use image::RgbImage;
use serde::Deserialize;
use serde_json::Value;

use super::{ImageError, ImageInput, ImagePlacement, ImageProcessor};
use crate::error::ConfigProblem;
use crate::text::{TextFiles, Tokenizer};
use crate::{Error, Result};

/// Keys of `config.json` that name placeholder tokens.
#[derive(Debug, Deserialize)]
struct PlaceholderConfig {
    model_type: String,
    boi_token_index: Option<u32>,
    eoi_token_index: Option<u32>,
    #[serde(alias = "image_token_id")]
    image_token_index: Option<u32>,
}

/// The image placeholders of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct ImagePlaceholders {
    processor: ImageProcessor,
    input: ImageInput,
    tokens: PlaceholderTokens,
}

/// Text and token of a model's placeholders.
#[derive(Clone, Debug, PartialEq, Eq)]
struct PlaceholderTokens {
    /// Text that marks the position of an image in a prompt.
    marker: String,
    /// Text of the token that stands for one row.
    row: String,
    /// Text before the rows of an image.
    before: String,
    /// Text after the rows of an image.
    after: String,
    /// Id of the token `row`.
    token: u32,
}

impl PlaceholderTokens {
    /// Reads the tokens of the family; ids that the configuration omits default to those of its
    /// class in transformers.
    fn from_config(config: &PlaceholderConfig, tokenizer: &Tokenizer) -> Result<Self> {
        if config.model_type == "gemma3" {
            let token = config.image_token_index.unwrap_or(262_144);
            let row = token_text(tokenizer, "image_token_index", token)?;
            let begin = config.boi_token_index.unwrap_or(255_999);
            let marker = token_text(tokenizer, "boi_token_index", begin)?;
            let end = config.eoi_token_index.unwrap_or(256_000);
            let end = token_text(tokenizer, "eoi_token_index", end)?;
            let before = format!("\n\n{marker}");
            let after = format!("{end}\n\n");
            return Ok(Self { marker, row, before, after, token });
        }
        let default = if config.model_type == "mllama" { 128_256 } else { 151_655 };
        let token = config.image_token_index.unwrap_or(default);
        let row = token_text(tokenizer, "image_token_index", token)?;
        let marker = row.clone();
        Ok(Self { marker, row, before: String::new(), after: String::new(), token })
    }

    fn expand(&self, prompt: &str, rows: &[usize]) -> std::result::Result<String, ImageError> {
        let pieces: Vec<&str> = prompt.split(&self.marker).collect();
        if pieces.len() != rows.len() + 1 {
            return Err(self.wrong_count(rows.len(), pieces.len() - 1));
        }
        let Self { before, after, .. } = self;
        let mut expanded = pieces[0].to_owned();
        for (piece, rows) in pieces[1..].iter().zip(rows) {
            expanded += &format!("{before}{}{after}{piece}", self.row.repeat(*rows));
        }
        Ok(expanded)
    }

    fn starts(
        &self,
        prompt: &[u32],
        rows: &[usize],
    ) -> std::result::Result<Vec<usize>, ImageError> {
        let mut starts = Vec::new();
        let mut searched = 0;
        for rows in rows {
            let next = prompt[searched..].iter().position(|token| *token == self.token);
            let start = searched + next.unwrap_or(prompt.len() - searched);
            let image = prompt.get(start..start + rows);
            if !image.is_some_and(|image| image.iter().all(|token| *token == self.token)) {
                break;
            }
            starts.push(start);
            searched = start + rows;
        }
        let more = prompt[searched..].contains(&self.token);
        if starts.len() == rows.len() && !more {
            return Ok(starts);
        }
        Err(self.wrong_count(rows.len(), starts.len() + usize::from(more)))
    }

    fn wrong_count(&self, images: usize, places: usize) -> ImageError {
        ImageError::PlaceholderCount { images, places, marker: self.marker.clone() }
    }
}

/// Text of the token `id`, which `key` of the configuration names.
fn token_text(tokenizer: &Tokenizer, key: &'static str, id: u32) -> Result<String> {
    tokenizer
        .vocabulary_form(id)
        .ok_or_else(|| Error::invalid_config(key, ConfigProblem::UnknownToken { id }))
}

impl ImagePlaceholders {
    /// Loads the placeholders of the model with the resolved `config.json` `config`; `files` are the
    /// files of the same model.
    ///
    /// # Errors
    /// [`ImageError::TextModel`] for a family without images; tokens that the tokenizer lacks; the
    /// errors of [`ImageProcessor::load`].
    pub(crate) fn load(
        config: &Value,
        tokenizer: &Tokenizer,
        files: &TextFiles<'_>,
    ) -> Result<Self> {
        let input = ImageInput::from_config(config)?;
        let config = PlaceholderConfig::deserialize(config).map_err(Error::config_json)?;
        let tokens = PlaceholderTokens::from_config(&config, tokenizer)?;
        Ok(Self { processor: ImageProcessor::load(files, input)?, input, tokens })
    }

    /// Number of placeholder tokens of `image`.
    ///
    /// # Errors
    /// An image that [`ImageProcessor::size`] rejects.
    pub(crate) fn tokens(&self, image: &RgbImage) -> std::result::Result<usize, ImageError> {
        let size = self.processor.size(image)?;
        Ok(self.input.tokens(size.width as usize, size.height as usize))
    }

    /// Placement of an image's rows in the sequence.
    #[must_use]
    pub fn placement(&self) -> ImagePlacement {
        self.input.placement()
    }

    /// Expands the marker of each image in `prompt` to the given number of `tokens`.
    ///
    /// # Errors
    /// Another number of markers than of images.
    pub(crate) fn expand(
        &self,
        prompt: &str,
        tokens: &[usize],
    ) -> std::result::Result<String, ImageError> {
        self.tokens.expand(prompt, tokens)
    }

    /// Index of each image's first token in an expanded prompt; the images have the given numbers of
    /// `tokens`.
    ///
    /// # Errors
    /// Further placeholder tokens, which the prompt spells out.
    pub(crate) fn starts(
        &self,
        prompt: &[u32],
        tokens: &[usize],
    ) -> std::result::Result<Vec<usize>, ImageError> {
        self.tokens.starts(prompt, tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placeholder() -> PlaceholderTokens {
        PlaceholderTokens {
            marker: "<i>".to_owned(),
            row: "x".to_owned(),
            before: "\n\n<i>".to_owned(),
            after: "\n\n".to_owned(),
            token: 9,
        }
    }

    #[test]
    fn every_image_has_one_placeholder() {
        let expanded = placeholder().expand("a<i>b<i>", &[2, 1]).unwrap();
        assert_eq!(expanded, "a\n\n<i>xx\n\nb\n\n<i>x\n\n");
        for (prompt, rows) in [("a", &[2][..]), ("a<i>", &[2, 2]), ("<i><i>", &[1]), ("<i>", &[])] {
            let error = placeholder().expand(prompt, rows).unwrap_err().to_string();
            assert!(error.contains(&format!("{} image(s)", rows.len())), "{error}");
        }
    }

    #[test]
    fn placeholder_tokens_belong_to_images() {
        assert_eq!(placeholder().starts(&[1, 9, 9, 2, 9], &[2, 1]).unwrap(), [1, 4]);
        assert_eq!(placeholder().starts(&[9, 9, 9], &[2, 1]).unwrap(), [0, 2]);
        let wrong: [(&[u32], &[usize]); 5] =
            [(&[1, 9, 2], &[2]), (&[9, 9, 9], &[2]), (&[9, 9], &[]), (&[1], &[1]), (&[9], &[1, 1])];
        for (tokens, rows) in wrong {
            assert!(placeholder().starts(tokens, rows).is_err(), "{tokens:?}");
        }
    }
}
