//! `mlxcel serve`: flags, logging and the check before the load; the server is the runtime's.

use std::io::IsTerminal;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use mlxcel_estimator::{Machine, VisionRule, Workload, format_bytes, parse_bytes, vision_rule};
use mlxcel_runtime::ModelText;
use mlxcel_runtime::engine::{EngineConfig, ModelSource};
use mlxcel_runtime::loading::Residence;
use mlxcel_runtime::preflight::{self as checks, Load, Outcome, Reason, Sized};
use mlxcel_server::{ServerConfig, Serving, serve};
use tracing_subscriber::filter::LevelFilter;

use crate::args::{Activations, ComputeArgs, KvArgs, ModelArgs};
use crate::preflight::{self, PreflightArgs};
use crate::terminal::{note, print};

/// Prompt tokens per pass: a short question and all answers wait for the pass of a long prompt.
const DEFAULT_CHUNK_TOKENS: usize = 128;
/// Largest body of a request, and for a model with an image encoder: a photo as base64.
const DEFAULT_BODY_BYTES: u64 = 4 << 20;
const DEFAULT_BODY_BYTES_WITH_IMAGES: u64 = 32 << 20;
/// The context where `--ctx-size` is 0.
const DEFAULT_CONTEXT_TOKENS: usize = 8192;

/// Arguments of `mlxcel serve`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Address to listen on; anything but 127.0.0.1 lets others in
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST), value_name = "IP")]
    host: IpAddr,
    /// Port to listen on; 0 takes one that is free
    #[arg(long, default_value_t = 8080, value_name = "N")]
    port: u16,
    /// What clients call the model [default: the folder's name, or ORG/NAME]
    #[arg(short, long, value_name = "NAME")]
    alias: Option<String>,
    /// Tokens of a sequence, prompt and answer together; 0 is 8192, or the model's context if less
    #[arg(short, long, default_value_t = 0, value_name = "N")]
    ctx_size: usize,
    /// Tokens of an answer where a request does not say
    #[arg(short = 'n', long, alias = "n-predict", default_value_t = 512, value_name = "N")]
    max_tokens: usize,
    /// Answers at once
    #[arg(long, default_value_t = 8, value_name = "N")]
    parallel: usize,
    /// Requests that may wait; more are answered 503
    #[arg(long, default_value_t = 64, value_name = "N")]
    max_queue_depth: usize,
    /// Memory for prefixes of earlier prompts, such as 1GiB; 0 keeps none [default: a quarter of
    /// what the weights leave]
    #[arg(long, value_name = "SIZE", value_parser = cache_size)]
    prompt_cache_bytes: Option<u64>,
    /// Key that clients must send as `Authorization: Bearer KEY`
    #[arg(long, value_name = "KEY", conflicts_with = "api_key_file")]
    api_key: Option<String>,
    /// File that holds the key
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Largest body of a request [default: 4MiB, or 32MiB for a vision model]
    #[arg(long, value_name = "SIZE")]
    #[arg(value_parser = |text: &str| parse_bytes("--max-body-bytes", text))]
    max_body_bytes: Option<u64>,
    /// Seconds for a request's head, for its body, and for the next request of a connection
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    read_timeout: u64,
    /// Seconds for what runs when the server is told to end
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    shutdown_timeout: u64,
    /// Exit with 1 where a vision model is too large, instead of answering 507
    #[arg(long)]
    strict: bool,
    /// What is logged: off, error, warn, info, debug, trace
    #[arg(long, default_value_t = LevelFilter::INFO, value_name = "LEVEL")]
    log_level: LevelFilter,
    /// Log JSON
    #[arg(long)]
    log_json: bool,
    #[command(flatten)]
    kv: KvArgs,
    #[command(flatten)]
    compute: ComputeArgs,
    #[command(flatten)]
    preflight: PreflightArgs,
}

/// A size, or 0.
fn cache_size(text: &str) -> Result<u64, mlxcel_estimator::EstimatorError> {
    if text.trim() == "0" { Ok(0) } else { parse_bytes("--prompt-cache-bytes", text) }
}

impl Args {
    /// Fails for values that mean nothing.
    fn check(&self) -> Result<()> {
        self.preflight.check()?;
        ensure!(self.parallel > 0, "--parallel must be at least 1");
        ensure!(self.max_tokens > 0, "--max-tokens must be at least 1");
        ensure!(self.read_timeout > 0, "--read-timeout must be at least 1");
        Ok(())
    }

