//! `mlxcel serve`: flags, logging and the memory check before the load. The server itself is a library.

use std::io::IsTerminal;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mlxcel_estimator::{Machine, VisionRule, Workload, format_bytes, parse_bytes, vision_rule};
use mlxcel_runtime::Processor;
use mlxcel_runtime::engine::{EngineConfig, ModelSource};
use mlxcel_runtime::loading::Residence;
use mlxcel_runtime::preflight::{
    self as checks, FitCheck, LoadRequest, ModelFootprint, Proposal, RefusalReason,
};
use mlxcel_server::{ServerConfig, Serving, serve};
use tracing_subscriber::filter::LevelFilter;

use crate::args::{Activations, ComputeArgs, KvArgs, ModelArgs, context_size_or_default};
use crate::preflight::{self, PreflightArgs};
use crate::terminal::{note, print};

/// Default of `--prefill-chunk`: short prompts and decoding wait for the pass of a long prompt.
const DEFAULT_CHUNK_TOKENS: usize = 128;
/// Default of `--max-body-bytes`; with images, the size of a photo in base64.
const DEFAULT_BODY_BYTES: u64 = 4 << 20;
const DEFAULT_BODY_BYTES_WITH_IMAGES: u64 = 32 << 20;

/// Arguments of `mlxcel serve`.
#[derive(clap::Args)]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Address to listen on; any but 127.0.0.1 accepts remote clients
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST), value_name = "IP")]
    host: IpAddr,
    /// Port to listen on; 0 picks a free one
    #[arg(long, default_value_t = 8080, value_name = "N")]
    port: u16,
    /// Model name in the API [default: the folder's name, or ORG/NAME]
    #[arg(short, long, value_name = "NAME")]
    alias: Option<String>,
    /// Context size in tokens per sequence, prompt and output together; 0 is the model's own [default:
    /// 8192, or the model's own if smaller]
    #[arg(short, long, value_name = "N")]
    ctx_size: Option<usize>,
    /// Maximum number of tokens to generate for requests that do not set one
    #[arg(short = 'n', long, alias = "n-predict", default_value_t = 512, value_name = "N")]
    max_tokens: usize,
    /// Maximum number of concurrent sequences
    #[arg(long, default_value_t = 8, value_name = "N")]
    parallel: usize,
    /// Maximum number of waiting requests; others are answered with status 503
    #[arg(long, default_value_t = 64, value_name = "N")]
    max_queue_depth: usize,
    /// Memory for cached prefixes of earlier prompts, such as 1GiB; 0 disables the cache [default: a
    /// quarter of the memory that the weights leave]
    #[arg(long, value_name = "SIZE", value_parser = cache_size)]
    prompt_cache_bytes: Option<u64>,
    /// API key that clients must send as `Authorization: Bearer KEY`
    #[arg(long, value_name = "KEY", conflicts_with = "api_key_file")]
    api_key: Option<String>,
    /// File with the API key
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Maximum size of a request body [default: 4MiB, or 32MiB for a vision model]
    #[arg(long, value_name = "SIZE")]
    #[arg(value_parser = |text: &str| parse_bytes("--max-body-bytes", text))]
    max_body_bytes: Option<u64>,
    /// Timeout in seconds for a request's head, its body, and the next request on a connection
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    read_timeout: u64,
    /// Seconds that running requests have to finish at shutdown
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    shutdown_timeout: u64,
    /// Exit with status 1 if a vision model is too large, instead of answering with status 507
    #[arg(long)]
    strict: bool,
    /// Log level: off, error, warn, info, debug, trace
    #[arg(long, default_value_t = LevelFilter::INFO, value_name = "LEVEL")]
    log_level: LevelFilter,
    /// Log as JSON
    #[arg(long)]
    log_json: bool,
    #[command(flatten)]
    kv: KvArgs,
    #[command(flatten)]
    compute: ComputeArgs,
    #[command(flatten)]
    preflight: PreflightArgs,
}

/// Parses a size; 0 needs no unit.
fn cache_size(text: &str) -> Result<u64, mlxcel_estimator::EstimatorError> {
    if text.trim() == "0" { Ok(0) } else { parse_bytes("--prompt-cache-bytes", text) }
}

impl ServeArgs {
    /// Rejects invalid values.
    fn check(&self) -> Result<()> {
        self.preflight.check()?;
        ensure!(self.parallel > 0, "--parallel must be at least 1");
        ensure!(self.max_tokens > 0, "--max-tokens must be at least 1");
        ensure!(self.read_timeout > 0, "--read-timeout must be at least 1");
        Ok(())
    }

    /// The model's name in the API.
    fn name(&self) -> String {
        match (&self.alias, &self.model.model) {
            (Some(alias), _) => alias.clone(),
            (None, Some(model)) => folder_name(model),
            (None, None) => "mlxcel-demo".to_owned(),
        }
    }

    fn api_key(&self) -> Result<Option<String>> {
        let key = match &self.api_key_file {
            Some(path) => {
                let text = std::fs::read_to_string(path);
                let text = text.with_context(|| format!("cannot read {}", path.display()))?;
                Some(text.trim().to_owned())
            }
            None => self.api_key.clone(),
        };
        ensure!(key.as_deref() != Some(""), "the API key is empty");
        Ok(key)
    }

