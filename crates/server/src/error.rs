//! Errors as OpenAI's API shapes them, and the one mapping from this crate's errors to HTTP.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::admission::TooLarge;
use mlxcel_runtime::Error;
use mlxcel_runtime::text::TextError;

/// Seconds after which a client may try again when the queue is full.
const RETRY_AFTER_SECONDS: u32 = 1;

/// What a client is told: a status and `{"error": {"message", "type", "param", "code", …}}`.
#[derive(Clone, Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    code: Option<&'static str>,
    param: Option<&'static str>,
    message: String,
    /// Numbers for who asked for too much.
    too_large: Option<Box<TooLarge>>,
}

impl ApiError {
    fn new(status: StatusCode, code: Option<&'static str>, message: impl Into<String>) -> Self {
        Self { status, code, param: None, message: message.into(), too_large: None }
    }

    /// 400: the request is wrong.
    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, None, message)
    }

    /// 400: one parameter is wrong.
    pub(super) fn parameter(param: &'static str, message: impl Into<String>) -> Self {
        Self { param: Some(param), ..Self::invalid(message) }
    }

    /// 401: no key, or another one.
    pub(super) fn unauthorized() -> Self {
        let message = "this server needs its API key as `Authorization: Bearer KEY`";
        Self::new(StatusCode::UNAUTHORIZED, Some("invalid_api_key"), message)
    }

    /// 404: another model than the one that is served.
    pub(super) fn unknown_model(found: &str, served: &str) -> Self {
        let found: String = found.chars().take(100).collect();
        let message = format!("the model `{found}` is not served here, only `{served}`");
        let error = Self::new(StatusCode::NOT_FOUND, Some("model_not_found"), message);
        Self { param: Some("model"), ..error }
    }

    /// 404: no such route.
    pub(super) fn no_route() -> Self {
        Self::new(StatusCode::NOT_FOUND, Some("unknown_url"), "there is nothing at this address")
    }

    /// 405: the route knows other methods.
    pub(super) fn method() -> Self {
        let message = "this address does not take this method";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, Some("method_not_allowed"), message)
    }

    /// 408: the body came too slowly.
    pub(super) fn slow() -> Self {
        let message = "the request's body did not arrive in time";
        Self::new(StatusCode::REQUEST_TIMEOUT, Some("request_timeout"), message)
    }

    /// 413: the body is larger than the server reads.
    pub(super) fn large_body(limit_bytes: usize) -> Self {
        let message = format!(
            "the body exceeds the {limit_bytes} bytes that are read (--max-body-bytes, or a sixteenth of the memory beside the weights)"
        );
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, Some("request_too_large"), message)
    }

    /// 413: the request takes more than all requests together may before they run.
    pub(super) fn large_request(bytes: u64, limit_bytes: u64) -> Self {
        let message = format!(
            "this request needs {} before it can run, and all requests together may take {}: send smaller images",
            mlxcel_estimator::format_bytes(bytes),
            mlxcel_estimator::format_bytes(limit_bytes),
        );
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, Some("request_too_large"), message)
    }

    /// 503: other requests are being read, and have been for a while.
    pub(super) fn intake_full() -> Self {
        let message = "other requests are being read and take the memory for it: try again later";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, Some("server_busy"), message)
    }

    /// 413: the request can never fit in memory.
    pub(super) fn never_fits(too_large: &TooLarge) -> Self {
        let TooLarge { estimated_bytes, limit_bytes, max_context_tokens } = *too_large;
        let message = format!(
            "this request needs {} and the limit is {}; prompt and answer may have {max_context_tokens} tokens together",
            mlxcel_estimator::format_bytes(estimated_bytes),
            mlxcel_estimator::format_bytes(limit_bytes),
        );
        let code = Some("prefill_memory_exceeded");
        let error = Self::new(StatusCode::PAYLOAD_TOO_LARGE, code, message);
        Self { too_large: Some(Box::new(*too_large)), ..error }
    }

    /// 503: the queue is full.
    pub(super) fn queue_full() -> Self {
        let message = "the queue is full: try again later";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, Some("queue_full"), message)
    }

    /// 503: the server is ending.
    pub(super) fn shutting_down() -> Self {
        let message = "the server is shutting down";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, Some("shutting_down"), message)
    }

    /// 503: memory ran short while the request was running.
    pub(super) fn memory_pressure() -> Self {
        let message = "memory ran short, and the newest request was given up: try again later";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, Some("memory_pressure"), message)
    }

    /// 507: the model was refused and is not loaded.
    pub(super) fn not_loaded(message: &str) -> Self {
        Self::new(StatusCode::INSUFFICIENT_STORAGE, Some("model_not_loaded"), message)
    }

    /// 500: the engine failed.
    pub(super) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, Some("engine_error"), message)
    }

    fn kind(&self) -> &'static str {
        match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::SERVICE_UNAVAILABLE => "overloaded_error",
            status if status.is_client_error() => "invalid_request_error",
            _ => "server_error",
        }
    }

    /// The body, also what a stream ends with when it fails midway.
    pub(super) fn json(&self) -> Value {
        let mut error = json!({
            "message": self.message, "type": self.kind(), "param": self.param, "code": self.code,
        });
        if let Some(too_large) = &self.too_large {
            error["estimated_bytes"] = too_large.estimated_bytes.into();
            error["limit_bytes"] = too_large.limit_bytes.into();
            error["max_context_tokens"] = too_large.max_context_tokens.into();
        }
        json!({ "error": error })
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = super::response::json_response(self.status, &self.json());
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            let value = HeaderValue::from(RETRY_AFTER_SECONDS);
            response.headers_mut().insert(header::RETRY_AFTER, value);
        }
        response
    }
}

impl From<Error> for ApiError {
    /// What the request caused is a 400, everything else a 500.
    fn from(error: Error) -> Self {
        let message = error.to_string();
        match error {
            Error::ContextExceeded { .. } => {
                Self::new(StatusCode::BAD_REQUEST, Some("context_length_exceeded"), message)
            }
            Error::EmptyPrompt | Error::TokenOutOfRange { .. } | Error::Sampling(_) => {
                Self::invalid(message)
            }
            Error::Image(_) => Self::parameter("messages", message),
            Error::Text(
                TextError::NoChatTemplate { .. }
                | TextError::TemplateRender { .. }
                | TextError::TemplateRefused { .. }
                | TextError::NoMessages
                | TextError::EmptyStop
                | TextError::Encode { .. },
            ) => Self::invalid(message),
            _ => Self::internal(message),
        }
    }
}
