//! Errors of model operations and caches.

use std::ops::Range;

use mlxcel_estimator::KvMode;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// MLX or the shim failed, or a host kernel panicked.
    #[error(transparent)]
    Mlx(#[from] mlx_ffi::Error),
    /// A CPU kernel refused its arguments.
    #[error(transparent)]
    Kernel(#[from] mlxcel_kernels::KernelError),
    /// An operand does not have the shape that the operation needs.
    #[error("{op}: {operand} has shape {found:?}, {expected} expected")]
    Shape {
        /// Operation that was called.
        op: &'static str,
        /// Name of the operand.
        operand: &'static str,
        /// Shape of the operand.
        found: Vec<usize>,
        /// Expected shape, in words or dimensions.
        expected: String,
    },
    /// A list does not have one entry for each of the things that it describes.
    #[error("{list}: {found} entries, {expected} expected")]
    Length {
        /// List that was given.
        list: &'static str,
        /// Its number of entries.
        found: usize,
        /// Expected number of entries.
        expected: usize,
    },
    /// A parameter is outside of its range.
    #[error("{name} is {value}, {expected} expected")]
    Value {
        /// Name of the parameter.
        name: &'static str,
        /// Value that was given.
        value: String,
        /// Accepted values, in words.
        expected: &'static str,
    },
    /// A size does not divide into equal parts.
    #[error("{size} {what} are not a multiple of {parts} groups")]
    Indivisible {
        /// Things that are to be divided.
        what: &'static str,
        /// Their number.
        size: usize,
        /// Number of parts.
        parts: usize,
    },
    /// An index lies beyond the end.
    #[error("{what} {index} is out of range: there are {len}")]
    OutOfRange {
        /// Kind of thing that is counted.
        what: &'static str,
        /// Index that was asked for.
        index: usize,
        /// Number of things that there are.
        len: usize,
    },
    /// A combination that is not implemented.
    #[error("{feature} is not supported")]
    Unsupported {
        /// Combination that was asked for.
        feature: &'static str,
    },
    /// A layer cannot run in this KV cache mode.
    #[error("KV cache mode {mode} cannot run: {reason}")]
    KvMode {
        /// Mode that was asked for.
        mode: KvMode,
        /// Reason, and an alternative.
        reason: String,
    },
    /// A name is not among the known ones.
    #[error("{setting} \"{found}\" is not known (known: {known})")]
    UnknownName {
        /// Setting that has the name as its value.
        setting: &'static str,
        /// Name that was given.
        found: String,
        /// Known names.
        known: &'static str,
    },
    /// An image does not fit the pass or the sequence that it is given to.
    #[error("image rows {rows:?}: {problem}")]
    Image {
        /// Rows of the pass or of the image, or the token that stands for it.
        rows: Range<usize>,
        /// Reason for the refusal.
        problem: ImageProblem,
    },
    /// A cache cannot be cut back to this length.
    #[error("KV cache: cannot trim to {to} tokens: {limit}")]
    Trim {
        /// Length that was asked for.
        to: usize,
        /// Reason for the refusal.
        limit: TrimLimit,
    },
    /// A cache that must be empty holds tokens or images.
    #[error("KV cache: {action} needs an empty cache, not one of {tokens} tokens")]
    NotEmpty {
        /// Action that was refused.
        action: &'static str,
        /// Tokens in the cache.
        tokens: usize,
    },
    /// A recurrent state does not belong to the position of the pass.
    #[error(
        "KV cache: a recurrent state of {tokens} tokens cannot continue at {position}: an earlier pass failed; trim to 0"
    )]
    StateOutOfStep {
        /// Tokens that the state has seen.
        tokens: usize,
        /// Position of the pass.
        position: usize,
    },
    /// A saved cache does not belong to this model, mode or version, or is damaged.
    #[error("KV cache: the saved cache does not fit: {0}")]
    SavedCache(SavedCacheProblem),
}

