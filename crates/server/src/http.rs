//! Connections: limits on what is read and how long it may take, and the end of serving.

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
use super::intake::Ticket;

/// Bytes of a request's head.
const HEAD_BYTES: usize = 32 << 10;
/// Headers of a request.
const HEADERS: usize = 64;
/// Connections at once; more wait in the system's queue.
const CONNECTIONS: usize = 512;

/// How long clients may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// For a request's head, and for the next request of an open connection.
    pub(super) head: Duration,
    /// For open requests once the server ends.
    pub(super) end: Duration,
}

/// Accepts connections until `end` completes, and lets those that are open finish their request.
pub(super) async fn accept(
    listener: TcpListener,
    router: Router,
    end: impl Future<Output = ()>,
    patience: Patience,
) {
    let (ending, watched) = watch::channel(false);
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    tokio::pin!(end);
    loop {
        let place = tokio::select! {
            place = Arc::clone(&places).acquire_owned() => place,
            () = &mut end => break,
        };
        let stream = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut end => break,
        };
        match stream {
            Ok((stream, _)) => {
                let (router, watched) = (router.clone(), watched.clone());
                tokio::spawn(async move {
                    connection(stream, router, watched, patience.head).await;
                    drop(place);
                });
            }
            Err(error) => {
                // Too many open files, or a client that is gone already.
                tracing::warn!(%error, "accept");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    drop(listener);
    ending.send_replace(true);
    drop(watched);
    if tokio::time::timeout(patience.end, ending.closed()).await.is_err() {
        tracing::warn!("some clients did not read their answers in time");
    }
}

/// Serves one connection.
async fn connection(
    stream: TcpStream,
    router: Router,
    mut ending: watch::Receiver<bool>,
    head_timeout: Duration,
) {
    // Tokens are small packets that must not wait for each other.
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

/// A whole body of at most `limit` bytes, which has to be there in `time`; what has arrived is on
/// `ticket`. Where other requests leave no room the rest stays with the client, as long again.
///
/// # Errors
/// 413, 408, 503 where there is no room in time, or 400 for a body that breaks off.
pub(super) async fn read_body(
    request: Request,
    limit: usize,
    time: Duration,
    ticket: &mut Ticket,
) -> Result<Vec<u8>, ApiError> {
    let length = request.headers().get(header::CONTENT_LENGTH);
    let length = length.and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > limit as u64) {
        return Err(ApiError::large_body(limit));
    }
    // Reserved, not touched: only what arrives is resident.
    let bytes = Vec::with_capacity(length.and_then(|l| usize::try_from(l).ok()).unwrap_or(0));
    gather(request.into_body(), bytes, (limit, time), ticket).await
}

async fn gather(
    mut body: Body,
    mut bytes: Vec<u8>,
    (limit, time): (usize, Duration),
    ticket: &mut Ticket,
) -> Result<Vec<u8>, ApiError> {
    let mut deadline = Instant::now() + time;
    loop {
        let next = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx));
        let next = timeout_at(deadline, next).await.map_err(|_| ApiError::slow())?;
        let Some(frame) = next else { return Ok(bytes) };
        let frame = frame.map_err(|_| ApiError::invalid("the request's body broke off"))?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > limit {
            return Err(ApiError::large_body(limit));
        }
        // The client is not slow while we have no room.
        let since = Instant::now();
        ticket.wait_for_more(data.len() as u64, time).await?;
        deadline += since.elapsed();
        bytes.extend_from_slice(&data);
    }
}
