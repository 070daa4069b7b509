//! Why a checkpoint is not converted.

use std::path::PathBuf;

/// An error that concerns conversions only. Its text is one sentence for a person.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConvertError {
    /// The new folder's name is taken.
    #[error("{} exists already: choose another folder or remove it", out.display())]
    OutExists {
        /// The name.
        out: PathBuf,
    },
    /// The source is not plain.
    #[error("{} is already quantised: start from the fp16, bf16 or fp32 checkpoint", folder.display())]
    AlreadyQuantized {
        /// The folder to convert.
        folder: PathBuf,
    },
    /// A family with tensors that nobody here knows how to convert.
    #[error("model_type \"{model_type}\" is not converted: tensor \"{name}\" is {kind}")]
    Unsupported {
        /// The family.
        model_type: String,
        /// The first such tensor.
        name: String,
        /// What it is.
        kind: &'static str,
    },
    /// Experts that cannot be stacked.
    #[error("tensor \"{name}\" has another element type than the other experts")]
    MixedTypes {
        /// The tensor.
        name: String,
    },
    /// No row divides into groups.
    #[error("no matrix of this model has rows that divide into groups of {group_size}")]
    NothingToQuantize {
        /// The group size.
        group_size: u16,
    },
    /// A recipe for another kind of model.
    #[error("--mixed {recipe} needs layers with a down_proj, which this model does not have")]
    NoRecipe {
        /// The recipe's name.
        recipe: &'static str,
    },
    /// A recipe that does not exist.
    #[error("there is no recipe \"{name}\" (there are: {known})")]
    UnknownRecipe {
        /// What was asked for.
        name: String,
        /// The recipes.
        known: String,
    },
    /// The disk is too full.
    #[error("{} needs {needed}, but its disk has {available} left", out.display())]
    NoRoom {
        /// The new folder.
        out: PathBuf,
        /// What is needed.
        needed: String,
        /// What there is.
        available: String,
    },
}
