//! Routes and their handlers.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use mlxcel_runtime::Error;
use mlxcel_runtime::engine::room;
use mlxcel_runtime::text::SpecialTokens;
use serde_json::{Value, json};
use subtle::ConstantTimeEq;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::admission::MemoryDemand;
use super::app::{AppState, LoadedModel};
use super::completions::{CollectedCompletions, ResponseBuilder};
use super::error::ApiError;
use super::http::{BodyLimits, read_body};
use super::images::{DecodedImages, PreparedImage};
use super::messages::{EngineCommand, EngineEvent, EngineRequest};
use super::prompt::Prompt;
use super::request::{Api, Detokenize, Tokenize, ValidatedRequest, parse_json};
use super::request_budget::{Reservation, WaitLimit};
use super::response::{json_response, response};
use super::stream::EventStream;
use super::{memory, metrics, request};

/// Memory for parsing a body, in multiples of its size: the text, the parsed values and tokens. A
/// body of very many tiny values takes more for a short time, which the memory watch notices.
const PARSING_FACTOR: u64 = 4;

type HandlerResult = Result<Response, ApiError>;

/// The router.
pub(super) fn router(app: Arc<AppState>) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(completions))
        .route("/v1/models", get(models))
        .route("/v1/memory", get(memory_route))
        .route("/tokenize", post(tokenize))
        .route("/detokenize", post(detokenize))
        .route("/metrics", get(metrics_route))
        .route_layer(from_fn_with_state(Arc::clone(&app), authorize))
        .route("/health", get(health))
        .route("/", get(page))
        .fallback(async || ApiError::no_route())
        .method_not_allowed_fallback(async || ApiError::method())
        .with_state(app)
}

/// Rejects requests without the API key, which is compared in constant time.
async fn authorize(State(app): State<Arc<AppState>>, request: Request, next: Next) -> Response {
    if let Some(key) = &app.api_key {
        let given = request.headers().get(header::AUTHORIZATION);
        let given = given.and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
        let is_equal = given.is_some_and(|given| bool::from(given.ct_eq(key.as_bytes())));
        if !is_equal {
            return ApiError::unauthorized().into_response();
        }
    }
    next.run(request).await
}

/// A body, and the memory for parsing it.
struct ReceivedBody {
    bytes: Vec<u8>,
    reservation: Reservation,
}

impl AppState {
    fn model(&self) -> Result<&LoadedModel, ApiError> {
        self.model.as_ref().map_err(|message| ApiError::not_loaded(message))
    }

    /// Reads the body of a request.
    async fn receive(&self, request: Request) -> Result<ReceivedBody, ApiError> {
        let status = &self.model()?.status;
        let mut reservation = status.request_budget.reservation();
        let parseable = status.request_budget.limit_bytes() / PARSING_FACTOR;
        let parseable = usize::try_from(parseable).unwrap_or(usize::MAX);
        let time = self.read_timeout;
        let limits = BodyLimits { bytes: self.max_body_bytes.min(parseable), time };
        let received = async {
            let bytes = read_body(request, limits, &mut reservation).await?;
            let parsing_bytes = (bytes.len() as u64).saturating_mul(PARSING_FACTOR);
            reservation.wait_for(parsing_bytes, time).await?;
            Ok(bytes)
        };
        match received.await {
            Ok(bytes) => Ok(ReceivedBody { bytes, reservation }),
            Err(error) => {
                status.metrics.refused.add(1);
                Err(error)
            }
        }
    }

    /// Fails if the request names a model that is not served.
    fn check_name(&self, name: Option<&str>) -> Result<(), ApiError> {
        match name {
            Some(other) if other != self.name => Err(ApiError::unknown_model(other, &self.name)),
            _ => Ok(()),
        }
    }
}

async fn chat(State(app): State<Arc<AppState>>, request: Request) -> HandlerResult {
    complete(app, request, Api::Chat).await
}

async fn completions(State(app): State<Arc<AppState>>, request: Request) -> HandlerResult {
    complete(app, request, Api::Completions).await
}

/// Handler of both APIs: receives, validates and submits a request, then responds.
async fn complete(app: Arc<AppState>, request: Request, api: Api) -> HandlerResult {
    let body = app.receive(request).await?;
    let state = Arc::clone(&app);
    // Templates, tokenizers and images take time; other connections must not wait for them.
    let (client, limit) = WaitLimit::new(app.read_timeout);
    let prepared = blocking(move || state.prepare(api, body, &limit)).await?;
    drop(client);
    let model = app.model()?;
    if app.shutting_down.load(Ordering::SeqCst) {
        return Err(ApiError::shutting_down());
    }
    let builder = model.response_builder(api, &app, &prepared.request);
    let stream = prepared.request.stream;
    let include_usage = prepared.request.include_usage;
    let mut events = model.submit(prepared)?;
    let first = next_event(&mut events).await?;
    if stream {
        return Ok(streamed(EventStream::new(builder, first, events, include_usage)));
    }
    let mut collected = CollectedCompletions::new(builder.completions);
    collected.add(first);
    while !collected.is_complete() {
        collected.add(next_event(&mut events).await?);
    }
    Ok(json_response(StatusCode::OK, &builder.whole(&collected)))
}

