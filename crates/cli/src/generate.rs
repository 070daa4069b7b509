//! `mlxcel generate`: text from a prompt, streamed to stdout; statistics on stderr.

use std::io::{self, IsTerminal, Read};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use mlxcel_runtime::ModelText;
use mlxcel_runtime::engine::{self, Engine, Finish, Generation, ModelSource, Outcome};
use mlxcel_runtime::memory;
use mlxcel_runtime::sampling::{SamplingOptions, SamplingParams};
use mlxcel_runtime::text::{ChatMessage, ChatPrompt};
use serde::Serialize;

use crate::args::{Activations, ComputeArgs, KvArgs, ModelArgs};
use crate::preflight::{self, PreflightArgs};
use crate::terminal::{Bars, Interrupt, Stdout};

/// What the built-in model continues when it is given nothing.
const DEFAULT_PROMPT: &str = "Once upon a time";

/// Arguments of `mlxcel generate`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// The prompt [default: standard input, when that is not a terminal]
    #[arg(short, long, conflicts_with = "file")]
    prompt: Option<String>,
    /// Read the prompt from a file
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// System message for the chat template
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Give the model the bare prompt, without its chat template
    #[arg(long, alias = "ignore-chat-template")]
    raw: bool,
    /// Tokens to generate at most
    #[arg(short = 'n', long, default_value_t = 256, value_name = "N")]
    max_tokens: usize,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Stop before this text (may be repeated)
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Go on past the model's end token
    #[arg(long)]
    ignore_eos: bool,
    #[command(flatten)]
    kv: KvArgs,
    #[command(flatten)]
    compute: ComputeArgs,
    #[command(flatten)]
    preflight: PreflightArgs,
    /// Write statistics as JSON to a file
    #[arg(long, value_name = "FILE")]
    stats_json: Option<PathBuf>,
    /// Print nothing but the text
    #[arg(short, long)]
    quiet: bool,
}

/// How tokens are chosen; what is not given comes from `generation_config.json`, else greedy.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct SamplingArgs {
    /// Temperature; 0 is greedy [default: generation_config.json, else 0]
    #[arg(long, alias = "temperature", value_name = "T")]
    temp: Option<f32>,
    /// Keep the K most likely tokens; 0 keeps all
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Keep the most likely tokens that add up to probability P
    #[arg(long, value_name = "P")]
    top_p: Option<f32>,
    /// Drop tokens less likely than P times the most likely one
    #[arg(long, value_name = "P")]
    min_p: Option<f32>,
    /// Divide the logits of recent tokens by this
    #[arg(long, alias = "repeat-penalty", value_name = "F")]
    repetition_penalty: Option<f32>,
    /// Seed of the random choices [default: a new one each time]
    #[arg(short, long)]
    seed: Option<u64>,
}

impl SamplingArgs {
    /// What was given, over the model's own defaults.
    fn params(&self, defaults: &SamplingOptions) -> Result<SamplingParams> {
        let options = SamplingOptions {
            temperature: self.temp.unwrap_or(defaults.temperature),
            top_k: self.top_k.or(defaults.top_k).filter(|k| *k > 0),
            top_p: self.top_p.or(defaults.top_p),
            min_p: self.min_p.or(defaults.min_p),
            repetition_penalty: self.repetition_penalty.or(defaults.repetition_penalty),
            seed: self.seed,
            ..defaults.clone()
        };
        Ok(SamplingParams::new(options)?)
    }
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let interrupt = Interrupt::install()?;
    let started = Instant::now();
    let source = args.model.source()?;
    let text = ModelText::load(&source)?;
    let prompt = Prompt::read(&args, &source, &text)?;
    let tokens = prompt.tokens(&text)?;
    let config = args.compute.engine(args.kv.mode()?, Activations::Int8)?;
    if !args.quiet {
        announce(&source, &config);
    }
    let planned = preflight::Planned {
        model: &args.model,
        prompt_tokens: tokens.len(),
        max_tokens: args.max_tokens,
        config: &config,
    };
    let Some(checked) = preflight::check(&args.preflight, &source, &planned)? else {
        return Ok(ExitCode::FAILURE);
    };
    let baseline = memory::resident_bytes();
    let mut bars = Bars::new(interrupt.clone());
    let engine = Engine::load(&source, config, &mut bars)?;
    let load_time = started.elapsed();
    let request = Generation {
        prompt: &tokens,
        max_tokens: args.max_tokens,
        sampling: args.sampling.params(text.sampling())?,
        stop: &args.stop,
        ignore_eos: args.ignore_eos,
    };
    let mut out = Stdout::new();
    if let (true, Some(echo)) = (io::stdout().is_terminal(), prompt.echo()) {
        let _ = out.write(echo);
    }
    let outcome = engine::generate(&engine, text.tokenizer(), &request, &mut bars, &mut |piece| {
        out.write(piece)?;
        interrupt.flow()
    })?;
    let _ = out.write("\n");
    out.check()?;
    let report = Report::new(&engine, &outcome, load_time, baseline);
    if !args.quiet {
        eprintln!("{}", report.line());
    }
    checked.compare(baseline);
    if let Some(path) = &args.stats_json {
        report.save(path)?;
    }
    Ok(if outcome.finish == Finish::Interrupted { ExitCode::from(130) } else { ExitCode::SUCCESS })
}