    /// Tokens of a sequence; never more than the model's own context.
    fn context(&self, most: Option<usize>) -> Result<usize> {
        match (self.ctx_size, most) {
            (0, most) => Ok(DEFAULT_CONTEXT_TOKENS.min(most.unwrap_or(usize::MAX))),
            (wanted, Some(most)) if wanted > most => {
                bail!("--ctx-size {wanted} exceeds the model's context of {most} tokens")
            }
            (wanted, _) => Ok(wanted),
        }
    }

    /// What clients call the model.
    fn name(&self) -> String {
        let folder = |path: &str| {
            let name = Path::new(path).file_name().filter(|_| Path::new(path).is_dir());
            name.map_or_else(|| path.to_owned(), |name| name.to_string_lossy().into_owned())
        };
        let typed = self.model.model.as_deref().map(folder);
        self.alias.clone().or(typed).unwrap_or_else(|| "mlxcel-demo".to_owned())
    }

    fn api_key(&self) -> Result<Option<String>> {
        let key = match &self.api_key_file {
            Some(path) => {
                let text = std::fs::read_to_string(path);
                let text = text.with_context(|| path.display().to_string())?;
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
        let usual = if images { DEFAULT_BODY_BYTES_WITH_IMAGES } else { DEFAULT_BODY_BYTES };
        let max_body_bytes = self.max_body_bytes.unwrap_or(usual);
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

/// What the check before the load says.
enum Decision {
    /// Serve it.
    Serve(Box<(Sized, Machine)>),
    /// Answer 507.
    Refuse(String),
    /// It was printed why not: exit with 1.
    Exit,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    args.check()?;
    args.start_logging();
    let source = args.model.source()?;
    let engine = args.compute.engine(args.kv.mode()?, Activations::GENERATING)?;
    let prefill_chunk = args.compute.chunk.tokens(DEFAULT_CHUNK_TOKENS)?;
    let weights = args.compute.residence.or(Residence::Auto);
    let engine = EngineConfig { prefill_chunk, weights, ..engine };
    let sized = Sized::read(&source)?;
    let most = sized.spec.max_context_tokens.and_then(|tokens| usize::try_from(tokens).ok());
    let context = args.context(most)?;
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

/// Says what is about to be loaded and how.
fn announce(source: &ModelSource, config: &ServerConfig, machine: &Machine) -> Result<()> {
    if ModelText::load(source)?.template().is_none() {
        note("the model has no chat template: only /v1/completions will answer");
    }
    let limit = machine.available_bytes.map_or("no limit".to_owned(), format_bytes);
    note(&format!(
        "model {}, KV cache {}, {} x {} tokens, memory {limit}",
        config.model_name, config.engine.kv_mode, config.parallel, config.context_tokens
    ));
    Ok(())
}

/// Checks the load with every answer at its longest. What does not fit at once is admitted as it
/// fits, so that only `--estimate-memory` refuses it.
fn decide(args: &Args, config: &ServerConfig, sized: Sized) -> Result<Decision> {
    let machine = checks::this_machine(None)?;
    let workload = Workload::uniform(config.context_tokens as u64, config.parallel as u64)
        .with_kv_mode(config.engine.kv_mode)
        .with_dtype(config.engine.ops.dtype)
        .with_prefill_chunk(config.engine.prefill_chunk as u64);
    let load = Load {
        workload,
        least_context_tokens: 1,
        vision_threshold: args.preflight.vision_threshold,
        policy: args.preflight.policy(),
    };
    if args.preflight.estimate_memory {
        eprint!("{}", sized.report(&load.workload, &machine)?.to_text());
    }
    let (total, threshold) = (machine.total_bytes, load.vision_threshold);
    if let VisionRule::Warn(text) = vision_rule(sized.weights.bytes, total, false, threshold) {
        tracing::warn!("{text}");
    }
    match checks::check(&sized, &load, &machine)? {
        Outcome::Clear => {}
        Outcome::Warned(text) => tracing::warn!("{text} with every answer at its longest"),
        Outcome::Refused(refusal) if refusal.reason == Reason::Vision && !args.strict => {
            tracing::error!("{}: every model route answers 507", refusal.message);
            return Ok(Decision::Refuse(refusal.message));
        }
        Outcome::Refused(refusal) => {
            let command = |proposal: &_| {
                let context = checks::Proposal::apply(proposal, &load.workload).context_tokens();
                let command = preflight::command("serve", &args.model, &config.engine, proposal);
                format!("{command} --ctx-size {context} --parallel {}", args.parallel)
            };
            preflight::refuse(&args.preflight, &command, &refusal)?;
            return Ok(Decision::Exit);
        }
    }
    let mut machine = machine;
    if args.preflight.force {
        machine.available_bytes = None;
    }
    Ok(Decision::Serve(Box::new((sized, machine))))
}
