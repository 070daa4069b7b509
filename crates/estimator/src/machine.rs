//! The machine that a model is to run on, as the runtime found it or as a person supposes it.

use std::fmt;

use crate::error::EstimatorError;
use crate::headroom::Headroom;

/// What computes.
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

    /// What `--backend` calls it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::Metal => "metal",
        }
    }

    /// Reads what `--backend` gives.
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

/// Whose kernels run: DESIGN §3's kernel sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KernelSet {
    /// Our own, on the processor.
    Host,
    /// MLX's.
    Mlx,
}

/// An MLX version, ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MlxVersion(pub u32, pub u32, pub u32);

impl MlxVersion {
    /// The version that this release of the crate was checked against.
    pub const CURRENT: Self = Self(0, 32, 4);

    /// Reads `0.32.4`; what follows a third number is ignored.
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

/// Where the available memory is known from. The names are those of the JSON report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum AvailableSource {
    /// `MLXCEL_MEMORY_LIMIT`.
    MemoryLimitVariable,
    /// `--memory`: a supposition.
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
    /// Nothing says.
    Unknown,
}

/// The machine that a model is to run on.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Machine {
    /// Bytes that may be used; `None` where nobody knows.
    pub available_bytes: Option<u64>,
    /// Where that is known from.
    pub available_source: AvailableSource,
    /// Bytes that the machine has.
    pub total_bytes: Option<u64>,
    /// What computes.
    pub backend: Backend,
    /// Whose kernels run.
    pub kernels: KernelSet,
    /// Which MLX.
    pub mlx_version: MlxVersion,
    /// How much is kept free for the runtime.
    pub headroom: Headroom,
}

impl Machine {
    /// A machine of which only the backend is known, with the default headroom.
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

    /// The same with this much memory to use.
    #[must_use]
    pub fn with_available(self, bytes: u64, source: AvailableSource) -> Self {
        Self { available_bytes: Some(bytes), available_source: source, ..self }
    }

    /// The same with this much memory in all.
    #[must_use]
    pub fn with_total(self, bytes: u64) -> Self {
        Self { total_bytes: Some(bytes), ..self }
    }

    /// The same with another headroom.
    #[must_use]
    pub fn with_headroom(self, headroom: Headroom) -> Self {
        Self { headroom, ..self }
    }

    /// The same with another MLX.
    #[must_use]
    pub fn with_mlx_version(self, mlx_version: MlxVersion) -> Self {
        Self { mlx_version, ..self }
    }

    /// The same with other kernels.
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
