//! Images: from a file's bytes to the pixels that an encoder takes, and their places in a prompt.
//!
//! `decode` reads files within limits, `input` says which pictures an encoder takes, `preprocess`
//! resizes (`resample`), spreads over tiles (`tiles`) and normalises as the model's
//! `preprocessor_config.json` says, `places` finds where a prompt has room for an image. Encoders
//! stand beside their families; their rows enter a pass through [`mlxcel_core::ImageRows`], so that
//! prefill, batches and cache modes stay one path.

mod decode;
mod error;
mod input;
mod places;
mod preprocess;
mod resample;
mod tiles;

use std::ops::Range;

pub use self::decode::{MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS, decode, decoding_bytes};
pub use self::error::ImageError;
pub use self::input::{ImageInput, Reading};
pub use self::places::ImagePlaces;
pub use self::preprocess::{PatchShape, Pixels, Preprocessor};
pub(crate) use self::tiles::{MAX_TILES, arrangements};

pub use image::RgbImage;
use mlxcel_core::{Array, CrossImage, ImageAttention, ImagePositions, ImageRows};

/// What an encoder makes of one image.
#[derive(Clone)]
pub struct EncodedImage {
    /// `[tokens, hidden]`.
    pub embeddings: Array,
    /// Attention of its rows to each other.
    pub attention: ImageAttention,
    /// Where its rows stand for rotary embeddings.
    pub positions: ImagePositions,
}

/// An image and where it stands in a prompt.
#[derive(Clone)]
pub struct PlacedImage {
    /// The first of the prompt's tokens that it replaces.
    pub start: usize,
    /// Its rows.
    pub image: EncodedImage,
}

impl PlacedImage {
    /// The prompt's tokens that stand for it: those that it replaces, or one where it stands beside them.
    #[must_use]
    pub fn tokens(&self) -> Range<usize> {
        if matches!(self.image.attention, ImageAttention::Cross { .. }) {
            return self.start..self.start + 1;
        }
        let rows = self.image.embeddings.shape().first().copied().unwrap_or(0);
        self.start..self.start + usize::try_from(rows).unwrap_or(0)
    }

    /// What cross-attention layers see of it, where it stands beside the tokens.
    #[must_use]
    pub fn beside(&self) -> Option<CrossImage> {
        let EncodedImage { embeddings, attention, .. } = &self.image;
        let ImageAttention::Cross { visible } = *attention else { return None };
        Some(CrossImage { token: self.start, rows: embeddings.clone(), visible })
    }

    /// The rows of a pass that begins at token `first` of the prompt, at or before the image, and ends
    /// behind it.
    #[must_use]
    pub fn rows(&self, first: usize) -> ImageRows {
        let EncodedImage { embeddings, attention, positions } = self.image.clone();
        let part = 0..self.tokens().len();
        ImageRows { start: self.start - first, part, embeddings, attention, positions }
    }

    /// Those of its rows that are in a pass over the tokens `pass` of the prompt.
    #[must_use]
    pub fn rows_in(&self, pass: Range<usize>) -> Option<ImageRows> {
        if self.beside().is_some() {
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

/// Where a pass from token `done` on ends: after `chunk` tokens, but not within an image whose rows see
/// each other; one that is longer than the chunk goes whole.
pub(crate) fn chunk_end(done: usize, chunk: usize, tokens: usize, images: &[PlacedImage]) -> usize {
    let whole =
        images.iter().filter(|placed| placed.image.attention == ImageAttention::Bidirectional);
    cut(done, (done + chunk).min(tokens), whole.map(PlacedImage::tokens))
}

fn cut(done: usize, end: usize, mut images: impl Iterator<Item = Range<usize>>) -> usize {
    match images.find(|image| image.start < end && end < image.end) {
        Some(image) if image.start > done => image.start,
        Some(image) => image.end,
        None => end,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_do_not_end_within_an_image() {
        let end = |done, end| cut(done, end, [10..14, 14..18].into_iter());
        assert_eq!(end(0, 8), 8);
        assert_eq!(end(0, 10), 10);
        assert_eq!(end(0, 12), 10);
        assert_eq!(end(10, 12), 14);
        assert_eq!(end(0, 14), 14);
        assert_eq!(end(10, 16), 14);
        assert_eq!(end(14, 30), 30);
    }
}
