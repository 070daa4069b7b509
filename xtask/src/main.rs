//! Maintenance tasks of mlxcel: `cargo xtask TASK`.
//!
//! Nothing here links MLX, so that `cargo xtask …` builds in seconds.

mod bench;
mod bindings;
mod calibrate;
mod ci;
mod dist;
mod golden;
mod tidy;

use anyhow::Result;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Parser, Subcommand};
use mlxcel_testing::synth::{self, Dtype};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

/// Maintenance tasks of mlxcel; users need none of them.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Run all checks that a change must pass, up to the first failure
    Ci(ci::Options),
    /// Check the invariants that the compiler does not
    Tidy,
    /// Generate the Rust declarations of the MLX shim's C ABI
    Bindgen(bindings::Arguments),
    /// Write a random-weights checkpoint for any supported config.json
    SynthModel(SynthModel),
    /// Compare with llama.cpp and mlx-lm, or KV cache modes with each other
    Bench(bench::Arguments),
    /// Compare measured memory peaks with the estimate: headroom factor and error band
    CalibrateHeadroom(calibrate::Arguments),
    /// Build a relocatable folder with the program and MLX's library
    Dist(dist::Arguments),
    /// Regenerate the goldens with the pinned mlx-lm
    Golden(golden::Arguments),
}

#[derive(clap::Args)]
struct SynthModel {
    /// A config.json or its folder
    #[arg(long, value_name = "PATH")]
    config: PathBuf,
    /// Bits per weight in MLX's affine format: 2, 3, 4, 5, 6 or 8; 16 or absent: not quantised
    #[arg(long)]
    bits: Option<u8>,
    /// Weights that share a scale and a bias: 32, 64 or 128
    #[arg(long, default_value_t = 64)]
    group_size: u16,
    /// Of the weights, or of the scales and whatever is not quantised
    #[arg(long, default_value = "bf16", value_parser = dtypes())]
    dtype: Dtype,
    /// The folder to write
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Another seed, other weights
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Largest size of a file, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 5 << 10)]
    shard_size: u64,
}

fn dtypes() -> impl TypedValueParser<Value = Dtype> {
    let names = PossibleValuesParser::new(Dtype::ALL.map(Dtype::name));
    names.try_map(|name| Dtype::parse(&name).ok_or("not a floating-point type"))
}

impl SynthModel {
    fn run(&self) -> Result<()> {
        let weights = match self.bits {
            None | Some(16) => synth::Weights::Plain(self.dtype),
            Some(bits) => {
                synth::Weights::Affine { bits, group_size: self.group_size, scales: self.dtype }
            }
        };
        let shard_bytes = self.shard_size.saturating_mul(1 << 20);
        let options = synth::Options { weights, seed: self.seed, shard_bytes };
        let start = Instant::now();
        let summary = synth::checkpoint(&synth::read_config(&self.config)?, &options, &self.out)?;
        eprintln!(
            "{}: {} MiB in {} file(s), {:.1} s",
            self.out.display(),
            summary.bytes >> 20,
            summary.shards,
            start.elapsed().as_secs_f64()
        );
        Ok(())
    }
}

fn main() -> ExitCode {
    let result = match Args::parse().task {
        Task::Ci(options) => ci::run(&options),
        Task::Tidy => tidy::run(),
        Task::Bindgen(arguments) => bindings::run(&arguments),
        Task::SynthModel(task) => task.run(),
        Task::Bench(arguments) => bench::run(&arguments),
        Task::CalibrateHeadroom(arguments) => calibrate::run(&arguments),
        Task::Dist(arguments) => dist::run(&arguments),
        Task::Golden(arguments) => golden::run(&arguments),
    };
    if let Err(error) = result {
        eprintln!("error: {error:#}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
