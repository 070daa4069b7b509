//! The check before a load, on the command line: flags, breakdown, refusal, comparison.

use anyhow::{Result, ensure};
use clap::Args;
use mlxcel_estimator::report::Report;
use mlxcel_estimator::{DEFAULT_VISION_THRESHOLD, Workload, format_bytes};
use mlxcel_runtime::engine::{EngineConfig, ModelSource};
use mlxcel_runtime::memory::Usage;
use mlxcel_runtime::preflight::{self, Load, Outcome, Policy, Proposal, Refusal, Sized};
use mlxcel_runtime::{ComputeDtype, ImagePrompt};

use crate::args::ModelArgs;
use crate::terminal::{Stdout, note};

/// What to do about memory before a model is loaded.
#[derive(Args, Clone, Debug)]
pub(crate) struct PreflightArgs {
    /// Print what the load needs, and refuse it when that does not fit
    #[arg(long)]
    pub(crate) estimate_memory: bool,
    /// Load even when it does not fit
    #[arg(long, alias = "no-memory-check")]
    pub(crate) force: bool,
    /// Refuse a vision model whose weights exceed this share of all memory
    #[arg(long, env = "MLXCEL_VISION_THRESHOLD", default_value_t = DEFAULT_VISION_THRESHOLD)]
    #[arg(value_name = "SHARE")]
    pub(crate) vision_threshold: f64,
    /// Print a refusal (schema mlxcel.refusal/1) or advice (mlxcel.advice/1) as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

impl PreflightArgs {
    /// What to do when it does not fit.
    pub(crate) fn policy(&self) -> Policy {
        match self {
            Self { force: true, .. } => Policy::Force,
            Self { estimate_memory: true, .. } => Policy::Refuse,
            _ => Policy::Warn,
        }
    }
}

impl PreflightArgs {
    /// Fails for values that mean nothing.
    pub(crate) fn check(&self) -> Result<()> {
        let threshold = self.vision_threshold;
        ensure!(
            threshold.is_finite() && threshold > 0.0,
            "--vision-threshold {threshold}: a share of all memory such as 0.7 is needed"
        );
        Ok(())
    }
}

/// A generation, or a conversation, that is about to happen.
pub(crate) struct Planned<'a> {
    pub(crate) model: &'a ModelArgs,
    /// `generate`, whose proposals name tokens to generate, or `chat`, where they name a context.
    pub(crate) command: &'static str,
    pub(crate) prompt_tokens: usize,
    /// The prompt with its images, where there is one already.
    pub(crate) prompt: Option<&'a ImagePrompt>,
    pub(crate) max_tokens: usize,
    pub(crate) config: &'a EngineConfig,
}

impl Planned<'_> {
    /// What the generation asks of `model`; like the generation, it ends at the model's context.
    fn load(&self, args: &PreflightArgs, model: &Sized) -> Load {
        let prompt = self.prompt_tokens as u64;
        let wanted = prompt.saturating_add(self.max_tokens as u64);
        let context = wanted.min(model.spec.max_context_tokens.unwrap_or(u64::MAX)).max(prompt);
        let least = self.prompt.map_or(0, ImagePrompt::least_pass_tokens);
        let pass = self.config.prefill_chunk.max(least);
        let workload = Workload::uniform(context, 1)
            .with_kv_mode(self.config.kv_mode)
            .with_dtype(self.config.ops.dtype)
            .with_prefill_chunk((pass as u64).min(prompt));
        let workload = match self.prompt {
            Some(images) => images.images_in(workload),
            None => workload,
        };
        Load {
            workload,
            least_context_tokens: prompt.saturating_add(1),
            vision_threshold: args.vision_threshold,
            policy: args.policy(),
        }
    }

    /// The command line of a proposal.
    fn command(&self, proposal: &Proposal) -> String {
        let command = command(self.command, self.model, self.config, proposal);
        if self.command == "chat" {
            let all = (self.prompt_tokens + self.max_tokens) as u64;
            return command + &format!(" -c {}", proposal.context_tokens.unwrap_or(all));
        }
        let new = proposal.context_tokens.map(|n| n.saturating_sub(self.prompt_tokens as u64));
        command + &format!(" -n {}", new.unwrap_or(self.max_tokens as u64))
    }
}

