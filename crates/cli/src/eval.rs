//! `mlxcel eval`: perplexity of a text or of token ids, and logits for comparison.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use mlxcel_runtime::ModelText;
use mlxcel_runtime::engine::Engine;
use mlxcel_runtime::eval::{self, Perplexity};
use serde_json::json;

use crate::args::{Activations, ComputeArgs, KvArgs, ModelArgs};
use crate::terminal::{Bars, Interrupt};

/// Arguments of `mlxcel eval`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Text file to score
    #[arg(
        long,
        value_name = "FILE",
        required_unless_present = "tokens",
        conflicts_with = "tokens"
    )]
    text: Option<PathBuf>,
    /// Token ids to score
    #[arg(long, value_delimiter = ',', value_name = "ID,…")]
    tokens: Vec<u32>,
    /// Tokens per window of a text [default: the model's context, at most 2048]
    #[arg(long, value_name = "N")]
    window: Option<usize>,
    /// Score at most this many windows
    #[arg(long, value_name = "N")]
    max_windows: Option<usize>,
    /// Write the logits of the first window, fp32 [tokens, vocab], as safetensors
    #[arg(long, value_name = "FILE")]
    logits_out: Option<PathBuf>,
    #[command(flatten)]
    kv: KvArgs,
    #[command(flatten)]
    compute: ComputeArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let interrupt = Interrupt::install()?;
    let source = args.model.source()?;
    let tokens = match &args.text {
        Some(path) => {
            ModelText::load(&source)?.tokenizer().encode_verbatim(&crate::args::read_file(path)?)?
        }
        None => args.tokens.clone(),
    };
    if tokens.is_empty() {
        bail!("there is nothing to score: the text is empty");
    }
    let config = args.compute.engine(args.kv.mode()?, Activations::Exact)?;
    let engine = Engine::load(&source, config, &mut Bars::new(interrupt.clone()))?;
    let window = args.window.unwrap_or_else(|| engine.context().unwrap_or(2048).min(2048));
    if window == 0 {
        bail!("--window must be at least 1");
    }
    let windows: Vec<_> =
        tokens.chunks(window).take(args.max_windows.unwrap_or(usize::MAX)).collect();
    let mut score = Perplexity::default();
    for (i, window) in windows.iter().enumerate() {
        if interrupt.raised() {
            return Ok(ExitCode::from(130));
        }
        let logits = eval::window_logits(&engine, window)?;
        score.add(window, &logits, engine.vocab());
        if let (0, Some(path)) = (i, &args.logits_out) {
            eval::save_logits(path, &logits, engine.vocab())?;
        }
    }
    print(args, &engine, &score, window)?;
    Ok(ExitCode::SUCCESS)
}

fn print(args: &Args, engine: &Engine, score: &Perplexity, window: usize) -> Result<()> {
    let text = if args.json {
        let row = json!({
            "schema": "mlxcel.eval/1",
            "kv_mode": engine.kv_mode().to_string(),
            "window": window,
            "scored_tokens": score.tokens(),
            "loss": score.loss(),
            "perplexity": score.perplexity(),
        });
        serde_json::to_string_pretty(&row)?
    } else {
        match score.perplexity() {
            Some(p) => format!(
                "perplexity {p:.4} over {} tokens ({} cache, windows of {window})",
                score.tokens(),
                engine.kv_mode()
            ),
            None => "one token has no perplexity (nothing comes before it)".to_owned(),
        }
    };
    crate::terminal::print(&(text + "\n"))
}
