//! One MLX thread for all tests, because MLX's streams belong to the thread that created them.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, OnceLock};
use std::thread;

type Job = Box<dyn FnOnce() + Send>;

/// Runs `test` on the MLX thread and returns its result or resumes its panic.
pub(crate) fn on_engine<T: Send + 'static>(test: impl FnOnce() -> T + Send + 'static) -> T {
    static ENGINE: OnceLock<Mutex<Sender<Job>>> = OnceLock::new();
    let engine = ENGINE.get_or_init(|| {
        let (jobs, queue) = channel::<Job>();
        thread::spawn(move || queue.into_iter().for_each(|job| job()));
        Mutex::new(jobs)
    });
    let (result, receiver) = channel();
    let job: Job = Box::new(move || {
        // The receiver waits below.
        let _ = result.send(catch_unwind(AssertUnwindSafe(test)));
    });
    engine.lock().unwrap().send(job).unwrap();
    receiver.recv().unwrap().unwrap_or_else(|panic| resume_unwind(panic))
}

/// Asserts that two lists differ by at most `tolerance` in each element.
#[track_caller]
pub(crate) fn assert_close(found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len(), "lengths");
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        assert!((f - e).abs() <= tolerance, "element {i}: {f}, expected {e} ± {tolerance}");
    }
}
