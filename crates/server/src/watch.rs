//! Measured bytes against the limit, in case the world is not as the estimate has it.

use std::time::{Duration, Instant};

use mlxcel_runtime::memory::MemoryUsage;

/// Between two looks.
const INTERVAL: Duration = Duration::from_millis(100);

/// How near the limit the process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Pressure {
    /// Not near.
    None,
    /// Over the soft mark: cached prefixes go, and nothing new joins.
    Soft,
    /// Over the limit: the newest request goes.
    Hard,
}

/// Looks from time to time.
#[derive(Debug)]
pub(super) struct Watch {
    limit_bytes: Option<u64>,
    baseline_bytes: u64,
    last: Option<(Instant, Pressure)>,
}

impl Watch {
    /// Watches `limit_bytes`, or nothing; `baseline_bytes` are resident and do not count.
    pub(super) fn new(limit_bytes: Option<u64>, baseline_bytes: u64) -> Self {
        Self { limit_bytes, baseline_bytes, last: None }
    }

    /// What is measured now. Between two looks a hard mark is not reported again, so that what was
    /// given up has time to be free.
    pub(super) fn look(&mut self) -> Pressure {
        let Some(limit) = self.limit_bytes else { return Pressure::None };
        if let Some((at, pressure)) = self.last
            && at.elapsed() < INTERVAL
        {
            return pressure.min(Pressure::Soft);
        }
        let mut pressure = self.measure(limit);
        if pressure > Pressure::None {
            // What was freed may only be kept for reuse.
            mlxcel_core::allowance::trim();
            let _ = mlxcel_core::memory::clear_cache();
            pressure = self.measure(limit);
        }
        self.last = Some((Instant::now(), pressure));
        pressure
    }

    fn measure(&self, limit: u64) -> Pressure {
        judge(limit, used_bytes(&MemoryUsage::now(), self.baseline_bytes))
    }
}

/// Resident bytes beyond `baseline_bytes`, or MLX's where those are more, as on a GPU of its own
/// memory.
pub(super) fn used_bytes(usage: &MemoryUsage, baseline_bytes: u64) -> u64 {
    let resident = usage.resident_bytes.unwrap_or(0).saturating_sub(baseline_bytes);
    resident.max(usage.mlx_active_bytes.unwrap_or(0) as u64)
}

/// The soft mark is at nineteen twentieths of the limit.
fn judge(limit_bytes: u64, used_bytes: u64) -> Pressure {
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
    fn the_marks() {
        let marks = [0, 950, 951, 1000, 1001].map(|used| judge(1000, used));
        use Pressure::{Hard, None, Soft};
        assert_eq!(marks, [None, None, Soft, Soft, Hard]);
        assert_eq!(Watch::new(Option::None, 0).look(), None);
        let mut watch = Watch::new(Some(1), 0);
        assert_eq!([watch.look(), watch.look()], [Hard, Soft]);
    }
}
