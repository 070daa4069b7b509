//! Image sizes that a model's encoder takes, and the number of rows per image, from `config.json`
//! alone, so that the length of a prompt is known before the model is loaded.

use serde::Deserialize;
use serde_json::Value;

use super::ImageError;
use super::tiles::MAX_TILES;
use crate::{Error, Result};

/// Families with image input, as error messages list them.
pub(super) const IMAGE_FAMILIES: &str = "gemma3, mllama, qwen2_5_vl";

/// Image sizes that an encoder takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageInput {
    /// Squares of a fixed size, encoded as a fixed number of rows.
    Square {
        /// Side length in pixels.
        side: usize,
        /// Rows per image.
        tokens: usize,
    },
    /// Any size in multiples of a unit square, each encoded as one row.
    Grid {
        /// Side length of the unit square in pixels.
        unit: usize,
    },
    /// Square tiles, encoded as rows for cross-attention.
    Tiles {
        /// Side length of a tile in pixels.
        side: usize,
        /// Largest number of tiles per image.
        max_tiles: usize,
        /// Rows per image, those of empty tiles included.
        rows: usize,
    },
}

/// Placement of an image's rows in a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImagePlacement {
    /// In place of tokens, with causal attention; prefill chunks may divide the image.
    Inline,
    /// In place of tokens, with bidirectional attention within the image, which therefore must be
    /// in one prefill chunk.
    InlineBidirectional,
    /// Outside the sequence, for cross-attention layers; one token stands for the image.
    CrossAttention {
        /// Rows that cross-attention layers cache per image.
        rows: usize,
    },
}

/// Keys of `config.json` that determine the image input.
#[derive(Deserialize)]
struct ImageModelConfig {
    model_type: String,
    #[serde(default = "default_tokens_per_image")]
    mm_tokens_per_image: usize,
    vision_config: Option<VisionConfig>,
}

/// Keys of `vision_config`.
#[derive(Deserialize)]
struct VisionConfig {
    image_size: Option<usize>,
    patch_size: Option<usize>,
    spatial_merge_size: Option<usize>,
    max_num_tiles: Option<usize>,
}

fn default_tokens_per_image() -> usize {
    256
}

impl ImageInput {
    /// Reads the image input from a resolved `config.json`.
    ///
    /// # Errors
    /// [`ImageError::TextModel`] for a family without images, and sizes of 0.
    pub fn from_config(config: &Value) -> Result<Self> {
        let config = ImageModelConfig::deserialize(config).map_err(Error::config_json)?;
        match (config.model_type.as_str(), config.vision_config) {
            ("gemma3", Some(vision)) => {
                let side = nonzero("vision_config.image_size", vision.image_size.unwrap_or(224))?;
                let tokens = nonzero("mm_tokens_per_image", config.mm_tokens_per_image)?;
                Ok(Self::Square { side, tokens })
            }
            ("qwen2_5_vl", Some(vision)) => {
                let merge = vision.spatial_merge_size.unwrap_or(2);
                let merge = nonzero("vision_config.spatial_merge_size", merge)?;
                let patch = nonzero("vision_config.patch_size", vision.patch_size.unwrap_or(14))?;
                Ok(Self::Grid { unit: patch.saturating_mul(merge) })
            }
            ("mllama", Some(vision)) => Self::tiles(&vision),
            _ => Err(ImageError::TextModel { model_type: config.model_type }.into()),
        }
    }

    fn tiles(vision: &VisionConfig) -> Result<Self> {
        let side = nonzero("vision_config.image_size", vision.image_size.unwrap_or(448))?;
        let patch = nonzero("vision_config.patch_size", vision.patch_size.unwrap_or(14))?;
        let max_tiles = vision.max_num_tiles.unwrap_or(4);
        if !(1..=MAX_TILES).contains(&max_tiles) {
            let expected = format!("1 to {MAX_TILES}");
            return Err(Error::invalid_value("vision_config.max_num_tiles", max_tiles, expected));
        }
        let along = side / patch;
        let rows =
            along.checked_mul(along).and_then(|patches| (patches + 1).checked_mul(max_tiles));
        let rows = rows.ok_or_else(|| {
            Error::invalid_value("vision_config.image_size", side, "a smaller image")
        })?;
        Ok(Self::Tiles { side, max_tiles, rows })
    }

    /// Placement of an image's rows in the sequence.
    #[must_use]
    pub fn placement(self) -> ImagePlacement {
        match self {
            Self::Square { .. } => ImagePlacement::InlineBidirectional,
            Self::Grid { .. } => ImagePlacement::Inline,
            Self::Tiles { rows, .. } => ImagePlacement::CrossAttention { rows },
        }
    }

    /// Placeholder tokens of a prepared image of `width` × `height` pixels.
    #[must_use]
    pub fn tokens(self, width: usize, height: usize) -> usize {
        match self {
            Self::Square { tokens, .. } => tokens,
            Self::Grid { unit } => (width / unit) * (height / unit),
            Self::Tiles { .. } => 1,
        }
    }
}

/// Returns `size`, unless it is 0.
fn nonzero(key: &'static str, size: usize) -> Result<usize> {
    match size {
        0 => Err(Error::invalid_value(key, 0, "1 or more")),
        size => Ok(size),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rows_follow_from_the_configuration() {
        let qwen = json!({"model_type": "qwen2_5_vl", "vision_config": {"spatial_merge_size": 2}});
        let input = ImageInput::from_config(&qwen).unwrap();
        assert_eq!((input, input.tokens(56, 84)), (ImageInput::Grid { unit: 28 }, 6));
        let gemma = json!({"model_type": "gemma3", "vision_config": {"image_size": 896}});
        assert_eq!(ImageInput::from_config(&gemma).unwrap().tokens(896, 896), 256);
        let llama = json!({"model_type": "mllama", "vision_config": {"image_size": 560}});
        let input = ImageInput::from_config(&llama).unwrap();
        assert_eq!(
            (input.placement(), input.tokens(560, 1120)),
            (ImagePlacement::CrossAttention { rows: 6404 }, 1)
        );
    }

    #[test]
    fn text_models_and_invalid_sizes_are_rejected() {
        let refused = |config: Value| ImageInput::from_config(&config).unwrap_err().to_string();
        let text = refused(json!({"model_type": "gemma3"}));
        assert!(text.contains("\"gemma3\" reads no images"), "{text}");
        assert!(refused(json!({"model_type": "llama", "vision_config": {}})).contains("llama"));
        for (family, vision, expected) in [
            ("qwen2_5_vl", json!({"patch_size": 0}), "vision_config.patch_size is 0"),
            ("mllama", json!({"patch_size": 0}), "vision_config.patch_size is 0"),
            ("mllama", json!({"max_num_tiles": 65}), "max_num_tiles is 65, 1 to 64 expected"),
            ("mllama", json!({"image_size": 0}), "vision_config.image_size is 0"),
        ] {
            let error = refused(json!({"model_type": family, "vision_config": vision}));
            assert!(error.contains(expected), "{error}");
        }
    }
}
