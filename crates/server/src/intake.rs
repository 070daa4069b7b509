//! Bytes that requests take before they run: bodies as they arrive, what is made of them, images.
//!
//! They are a part of the budget, and their sum has a limit of its own, so that clients who send
//! much at once wait before memory runs short, and who is answered keeps what it has. Whoever waits may
//! hold what another one waits for, so nobody waits for ever: in the end a request is refused, and
//! what it held goes to the others.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use super::error::ApiError;

/// What all requests take, and may take.
#[derive(Debug)]
pub(super) struct Intake {
    held_bytes: AtomicU64,
    limit_bytes: u64,
    /// Told whenever bytes are given back.
    freed: Notify,
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
        Self { held_bytes: AtomicU64::new(0), limit_bytes, freed: Notify::new() }
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

/// How a request waits for room: so long, and while its client is there.
#[derive(Clone, Debug)]
pub(super) struct Wait {
    time: Duration,
    client: watch::Receiver<()>,
}

impl Wait {
    /// Waits `time` at most, and as long as the sender is not dropped.
    pub(super) fn new(time: Duration) -> (watch::Sender<()>, Self) {
        let (sender, client) = watch::channel(());
        (sender, Self { time, client })
    }
}

impl Ticket {
    /// Makes the ticket one for `bytes`; `false` while others take too much. It then stays as it was.
    ///
    /// # Errors
    /// 413 for more than all requests together may take.
    fn resize(&mut self, bytes: u64) -> Result<bool, ApiError> {
        let Intake { held_bytes, limit_bytes, freed } = &*self.intake;
        if bytes > *limit_bytes {
            return Err(ApiError::large_request(bytes, *limit_bytes));
        }
        let change = |held: u64| {
            let others = held.saturating_sub(self.bytes);
            let shrinks = bytes <= self.bytes;
            Some(others.saturating_add(bytes)).filter(|all| shrinks || all <= limit_bytes)
        };
        let changed = held_bytes.fetch_update(Ordering::SeqCst, Ordering::SeqCst, change).is_ok();
        if changed {
            if bytes < self.bytes {
                freed.notify_waiters();
            }
            self.bytes = bytes;
        }
        Ok(changed)
    }

    /// Makes the ticket one for `bytes`, as soon as others leave room for it. A smaller one is had at
    /// once.
    ///
    /// # Errors
    /// 413 for more than all requests together may take, 503 when the room does not come within `time`.
    /// The ticket then stays as it was.
    pub(super) async fn wait_for(&mut self, bytes: u64, time: Duration) -> Result<(), ApiError> {
        let intake = Arc::clone(&self.intake);
        let room = async {
            loop {
                let freed = intake.freed.notified();
                tokio::pin!(freed);
                // Before looking, so that nothing is missed between the two.
                freed.as_mut().enable();
                if self.resize(bytes)? {
                    return Ok(());
                }
                freed.await;
            }
        };
        timeout(time, room).await.unwrap_or_else(|_| Err(ApiError::intake_full()))
    }

    /// The same for more than now.
    ///
    /// # Errors
    /// As [`Self::wait_for`].
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
    /// As [`Self::wait_for`], and 503 when the client leaves.
    pub(super) fn block_for(&mut self, bytes: u64, wait: &Wait) -> Result<(), ApiError> {
        if self.resize(bytes)? {
            return Ok(());
        }
        let mut client = wait.client.clone();
        Handle::current().block_on(async {
            tokio::select! {
                room = self.wait_for(bytes, wait.time) => room,
                _ = client.changed() => Err(ApiError::intake_full()),
            }
        })
    }

    /// The same for more than now.
    ///
    /// # Errors
    /// As [`Self::block_for`].
    pub(super) fn block_for_more(&mut self, bytes: u64, wait: &Wait) -> Result<(), ApiError> {
        self.block_for(self.bytes.saturating_add(bytes), wait)
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
        self.intake.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_has_a_limit() {
        let intake = Arc::new(Intake::new(100));
        let (mut one, mut other) = (intake.ticket(), intake.ticket());
        assert!(one.resize(60).unwrap() && other.resize(30).unwrap());
        assert!(!other.resize(41).unwrap());
        assert_eq!(code(&one.resize(101).unwrap_err()), "request_too_large");
        assert_eq!(intake.held_bytes(), 90);
        assert!(one.resize(10).unwrap() && other.resize(90).unwrap());
        assert_eq!(intake.held_bytes(), 100);
        drop(other.split(20));
        assert_eq!(intake.held_bytes(), 80);
        drop((other.split(1000), other));
        assert_eq!(intake.held_bytes(), 10);
        drop(one);
        assert_eq!(intake.held_bytes(), 0);
    }

    fn code(refused: &ApiError) -> String {
        refused.json()["error"]["code"].as_str().unwrap().to_owned()
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn who_finds_no_room_waits_for_it() {
        let intake = Arc::new(Intake::new(100));
        let (mut one, mut other, mut third) = (intake.ticket(), intake.ticket(), intake.ticket());
        runtime().block_on(async {
            one.wait_for(70, LONG).await.unwrap();
            let refused = other.wait_for(40, Duration::from_millis(20)).await.unwrap_err();
            assert_eq!((code(&refused), intake.held_bytes()), ("server_busy".to_owned(), 70));
            let refused = other.wait_for(101, LONG).await.unwrap_err();
            assert_eq!(code(&refused), "request_too_large");
            let leave = async {
                tokio::task::yield_now().await;
                assert_eq!(intake.held_bytes(), 70);
                // Some room is not enough, more is.
                one.wait_for(65, LONG).await.unwrap();
                tokio::task::yield_now().await;
                assert_eq!(intake.held_bytes(), 65);
                drop(one);
            };
            let (waited, ()) = tokio::join!(other.wait_for_more(40, LONG), leave);
            waited.unwrap();
            assert_eq!(intake.held_bytes(), 40);
            // A client that leaves while it waits: its future is dropped.
            let wait = third.wait_for(70, LONG);
            assert!(timeout(Duration::from_millis(20), wait).await.is_err());
            assert_eq!(intake.held_bytes(), 40);
        });
    }

    #[test]
    fn a_thread_that_waits_stops_when_the_client_leaves() {
        let intake = Arc::new(Intake::new(100));
        let (mut one, mut other) = (intake.ticket(), intake.ticket());
        assert!(one.resize(70).unwrap());
        let (client, wait) = Wait::new(LONG);
        runtime().block_on(async {
            let blocked = tokio::task::spawn_blocking(move || other.block_for_more(40, &wait));
            tokio::time::sleep(Duration::from_millis(20)).await;
            assert!(!blocked.is_finished());
            drop(client);
            assert_eq!(code(&blocked.await.unwrap().unwrap_err()), "server_busy");
        });
    }
}
