//! Flags shared by several commands, each with one definition of name, values and help.

use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, ValueEnum};
use mlxcel_estimator::{DEFAULT_CONTEXT_TOKENS, KvMode};
use mlxcel_hub::{self as hub, HubError};
use mlxcel_runtime::engine::{EngineConfig, ModelSource};
use mlxcel_runtime::loading::Residence;
use mlxcel_runtime::{ComputeDtype, KernelSet, OpsConfig, Precision};

/// Selection of the model.
#[derive(Args, Clone, Debug)]
pub(crate) struct ModelArgs {
    /// Model folder, or ORG/NAME in the local Hugging Face cache [default: the built-in model]
    #[arg(short, long, value_name = "DIR|ORG/NAME")]
    pub(crate) model: Option<String>,
}

impl ModelArgs {
    /// Resolves the flag to files on this machine. At a terminal, offers to download a missing model.
    pub(crate) fn source(&self) -> Result<ModelSource> {
        let Some(name) = &self.model else { return Ok(ModelSource::BuiltIn) };
        match hub::resolve(Path::new(name)) {
            Err(missing @ HubError::NotInCache { .. }) => {
                let folder = crate::models::offer(name)?.ok_or(missing)?;
                Ok(ModelSource::Folder(folder))
            }
            found => Ok(ModelSource::Folder(found?)),
        }
    }

    /// The model's files, if they are on this machine.
    pub(crate) fn files(&self) -> Option<ModelSource> {
        let Some(name) = &self.model else { return Some(ModelSource::BuiltIn) };
        hub::resolve(Path::new(name)).ok().map(ModelSource::Folder)
    }
}

/// Storage format of cached keys and values.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct KvArgs {
    /// KV cache mode: fp16, int8, fp16+turbo4, fp16+turbo3, int8+turbo4, turbo4, turbo4-delegated
    #[arg(long, value_name = "MODE")]
    pub(crate) kv_cache_mode: Option<String>,
    /// Type of cached keys: fp16, int8, turbo4 (overrides --kv-cache-mode)
    #[arg(long, value_name = "TYPE")]
    pub(crate) cache_type_k: Option<String>,
    /// Type of cached values: fp16, int8, turbo4, turbo3, turbo4-delegated (overrides --kv-cache-mode)
    #[arg(long, value_name = "TYPE")]
    pub(crate) cache_type_v: Option<String>,
}

impl KvArgs {
    /// The requested mode. Separate types override `--kv-cache-mode`, with a note.
    pub(crate) fn mode(&self) -> Result<KvMode> {
        let [mode, k, v] = [&self.kv_cache_mode, &self.cache_type_k, &self.cache_type_v];
        let choice = KvMode::choose(mode.as_deref(), k.as_deref(), v.as_deref())?;
        if let Some(note) = &choice.note {
            crate::terminal::note(note);
        }
        Ok(choice.mode)
    }
}

/// Prefill chunk size.
#[derive(Args, Clone, Debug)]
pub(crate) struct ChunkArgs {
    /// Prompt tokens per forward pass [default: 512; serve: 128]
    #[arg(long, alias = "prefill-chunk-size", value_name = "N")]
    pub(crate) prefill_chunk: Option<usize>,
}

impl ChunkArgs {
    /// Default of commands that generate one text: large chunks have the fastest prefill.
    pub(crate) const DEFAULT: usize = 512;

    /// Tokens per pass, at least 1; `default` if the flag is absent.
    pub(crate) fn tokens(&self, default: usize) -> Result<usize> {
        match self.prefill_chunk {
            Some(0) => bail!("--prefill-chunk must be at least 1"),
            tokens => Ok(tokens.unwrap_or(default)),
        }
    }
}

/// Number of threads.
#[derive(Args, Clone, Debug)]
pub(crate) struct ThreadArgs {
    /// CPU threads [default: all cores]
    #[arg(short, long, env = "MLXCEL_THREADS", value_name = "N")]
    threads: Option<usize>,
}

impl ThreadArgs {
    /// The requested number, at least 1.
    fn given(&self) -> Result<Option<usize>> {
        match self.threads {
            Some(0) => bail!("--threads must be at least 1"),
            threads => Ok(threads),
        }
    }

    /// The requested number, by default that of the cores.
    pub(crate) fn count(&self) -> Result<usize> {
        match self.given()? {
            Some(threads) => Ok(threads),
            None => Ok(std::thread::available_parallelism().map_or(1, usize::from)),
        }
    }
}

/// Settings of the computation.
#[derive(Args, Clone, Debug)]
pub(crate) struct ComputeArgs {
    #[command(flatten)]
    pub(crate) threads: ThreadArgs,
    #[command(flatten)]
    pub(crate) chunk: ChunkArgs,
    /// Type of activations and KV cache; auto follows the checkpoint
    #[arg(long, value_enum, default_value_t)]
    pub(crate) dtype: Dtype,
    /// Precision of activations in matrix products on the CPU [default: int16; eval: exact]
    #[arg(long, value_enum)]
    pub(crate) activations: Option<Activations>,
    #[command(flatten)]
    pub(crate) residence: ResidenceArgs,
}

/// Location of the weights.
#[derive(Args, Clone, Debug)]
pub(crate) struct ResidenceArgs {
    /// Map the weight files into memory [default, except for chat and serve on Linux CPUs]
    #[arg(long, overrides_with = "no_mmap")]
    mmap: bool,
    /// Read the weights into memory, in huge pages: slower to load, faster to compute
    #[arg(long, overrides_with = "mmap")]
    no_mmap: bool,
}

