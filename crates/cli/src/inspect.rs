//! `mlxcel inspect`: whether a model, a context and a batch fit, and what would.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use mlxcel_estimator::report::Curves;
use mlxcel_estimator::{
    AvailableSource, Backend, Machine, WeightQuant, Workload, format_bytes, parse_bytes,
};
use mlxcel_hub::{self as hub, Hub, HubError};
use mlxcel_runtime::engine::ModelSource;
use mlxcel_runtime::preflight::{Sized, this_machine};

use crate::advice;
use crate::args::{ChunkArgs, Dtype, KvArgs, ModelArgs};
use crate::plot;
use crate::terminal::{Stdout, note};

/// Arguments of `mlxcel inspect`. A path to a config.json works too.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// The model, as -m names it
    #[arg(value_name = "DIR|ORG/NAME", conflicts_with = "model")]
    name: Option<String>,
    /// Tokens of each sequence, prompt and answer together
    #[arg(short = 'n', long, short_alias = 'c', alias = "ctx-size")]
    #[arg(default_value_t = 8192, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    max_tokens: u64,
    /// Sequences at once
    #[arg(long, default_value_t = 1, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    batch: u64,
    /// Weights re-sized to: default (as they are), fp16, int8, int4
    #[arg(long, default_value = "default", value_name = "TYPE", value_parser = WeightQuant::parse)]
    quant: WeightQuant,
    #[command(flatten)]
    kv: KvArgs,
    #[command(flatten)]
    chunk: ChunkArgs,
    /// Computed and cached in this type: auto follows the checkpoint
    #[arg(long, value_enum, default_value_t)]
    dtype: Dtype,
    /// Compute with: cpu, cuda, metal [default: this machine's]
    #[arg(long, value_name = "NAME", value_parser = Backend::parse)]
    backend: Option<Backend>,
    /// Suppose this much memory, such as 24GiB [default: what this machine has available]
    #[arg(long, value_name = "SIZE", value_parser = |text: &str| parse_bytes("--memory", text))]
    memory: Option<u64>,
    /// Draw memory against context for every cache mode, as SVG
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// Print JSON (schema mlxcel.inspect/1)
    #[arg(long)]
    json: bool,
    /// Advise on weight quantisation and KV cache instead; nothing is applied
    #[arg(long, conflicts_with_all = ["kv_cache_mode", "cache_type_k", "cache_type_v", "quant", "exit_code"])]
    recommend: bool,
    /// Exit with 2 when it does not fit
    #[arg(long)]
    exit_code: bool,
}

/// Exit code of `--exit-code` where it does not fit.
const DOES_NOT_FIT: u8 = 2;

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let workload = Workload::uniform(args.max_tokens, args.batch)
        .with_kv_mode(args.kv.mode()?)
        .with_dtype(args.dtype.computed())
        .with_prefill_chunk(args.chunk.tokens(ChunkArgs::DEFAULT)? as u64)
        .with_quant(args.quant);
    let named = ModelArgs { model: args.model.model.clone().or_else(|| args.name.clone()) };
    let (model, machine) = (model(&named)?, machine(args)?);
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

/// The model, under the name that was typed. A path to a configuration needs no folder around it.
fn model(args: &ModelArgs) -> Result<Sized> {
    let file = args.model.as_deref().map(Path::new).filter(|path| path.is_file());
    let mut model = match (file, &args.model) {
        (Some(path), _) => Sized::read_path(path)?,
        (None, None) => Sized::read(&ModelSource::BuiltIn)?,
        (None, Some(name)) => match hub::resolve(Path::new(name)) {
            Err(absent @ HubError::NotInCache { .. }) => remote(name, absent)?,
            folder => Sized::read_path(&folder?)?,
        },
    };
    if let Some(name) = &args.model {
        model.name.clone_from(name);
    }
    Ok(model)
}

/// The model on the hub, by the headers of its files; `absent` says that it is not here.
fn remote(name: &str, absent: HubError) -> Result<Sized> {
    let hub = Hub::from_env();
    if hub.is_offline() {
        return Err(absent.into());
    }
    let model = hub.sized(name, "main");
    let (spec, weights) =
        model.with_context(|| format!("{name} is not on this machine, and on the hub"))?;
    let (requests, bytes) = (hub.requests(), format_bytes(hub.received_bytes()));
    note(&format!(
        "{name} is not on this machine: {bytes} of its headers read from the hub in {requests} requests"
    ));
    Ok(Sized { name: name.to_owned(), spec, weights })
}

/// This machine, or it with the supposed memory.
fn machine(args: &Args) -> Result<Machine> {
    let machine = this_machine(args.backend)?;
    Ok(match args.memory {
        Some(bytes) => machine.with_available(bytes, AvailableSource::WhatIf),
        None => machine,
    })
}
