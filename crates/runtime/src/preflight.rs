//! Memory check before a load: estimates whether it fits, and proposes changes if it does not.
//!
//! Owns the description of this machine, the decision to refuse a load, and the proposals. All sizes
//! come from `mlxcel-estimator`; no tensor data is read.

mod proposal;

use std::path::{Path, PathBuf};

use mlxcel_core::allowance;
use mlxcel_core::device::{Device, mlx_version};
use mlxcel_estimator::headers::{Checkpoint, parse_header};
use mlxcel_estimator::report::Report;
use mlxcel_estimator::{
    Backend, Calibration, HEADROOM_VARIABLE, Headroom, KernelSet, Machine, MlxVersion, ModelSpec,
    VisionRule, WeightFootprint, Workload, calibration_path, format_bytes, read_dir, verdict,
    vision_rule,
};
use serde::Serialize;

pub use self::proposal::Proposal;
use crate::memory::{AvailableMemory, MemoryUsage, memory_limit};
use crate::source::ModelSource;
use crate::{Error, Result, builtin};

/// Schema of a [`Refusal`] in JSON.
const REFUSAL_SCHEMA: &str = "mlxcel.refusal/1";

/// The estimator's view of a model: architecture and size of the weights.
#[derive(Clone, Debug)]
pub struct ModelFootprint {
    /// Name in reports.
    pub name: String,
    /// Architecture, from `config.json`.
    pub spec: ModelSpec,
    /// Sizes of the weights, from the safetensors headers.
    pub weights: WeightFootprint,
}

impl ModelFootprint {
    /// Reads a model's configuration and headers.
    ///
    /// # Errors
    /// Files that are missing, invalid or contradict each other.
    pub fn read(source: &ModelSource) -> Result<Self> {
        match source {
            ModelSource::BuiltIn => Self::built_in(),
            ModelSource::Folder(dir) => Self::read_path(dir),
        }
    }

    /// Reads a folder that contains at least `config.json`, or the path of a `config.json`.
    ///
    /// # Errors
    /// The errors of [`Self::read`].
    pub fn read_path(path: &Path) -> Result<Self> {
        let (spec, weights) = read_dir(path)?;
        Ok(Self { name: path.display().to_string(), spec, weights })
    }

    fn built_in() -> Result<Self> {
        let name = "built-in model".to_owned();
        let spec = ModelSpec::from_config(&String::from_utf8_lossy(builtin::CONFIG))?;
        let file = PathBuf::from(&name);
        let header = parse_header(&file, builtin::WEIGHTS, builtin::WEIGHTS.len() as u64)?;
        let checkpoint = Checkpoint::assemble(Path::new(&name), vec![(file, header)], None)?;
        Ok(Self { weights: WeightFootprint::from_headers(&checkpoint, &spec), spec, name })
    }

    /// Builds the full memory report for `workload` on `machine`.
    ///
    /// # Errors
    /// A cache mode that the model does not support.
    pub fn report(&self, workload: &Workload, machine: &Machine) -> Result<Report> {
        Ok(Report::new(&self.name, &self.spec, &self.weights, workload, machine)?)
    }
}

/// Describes this machine. `backend` defaults to the one that this process would compute with.
///
/// # Errors
/// An invalid environment variable or calibration file.
pub fn this_machine(backend: Option<Backend>) -> Result<Machine> {
    let (default_backend, kernels) = default_backend()?;
    let backend = backend.unwrap_or(default_backend);
    let variable = std::env::var(HEADROOM_VARIABLE).ok().filter(|text| !text.is_empty());
    let headroom = Headroom::choose(variable.as_deref(), calibration()?.as_ref(), backend)?;
    let mut machine = Machine::new(backend).with_headroom(headroom);
    if backend == default_backend {
        machine = machine.with_kernels(kernels);
    }
    if let Some(version) = MlxVersion::parse(mlx_version()) {
        machine = machine.with_mlx_version(version);
    }
    let available = AvailableMemory::measure()?;
    if let Some(bytes) = available.bytes {
        machine = machine.with_available(bytes, available.source);
    }
    Ok(match available.total_bytes {
        Some(bytes) => machine.with_total(bytes),
        None => machine,
    })
}

/// Backend and kernel set that this process computes with.
fn default_backend() -> Result<(Backend, KernelSet)> {
    let gpu = if cfg!(target_os = "macos") { Backend::Metal } else { Backend::Cuda };
    Ok(match mlxcel_core::KernelSet::from_env()? {
        mlxcel_core::KernelSet::Host => (Backend::Cpu, KernelSet::Host),
        mlxcel_core::KernelSet::Mlx => {
            let has_gpu = Device::Gpu.is_available().map_err(mlxcel_core::Error::from)?;
            (if has_gpu { gpu } else { Backend::Cpu }, KernelSet::Mlx)
        }
    })
}

