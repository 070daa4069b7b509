//! Saved KV caches as safetensors files: the header as metadata and, per layer, the U64 tensor
//! `layers.N.state` and the U8 tensor `layers.N.bytes`.
//!
//! `mlxcel_core` defines the contents of these tensors and checks the header.

use std::collections::HashMap;
use std::path::Path;

use mlxcel_core::{SavedCache, SavedLayer, SequenceCache};
use safetensors::SafeTensorError;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::engine::Engine;
use crate::error::FileProblem;
use crate::loading::Fingerprint;
use crate::{Error, Result};

/// Writes `cache` to `path`.
///
/// # Errors
/// A cache that cannot be saved, or a file that cannot be written.
pub fn save(model: Fingerprint, cache: &SequenceCache, path: &Path) -> Result<()> {
    let saved = cache.save(&model.to_string())?;
    write(&saved, path).map_err(|error| Error::safetensors(path, error))
}

/// Reads a cache of the model `model` from `path`.
///
/// # Errors
/// A file that is not a safetensors file or is truncated; a cache of another version, model, mode
/// or layout than the engine's.
pub fn load(engine: &Engine, model: Fingerprint, path: &Path) -> Result<SequenceCache> {
    let file = std::fs::read(path).map_err(|error| Error::io(path, error))?;
    let saved = parse(&file).map_err(|error| Error::safetensors(path, error))?;
    let mode = engine.kv_mode();
    let cache =
        SequenceCache::restore(engine.ops(), engine.layout(), mode, &model.to_string(), &saved)
            .map_err(|error| Error::invalid_file(path, FileProblem::SavedCache(error)))?;
    engine.with_room(cache)
}

fn write(saved: &SavedCache, path: &Path) -> std::result::Result<(), SafeTensorError> {
    let states: Vec<Vec<u8>> = saved
        .layers
        .iter()
        .map(|layer| layer.state.iter().flat_map(|n| n.to_le_bytes()).collect())
        .collect();
    let mut tensors = Vec::with_capacity(2 * saved.layers.len());
    for (index, (layer, state)) in saved.layers.iter().zip(&states).enumerate() {
        let counters = TensorView::new(Dtype::U64, vec![layer.state.len()], state)?;
        let bytes = TensorView::new(Dtype::U8, vec![layer.bytes.len()], &layer.bytes)?;
        tensors.push((format!("layers.{index}.state"), counters));
        tensors.push((format!("layers.{index}.bytes"), bytes));
    }
    let header: HashMap<String, String> = saved.header.clone().into_iter().collect();
    safetensors::serialize_to_file(tensors, Some(header), path)
}

fn parse(file: &[u8]) -> std::result::Result<SavedCache, SafeTensorError> {
    let (_, metadata) = SafeTensors::read_metadata(file)?;
    let header = metadata.metadata().clone().unwrap_or_default().into_iter().collect();
    let tensors = SafeTensors::deserialize(file)?;
    let mut layers = Vec::with_capacity(tensors.len() / 2);
    for index in 0..tensors.len() / 2 {
        let state = tensors.tensor(&format!("layers.{index}.state"))?;
        let words = state.data().as_chunks::<8>().0;
        layers.push(SavedLayer {
            state: words.iter().map(|word| u64::from_le_bytes(*word)).collect(),
            bytes: tensors.tensor(&format!("layers.{index}.bytes"))?.data().to_vec(),
        });
    }
    Ok(SavedCache { header, layers })
}
