//! The check before a load: does it fit, and what would.
//!
//! Owns what a load is compared with (this machine), when it is refused, and what is proposed
//! instead. Every size comes from `mlxcel-estimator`; nothing here reads a tensor.

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

pub use self::proposal::{Proposal, proposals};
use crate::memory::{Available, Usage, memory_limit};
use crate::source::ModelSource;
use crate::{Error, Result, builtin};

/// What the JSON of a refusal calls its format.
pub const REFUSAL_SCHEMA: &str = "mlxcel.refusal/1";

/// A model as the estimator sees it: its configuration and headers.
#[derive(Clone, Debug)]
pub struct Sized {
    /// What reports call it.
    pub name: String,
    /// What its layers keep.
    pub spec: ModelSpec,
    /// What its files hold.
    pub weights: WeightFootprint,
}

impl Sized {
    /// Reads a model's configuration and headers.
    ///
    /// # Errors
    /// Files that are missing, broken or contradict each other.
    pub fn read(source: &ModelSource) -> Result<Self> {
        match source {
            ModelSource::BuiltIn => Self::built_in(),
            ModelSource::Folder(dir) => Self::read_path(dir),
        }
    }

    /// Reads a folder that holds at least `config.json`, or the path of one.
    ///
    /// # Errors
    /// As [`Self::read`].
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

    /// The full report for `workload` on `machine`.
    ///
    /// # Errors
    /// A cache mode that the model cannot take.
    pub fn report(&self, workload: &Workload, machine: &Machine) -> Result<Report> {
        Ok(Report::new(&self.name, &self.spec, &self.weights, workload, machine)?)
    }
}

/// This machine, computing with `backend` or else with what it would take by itself.
///
/// # Errors
/// A variable of the environment or a calibration file that is not understood.
pub fn this_machine(backend: Option<Backend>) -> Result<Machine> {
    let (own, kernels) = own_backend()?;
    let chosen = backend.unwrap_or(own);
    let variable = std::env::var(HEADROOM_VARIABLE).ok().filter(|text| !text.is_empty());
    let headroom = Headroom::choose(variable.as_deref(), calibration()?.as_ref(), chosen)?;
    let mut machine = Machine::new(chosen).with_headroom(headroom);
    if chosen == own {
        machine = machine.with_kernels(kernels);
    }
    if let Some(version) = MlxVersion::parse(mlx_version()) {
        machine = machine.with_mlx_version(version);
    }
    let available = Available::find()?;
    if let Some(bytes) = available.bytes {
        machine = machine.with_available(bytes, available.source);
    }
    Ok(match available.total_bytes {
        Some(bytes) => machine.with_total(bytes),
        None => machine,
    })
}

/// What this machine computes with, and whose kernels run.
fn own_backend() -> Result<(Backend, KernelSet)> {
    let gpu = if cfg!(target_os = "macos") { Backend::Metal } else { Backend::Cuda };
    Ok(match mlxcel_core::KernelSet::from_env()? {
        mlxcel_core::KernelSet::Host => (Backend::Cpu, KernelSet::Host),
        mlxcel_core::KernelSet::Mlx => {
            let has_gpu = Device::Gpu.is_available().map_err(mlxcel_core::Error::from)?;
            (if has_gpu { gpu } else { Backend::Cpu }, KernelSet::Mlx)
        }
    })
}

/// What was measured on this machine, where somebody did.
fn calibration() -> Result<Option<Calibration>> {
    let Some(path) = calibration_path(|name| std::env::var_os(name)) else { return Ok(None) };
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(Some(Calibration::parse(&text)?)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Io { path, source }),
    }
}

/// What to do with a load that does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Warn and go on; only the vision rule refuses.
    Warn,
    /// Refuse.
    Refuse,
    /// Warn and go on, whatever it is.
    Force,
}

/// A load to be checked.
#[derive(Clone, Debug)]
pub struct Load {
    /// What is asked of the model.
    pub workload: Workload,
    /// A context below this is no use: the prompt and one token.
    pub least_context_tokens: u64,
    /// The share of all memory that the weights of a vision model may take.
    pub vision_threshold: f64,
    /// What to do when it does not fit.
    pub policy: Policy,
}

