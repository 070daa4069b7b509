//! Devices: where operations run, and which MLX this is.

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

    /// Whether MLX can compute there, on this machine.
    ///
    /// # Errors
    /// None in practice; the call goes through the shim.
    pub fn is_available(self) -> Result<bool> {
        // SAFETY: the first argument is a slot to write.
        read("is_available", |out| unsafe { sys::mlxcel_device_is_available(out, self.number()) })
    }
}

/// Where operations run that are made now: a GPU when there is one, unless it was set.
///
/// # Errors
/// None in practice; the call goes through the shim.
pub fn default_device() -> Result<Device> {
    // SAFETY: the argument is a slot to write.
    let number = read("default_device", |out| unsafe { sys::mlxcel_device_default(out) })?;
    Ok(if number == Device::Gpu.number() { Device::Gpu } else { Device::Cpu })
}

/// Sets where operations run that are made from now on, in every thread.
///
/// # Errors
/// There is no such device.
pub fn set_default_device(device: Device) -> Result<()> {
    // SAFETY: takes a number only.
    check("set_default_device", unsafe { sys::mlxcel_device_set_default(device.number()) })
}

/// Waits until everything that this thread started on the default device is done.
///
/// # Errors
/// A node that failed, if nothing has reported it before.
pub fn synchronize() -> Result<()> {
    // SAFETY: takes no arguments.
    check("synchronize", unsafe { sys::mlxcel_synchronize() })
}

/// The version of the MLX that is linked, such as `0.32.4`.
#[must_use]
pub fn mlx_version() -> &'static str {
    // SAFETY: MLX returns a NUL-terminated string of static lifetime.
    let version = unsafe { CStr::from_ptr(sys::mlxcel_version()) };
    version.to_str().unwrap_or("unknown")
}
