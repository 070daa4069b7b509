//! `mlxcel inspect`: memory estimate of a model, context and batch.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use mlxcel_estimator::report::Curves;
use mlxcel_estimator::{
    AvailableSource, Backend, DEFAULT_CONTEXT_TOKENS, Machine, WeightQuant, Workload, format_bytes,
    parse_bytes,
};
use mlxcel_hub::{self as hub, Hub, HubError};
use mlxcel_runtime::engine::ModelSource;
use mlxcel_runtime::preflight::{ModelFootprint, this_machine};

use crate::advice;
use crate::args::{ChunkArgs, Dtype, KvArgs, ModelArgs};
use crate::plot;
use crate::terminal::{Stdout, note};

/// Arguments of `mlxcel inspect`. The model can also be a path to a `config.json`.
#[derive(clap::Args)]
pub(crate) struct InspectArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Model, as for -m
    #[arg(value_name = "DIR|ORG/NAME", conflicts_with = "model")]
    name: Option<String>,
    /// Context size in tokens, prompt and output together; 0 is the model's own, a larger one is
    /// hypothetical [default: the sum of -p and -n, or 8192]
    #[arg(short, long, value_name = "N")]
    ctx_size: Option<u64>,
    /// Tokens of the prompt
    #[arg(short, long, alias = "n-prompt", value_name = "N")]
    prompt_tokens: Option<u64>,
    /// Tokens to generate
    #[arg(short = 'n', long, aliases = ["n-predict", "predict"], value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    max_tokens: Option<u64>,
    /// Number of concurrent sequences
    #[arg(long, default_value_t = 1, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    batch: u64,
    /// Estimate the weights as: default (unchanged), fp16, int8, int4
    #[arg(long, default_value = "default", value_name = "TYPE", value_parser = WeightQuant::parse)]
    quant: WeightQuant,
    #[command(flatten)]
    kv: KvArgs,
    #[command(flatten)]
    chunk: ChunkArgs,
    /// Type of activations and KV cache; auto follows the checkpoint
    #[arg(long, value_enum, default_value_t)]
    dtype: Dtype,
    /// Backend: cpu, cuda, metal [default: this machine's]
    #[arg(long, value_name = "NAME", value_parser = Backend::parse)]
    backend: Option<Backend>,
    /// Assume this much memory, such as 24GiB [default: the memory available on this machine]
    #[arg(long, value_name = "SIZE", value_parser = |text: &str| parse_bytes("--memory", text))]
    memory: Option<u64>,
    /// Plot memory against context for every KV cache mode, as SVG
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// Print JSON (schema mlxcel.inspect/1)
    #[arg(long)]
    json: bool,
    /// Recommend a weight quantisation and KV cache modes instead; applies nothing
    #[arg(long, conflicts_with_all = ["kv_cache_mode", "cache_type_k", "cache_type_v", "quant", "exit_code"])]
    recommend: bool,
    /// Exit with status 2 if the model does not fit
    #[arg(long)]
    exit_code: bool,
}

/// Exit code of `--exit-code` for a model that does not fit.
const DOES_NOT_FIT: u8 = 2;

impl InspectArgs {
    /// Context that the estimate is for.
    ///
    /// Sizes beyond the model's own context are allowed: they show what a longer one would cost.
    fn context_tokens(&self, model: &ModelFootprint) -> Result<u64> {
        let prompt = self.prompt_tokens.unwrap_or(0);
        let new = self.max_tokens.unwrap_or(0);
        let sum = prompt.saturating_add(new);
        let context = match self.ctx_size {
            None if sum > 0 => return Ok(sum),
            None => return Ok(DEFAULT_CONTEXT_TOKENS),
            Some(0) => model.spec.max_context_tokens.context(
                "--ctx-size 0: the model states no context of its own; give a number of tokens",
            )?,
            Some(context) => context,
        };
        ensure!(
            sum <= context,
            "the prompt has {prompt} tokens and {new} more are wanted, but the context holds {context}"
        );
        Ok(context)
    }

    fn workload(&self, context_tokens: u64) -> Result<Workload> {
        Ok(Workload::uniform(context_tokens, self.batch)
            .with_kv_mode(self.kv.mode()?)
            .with_dtype(self.dtype.computed())
            .with_prefill_chunk(self.chunk.tokens(ChunkArgs::DEFAULT)? as u64)
            .with_quant(self.quant))
    }
}

/// Runs the command.
pub(crate) fn run(args: &InspectArgs) -> Result<ExitCode> {
    let named = ModelArgs { model: args.model.model.clone().or_else(|| args.name.clone()) };
    let model = model(&named)?;
    let machine = machine(args)?;
    let workload = args.workload(args.context_tokens(&model)?)?;
    if args.recommend {
        let files = named.files();
        advice::print(&model, files.as_ref(), &workload, &machine, args.json)?;
        return Ok(ExitCode::SUCCESS);
    }
    let report = model.report(&workload, &machine)?;
    if let Some(path) = &args.plot {
        let curves = Curves::new(&model.spec, &model.weights, &workload, &machine)?;
        let svg = plot::svg(&model.name, &curves, machine.available_bytes)?;
        std::fs::write(path, svg).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let text = if args.json { report.to_json()? + "\n" } else { report.to_text() };
    let mut out = Stdout::new();
    let _ = out.write(&text);
    out.check()?;
    let over = args.exit_code && report.fits == Some(false);
    Ok(if over { ExitCode::from(DOES_NOT_FIT) } else { ExitCode::SUCCESS })
}

/// Reads the sizes of the model, which keeps the name that was typed. A path to a `config.json` works
/// without the rest of its folder.
fn model(args: &ModelArgs) -> Result<ModelFootprint> {
    let file = args.model.as_deref().map(Path::new).filter(|path| path.is_file());
    let mut model = match (file, &args.model) {
        (Some(path), _) => ModelFootprint::read_path(path)?,
        (None, None) => ModelFootprint::read(&ModelSource::BuiltIn)?,
        (None, Some(name)) => match hub::resolve(Path::new(name)) {
            Err(missing @ HubError::NotInCache { .. }) => remote(name, missing)?,
            folder => ModelFootprint::read_path(&folder?)?,
        },
    };
    if let Some(name) = &args.model {
        model.name.clone_from(name);
    }
    Ok(model)
}

/// Reads the sizes of a model on the hub from the headers of its files. `missing` is the error for
/// offline use.
fn remote(name: &str, missing: HubError) -> Result<ModelFootprint> {
    let hub = Hub::from_env();
    if hub.is_offline() {
        return Err(missing.into());
    }
    let (spec, weights) = hub
        .sized(name, "main")
        .with_context(|| format!("{name} is neither on this machine nor readable on the hub"))?;
    note(&format!(
        "{name} is not on this machine: read {} of headers from the hub in {} requests",
        format_bytes(hub.received_bytes()),
        hub.requests()
    ));
    Ok(ModelFootprint { name: name.to_owned(), spec, weights })
}

/// This machine, with the memory of `--memory` if given.
fn machine(args: &InspectArgs) -> Result<Machine> {
    let machine = this_machine(args.backend)?;
    Ok(match args.memory {
        Some(bytes) => machine.with_available(bytes, AvailableSource::WhatIf),
        None => machine,
    })
}
