//! Limits of this machine: read bandwidth and arithmetic peaks, on a pool's threads.
//! Benches report their figures relative to these, measured in the same run.

use crate::pool::Pool;
use crate::simd::{Kernel, LANES, Simd, dispatch};
use std::hint::black_box;
use std::time::Instant;

/// Bytes that a thread reads at once.
const CHUNK_BYTES: usize = 1 << 20;

/// Seconds to read `data` once on all threads of `pool`.
///
/// # Panics
/// If `data` is not a multiple of 1 MiB long.
#[must_use]
pub fn read_seconds(pool: &Pool, data: &[u8]) -> f64 {
    assert!(data.len().is_multiple_of(CHUNK_BYTES), "whole MiB are read");
    let start = Instant::now();
    pool.for_chunks(data.len() / CHUNK_BYTES, 1, |_, chunks| {
        for chunk in chunks {
            let data = &data[chunk * CHUNK_BYTES..][..CHUNK_BYTES];
            black_box(dispatch(pool.cpu(), Read(data)));
        }
    });
    start.elapsed().as_secs_f64()
}

struct Read<'a>(&'a [u8]);

impl Kernel for Read<'_> {
    type Output = f32;
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        let mut sums = [simd.zero(); 4];
        for chunk in self.0.as_chunks::<256>().0 {
            for (i, sum) in sums.iter_mut().enumerate() {
                // SAFETY: 64 of 256 bytes; a prefetch may point anywhere.
                unsafe {
                    let at = chunk.as_ptr().add(64 * i);
                    simd.prefetch(at.wrapping_add(4096));
                    *sum = simd.max(*sum, simd.load(at.cast()));
                }
            }
        }
        simd.max_lane(simd.max(simd.max(sums[0], sums[1]), simd.max(sums[2], sums[3])))
    }
}

/// Arithmetic peak to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peak {
    /// 8-bit dot products.
    Int8,
    /// `f32` multiply-adds.
    F32,
}

/// Multiply-adds per second that all threads of `pool` reach on registers, over about 50 ms.
#[must_use]
pub fn multiply_adds_per_second(pool: &Pool, peak: Peak) -> f64 {
    const ROUNDS: usize = 2_000_000;
    let start = Instant::now();
    pool.run(|_| {
        black_box(dispatch(pool.cpu(), Arithmetic { peak, rounds: black_box(ROUNDS) }));
    });
    let per_round = if peak == Peak::Int8 { 4 * LANES } else { LANES } * ACCUMULATORS;
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    let total = (ROUNDS * per_round * pool.threads()) as f64;
    total / start.elapsed().as_secs_f64()
}

/// Independent accumulators: enough to hide latencies, twice five cycles.
const ACCUMULATORS: usize = 10;

struct Arithmetic {
    peak: Peak,
    rounds: usize,
}

impl Kernel for Arithmetic {
    const INTEGER_DOTS: bool = true;
    type Output = f32;
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        let bytes = black_box([1u8; 64]);
        let mut ints = [simd.zero_int(); ACCUMULATORS];
        let mut floats = [simd.zero(); ACCUMULATORS];
        // SAFETY: 64 bytes are readable.
        let (x, y) = unsafe { (simd.load_bytes(bytes.as_ptr()), simd.load(bytes.as_ptr().cast())) };
        match self.peak {
            Peak::Int8 => {
                for _ in 0..self.rounds {
                    for sum in &mut ints {
                        *sum = simd.dot::<7>(*sum, x, x);
                    }
                }
            }
            Peak::F32 => {
                for _ in 0..self.rounds {
                    for sum in &mut floats {
                        *sum = simd.fma(y, y, *sum);
                    }
                }
            }
        }
        let mut total = simd.zero();
        for i in 0..ACCUMULATORS {
            total = simd.add(total, simd.add(simd.to_float(ints[i]), floats[i]));
        }
        simd.sum(total)
    }
}
