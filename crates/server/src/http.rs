//! Connections: limits on heads, bodies and time, and the shutdown.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::extract::Request;
use axum::http::header;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout_at};

use super::error::ApiError;
use super::request_budget::Reservation;

/// Maximum size of a request head.
const HEAD_BYTES: usize = 32 << 10;
/// Maximum number of headers.
const HEADERS: usize = 64;
/// Maximum number of connections; more wait in the system's queue.
const CONNECTIONS: usize = 512;

/// Time limits of connections.
#[derive(Clone, Copy, Debug)]
pub(super) struct ConnectionTimeouts {
    /// For the head of a request, and for the next request of an open connection.
    pub(super) head: Duration,
    /// For open requests during shutdown.
    pub(super) shutdown: Duration,
}

/// Accepts connections until `shutdown` completes, then lets open ones finish their request.
pub(super) async fn accept(
    listener: TcpListener,
    router: Router,
    shutdown: impl Future<Output = ()>,
    timeouts: ConnectionTimeouts,
) {
    let (ending, watched) = watch::channel(false);
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    tokio::pin!(shutdown);
    loop {
        let slot = tokio::select! {
            slot = Arc::clone(&slots).acquire_owned() => slot,
            () = &mut shutdown => break,
        };
        let stream = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut shutdown => break,
        };
        match stream {
            Ok((stream, _)) => {
                let router = router.clone();
                let watched = watched.clone();
                tokio::spawn(async move {
                    connection(stream, router, watched, timeouts.head).await;
                    drop(slot);
                });
            }
            Err(error) => {
                // Too many open files, or a client that has left already.
                tracing::warn!(%error, "accept");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    drop(listener);
    ending.send_replace(true);
    drop(watched);
    if tokio::time::timeout(timeouts.shutdown, ending.closed()).await.is_err() {
        tracing::warn!("some clients did not read their responses in time");
    }
}

/// Serves one connection.
async fn connection(
    stream: TcpStream,
    router: Router,
    mut ending: watch::Receiver<bool>,
    head_timeout: Duration,
) {
    // Tokens are small packets; Nagle's algorithm would delay them.
    let _ = stream.set_nodelay(true);
    let service = TowerToHyperService::new(router);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(head_timeout)
        .max_buf_size(HEAD_BYTES)
        .max_headers(HEADERS)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        _ = async { ending.wait_for(|ending| *ending).await.is_ok() } => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "connection");
    }
}

/// Limits on a request body.
#[derive(Clone, Copy, Debug)]
pub(super) struct BodyLimits {
    /// Maximum size.
    pub(super) bytes: usize,
    /// Time to arrive, not counting the time during which there is no memory for it.
    pub(super) time: Duration,
}

/// Reads a whole body. Memory for it is added to `reservation` as it arrives; while other requests
/// leave no room, for up to `limits.time`, the rest stays with the client.
///
/// # Errors
/// 413 and 408 beyond the limits, 503 without room in time, 400 for a body that breaks off.
pub(super) async fn read_body(
    request: Request,
    limits: BodyLimits,
    reservation: &mut Reservation,
) -> Result<Vec<u8>, ApiError> {
    let length = request.headers().get(header::CONTENT_LENGTH);
    let length = length.and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > limits.bytes as u64) {
        return Err(ApiError::large_body(limits.bytes));
    }
    // Address space only: a page becomes resident when bytes arrive in it.
    let bytes = Vec::with_capacity(length.and_then(|l| usize::try_from(l).ok()).unwrap_or(0));
    collect_body(request.into_body(), bytes, limits, reservation).await
}

async fn collect_body(
    mut body: Body,
    mut bytes: Vec<u8>,
    limits: BodyLimits,
    reservation: &mut Reservation,
) -> Result<Vec<u8>, ApiError> {
    let mut deadline = Instant::now() + limits.time;
    loop {
        let next = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx));
        let next = timeout_at(deadline, next).await.map_err(|_| ApiError::slow())?;
        let Some(frame) = next else { return Ok(bytes) };
        let frame = frame.map_err(|_| ApiError::invalid("the request's body broke off"))?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > limits.bytes {
            return Err(ApiError::large_body(limits.bytes));
        }
        // The client is not to blame while there is no memory.
        let since = Instant::now();
        reservation.wait_for_more(data.len() as u64, limits.time).await?;
        deadline += since.elapsed();
        bytes.extend_from_slice(&data);
    }
}
