//! The HTTP server: OpenAI's API over one engine, batched, within a budget of bytes.
//!
//! Owns wire formats, admission, scheduling and the limits of connections. Every size is the
//! estimator's; arguments and logs' formats belong to the front end. One thread owns the model
//! ([`worker`]); connections run on another and talk to it through channels.

mod admission;
mod app;
mod error;
mod http;
mod images;
mod intake;
mod job;
mod memory;
mod metrics;
mod prefix;
mod prompt;
mod prompts;
mod reply;
mod request;
mod response;
mod routes;
mod scheduler;
mod sequence;
mod shared;
mod stream;
mod turns;
mod watch;
mod worker;

use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use mlxcel_estimator::{AvailableSource, KvMode, KvStorage, Machine};

use self::admission::Admission;
use self::app::{App, Served};
use self::intake::Intake;
use self::job::Command;
use self::scheduler::Scheduler;
use self::shared::Shared;
use self::watch::Watch;
use mlxcel_runtime::engine::{Engine, EngineConfig, ModelSource, NoProgress};
use mlxcel_runtime::memory::resident_bytes;
use mlxcel_runtime::preflight::ModelFootprint;
use mlxcel_runtime::vision::ImagePlacement;
use mlxcel_runtime::{Error, Processor, Result};

/// Time for clients to read what they were told at the end.
const READING_TIME: Duration = Duration::from_secs(3);

/// What a server is.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Where to listen; port 0 takes any that is free.
    pub address: SocketAddr,
    /// What clients call the model.
    pub model_name: String,
    /// How the engine computes and caches; its chunk is the largest.
    pub engine: EngineConfig,
    /// Answers at once.
    pub parallel: usize,
    /// Requests that may wait.
    pub max_queue_depth: usize,
    /// Tokens of a sequence, prompt and answer together.
    pub context_tokens: usize,
    /// Tokens of an answer where a request does not say.
    pub default_max_tokens: usize,
    /// Bytes of cached prefixes; 0 keeps none, `None` a quarter of what the weights leave.
    pub prompt_cache_bytes: Option<u64>,
    /// The key that clients must present.
    pub api_key: Option<String>,
    /// Largest body that is read.
    pub max_body_bytes: usize,
    /// How long a request's head may take, its body, and the next request of a connection.
    pub read_timeout: Duration,
    /// How long requests may go on after the first signal to end.
    pub shutdown_timeout: Duration,
}

/// What is served: a model and the machine whose available bytes are the limit, or why nothing is.
#[derive(Clone, Debug)]
pub enum Serving {
    /// A model.
    Model {
        /// Its files.
        source: ModelSource,
        /// Its sizes.
        sized: Box<ModelFootprint>,
        /// What it may use.
        machine: Box<Machine>,
    },
    /// Every model route answers 507 with this text.
    Refused {
        /// Why.
        message: String,
        /// What the machine has, bytes.
        total_memory_bytes: Option<u64>,
    },
}

/// Serves until SIGINT or SIGTERM; then finishes what runs, for as long as the configuration
/// says, and fails the rest. `ready` is told the address once requests are accepted.
///
/// # Errors
/// An address that cannot be listened on, a model that cannot be loaded.
pub fn serve(
    config: &ServerConfig,
    serving: Serving,
    ready: impl FnOnce(SocketAddr),
) -> Result<()> {
    let address = |source| Error::Io { path: config.address.to_string().into(), source };
    let listener = TcpListener::bind(config.address).map_err(address)?;
    listener.set_nonblocking(true).map_err(address)?;
    let bound = listener.local_addr().map_err(address)?;
    let (app, engine) = load(config, serving)?;
    let app = Arc::new(app);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(address)?;
    let served = runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener).map_err(address)?;
        ready(bound);
        let end = ended(Arc::clone(&app), config.shutdown_timeout);
        let patience = http::Patience {
            head: config.read_timeout,
            end: config.shutdown_timeout.saturating_add(READING_TIME),
        };
        http::accept(listener, routes::router(Arc::clone(&app)), end, patience).await;
        Ok(())
    });
    send(&app, Command::Stop);
    if let Some(engine) = engine
        && engine.join().is_err()
    {
        tracing::error!("the engine's thread panicked");
    }
    served
}

type Loaded = (App, Option<JoinHandle<()>>);

