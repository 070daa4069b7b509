//! `mlxcel quantize` and `mlxcel convert`: conversion of checkpoints.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, bail};
use clap::ValueEnum;
use mlxcel_estimator::format_bytes;
use mlxcel_runtime::FloatType;
use mlxcel_runtime::convert::{self, ConvertOptions, ConvertSummary, MixedRecipe, WeightFormat};
use mlxcel_runtime::engine::ModelSource;

use crate::args::{ModelArgs, ThreadArgs};
use crate::terminal::{Bars, Interrupt, Unit, note};

/// Maximum number of dropped tensors to name.
const SHOWN_NAMES: usize = 3;

/// Arguments of both commands.
#[derive(clap::Args)]
struct CommonArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Output folder; it must not exist
    #[arg(short, long, value_name = "DIR")]
    out: PathBuf,
    /// Floating-point type [default: torch_dtype of config.json, else unchanged]
    #[arg(long, value_enum)]
    dtype: Option<FloatName>,
    #[command(flatten)]
    threads: ThreadArgs,
    /// Print only errors
    #[arg(short, long)]
    quiet: bool,
}

/// Values of `--dtype`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FloatName {
    /// IEEE half precision.
    #[value(aliases = ["fp16", "f16"])]
    Float16,
    /// Half the bits and the full range of single precision.
    #[value(alias = "bf16")]
    Bfloat16,
    /// IEEE single precision.
    #[value(aliases = ["fp32", "f32"])]
    Float32,
}

/// Arguments of `mlxcel quantize`.
#[derive(clap::Args)]
#[command(after_help = "The result is bit-for-bit identical to that of `mlx_lm.convert -q`.")]
pub(crate) struct QuantizeArgs {
    #[command(flatten)]
    common: CommonArgs,
    /// Bits per weight: 2, 3, 4, 5, 6 or 8
    #[arg(short, long, alias = "q-bits", default_value_t = 4, value_name = "N")]
    bits: u8,
    /// Weights per scale and bias: 32, 64 or 128
    #[arg(short, long, alias = "q-group-size", default_value_t = 64, value_name = "N")]
    group_size: u16,
    /// Use more bits for sensitive layers: mixed_2_6, mixed_3_4, mixed_3_6 or mixed_4_6
    #[arg(long, alias = "quant-predicate", value_name = "RECIPE", conflicts_with = "bits")]
    #[arg(value_parser = MixedRecipe::parse)]
    mixed: Option<MixedRecipe>,
}

/// Arguments of `mlxcel convert`.
#[derive(clap::Args)]
#[command(after_help = "Tensors that the model does not use are dropped and listed.")]
pub(crate) struct ConvertArgs {
    #[command(flatten)]
    common: CommonArgs,
}

/// Runs `mlxcel quantize`.
pub(crate) fn quantize(args: &QuantizeArgs) -> Result<ExitCode> {
    let QuantizeArgs { bits, group_size, mixed, .. } = *args;
    let target = WeightFormat::Affine { bits, group_size, mixed };
    args.common.run(target, "quantize")
}

/// Runs `mlxcel convert`.
pub(crate) fn convert(args: &ConvertArgs) -> Result<ExitCode> {
    args.common.run(WeightFormat::Float, "convert")
}

impl CommonArgs {
    fn run(&self, target: WeightFormat, command: &'static str) -> Result<ExitCode> {
        let ModelSource::Folder(source) = self.model.source()? else {
            bail!(
                "{command} needs a model: give one with -m DIR (the built-in one is already 4-bit)"
            );
        };
        let interrupt = Interrupt::install()?;
        let started = Instant::now();
        let dtype = self.dtype.map(|name| match name {
            FloatName::Float16 => FloatType::F16,
            FloatName::Bfloat16 => FloatType::Bf16,
            FloatName::Float32 => FloatType::F32,
        });
        let mut bars = Bars::new(interrupt.clone()).quiet(self.quiet);
        let summary = convert::convert(
            &source,
            &self.out,
            &ConvertOptions { format: target, dtype },
            self.threads.count()?,
            &mut |done, total| {
                bars.show(command, Unit::Bytes, done, total);
                interrupt.flow()
            },
        )?;
        drop(bars);
        if !self.quiet {
            self.report(&summary, started);
        }
        Ok(ExitCode::SUCCESS)
    }

    fn report(&self, summary: &ConvertSummary, started: Instant) {
        if !summary.dropped.is_empty() {
            let mut names = summary.dropped.clone();
            names.truncate(SHOWN_NAMES);
            let count = summary.dropped.len();
            note(&format!(
                "dropped {count} tensors that the model does not use, such as {}",
                names.join(", ")
            ));
        }
        eprintln!(
            "{}: {} from {}, {:.3} bits per weight, {} tensors quantised, {:.1} s",
            self.out.display(),
            format_bytes(summary.bytes),
            format_bytes(summary.source_bytes),
            summary.bits_per_weight(),
            summary.quantized,
            started.elapsed().as_secs_f64()
        );
    }
}
