//! `mlxcel generate`: generates text from a prompt to stdout; statistics go to stderr.

use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use clap::builder::NonEmptyStringValueParser;
use mlxcel_estimator::{DEFAULT_CONTEXT_TOKENS, Workload};
use mlxcel_runtime::Processor;
use mlxcel_runtime::engine::{self, Engine, Finish, Generation, ModelSource, Outcome};
use mlxcel_runtime::memory;
use mlxcel_runtime::preflight::{ModelFootprint, this_machine};
use mlxcel_runtime::sampling::{SamplingOptions, SamplingParams};
use mlxcel_runtime::vision::{PlacedImage, RgbImage};

use crate::advice;
use crate::args::{Activations, ChunkArgs, ComputeArgs, KvArgs, ModelArgs, context_size};
use crate::preflight::{self, Planned, PreflightArgs};
use crate::prompt::PromptArgs;
use crate::statistics::Report;
use crate::terminal::{Bars, INTERRUPTED, Interrupt, Stdout};

/// Default of `--max-tokens`.
const DEFAULT_MAX_TOKENS: usize = 256;

/// Arguments of `mlxcel generate`.
#[derive(clap::Args)]
pub(crate) struct GenerateArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    prompt: PromptArgs,
    /// Maximum number of tokens to generate [default: 256, or the rest of the context]
    #[arg(short = 'n', long, aliases = ["n-predict", "predict"], value_name = "N")]
    max_tokens: Option<usize>,
    /// Context size in tokens, prompt and output together; 0 is the model's own [default: 0]
    #[arg(short, long, value_name = "N")]
    ctx_size: Option<usize>,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Stop at this text, which is not printed (may be repeated)
    #[arg(long, value_name = "TEXT", value_parser = NonEmptyStringValueParser::new())]
    stop: Vec<String>,
    /// Continue after the end-of-sequence token
    #[arg(long)]
    ignore_eos: bool,
    #[command(flatten)]
    kv: KvArgs,
    #[command(flatten)]
    compute: ComputeArgs,
    /// Recommend a weight quantisation and KV cache modes, and exit; applies nothing
    #[arg(long, conflicts_with_all = ["kv_cache_mode", "cache_type_k", "cache_type_v"])]
    recommend_quant: bool,
    #[command(flatten)]
    preflight: PreflightArgs,
    /// Write statistics as JSON (schema mlxcel.generate/1)
    #[arg(long, value_name = "FILE")]
    stats_json: Option<PathBuf>,
    /// Print only the generated text
    #[arg(short, long)]
    quiet: bool,
}

/// Sampling flags. Defaults come from `generation_config.json`, else decoding is greedy.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct SamplingArgs {
    /// Temperature; 0 is greedy [default: generation_config.json, else 0]
    #[arg(long, alias = "temperature", value_name = "T")]
    temp: Option<f32>,
    /// Sample from the K most likely tokens; 0 is no limit
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Sample from the most likely tokens with cumulative probability P
    #[arg(long, value_name = "P")]
    top_p: Option<f32>,
    /// Exclude tokens less likely than P times the most likely one
    #[arg(long, value_name = "P")]
    min_p: Option<f32>,
    /// Penalty on recent tokens, by which their logits are divided
    #[arg(long, alias = "repeat-penalty", value_name = "F")]
    repetition_penalty: Option<f32>,
    /// Random seed [default: different for each run]
    #[arg(short, long)]
    seed: Option<u64>,
}

impl SamplingArgs {
    /// The flags, with the model's defaults for those not given.
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

impl GenerateArgs {
    /// Prints a recommendation for the requested context.
    fn recommend(&self, source: &ModelSource) -> Result<()> {
        let mut model = ModelFootprint::read(source)?;
        if let Some(name) = &self.model.model {
            model.name.clone_from(name);
        }
        let own = model.spec.max_context_tokens;
        let own_tokens = own.map(usize::try_from).transpose()?;
        let context = match context_size(self.ctx_size, own_tokens)? {
            Some(tokens) => tokens as u64,
            None => DEFAULT_CONTEXT_TOKENS.min(own.unwrap_or(u64::MAX)),
        };
        let chunk = self.compute.chunk.tokens(ChunkArgs::DEFAULT)? as u64;
        let workload = Workload::uniform(context, 1).with_prefill_chunk(chunk);
        advice::print(&model, Some(source), &workload, &this_machine(None)?, self.preflight.json)
    }

