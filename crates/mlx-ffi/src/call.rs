//! The one place where a status of the C ABI becomes a `Result`.

use std::ffi::CStr;

use crate::bindings as sys;
use crate::{Error, Result};

/// Turns the status that the shim returned for `op` into an error with the shim's message.
pub(crate) fn check(op: &'static str, status: sys::mlxcel_status) -> Result<()> {
    if status == 0 {
        return Ok(());
    }
    // SAFETY: the shim returns a NUL-terminated string of this thread, valid until its next call;
    // it is copied before anything else runs.
    let message = unsafe { CStr::from_ptr(sys::mlxcel_last_error()) };
    Err(Error::Mlx { op, message: message.to_string_lossy().into_owned() })
}

/// Reads one value of a type for which any bytes that the shim writes are valid.
pub(crate) fn read<T: Default>(
    op: &'static str,
    call: impl FnOnce(*mut T) -> sys::mlxcel_status,
) -> Result<T> {
    let mut value = T::default();
    check(op, call(&raw mut value))?;
    Ok(value)
}