/// Reason why an image is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ImageProblem {
    /// The rows overlap another image or belong to more than one run.
    NotInOneRun,
    /// The image has fewer rows.
    BeyondImage {
        /// Rows of the image.
        rows: usize,
    },
    /// Rows of a bidirectional image must be computed in one pass.
    PartOfBidirectional {
        /// Rows of the image.
        rows: usize,
    },
    /// The grid has another number of cells.
    Grid {
        /// Rows of the image.
        rows: usize,
        /// Cells of the grid.
        cells: usize,
    },
    /// A cross-attention image is attached to the cache, not to a pass.
    CrossAttention,
    /// The number of visible rows is 0 or exceeds those of the image.
    VisibleRows {
        /// Rows of the image.
        rows: usize,
    },
    /// The image does not follow the one before it.
    Order,
}

impl std::fmt::Display for ImageProblem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotInOneRun => write!(f, "they are not one run's own"),
            Self::BeyondImage { rows } => write!(f, "the image has {rows} rows"),
            Self::PartOfBidirectional { rows } => {
                write!(f, "part of an image of {rows} rows that attend to each other")
            }
            Self::Grid { rows, cells } => {
                write!(f, "the image has {rows} rows, its grid {cells} cells")
            }
            Self::CrossAttention => {
                write!(f, "a cross-attention image is attached to the cache, not to a pass")
            }
            Self::VisibleRows { rows } => {
                write!(f, "the visible rows must be 1 to {rows}, the rows of the image")
            }
            Self::Order => write!(f, "its token does not follow that of the image before it"),
        }
    }
}

/// Reason why a cache cannot be cut back.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TrimLimit {
    /// The cache is shorter.
    Length {
        /// Tokens that it holds.
        held: usize,
    },
    /// A recurrent state cannot go back.
    RecurrentState,
    /// The sliding window has dropped tokens that the next query would see.
    Window {
        /// First token that is still held.
        first: usize,
    },
    /// The place lies within a sealed block.
    SealedBlock {
        /// First token of the block.
        start: usize,
    },
    /// The place lies within an image whose rows attend to each other.
    Image {
        /// Tokens of the image.
        tokens: Range<usize>,
    },
}

impl std::fmt::Display for TrimLimit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Length { held } => write!(f, "it holds {held}"),
            Self::RecurrentState => write!(f, "a recurrent state cannot go back; trim to 0"),
            Self::Window { first } => write!(f, "the sliding window has dropped the first {first}"),
            Self::SealedBlock { start } => {
                write!(f, "the block from {start} on is sealed; trim to {start}")
            }
            Self::Image { tokens } => write!(f, "that lies within an image at {tokens:?}"),
        }
    }
}

/// Reason why a saved cache is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SavedCacheProblem {
    /// An entry of the header differs.
    Header {
        /// Entry.
        key: &'static str,
        /// Its value.
        found: String,
        /// Value that is needed here.
        needed: String,
    },
    /// The header states no valid number of tokens.
    Tokens,
    /// The images of the header do not fit the tokens.
    Images {
        /// Entry of the header.
        text: String,
        /// Tokens of the cache.
        tokens: usize,
    },
    /// Layers are missing or superfluous.
    Layers {
        /// Number of saved layers.
        found: usize,
        /// Layers of the model.
        needed: usize,
    },
    /// A layer's bytes are not those of the header's tokens.
    Layer {
        /// Index of the layer.
        index: usize,
        /// Tokens that the header states.
        tokens: usize,
    },
}

impl std::fmt::Display for SavedCacheProblem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Header { key, found, needed } => {
                write!(f, "its {key} is \"{found}\", here \"{needed}\" is needed")
            }
            Self::Tokens => write!(f, "its header states no number of tokens"),
            Self::Images { text, tokens } => write!(f, "images at \"{text}\" in {tokens} tokens"),
            Self::Layers { found, needed } => write!(f, "{found} of {needed} layers"),
            Self::Layer { index, tokens } => {
                write!(f, "layer {index} does not hold {tokens} tokens")
            }
        }
    }
}

/// Result type of this crate.
pub type Result<T> = std::result::Result<T, Error>;
