//! List and removal of the models in the cache.

use std::path::{Path, PathBuf};

use mlxcel_estimator::{
    DEFAULT_CONTEXT_TOKENS, Machine, ModelSpec, Workload, estimate_total_memory, read_dir,
};
use serde::Serialize;

use super::error::HubResult;
use super::{HubError, local};

/// Schema name of the JSON list.
pub const LIST_SCHEMA: &str = "mlxcel.list/1";

/// A model in the cache. The fields are the JSON's keys.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelEntry {
    /// `org/name`.
    pub name: String,
    /// The snapshot's folder.
    pub path: Option<PathBuf>,
    /// Bytes on the disk, other revisions and unfinished downloads included.
    pub disk_bytes: u64,
    /// `model_type` of `config.json`.
    pub model_type: Option<String>,
    /// Parameters of the architecture.
    pub parameters: Option<u64>,
    /// Bits of a weight, scales not counted.
    pub bits: Option<u64>,
    /// Context of the estimate `total_bytes`.
    pub context_tokens: Option<u64>,
    /// Memory needed to run it.
    pub total_bytes: Option<u64>,
    /// Fits this machine now.
    pub fits: Option<bool>,
    /// Reason why it cannot be used.
    pub problem: Option<String>,
}

/// Models in `cache`, by name, sized for `machine`; none without a cache.
///
/// # Errors
/// A folder that cannot be read.
pub fn list(cache: &Path, machine: &Machine) -> HubResult<Vec<ModelEntry>> {
    let entries = match std::fs::read_dir(cache) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(HubError::io(cache, error)),
    };
    let mut models = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| HubError::io(cache, error))?.path();
        if let Some(name) = name_of(&path) {
            models.push(ModelEntry::read(name, path, machine));
        }
    }
    models.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(models)
}

/// Removes the model `name` with all its revisions from `cache`; returns the bytes freed.
///
/// # Errors
/// A name that is not `org/name` or not in the cache; errors of the system.
pub fn remove(cache: &Path, name: &str) -> HubResult<u64> {
    let entry = local::entry_of(cache, name)?;
    if !entry.is_dir() {
        return Err(HubError::NotInCache { name: name.to_owned(), cache: cache.to_owned() });
    }
    let bytes = disk_bytes(&entry);
    std::fs::remove_dir_all(&entry).map_err(|error| HubError::io(&entry, error))?;
    let locks = cache.join(".locks").join(entry.file_name().unwrap_or_default());
    match std::fs::remove_dir_all(&locks) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(HubError::io(&locks, error))
        }
        _ => Ok(bytes),
    }
}

/// `org/name` of the folder `models--org--name`.
fn name_of(entry: &Path) -> Option<String> {
    let name = entry.file_name()?.to_str()?.strip_prefix("models--")?.replacen("--", "/", 1);
    (local::is_repository(&name) && entry.is_dir()).then_some(name)
}

/// Bytes of all files below, links not followed.
fn disk_bytes(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let sizes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(data) if data.is_dir() => disk_bytes(&entry.path()),
        Ok(data) if data.is_file() => data.len(),
        _ => 0,
    });
    sizes.sum()
}

impl ModelEntry {
    fn read(name: String, entry: PathBuf, machine: &Machine) -> Self {
        let mut model = Self {
            name,
            path: None,
            disk_bytes: disk_bytes(&entry),
            model_type: None,
            parameters: None,
            bits: None,
            context_tokens: None,
            total_bytes: None,
            fits: None,
            problem: None,
        };
        if let Err(problem) = model.size(entry, machine) {
            model.problem = Some(problem.to_string());
        }
        model
    }

    fn size(&mut self, entry: PathBuf, machine: &Machine) -> HubResult<()> {
        let folder = local::snapshot(entry)?;
        self.path = Some(folder.clone());
        let (spec, weights) = read_dir(&folder)?;
        self.model_type = Some(spec.model_type.clone()).filter(|name| !name.is_empty());
        self.parameters = spec.parameters()?;
        self.bits = Some(bits(&spec));
        let most = spec.max_context_tokens.unwrap_or(DEFAULT_CONTEXT_TOKENS);
        let context = DEFAULT_CONTEXT_TOKENS.min(most);
        let workload = Workload::uniform(context, 1);
        let estimate = estimate_total_memory(&spec, &weights, &workload, machine)?;
        self.context_tokens = Some(context);
        self.total_bytes = Some(estimate.total_bytes);
        self.fits = machine.available_bytes.map(|_| estimate.over_budget_bytes().is_none());
        Ok(())
    }
}

fn bits(spec: &ModelSpec) -> u64 {
    spec.quantization.as_ref().map_or(spec.elem_bytes * 8, |quant| quant.format.bits)
}
