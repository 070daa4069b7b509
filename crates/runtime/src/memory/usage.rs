//! Current memory use of this process, as counted by MLX and by the operating system.
//!
//! MLX counts the bytes of its allocator, which exclude mapped weights and the blocks of host caches.
//! The resident size counts all touched pages, mapped ones included.

use serde::Serialize;

/// Memory use of this process, in bytes; `None` where the platform does not report it.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct MemoryUsage {
    /// Bytes allocated by MLX.
    pub mlx_active_bytes: Option<usize>,
    /// Peak of `mlx_active_bytes`.
    pub mlx_peak_bytes: Option<usize>,
    /// Freed bytes that MLX keeps for reuse.
    pub mlx_cache_bytes: Option<usize>,
    /// Resident size of the process.
    pub resident_bytes: Option<u64>,
    /// Peak of `resident_bytes`.
    pub peak_resident_bytes: Option<u64>,
}

impl MemoryUsage {
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

    /// Formats the peak, with its source.
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

/// Resident size of this process, in bytes.
#[must_use]
pub fn resident_bytes() -> Option<u64> {
    ProcessStatus::read().bytes("VmRSS:")
}

/// Contents of `/proc/self/status`; empty on platforms without it.
struct ProcessStatus(String);

impl ProcessStatus {
    fn read() -> Self {
        Self(std::fs::read_to_string("/proc/self/status").unwrap_or_default())
    }

    /// Value of a line such as `VmRSS:   1234 kB`, in bytes.
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