/// Loads what is served.
fn load(config: &ServerConfig, serving: Serving) -> Result<Loaded> {
    let (model, total_memory_bytes, thread) = match serving {
        Serving::Refused { message, total_memory_bytes } => {
            (Err(message), total_memory_bytes, None)
        }
        Serving::Model { source, sized, machine } => {
            let (served, thread) = start(config, source, *sized, *machine)?;
            let total = served.admission.total_memory_bytes();
            (Ok(served), total, Some(thread))
        }
    };
    let app = App {
        model,
        name: config.model_name.clone(),
        total_memory_bytes,
        api_key: config.api_key.clone(),
        max_body_bytes: config.max_body_bytes,
        read_timeout: config.read_timeout,
        ending: AtomicBool::new(false),
        started: SystemTime::now(),
    };
    Ok((app, thread))
}

/// Starts the engine's thread with the model.
fn start(
    config: &ServerConfig,
    source: ModelSource,
    sized: ModelFootprint,
    machine: Machine,
) -> Result<(Served, JoinHandle<()>)> {
    let text = Processor::load(&source)?;
    let weights = sized.weights.bytes;
    let quarter =
        machine.available_bytes.map_or(1 << 30, |bytes| bytes.saturating_sub(weights) / 4);
    let cache_bytes = config.prompt_cache_bytes.unwrap_or(quarter);
    let EngineConfig { kv_mode, prefill_chunk, .. } = config.engine;
    // A limit that somebody set is one for the whole process; what was measured as available comes
    // on top of what the process has.
    let resident = resident_bytes().unwrap_or(0);
    let (process_bytes, baseline_bytes) = match machine.available_source {
        AvailableSource::MemoryLimitVariable => (resident, 0),
        _ => (0, resident),
    };
    let storage = KvStorage { mode: kv_mode, dtype: config.engine.ops.dtype };
    let admission = Admission::new(sized, machine, storage, prefill_chunk, config.context_tokens);
    let admission = Arc::new(admission.beside_process(process_bytes));
    let intake = Intake::new(quarter);
    let shared = Arc::new(Shared::new(config.parallel, config.max_queue_depth, intake));
    let (tokenizer, engine_config) = (text.tokenizer().clone(), config.engine.clone());
    let (for_thread, shared_too) = (Arc::clone(&admission), Arc::clone(&shared));
    let watch = Watch::new(admission.limit_bytes(), baseline_bytes);
    let places = text.image_placeholders().map_err(|error| error.to_string());
    let places = places.and_then(|places| match kv_mode {
        // Blocks would be sealed within an image whose rows see each other.
        KvMode::Turbo4Delegated if places.placement() == ImagePlacement::InlineBidirectional => {
            Err(format!("the KV cache mode {kv_mode} takes no images: use another --kv-cache-mode"))
        }
        _ => Ok(()),
    });
    let (commands, thread, images) = worker::spawn(move || {
        let engine = Engine::load(&source, engine_config, &mut NoProgress)?;
        let images =
            places.and_then(|()| engine.preprocessor(&source).map_err(|error| error.to_string()));
        let scheduler =
            Scheduler::new(engine, tokenizer, for_thread, shared_too, watch, cache_bytes);
        Ok((scheduler, images))
    })?;
    let served = Served {
        text,
        images,
        admission,
        shared,
        commands: Mutex::new(commands),
        context: config.context_tokens,
        max_tokens: config.default_max_tokens,
        jobs: AtomicU64::new(1),
        baseline_bytes,
    };
    Ok((served, thread))
}

/// Completes at the first signal; from then on nothing new is taken. What still runs after
/// `timeout`, or at a second signal, fails.
async fn ended(app: Arc<App>, timeout: Duration) {
    signal().await;
    tracing::info!("ending: waiting for what runs");
    app.ending.store(true, Ordering::SeqCst);
    send(&app, Command::Drain);
    tokio::spawn(async move {
        tokio::select! {
            () = signal() => {}
            () = tokio::time::sleep(timeout) => {}
        }
        send(&app, Command::Stop);
    });
}

/// Tells the engine's thread something; one that has ended needs to be told nothing.
fn send(app: &App, command: Command) {
    if let Ok(served) = &app.model {
        let commands: &Sender<Command> =
            &served.commands.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = commands.send(command);
    }
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
