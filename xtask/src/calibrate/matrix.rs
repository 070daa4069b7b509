//! The measured loads: shapes × contexts × KV cache modes × chunk sizes.

use super::Arguments;
use anyhow::{Context, Result, ensure};
use mlxcel_estimator::{KvMode, read_dir};
use mlxcel_testing::synth;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// One load to measure.
pub(super) struct Load {
    pub(super) name: String,
    pub(super) folder: PathBuf,
    pub(super) mode: KvMode,
    /// Tokens in the KV cache at the end.
    pub(super) context: u64,
    /// Tokens of a prefill chunk.
    pub(super) chunk: u64,
}

/// A published shape, from 0.1 B to 3 B parameters, all with tied embeddings.
struct Shape {
    name: &'static str,
    family: &'static str,
    hidden: u32,
    layers: u32,
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    inner: u32,
    vocabulary: u32,
    /// Bits of a weight: 16, or MLX's affine format.
    bits: u8,
}

#[rustfmt::skip]
const SHAPES: [Shape; 6] = [
    Shape { name: "smollm2-135m", family: "llama", hidden: 576, layers: 30, heads: 9, kv_heads: 3, head_dim: 64, inner: 1536, vocabulary: 49_152, bits: 16 },
    Shape { name: "qwen2.5-0.5b", family: "qwen2", hidden: 896, layers: 24, heads: 14, kv_heads: 2, head_dim: 64, inner: 4864, vocabulary: 151_936, bits: 16 },
    Shape { name: "qwen3-0.6b-4bit", family: "qwen3", hidden: 1024, layers: 28, heads: 16, kv_heads: 8, head_dim: 128, inner: 3072, vocabulary: 151_936, bits: 4 },
    Shape { name: "llama-3.2-1b", family: "llama", hidden: 2048, layers: 16, heads: 32, kv_heads: 8, head_dim: 64, inner: 8192, vocabulary: 128_256, bits: 16 },
    Shape { name: "qwen2.5-1.5b-4bit", family: "qwen2", hidden: 1536, layers: 28, heads: 12, kv_heads: 2, head_dim: 128, inner: 8960, vocabulary: 151_936, bits: 4 },
    Shape { name: "llama-3.2-3b-4bit", family: "llama", hidden: 3072, layers: 28, heads: 24, kv_heads: 8, head_dim: 128, inner: 8192, vocabulary: 128_256, bits: 4 },
];

impl Shape {
    fn config(&self) -> Value {
        json!({
            "model_type": self.family, "hidden_size": self.hidden,
            "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads, "head_dim": self.head_dim,
            "intermediate_size": self.inner, "vocab_size": self.vocabulary,
            "tie_word_embeddings": true, "max_position_embeddings": 65_536,
            "rms_norm_eps": 1e-6, "rope_theta": 1e6, "torch_dtype": "bfloat16",
        })
    }

    /// The folder of the checkpoint, which is created if missing.
    fn checkpoint(&self, below: &Path) -> Result<PathBuf> {
        let folder = below.join(self.name);
        if !folder.join("config.json").is_file() || read_dir(&folder).is_err() {
            eprintln!("writing {}", folder.display());
            let scales = synth::Dtype::Bf16;
            let weights = match self.bits {
                16 => synth::Weights::Plain(scales),
                bits => synth::Weights::Affine { bits, group_size: 64, scales },
            };
            synth::checkpoint(&self.config(), &synth::Options::new(weights), &folder)?;
        }
        Ok(folder)
    }
}

/// Lists the loads that `arguments` describe, small models first.
pub(super) fn loads(arguments: &Arguments, root: &Path) -> Result<Vec<Load>> {
    let modes = match &arguments.modes[..] {
        [] => KvMode::ALL.to_vec(),
        names => names.iter().map(|name| KvMode::parse(name)).collect::<Result<_, _>>()?,
    };
    let mut loads = Vec::new();
    for (name, folder) in models(arguments, root)? {
        for &context in &arguments.contexts {
            for &chunk in arguments.chunks.iter().filter(|chunk| **chunk <= context) {
                loads.extend(modes.iter().map(|&mode| Load {
                    name: name.clone(),
                    folder: folder.clone(),
                    mode,
                    context,
                    chunk,
                }));
            }
        }
    }
    Ok(loads)
}

/// The folder of the synthetic checkpoints.
pub(super) fn checkpoints(arguments: &Arguments, root: &Path) -> PathBuf {
    arguments.checkpoints.clone().unwrap_or_else(|| root.join("target/calibration"))
}

fn models(arguments: &Arguments, root: &Path) -> Result<Vec<(String, PathBuf)>> {
    if !arguments.models.is_empty() {
        return arguments.models.iter().map(|folder| named(folder)).collect();
    }
    let below = checkpoints(arguments, root);
    let known: Vec<&str> = SHAPES.iter().map(|shape| shape.name).collect();
    for name in &arguments.shapes {
        ensure!(
            known.contains(&name.as_str()),
            "no shape {name}; known shapes: {}",
            known.join(", ")
        );
    }
    let all = arguments.shapes.is_empty();
    SHAPES
        .iter()
        .filter(|shape| all || arguments.shapes.iter().any(|name| name == shape.name))
        .map(|shape| Ok((shape.name.to_owned(), shape.checkpoint(&below)?)))
        .collect()
}

/// A checkpoint's folder with its name.
fn named(folder: &Path) -> Result<(String, PathBuf)> {
    let name = folder.file_name().context("the path of a checkpoint ends with a name")?;
    Ok((name.to_string_lossy().into_owned(), folder.to_owned()))
}
