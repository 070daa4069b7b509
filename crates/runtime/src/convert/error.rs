//! Errors of checkpoint conversion.

use std::path::PathBuf;

use mlxcel_estimator::format_bytes;

/// An error that only conversions have, displayed as one sentence.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConvertError {
    /// The output folder exists.
    #[error("{} exists already: choose another folder or remove it", out.display())]
    OutExists {
        /// Output folder.
        out: PathBuf,
    },
    /// The source is quantised.
    #[error("{} is already quantised: start from the fp16, bf16 or fp32 checkpoint", folder.display())]
    AlreadyQuantized {
        /// Folder to convert.
        folder: PathBuf,
    },
    /// The tensors of the model family are not known.
    #[error("model_type \"{model_type}\" is not converted: its tensors are not known")]
    UnknownTensors {
        /// Name of the family.
        model_type: String,
    },
    /// The model family has tensors whose conversion is not implemented.
    #[error("model_type \"{model_type}\" is not converted: tensor \"{name}\" is {kind}")]
    UnsupportedTensor {
        /// Name of the family.
        model_type: String,
        /// First such tensor.
        name: String,
        /// Kind of the tensor.
        kind: &'static str,
    },
    /// The configuration states no experts to stack.
    #[error("tensor \"{name}\" stacks the experts of a model without experts")]
    NoExperts {
        /// Name of the stacked tensor.
        name: String,
    },
    /// The experts of a layer have different element types.
    #[error("tensor \"{name}\" has another element type than the other experts")]
    MixedTypes {
        /// First tensor that differs.
        name: String,
    },
    /// No matrix can be quantised with this group size.
    #[error("no matrix of this model has rows that divide into groups of {group_size}")]
    NothingToQuantize {
        /// Group size.
        group_size: u16,
    },
    /// A mixed-precision recipe does not apply to the model.
    #[error("--mixed {recipe} needs layers with a down_proj, which this model does not have")]
    RecipeNotApplicable {
        /// Name of the recipe.
        recipe: &'static str,
    },
    /// A mixed-precision recipe does not exist.
    #[error("there is no recipe \"{name}\" (known: {known})")]
    UnknownRecipe {
        /// Name given.
        name: String,
        /// Known recipes, comma-separated.
        known: String,
    },
    /// The disk is too full.
    #[error(
        "{} needs {}, but its disk has {} left",
        out.display(), format_bytes(*needed_bytes), format_bytes(*available_bytes)
    )]
    DiskFull {
        /// Output folder.
        out: PathBuf,
        /// Size of the new checkpoint.
        needed_bytes: u64,
        /// Free space.
        available_bytes: u64,
    },
}
