//! HTTP server for OpenAI's API over one engine, with continuous batching within a memory budget.
//!
//! Owns wire formats, admission, scheduling and the limits of connections. Sizes are the
//! estimator's; arguments and log formats belong to the front end. One thread owns the model
//! ([`engine_thread`]); connections run on another and talk to it through channels ([`messages`]).

mod admission;
mod app;
mod completions;
mod engine_thread;
mod error;
mod http;
mod images;
mod memory;
mod memory_watch;
mod messages;
mod metrics;
mod policy;
mod prefix_cache;
mod prompt;
mod prompt_field;
mod request;
mod request_budget;
mod response;
mod routes;
mod scheduler;
mod sequence;
mod status;
mod stream;
mod worker;

use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use mlxcel_estimator::{AvailableSource, KvMode, KvStorage, Machine};
use mlxcel_runtime::engine::{Engine, EngineConfig, ModelSource, NoProgress};
use mlxcel_runtime::memory::resident_bytes;
use mlxcel_runtime::preflight::ModelFootprint;
use mlxcel_runtime::vision::ImagePlacement;
use mlxcel_runtime::{Error, Processor, Result};

use self::admission::MemoryAdmission;
use self::app::{AppState, LoadedModel};
use self::engine_thread::EngineThread;
use self::memory_watch::MemoryWatch;
use self::messages::EngineCommand;
use self::request_budget::RequestBudget;
use self::status::EngineStatus;
use self::worker::Worker;

/// Prompt cache and request budget where nothing limits memory.
const UNLIMITED_CACHE_BYTES: u64 = 1 << 30;

/// Additional time for clients to read their last response at shutdown.
const LAST_READ_TIMEOUT: Duration = Duration::from_secs(3);

/// Configuration of a server.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Address to listen on; port 0 takes any free one.
    pub address: SocketAddr,
    /// Name of the model in the API.
    pub model_name: String,
    /// Computation and caches; the prefill chunk is an upper limit.
    pub engine: EngineConfig,
    /// Maximum number of completions at once.
    pub parallel: usize,
    /// Maximum number of waiting requests.
    pub max_queue_depth: usize,
    /// Maximum length of a sequence, prompt and completion together.
    pub context_tokens: usize,
    /// Maximum length of a completion if a request states none.
    pub default_max_tokens: usize,
    /// Size of the prompt cache; 0 disables it, `None` is a quarter of the memory that the weights
    /// leave.
    pub prompt_cache_bytes: Option<u64>,
    /// API key that clients must present.
    pub api_key: Option<String>,
    /// Maximum size of a request body.
    pub max_body_bytes: usize,
    /// Time limit for the head of a request, for its body, and for the next request of a connection.
    pub read_timeout: Duration,
    /// Time that requests may continue after the first signal.
    pub shutdown_timeout: Duration,
}

/// A model to serve on a machine whose available bytes are the limit, or the reason why none is.
#[derive(Clone, Debug)]
pub enum Serving {
    /// A model.
    Model {
        /// Files of the model.
        source: ModelSource,
        /// Sizes of the model.
        sized: Box<ModelFootprint>,
        /// Memory that it may use.
        machine: Box<Machine>,
    },
    /// No model: its routes respond with 507 and this message.
    Refused {
        /// Reason of the refusal.
        message: String,
        /// Memory of the machine.
        total_memory_bytes: Option<u64>,
    },
}

/// Serves until SIGINT or SIGTERM, then finishes running requests within the shutdown timeout and
/// fails the rest. `ready` receives the address once requests are accepted.
///
/// # Errors
/// An address that cannot be listened on, a model that cannot be loaded.
pub fn serve(
    config: &ServerConfig,
    serving: Serving,
    ready: impl FnOnce(SocketAddr),
) -> Result<()> {
    let failed = |source| Error::Io { path: config.address.to_string().into(), source };
    let listener = TcpListener::bind(config.address).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    let (app, engine) = load(config, serving)?;
    let app = Arc::new(app);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(failed)?;
    let served = runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener).map_err(failed)?;
        ready(bound);
        let shutdown = shutdown_started(Arc::clone(&app), config.shutdown_timeout);
        let timeouts = http::ConnectionTimeouts {
            head: config.read_timeout,
            shutdown: config.shutdown_timeout.saturating_add(LAST_READ_TIMEOUT),
        };
        http::accept(listener, routes::router(Arc::clone(&app)), shutdown, timeouts).await;
        Ok(())
    });
    app.send(EngineCommand::Stop);
    if let Some(engine) = engine
        && engine.join().is_err()
    {
        tracing::error!("the engine thread panicked");
    }
    served
}

/// Loads the model, if there is one to serve.
fn load(config: &ServerConfig, serving: Serving) -> Result<(AppState, Option<JoinHandle<()>>)> {
    let (model, total_memory_bytes, thread) = match serving {
        Serving::Refused { message, total_memory_bytes } => {
            (Err(message), total_memory_bytes, None)
        }
        Serving::Model { source, sized, machine } => {
            let (model, thread) = start(config, source, *sized, *machine)?;
            let total = model.admission.total_memory_bytes();
            (Ok(model), total, Some(thread))
        }
    };
    let app = AppState {
        model,
        name: config.model_name.clone(),
        total_memory_bytes,
        api_key: config.api_key.clone(),
        max_body_bytes: config.max_body_bytes,
        read_timeout: config.read_timeout,
        shutting_down: AtomicBool::new(false),
        started: SystemTime::now(),
    };
    Ok((app, thread))
}

