//! Devices that operations run on, and the version of MLX.

use std::ffi::CStr;

use crate::Result;
use crate::bindings as sys;
use crate::call::{check, read};

/// A kind of device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// The processor.
    Cpu,
    /// Metal or CUDA.
    Gpu,
}

impl Device {
    fn number(self) -> i32 {
        match self {
            Self::Cpu => sys::MLXCEL_CPU.cast_signed(),
            Self::Gpu => sys::MLXCEL_GPU.cast_signed(),
        }
    }

    /// True if MLX can compute on this device on this machine.
    ///
    /// # Errors
    /// None in practice; the call goes through the shim.
    pub fn is_available(self) -> Result<bool> {
        // SAFETY: `read` passes a pointer to a local of the type that the shim writes.
        read("is_available", |out| unsafe { sys::mlxcel_device_is_available(out, self.number()) })
    }
}

/// Device of new operations: a GPU if there is one, unless [`set_default_device`] was called.
///
/// # Errors
/// None in practice; the call goes through the shim.
pub fn default_device() -> Result<Device> {
    // SAFETY: `read` passes a pointer to a local of the type that the shim writes.
    let number = read("default_device", |out| unsafe { sys::mlxcel_device_default(out) })?;
    Ok(if number == Device::Gpu.number() { Device::Gpu } else { Device::Cpu })
}

/// Sets the device of new operations, for all threads.
///
/// # Errors
/// The device does not exist.
pub fn set_default_device(device: Device) -> Result<()> {
    // SAFETY: the call takes no pointers.
    check("set_default_device", unsafe { sys::mlxcel_device_set_default(device.number()) })
}

/// Waits for all work that this thread has started on the default device.
///
/// # Errors
/// A node that failed and has not been reported yet.
pub fn synchronize() -> Result<()> {
    // SAFETY: the call takes no arguments.
    check("synchronize", unsafe { sys::mlxcel_synchronize() })
}

/// Version of the linked MLX, such as `0.32.4`.
#[must_use]
pub fn mlx_version() -> &'static str {
    // SAFETY: MLX returns a NUL-terminated string of static lifetime.
    let version = unsafe { CStr::from_ptr(sys::mlxcel_version()) };
    version.to_str().unwrap_or("unknown")
}
