//! Images: decoding, preprocessing, and placeholders in a prompt.
//!
//! `decode` reads files within limits; `input` describes the images that an encoder takes;
//! `image_processor` resizes (`resample`), tiles (`tiles`) and normalises them according to
//! `preprocessor_config.json`; `placeholders` expands placeholders in a prompt. Encoders belong to the
//! model families; their output enters a pass as [`mlxcel_core::ImageRows`], so that prefill, batches
//! and cache modes share one path with text.

mod decode;
mod error;
mod image_processor;
mod input;
mod placeholders;
mod resample;
mod tiles;

use std::ops::Range;

pub use self::decode::{MAX_IMAGE_BYTES, decode, decoding_bytes};
pub use self::error::ImageError;
pub use self::image_processor::{ImageProcessor, PatchShape, Pixels};
pub use self::input::{ImageInput, ImagePlacement};
pub use self::placeholders::ImagePlaceholders;
pub(crate) use self::tiles::{MAX_TILES, arrangements};

pub use image::RgbImage;
use mlxcel_core::{Array, CrossImage, ImageAttention, ImagePositions, ImageRows};

/// Output of the image encoder for one image.
#[derive(Clone)]
pub struct EncodedImage {
    /// Rows of the image, `[tokens, hidden]`.
    pub embeddings: Array,
    /// Attention of its rows to each other.
    pub attention: ImageAttention,
    /// Rotary positions of its rows.
    pub positions: ImagePositions,
}

/// An encoded image at its position in a prompt.
#[derive(Clone)]
pub struct PlacedImage {
    /// Index of the image's first placeholder token.
    pub start: usize,
    /// Encoder output.
    pub image: EncodedImage,
}

impl PlacedImage {
    /// Placeholder tokens of the image: one per row, or a single one for cross-attention.
    #[must_use]
    pub fn tokens(&self) -> Range<usize> {
        if matches!(self.image.attention, ImageAttention::Cross { .. }) {
            return self.start..self.start + 1;
        }
        let rows = self.image.embeddings.shape().first().copied().unwrap_or(0);
        self.start..self.start + usize::try_from(rows).unwrap_or(0)
    }

    /// Rows for cross-attention layers; `None` for an image in place of tokens.
    #[must_use]
    pub(crate) fn cross_image(&self) -> Option<CrossImage> {
        let EncodedImage { embeddings, attention, .. } = &self.image;
        let ImageAttention::Cross { visible } = *attention else { return None };
        Some(CrossImage { token: self.start, rows: embeddings.clone(), visible })
    }

    /// All rows of the image in a pass that starts at token `first` of the prompt.
    #[must_use]
    pub fn rows(&self, first: usize) -> ImageRows {
        let EncodedImage { embeddings, attention, positions } = self.image.clone();
        let part = 0..self.tokens().len();
        ImageRows { start: self.start - first, part, embeddings, attention, positions }
    }

    /// Rows of the image within a pass over the tokens `pass` of the prompt.
    #[must_use]
    pub fn rows_in(&self, pass: Range<usize>) -> Option<ImageRows> {
        if self.cross_image().is_some() {
            return None;
        }
        let tokens = self.tokens();
        let shared = tokens.start.max(pass.start)..tokens.end.min(pass.end);
        if shared.is_empty() {
            return None;
        }
        let EncodedImage { embeddings, attention, positions } = self.image.clone();
        let part = shared.start - self.start..shared.end - self.start;
        Some(ImageRows { start: shared.start - pass.start, part, embeddings, attention, positions })
    }
}

/// End of the prefill chunk that starts at token `done` and would end at `end`. A chunk does not end
/// within one of `undivided`, the tokens of images with bidirectional attention: it ends before such an
/// image, or behind it if it starts with it.
pub fn chunk_end(
    done: usize,
    end: usize,
    mut undivided: impl Iterator<Item = Range<usize>>,
) -> usize {
    match undivided.find(|image| image.start < end && end < image.end) {
        Some(image) if image.start > done => image.start,
        Some(image) => image.end,
        None => end,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_do_not_end_within_an_image() {
        let end = |done, end| chunk_end(done, end, [10..14, 14..18].into_iter());
        assert_eq!(end(0, 8), 8);
        assert_eq!(end(0, 10), 10);
        assert_eq!(end(0, 12), 10);
        assert_eq!(end(10, 12), 14);
        assert_eq!(end(0, 14), 14);
        assert_eq!(end(10, 16), 14);
        assert_eq!(end(14, 30), 30);
    }
}
