//! The thread pool: parallel regions that start in about a microsecond.
//!
//! A decode step has some 170 parallel regions, so a region allocates nothing and its workers
//! are usually still spinning from the last one. A worker that finds nothing to do for
//! [`SPIN`] parks, so an idle pool uses no processor time.
//!
//! Invariants: `run` returns only after every worker has left the region, so a region may borrow
//! from its caller; a region started inside another one runs inline, on the calling thread; a
//! region must not wait for another worker of the same region.
#![expect(clippy::cast_possible_truncation, reason = "chunk numbers are below 2³²")]

use crate::error::{KernelError, Result};
use crate::isa::Cpu;
use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

/// Largest number of threads of a pool.
pub const MAX_THREADS: usize = 256;

/// Time that a worker looks for the next region before it parks.
const SPIN: Duration = Duration::from_micros(60);
/// Spins between two looks at the clock.
const SPINS_PER_CLOCK: u32 = 32;

/// A region's body, with its lifetime erased.
type Body = *const (dyn Fn(usize) + Sync);
type Panic = Box<dyn Any + Send>;

thread_local! {
    /// True while this thread is inside a region of any pool.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// On its own cache line, so that a spinning reader does not slow down its neighbours.
#[repr(align(128))]
#[derive(Default)]
struct CacheLine<T>(T);

/// State shared by the caller and the workers.
struct Shared {
    /// Number of regions started; a change is the start signal.
    epoch: CacheLine<AtomicUsize>,
    /// Workers (without the caller) that have not finished the current region.
    remaining: CacheLine<AtomicUsize>,
    /// Per worker `i + 1`: true while it may be parked.
    parked: Vec<CacheLine<AtomicBool>>,
    /// Remainder of each worker's share of a region of chunks.
    shares: Vec<CacheLine<ChunkShare>>,
    /// The current region; written before `epoch` changes, read after.
    body: UnsafeCell<Option<Body>>,
    shutdown: AtomicBool,
    /// First panic of a worker in the current region.
    panic: Mutex<Option<Panic>>,
    /// True while the caller sleeps on `done`.
    caller_sleeps: Mutex<bool>,
    caller_may_sleep: AtomicBool,
    done: Condvar,
}

// SAFETY: `body` is written only by the caller of a region while no worker runs (it holds the
// region lock and `remaining` is 0) and read only by workers between the epoch change that
// publishes it and their decrement of `remaining`. Everything else is `Sync` by itself, and the
// body that it points to is `Sync`.
unsafe impl Sync for Shared {}
// SAFETY: moving the struct moves no region: `body` is only followed while its region runs, and
// what it points to is `Sync`.
unsafe impl Send for Shared {}

/// A fixed set of threads, with the processor features that kernels on it may use.
///
/// The calling thread is worker 0, so `Pool::new(1)` starts no thread.
pub struct Pool {
    cpu: Cpu,
    shared: Arc<Shared>,
    threads: Vec<Thread>,
    handles: Vec<JoinHandle<()>>,
    region: Mutex<()>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("threads", &self.threads()).field("cpu", &self.cpu).finish()
    }
}

impl Pool {
    /// A pool of `threads` threads for the instruction set of [`Cpu::from_env`].
    ///
    /// # Errors
    /// [`KernelError::ThreadCount`], [`KernelError::Spawn`], and those of [`Cpu::from_env`].
    pub fn new(threads: usize) -> Result<Self> {
        Self::with_cpu(threads, Cpu::from_env()?)
    }

