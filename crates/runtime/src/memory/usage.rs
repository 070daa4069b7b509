//! What this process uses now: MLX's counters and the system's, side by side.
//!
//! MLX counts what its allocator gave out; weights that are mapped from files and the blocks of host
//! caches are not in it. The resident size counts everything that has been touched, mapped pages
//! included.

use serde::Serialize;

/// Memory of this process, in bytes; `None` where the platform does not say.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Usage {
    /// Bytes that MLX's allocator has given out.
    pub mlx_active_bytes: Option<usize>,
    /// Largest value of that so far.
    pub mlx_peak_bytes: Option<usize>,
    /// Bytes that MLX keeps for reuse.
    pub mlx_cache_bytes: Option<usize>,
    /// Resident pages of the process.
    pub resident_bytes: Option<u64>,
    /// Largest value of that so far.
    pub peak_resident_bytes: Option<u64>,
}

impl Usage {
    /// Reads all counters.
    #[must_use]
    pub fn now() -> Self {
        let status = ProcessStatus::read();
        Self {
            mlx_active_bytes: mlxcel_core::memory::active_bytes().ok(),
            mlx_peak_bytes: mlxcel_core::memory::peak_bytes().ok(),
            mlx_cache_bytes: mlxcel_core::memory::cache_bytes().ok(),
            resident_bytes: status.bytes("VmRSS:"),
            peak_resident_bytes: status.bytes("VmHWM:"),
        }
    }

    /// The peak as a person reads it, naming what was measured.
    #[must_use]
    pub fn peak_text(&self) -> String {
        match (self.peak_resident_bytes, self.mlx_peak_bytes) {
            (Some(bytes), _) => format!("{} resident", mlxcel_estimator::format_bytes(bytes)),
            (None, Some(bytes)) => {
                format!("{} in MLX", mlxcel_estimator::format_bytes(bytes as u64))
            }
            (None, None) => "not measured on this platform".to_owned(),
        }
    }
}

/// Resident bytes of this process.
#[must_use]
pub fn resident_bytes() -> Option<u64> {
    ProcessStatus::read().bytes("VmRSS:")
}

/// `/proc/self/status`, empty where there is none.
struct ProcessStatus(String);

impl ProcessStatus {
    fn read() -> Self {
        Self(std::fs::read_to_string("/proc/self/status").unwrap_or_default())
    }

    /// The value of a line such as `VmRSS:   1234 kB`.
    fn bytes(&self, key: &str) -> Option<u64> {
        let line = self.0.lines().find_map(|line| line.strip_prefix(key))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        kib.checked_mul(1024)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_lines_are_read_in_kib() {
        let status = ProcessStatus("Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t 12 kB\n".into());
        assert_eq!(status.bytes("VmRSS:"), Some(12 << 10));
        assert_eq!(status.bytes("VmHWM:"), Some(2 << 20));
        assert_eq!(status.bytes("VmSwap:"), None);
    }
}