/// Why a load is refused. The names are those of the JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The total exceeds what is available.
    OverBudget,
    /// The weights of a vision model exceed their share of all memory.
    Vision,
}

/// A load that does not happen.
#[derive(Clone, Debug, Serialize)]
pub struct Refusal {
    /// [`REFUSAL_SCHEMA`].
    pub schema: &'static str,
    /// Why.
    pub reason: Reason,
    /// The same for a person: `DOES NOT FIT: 622.4 MiB over budget`, or the vision rule's text.
    pub message: String,
    /// What would fit, the mildest change first.
    pub would_fit: Vec<Proposal>,
}

/// What became of a check.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// It fits, as far as is known.
    Clear,
    /// It goes on, with a sentence for whoever asked.
    Warned(String),
    /// It must not go on.
    Refused(Box<Refusal>),
}

/// Checks `load` of `model` on `machine`.
///
/// # Errors
/// A cache mode that the model cannot take.
pub fn check(model: &Sized, load: &Load, machine: &Machine) -> Result<Outcome> {
    let Sized { spec, weights, .. } = model;
    let workload = &load.workload;
    let estimate = mlxcel_estimator::estimate_total_memory(spec, weights, workload, machine)?;
    let (has_vision, bytes) = (spec.vision.is_some(), estimate.weights.bytes);
    let rule = vision_rule(bytes, machine.total_bytes, has_vision, load.vision_threshold);
    let (reason, message, refuse) = if let VisionRule::Refuse(text) = rule {
        (Reason::Vision, text, load.policy != Policy::Force)
    } else if estimate.over_budget_bytes().is_some() {
        let refuse = load.policy == Policy::Refuse && estimate.must_refuse();
        (Reason::OverBudget, verdict(&estimate), refuse)
    } else {
        return Ok(Outcome::Clear);
    };
    if !refuse {
        return Ok(Outcome::Warned(message));
    }
    let would_fit = proposals(model, load, machine)?;
    Ok(Outcome::Refused(Box::new(Refusal { schema: REFUSAL_SCHEMA, reason, message, would_fit })))
}

/// Makes caches and scratch keep to what `MLXCEL_MEMORY_LIMIT` leaves beside the weights, where it
/// is set and the weights are within it. On the CPU no allocator does that. Not for a load whose
/// estimate is beyond the limit and that somebody wants nevertheless.
///
/// # Errors
/// A limit that is no size.
pub fn keep_to_limit(model: &Sized) -> Result<()> {
    let room = memory_limit()?.and_then(|limit| limit.checked_sub(model.weights.bytes));
    allowance::allow_bytes(room.map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX)));
    Ok(())
}

/// One line that compares an estimate with what the process has really used since it held
/// `baseline_bytes`.
#[must_use]
pub fn compare(expected_peak_bytes: u64, baseline_bytes: Option<u64>, usage: &Usage) -> String {
    let resident = usage.peak_resident_bytes.zip(baseline_bytes);
    let resident = resident.map(|(peak, before)| {
        let what = format!("resident, without the {} before the load", format_bytes(before));
        (peak.saturating_sub(before), what)
    });
    let in_mlx = usage.mlx_peak_bytes.filter(|bytes| *bytes > 0);
    let in_mlx = in_mlx
        .map(|bytes| (bytes as u64, "in MLX's allocator, mapped weights not counted".to_owned()));
    let expected = format_bytes(expected_peak_bytes);
    let Some((bytes, what)) = resident.or(in_mlx) else {
        return format!("expected peak {expected}, measured: nothing on this platform");
    };
    let percent = bytes as f64 / expected_peak_bytes.max(1) as f64 * 100.0;
    let measured = format_bytes(bytes);
    format!("expected peak {expected}, measured {measured} ({what}): {percent:.0} % of it")
}

#[cfg(test)]
mod tests;
