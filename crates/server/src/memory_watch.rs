//! Measured memory against the limit, in case the estimate is wrong.

use std::time::{Duration, Instant};

use mlxcel_runtime::memory::MemoryUsage;

/// Minimum time between two measurements.
const INTERVAL: Duration = Duration::from_millis(100);

/// Distance of the process from its memory limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Pressure {
    /// Below the soft limit.
    None,
    /// Above the soft limit: cached prefixes are evicted and no request is admitted.
    Soft,
    /// Above the limit: the newest request is aborted.
    Hard,
}

/// Measures memory at intervals.
#[derive(Debug)]
pub(super) struct MemoryWatch {
    limit_bytes: Option<u64>,
    baseline_bytes: u64,
    last: Option<(Instant, Pressure)>,
}

impl MemoryWatch {
    /// Watches `limit_bytes`, if any; `baseline_bytes` of the resident size do not count.
    pub(super) fn new(limit_bytes: Option<u64>, baseline_bytes: u64) -> Self {
        Self { limit_bytes, baseline_bytes, last: None }
    }

    /// Current pressure. Between two measurements hard pressure is reported once, so that the memory
    /// of an aborted request has time to be freed.
    pub(super) fn pressure(&mut self) -> Pressure {
        let Some(limit) = self.limit_bytes else { return Pressure::None };
        if let Some((at, pressure)) = self.last
            && at.elapsed() < INTERVAL
        {
            return pressure.min(Pressure::Soft);
        }
        let mut pressure = self.measure(limit);
        if pressure > Pressure::None {
            // Freed memory may only be kept for reuse.
            mlxcel_core::allowance::trim();
            let _ = mlxcel_core::memory::clear_cache();
            pressure = self.measure(limit);
        }
        self.last = Some((Instant::now(), pressure));
        pressure
    }

    fn measure(&self, limit: u64) -> Pressure {
        pressure_of(limit, used_bytes(&MemoryUsage::now(), self.baseline_bytes))
    }
}

/// Resident bytes beyond `baseline_bytes`, or the bytes of MLX's allocator if those are more, as on a
/// GPU with its own memory.
pub(super) fn used_bytes(usage: &MemoryUsage, baseline_bytes: u64) -> u64 {
    let resident = usage.resident_bytes.unwrap_or(0).saturating_sub(baseline_bytes);
    resident.max(usage.mlx_active_bytes.unwrap_or(0) as u64)
}

/// Pressure of `used_bytes`; the soft limit is 95 % of `limit_bytes`.
fn pressure_of(limit_bytes: u64, used_bytes: u64) -> Pressure {
    if used_bytes > limit_bytes {
        Pressure::Hard
    } else if used_bytes > limit_bytes - limit_bytes / 20 {
        Pressure::Soft
    } else {
        Pressure::None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn soft_and_hard_limits() {
        let pressures = [0, 950, 951, 1000, 1001].map(|used| pressure_of(1000, used));
        use Pressure::{Hard, None, Soft};
        assert_eq!(pressures, [None, None, Soft, Soft, Hard]);
        assert_eq!(MemoryWatch::new(Option::None, 0).pressure(), None);
        let mut watch = MemoryWatch::new(Some(1), 0);
        assert_eq!([watch.pressure(), watch.pressure()], [Hard, Soft]);
    }
}
