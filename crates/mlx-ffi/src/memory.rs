//! MLX's own memory counters, in bytes.
//!
//! The counters cover MLX's allocator only: neither weights that are used in place in a mapped file
//! ([`crate::mapped`]) nor the rest of the process. On the CPU, MLX makes evaluations wait at the limit
//! but does not enforce it.

use crate::Result;
use crate::bindings as sys;
use crate::call::{check, read};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident => $function:ident;)*) => {$(
        $(#[$doc])*
        ///
        /// # Errors
        /// None in practice; the call goes through the shim.
        pub fn $name() -> Result<usize> {
            // SAFETY: `read` passes a pointer to a local of the type that the shim writes.
            read(stringify!($name), |out| unsafe { sys::$function(out) })
        }
    )*};
}

counters! {
    /// Bytes that arrays use.
    active_bytes => mlxcel_memory_active;
    /// Maximum of [`active_bytes`] since the start or the last [`reset_peak`].
    peak_bytes => mlxcel_memory_peak;
    /// Freed bytes that MLX keeps for reuse.
    cache_bytes => mlxcel_memory_cache;
    /// Limit on [`active_bytes`] at which evaluations wait for memory to be freed.
    limit_bytes => mlxcel_memory_limit;
}

macro_rules! setters {
    ($($(#[$doc:meta])* $name:ident => $function:ident;)*) => {$(
        $(#[$doc])*
        /// Returns the previous value.
        ///
        /// # Errors
        /// MLX rejects the value, or an evaluation that this call waited for has failed.
        pub fn $name(bytes: usize) -> Result<usize> {
            // SAFETY: `read` passes a pointer to a local of the type that the shim writes.
            read(stringify!($name), |out| unsafe { sys::$function(out, bytes) })
        }
    )*};
}

setters! {
    /// Sets [`limit_bytes`].
    set_limit_bytes => mlxcel_memory_set_limit;
    /// Limits the freed memory that MLX keeps for reuse; 0 keeps none.
    set_cache_limit_bytes => mlxcel_memory_set_cache_limit;
    /// Limits the memory that Metal keeps resident; no effect on other backends.
    set_wired_limit_bytes => mlxcel_memory_set_wired_limit;
}

/// Resets [`peak_bytes`] to 0.
///
/// # Errors
/// None in practice; the call goes through the shim.
pub fn reset_peak() -> Result<()> {
    // SAFETY: the call takes no arguments.
    check("reset_peak", unsafe { sys::mlxcel_memory_reset_peak() })
}

/// Returns the memory that MLX keeps for reuse to the system.
///
/// # Errors
/// An evaluation that this call waited for has failed.
pub fn clear_cache() -> Result<()> {
    // SAFETY: the call takes no arguments.
    check("clear_cache", unsafe { sys::mlxcel_memory_clear_cache() })
}
