//! Asking for the part of a cache that is read next.
//!
//! Each core reads the share of the memory bandwidth that its outstanding misses allow; the
//! processor's own prefetchers stop at every page and at every jump between areas.

use crate::simd::Simd;

/// The order in which an area of a cache is read, and then another one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ahead {
    end: *const u8,
    next: *const u8,
    bytes: usize,
}

impl Ahead {
    /// Reads `area` in steps of at most `bytes`, each in any order, and then `next`.
    pub(super) fn new<T, U>(area: &[T], next: &[U], bytes: usize) -> Self {
        Self { end: area.as_ptr_range().end.cast(), next: next.as_ptr().cast(), bytes }
    }

    /// Asks for the line that is read some time after `ptr`.
    #[inline(always)]
    pub(super) fn fetch<S: Simd>(&self, simd: S, ptr: *const u8) {
        let ahead = ptr.wrapping_add(self.bytes);
        let over = (ahead as usize).wrapping_sub(self.end as usize);
        let beyond = self.next.wrapping_add(over);
        simd.prefetch_kv(if ahead < self.end { ahead } else { beyond });
    }
}
