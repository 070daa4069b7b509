//! Responses with a body.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use serde::Serialize;

/// A response of JSON.
pub(super) fn json_response(status: StatusCode, value: &impl Serialize) -> Response {
    // Serialising numbers, strings and maps with string keys cannot fail.
    let text = serde_json::to_string(value).unwrap_or_default();
    response(status, "application/json", Body::from(text))
}

/// A response of content type `kind`.
pub(super) fn response(status: StatusCode, kind: &'static str, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
