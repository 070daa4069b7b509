//! Memory of requests before they run: bodies, parsed values, images.
//!
//! It is part of the memory budget and has a limit of its own, so that clients that send much at once
//! wait before memory runs short, and running completions keep theirs. Requests that wait may hold
//! what others wait for, so waiting has a time limit: in the end a request is refused, and its
//! reservation is free for the others.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use super::error::ApiError;

/// Memory reserved by all requests, and its limit.
#[derive(Debug)]
pub(super) struct RequestBudget {
    held_bytes: AtomicU64,
    limit_bytes: u64,
    /// Notified whenever bytes are released.
    released: Notify,
}

/// Memory reserved by one request; released on drop.
#[derive(Debug)]
pub(super) struct Reservation {
    budget: Arc<RequestBudget>,
    bytes: u64,
}

impl RequestBudget {
    /// A budget of `limit_bytes`, nothing reserved.
    pub(super) fn new(limit_bytes: u64) -> Self {
        Self { held_bytes: AtomicU64::new(0), limit_bytes, released: Notify::new() }
    }

    /// Bytes reserved by all requests.
    pub(super) fn held_bytes(&self) -> u64 {
        self.held_bytes.load(Ordering::SeqCst)
    }

    /// Maximum of [`Self::held_bytes`].
    pub(super) fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }

    /// An empty reservation.
    pub(super) fn reservation(self: &Arc<Self>) -> Reservation {
        Reservation { budget: Arc::clone(self), bytes: 0 }
    }
}

/// Limits on waiting for memory: a time, and the presence of the client.
#[derive(Clone, Debug)]
pub(super) struct WaitLimit {
    time: Duration,
    client: watch::Receiver<()>,
}

impl WaitLimit {
    /// Waits for at most `time`, and no longer than the sender lives.
    pub(super) fn new(time: Duration) -> (watch::Sender<()>, Self) {
        let (sender, client) = watch::channel(());
        (sender, Self { time, client })
    }
}

