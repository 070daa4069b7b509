//! Conversion of checkpoints to MLX's affine quantisation or another element type.
//!
//! The output equals that of `mlx_lm.convert`: the same tensors, bit for bit, and the same
//! quantisation block in `config.json`. Owns the plan for each tensor and the new files; the
//! arithmetic is in `mlxcel_core::quantize`.
//!
//! Invariants: tensors are streamed in blocks of at most 2²⁰ elements per thread, so that memory stays
//! below 20 MiB per thread for any model; the output folder appears only when it is complete, and an
//! incomplete one is removed.

mod conversion_plan;
mod converter;
mod error;
mod files;
mod layout;
mod recipe;

use std::ops::ControlFlow;
use std::path::Path;

use mlxcel_core::{FloatType, Pool};
use mlxcel_estimator::ModelSpec;
use mlxcel_estimator::headers::Checkpoint;

use self::conversion_plan::ConversionPlan;
use self::converter::Converter;
pub use self::error::ConvertError;
use self::files::StagingFolder;
pub use self::recipe::MixedRecipe;
use crate::error::FileProblem;
use crate::families::read_config;
use crate::source::ModelSource;
use crate::{Error, Result, disk};

/// Storage of the weights in the new checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightFormat {
    /// Floats.
    Float,
    /// MLX's affine quantisation, for matrices whose rows divide into groups.
    Affine {
        /// 2, 3, 4, 5, 6 or 8; with `mixed`, the bits of modules that its rules do not mention.
        bits: u8,
        /// 32, 64 or 128.
        group_size: u16,
        /// Recipe that gives some layers more bits.
        mixed: Option<MixedRecipe>,
    },
}

/// Options of a conversion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvertOptions {
    /// Storage of matrices and embeddings.
    pub format: WeightFormat,
    /// Type of floats; `None` means the `torch_dtype` of `config.json`, or else no change.
    pub dtype: Option<FloatType>,
}

/// Summary of a conversion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConvertSummary {
    /// Size of the source's tensors.
    pub source_bytes: u64,
    /// Size of the new safetensors files.
    pub bytes: u64,
    /// Number of the model's parameters.
    pub parameters: u64,
    /// Number of quantised tensors.
    pub quantized: usize,
    /// Tensors of the source that the model does not use and that were dropped.
    pub dropped: Vec<String>,
}

impl ConvertSummary {
    /// Bits per parameter, scales and biases included.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    pub fn bits_per_weight(&self) -> f64 {
        self.bytes as f64 * 8.0 / self.parameters.max(1) as f64
    }
}

/// Converts the checkpoint in `source` into the new folder `out` on `threads` threads. `progress`
/// receives the bytes read so far and in total, and may interrupt.
///
/// # Errors
/// A source that is invalid, already quantised or of an unsupported family; a missing or misshapen
/// tensor; invalid bits, group sizes or recipes; an existing `out`; a full disk; failed reads and
/// writes. No files are left behind.
pub fn convert(
    source: &Path,
    out: &Path,
    options: &ConvertOptions,
    threads: usize,
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<ConvertSummary> {
    if out.symlink_metadata().is_ok() {
        return Err(ConvertError::OutExists { out: out.to_owned() }.into());
    }
    let config = read_config(&ModelSource::Folder(source.to_owned()))?;
    if ["quantization", "quantization_config"].iter().any(|key| !config[key].is_null()) {
        return Err(ConvertError::AlreadyQuantized { folder: source.to_owned() }.into());
    }
    let spec = ModelSpec::from_config(&config.to_string())?;
    let checkpoint = Checkpoint::open(source)?
        .ok_or_else(|| Error::invalid_file(source, FileProblem::NoWeights))?;
    let plan = ConversionPlan::new(source, &checkpoint, &spec, &config, options)?;
    let shards = layout::shards(&plan.tensors);
    let bytes = shards.iter().map(|shard| shard.file_bytes).sum();
    check_disk_space(out, bytes)?;
    let pool = Pool::new(threads).map_err(mlxcel_core::Error::from)?;

    let folder = StagingFolder::create(out)?;
    let mut converter = Converter::new(&checkpoint, &pool, progress)?;
    for shard in &shards {
        converter.write(shard, &plan.tensors, folder.path())?;
    }
    let index = layout::index(&shards, &plan);
    files::write_small_files(source, folder.path(), &plan.config, &index)?;
    folder.finish(out)?;
    Ok(ConvertSummary {
        source_bytes: checkpoint.total_bytes(),
        bytes,
        parameters: plan.parameters,
        quantized: plan.tensors.iter().filter(|tensor| tensor.is_quantized()).count(),
        dropped: plan.dropped,
    })
}

fn check_disk_space(out: &Path, needed_bytes: u64) -> Result<()> {
    match disk::available_bytes(out) {
        Some(available_bytes) if available_bytes < needed_bytes => {
            Err(ConvertError::DiskFull { out: out.to_owned(), needed_bytes, available_bytes }
                .into())
        }
        _ => Ok(()),
    }
}
