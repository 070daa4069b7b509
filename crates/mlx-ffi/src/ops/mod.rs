//! Array operations, named and defined as in MLX.
//!
//! Every function makes a node of the graph (nothing is computed) on the default stream of the
//! default device. Axes count from the end when negative. Operands broadcast against each other and
//! are promoted to a common type as in MLX; note that an [`crate::Array::scalar`] has a type too, so make
//! it of the other operand's, or use the `_scalar` functions, which do.
//!
//! # Errors
//! Every function fails when MLX refuses its operands, with [`Error::Mlx`](crate::Error::Mlx).

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

/// Makes an array by a call of the shim whose first argument is the slot for it.
///
/// The arguments must be live handles (or null where the shim says optional), slices as pointer and
/// length, and numbers: they are evaluated outside of the unsafe block.
macro_rules! make {
    ($op:expr, $function:ident($($arg:ident),*)) => {
        $crate::Array::from_call($op, |out| {
            // SAFETY: arguments are live for the call, see the macro; `out` is a slot to write.
            unsafe { $crate::bindings::$function(out, $($arg),*) }
        })
    };
}
use make;

/// Defines operations that are one call each, from a table: name, argument list, shim function.
macro_rules! ops {
    ($($(#[$doc:meta])* $name:ident($($arg:ident: $kind:tt),*) => $function:ident;)*) => {$(
        $(#[$doc])*
        ///
        /// # Errors
        /// When MLX refuses the operands.
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
