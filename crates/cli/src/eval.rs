//! `mlxcel eval`: perplexity of a text or of token ids, KV cache modes compared with fp16, and logits for
//! comparison with other programs.
//!
//! `--json` prints `mlxcel.eval/1`. One mode: `kv_mode`, `window`, `scored_tokens`, `loss` (nats per
//! token), `perplexity`. Several modes: `fingerprint`, `window`, `scored_tokens` and `modes`, fp16
//! first, each with `kv_mode`, `loss`, `perplexity`, `perplexity_change` (relative to fp16, less 1),
//! `mean_kl_nats` (fp16 to mode), `top1_agreement` (0 to 1), `bytes_per_token` (all layers, scales
//! included). Figures that cannot be computed are null.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use mlxcel_estimator::KvMode;
use mlxcel_runtime::Processor;
use mlxcel_runtime::engine::{Engine, ModelSource};
use mlxcel_runtime::eval::comparison::Comparison;
use mlxcel_runtime::eval::measurement::{self, KvMeasurement, ModeRow};
use mlxcel_runtime::eval::{self, Perplexity};
use mlxcel_runtime::loading::Fingerprint;
use mlxcel_runtime::preflight::{ModelFootprint, enforce_memory_limit};
use serde_json::json;

use crate::args::{Activations, ComputeArgs, KvArgs, ModelArgs};
use crate::terminal::{self, Bars, Interrupt};

/// Arguments of `mlxcel eval`.
#[derive(clap::Args)]
#[command(
    after_help = "Several modes, such as --kv-cache-mode fp16,int8,turbo4, are compared with fp16 \
    on the same text. The advisor uses the stored result."
)]
pub(crate) struct EvalArgs {
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
    /// Maximum number of windows to score
    #[arg(long, value_name = "N")]
    max_windows: Option<usize>,
    /// Write the logits of the first window, fp32 [tokens, vocab], in safetensors format
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
pub(crate) fn run(args: &EvalArgs) -> Result<ExitCode> {
    let interrupt = Interrupt::install()?;
    let modes = modes(&args.kv)?;
    if modes.len() > 1 && args.logits_out.is_some() {
        bail!("--logits-out writes the logits of one mode: name one in --kv-cache-mode");
    }
    let source = args.model.source()?;
    let tokens = match &args.text {
        Some(path) => {
            Processor::load(&source)?.tokenizer().encode_verbatim(&crate::args::read_file(path)?)?
        }
        None => args.tokens.clone(),
    };
    if tokens.is_empty() {
        bail!("nothing to score: the text is empty");
    }
    let first = modes.first().copied().unwrap_or_default();
    let config = args.compute.engine(first, Activations::Exact)?;
    enforce_memory_limit(&ModelFootprint::read(&source)?)?;
    let engine = Engine::load(&source, config, &mut Bars::new(interrupt.clone()))?;
    let window = args.window.unwrap_or_else(|| engine.context().unwrap_or(2048).min(2048));
    if window == 0 {
        bail!("--window must be at least 1");
    }
    if let Some(context) = engine.context().filter(|context| window > *context) {
        bail!("--window {window} exceeds the model's context of {context} tokens");
    }
    let windows: Vec<_> =
        tokens.chunks(window).take(args.max_windows.unwrap_or(usize::MAX)).collect();
    let job = Job { args, interrupt, engine: &engine, window, windows };
    if modes.len() > 1 { job.compare(&source, &modes) } else { job.score() }
}

/// The requested modes: one, or a list in `--kv-cache-mode`.
fn modes(kv: &KvArgs) -> Result<Vec<KvMode>> {
    let list = kv.kv_cache_mode.as_deref().filter(|list| list.contains(','));
    let Some(list) = list else { return Ok(vec![kv.mode()?]) };
    if kv.cache_type_k.is_some() || kv.cache_type_v.is_some() {
        bail!(
            "--cache-type-k and --cache-type-v name one mode, but --kv-cache-mode {list} several"
        );
    }
    let mut modes = Vec::new();
    for name in list.split(',') {
        let mode = KvMode::parse(name.trim())?;
        if modes.contains(&mode) {
            bail!("--kv-cache-mode {list} names {mode} twice");
        }
        modes.push(mode);
    }
    Ok(modes)
}

/// Windows to score and the engine to score them with.
struct Job<'a> {
    args: &'a EvalArgs,
    interrupt: Interrupt,
    engine: &'a Engine,
    window: usize,
    windows: Vec<&'a [u32]>,
}

