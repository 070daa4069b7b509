//! Bytes that requests take before they run: bodies as they arrive, what is made of them, images.
//!
//! They are a part of the budget, and their sum has a limit of its own, so that clients who send
//! much at once are refused before memory runs short, and who is answered keeps what it has.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::error::ApiError;

/// What all requests take, and may take.
#[derive(Debug)]
pub(super) struct Intake {
    held_bytes: AtomicU64,
    limit_bytes: u64,
}

/// What one request takes; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Ticket {
    intake: Arc<Intake>,
    bytes: u64,
}

impl Intake {
    /// Nothing yet, of `limit_bytes`.
    pub(super) fn new(limit_bytes: u64) -> Self {
        Self { held_bytes: AtomicU64::new(0), limit_bytes }
    }

    /// What all requests take now.
    pub(super) fn held_bytes(&self) -> u64 {
        self.held_bytes.load(Ordering::SeqCst)
    }

    /// What all requests together may take.
    pub(super) fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }

    /// A ticket for nothing yet.
    pub(super) fn ticket(self: &Arc<Self>) -> Ticket {
        Ticket { intake: Arc::clone(self), bytes: 0 }
    }
}

impl Ticket {
    /// Makes the ticket one for `bytes`.
    ///
    /// # Errors
    /// 413 for more than all requests together may take, 503 while others take too much. The ticket
    /// then stays as it was.
    pub(super) fn resize(&mut self, bytes: u64) -> Result<(), ApiError> {
        let Intake { held_bytes, limit_bytes } = &*self.intake;
        if bytes > *limit_bytes {
            return Err(ApiError::large_request(bytes, *limit_bytes));
        }
        let change = |held: u64| {
            let others = held.saturating_sub(self.bytes);
            let shrinks = bytes <= self.bytes;
            Some(others.saturating_add(bytes)).filter(|all| shrinks || all <= limit_bytes)
        };
        let changed = held_bytes.fetch_update(Ordering::SeqCst, Ordering::SeqCst, change);
        changed.map_err(|_| ApiError::intake_full())?;
        self.bytes = bytes;
        Ok(())
    }

    /// The same for more than now.
    ///
    /// # Errors
    /// As [`Self::resize`].
    pub(super) fn grow(&mut self, bytes: u64) -> Result<(), ApiError> {
        self.resize(self.bytes.saturating_add(bytes))
    }

    /// Hands `bytes` of the ticket, or all of it, to another.
    pub(super) fn split(&mut self, bytes: u64) -> Self {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        Self { intake: Arc::clone(&self.intake), bytes }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.intake.held_bytes.fetch_sub(self.bytes, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_has_a_limit() {
        let intake = Arc::new(Intake::new(100));
        let (mut one, mut other) = (intake.ticket(), intake.ticket());
        let code = |refused: Result<(), ApiError>| {
            refused.unwrap_err().json()["error"]["code"].as_str().unwrap().to_owned()
        };
        one.resize(60).unwrap();
        other.grow(30).unwrap();
        assert_eq!(code(other.grow(11)), "server_busy");
        assert_eq!(code(one.resize(101)), "request_too_large");
        assert_eq!(intake.held_bytes(), 90);
        one.resize(10).unwrap();
        other.grow(60).unwrap();
        assert_eq!(intake.held_bytes(), 100);
        drop(other.split(20));
        assert_eq!(intake.held_bytes(), 80);
        drop((other.split(1000), other));
        assert_eq!(intake.held_bytes(), 10);
        drop(one);
        assert_eq!(intake.held_bytes(), 0);
    }
}