impl ResidenceArgs {
    /// The requested location, or `default`.
    pub(crate) fn or(&self, default: Residence) -> Residence {
        match (self.mmap, self.no_mmap) {
            (true, _) => Residence::Mapped,
            (_, true) => Residence::Read,
            _ => default,
        }
    }
}

/// Values of `--dtype`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Dtype {
    /// The type of the checkpoint.
    #[default]
    Auto,
    /// 32-bit floats, including the KV cache.
    Fp32,
}

impl Dtype {
    /// The type of the computation.
    pub(crate) fn computed(self) -> ComputeDtype {
        match self {
            Self::Auto => ComputeDtype::Checkpoint,
            Self::Fp32 => ComputeDtype::Fp32,
        }
    }
}

/// Values of `--activations`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Activations {
    /// Full fp32 precision.
    Exact,
    /// 15 bits.
    Int16,
    /// 7 bits for the inputs of gated layers, 15 elsewhere.
    Mixed,
    /// 7 bits: fastest.
    Int8,
}

impl Activations {
    /// Default of commands that generate text. On a small 4-bit model, int16 chooses the same token as
    /// fp32 in 99.97 % of cases, mixed in 99.5 %, int8 in 98.7 % (see docs/cpu-speed.md).
    pub(crate) const GENERATING: Self = Self::Int16;
}

impl ComputeArgs {
    /// The configuration of an engine; `activations` is the command's default.
    pub(crate) fn engine(&self, kv_mode: KvMode, activations: Activations) -> Result<EngineConfig> {
        let precision = match self.activations.unwrap_or(activations) {
            Activations::Exact => Precision::Exact,
            Activations::Int16 => Precision::Int16,
            Activations::Mixed => Precision::Mixed,
            Activations::Int8 => Precision::Int8,
        };
        let ops = OpsConfig {
            kernels: KernelSet::from_env()?,
            threads: self.threads.given()?,
            precision,
            dtype: self.dtype.computed(),
        };
        let prefill_chunk = self.chunk.tokens(ChunkArgs::DEFAULT)?;
        Ok(EngineConfig {
            ops,
            kv_mode,
            prefill_chunk,
            weights: self.residence.or(Residence::Mapped),
        })
    }
}

/// Resolves `--ctx-size` for a model with a context of `model` tokens; `None` if the flag is absent.
///
/// Zero stands for the model's own context, as in llama.cpp.
///
/// # Errors
/// A size beyond the model's context, or 0 for a model whose configuration names none.
pub(crate) fn context_size(given: Option<usize>, model: Option<usize>) -> Result<Option<usize>> {
    match (given, model) {
        (Some(0), None) => {
            bail!("--ctx-size 0: the model states no context of its own; give a number of tokens")
        }
        (Some(0), Some(own)) => Ok(Some(own)),
        (Some(wanted), Some(own)) if wanted > own => {
            bail!("--ctx-size {wanted} exceeds the model's context of {own} tokens")
        }
        (given, _) => Ok(given),
    }
}

/// [`context_size`] of commands that default to 8192 tokens, or to the model's context if smaller.
pub(crate) fn context_size_or_default(given: Option<usize>, model: Option<usize>) -> Result<usize> {
    let default = usize::try_from(DEFAULT_CONTEXT_TOKENS)?;
    let size = context_size(given, model)?;
    Ok(size.unwrap_or_else(|| model.map_or(default, |own| own.min(default))))
}

/// Reads a text file; `-` is standard input. Errors name the file.
pub(crate) fn read_file(path: &Path) -> Result<String> {
    if path == Path::new("-") {
        return read_stdin();
    }
    match std::fs::read(path) {
        Ok(bytes) => utf8(bytes, &path.display().to_string()),
        Err(error) => bail!("cannot read {}: {error}", path.display()),
    }
}

/// Reads standard input to its end.
pub(crate) fn read_stdin() -> Result<String> {
    let mut bytes = Vec::new();
    std::io::stdin().lock().read_to_end(&mut bytes).context("cannot read standard input")?;
    utf8(bytes, "standard input")
}

fn utf8(bytes: Vec<u8>, origin: &str) -> Result<String> {
    String::from_utf8(bytes).map_err(|error| {
        anyhow!("{origin} is not UTF-8 text (byte {})", error.utf8_error().valid_up_to())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn context_sizes() {
        let check = |given, model| context_size(given, model).map_err(|error| error.to_string());
        assert_eq!(check(None, Some(512)), Ok(None));
        assert_eq!(check(Some(0), Some(512)), Ok(Some(512)));
        assert_eq!(check(Some(512), Some(512)), Ok(Some(512)));
        assert_eq!(check(Some(9999), None), Ok(Some(9999)));
        assert!(check(Some(513), Some(512)).is_err_and(|error| error.contains("513 exceeds")));
        assert_eq!(context_size_or_default(None, Some(512)).ok(), Some(512));
        assert_eq!(context_size_or_default(None, Some(99_999)).ok(), Some(8192));
        assert_eq!(context_size_or_default(Some(0), Some(99_999)).ok(), Some(99_999));
        assert!(check(Some(0), None).is_err_and(|error| error.contains("states no context")));
    }
}