    /// A pool of `threads` threads whose kernels use `cpu`.
    ///
    /// # Errors
    /// [`KernelError::ThreadCount`] and [`KernelError::Spawn`].
    pub fn with_cpu(threads: usize, cpu: Cpu) -> Result<Self> {
        if !(1..=MAX_THREADS).contains(&threads) {
            return Err(KernelError::ThreadCount { threads, max: MAX_THREADS });
        }
        let shared = Arc::new(Shared::new(threads - 1));
        let region = Mutex::new(());
        let mut pool = Self { cpu, shared, threads: Vec::new(), handles: Vec::new(), region };
        for worker in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let handle = std::thread::Builder::new()
                .name(format!("mlxcel-{worker}"))
                .spawn(move || shared.work(worker))
                .map_err(KernelError::Spawn)?;
            pool.threads.push(handle.thread().clone());
            pool.handles.push(handle);
        }
        Ok(pool)
    }

    /// Number of threads, the caller included.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.shared.parked.len() + 1
    }

    /// The processor features that kernels on this pool use.
    #[must_use]
    pub fn cpu(&self) -> Cpu {
        self.cpu
    }

    /// Calls `body(worker)` once for every `worker` in `0..threads()`, in parallel, and waits.
    ///
    /// # Panics
    /// With the panic of a worker, after all of them have left the region.
    pub fn run<F: Fn(usize) + Sync>(&self, body: F) {
        if self.threads() == 1 || INSIDE.get() {
            return (0..self.threads()).for_each(body);
        }
        self.run_locked(lock(&self.region), body);
    }

    /// Runs a region; `region` is the lock of this pool.
    fn run_locked<F: Fn(usize) + Sync>(&self, region: MutexGuard<'_, ()>, body: F) {
        // SAFETY: the region lock is held until after `wait_for_workers`.
        unsafe { self.start(&body) };
        INSIDE.set(true);
        let own = catch_unwind(AssertUnwindSafe(|| body(0)));
        INSIDE.set(false);
        self.shared.wait_for_workers();
        let other = lock(&self.shared.panic).take();
        drop(region);
        if let Some(panic) = own.err().or(other) {
            resume_unwind(panic);
        }
    }

    /// Publishes `body` and wakes the workers.
    ///
    /// # Safety
    /// The caller holds the region lock and waits for the workers before it gives it back or lets
    /// `body` go.
    unsafe fn start<'a>(&self, body: &'a (dyn Fn(usize) + Sync + 'a)) {
        // SAFETY: only the lifetime changes. The caller keeps the body until `remaining` is 0, and
        // workers do not touch it after their decrement.
        let body = unsafe {
            std::mem::transmute::<&'a (dyn Fn(usize) + Sync + 'a), &'static (dyn Fn(usize) + Sync)>(
                body,
            )
        };
        let shared = &*self.shared;
        // SAFETY: the caller holds the region lock and the last region has ended: nobody reads
        // `body`.
        unsafe { *shared.body.get() = Some(std::ptr::from_ref(body)) };
        shared.remaining.0.store(self.threads.len(), Ordering::Relaxed);
        shared.epoch.0.fetch_add(1, Ordering::SeqCst);
        for (thread, parked) in self.threads.iter().zip(&shared.parked) {
            if parked.0.load(Ordering::SeqCst) {
                thread.unpark();
            }
        }
    }

    /// Calls `body(worker, range)` for consecutive ranges of at most `chunk` items that cover
    /// `0..items`. A `chunk` of 0 counts as 1.
    ///
    /// Each worker processes a contiguous share of the items, so that it reads memory in order;
    /// one that is done takes chunks from the ends of the others' shares.
    pub fn for_chunks<F: Fn(usize, Range<usize>) + Sync>(
        &self,
        items: usize,
        chunk: usize,
        body: F,
    ) {
        // Shares are pairs of 32-bit chunk numbers.
        let chunk = chunk.max(1).max(items / (u32::MAX as usize));
        let chunks = items.div_ceil(chunk);
        let range = |index: usize| index * chunk..items.min((index + 1) * chunk);
        if chunks <= 1 || self.threads() == 1 || INSIDE.get() {
            return (0..chunks).for_each(|index| body(0, range(index)));
        }
        let region = lock(&self.region);
        for (worker, share) in self.shared.shares.iter().enumerate() {
            let end = |worker| chunks * worker / self.threads();
            share.0.set(end(worker), end(worker + 1));
        }
        self.run_locked(region, |worker| {
            while let Some(index) = self.shared.shares[worker].0.take_first() {
                body(worker, range(index));
            }
            for other in 1..self.threads() {
                let share = &self.shared.shares[(worker + other) % self.threads()].0;
                while let Some(index) = share.take_last() {
                    body(worker, range(index));
                }
            }
        });
    }

    /// Splits `data` into rows of `row_len` values and calls `body(worker, first_row, rows)` for
    /// runs of at most `chunk` rows in parallel.
    ///
    /// # Panics
    /// If `row_len` is 0 or does not divide the length of `data`.
    pub fn for_rows_mut<T: Send, F: Fn(usize, usize, &mut [T]) + Sync>(
        &self,
        data: &mut [T],
        row_len: usize,
        chunk: usize,
        body: F,
    ) {
        assert!(row_len > 0 && data.len().is_multiple_of(row_len), "data is not whole rows");
        let rows = data.len() / row_len;
        let base = SendPtr(data.as_mut_ptr());
        self.for_chunks(rows, chunk, |worker, range| {
            // SAFETY: ranges of `for_chunks` are disjoint and inside `0..rows`, so these slices
            // are disjoint parts of `data`, which is mutably borrowed for the whole call.
            let rows = unsafe {
                std::slice::from_raw_parts_mut(
                    base.get().add(range.start * row_len),
                    range.len() * row_len,
                )
            };
            body(worker, range.start, rows);
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.shutdown.store(true, Ordering::Relaxed);
        self.shared.epoch.0.fetch_add(1, Ordering::SeqCst);
        for thread in &self.threads {
            thread.unpark();
        }
        for handle in self.handles.drain(..) {
            // A worker catches the panics of its regions, so there is nothing to learn here.
            let _ = handle.join();
        }
    }
}

impl Shared {
    fn new(workers: usize) -> Self {
        Self {
            epoch: CacheLine::default(),
            remaining: CacheLine::default(),
            parked: (0..workers).map(|_| CacheLine::default()).collect(),
            shares: (0..=workers).map(|_| CacheLine::default()).collect(),
            body: UnsafeCell::new(None),
            shutdown: AtomicBool::new(false),
            panic: Mutex::new(None),
            caller_sleeps: Mutex::new(false),
            caller_may_sleep: AtomicBool::new(false),
            done: Condvar::new(),
        }
    }

    /// Main loop of a worker.
    fn work(&self, worker: usize) {
        INSIDE.set(true);
        let mut seen = 0;
        loop {
            seen = self.wait_for_epoch(worker, seen);
            if self.shutdown.load(Ordering::Relaxed) {
                return;
            }
            // SAFETY: the epoch change that we saw was made after `body` was written, and the
            // caller keeps it valid until our decrement of `remaining` below.
            let body = unsafe { (*self.body.get()).map(|body| &*body) };
            let result = catch_unwind(AssertUnwindSafe(|| body.map(|body| body(worker))));
            if let Err(panic) = result {
                lock(&self.panic).get_or_insert(panic);
            }
            self.finish();
        }
    }

    /// Leaves the region; the last one wakes a sleeping caller.
    fn finish(&self) {
        if self.remaining.0.fetch_sub(1, Ordering::SeqCst) == 1
            && self.caller_may_sleep.load(Ordering::SeqCst)
        {
            *lock(&self.caller_sleeps) = false;
            self.done.notify_one();
        }
    }

    /// Waits until the epoch differs from `seen`; spins, then parks.
    fn wait_for_epoch(&self, worker: usize, seen: usize) -> usize {
        let changed = || {
            let epoch = self.epoch.0.load(Ordering::SeqCst);
            (epoch != seen).then_some(epoch)
        };
        if let Some(epoch) = spin(changed) {
            return epoch;
        }
        let parked = &self.parked[worker - 1].0;
        parked.store(true, Ordering::SeqCst);
        loop {
            // Either we see the new epoch here, or the caller, which changes the epoch before it
            // reads the flag, sees the flag and unparks us.
            if let Some(epoch) = changed() {
                parked.store(false, Ordering::Relaxed);
                return epoch;
            }
            std::thread::park();
        }
    }

    /// Waits until `remaining` is 0; spins, then sleeps.
    fn wait_for_workers(&self) {
        let done = || (self.remaining.0.load(Ordering::SeqCst) == 0).then_some(());
        if spin(done).is_some() {
            return;
        }
        let mut sleeps = lock(&self.caller_sleeps);
        *sleeps = true;
        // Either we see `remaining == 0` below, or the last worker, which decrements it before
        // it reads the flag, sees the flag and takes the lock that we hold until we sleep.
        self.caller_may_sleep.store(true, Ordering::SeqCst);
        while *sleeps && done().is_none() {
            sleeps = self.done.wait(sleeps).unwrap_or_else(PoisonError::into_inner);
        }
        self.caller_may_sleep.store(false, Ordering::SeqCst);
    }
}

/// Polls `ready` for about [`SPIN`].
fn spin<T>(ready: impl Fn() -> Option<T>) -> Option<T> {
    let mut deadline = None;
    loop {
        for _ in 0..SPINS_PER_CLOCK {
            if let Some(value) = ready() {
                return Some(value);
            }
            std::hint::spin_loop();
        }
        let now = Instant::now();
        if now > *deadline.get_or_insert(now + SPIN) {
            return None;
        }
    }
}

/// A range of chunk numbers that its owner uses up from the front and others from the back: the
/// first number in the low half, the end in the high half.
#[derive(Default)]
struct ChunkShare(AtomicU64);

impl ChunkShare {
    /// Sets the range; both ends fit into 32 bits.
    fn set(&self, first: usize, end: usize) {
        self.0.store((end as u64) << 32 | first as u64, Ordering::Relaxed);
    }
    fn take_first(&self) -> Option<usize> {
        self.take(|range| range + 1).map(|range| (range & u64::from(u32::MAX)) as usize)
    }
    fn take_last(&self) -> Option<usize> {
        self.take(|range| range - (1 << 32)).map(|range| (range >> 32) as usize - 1)
    }
    /// Replaces a range that is not empty by `next` of it and returns it. No data is passed
    /// through the range (the start of the region orders everything), so relaxed is enough.
    fn take(&self, next: impl Fn(u64) -> u64) -> Option<u64> {
        let update = |range: u64| {
            let first = range & u64::from(u32::MAX);
            let end = range >> 32;
            (first < end).then(|| next(range))
        };
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, update).ok()
    }
}