/// The command line of a proposal, up to the lengths.
pub(crate) fn command(
    name: &str,
    model: &ModelArgs,
    config: &EngineConfig,
    proposal: &Proposal,
) -> String {
    let path = model.model.as_deref().unwrap_or("DIR");
    let mut command = String::new();
    let mut folder = path.to_owned();
    if let Some(quant) = proposal.quant {
        let bits = quant.name().trim_start_matches("int");
        folder = format!("{}-{bits}bit", path.trim_end_matches('/'));
        command = format!("mlxcel quantize -m {path} --bits {bits} --out {folder} && ");
    }
    command += &format!("mlxcel {name}");
    if model.model.is_some() {
        command += &format!(" -m {folder}");
    }
    if let Some(mode) = proposal.kv_mode {
        command += &format!(" --kv-cache-mode {mode}");
    }
    if config.ops.dtype == ComputeDtype::Fp32 {
        command += " --dtype fp32";
    }
    if let Some(tokens) = proposal.prefill_chunk {
        command += &format!(" --prefill-chunk {tokens}");
    }
    command
}

/// A load that may happen, with its report where one was asked for.
pub(crate) struct Checked {
    report: Option<Report>,
}

impl Checked {
    /// After the load: estimate against measured, where the estimate was asked for.
    pub(crate) fn compare(&self, baseline_bytes: Option<u64>) {
        if let Some(report) = &self.report {
            let usage = Usage::now();
            note(&preflight::compare(report.expected_peak_bytes, baseline_bytes, &usage));
        }
    }
}

/// Checks a load before any tensor is read; `None` when it is refused, which has been printed.
pub(crate) fn check(
    args: &PreflightArgs,
    source: &ModelSource,
    planned: &Planned<'_>,
) -> Result<Option<Checked>> {
    args.check()?;
    let model = Sized::read(source)?;
    let machine = preflight::this_machine(None)?;
    let load = planned.load(args, &model);
    let report =
        args.estimate_memory.then(|| model.report(&load.workload, &machine)).transpose()?;
    if let Some(report) = &report {
        eprint!("{}", report.to_text());
    }
    match preflight::check(&model, &load, &machine)? {
        Outcome::Clear => preflight::keep_to_limit(&model)?,
        Outcome::Warned(text) => eprintln!("warning: {text}; loading it nevertheless"),
        Outcome::Refused(refusal) => {
            refuse(args, &|proposal| planned.command(proposal), &refusal)?;
            return Ok(None);
        }
    }
    Ok(Some(Checked { report }))
}

/// Prints a refusal and what would fit.
pub(crate) fn refuse(
    args: &PreflightArgs,
    command: &dyn Fn(&Proposal) -> String,
    refusal: &Refusal,
) -> Result<()> {
    let commands: Vec<String> = refusal.would_fit.iter().map(command).collect();
    if args.json {
        let mut json = serde_json::to_value(refusal)?;
        json["commands"] = commands.clone().into();
        let mut out = Stdout::new();
        let _ = out.write(&(serde_json::to_string_pretty(&json)? + "\n"));
        out.check()?;
    }
    eprintln!("error: {} (--force loads it nevertheless)", refusal.message);
    for (proposal, command) in refusal.would_fit.iter().zip(commands) {
        eprintln!("would fit, with {}: {command}", format_bytes(proposal.total_bytes));
    }
    if refusal.would_fit.is_empty() {
        eprintln!(
            "nothing would fit: neither 4-bit weights nor a shorter context nor another cache"
        );
    }
    Ok(())
}
