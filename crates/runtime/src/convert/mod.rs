//! From one checkpoint to another: MLX's affine quantisation, or another element type.
//!
//! The result is what `mlx_lm.convert` writes: the same tensors bit for bit, the same block in
//! `config.json`. Owns which tensor becomes what, and the new files; the arithmetic is
//! `mlxcel_core::quantize`'s.
//!
//! Invariants: tensors stream through blocks of at most 2²⁰ elements per thread, so that memory
//! stays below [`MEMORY_BYTES_PER_THREAD`] per thread whatever the model's size; nothing appears
//! under the new name before it is complete, and what is incomplete is removed.

mod error;
mod files;
mod layout;
mod mixed;
mod plan;
mod stream;

use std::ops::ControlFlow;
use std::path::Path;

use mlxcel_core::{FloatType, Pool};
use mlxcel_estimator::headers::Checkpoint;
use mlxcel_estimator::{ModelSpec, format_bytes};

pub use self::error::ConvertError;
pub use self::mixed::Mixed;
use crate::families::read_config;
use crate::source::ModelSource;
use crate::{Error, Result, disk};

/// What a thread needs at most: a block of source bytes, its values, its codes.
pub const MEMORY_BYTES_PER_THREAD: u64 = 20 << 20;

/// How the new checkpoint stores its weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// As floats.
    Plain,
    /// In MLX's affine format, where rows divide into groups.
    Affine {
        /// 2, 3, 4, 5, 6 or 8; with `mixed`, of what its rules do not mention.
        bits: u8,
        /// 32, 64 or 128.
        group_size: u16,
        /// A recipe that gives some layers more bits.
        mixed: Option<Mixed>,
    },
}

/// What to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// The storage of matrices and embeddings.
    pub target: Target,
    /// The type of floats; `None`: what `config.json` calls `torch_dtype`, else as they are.
    pub dtype: Option<FloatType>,
}

/// What was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Bytes of the tensors that were read.
    pub source_bytes: u64,
    /// Bytes of the safetensors files that were written.
    pub bytes: u64,
    /// Parameters of the model.
    pub parameters: u64,
    /// Tensors that were quantised.
    pub quantized: usize,
    /// Tensors of the source that the model does not use, and that are left out.
    pub dropped: Vec<String>,
}

impl Summary {
    /// Bits per parameter, scales and biases included.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    pub fn bits_per_weight(&self) -> f64 {
        self.bytes as f64 * 8.0 / self.parameters.max(1) as f64
    }
}

/// Writes the checkpoint in `source` anew as `out`, with `threads` threads. `progress` is told how
/// many of how many bytes are read, and may break off.
///
/// # Errors
/// A source that is broken, already quantised or of an unsupported family; a tensor that is missing
/// or misshapen; bits, group sizes and recipes that do not exist or do not apply; an `out` that
/// exists; too little room on the disk; what the system says. Nothing is left behind then.
pub fn convert(
    source: &Path,
    out: &Path,
    options: &Options,
    threads: usize,
    progress: &mut dyn FnMut(u64, u64) -> ControlFlow<()>,
) -> Result<Summary> {
    if out.symlink_metadata().is_ok() {
        return Err(ConvertError::OutExists { out: out.to_owned() }.into());
    }
    let config = read_config(&ModelSource::Folder(source.to_owned()))?;
    if ["quantization", "quantization_config"].iter().any(|key| !config[key].is_null()) {
        return Err(ConvertError::AlreadyQuantized { folder: source.to_owned() }.into());
    }
    let spec = ModelSpec::from_config(&config.to_string())?;
    let checkpoint = Checkpoint::open(source)?;
    let checkpoint = checkpoint.ok_or_else(|| Error::NoWeights { dir: source.to_owned() })?;
    let plan = plan::Plan::new(source, &checkpoint, &spec, &config, options)?;
    let shards = layout::shards(&plan.tensors);
    let bytes = shards.iter().map(|shard| shard.file_bytes).sum();
    check_room(out, bytes)?;
    let pool = Pool::new(threads).map_err(mlxcel_core::Error::from)?;

    let folder = files::Incomplete::create(out)?;
    let mut stream = stream::Stream::new(&checkpoint, &pool, progress)?;
    for shard in &shards {
        stream.write(shard, &plan.tensors, folder.path())?;
    }
    files::write_small(source, folder.path(), &plan.config, &layout::index(&shards, &plan))?;
    folder.finish(out)?;
    let quantized = plan.tensors.iter().filter(|tensor| tensor.is_quantized()).count();
    let (source_bytes, parameters) = (checkpoint.total_bytes(), plan.parameters);
    Ok(Summary { source_bytes, bytes, parameters, quantized, dropped: plan.dropped })
}

fn check_room(out: &Path, bytes: u64) -> Result<()> {
    match disk::available_bytes(out) {
        Some(available) if available < bytes => Err(ConvertError::NoRoom {
            out: out.to_owned(),
            needed: format_bytes(bytes),
            available: format_bytes(available),
        }
        .into()),
        _ => Ok(()),
    }
}