/// Calibration of this machine, if one was made.
fn calibration() -> Result<Option<Calibration>> {
    let Some(path) = calibration_path(|name| std::env::var_os(name)) else { return Ok(None) };
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(Some(Calibration::parse(&text)?)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Io { path, source }),
    }
}

/// Reaction to a load that does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Warn and load; only the vision rule refuses.
    Warn,
    /// Refuse.
    Refuse,
    /// Warn and load, also against the vision rule.
    Force,
}

/// A load to check.
#[derive(Clone, Debug)]
pub struct LoadRequest {
    /// Requested workload.
    pub workload: Workload,
    /// Shortest context worth proposing: the prompt and one token.
    pub min_context_tokens: u64,
    /// Largest share of total memory for the weights of a vision model.
    pub vision_threshold: f64,
    /// Reaction if the load does not fit.
    pub policy: Policy,
}

/// Reason for a refusal. Variant names are part of the JSON schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalReason {
    /// The estimated total exceeds the available memory.
    OverBudget,
    /// The weights of a vision model exceed their share of total memory.
    Vision,
}

/// A refused load.
#[derive(Clone, Debug, Serialize)]
pub struct Refusal {
    /// Schema name.
    pub schema: &'static str,
    /// Reason, for programs.
    pub reason: RefusalReason,
    /// Reason in words: `DOES NOT FIT: 622.4 MiB over budget`, or the text of the vision rule.
    pub message: String,
    /// Changes that make the load fit, the mildest first.
    pub would_fit: Vec<Proposal>,
}

/// Result of a memory check.
#[derive(Clone, Debug)]
pub enum FitCheck {
    /// The load fits, as far as is known.
    Fits,
    /// The load may not fit, but proceeds; the text is the warning to print.
    Warning(String),
    /// The load must not proceed.
    Refused(Box<Refusal>),
}

/// Checks whether `load` of `model` fits on `machine`.
///
/// # Errors
/// A cache mode that the model does not support.
pub fn check(model: &ModelFootprint, load: &LoadRequest, machine: &Machine) -> Result<FitCheck> {
    let ModelFootprint { spec, weights, .. } = model;
    let workload = &load.workload;
    let estimate = mlxcel_estimator::estimate_total_memory(spec, weights, workload, machine)?;
    let has_vision = spec.vision.is_some();
    let weight_bytes = estimate.weights.bytes;
    let rule = vision_rule(weight_bytes, machine.total_bytes, has_vision, load.vision_threshold);
    let (reason, message, refuse) = if let VisionRule::Refuse(text) = rule {
        (RefusalReason::Vision, text, load.policy != Policy::Force)
    } else if estimate.over_budget_bytes().is_some() {
        let refuse = load.policy == Policy::Refuse && estimate.must_refuse();
        (RefusalReason::OverBudget, verdict(&estimate), refuse)
    } else {
        return Ok(FitCheck::Fits);
    };
    if !refuse {
        return Ok(FitCheck::Warning(message));
    }
    let would_fit = proposal::proposals(model, load, machine)?;
    Ok(FitCheck::Refused(Box::new(Refusal { schema: REFUSAL_SCHEMA, reason, message, would_fit })))
}

/// Limits caches and scratch buffers to `MLXCEL_MEMORY_LIMIT` less the weights, if it is set and at
/// least that large; no allocator enforces it on the CPU. Not for a forced load, whose estimate
/// exceeds the limit.
///
/// # Errors
/// An invalid size in the variable.
pub fn enforce_memory_limit(model: &ModelFootprint) -> Result<()> {
    let rest = memory_limit()?.and_then(|limit| limit.checked_sub(model.weights.bytes));
    allowance::allow_bytes(rest.map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX)));
    Ok(())
}

/// Formats one line that compares an estimated peak with the measured one. `baseline_bytes` is the
/// resident size before the load.
#[must_use]
pub fn compare_peak(
    expected_peak_bytes: u64,
    baseline_bytes: Option<u64>,
    usage: &MemoryUsage,
) -> String {
    let expected = format_bytes(expected_peak_bytes);
    let Some((bytes, counted)) = measured_peak(baseline_bytes, usage) else {
        return format!("expected peak {expected}, measured: nothing on this platform");
    };
    let percent = bytes as f64 / expected_peak_bytes.max(1) as f64 * 100.0;
    let measured = format_bytes(bytes);
    format!("expected peak {expected}, measured {measured} ({counted}): {percent:.0} % of it")
}

/// Measured peak in bytes, and a description of what it counts.
fn measured_peak(baseline_bytes: Option<u64>, usage: &MemoryUsage) -> Option<(u64, String)> {
    if let Some((peak, before)) = usage.peak_resident_bytes.zip(baseline_bytes) {
        let counted = format!("resident, without the {} before the load", format_bytes(before));
        return Some((peak.saturating_sub(before), counted));
    }
    let bytes = usage.mlx_peak_bytes.filter(|bytes| *bytes > 0)?;
    Some((bytes as u64, "in MLX's allocator, mapped weights not counted".to_owned()))
}

#[cfg(test)]
mod tests;
