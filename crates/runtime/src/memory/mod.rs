//! Memory of this process and of this machine: what is used now, and what may be used.

mod available;
mod usage;

pub use self::available::{Available, MEMORY_LIMIT_VARIABLE, apply_limit, memory_limit};
pub use self::usage::{Usage, resident_bytes};
