//! The addresses and what they answer.

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
use serde_json::{Value, json};
use subtle::ConstantTimeEq;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::admission::Demand;
use super::app::{App, Served};
use super::error::ApiError;
use super::http::read_body;
use super::images::{Album, Picture};
use super::intake::{Ticket, Wait};
use super::job::{Command, Event, Job};
use super::prompt::Prompt;
use super::reply::{Gathered, Reply};
use super::request::{Api, Asked, Detokenize, Tokenize, parse_json};
use super::response::{json_response, response};
use super::stream::EventStream;
use super::{memory, metrics, request};
use mlxcel_runtime::engine::room;
use mlxcel_runtime::text::SpecialTokens;

/// What a body takes while it is understood, in its own length: the text, what is read from it, and
/// tokens. A body of a great many tiny values takes more for a moment, which the watch sees.
const UNDERSTANDING: u64 = 4;

type Reaction = Result<Response, ApiError>;

/// The router.
pub(super) fn router(app: Arc<App>) -> Router {
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

/// Lets through who has the key, compared in constant time.
async fn authorize(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    if let Some(key) = &app.api_key {
        let given = request.headers().get(header::AUTHORIZATION);
        let given = given.and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
        let equal = given.is_some_and(|given| bool::from(given.ct_eq(key.as_bytes())));
        if !equal {
            return ApiError::unauthorized().into_response();
        }
    }
    next.run(request).await
}

impl App {
    fn served(&self) -> Result<&Served, ApiError> {
        self.model.as_ref().map_err(|message| ApiError::not_loaded(message))
    }

    /// The body of a request, and what it may take.
    async fn read(&self, request: Request) -> Result<(Vec<u8>, Ticket), ApiError> {
        let shared = &self.served()?.shared;
        let mut ticket = shared.intake.ticket();
        let most = shared.intake.limit_bytes() / UNDERSTANDING;
        let limit = self.max_body_bytes.min(usize::try_from(most).unwrap_or(usize::MAX));
        let time = self.read_timeout;
        let read = async {
            let bytes = read_body(request, limit, time, &mut ticket).await?;
            let understanding = (bytes.len() as u64).saturating_mul(UNDERSTANDING);
            ticket.wait_for(understanding, time).await?;
            Ok(bytes)
        };
        match read.await {
            Ok(bytes) => Ok((bytes, ticket)),
            Err(error) => {
                shared.metrics.refused.add(1);
                Err(error)
            }
        }
    }

    /// Fails for another model than the one that is served.
    fn check_name(&self, name: Option<&str>) -> Result<(), ApiError> {
        match name {
            Some(other) if other != self.name => Err(ApiError::unknown_model(other, &self.name)),
            _ => Ok(()),
        }
    }
}

async fn chat(State(app): State<Arc<App>>, request: Request) -> Reaction {
    complete(app, request, Api::Chat).await
}

async fn completions(State(app): State<Arc<App>>, request: Request) -> Reaction {
    complete(app, request, Api::Completions).await
}

/// Both APIs: read, understand, submit, answer.
async fn complete(app: Arc<App>, request: Request, api: Api) -> Reaction {
    let (bytes, ticket) = app.read(request).await?;
    let worker = Arc::clone(&app);
    // Templates, tokenizers and images take a while; other connections must not wait.
    let (client, wait) = Wait::new(app.read_timeout);
    let ready = blocking(move || worker.understand(api, bytes, ticket, &wait)).await?;
    drop(client);
    let served = app.served()?;
    if app.ending.load(Ordering::SeqCst) {
        return Err(ApiError::shutting_down());
    }
    let reply = served.reply(api, &app, &ready.asked);
    let (stream, include_usage) = (ready.asked.stream, ready.asked.include_usage);
    let mut events = served.submit(ready)?;
    let gone = || ApiError::internal("the engine has ended");
    let first = match events.recv().await.ok_or_else(gone)? {
        Event::Failed(error) => return Err(error),
        event => event,
    };
    if stream {
        return Ok(streamed(EventStream::new(reply, first, events, include_usage)));
    }
    let mut gathered = Gathered::new(reply.answers);
    gathered.take(first);
    while !gathered.complete() {
        match events.recv().await.ok_or_else(gone)? {
            Event::Failed(error) => return Err(error),
            event => gathered.take(event),
        }
    }
    Ok(json_response(StatusCode::OK, &reply.whole(&gathered)))
}

fn streamed(body: EventStream) -> Response {
    let mut response = response(StatusCode::OK, "text/event-stream", Body::new(body));
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

/// A request that may run.
struct Ready {
    asked: Asked,
    /// Tokens of each prompt's answers at most.
    max_tokens: Vec<usize>,
    /// The images of the one prompt that has any.
    pictures: Vec<Picture>,
    ticket: Ticket,
}

impl App {
    /// Makes a request of a body.
    fn understand(
        &self,
        api: Api,
        bytes: Vec<u8>,
        mut ticket: Ticket,
        wait: &Wait,
    ) -> Result<Ready, ApiError> {
        let served = self.served()?;
        let mut body = request::Body::parse(&bytes)?;
        drop(bytes);
        self.check_name(body.model.as_deref())?;
        let files = body.take_images()?;
        let preprocessor = match &served.images {
            Err(reason) if !files.is_empty() => {
                return Err(ApiError::parameter("messages", reason));
            }
            images => images.as_ref().ok(),
        };
        let album = Album::decode(files, served.shared.intake.ticket(), wait)?;
        let asked = body.understand(api, &served.text, &album)?;
        drop(body);
        let max_tokens = served.check(&asked)?;
        let prepare = |preprocessor| album.prepare(preprocessor, wait);
        let pictures = preprocessor.map(prepare).transpose()?;
        let pictures = pictures.unwrap_or_default();
        // The prompt and the history that begins with it.
        let tokens: usize = asked.prompts.iter().map(|prompt| prompt.len() * asked.n).sum();
        ticket.block_for((2 * tokens * size_of::<u32>()) as u64, wait)?;
        Ok(Ready { asked, max_tokens, pictures, ticket })
    }
}

/// Runs what takes a while beside the connections.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(ApiError::internal(error.to_string())))
}

impl Served {
    /// How many tokens each prompt's answers may have.
    ///
    /// # Errors
    /// Tokens that do not exist, a prompt beyond the context, a request that never fits.
    fn check(&self, asked: &Asked) -> Result<Vec<usize>, ApiError> {
        if asked.n > self.shared.parallel {
            let parallel = self.shared.parallel;
            let message = format!("`n` is at most {parallel} here (--parallel)");
            return Err(ApiError::parameter("n", message));
        }
        let vocab = self.admission.vocabulary();
        let rooms = asked.prompts.iter().map(|prompt| {
            if let Some(token) = prompt.token_from(vocab) {
                let vocab = usize::try_from(vocab).unwrap_or(usize::MAX);
                return Err(mlxcel_runtime::Error::TokenOutOfRange { token, vocab }.into());
            }
            let (context, wanted) = (Some(self.context), asked.max_tokens);
            let most = room(context, prompt.len(), wanted, self.max_tokens)?;
            let wanted = Demand::answers(0, prompt, most, asked.n);
            match self.admission.too_large(&wanted).map_err(mlxcel_runtime::Error::from)? {
                Some(too_large) => {
                    self.shared.metrics.refused.add(1);
                    Err(ApiError::never_fits(&too_large))
                }
                None => Ok(most),
            }
        });
        rooms.collect()
    }

    fn reply(&self, api: Api, app: &App, asked: &Asked) -> Reply {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let number = self.jobs.load(Ordering::Relaxed);
        let prefix = if api == Api::Chat { "chatcmpl" } else { "cmpl" };
        Reply {
            api,
            id: format!("{prefix}-{:x}{number:06x}", now.as_micros()),
            created: now.as_secs(),
            model: app.name.clone(),
            tokenizer: self.text.tokenizer().clone(),
            prompt_tokens: asked.prompts.iter().map(Prompt::len).sum(),
            answers: asked.n * asked.prompts.len(),
        }
    }

    /// Hands a request to the engine's thread, a job per prompt.
    ///
    /// # Errors
    /// A full queue.
    fn submit(&self, ready: Ready) -> Result<UnboundedReceiver<Event>, ApiError> {
        let Ready { asked, max_tokens, mut pictures, ticket } = ready;
        if !self.shared.enter_queue(asked.prompts.len()) {
            self.shared.metrics.refused.add(1);
            return Err(ApiError::queue_full());
        }
        let (sender, receiver) = unbounded_channel();
        let ticket = Arc::new(ticket);
        let commands = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
        for (index, (prompt, max_tokens)) in asked.prompts.into_iter().zip(max_tokens).enumerate() {
            let job = Job {
                id: self.jobs.fetch_add(1, Ordering::Relaxed),
                first_answer: index * asked.n,
                prompt,
                n: asked.n,
                pictures: std::mem::take(&mut pictures),
                ticket: Arc::clone(&ticket),
                max_tokens,
                sampling: asked.sampling.clone(),
                stop: asked.stop.clone(),
                ignore_eos: asked.ignore_eos,
                events: sender.clone(),
                since: Instant::now(),
            };
            let sent = commands.send(Command::Submit(Box::new(job)));
            sent.map_err(|_| ApiError::internal("the engine has ended"))?;
        }
        Ok(receiver)
    }
}

async fn models(State(app): State<Arc<App>>) -> Reaction {
    let served = app.served()?;
    let created = app.started.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let model = json!({
        "id": app.name, "object": "model", "created": created, "owned_by": "mlxcel",
        "context_length": served.context, "chat": served.text.template().is_some(),
        "images": served.images.is_ok(),
    });
    Ok(json_response(
        StatusCode::OK,
        &json!({
            "object": "list", "data": [model],
            "system": { "memory_total_bytes": app.total_memory_bytes },
        }),
    ))
}

async fn health(State(app): State<Arc<App>>) -> Reaction {
    if app.ending.load(Ordering::SeqCst) {
        return Err(ApiError::shutting_down());
    }
    app.served()?;
    Ok(json_response(StatusCode::OK, &json!({ "status": "ok" })))
}

/// The page: it has nothing of the model's, and asks for the key where there is one.
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

async fn memory_route(State(app): State<Arc<App>>) -> Reaction {
    let value: Value = memory::budget(&app, app.served()?);
    Ok(json_response(StatusCode::OK, &value))
}

async fn metrics_route(State(app): State<Arc<App>>) -> Reaction {
    let text = metrics::text(app.served()?);
    Ok(response(StatusCode::OK, "text/plain; version=0.0.4", Body::from(text)))
}

async fn tokenize(State(app): State<Arc<App>>, request: Request) -> Reaction {
    let (bytes, ticket) = app.read(request).await?;
    blocking(move || {
        let _held = ticket;
        let body: Tokenize = parse_json(&bytes)?;
        let tokenizer = app.served()?.text.tokenizer();
        let tokens = match body.add_special {
            true => tokenizer.encode_prompt(&body.content),
            false => tokenizer.encode_verbatim(&body.content),
        };
        let tokens = tokens.map_err(mlxcel_runtime::Error::from)?;
        Ok(json_response(StatusCode::OK, &json!({ "tokens": tokens })))
    })
    .await
}

async fn detokenize(State(app): State<Arc<App>>, request: Request) -> Reaction {
    let (bytes, ticket) = app.read(request).await?;
    blocking(move || {
        let _held = ticket;
        let body: Detokenize = parse_json(&bytes)?;
        let tokenizer = app.served()?.text.tokenizer();
        if let Some(token) = body.tokens.iter().find(|t| tokenizer.vocabulary_form(**t).is_none()) {
            let message = format!("token {token} is not in the vocabulary");
            return Err(ApiError::parameter("tokens", message));
        }
        let content = tokenizer.decode(&body.tokens, SpecialTokens::Keep);
        Ok(json_response(StatusCode::OK, &json!({ "content": content })))
    })
    .await
}
