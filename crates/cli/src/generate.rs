//! `mlxcel generate`: text from a prompt, streamed to stdout; statistics on stderr.

use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, bail};
use clap::builder::NonEmptyStringValueParser;
use mlxcel_estimator::Workload;
use mlxcel_runtime::ModelText;
use mlxcel_runtime::engine::{self, Engine, Finish, Generation, ModelSource, Outcome};
use mlxcel_runtime::memory;
use mlxcel_runtime::preflight::{Sized, this_machine};
use mlxcel_runtime::sampling::{SamplingOptions, SamplingParams};
use mlxcel_runtime::vision::{PlacedImage, RgbImage};

use crate::advice;
use crate::args::{Activations, ChunkArgs, ComputeArgs, KvArgs, ModelArgs};
use crate::preflight::{self, Planned, PreflightArgs};
use crate::prompt::PromptArgs;
use crate::statistics::Report;
use crate::terminal::{Bars, INTERRUPTED, Interrupt, Stdout};

/// Tokens to generate when nothing is said.
const DEFAULT_MAX_TOKENS: usize = 256;
/// Context that advice is for when nothing is said, as with `inspect`.
const DEFAULT_CONTEXT: u64 = 8192;

/// Arguments of `mlxcel generate`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    prompt: PromptArgs,
    /// Tokens to generate at most [default: 256, or what is left of the context]
    #[arg(short = 'n', long, aliases = ["n-predict", "predict"], value_name = "N")]
    max_tokens: Option<usize>,
    /// Tokens that prompt and text may have together [default: the model's context]
    #[arg(short, long, value_name = "N")]
    ctx_size: Option<usize>,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Stop before this text (may be repeated)
    #[arg(long, value_name = "TEXT", value_parser = NonEmptyStringValueParser::new())]
    stop: Vec<String>,
    /// Go on past the model's end token
    #[arg(long)]
    ignore_eos: bool,
    #[command(flatten)]
    kv: KvArgs,
    #[command(flatten)]
    compute: ComputeArgs,
    /// Advise on weight quantisation and KV cache, and exit; nothing is applied
    #[arg(long, conflicts_with_all = ["kv_cache_mode", "cache_type_k", "cache_type_v"])]
    recommend_quant: bool,
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
    pub(crate) fn params(&self, defaults: &SamplingOptions) -> Result<SamplingParams> {
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

impl Args {
    /// Prints advice for the context that was asked for.
    fn recommend(&self, source: &ModelSource) -> Result<()> {
        let mut model = Sized::read(source)?;
        if let Some(name) = &self.model.model {
            model.name.clone_from(name);
        }
        let most = model.spec.max_context_tokens.unwrap_or(u64::MAX);
        let context = match self.ctx_size {
            Some(0) => bail!("--ctx-size must be at least 1"),
            Some(tokens) => tokens as u64,
            None => DEFAULT_CONTEXT.min(most),
        };
        let chunk = self.compute.chunk.tokens(ChunkArgs::DEFAULT)? as u64;
        let workload = Workload::uniform(context, 1).with_prefill_chunk(chunk);
        advice::print(&model, Some(source), &workload, &this_machine(None)?, self.preflight.json)
    }

    /// Shows and stores statistics, as the flags say.
    fn report(&self, report: &Report) -> Result<()> {
        if !self.quiet {
            eprintln!("{}", report.line());
        }
        match &self.stats_json {
            Some(path) => report.save(path),
            None => Ok(()),
        }
    }
}

/// Tokens that prompt and text may have together: those given, else the model's context.
pub(crate) fn context_size(given: Option<usize>, text: &ModelText) -> Result<Option<usize>> {
    match (given, text.context()) {
        (Some(0), _) => bail!("--ctx-size must be at least 1"),
        (Some(wanted), Some(most)) if wanted > most => {
            bail!("--ctx-size {wanted} exceeds the model's context of {most} tokens")
        }
        (wanted, most) => Ok(wanted.or(most)),
    }
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let interrupt = Interrupt::install()?;
    let started = Instant::now();
    let source = args.model.source()?;
    if args.recommend_quant {
        args.recommend(&source)?;
        return Ok(ExitCode::SUCCESS);
    }
    let text = ModelText::load(&source)?;
    let sampling = args.sampling.params(text.sampling())?;
    let config = args.compute.engine(args.kv.mode()?, Activations::GENERATING)?;
    let pictures = args.prompt.pictures(&text)?;
    let prompt = args.prompt.read(&source, &text)?;
    let encoded = prompt.encode(&text, &pictures)?;
    let tokens = &encoded.tokens;
    let context = context_size(args.ctx_size, &text)?;
    let max_tokens = engine::room(context, tokens.len(), args.max_tokens, DEFAULT_MAX_TOKENS)?;
    if !args.quiet {
        announce(&source, &config);
    }
    let prompt_tokens = tokens.len();
    let (model, command) = (&args.model, "generate");
    let planned = Planned {
        model,
        command,
        prompt_tokens,
        prompt: Some(&encoded),
        max_tokens,
        config: &config,
    };
    let Some(checked) = preflight::check(&args.preflight, &source, &planned)? else {
        return Ok(ExitCode::FAILURE);
    };
    let baseline = memory::resident_bytes();
    let mut bars = Bars::new(interrupt).quiet(args.quiet);
    let engine = Engine::load(&source, config, &mut bars)?;
    let load_time = started.elapsed();
    let (stop, ignore_eos) = (&args.stop[..], args.ignore_eos);
    let request = Generation { prompt: tokens, max_tokens, sampling, stop, ignore_eos };
    let images = place(&engine, &source, &pictures, &encoded.starts)?;
    let outcome = stream(&engine, &text, (&request, &images), &mut bars, prompt.echo())?;
    args.report(&Report::new(&engine, &outcome, load_time, baseline))?;
    checked.compare(baseline);
    let interrupted = outcome.finish == Finish::Interrupted;
    Ok(if interrupted { ExitCode::from(INTERRUPTED) } else { ExitCode::SUCCESS })
}

/// Encodes the images and puts each at its place in the prompt.
fn place(
    engine: &Engine,
    source: &ModelSource,
    pictures: &[RgbImage],
    starts: &[usize],
) -> Result<Vec<PlacedImage>> {
    if pictures.is_empty() {
        return Ok(Vec::new());
    }
    let preprocessor = engine.preprocessor(source)?;
    let one = |(picture, start): (&RgbImage, &usize)| {
        let image = engine.encode_image(&preprocessor.pixels(picture)?)?;
        Ok(PlacedImage { start: *start, image })
    };
    pictures.iter().zip(starts).map(one).collect()
}

/// Generates to stdout, after the prompt itself where a person reads along.
fn stream(
    engine: &Engine,
    text: &ModelText,
    (request, images): (&Generation<'_>, &[PlacedImage]),
    bars: &mut Bars,
    echo: Option<&str>,
) -> Result<Outcome> {
    let mut out = Stdout::new();
    if let (true, Some(echo)) = (io::stdout().is_terminal(), echo) {
        let _ = out.write(echo);
    }
    let mut emit = |piece: &str| out.write(piece);
    let tokenizer = text.tokenizer();
    let outcome =
        engine::generate_with_images(engine, tokenizer, request, images, bars, &mut emit)?;
    let _ = out.write("\n");
    out.check()?;
    Ok(outcome)
}

/// Says on stderr which model runs and how its cache is stored.
pub(crate) fn announce(source: &ModelSource, config: &engine::EngineConfig) {
    if *source == ModelSource::BuiltIn {
        eprintln!(
            "model: the built-in fairy-tale model, 5.8 M parameters (give another with -m DIR)"
        );
    }
    eprintln!("kv cache: {}", config.kv_mode);
}
