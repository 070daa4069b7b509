//! Which pictures an image encoder takes, and how many rows it makes of one: what `config.json` says
//! of it, so that a prompt has its length before the model is loaded.

use serde::Deserialize;
use serde_json::Value;

use super::ImageError;
use super::tiles::MAX_TILES;
use crate::{Error, Result};

/// Families that read images, as an error lists them.
pub(super) const FAMILIES: &str = "gemma3, mllama, qwen2_5_vl";

/// The pictures that an encoder takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageInput {
    /// Squares of one size, which become a number of rows.
    Square {
        /// Pixels along a side.
        side: usize,
        /// Rows of an image.
        tokens: usize,
    },
    /// Pictures of any size that is whole squares, each of which becomes a row.
    Grid {
        /// Pixels along a side of such a square.
        unit: usize,
    },
    /// Pictures spread over square tiles, which stand beside the text as rows of their own.
    Tiles {
        /// Pixels along a side of a tile.
        side: usize,
        /// Tiles of a picture at most.
        most: usize,
        /// Rows of an image, those of empty tiles included.
        rows: usize,
    },
}

/// How a decoder reads an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// As rows among the tokens, which passes may divide.
    Divided,
    /// As rows among the tokens that see each other: one pass reads them all.
    Whole,
    /// Beside the tokens, of which one stands for it.
    Beside {
        /// Rows that cross-attention layers hold of it.
        rows: usize,
    },
}

#[derive(Deserialize)]
struct Config {
    model_type: String,
    #[serde(default = "tokens")]
    mm_tokens_per_image: usize,
    vision_config: Option<Vision>,
}

#[derive(Deserialize)]
struct Vision {
    image_size: Option<usize>,
    patch_size: Option<usize>,
    spatial_merge_size: Option<usize>,
    max_num_tiles: Option<usize>,
}

fn tokens() -> usize {
    256
}

impl ImageInput {
    /// What the encoder of the model that `config` (a resolved `config.json`) describes takes.
    ///
    /// # Errors
    /// [`ImageError::TextModel`] for a family without images, and sizes of 0.
    pub fn of(config: &Value) -> Result<Self> {
        let config = Config::deserialize(config).map_err(|e| Error::config(e.to_string()))?;
        let input = match (config.model_type.as_str(), config.vision_config) {
            ("gemma3", Some(vision)) => {
                let side = vision.image_size.unwrap_or(224);
                Self::Square { side, tokens: config.mm_tokens_per_image }
            }
            ("qwen2_5_vl", Some(vision)) => {
                let merged = vision.spatial_merge_size.unwrap_or(2);
                let patch = vision.patch_size.unwrap_or(14);
                Self::Grid { unit: patch.saturating_mul(merged) }
            }
            ("mllama", Some(vision)) => Self::tiles(&vision)?,
            _ => return Err(ImageError::TextModel { model_type: config.model_type }.into()),
        };
        match input {
            Self::Square { side: 0, .. }
            | Self::Square { tokens: 0, .. }
            | Self::Grid { unit: 0 } => Err(Error::config("vision_config: a size is 0")),
            known => Ok(known),
        }
    }

    fn tiles(vision: &Vision) -> Result<Self> {
        let side = vision.image_size.unwrap_or(448);
        let (patch, most) = (vision.patch_size.unwrap_or(14), vision.max_num_tiles.unwrap_or(4));
        let patches = side.checked_div(patch).and_then(|along| along.checked_mul(along));
        let rows = patches.and_then(|patches| (patches + 1).checked_mul(most));
        match rows.filter(|_| side > 0 && (1..=MAX_TILES).contains(&most)) {
            Some(rows) => Ok(Self::Tiles { side, most, rows }),
            None => Err(Error::config(format!(
                "vision_config: {most} tiles (1 to {MAX_TILES}) of {side}² pixels in patches of {patch}²"
            ))),
        }
    }

    /// How the decoder reads an image.
    #[must_use]
    pub fn reading(self) -> Reading {
        match self {
            Self::Square { .. } => Reading::Whole,
            Self::Grid { .. } => Reading::Divided,
            Self::Tiles { rows, .. } => Reading::Beside { rows },
        }
    }

    /// Tokens that stand for a prepared picture of `width` × `height` pixels.
    #[must_use]
    pub fn tokens(self, (width, height): (usize, usize)) -> usize {
        match self {
            Self::Square { tokens, .. } => tokens,
            Self::Grid { unit } => (width / unit) * (height / unit),
            Self::Tiles { .. } => 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_configuration_says_how_many_rows() {
        let qwen = json!({"model_type": "qwen2_5_vl", "vision_config": {"spatial_merge_size": 2}});
        let input = ImageInput::of(&qwen).unwrap();
        assert_eq!((input, input.tokens((56, 84))), (ImageInput::Grid { unit: 28 }, 6));
        let gemma = json!({"model_type": "gemma3", "vision_config": {"image_size": 896}});
        assert_eq!(ImageInput::of(&gemma).unwrap().tokens((896, 896)), 256);
        let llama = json!({"model_type": "mllama", "vision_config": {"image_size": 560}});
        let input = ImageInput::of(&llama).unwrap();
        assert_eq!(
            (input.reading(), input.tokens((560, 1120))),
            (Reading::Beside { rows: 6404 }, 1)
        );
    }

    #[test]
    fn what_reads_no_images_is_refused() {
        let refused = |config: Value| ImageInput::of(&config).unwrap_err().to_string();
        let text = refused(json!({"model_type": "gemma3"}));
        assert!(text.contains("\"gemma3\" reads no images"), "{text}");
        assert!(refused(json!({"model_type": "llama", "vision_config": {}})).contains("llama"));
        let zero = json!({"model_type": "qwen2_5_vl", "vision_config": {"patch_size": 0}});
        assert!(refused(zero).contains("a size is 0"));
        for vision in
            [json!({"patch_size": 0}), json!({"max_num_tiles": 65}), json!({"image_size": 0})]
        {
            let tiles = refused(json!({"model_type": "mllama", "vision_config": vision}));
            assert!(tiles.contains("tiles (1 to 64) of"), "{tiles}");
        }
    }
}
