//! Errors of decoding images and of passing them to a model.

use mlxcel_estimator::format_bytes;

use super::input::IMAGE_FAMILIES;
use crate::error::ConfigProblem;

/// An error about images, displayed as one sentence.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The model family reads text only.
    #[error("model_type \"{model_type}\" reads no images (families that do: {IMAGE_FAMILIES})")]
    TextModel {
        /// Name of the family.
        model_type: String,
    },
    /// The checkpoint lacks its image encoder.
    #[error("the checkpoint has no image encoder (no tensors of vision_tower): use a complete one")]
    NoEncoder,
    /// The checkpoint does not describe how images are prepared.
    #[error("{file} is missing: it describes how images are prepared")]
    NoPreprocessorConfig {
        /// Path of the missing file.
        file: String,
    },
    /// A key of `preprocessor_config.json` is not supported, or contradicts the model.
    #[error("preprocessor_config.json: {}", problem.describe(key))]
    InvalidPreprocessorConfig {
        /// Key of the file.
        key: &'static str,
        /// Reason.
        problem: ConfigProblem,
    },
    /// The encoder does not take images of this size.
    #[error("an image of {width} × {height} pixels, but the encoder takes {expected}")]
    PixelSize {
        /// Width of the image.
        width: usize,
        /// Height of the image.
        height: usize,
        /// Sizes that the encoder takes.
        expected: String,
    },
    /// The file has an unsupported format, or is not an image.
    #[error("{origin} is {found} (supported: PNG, JPEG, WebP)")]
    UnsupportedFormat {
        /// Name of the file.
        origin: String,
        /// Format found.
        found: String,
    },
    /// The image has too many pixels, or none.
    #[error(
        "{origin} has {width} × {height} pixels, and 1 to {max_pixels} are accepted: resize the image"
    )]
    TooManyPixels {
        /// Name of the file.
        origin: String,
        /// Width of the image.
        width: u32,
        /// Height of the image.
        height: u32,
        /// Largest accepted number of pixels.
        max_pixels: u64,
    },
    /// The file is too large.
    #[error(
        "{origin} has {}, more than the {} that are accepted: resize the image",
        format_bytes(*bytes), format_bytes(*max_bytes)
    )]
    TooManyBytes {
        /// Name of the file.
        origin: String,
        /// Size of the file.
        bytes: u64,
        /// Largest accepted size.
        max_bytes: u64,
    },
    /// The image is too elongated for the model.
    #[error(
        "an image of {width} × {height} pixels has an aspect ratio above {max_ratio}: crop the image"
    )]
    AspectRatio {
        /// Width of the image.
        width: u32,
        /// Height of the image.
        height: u32,
        /// Largest accepted ratio of the longer to the shorter side.
        max_ratio: u64,
    },
    /// The file is truncated or damaged.
    #[error("{origin} cannot be decoded: {source}")]
    Corrupt {
        /// Name of the file.
        origin: String,
        /// Reason given by the decoder.
        source: image::ImageError,
    },
    /// The prompt ends before or within the placeholders of an image.
    #[error("an image at tokens {image:?} of a prompt of {tokens}")]
    OutsidePrompt {
        /// Tokens of the image.
        image: std::ops::Range<usize>,
        /// Number of tokens of the prompt.
        tokens: usize,
    },
    /// The numbers of images and of placeholders differ.
    #[error(
        "{images} image(s) were given, but the prompt has {places} place(s) for one ({marker})"
    )]
    PlaceholderCount {
        /// Number of images given.
        images: usize,
        /// Number of placeholders in the prompt.
        places: usize,
        /// Text of a placeholder.
        marker: String,
    },
}

impl ImageError {
    /// A key of `preprocessor_config.json` has a value that is not implemented.
    pub(super) fn unsupported(
        key: &'static str,
        found: impl ToString,
        supported: &'static str,
    ) -> Self {
        let found = found.to_string();
        let problem = ConfigProblem::Unsupported { found, supported: supported.into() };
        Self::InvalidPreprocessorConfig { key, problem }
    }

    /// A key of `preprocessor_config.json` contradicts the model.
    pub(super) fn invalid(key: &'static str, found: impl ToString, expected: String) -> Self {
        let found = found.to_string();
        let problem = ConfigProblem::Invalid { found, expected: expected.into() };
        Self::InvalidPreprocessorConfig { key, problem }
    }
}
