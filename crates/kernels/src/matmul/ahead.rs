//! Reading ahead of the weights in use, which is what keeps memory busy while rows are computed.
//!
//! Kernels go through several rows at once, which the processor's own prefetcher takes for
//! several streams in one page. So it is told what comes, in the order of memory, into the
//! second-level cache: that has room for more outstanding reads than the first.

use crate::simd::Simd;

/// Distance in bytes at which lines are brought into the second-level cache.
const FAR: usize = 24 << 10;
/// Distance in bytes of [`near`] from the weights in use.
const NEAR: usize = 256;
/// Bytes of a cache line.
pub(super) const LINE: usize = 64;

/// A place in memory that moves with the computation, and the reads ahead of it.
#[derive(Clone, Copy)]
pub(super) struct ReadAhead(*const u8);

impl ReadAhead {
    /// Starts at the first of `bytes`.
    pub(super) fn new(bytes: &[u8]) -> Self {
        Self(bytes.as_ptr())
    }

    /// Asks for the lines far ahead of the next `bytes`, and moves behind those.
    #[inline(always)]
    pub(super) fn step<S: Simd>(&mut self, simd: S, bytes: usize) {
        for line in (0..bytes).step_by(LINE) {
            simd.prefetch_far(self.0.wrapping_add(FAR + line));
        }
        self.0 = self.0.wrapping_add(bytes);
    }
}

/// Asks for the line a little ahead of `at`, in the first-level cache.
#[inline(always)]
pub(super) fn near<S: Simd>(simd: S, at: *const u8) {
    simd.prefetch(at.wrapping_add(NEAR));
}
