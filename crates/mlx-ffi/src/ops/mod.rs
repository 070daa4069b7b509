//! Array operations, named and defined as in MLX.
//!
//! Every function adds a node to the graph, on the default stream of the default device; nothing is
//! computed. Negative axes count from the end. Operands broadcast and are promoted to a common type as
//! in MLX. An [`crate::Array::scalar`] has a type too: give it that of the other operand, or use the
//! `_scalar` functions, which do.
//!
//! # Errors
//! Every function returns [`Error::Mlx`](crate::Error::Mlx) if MLX rejects its operands.

mod elementwise;
mod linalg;
mod quantized;
mod reduce;
mod shape;

pub use elementwise::*;
pub use linalg::*;
pub use quantized::*;
pub use reduce::*;
pub use shape::*;

/// Creates an array by a call of the shim whose first argument is the slot for it.
///
/// The other arguments are raw handles of borrowed arrays (or null where the shim takes an optional
/// one), slices as pointer and length, and numbers. Only safe expressions may be passed: they are
/// expanded inside an `unsafe` block.
macro_rules! make {
    ($op:expr, $function:ident($($arg:expr),* $(,)?)) => {
        $crate::Array::from_call($op, |out| {
            // SAFETY: every pointer among the arguments is borrowed from a value that lives until the
            // call returns, and slices are passed with their lengths (see the macro). `out` is the
            // valid slot of `from_call`.
            unsafe { $crate::bindings::$function(out, $($arg),*) }
        })
    };
}
use make;

/// Defines operations that map to one call each, from a table of name, arguments and shim function.
macro_rules! ops {
    ($($(#[$doc:meta])* $name:ident($($arg:ident: $kind:tt),*) => $function:ident;)*) => {$(
        $(#[$doc])*
        ///
        /// # Errors
        /// MLX rejects the operands.
        pub fn $name($($arg: $crate::ops::arg_type!($kind)),*) -> $crate::Result<$crate::Array> {
            $(let $arg = $crate::ops::arg_value!($kind, $arg);)*
            $crate::ops::make!(stringify!($name), $function($($arg),*))
        }
    )*};
}
use ops;

macro_rules! arg_type {
    (array) => {
        &$crate::Array
    };
    (int) => {
        i32
    };
    (bool) => {
        bool
    };
}
use arg_type;

macro_rules! arg_value {
    (array, $arg:ident) => {
        $arg.raw()
    };
    (int, $arg:ident) => {
        $arg
    };
    (bool, $arg:ident) => {
        $arg
    };
}
use arg_value;
