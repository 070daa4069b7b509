//! `cargo xtask calibrate-headroom`: measured peaks against expected ones.
//!
//! Every sample is a process of its own: `mlxcel bench` reads one prefill chunk at the end of a
//! context whose rest is filled synthetically, decodes one token, and reports its peak. The
//! process as it was before the load is taken off, as the estimate leaves it out.

mod matrix;
mod page;
mod plot;
mod sample;
mod taken;

use anyhow::{Context, Result, ensure};
use mlxcel_estimator::{
    Backend, CALIBRATION_SCHEMA, Calibration, CalibrationEntry, MlxVersion, calibration_path,
};
use mlxcel_testing::paths::workspace_root;
use sample::Sample;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use taken::Taken;

/// What to measure, and where to write it.
#[derive(clap::Args)]
pub struct Arguments {
    /// Folders of real checkpoints, instead of synthetic ones
    #[arg(long, value_name = "DIR", num_args = 1..)]
    models: Vec<PathBuf>,
    /// Tokens in the cache at the end
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_values_t = [512, 4096, 32_768])]
    contexts: Vec<u64>,
    /// Tokens of a prefill chunk; one longer than the context is left out
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_values_t = [128, 512, 2048])]
    chunks: Vec<u64>,
    /// KV cache modes [default: all]
    #[arg(long, value_name = "MODE,…", value_delimiter = ',')]
    modes: Vec<String>,
    /// Synthetic shapes, by name [default: all]
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    shapes: Vec<String>,
    /// The built program [default: target/release/mlxcel]
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    /// Where synthetic checkpoints are kept [default: target/calibration]
    #[arg(long, value_name = "DIR")]
    checkpoints: Option<PathBuf>,
    /// Go on where a run that was stopped stopped: its samples lie beside the checkpoints
    #[arg(long)]
    resume: bool,
    /// Measure nothing more: make the page of the samples that a stopped run has kept
    #[arg(long, requires = "resume")]
    kept_only: bool,
    /// The calibration file to update [default: the user's]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// The page to write, with a plot beside it [default: docs/calibration.md]
    #[arg(long, value_name = "FILE")]
    page: Option<PathBuf>,
}

/// What the samples say.
pub(crate) struct Band {
    /// Middle of peak ÷ (weights + cache).
    factor: f64,
    /// Smallest and largest of it.
    factors: (f64, f64),
    /// Largest distance of a measured peak from the expected one, as a fraction.
    error: f64,
    /// Samples whose peak exceeds the total.
    above_total: usize,
}

/// Runs the task.
///
/// # Errors
/// A program that is not built or fails, a checkpoint or a file that cannot be written.
pub fn run(arguments: &Arguments) -> Result<()> {
    let root = workspace_root();
    let program = arguments.program.clone().unwrap_or_else(|| root.join("target/release/mlxcel"));
    ensure!(
        program.is_file(),
        "{} is not there: cargo build --release -p cli, or --program",
        program.display()
    );
    let backend = backend_of(&program)?;
    let mut taken = Taken::open(&matrix::checkpoints(arguments, &root), arguments.resume)?;
    let (mut samples, loads) = (Vec::new(), matrix::loads(arguments, &root)?);
    for load in &loads {
        if arguments.kept_only && taken.kept(load).is_none() {
            continue;
        }
        let sample = taken.take(load, || Sample::measure(&program, backend, load))?;
        eprintln!("{}", sample.line());
        samples.push(sample);
    }
    ensure!(!samples.is_empty(), "there is nothing to measure: every chunk exceeds its context");
    let band = Band::of(&samples);
    eprintln!("{}", band.line(samples.len()));
    let entry = entry(backend, &samples, &band);
    let page = arguments.page.clone().unwrap_or_else(|| root.join("docs/calibration.md"));
    write(&page, &page::render(&entry, &samples, &band, loads.len()))?;
    write(&page.with_extension("svg"), &plot::render(&samples)?)?;
    let out = arguments.out.clone().or_else(|| calibration_path(|name| std::env::var_os(name)));
    save(&out.context("there is no home folder: name a file with --out")?, entry)
}

/// What the program computes with on this machine.
fn backend_of(program: &Path) -> Result<Backend> {
    let output = Command::new(program).args(["inspect", "--json"]).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    let report: Value = serde_json::from_slice(&output.stdout)?;
    let name = report["inputs"]["backend"].as_str().context("the report names no backend")?;
    Ok(Backend::parse(name)?)
}

fn entry(backend: Backend, samples: &[Sample], band: &Band) -> CalibrationEntry {
    let up = |x: f64| (x * 1000.0).ceil() / 1000.0;
    CalibrationEntry {
        backend,
        mlx_version: MlxVersion::CURRENT.to_string(),
        date: jiff::Zoned::now().date().to_string(),
        samples: samples.len() as u64,
        factor: up(band.factor.max(1.0)),
        error_band: up(band.error),
    }
}

/// Puts `entry` in the place of the one for its backend and version.
fn save(path: &Path, entry: CalibrationEntry) -> Result<()> {
    let mut entries = match std::fs::read_to_string(path) {
        Ok(text) => Calibration::parse(&text)?.entries,
        Err(_) => Vec::new(),
    };
    entries.retain(|old| (old.backend, &old.mlx_version) != (entry.backend, &entry.mlx_version));
    entries.push(entry);
    let calibration = Calibration { schema: CALIBRATION_SCHEMA.to_owned(), entries };
    write(path, &(serde_json::to_string_pretty(&calibration)? + "\n"))
}

fn write(path: &Path, text: &str) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    eprintln!("wrote {}", path.display());
    Ok(())
}

impl Band {
    fn of(samples: &[Sample]) -> Self {
        let mut factors: Vec<f64> = samples.iter().map(Sample::factor).collect();
        factors.sort_by(f64::total_cmp);
        let error = samples.iter().map(|s| (s.ratio() - 1.0).abs()).fold(0.0, f64::max);
        Self {
            factor: factors.get(factors.len() / 2).copied().unwrap_or(1.0),
            factors: (
                factors.first().copied().unwrap_or(1.0),
                factors.last().copied().unwrap_or(1.0),
            ),
            error,
            above_total: samples.iter().filter(|s| s.measured > s.total).count(),
        }
    }

    fn line(&self, samples: usize) -> String {
        format!(
            "{samples} samples: peak ÷ (weights + cache) {:.3} in the middle, {:.3} to {:.3}; \
             expected peak within {:.1} %; {} above the total",
            self.factor,
            self.factors.0,
            self.factors.1,
            self.error * 100.0,
            self.above_total
        )
    }
}

#[cfg(test)]
mod tests;
