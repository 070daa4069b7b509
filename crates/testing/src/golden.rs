//! Goldens: what a pinned mlx-lm computes on random-weights checkpoints of every family.
//!
//! `crates/runtime/tests/configs/NAME.json` is a tiny model. Its checkpoints are never
//! committed, since [`checkpoint`] makes the same bits everywhere; what mlx-lm computes on them is
//! committed as `crates/runtime/tests/golden/NAME.safetensors`. Tensors, per variant of
//! [`VARIANTS`], logits in f32:
//!
//! | tensor | shape | |
//! |---|---|---|
//! | `tokens` | `[300]` i32 | the prompt of every variant |
//! | `positions` | `[p]` i32 | rows of the full forward pass that are stored |
//! | `VARIANT.one` | `[1, vocab]` | of the first token alone |
//! | `VARIANT.full` | `[p, vocab]` | of all 300 tokens in one pass, at `positions` |
//! | `VARIANT.top1` | `[300]` i32 | argmax at every position of that pass |
//! | `VARIANT.decode` | `[d, vocab]` | the last d tokens one by one, after a prefill of the rest |
//!
//! `golden/NAME-images.safetensors` is what mlx-vlm computes from pictures on checkpoints of a
//! configuration with an image encoder (`xtask/golden/vision_FAMILY.py` lists its tensors).
//!
//! The metadata holds the versions and the checksum of each checkpoint (`VARIANT.crc32`).

use crate::paths::workspace_root;
use crate::synth::{self, Dtype, Options, Weights};
use crate::{Result, TestingError};
use std::path::{Path, PathBuf};

/// A checkpoint and the precision in which its goldens are computed.
#[derive(Clone, Copy, Debug)]
pub struct Variant {
    /// First part of the names of its tensors.
    pub name: &'static str,
    /// Storage of the weights.
    pub weights: Weights,
    /// Type of activations, caches and weights that are not quantised.
    pub compute: Dtype,
}

/// Variants of every configuration that have goldens.
pub const VARIANTS: [Variant; 3] = [
    Variant { name: "f32", weights: Weights::Plain(Dtype::F32), compute: Dtype::F32 },
    Variant {
        name: "q4",
        weights: Weights::Affine { bits: 4, group_size: 64, scales: Dtype::Bf16 },
        compute: Dtype::F32,
    },
    Variant { name: "bf16", weights: Weights::Plain(Dtype::Bf16), compute: Dtype::Bf16 },
];

/// Names of the configurations, in order.
///
/// # Errors
/// A folder that cannot be read.
pub fn configurations() -> Result<Vec<String>> {
    let mut names = Vec::new();
    let folder = tests_folder().join("configs");
    let entries = std::fs::read_dir(&folder).map_err(|error| TestingError::io(&folder, error))?;
    for entry in entries {
        let path = entry.map_err(|error| TestingError::io(&folder, error))?.path();
        let stem = path.file_stem().expect("an entry of a folder has a name");
        names.push(stem.to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Makes the checkpoint of configuration `name` in `folder`.
///
/// # Errors
/// Errors of [`synth::checkpoint`], and a configuration that does not exist.
pub fn checkpoint(name: &str, variant: &Variant, folder: &Path) -> Result<()> {
    let config = synth::read_config(&tests_folder().join(format!("configs/{name}.json")))?;
    synth::checkpoint(&config, &Options::new(variant.weights), folder)?;
    Ok(())
}

/// The goldens of configuration `name`.
pub fn path(name: &str) -> PathBuf {
    tests_folder().join(format!("golden/{name}.safetensors"))
}

/// The goldens of configuration `name` with images.
pub fn images_path(name: &str) -> PathBuf {
    tests_folder().join(format!("golden/{name}-images.safetensors"))
}

/// Folder of `configs` and `golden`.
pub fn tests_folder() -> PathBuf {
    workspace_root().join("crates/runtime/tests")
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::SafeTensors;

    /// The checkpoints that tests make are those that mlx-lm saw.
    #[test]
    fn checkpoints_are_reproducible() {
        let folder = tempfile::tempdir().unwrap();
        let mut names = configurations().unwrap();
        assert!(names.len() >= 6);
        for name in names.drain(..) {
            let golden = std::fs::read(path(&name)).unwrap();
            let (_, header) = SafeTensors::read_metadata(&golden).unwrap();
            let metadata = header.metadata().as_ref().unwrap().clone();
            for variant in &VARIANTS {
                checkpoint(&name, variant, folder.path()).unwrap();
                let bytes = std::fs::read(folder.path().join("model.safetensors")).unwrap();
                let checksum = crc32fast::hash(&bytes).to_string();
                let recorded = &metadata[&format!("{}.crc32", variant.name)];
                assert_eq!(&checksum, recorded, "{name}, {}", variant.name);
            }
        }
    }
}