    fn config(
        &self,
        engine: EngineConfig,
        context_tokens: usize,
        images: bool,
    ) -> Result<ServerConfig> {
        let default = if images { DEFAULT_BODY_BYTES_WITH_IMAGES } else { DEFAULT_BODY_BYTES };
        let max_body_bytes = self.max_body_bytes.unwrap_or(default);
        Ok(ServerConfig {
            address: SocketAddr::new(self.host, self.port),
            model_name: self.name(),
            engine,
            parallel: self.parallel,
            max_queue_depth: self.max_queue_depth,
            context_tokens,
            default_max_tokens: self.max_tokens,
            prompt_cache_bytes: self.prompt_cache_bytes,
            api_key: self.api_key()?,
            max_body_bytes: usize::try_from(max_body_bytes).unwrap_or(usize::MAX),
            read_timeout: Duration::from_secs(self.read_timeout),
            shutdown_timeout: Duration::from_secs(self.shutdown_timeout),
        })
    }

    fn start_logging(&self) {
        let lines = tracing_subscriber::fmt()
            .with_max_level(self.log_level)
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal())
            .with_target(false);
        if self.log_json { lines.json().init() } else { lines.init() }
    }
}

/// The folder's name if `model` is the path of a folder, else `model`.
fn folder_name(model: &str) -> String {
    let path = Path::new(model);
    match path.file_name() {
        Some(name) if path.is_dir() => name.to_string_lossy().into_owned(),
        _ => model.to_owned(),
    }
}

/// Result of the memory check.
enum Decision {
    /// Load and serve the model.
    Serve(Box<(ModelFootprint, Machine)>),
    /// Answer every request with status 507.
    Refuse(String),
    /// Exit with status 1; the reason has been printed.
    Exit,
}

/// Runs the command.
pub(crate) fn run(args: &ServeArgs) -> Result<ExitCode> {
    args.check()?;
    args.start_logging();
    let source = args.model.source()?;
    let engine = args.compute.engine(args.kv.mode()?, Activations::GENERATING)?;
    let prefill_chunk = args.compute.chunk.tokens(DEFAULT_CHUNK_TOKENS)?;
    let weights = args.compute.residence.or(Residence::Auto);
    let engine = EngineConfig { prefill_chunk, weights, ..engine };
    let sized = ModelFootprint::read(&source)?;
    let own_context = sized.spec.max_context_tokens.and_then(|tokens| usize::try_from(tokens).ok());
    let context = context_size_or_default(args.ctx_size, own_context)?;
    let config = args.config(engine, context, sized.spec.vision.is_some())?;
    let total_memory_bytes = checks::this_machine(None)?.total_bytes;
    let serving = match decide(args, &config, sized)? {
        Decision::Exit => return Ok(ExitCode::FAILURE),
        Decision::Refuse(message) => Serving::Refused { message, total_memory_bytes },
        Decision::Serve(found) => {
            let (sized, machine) = *found;
            announce(&source, &config, &machine)?;
            Serving::Model { source, sized: Box::new(sized), machine: Box::new(machine) }
        }
    };
    serve(&config, serving, |address| {
        let _ = print(&format!("listening on http://{address}\n"));
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Prints the model and the main settings on stderr.
fn announce(source: &ModelSource, config: &ServerConfig, machine: &Machine) -> Result<()> {
    if Processor::load(source)?.template().is_none() {
        note("the model has no chat template: only /v1/completions is available");
    }
    let limit = machine.available_bytes.map_or("no limit".to_owned(), format_bytes);
    note(&format!(
        "model {}, KV cache {}, {} x {} tokens, memory {limit}",
        config.model_name, config.engine.kv_mode, config.parallel, config.context_tokens
    ));
    Ok(())
}

/// Checks the load with all sequences at their full context. Requests are admitted as memory allows, so
/// a load that does not fit this way is refused only with `--estimate-memory`.
fn decide(args: &ServeArgs, config: &ServerConfig, sized: ModelFootprint) -> Result<Decision> {
    let machine = checks::this_machine(None)?;
    let workload = Workload::uniform(config.context_tokens as u64, config.parallel as u64)
        .with_kv_mode(config.engine.kv_mode)
        .with_dtype(config.engine.ops.dtype)
        .with_prefill_chunk(config.engine.prefill_chunk as u64);
    let load = LoadRequest {
        workload,
        min_context_tokens: 1,
        vision_threshold: args.preflight.vision_threshold,
        policy: args.preflight.policy(),
    };
    if args.preflight.estimate_memory {
        eprint!("{}", sized.report(&load.workload, &machine)?.to_text());
    }
    let rule = vision_rule(sized.weights.bytes, machine.total_bytes, false, load.vision_threshold);
    if let VisionRule::Warn(text) = rule {
        tracing::warn!("{text}");
    }
    match checks::check(&sized, &load, &machine)? {
        FitCheck::Fits => {}
        FitCheck::Warning(text) => tracing::warn!("{text} with all sequences at full context"),
        FitCheck::Refused(refusal) if refusal.reason == RefusalReason::Vision && !args.strict => {
            tracing::error!("{}: requests are answered with status 507", refusal.message);
            return Ok(Decision::Refuse(refusal.message));
        }
        FitCheck::Refused(refusal) => {
            preflight::refuse(
                &args.preflight,
                &|proposal| proposed_command(args, config, proposal, &load),
                &refusal,
            )?;
            return Ok(Decision::Exit);
        }
    }
    let mut machine = machine;
    if args.preflight.force {
        machine.available_bytes = None;
    }
    Ok(Decision::Serve(Box::new((sized, machine))))
}

/// The command line that follows a proposal.
fn proposed_command(
    args: &ServeArgs,
    config: &ServerConfig,
    proposal: &Proposal,
    load: &LoadRequest,
) -> String {
    let context = proposal.apply(&load.workload).context_tokens();
    let command = preflight::command("serve", &args.model, &config.engine, proposal);
    format!("{command} --ctx-size {context} --parallel {}", args.parallel)
}
