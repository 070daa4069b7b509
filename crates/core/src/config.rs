//! Settings of the operations: kernel set, threads, precision, types.

use mlx_ffi::device::Device;
pub use mlxcel_estimator::ComputeDtype;
pub use mlxcel_kernels::matmul::Precision;

use crate::{Error, Result};

/// Kernels that compute a model's operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelSet {
    /// Rust kernels on the CPU.
    Host,
    /// MLX's own operations on MLX's default device.
    Mlx,
}

impl KernelSet {
    /// Reads `MLXCEL_KERNELS` (`host` or `mlx`); unset, it is `mlx` when MLX has a GPU, else `host`.
    ///
    /// # Errors
    /// Any other name.
    pub fn from_env() -> Result<Self> {
        match std::env::var("MLXCEL_KERNELS").as_deref() {
            Ok("host") => Ok(Self::Host),
            Ok("mlx") => Ok(Self::Mlx),
            Ok("") | Err(_) if Device::Gpu.is_available()? => Ok(Self::Mlx),
            Ok("") | Err(_) => Ok(Self::Host),
            Ok(other) => Err(Error::UnknownName {
                setting: "MLXCEL_KERNELS",
                found: other.to_owned(),
                known: "host, mlx",
            }),
        }
    }
}

/// Settings of [`crate::Ops`].
#[derive(Clone, Debug)]
pub struct OpsConfig {
    /// Kernels that compute.
    pub kernels: KernelSet,
    /// CPU threads of the host kernels; `None` is all cores.
    pub threads: Option<usize>,
    /// Activations of host matrix products.
    pub precision: Precision,
    /// Activations and caches.
    pub dtype: ComputeDtype,
}
