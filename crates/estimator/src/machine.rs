//! The machine that a model is to run on, detected or hypothetical.

use std::fmt;

use crate::error::EstimatorError;
use crate::headroom::Headroom;

/// Device that computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Backend {
    /// The processor, with the host kernels.
    Cpu,
    /// An NVIDIA GPU, with MLX's kernels.
    Cuda,
    /// Apple silicon, with MLX's kernels.
    Metal,
}

impl Backend {
    /// Every backend.
    pub const ALL: [Self; 3] = [Self::Cpu, Self::Cuda, Self::Metal];

    /// Name in `--backend`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::Metal => "metal",
        }
    }

    /// Parses the value of `--backend`.
    ///
    /// # Errors
    /// [`EstimatorError::BadValue`], listing the backends.
    pub fn parse(text: &str) -> Result<Self, EstimatorError> {
        let known = Self::ALL.into_iter().find(|backend| backend.name() == text);
        known.ok_or_else(|| EstimatorError::BadValue {
            name: "--backend".to_owned(),
            value: crate::error::shortened(text),
            reason: "one of cpu, cuda, metal is needed".to_owned(),
        })
    }
}

/// Kernel set: the implementations that operations are dispatched to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KernelSet {
    /// This project's CPU kernels.
    Host,
    /// MLX's own kernels.
    Mlx,
}

/// An MLX version, ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MlxVersion(pub u32, pub u32, pub u32);

impl MlxVersion {
    /// Version that this release of the crate was checked against.
    pub const CURRENT: Self = Self(0, 32, 4);

    /// Parses `0.32.4`; anything behind the third number is ignored.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.trim().split(|c: char| !c.is_ascii_digit()).map(str::parse);
        Some(Self(numbers.next()?.ok()?, numbers.next()?.ok()?, numbers.next()?.ok()?))
    }
}

impl fmt::Display for MlxVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// Source of the figure for available memory. Names are those of the JSON report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum AvailableSource {
    /// `MLXCEL_MEMORY_LIMIT`.
    MemoryLimitVariable,
    /// `--memory`: a hypothetical machine.
    WhatIf,
    /// MLX's memory limit.
    MlxLimit,
    /// The Mac's unified memory.
    UnifiedMemory,
    /// The GPU's own memory.
    DeviceMemory,
    /// The control group's limit less its use.
    Cgroup,
    /// `/proc/meminfo`'s `MemAvailable`.
    MemAvailable,
    /// No source.
    Unknown,
}

/// The machine that a model is to run on.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Machine {
    /// Memory that may be used, in bytes; `None` if not known.
    pub available_bytes: Option<u64>,
    /// Source of `available_bytes`.
    pub available_source: AvailableSource,
    /// Total memory, in bytes; `None` if not known.
    pub total_bytes: Option<u64>,
    /// Device that computes.
    pub backend: Backend,
    /// Kernel set.
    pub kernels: KernelSet,
    /// MLX version.
    pub mlx_version: MlxVersion,
    /// Reserve for the runtime.
    pub headroom: Headroom,
}

impl Machine {
    /// A machine of unknown memory with the default kernel set of `backend` and default headroom.
    #[must_use]
    pub fn new(backend: Backend) -> Self {
        Self {
            available_bytes: None,
            available_source: AvailableSource::Unknown,
            total_bytes: None,
            backend,
            kernels: if backend == Backend::Cpu { KernelSet::Host } else { KernelSet::Mlx },
            mlx_version: MlxVersion::CURRENT,
            headroom: Headroom::default(),
        }
    }

    /// Sets the memory that may be used, in bytes, and its source.
    #[must_use]
    pub fn with_available(self, bytes: u64, source: AvailableSource) -> Self {
        Self { available_bytes: Some(bytes), available_source: source, ..self }
    }

    /// Sets the total memory, in bytes.
    #[must_use]
    pub fn with_total(self, bytes: u64) -> Self {
        Self { total_bytes: Some(bytes), ..self }
    }

    /// Sets the headroom.
    #[must_use]
    pub fn with_headroom(self, headroom: Headroom) -> Self {
        Self { headroom, ..self }
    }

    /// Sets the MLX version.
    #[must_use]
    pub fn with_mlx_version(self, mlx_version: MlxVersion) -> Self {
        Self { mlx_version, ..self }
    }

    /// Sets the kernel set.
    #[must_use]
    pub fn with_kernels(self, kernels: KernelSet) -> Self {
        Self { kernels, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered() {
        assert!(MlxVersion::parse("0.32.1") > MlxVersion::parse("0.32.0"));
        assert_eq!(MlxVersion::parse("0.32.4.dev1"), Some(MlxVersion(0, 32, 4)));
        assert_eq!(MlxVersion::parse("0.32"), None);
        assert_eq!(MlxVersion::CURRENT.to_string(), "0.32.4");
    }
}