/// Says on stderr which model runs and how its cache is stored.
fn announce(source: &ModelSource, config: &engine::EngineConfig) {
    if *source == ModelSource::BuiltIn {
        eprintln!(
            "model: the built-in fairy-tale model, 5.8 M parameters (give another with -m DIR)"
        );
    }
    eprintln!("kv cache: {}", config.kv_mode);
}

/// The prompt and whether it goes through the chat template.
struct Prompt {
    text: String,
    system: Option<String>,
    chat: bool,
}

impl Prompt {
    fn read(args: &Args, source: &ModelSource, text: &ModelText) -> Result<Self> {
        let prompt = match (&args.prompt, &args.file) {
            (Some(prompt), _) => prompt.clone(),
            (None, Some(path)) => crate::args::read_file(path)?,
            (None, None) => default_prompt(source)?,
        };
        let chat = text.template().is_some() && !args.raw;
        if args.system.is_some() && !chat {
            bail!("--system needs a model with a chat template, and no --raw");
        }
        if prompt.is_empty() {
            bail!("the prompt is empty: give one with -p, -f or standard input");
        }
        Ok(Self { text: prompt, system: args.system.clone(), chat })
    }

    fn tokens(&self, text: &ModelText) -> Result<Vec<u32>> {
        if !self.chat {
            return Ok(text.tokenizer().encode_prompt(&self.text)?);
        }
        let system = self.system.iter().map(|s| ChatMessage::text("system", s));
        let messages: Vec<_> = system.chain([ChatMessage::text("user", &self.text)]).collect();
        Ok(text.encode_chat(&ChatPrompt::new(&messages))?)
    }

    /// What a terminal shows before the continuation of a bare prompt.
    fn echo(&self) -> Option<&str> {
        (!self.chat).then_some(&self.text)
    }
}

fn default_prompt(source: &ModelSource) -> Result<String> {
    let mut stdin = io::stdin().lock();
    if !stdin.is_terminal() {
        let mut bytes = Vec::new();
        stdin.read_to_end(&mut bytes).context("cannot read standard input")?;
        return String::from_utf8(bytes).context("the prompt on standard input is not UTF-8");
    }
    if *source == ModelSource::BuiltIn {
        return Ok(DEFAULT_PROMPT.to_owned());
    }
    bail!("there is no prompt: give one with -p TEXT, -f FILE or on standard input")
}

/// Statistics of a run, for a person in one line and for programs as JSON.
#[derive(Serialize)]
struct Report {
    schema: &'static str,
    finish: &'static str,
    kv_mode: String,
    prompt_tokens: usize,
    prompt_seconds: f64,
    prompt_tokens_per_second: Option<f64>,
    generated_tokens: usize,
    decode_seconds: f64,
    decode_tokens_per_second: Option<f64>,
    load_seconds: f64,
    first_token_seconds: f64,
    kv_cache_bytes: usize,
    memory: memory::Usage,
    memory_baseline_bytes: Option<u64>,
}

impl Report {
    fn new(engine: &Engine, outcome: &Outcome, load_time: Duration, baseline: Option<u64>) -> Self {
        let s = outcome.statistics;
        Self {
            schema: "mlxcel.generate/1",
            finish: outcome.finish.name(),
            kv_mode: engine.kv_mode().to_string(),
            prompt_tokens: s.prompt_tokens,
            prompt_seconds: s.prompt_time.as_secs_f64(),
            prompt_tokens_per_second: s.prompt_rate(),
            generated_tokens: s.generated_tokens,
            decode_seconds: s.decode_time.as_secs_f64(),
            decode_tokens_per_second: s.decode_rate(),
            load_seconds: load_time.as_secs_f64(),
            first_token_seconds: (load_time + s.prompt_time).as_secs_f64(),
            kv_cache_bytes: s.kv_cache_bytes,
            memory: memory::Usage::now(),
            memory_baseline_bytes: baseline,
        }
    }

    fn line(&self) -> String {
        let rate = |r: Option<f64>| r.map_or("-".to_owned(), |r| format!("{r:.1}"));
        format!(
            "prompt: {} tokens, {} tok/s | generated: {} tokens, {} tok/s | load {:.2} s | peak memory {}",
            self.prompt_tokens,
            rate(self.prompt_tokens_per_second),
            self.generated_tokens,
            rate(self.decode_tokens_per_second),
            self.load_seconds,
            self.memory.peak_text(),
        )
    }

    fn save(&self, path: &PathBuf) -> Result<()> {
        let json = serde_json::to_string_pretty(self)?;
        std::fs::write(path, json + "\n")
            .with_context(|| format!("cannot write {}", path.display()))
    }
}