/// Locks; the mutexes here guard nothing that a panic could leave half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A pointer whose users keep to disjoint parts of what it points to.
struct SendPtr<T>(*mut T);

impl<T> SendPtr<T> {
    fn get(&self) -> *mut T {
        self.0
    }
}

// SAFETY: the one user (`for_rows_mut`) hands out disjoint slices of `T: Send`.
unsafe impl<T: Send> Sync for SendPtr<T> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_worker_runs_once_per_region() {
        for threads in [1, 2, 3, 8] {
            let pool = Pool::new(threads).unwrap();
            let counts: Vec<AtomicU64> = (0..threads).map(|_| AtomicU64::new(0)).collect();
            for _ in 0..500 {
                pool.run(|worker| {
                    counts[worker].fetch_add(1, Ordering::Relaxed);
                });
            }
            assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 500), "{threads}");
        }
    }

    #[test]
    fn regions_after_a_pause_find_parked_workers() {
        let pool = Pool::new(3).unwrap();
        for pause_us in [0, 50, 70, 500, 5000] {
            let sum = AtomicU64::new(0);
            std::thread::sleep(Duration::from_micros(pause_us));
            pool.run(|worker| {
                std::thread::sleep(Duration::from_micros(pause_us * worker as u64));
                sum.fetch_add(1 << (8 * worker), Ordering::Relaxed);
            });
            assert_eq!(sum.into_inner(), 0x0001_0101);
        }
    }

    #[test]
    fn chunks_cover_everything_once() {
        let pool = Pool::new(4).unwrap();
        for (items, chunk) in [(0, 3), (1, 3), (3, 3), (4, 3), (1000, 7), (5, 0)] {
            let mut hits = vec![0u8; items];
            pool.for_rows_mut(&mut hits, 1, chunk, |_, first, rows| {
                assert!(rows.len() <= chunk.max(1) && first + rows.len() <= items);
                rows.iter_mut().for_each(|hit| *hit += 1);
            });
            assert!(hits.iter().all(|&h| h == 1), "{items} {chunk}");
        }
    }

    #[test]
    fn nested_regions_run_inline_with_every_worker_index() {
        let pool = Pool::new(2).unwrap();
        let count = AtomicU64::new(0);
        pool.run(|_| {
            pool.run(|worker| {
                count.fetch_add(1 + worker as u64, Ordering::Relaxed);
            })
        });
        assert_eq!(count.into_inner(), 2 * (1 + 2));
    }

    #[test]
    fn panics_reach_the_caller_and_leave_the_pool_usable() {
        let pool = Pool::new(3).unwrap();
        for culprit in 0..3 {
            let result = catch_unwind(AssertUnwindSafe(|| {
                pool.run(|worker| assert!(worker != culprit, "worker {worker}"))
            }));
            let message = *result.unwrap_err().downcast::<String>().unwrap();
            assert_eq!(message, format!("worker {culprit}"));
            pool.run(|_| {});
        }
    }

    #[test]
    fn callers_on_several_threads_run_one_after_another() {
        let pool = Pool::new(2).unwrap();
        let count = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        pool.run(|_| {
                            count.fetch_add(1, Ordering::Relaxed);
                        });
                    }
                });
            }
        });
        assert_eq!(count.into_inner(), 3 * 200 * 2);
    }

    #[test]
    fn impossible_thread_counts_are_errors() {
        for threads in [0, MAX_THREADS + 1] {
            assert!(matches!(Pool::new(threads), Err(KernelError::ThreadCount { .. })));
        }
    }
}
