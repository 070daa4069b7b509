//! Process-wide count of the bytes that the buffers of this crate hold, and its limit.
//!
//! Cache blocks and scratch are [`crate::AlignedBuf`]s; everything else is small or mapped from
//! files. The limit keeps caches within the memory that is left for them, which no allocator
//! enforces.

use crate::error::{KernelError, Result};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Bytes held, out of bytes allowed.
struct Allowance {
    held: AtomicUsize,
    most: AtomicUsize,
}

static PROCESS: Allowance =
    Allowance { held: AtomicUsize::new(0), most: AtomicUsize::new(usize::MAX) };

/// Bytes that buffers hold now.
#[must_use]
pub fn held_bytes() -> usize {
    PROCESS.held.load(Relaxed)
}

/// Limits the buffers to `bytes` in all; `None` removes the limit. Existing buffers stay.
pub fn allow_bytes(bytes: Option<usize>) {
    PROCESS.most.store(bytes.unwrap_or(usize::MAX), Relaxed);
}

/// Returns freed memory that the C allocator keeps to the system, where there is a call for it
/// (glibc): freed large pieces otherwise stay with the process.
pub fn trim() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: takes a number of bytes to keep, and is safe to call from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Bytes of a live buffer, counted until they are dropped.
#[derive(Debug)]
pub(crate) struct HeldBytes {
    bytes: usize,
}

impl HeldBytes {
    /// Counts `bytes` towards the limit of the process.
    ///
    /// # Errors
    /// [`KernelError::OverLimit`], with nothing taken.
    pub(crate) fn take(bytes: usize) -> Result<Self> {
        PROCESS.take(bytes)?;
        Ok(Self { bytes })
    }
}

impl Drop for HeldBytes {
    fn drop(&mut self) {
        PROCESS.held.fetch_sub(self.bytes, Relaxed);
    }
}

impl Allowance {
    fn take(&self, bytes: usize) -> Result<()> {
        let most = self.most.load(Relaxed);
        self.held
            .fetch_update(Relaxed, Relaxed, |held| {
                held.checked_add(bytes).filter(|sum| *sum <= most)
            })
            .map(drop)
            .map_err(|held| KernelError::OverLimit { bytes, held, most })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_the_allowance_takes_nothing() {
        let small = Allowance { held: AtomicUsize::new(60), most: AtomicUsize::new(100) };
        small.take(40).unwrap();
        let error = small.take(1).unwrap_err().to_string();
        assert!(error.contains("1 more bytes") && error.contains("100 of 100"), "{error}");
        assert_eq!(small.held.load(Relaxed), 100);
        assert!(small.take(usize::MAX).is_err());
    }

    #[test]
    fn a_buffer_gives_back_what_it_held() {
        let share = HeldBytes::take(1 << 40).unwrap();
        assert!(held_bytes() >= 1 << 40);
        drop(share);
        assert!(held_bytes() < 1 << 40);
    }
}