/// Starts the engine thread with a model.
fn start(
    config: &ServerConfig,
    source: ModelSource,
    sized: ModelFootprint,
    machine: Machine,
) -> Result<(LoadedModel, JoinHandle<()>)> {
    let processor = Processor::load(&source)?;
    let weights_bytes = sized.weights.bytes;
    let quarter_bytes = machine
        .available_bytes
        .map_or(UNLIMITED_CACHE_BYTES, |bytes| bytes.saturating_sub(weights_bytes) / 4);
    let cache_bytes = config.prompt_cache_bytes.unwrap_or(quarter_bytes);
    // A limit that was set is one for the whole process; memory that was measured as available is
    // available in addition to what the process holds.
    let resident = resident_bytes().unwrap_or(0);
    let (process_bytes, baseline_bytes) = match machine.available_source {
        AvailableSource::MemoryLimitVariable => (resident, 0),
        _ => (0, resident),
    };
    let kv_mode = config.engine.kv_mode;
    let storage = KvStorage { mode: kv_mode, dtype: config.engine.ops.dtype };
    let chunk_tokens = config.engine.prefill_chunk;
    let admission =
        MemoryAdmission::new(sized, machine, storage, chunk_tokens, config.context_tokens);
    let admission = Arc::new(admission.with_process_bytes(process_bytes));
    let request_budget = RequestBudget::new(quarter_bytes);
    let status =
        Arc::new(EngineStatus::new(config.parallel, config.max_queue_depth, request_budget));
    let watch = MemoryWatch::new(admission.limit_bytes(), baseline_bytes);
    let takes_images = takes_images(&processor, kv_mode);

    let tokenizer = processor.tokenizer().clone();
    let engine_config = config.engine.clone();
    let thread_admission = Arc::clone(&admission);
    let thread_status = Arc::clone(&status);
    let EngineThread { commands, thread, loaded: images } = engine_thread::spawn(move || {
        let engine = Engine::load(&source, engine_config, &mut NoProgress)?;
        let images = takes_images
            .and_then(|()| engine.preprocessor(&source).map_err(|error| error.to_string()));
        let worker =
            Worker::new(engine, tokenizer, thread_admission, thread_status, watch, cache_bytes)?;
        Ok((worker, images))
    })?;
    let model = LoadedModel {
        processor,
        images,
        admission,
        status,
        commands: Mutex::new(commands),
        context_tokens: config.context_tokens,
        default_max_tokens: config.default_max_tokens,
        next_request: AtomicU64::new(1),
        baseline_bytes,
    };
    Ok((model, thread))
}

/// Checks that prompts of the model can have images in this cache mode.
///
/// # Errors
/// The reason, for clients.
fn takes_images(processor: &Processor, kv_mode: KvMode) -> std::result::Result<(), String> {
    let placeholders = processor.image_placeholders().map_err(|error| error.to_string())?;
    match kv_mode {
        // Blocks would be sealed within an image whose rows see each other.
        KvMode::Turbo4Delegated
            if placeholders.placement() == ImagePlacement::InlineBidirectional =>
        {
            Err(format!("the KV cache mode {kv_mode} takes no images: use another --kv-cache-mode"))
        }
        _ => Ok(()),
    }
}

/// Completes at the first signal; from then on no request is accepted. Requests that still run after
/// `timeout`, or at a second signal, fail.
async fn shutdown_started(app: Arc<AppState>, timeout: Duration) {
    signal().await;
    tracing::info!("shutting down: waiting for running requests");
    app.shutting_down.store(true, Ordering::SeqCst);
    app.send(EngineCommand::Drain);
    tokio::spawn(async move {
        tokio::select! {
            () = signal() => {}
            () = tokio::time::sleep(timeout) => {}
        }
        app.send(EngineCommand::Stop);
    });
}

/// The next SIGINT or SIGTERM.
async fn signal() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let Ok(mut terminate) = signal(SignalKind::terminate()) {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminate.recv() => {}
            }
            return;
        }
    }
    let _ = tokio::signal::ctrl_c().await;
}

/// Runs `body` on the only thread of the tests that owns MLX, and fails as it does.
#[cfg(test)]
fn on_engine(body: impl FnOnce() + Send + 'static) {
    use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
    use std::sync::LazyLock;
    use std::sync::mpsc::{Sender, channel};

    type Task = Box<dyn FnOnce() + Send>;
    static ENGINE: LazyLock<Mutex<Sender<Task>>> = LazyLock::new(|| {
        let (tasks, queue) = channel::<Task>();
        std::thread::spawn(move || queue.into_iter().for_each(|task| task()));
        Mutex::new(tasks)
    });
    let (done, outcome) = channel();
    let task = Box::new(move || done.send(catch_unwind(AssertUnwindSafe(body))).unwrap());
    ENGINE.lock().unwrap().send(task).unwrap();
    if let Err(panic) = outcome.recv().unwrap() {
        resume_unwind(panic);
    }
}
