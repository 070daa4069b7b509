//! Errors in the form of OpenAI's API, and the mapping from runtime errors to HTTP.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use mlxcel_estimator::{EstimatorError, format_bytes};
use mlxcel_runtime::Error;
use mlxcel_runtime::sampling::SamplingError;
use mlxcel_runtime::text::TextError;
use mlxcel_runtime::vision::ImageError;
use serde_json::{Value, json};

use super::admission::TooLarge;
use super::response::json_response;

/// `Retry-After` of 503 responses.
const RETRY_AFTER_SECONDS: u32 = 1;

/// Error response: a status and `{"error": {"message", "type", "param", "code", …}}`.
#[derive(Clone, Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    code: Option<&'static str>,
    param: Option<&'static str>,
    message: String,
    /// Sizes, for a request that does not fit.
    too_large: Option<Box<TooLarge>>,
}

impl ApiError {
    fn new(status: StatusCode, code: Option<&'static str>, message: impl Into<String>) -> Self {
        Self { status, code, param: None, message: message.into(), too_large: None }
    }

    /// 400: invalid request.
    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, None, message)
    }

    /// 400: invalid parameter.
    pub(super) fn parameter(param: &'static str, message: impl Into<String>) -> Self {
        Self { param: Some(param), ..Self::invalid(message) }
    }

    /// 401: missing or wrong API key.
    pub(super) fn unauthorized() -> Self {
        let message = "this server needs its API key as `Authorization: Bearer KEY`";
        Self::new(StatusCode::UNAUTHORIZED, Some("invalid_api_key"), message)
    }

    /// 404: a model that is not served.
    pub(super) fn unknown_model(found: &str, served: &str) -> Self {
        let found: String = found.chars().take(100).collect();
        let message = format!("the model `{found}` is not served here, only `{served}`");
        let error = Self::new(StatusCode::NOT_FOUND, Some("model_not_found"), message);
        Self { param: Some("model"), ..error }
    }

    /// 404: unknown route.
    pub(super) fn no_route() -> Self {
        Self::new(StatusCode::NOT_FOUND, Some("unknown_url"), "there is nothing at this address")
    }

    /// 405: method not allowed on this route.
    pub(super) fn method() -> Self {
        let message = "this address does not take this method";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, Some("method_not_allowed"), message)
    }

    /// 408: the body did not arrive in time.
    pub(super) fn slow() -> Self {
        let message = "the request's body did not arrive in time";
        Self::new(StatusCode::REQUEST_TIMEOUT, Some("request_timeout"), message)
    }

    /// 413: body larger than the limit.
    pub(super) fn large_body(limit_bytes: usize) -> Self {
        let message = format!(
            "the body exceeds the limit of {limit_bytes} bytes (--max-body-bytes, or a sixteenth of the memory that the weights leave)"
        );
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, Some("request_too_large"), message)
    }

    /// 413: the request needs more memory, before it runs, than the budget of all requests.
    pub(super) fn large_request(bytes: u64, limit_bytes: u64) -> Self {
        let message = format!(
            "this request needs {} before it can run, and the limit for all requests is {}: send smaller images",
            format_bytes(bytes),
            format_bytes(limit_bytes),
        );
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, Some("request_too_large"), message)
    }

    /// 503: no memory for reading the request became free in time.
    pub(super) fn request_budget_full() -> Self {
        let message = "other requests are being read and hold the memory for it: try again later";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, Some("server_busy"), message)
    }

    /// 413: the request never fits in memory.
    pub(super) fn never_fits(too_large: &TooLarge) -> Self {
        let TooLarge { estimated_bytes, limit_bytes, max_context_tokens } = *too_large;
        let message = format!(
            "this request needs {} and the limit is {}; prompt and completion may have {max_context_tokens} tokens together",
            format_bytes(estimated_bytes),
            format_bytes(limit_bytes),
        );
        let code = Some("prefill_memory_exceeded");
        let error = Self::new(StatusCode::PAYLOAD_TOO_LARGE, code, message);
        Self { too_large: Some(Box::new(*too_large)), ..error }
    }

    /// 503: queue full.
    pub(super) fn queue_full() -> Self {
        let message = "the queue is full: try again later";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, Some("queue_full"), message)
    }

    /// 503: server shutting down.
    pub(super) fn shutting_down() -> Self {
        let message = "the server is shutting down";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, Some("shutting_down"), message)
    }

    /// 503: aborted at the memory limit.
    pub(super) fn memory_pressure() -> Self {
        let message = "memory ran short and the newest request was aborted: try again later";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, Some("memory_pressure"), message)
    }

    /// 507: the model does not fit and is not loaded.
    pub(super) fn not_loaded(message: &str) -> Self {
        Self::new(StatusCode::INSUFFICIENT_STORAGE, Some("model_not_loaded"), message)
    }

    /// 500: engine failure.
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

    /// The sentence for a person.
    pub(super) fn message(&self) -> &str {
        &self.message
    }

    /// The body, also sent as the last event of a stream that fails.
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
        let mut response = json_response(self.status, &self.json());
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            let value = HeaderValue::from(RETRY_AFTER_SECONDS);
            response.headers_mut().insert(header::RETRY_AFTER, value);
        }
        response
    }
}

impl From<Error> for ApiError {
    /// 400 for errors that the request caused, 500 for all others.
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

impl From<TextError> for ApiError {
    fn from(error: TextError) -> Self {
        Error::from(error).into()
    }
}

impl From<ImageError> for ApiError {
    fn from(error: ImageError) -> Self {
        Error::from(error).into()
    }
}

impl From<SamplingError> for ApiError {
    fn from(error: SamplingError) -> Self {
        Error::from(error).into()
    }
}

impl From<EstimatorError> for ApiError {
    fn from(error: EstimatorError) -> Self {
        Error::from(error).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapped(error: impl Into<Error>) -> (u16, Value) {
        let error = ApiError::from(error.into());
        (error.status.as_u16(), error.json()["error"].clone())
    }

    #[test]
    fn errors_of_the_request_are_400_and_others_500() {
        let context = Error::ContextExceeded { tokens: 9, wanted: 2, context: 10 };
        let (status, body) = mapped(context);
        assert_eq!((status, &body["code"]), (400, &json!("context_length_exceeded")));
        assert_eq!(mapped(Error::EmptyPrompt).0, 400);
        assert_eq!(mapped(Error::TokenOutOfRange { token: 9, vocab: 9 }).0, 400);
        assert_eq!(mapped(TextError::EmptyStop).0, 400);
        let (status, body) = mapped(ImageError::NoEncoder);
        assert_eq!((status, &body["param"]), (400, &json!("messages")));
        let (status, body) = mapped(Error::Interrupted);
        assert_eq!((status, &body["type"]), (500, &json!("server_error")));
    }

    #[test]
    fn a_refusal_states_sizes() {
        let too_large =
            TooLarge { estimated_bytes: 3 << 30, limit_bytes: 2 << 30, max_context_tokens: 77 };
        let body = ApiError::never_fits(&too_large).json();
        assert_eq!(body["error"]["code"], "prefill_memory_exceeded");
        assert_eq!(body["error"]["max_context_tokens"], 77);
        assert_eq!(body["error"]["estimated_bytes"], 3_u64 << 30);
        assert!(body["error"]["message"].as_str().unwrap().contains("77 tokens"));
    }

    #[test]
    fn overload_asks_to_retry() {
        for error in [ApiError::queue_full(), ApiError::memory_pressure()] {
            let response = error.into_response();
            assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
            assert_eq!(response.headers()[header::RETRY_AFTER], "1");
        }
    }
}