/// The next event of a request.
///
/// # Errors
/// The failure of the request, or 500 if the engine thread has exited.
async fn next_event(events: &mut UnboundedReceiver<EngineEvent>) -> Result<EngineEvent, ApiError> {
    match events.recv().await {
        Some(EngineEvent::Failed(error)) => Err(error),
        Some(event) => Ok(event),
        None => Err(ApiError::internal("the engine has ended")),
    }
}

fn streamed(body: EventStream) -> Response {
    let mut response = response(StatusCode::OK, "text/event-stream", Body::new(body));
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

/// A request that may be submitted.
struct PreparedRequest {
    request: ValidatedRequest,
    /// Per prompt, the maximum length of its completions.
    max_tokens: Vec<usize>,
    /// Images of the only prompt that has any.
    images: Vec<PreparedImage>,
    reservation: Reservation,
}

impl AppState {
    /// Parses and validates a body, and prepares its images.
    fn prepare(
        &self,
        api: Api,
        received: ReceivedBody,
        limit: &WaitLimit,
    ) -> Result<PreparedRequest, ApiError> {
        let ReceivedBody { bytes, mut reservation } = received;
        let model = self.model()?;
        let mut body = request::Body::parse(&bytes)?;
        drop(bytes);
        self.check_name(body.model.as_deref())?;
        let files = body.take_images()?;
        let preprocessor = match &model.images {
            Err(reason) if !files.is_empty() => {
                return Err(ApiError::parameter("messages", reason));
            }
            preprocessor => preprocessor.as_ref().ok(),
        };
        let decoded =
            DecodedImages::decode(files, model.status.request_budget.reservation(), limit)?;
        let request = body.validate(api, &model.processor, &decoded)?;
        drop(body);
        let max_tokens = model.check(&request)?;
        let images = match preprocessor {
            Some(preprocessor) => decoded.prepare(preprocessor, limit)?,
            None => Vec::new(),
        };
        // The prompt, and the history that begins with it.
        let tokens: usize = request.prompts.iter().map(|prompt| prompt.len() * request.n).sum();
        reservation.block_for((2 * tokens * size_of::<u32>()) as u64, limit)?;
        Ok(PreparedRequest { request, max_tokens, images, reservation })
    }
}

/// Runs `work` on a thread that may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(ApiError::internal(error.to_string())))
}

impl LoadedModel {
    /// Checks all prompts of a request; returns the maximum length of their completions.
    ///
    /// # Errors
    /// Token ids outside the vocabulary, a prompt beyond the context, a request that never fits.
    fn check(&self, request: &ValidatedRequest) -> Result<Vec<usize>, ApiError> {
        if request.n > self.status.parallel {
            let parallel = self.status.parallel;
            let message = format!("`n` is at most {parallel} here (--parallel)");
            return Err(ApiError::parameter("n", message));
        }
        request.prompts.iter().map(|prompt| self.check_prompt(prompt, request)).collect()
    }

    fn check_prompt(&self, prompt: &Prompt, request: &ValidatedRequest) -> Result<usize, ApiError> {
        let vocab = self.admission.vocabulary();
        if let Some(token) = prompt.token_beyond(vocab) {
            let vocab = usize::try_from(vocab).unwrap_or(usize::MAX);
            return Err(Error::TokenOutOfRange { token, vocab }.into());
        }
        let context = Some(self.context_tokens);
        let max_tokens = room(context, prompt.len(), request.max_tokens, self.default_max_tokens)?;
        let demand = MemoryDemand::completions(0, prompt, max_tokens, request.n);
        if let Some(too_large) = self.admission.too_large(&demand)? {
            self.status.metrics.refused.add(1);
            return Err(ApiError::never_fits(&too_large));
        }
        Ok(max_tokens)
    }

    fn response_builder(
        &self,
        api: Api,
        app: &AppState,
        request: &ValidatedRequest,
    ) -> ResponseBuilder {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let number = self.next_request.load(Ordering::Relaxed);
        let prefix = if api == Api::Chat { "chatcmpl" } else { "cmpl" };
        ResponseBuilder {
            api,
            id: format!("{prefix}-{:x}{number:06x}", now.as_micros()),
            created: now.as_secs(),
            model: app.name.clone(),
            tokenizer: self.processor.tokenizer().clone(),
            prompt_tokens: request.prompts.iter().map(Prompt::len).sum(),
            completions: request.n * request.prompts.len(),
        }
    }