impl Job<'_> {
    /// Measures the perplexity in one mode.
    fn score(&self) -> Result<ExitCode> {
        let mut score = Perplexity::default();
        for (i, window) in self.windows.iter().enumerate() {
            if self.interrupt.raised() {
                return Ok(ExitCode::from(terminal::INTERRUPTED));
            }
            let logits = eval::window_logits(self.engine, window)?;
            score.add(window, &logits, self.engine.vocab());
            if let (0, Some(path)) = (i, &self.args.logits_out) {
                eval::save_logits(path, &logits, self.engine.vocab())?;
            }
        }
        print(self.args, self.engine, &score, self.window)?;
        Ok(ExitCode::SUCCESS)
    }

    /// Compares several modes with fp16.
    fn compare(&self, source: &ModelSource, modes: &[KvMode]) -> Result<ExitCode> {
        let fingerprint = Fingerprint::of(source)?;
        let mut comparison = Comparison::new(self.engine, modes)?;
        for window in &self.windows {
            if self.interrupt.raised() {
                return Ok(ExitCode::from(terminal::INTERRUPTED));
            }
            comparison.add(window)?;
        }
        let measurement = KvMeasurement {
            schema: measurement::SCHEMA.into(),
            fingerprint: fingerprint.to_string(),
            model: self.args.model.model.clone().unwrap_or_else(|| "built-in".into()),
            window: self.window,
            scored_tokens: comparison.tokens(),
            modes: comparison.scores()?.iter().map(ModeRow::from).collect(),
        };
        print_comparison(self.args, &measurement)?;
        store(&measurement);
        Ok(ExitCode::SUCCESS)
    }
}

/// Stores a measurement for the advisor. Failures are notes, since the result has been printed.
fn store(measurement: &KvMeasurement) {
    if measurement.scored_tokens == 0 {
        return;
    }
    let data = measurement::data_folder(|name| std::env::var_os(name).map(PathBuf::from));
    match data.map(|data| measurement.store(&data)) {
        Some(Ok(path)) => terminal::note(&format!("stored for the advisor in {}", path.display())),
        Some(Err(error)) => terminal::note(&format!("not stored for the advisor: {error}")),
        None => terminal::note("not stored for the advisor: neither XDG_DATA_HOME nor HOME is set"),
    }
}

fn print_comparison(args: &EvalArgs, measurement: &KvMeasurement) -> Result<()> {
    let text = if args.json {
        let report = json!({
            "schema": "mlxcel.eval/1",
            "fingerprint": measurement.fingerprint,
            "window": measurement.window,
            "scored_tokens": measurement.scored_tokens,
            "modes": measurement.modes,
        });
        serde_json::to_string_pretty(&report)? + "\n"
    } else {
        table(measurement)
    };
    terminal::print(&text)
}

/// Formats a comparison as a table.
fn table(measurement: &KvMeasurement) -> String {
    let mut text = format!(
        "{:<18}{:>12}{:>11}{:>12}{:>9}{:>16}\n",
        "cache", "perplexity", "change", "mean KL", "top-1", "bytes/token"
    );
    for row in &measurement.modes {
        let cells = [
            row.perplexity.map(|x| format!("{x:.4}")),
            row.perplexity_change.map(|x| format!("{:+.3} %", 100.0 * x)),
            row.mean_kl_nats.map(|x| format!("{x:.2e}")),
            row.top1_agreement.map(|x| format!("{:.2} %", 100.0 * x)),
        ];
        let [perplexity, change, kl, top1] = cells.map(|cell| cell.unwrap_or_else(|| "–".into()));
        text += &format!(
            "{:<18}{perplexity:>12}{change:>11}{kl:>12}{top1:>9}{:>16}\n",
            row.kv_mode, row.bytes_per_token,
        );
    }
    let KvMeasurement { scored_tokens, window, .. } = measurement;
    text + &format!("{scored_tokens} tokens in windows of {window}; KL in nats, from fp16\n")
}

fn print(args: &EvalArgs, engine: &Engine, score: &Perplexity, window: usize) -> Result<()> {
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
            None => "a single token has no perplexity".to_owned(),
        }
    };
    terminal::print(&(text + "\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(list: &str, key: Option<&str>, expected: &str) {
        let kv = KvArgs {
            kv_cache_mode: Some(list.into()),
            cache_type_k: key.map(Into::into),
            cache_type_v: None,
        };
        let got = match modes(&kv) {
            Ok(modes) => modes.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
            Err(error) => error.to_string(),
        };
        assert!(got.contains(expected), "{got}");
    }

    #[test]
    fn lists_of_modes() {
        check("int8", None, "int8");
        check("fp16, int8,int8+turbo4", None, "fp16 int8 int8+turbo4");
        check("int8,int8", None, "names int8 twice");
        check("int8,fp8", None, "--kv-cache-mode=fp8: one of fp16, int8");
        check("int8,", None, "one of fp16, int8");
        check("int8,turbo4", Some("int8"), "name one mode");
    }

    #[test]
    fn unknown_figures_are_dashes() {
        let row = ModeRow {
            kv_mode: "fp16+turbo4".into(),
            loss: None,
            perplexity: Some(38.9312),
            perplexity_change: Some(0.00172),
            mean_kl_nats: Some(0.0022),
            top1_agreement: Some(0.964),
            bytes_per_token: 1932,
        };
        let fp16 = ModeRow { kv_mode: "fp16".into(), mean_kl_nats: None, ..row.clone() };
        let text = table(&KvMeasurement {
            schema: measurement::SCHEMA.into(),
            fingerprint: "0".into(),
            model: "m".into(),
            window: 512,
            scored_tokens: 511,
            modes: vec![fp16, row],
        });
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[1].contains("–"), "{text}");
        assert!(lines[2].ends_with("38.9312   +0.172 %     2.20e-3  96.40 %            1932"));
        assert_eq!(lines.len(), 4);
    }
}
