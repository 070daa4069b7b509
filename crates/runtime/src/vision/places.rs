//! Where a prompt has room for images: a marker in its text becomes as many tokens as an encoder has
//! rows, between a beginning and an end.

use serde::Deserialize;
use serde_json::Value;

use super::ImageError;
use crate::text::Tokenizer;
use crate::{Error, Result};

/// The part of a configuration that concerns the places of images; the defaults are Gemma 3's.
#[derive(Debug, Deserialize)]
struct Config {
    model_type: String,
    #[serde(default = "boi")]
    boi_token_index: u32,
    #[serde(default = "eoi")]
    eoi_token_index: u32,
    #[serde(default = "soft", alias = "image_token_id")]
    image_token_index: u32,
    #[serde(default = "tokens")]
    mm_tokens_per_image: usize,
    vision_config: Option<Value>,
}

fn boi() -> u32 {
    255_999
}

fn eoi() -> u32 {
    256_000
}

fn soft() -> u32 {
    262_144
}

fn tokens() -> usize {
    256
}

/// How a model marks the places of images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImagePlaces {
    marker: String,
    expanded: String,
    token: u32,
    tokens: usize,
}

impl ImagePlaces {
    /// Those of the model that `config` (a resolved `config.json`) describes.
    ///
    /// # Errors
    /// [`ImageError::TextModel`] for a family without images; tokens that the tokenizer lacks.
    pub fn of(config: &Value, tokenizer: &Tokenizer) -> Result<Self> {
        let config = Config::deserialize(config).map_err(|e| Error::config(e.to_string()))?;
        if config.model_type != "gemma3" || config.vision_config.is_none() {
            return Err(ImageError::TextModel { model_type: config.model_type }.into());
        }
        let text = |key: &str, id: u32| {
            let missing = || Error::config(format!("the tokenizer has no token {id} ({key})"));
            tokenizer.vocabulary_form(id).ok_or_else(missing)
        };
        let marker = text("boi_token_index", config.boi_token_index)?;
        let soft = text("image_token_index", config.image_token_index)?;
        let end = text("eoi_token_index", config.eoi_token_index)?;
        let rows = soft.repeat(config.mm_tokens_per_image);
        let expanded = format!("\n\n{marker}{rows}{end}\n\n");
        let (token, tokens) = (config.image_token_index, config.mm_tokens_per_image);
        Ok(Self { marker, expanded, token, tokens })
    }

    /// Tokens of one image.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// `prompt` with room for an image at every marker.
    ///
    /// # Errors
    /// Another number of markers than `images`.
    pub fn expand(&self, prompt: &str, images: usize) -> std::result::Result<String, ImageError> {
        let places = prompt.matches(&self.marker).count();
        if places != images {
            return Err(self.wrong(images, places));
        }
        Ok(prompt.replace(&self.marker, &self.expanded))
    }

    /// The first token of each image in a prompt that was expanded.
    ///
    /// # Errors
    /// Tokens of images elsewhere: a prompt that spells them out.
    pub fn starts(
        &self,
        prompt: &[u32],
        images: usize,
    ) -> std::result::Result<Vec<usize>, ImageError> {
        let found = prompt.iter().filter(|token| **token == self.token).count();
        let mut starts = Vec::new();
        let mut at = 0;
        while let Some(next) = prompt[at..].iter().position(|token| *token == self.token) {
            let start = at + next;
            let run = prompt[start..].iter().take_while(|token| **token == self.token).count();
            if run != self.tokens {
                return Err(self.wrong(images, found / self.tokens.max(1)));
            }
            starts.push(start);
            at = start + run;
        }
        if starts.len() == images { Ok(starts) } else { Err(self.wrong(images, starts.len())) }
    }

    fn wrong(&self, images: usize, places: usize) -> ImageError {
        ImageError::Places { images, places, marker: self.marker.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places() -> ImagePlaces {
        let (marker, expanded) = ("<i>".to_owned(), "\n\n<i>xx</i>\n\n".to_owned());
        ImagePlaces { marker, expanded, token: 9, tokens: 2 }
    }

    #[test]
    fn every_image_has_its_place() {
        assert_eq!(places().expand("a<i>b", 1).unwrap(), "a\n\n<i>xx</i>\n\nb");
        for (prompt, images) in [("a", 1), ("a<i>", 2), ("<i><i>", 1), ("<i>", 0)] {
            let error = places().expand(prompt, images).unwrap_err().to_string();
            assert!(error.contains(&format!("{images} image(s)")), "{error}");
        }
    }

    #[test]
    fn tokens_of_images_stand_only_where_images_are() {
        assert_eq!(places().starts(&[1, 9, 9, 2, 9, 9], 2).unwrap(), [1, 4]);
        for (tokens, images) in [(&[1, 9, 2][..], 1), (&[9, 9, 9, 9], 2), (&[9, 9], 0), (&[1], 1)] {
            assert!(places().starts(tokens, images).is_err(), "{tokens:?}");
        }
    }
}