    /// Prints and saves statistics, as the flags request.
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

/// Runs the command.
pub(crate) fn run(args: GenerateArgs) -> Result<ExitCode> {
    let interrupt = Interrupt::install()?;
    let started = Instant::now();
    let source = args.model.source()?;
    if args.recommend_quant {
        args.recommend(&source)?;
        return Ok(ExitCode::SUCCESS);
    }
    let text = Processor::load(&source)?;
    let sampling = args.sampling.params(text.sampling())?;
    let config = args.compute.engine(args.kv.mode()?, Activations::GENERATING)?;
    let pictures = args.prompt.pictures(&text)?;
    let prompt = args.prompt.read(&source, &text)?;
    let encoded = prompt.encode(&text, &pictures)?;
    let context = context_size(args.ctx_size, text.context())?.or(text.context());
    let prompt_tokens = encoded.tokens.len();
    let max_tokens = engine::room(context, prompt_tokens, args.max_tokens, DEFAULT_MAX_TOKENS)?;
    if !args.quiet {
        announce(&source, &config);
    }
    let planned = Planned {
        model: &args.model,
        command: "generate",
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
    let generation = Generation {
        prompt: &encoded.tokens,
        max_tokens,
        sampling,
        stop: &args.stop,
        ignore_eos: args.ignore_eos,
    };
    let images = encode_images(&engine, &source, &pictures, &encoded.image_starts)?;
    let request = Request { generation, images, echo: prompt.echo() };
    let outcome = stream(&engine, &text, &request, &mut bars)?;
    args.report(&Report::new(&engine, &outcome, load_time, baseline))?;
    checked.compare(baseline);
    let interrupted = outcome.finish == Finish::Interrupted;
    Ok(if interrupted { ExitCode::from(INTERRUPTED) } else { ExitCode::SUCCESS })
}

/// Encodes the images for their positions in the prompt.
fn encode_images(
    engine: &Engine,
    source: &ModelSource,
    pictures: &[RgbImage],
    starts: &[usize],
) -> Result<Vec<PlacedImage>> {
    if pictures.is_empty() {
        return Ok(Vec::new());
    }
    let preprocessor = engine.preprocessor(source)?;
    let mut placed = Vec::with_capacity(pictures.len());
    for (picture, &start) in pictures.iter().zip(starts) {
        let image = engine.encode_image(&preprocessor.pixels(picture)?)?;
        placed.push(PlacedImage { start, image });
    }
    Ok(placed)
}

/// One generation with its images.
struct Request<'a> {
    generation: Generation<'a>,
    images: Vec<PlacedImage>,
    /// Prompt to print before its continuation at a terminal.
    echo: Option<&'a str>,
}

/// Generates to stdout.
fn stream(
    engine: &Engine,
    text: &Processor,
    request: &Request<'_>,
    bars: &mut Bars,
) -> Result<Outcome> {
    let mut out = Stdout::new();
    if io::stdout().is_terminal()
        && let Some(echo) = request.echo
    {
        let _ = out.write(echo);
    }
    let outcome = engine::generate_with_images(
        engine,
        text.tokenizer(),
        &request.generation,
        &request.images,
        bars,
        &mut |piece: &str| out.write(piece),
    )?;
    let _ = out.write("\n");
    out.check()?;
    Ok(outcome)
}

/// Prints the model and its KV cache mode on stderr.
pub(crate) fn announce(source: &ModelSource, config: &engine::EngineConfig) {
    if *source == ModelSource::BuiltIn {
        eprintln!(
            "model: the built-in fairy-tale model, 5.8 M parameters (use -m DIR for another)"
        );
    }
    eprintln!("kv cache: {}", config.kv_mode);
}
