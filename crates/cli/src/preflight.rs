//! The memory check before a load: flags, estimate, refusal, and comparison with the measured peak.

use anyhow::{Result, ensure};
use clap::Args;
use mlxcel_estimator::report::Report;
use mlxcel_estimator::{DEFAULT_VISION_THRESHOLD, Workload, format_bytes};
use mlxcel_runtime::engine::{EngineConfig, ModelSource};
use mlxcel_runtime::memory::MemoryUsage;
use mlxcel_runtime::preflight::{
    self, FitCheck, LoadRequest, ModelFootprint, Policy, Proposal, Refusal,
};
use mlxcel_runtime::{ComputeDtype, EncodedPrompt};

use crate::args::ModelArgs;
use crate::terminal::{Stdout, note};

/// Flags of the memory check before a load.
#[derive(Args, Clone, Debug)]
pub(crate) struct PreflightArgs {
    /// Print the estimated memory and refuse to load a model that does not fit
    #[arg(long)]
    pub(crate) estimate_memory: bool,
    /// Load the model even if it does not fit
    #[arg(long, alias = "no-memory-check")]
    pub(crate) force: bool,
    /// Refuse a vision model whose weights exceed this fraction of total memory
    #[arg(long, env = "MLXCEL_VISION_THRESHOLD", default_value_t = DEFAULT_VISION_THRESHOLD)]
    #[arg(value_name = "FRACTION")]
    pub(crate) vision_threshold: f64,
    /// Print refusals (schema mlxcel.refusal/1) and recommendations (mlxcel.advice/1) as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

impl PreflightArgs {
    /// Policy for models that do not fit.
    pub(crate) fn policy(&self) -> Policy {
        match self {
            Self { force: true, .. } => Policy::Force,
            Self { estimate_memory: true, .. } => Policy::Refuse,
            _ => Policy::Warn,
        }
    }

    /// Rejects invalid values.
    pub(crate) fn check(&self) -> Result<()> {
        let threshold = self.vision_threshold;
        ensure!(
            threshold.is_finite() && threshold > 0.0,
            "--vision-threshold {threshold}: a positive fraction of total memory such as 0.7 is needed"
        );
        Ok(())
    }
}

/// A planned generation or conversation.
pub(crate) struct Planned<'a> {
    pub(crate) model: &'a ModelArgs,
    /// `generate`, whose proposals state new tokens, or `chat`, whose proposals state a context.
    pub(crate) command: &'static str,
    pub(crate) prompt_tokens: usize,
    /// The prompt with its images, if known.
    pub(crate) prompt: Option<&'a EncodedPrompt>,
    pub(crate) max_tokens: usize,
    pub(crate) config: &'a EngineConfig,
}

impl Planned<'_> {
    /// The load for `model`, limited to the model's context as the generation is.
    fn load(&self, args: &PreflightArgs, model: &ModelFootprint) -> LoadRequest {
        let prompt = self.prompt_tokens as u64;
        let wanted = prompt.saturating_add(self.max_tokens as u64);
        let context = wanted.min(model.spec.max_context_tokens.unwrap_or(u64::MAX)).max(prompt);
        let least = self.prompt.map_or(0, EncodedPrompt::min_chunk_tokens);
        let pass = self.config.prefill_chunk.max(least);
        let workload = Workload::uniform(context, 1)
            .with_kv_mode(self.config.kv_mode)
            .with_dtype(self.config.ops.dtype)
            .with_prefill_chunk((pass as u64).min(prompt));
        let workload = match self.prompt {
            Some(images) => images.add_images(workload),
            None => workload,
        };
        LoadRequest {
            workload,
            min_context_tokens: prompt.saturating_add(1),
            vision_threshold: args.vision_threshold,
            policy: args.policy(),
        }
    }

    /// The command line that follows a proposal.
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

/// The command line that follows a proposal, without lengths.
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

/// A load that passed the check, with its report if `--estimate-memory` was given.
pub(crate) struct Checked {
    report: Option<Report>,
}

impl Checked {
    /// After the load, compares the estimate with the measured peak if an estimate was requested.
    pub(crate) fn compare(&self, baseline_bytes: Option<u64>) {
        if let Some(report) = &self.report {
            let usage = MemoryUsage::now();
            note(&preflight::compare_peak(report.expected_peak_bytes, baseline_bytes, &usage));
        }
    }
}

/// Checks a load before any tensor is read. `None` after a refusal, which has been printed.
pub(crate) fn check(
    args: &PreflightArgs,
    source: &ModelSource,
    planned: &Planned<'_>,
) -> Result<Option<Checked>> {
    args.check()?;
    let model = ModelFootprint::read(source)?;
    let machine = preflight::this_machine(None)?;
    let load = planned.load(args, &model);
    let report =
        args.estimate_memory.then(|| model.report(&load.workload, &machine)).transpose()?;
    if let Some(report) = &report {
        eprint!("{}", report.to_text());
    }
    match preflight::check(&model, &load, &machine)? {
        FitCheck::Fits => preflight::enforce_memory_limit(&model)?,
        FitCheck::Warning(text) => eprintln!("warning: {text}; loading anyway"),
        FitCheck::Refused(refusal) => {
            refuse(args, &|proposal| planned.command(proposal), &refusal)?;
            return Ok(None);
        }
    }
    Ok(Some(Checked { report }))
}

/// Prints a refusal and the configurations that fit.
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
    eprintln!("error: {} (use --force to load it anyway)", refusal.message);
    for (proposal, command) in refusal.would_fit.iter().zip(commands) {
        eprintln!("this would fit, with {}: {command}", format_bytes(proposal.total_bytes));
    }
    if refusal.would_fit.is_empty() {
        eprintln!(
            "no configuration fits, even with 4-bit weights, a shorter context or a smaller KV cache"
        );
    }
    Ok(())
}
