//! Working memory that a thread keeps from one kernel call to the next.
//!
//! Buffers only grow; a kernel that needs a buffer while it is in use gets a fresh one. The sizes
//! are constants per thread, except the prepared activations, whose size the matrix products
//! state (`matmul::scratch_bytes`).

use crate::aligned::AlignedBuf;
use crate::error::Result;
use std::cell::Cell;

/// Purpose of a buffer.
#[derive(Clone, Copy, Debug)]
pub(crate) enum BufferKind {
    /// Prepared activations, read by all workers.
    Input,
    /// Weights unpacked into tiles, per worker.
    Panel,
    /// Partial results, per worker.
    Output,
    /// Results of the experts' first products, for every token and expert of it.
    Hidden,
    /// Results of the experts' second products.
    Down,
}

thread_local! {
    static BUFFERS: [Cell<Option<AlignedBuf>>; 5] = const { [const { Cell::new(None) }; 5] };
}

/// Calls `body` with at least `bytes` bytes of arbitrary content, aligned to 64 bytes.
///
/// # Errors
/// [`crate::KernelError::OutOfMemory`].
pub(crate) fn with<R>(
    kind: BufferKind,
    bytes: usize,
    body: impl FnOnce(&mut [u8]) -> R,
) -> Result<R> {
    let kept = BUFFERS.with(|buffers| buffers[kind as usize].take());
    let mut buf = match kept {
        Some(buf) if buf.len() >= bytes => buf,
        _ => AlignedBuf::zeroed(bytes)?,
    };
    let result = body(buf.bytes_mut());
    BUFFERS.with(|buffers| buffers[kind as usize].set(Some(buf)));
    Ok(result)
}
