//! Flags that several commands share: one definition of name, values and help each.

use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, ValueEnum};
use mlxcel_estimator::KvMode;
use mlxcel_hub::{self as hub, HubError};
use mlxcel_runtime::engine::{EngineConfig, ModelSource};
use mlxcel_runtime::loading::Residence;
use mlxcel_runtime::{ComputeDtype, KernelSet, OpsConfig, Precision};

/// Which model.
#[derive(Args, Clone, Debug)]
pub(crate) struct ModelArgs {
    /// Model folder, or ORG/NAME in the local Hugging Face cache [default: the built-in model]
    #[arg(short, long, value_name = "DIR|ORG/NAME")]
    pub(crate) model: Option<String>,
}

impl ModelArgs {
    /// Resolves the flag to files on this machine; at a terminal, a model that is not here can be
    /// downloaded.
    pub(crate) fn source(&self) -> Result<ModelSource> {
        let Some(name) = &self.model else { return Ok(ModelSource::BuiltIn) };
        match hub::resolve(Path::new(name)) {
            Err(absent @ HubError::NotInCache { .. }) => {
                let folder = crate::models::offer(name)?.ok_or(absent)?;
                Ok(ModelSource::Folder(folder))
            }
            found => Ok(ModelSource::Folder(found?)),
        }
    }

    /// The files of the flag, if they are on this machine.
    pub(crate) fn files(&self) -> Option<ModelSource> {
        let Some(name) = &self.model else { return Some(ModelSource::BuiltIn) };
        hub::resolve(Path::new(name)).ok().map(ModelSource::Folder)
    }
}

/// How keys and values are stored.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct KvArgs {
    /// KV cache mode: fp16, int8, fp16+turbo4, fp16+turbo3, int8+turbo4, turbo4, turbo4-delegated
    #[arg(long, value_name = "MODE")]
    pub(crate) kv_cache_mode: Option<String>,
    /// Type of cached keys: fp16, int8, turbo4 (beats --kv-cache-mode)
    #[arg(long, value_name = "TYPE")]
    pub(crate) cache_type_k: Option<String>,
    /// Type of cached values: fp16, int8, turbo4, turbo3, turbo4-delegated (beats --kv-cache-mode)
    #[arg(long, value_name = "TYPE")]
    pub(crate) cache_type_v: Option<String>,
}

impl KvArgs {
    /// The mode that was asked for; split flags beat `--kv-cache-mode`, with a note.
    pub(crate) fn mode(&self) -> Result<KvMode> {
        let [mode, k, v] = [&self.kv_cache_mode, &self.cache_type_k, &self.cache_type_v];
        let choice = KvMode::choose(mode.as_deref(), k.as_deref(), v.as_deref())?;
        if let Some(note) = &choice.note {
            crate::terminal::note(note);
        }
        Ok(choice.mode)
    }
}

/// How a prompt is read.
#[derive(Args, Clone, Debug)]
pub(crate) struct ChunkArgs {
    /// Prompt tokens per pass [default: 512; 128 where answers are served]
    #[arg(long, alias = "prefill-chunk-size", value_name = "N")]
    pub(crate) prefill_chunk: Option<usize>,
}

impl ChunkArgs {
    /// Where one text is generated: large chunks read a prompt fastest.
    pub(crate) const DEFAULT: usize = 512;

    /// Tokens per pass, at least 1; `default` where nothing is said.
    pub(crate) fn tokens(&self, default: usize) -> Result<usize> {
        match self.prefill_chunk {
            Some(0) => bail!("--prefill-chunk must be at least 1"),
            tokens => Ok(tokens.unwrap_or(default)),
        }
    }
}

/// On how many threads.
#[derive(Args, Clone, Debug)]
pub(crate) struct ThreadArgs {
    /// CPU threads [default: all cores]
    #[arg(short, long, env = "MLXCEL_THREADS", value_name = "N")]
    threads: Option<usize>,
}

impl ThreadArgs {
    /// The number that was asked for, at least 1.
    fn given(&self) -> Result<Option<usize>> {
        match self.threads {
            Some(0) => bail!("--threads must be at least 1"),
            threads => Ok(threads),
        }
    }

    /// The number that was asked for, else that of the cores.
    pub(crate) fn count(&self) -> Result<usize> {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        Ok(self.given()?.unwrap_or_else(cores))
    }
}

/// How to compute.
#[derive(Args, Clone, Debug)]
pub(crate) struct ComputeArgs {
    #[command(flatten)]
    pub(crate) threads: ThreadArgs,
    #[command(flatten)]
    pub(crate) chunk: ChunkArgs,
    /// Compute and cache in this type: auto follows the checkpoint
    #[arg(long, value_enum, default_value_t)]
    pub(crate) dtype: Dtype,
    /// Precision of activations in CPU matrix products [default: int16; eval: exact]
    #[arg(long, value_enum)]
    pub(crate) activations: Option<Activations>,
    #[command(flatten)]
    pub(crate) residence: ResidenceArgs,
}

/// Where the weights lie.
#[derive(Args, Clone, Debug)]
pub(crate) struct ResidenceArgs {
    /// Use weights where they lie in their files [default: except in chat and serve on Linux CPUs]
    #[arg(long, overrides_with = "no_mmap")]
    mmap: bool,
    /// Read weights into memory, in huge pages: loads slower, computes faster
    #[arg(long, overrides_with = "mmap")]
    no_mmap: bool,
}

impl ResidenceArgs {
    /// What was asked for, else `default`.
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
    /// The checkpoint's own type.
    #[default]
    Auto,
    /// 32-bit floats throughout, the cache included.
    Fp32,
}

impl Dtype {
    /// What is computed in.
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
    /// As precise as fp32.
    Exact,
    /// 15 bits.
    Int16,
    /// 7 bits into gated layers, 15 elsewhere.
    Mixed,
    /// 7 bits, the fastest.
    Int8,
}

impl Activations {
    /// What generates text when nothing is said: on a small 4-bit model int16 keeps 99.97 % of the
    /// tokens that fp32 would choose, mixed 99.5 %, int8 98.7 % (see docs/cpu-speed.md).
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

/// Reads a text file, naming it when that fails; `-` is standard input.
pub(crate) fn read_file(path: &Path) -> Result<String> {
    if path == Path::new("-") {
        return read_stdin();
    }
    match std::fs::read(path) {
        Ok(bytes) => utf8(bytes, &path.display().to_string()),
        Err(error) => bail!("{}: {error}", path.display()),
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