impl Reservation {
    /// Changes the reservation to `bytes`. Leaves it as it was and returns `false` if others hold too
    /// much.
    ///
    /// # Errors
    /// 413 for more than the whole budget.
    fn resize(&mut self, bytes: u64) -> Result<bool, ApiError> {
        let RequestBudget { held_bytes, limit_bytes, released } = &*self.budget;
        if bytes > *limit_bytes {
            return Err(ApiError::large_request(bytes, *limit_bytes));
        }
        let shrinks = bytes <= self.bytes;
        let resized = held_bytes.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |held| {
            let others = held.saturating_sub(self.bytes);
            Some(others.saturating_add(bytes)).filter(|all| shrinks || all <= limit_bytes)
        });
        if resized.is_err() {
            return Ok(false);
        }
        if bytes < self.bytes {
            released.notify_waiters();
        }
        self.bytes = bytes;
        Ok(true)
    }

    /// Changes the reservation to `bytes`, as soon as others leave room for it. A smaller one is
    /// granted at once.
    ///
    /// # Errors
    /// 413 for more than the whole budget, 503 if there is no room within `time`. The reservation
    /// then stays as it was.
    pub(super) async fn wait_for(&mut self, bytes: u64, time: Duration) -> Result<(), ApiError> {
        let budget = Arc::clone(&self.budget);
        let room = async {
            loop {
                let released = budget.released.notified();
                tokio::pin!(released);
                // Registered before the check, so that no release is missed between the two.
                released.as_mut().enable();
                if self.resize(bytes)? {
                    return Ok(());
                }
                released.await;
            }
        };
        timeout(time, room).await.unwrap_or_else(|_| Err(ApiError::request_budget_full()))
    }

    /// Adds `bytes` to the reservation.
    ///
    /// # Errors
    /// Errors of [`Self::wait_for`].
    pub(super) async fn wait_for_more(
        &mut self,
        bytes: u64,
        time: Duration,
    ) -> Result<(), ApiError> {
        self.wait_for(self.bytes.saturating_add(bytes), time).await
    }

    /// [`Self::wait_for`] on a thread that may block.
    ///
    /// # Errors
    /// Errors of [`Self::wait_for`], and 503 when the client leaves.
    pub(super) fn block_for(&mut self, bytes: u64, limit: &WaitLimit) -> Result<(), ApiError> {
        if self.resize(bytes)? {
            return Ok(());
        }
        let mut client = limit.client.clone();
        Handle::current().block_on(async {
            tokio::select! {
                room = self.wait_for(bytes, limit.time) => room,
                _ = client.changed() => Err(ApiError::request_budget_full()),
            }
        })
    }

    /// Adds `bytes` to the reservation, on a thread that may block.
    ///
    /// # Errors
    /// Errors of [`Self::block_for`].
    pub(super) fn block_for_more(&mut self, bytes: u64, limit: &WaitLimit) -> Result<(), ApiError> {
        self.block_for(self.bytes.saturating_add(bytes), limit)
    }

    /// Moves `bytes` of the reservation, or all of it, into another.
    pub(super) fn split(&mut self, bytes: u64) -> Self {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        Self { budget: Arc::clone(&self.budget), bytes }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.held_bytes.fetch_sub(self.bytes, Ordering::SeqCst);
        self.budget.released.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_has_a_limit() {
        let budget = Arc::new(RequestBudget::new(100));
        let mut one = budget.reservation();
        let mut other = budget.reservation();
        assert!(one.resize(60).unwrap() && other.resize(30).unwrap());
        assert!(!other.resize(41).unwrap());
        assert_eq!(code(&one.resize(101).unwrap_err()), "request_too_large");
        assert_eq!(budget.held_bytes(), 90);
        assert!(one.resize(10).unwrap() && other.resize(90).unwrap());
        assert_eq!(budget.held_bytes(), 100);
        drop(other.split(20));
        assert_eq!(budget.held_bytes(), 80);
        drop((other.split(1000), other));
        assert_eq!(budget.held_bytes(), 10);
        drop(one);
        assert_eq!(budget.held_bytes(), 0);
    }

    fn code(refused: &ApiError) -> String {
        refused.json()["error"]["code"].as_str().unwrap().to_owned()
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_request_waits_for_room() {
        let budget = Arc::new(RequestBudget::new(100));
        let mut one = budget.reservation();
        let mut other = budget.reservation();
        let mut third = budget.reservation();
        runtime().block_on(async {
            one.wait_for(70, LONG).await.unwrap();
            let refused = other.wait_for(40, Duration::from_millis(20)).await.unwrap_err();
            assert_eq!((code(&refused), budget.held_bytes()), ("server_busy".to_owned(), 70));
            let refused = other.wait_for(101, LONG).await.unwrap_err();
            assert_eq!(code(&refused), "request_too_large");
            let leave = async {
                tokio::task::yield_now().await;
                assert_eq!(budget.held_bytes(), 70);
                // A little room is not enough, more is.
                one.wait_for(65, LONG).await.unwrap();
                tokio::task::yield_now().await;
                assert_eq!(budget.held_bytes(), 65);
                drop(one);
            };
            let (waited, ()) = tokio::join!(other.wait_for_more(40, LONG), leave);
            waited.unwrap();
            assert_eq!(budget.held_bytes(), 40);
            // The future of a client that leaves is dropped.
            let wait = third.wait_for(70, LONG);
            assert!(timeout(Duration::from_millis(20), wait).await.is_err());
            assert_eq!(budget.held_bytes(), 40);
        });
    }

    #[test]
    fn a_blocked_thread_stops_when_the_client_leaves() {
        let budget = Arc::new(RequestBudget::new(100));
        let mut one = budget.reservation();
        let mut other = budget.reservation();
        assert!(one.resize(70).unwrap());
        let (client, wait) = WaitLimit::new(LONG);
        runtime().block_on(async {
            let blocked = tokio::task::spawn_blocking(move || other.block_for_more(40, &wait));
            tokio::time::sleep(Duration::from_millis(20)).await;
            assert!(!blocked.is_finished());
            drop(client);
            assert_eq!(code(&blocked.await.unwrap().unwrap_err()), "server_busy");
        });
    }
}
