//! Conversion of the C ABI's status codes to `Result`.

use std::ffi::CStr;

use crate::bindings as sys;
use crate::{Error, Result};

/// Turns the status that the shim returned for `op` into an error with the shim's message.
pub(crate) fn check(op: &'static str, status: sys::mlxcel_status) -> Result<()> {
    if status == 0 {
        return Ok(());
    }
    // SAFETY: the shim returns a pointer to a NUL-terminated thread-local string that stays valid until
    // this thread's next call into the shim; it is copied below, before any such call.
    let message = unsafe { CStr::from_ptr(sys::mlxcel_last_error()) };
    Err(Error::Mlx { op, message: message.to_string_lossy().into_owned() })
}

/// Returns the value that `call` writes through its pointer, or the error that it reports.
pub(crate) fn read<T: Default>(
    op: &'static str,
    call: impl FnOnce(*mut T) -> sys::mlxcel_status,
) -> Result<T> {
    let mut value = T::default();
    check(op, call(&raw mut value))?;
    Ok(value)
}
