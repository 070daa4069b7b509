//! Where a prompt has room for images: a marker in its text becomes as many tokens as an encoder has
//! rows, between a beginning and an end.

use image::RgbImage;
use serde::Deserialize;
use serde_json::Value;

use super::{ImageError, ImageInput, Preprocessor, Reading};
use crate::text::{TextFiles, Tokenizer};
use crate::{Error, Result};

/// The part of a configuration that concerns the places of images.
#[derive(Debug, Deserialize)]
struct Config {
    model_type: String,
    boi_token_index: Option<u32>,
    eoi_token_index: Option<u32>,
    #[serde(alias = "image_token_id")]
    image_token_index: Option<u32>,
}

/// How a model marks the places of images.
#[derive(Clone, Debug, PartialEq)]
pub struct ImagePlaces {
    preprocessor: Preprocessor,
    input: ImageInput,
    marks: Marks,
}

/// What stands for images in a text, and in tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Marks {
    /// Where an image goes.
    marker: String,
    /// What one token of it is written as.
    row: String,
    /// What stands before its tokens, and behind them.
    around: [String; 2],
    /// That token.
    token: u32,
}

impl Marks {
    /// Those of the family; numbers that a configuration leaves out are its class's.
    fn of(config: &Config, tokenizer: &Tokenizer) -> Result<Self> {
        let text = |key: &str, id: u32| {
            let missing = || Error::config(format!("the tokenizer has no token {id} ({key})"));
            tokenizer.vocabulary_form(id).ok_or_else(missing)
        };
        let row = |id: u32| text("image_token_id, image_token_index", id);
        if config.model_type == "gemma3" {
            let token = config.image_token_index.unwrap_or(262_144);
            let marker = text("boi_token_index", config.boi_token_index.unwrap_or(255_999))?;
            let end = text("eoi_token_index", config.eoi_token_index.unwrap_or(256_000))?;
            let around = [format!("\n\n{marker}"), format!("{end}\n\n")];
            return Ok(Self { marker, row: row(token)?, around, token });
        }
        let usual = if config.model_type == "mllama" { 128_256 } else { 151_655 };
        let token = config.image_token_index.unwrap_or(usual);
        let row = row(token)?;
        Ok(Self { marker: row.clone(), row, around: Default::default(), token })
    }

    fn expand(&self, prompt: &str, rows: &[usize]) -> std::result::Result<String, ImageError> {
        let pieces: Vec<&str> = prompt.split(&self.marker).collect();
        if pieces.len() != rows.len() + 1 {
            return Err(self.wrong(rows.len(), pieces.len() - 1));
        }
        let [before, after] = &self.around;
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
        let mut at = 0;
        for rows in rows {
            let next = prompt[at..].iter().position(|token| *token == self.token);
            let start = at + next.unwrap_or(prompt.len() - at);
            let all = prompt.get(start..start + rows);
            if !all.is_some_and(|all| all.iter().all(|token| *token == self.token)) {
                break;
            }
            starts.push(start);
            at = start + rows;
        }
        let more = prompt[at..].contains(&self.token);
        if starts.len() == rows.len() && !more {
            return Ok(starts);
        }
        Err(self.wrong(rows.len(), starts.len() + usize::from(more)))
    }

    fn wrong(&self, images: usize, places: usize) -> ImageError {
        ImageError::Places { images, places, marker: self.marker.clone() }
    }
}

impl ImagePlaces {
    /// Those of the model that `config` (a resolved `config.json`) describes; `files` are the model's.
    ///
    /// # Errors
    /// [`ImageError::TextModel`] for a family without images; tokens that the tokenizer lacks; what
    /// [`Preprocessor::load`] fails with.
    pub fn of(config: &Value, tokenizer: &Tokenizer, files: &TextFiles<'_>) -> Result<Self> {
        let input = ImageInput::of(config)?;
        let config = Config::deserialize(config).map_err(|e| Error::config(e.to_string()))?;
        let marks = Marks::of(&config, tokenizer)?;
        Ok(Self { preprocessor: Preprocessor::load(files, input)?, input, marks })
    }

    /// Tokens of the prompt that `picture` takes.
    ///
    /// # Errors
    /// A picture that [`Preprocessor::size`] refuses.
    pub fn tokens(&self, picture: &RgbImage) -> std::result::Result<usize, ImageError> {
        let (width, height) = self.preprocessor.size(picture)?;
        Ok(self.input.tokens((width as usize, height as usize)))
    }

    /// How the decoder reads an image.
    #[must_use]
    pub fn reading(&self) -> Reading {
        self.input.reading()
    }

    /// `prompt` with room at every marker for an image of so many `tokens`.
    ///
    /// # Errors
    /// Another number of markers than of images.
    pub fn expand(
        &self,
        prompt: &str,
        tokens: &[usize],
    ) -> std::result::Result<String, ImageError> {
        self.marks.expand(prompt, tokens)
    }

    /// The first token of each image, of so many `tokens`, in a prompt that was expanded.
    ///
    /// # Errors
    /// Tokens of images elsewhere: a prompt that spells them out.
    pub fn starts(
        &self,
        prompt: &[u32],
        tokens: &[usize],
    ) -> std::result::Result<Vec<usize>, ImageError> {
        self.marks.starts(prompt, tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks() -> Marks {
        let around = ["\n\n<i>".to_owned(), "\n\n".to_owned()];
        Marks { marker: "<i>".to_owned(), row: "x".to_owned(), around, token: 9 }
    }

    #[test]
    fn every_image_has_its_place() {
        let expanded = marks().expand("a<i>b<i>", &[2, 1]).unwrap();
        assert_eq!(expanded, "a\n\n<i>xx\n\nb\n\n<i>x\n\n");
        for (prompt, rows) in [("a", &[2][..]), ("a<i>", &[2, 2]), ("<i><i>", &[1]), ("<i>", &[])] {
            let error = marks().expand(prompt, rows).unwrap_err().to_string();
            assert!(error.contains(&format!("{} image(s)", rows.len())), "{error}");
        }
    }

    #[test]
    fn tokens_of_images_stand_only_where_images_are() {
        assert_eq!(marks().starts(&[1, 9, 9, 2, 9], &[2, 1]).unwrap(), [1, 4]);
        assert_eq!(marks().starts(&[9, 9, 9], &[2, 1]).unwrap(), [0, 2]);
        let wrong: [(&[u32], &[usize]); 5] =
            [(&[1, 9, 2], &[2]), (&[9, 9, 9], &[2]), (&[9, 9], &[]), (&[1], &[1]), (&[9], &[1, 1])];
        for (tokens, rows) in wrong {
            assert!(marks().starts(tokens, rows).is_err(), "{tokens:?}");
        }
    }
}
