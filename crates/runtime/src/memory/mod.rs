//! Memory of this process and of this machine: current use and limits.

mod available;
mod usage;

pub(crate) use self::available::{AvailableMemory, apply_limit, memory_limit};
pub use self::usage::{MemoryUsage, resident_bytes};
