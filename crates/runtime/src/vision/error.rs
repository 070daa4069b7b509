//! What can be wrong with an image, or with giving one to a model.

use super::input::FAMILIES;

/// An error about images. Its text is one sentence for a person.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// A family that reads text only.
    #[error("model_type \"{model_type}\" reads no images (families that do: {FAMILIES})")]
    TextModel {
        /// The family's name.
        model_type: String,
    },
    /// A checkpoint whose image encoder was left out.
    #[error("the checkpoint has no image encoder (no tensors of vision_tower): use a complete one")]
    NoEncoder,
    /// A checkpoint that does not say how images are prepared.
    #[error("{file} is missing: it says how images are prepared")]
    NoPreprocessor {
        /// The file.
        file: String,
    },
    /// A preparation that is not supported, or contradicts the model.
    #[error("preprocessor_config.json: {what}")]
    Preprocessor {
        /// What is wrong.
        what: String,
    },
    /// A file of another format, or none at all.
    #[error("{origin} is {found} (supported: PNG, JPEG, WebP)")]
    Format {
        /// The file.
        origin: String,
        /// What it seems to be.
        found: String,
    },
    /// More pixels or bytes than are decoded.
    #[error("{origin} has {found}, more than the {most} that are read: make it smaller")]
    TooLarge {
        /// The file.
        origin: String,
        /// How much it has.
        found: String,
        /// The limit.
        most: String,
    },
    /// A shape that no model was trained on.
    #[error("an image of {picture} is more than {most} times as long as wide: cut it")]
    Stretched {
        /// Its size.
        picture: String,
        /// The limit.
        most: u64,
    },
    /// A file that breaks off, or is damaged.
    #[error("{origin} cannot be decoded: {reason}")]
    Corrupt {
        /// The file.
        origin: String,
        /// The decoder's reason.
        reason: String,
    },
    /// An image that a prompt cuts off.
    #[error("an image at tokens {image:?} of a prompt of {tokens}")]
    Beyond {
        /// Its tokens.
        image: std::ops::Range<usize>,
        /// Tokens of the prompt.
        tokens: usize,
    },
    /// Another number of images than of places for them.
    #[error(
        "{images} image(s) were given, but the prompt has {places} place(s) for one ({marker})"
    )]
    Places {
        /// Images that were given.
        images: usize,
        /// Places in the prompt.
        places: usize,
        /// What marks a place.
        marker: String,
    },
}
