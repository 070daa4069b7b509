//! `mlxcel bench`: prefill and decode speed at given depths, modelled on llama-bench.

use std::process::ExitCode;

use anyhow::{Result, bail};
use mlxcel_estimator::KvMode;
use mlxcel_runtime::bench::{Measurement, Plan, Test};
use mlxcel_runtime::engine::Engine;
use mlxcel_runtime::memory;
use mlxcel_runtime::preflight::{ModelFootprint, enforce_memory_limit};
use serde::Serialize;

use crate::args::{Activations, ComputeArgs, ModelArgs};
use crate::terminal::{Bars, INTERRUPTED, Interrupt, print};

/// Arguments of `mlxcel bench`.
#[derive(clap::Args)]
pub(crate) struct BenchArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Prompt lengths to measure; 0 for none
    #[arg(short = 'p', long, value_delimiter = ',', default_value = "512", value_name = "N,…")]
    n_prompt: Vec<usize>,
    /// Numbers of decoded tokens to measure; 0 for none
    #[arg(short = 'n', long, value_delimiter = ',', default_value = "64", value_name = "N,…")]
    n_gen: Vec<usize>,
    /// Tokens in the KV cache before each measurement, filled with synthetic values
    #[arg(short = 'd', long, value_delimiter = ',', default_value = "0", value_name = "N,…")]
    n_depth: Vec<usize>,
    /// KV cache modes to measure
    #[arg(long, value_delimiter = ',', default_value = "fp16", value_name = "MODE,…")]
    kv_cache_mode: Vec<String>,
    /// Repetitions of each measurement
    #[arg(short = 'r', long, default_value_t = 3, value_name = "N")]
    repetitions: usize,
    #[command(flatten)]
    compute: ComputeArgs,
    /// Print one JSON array of rows
    #[arg(long)]
    json: bool,
}

/// One line of `--json`.
#[derive(Serialize)]
struct Row {
    test: &'static str,
    tokens: usize,
    depth: usize,
    kv_mode: String,
    tokens_per_second: f64,
    stddev: f64,
    /// Resident memory before the first model was loaded.
    memory_baseline_bytes: Option<u64>,
    /// Peak resident memory of the process so far.
    peak_resident_bytes: Option<u64>,
}

/// Runs the command.
pub(crate) fn run(args: &BenchArgs) -> Result<ExitCode> {
    if args.repetitions == 0 {
        bail!("--repetitions must be at least 1");
    }
    let interrupt = Interrupt::install()?;
    let source = args.model.source()?;
    let mut rows = Vec::new();
    let baseline = memory::resident_bytes();
    for name in &args.kv_cache_mode {
        let mode = KvMode::parse(name)?;
        let config = args.compute.engine(mode, Activations::GENERATING)?;
        enforce_memory_limit(&ModelFootprint::read(&source)?)?;
        let engine = Engine::load(&source, config, &mut Bars::new(interrupt.clone()))?;
        for plan in plans(args) {
            if interrupt.raised() {
                return Ok(ExitCode::from(INTERRUPTED));
            }
            let row = Row::new(mode, &engine.measure(plan, args.repetitions)?, baseline);
            if !args.json {
                print_row(&row, rows.is_empty())?;
            }
            rows.push(row);
        }
    }
    if args.json {
        print(&(serde_json::to_string_pretty(&rows)? + "\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn plans(args: &BenchArgs) -> impl Iterator<Item = Plan> {
    let prompts = args.n_prompt.iter().map(|&tokens| (Test::Prefill, tokens));
    let decodes = args.n_gen.iter().map(|&tokens| (Test::Decode, tokens));
    let tests: Vec<_> = prompts.chain(decodes).filter(|(_, tokens)| *tokens > 0).collect();
    args.n_depth.iter().flat_map(move |&depth| {
        tests.clone().into_iter().map(move |(test, tokens)| Plan { test, tokens, depth })
    })
}

impl Row {
    fn new(mode: KvMode, measured: &Measurement, memory_baseline_bytes: Option<u64>) -> Self {
        Self {
            test: measured.plan.test.name(),
            tokens: measured.plan.tokens,
            depth: measured.plan.depth,
            kv_mode: mode.to_string(),
            tokens_per_second: measured.tokens_per_second,
            stddev: measured.stddev,
            memory_baseline_bytes,
            peak_resident_bytes: memory::MemoryUsage::now().peak_resident_bytes,
        }
    }
}

fn print_row(row: &Row, first: bool) -> Result<()> {
    if first {
        print("test   tokens    depth  kv mode             tok/s\n")?;
    }
    print(&format!(
        "{:4} {:8} {:8}  {:16} {:8.2} ± {:.2}\n",
        row.test, row.tokens, row.depth, row.kv_mode, row.tokens_per_second, row.stddev
    ))
}
