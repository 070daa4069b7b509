//! MLX's own memory counters, in bytes.
//!
//! They count what MLX's allocator gave out: not the weights that are used where a file is mapped
//! ([`crate::mapped`]), and not the process. On the CPU the limit is a number that MLX stores and
//! waits at, but never enforces.

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
            // SAFETY: the argument is a slot to write.
            read(stringify!($name), |out| unsafe { sys::$function(out) })
        }
    )*};
}

counters! {
    /// Bytes in use by arrays.
    active_bytes => mlxcel_memory_active;
    /// The most that [`active_bytes`] has been since the start or the last [`reset_peak`].
    peak_bytes => mlxcel_memory_peak;
    /// Freed bytes that MLX keeps for reuse.
    cache_bytes => mlxcel_memory_cache;
    /// The limit on [`active_bytes`] at which evaluation waits for memory to be freed.
    limit_bytes => mlxcel_memory_limit;
}

macro_rules! setters {
    ($($(#[$doc:meta])* $name:ident => $function:ident;)*) => {$(
        $(#[$doc])*
        /// Returns the previous value.
        ///
        /// # Errors
        /// What MLX refuses, or an earlier failed evaluation that this call waited for.
        pub fn $name(bytes: usize) -> Result<usize> {
            // SAFETY: the first argument is a slot to write.
            read(stringify!($name), |out| unsafe { sys::$function(out, bytes) })
        }
    )*};
}

setters! {
    /// Sets [`limit_bytes`].
    set_limit_bytes => mlxcel_memory_set_limit;
    /// Sets how much freed memory MLX keeps for reuse; 0 keeps none.
    set_cache_limit_bytes => mlxcel_memory_set_cache_limit;
    /// Sets how much memory Metal keeps resident; without effect elsewhere.
    set_wired_limit_bytes => mlxcel_memory_set_wired_limit;
}

/// Starts a new measurement of [`peak_bytes`], at 0.
///
/// # Errors
/// None in practice; the call goes through the shim.
pub fn reset_peak() -> Result<()> {
    // SAFETY: takes no arguments.
    check("reset_peak", unsafe { sys::mlxcel_memory_reset_peak() })
}

/// Gives the memory that is kept for reuse back to the system.
///
/// # Errors
/// An earlier failed evaluation that this call waited for.
pub fn clear_cache() -> Result<()> {
    // SAFETY: takes no arguments.
    check("clear_cache", unsafe { sys::mlxcel_memory_clear_cache() })
}