    /// Sends a request to the engine thread, prompt by prompt.
    ///
    /// # Errors
    /// A full queue.
    fn submit(
        &self,
        prepared: PreparedRequest,
    ) -> Result<UnboundedReceiver<EngineEvent>, ApiError> {
        let PreparedRequest { request, max_tokens, mut images, reservation } = prepared;
        if !self.status.enter_queue(request.prompts.len()) {
            self.status.metrics.refused.add(1);
            return Err(ApiError::queue_full());
        }
        let (sender, receiver) = unbounded_channel();
        let reservation = Arc::new(reservation);
        let commands = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
        for (index, (prompt, max_tokens)) in request.prompts.into_iter().zip(max_tokens).enumerate()
        {
            let request = EngineRequest {
                id: self.next_request.fetch_add(1, Ordering::Relaxed),
                first_index: index * request.n,
                prompt: Arc::new(prompt),
                n: request.n,
                images: std::mem::take(&mut images),
                reservation: Arc::clone(&reservation),
                max_tokens,
                sampling: request.sampling.clone(),
                stop: request.stop.clone(),
                ignore_eos: request.ignore_eos,
                events: sender.clone(),
                received: Instant::now(),
            };
            let sent = commands.send(EngineCommand::Submit(Box::new(request)));
            sent.map_err(|_| ApiError::internal("the engine has ended"))?;
        }
        Ok(receiver)
    }
}

async fn models(State(app): State<Arc<AppState>>) -> HandlerResult {
    let model = app.model()?;
    let created = app.started.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let entry = json!({
        "id": app.name, "object": "model", "created": created, "owned_by": "mlxcel",
        "context_length": model.context_tokens, "chat": model.processor.template().is_some(),
        "images": model.images.is_ok(),
    });
    Ok(json_response(
        StatusCode::OK,
        &json!({
            "object": "list", "data": [entry],
            "system": { "memory_total_bytes": app.total_memory_bytes },
        }),
    ))
}

async fn health(State(app): State<Arc<AppState>>) -> HandlerResult {
    if app.shutting_down.load(Ordering::SeqCst) {
        return Err(ApiError::shutting_down());
    }
    app.model()?;
    Ok(json_response(StatusCode::OK, &json!({ "status": "ok" })))
}

/// The chat page. It contains nothing of the model, and asks for the API key where there is one.
async fn page() -> Response {
    const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; \
        script-src 'unsafe-inline'; connect-src 'self'; img-src data:; base-uri 'none'; \
        form-action 'none'; frame-ancestors 'none'";
    let body = Body::from(include_str!("page.html"));
    let mut response = response(StatusCode::OK, "text/html; charset=utf-8", body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

async fn memory_route(State(app): State<Arc<AppState>>) -> HandlerResult {
    let value: Value = memory::budget(&app, app.model()?);
    Ok(json_response(StatusCode::OK, &value))
}

async fn metrics_route(State(app): State<Arc<AppState>>) -> HandlerResult {
    let text = metrics::text(app.model()?);
    Ok(response(StatusCode::OK, "text/plain; version=0.0.4", Body::from(text)))
}

async fn tokenize(State(app): State<Arc<AppState>>, request: Request) -> HandlerResult {
    let received = app.receive(request).await?;
    blocking(move || {
        let _reservation = received.reservation;
        let body: Tokenize = parse_json(&received.bytes)?;
        let tokenizer = app.model()?.processor.tokenizer();
        let tokens = match body.add_special {
            true => tokenizer.encode_prompt(&body.content)?,
            false => tokenizer.encode_verbatim(&body.content)?,
        };
        Ok(json_response(StatusCode::OK, &json!({ "tokens": tokens })))
    })
    .await
}

async fn detokenize(State(app): State<Arc<AppState>>, request: Request) -> HandlerResult {
    let received = app.receive(request).await?;
    blocking(move || {
        let _reservation = received.reservation;
        let body: Detokenize = parse_json(&received.bytes)?;
        let tokenizer = app.model()?.processor.tokenizer();
        if let Some(token) = body.tokens.iter().find(|t| tokenizer.vocabulary_form(**t).is_none()) {
            let message = format!("token {token} is not in the vocabulary");
            return Err(ApiError::parameter("tokens", message));
        }
        let content = tokenizer.decode(&body.tokens, SpecialTokens::Keep);
        Ok(json_response(StatusCode::OK, &json!({ "content": content })))
    })
    .await
}
