//! `cargo xtask calibrate-headroom`: measured against estimated memory peaks.
//!
//! Each sample is a process: `mlxcel bench` fills a context with synthetic values except for its last
//! prefill chunk, computes that chunk, and reports its peak. The memory of the process before the load is
//! subtracted, because the estimate does not include it.

mod journal;
mod matrix;
mod page;
mod plot;
mod sample;

use anyhow::{Context, Result, ensure};
use journal::Journal;
use mlxcel_estimator::{
    Backend, CALIBRATION_SCHEMA, Calibration, CalibrationEntry, MlxVersion, calibration_path,
};
use mlxcel_testing::paths::workspace_root;
use sample::Sample;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Command-line options of `cargo xtask calibrate-headroom`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Folders of real checkpoints, instead of synthetic ones
    #[arg(long, value_name = "DIR", num_args = 1..)]
    models: Vec<PathBuf>,
    /// Tokens in the KV cache at the end
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_values_t = [512, 4096, 32_768])]
    contexts: Vec<u64>,
    /// Tokens per prefill chunk; chunks longer than the context are skipped
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_values_t = [128, 512, 2048])]
    chunks: Vec<u64>,
    /// KV cache modes [default: all]
    #[arg(long, value_name = "MODE,…", value_delimiter = ',')]
    modes: Vec<String>,
    /// Names of synthetic shapes [default: all]
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    shapes: Vec<String>,
    /// Program to measure [default: target/release/mlxcel]
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    /// Folder for synthetic checkpoints [default: target/calibration]
    #[arg(long, value_name = "DIR")]
    checkpoints: Option<PathBuf>,
    /// Continue an interrupted run, whose samples are stored with the checkpoints
    #[arg(long)]
    resume: bool,
    /// Do not measure: write the page from the samples of an interrupted run
    #[arg(long, requires = "resume")]
    kept_only: bool,
    /// Calibration file to update [default: the user's]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Page to write, with a plot of the same name [default: docs/calibration.md]
    #[arg(long, value_name = "FILE")]
    page: Option<PathBuf>,
}

/// Summary of the samples.
pub(crate) struct Band {
    /// Median of peak ÷ (weights + cache).
    factor: f64,
    /// Minimum and maximum of that quotient.
    factors: (f64, f64),
    /// Largest relative deviation of a measured from an estimated peak.
    error: f64,
    /// Samples whose peak exceeds the estimated total.
    above_total: usize,
}

/// Runs the task.
///
/// # Errors
/// A missing or failing program, or a file that cannot be written.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let root = workspace_root();
    let program = arguments.program.clone().unwrap_or_else(|| root.join("target/release/mlxcel"));
    ensure!(
        program.is_file(),
        "{} does not exist: run cargo build --release -p cli, or use --program",
        program.display()
    );
    let backend = backend_of(&program)?;
    let mut journal = Journal::open(&matrix::checkpoints(arguments, &root), arguments.resume)?;
    let loads = matrix::loads(arguments, &root)?;
    let mut samples = Vec::new();
    for load in &loads {
        if arguments.kept_only && journal.recorded(load).is_none() {
            continue;
        }
        let sample = journal.get_or_measure(load, || Sample::measure(&program, backend, load))?;
        eprintln!("{}", sample.line());
        samples.push(sample);
    }
    ensure!(!samples.is_empty(), "nothing to measure: every chunk exceeds its context");
    let band = Band::of(&samples);
    eprintln!("{}", band.line(samples.len()));
    let entry = entry(backend, &samples, &band);
    let page = arguments.page.clone().unwrap_or_else(|| root.join("docs/calibration.md"));
    write(&page, &page::render(&entry, &samples, &band, loads.len()))?;
    write(&page.with_extension("svg"), &plot::render(&samples)?)?;
    let out = arguments.out.clone().or_else(|| calibration_path(|name| std::env::var_os(name)));
    save(&out.context("no home folder: name a file with --out")?, entry)
}

/// The program's backend on this machine.
fn backend_of(program: &Path) -> Result<Backend> {
    let output = Command::new(program).args(["inspect", "--json"]).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    let report: Value = serde_json::from_slice(&output.stdout)?;
    let name = report["inputs"]["backend"].as_str().context("the report names no backend")?;
    Ok(Backend::parse(name)?)
}

fn entry(backend: Backend, samples: &[Sample], band: &Band) -> CalibrationEntry {
    CalibrationEntry {
        backend,
        mlx_version: MlxVersion::CURRENT.to_string(),
        date: jiff::Zoned::now().date().to_string(),
        samples: samples.len() as u64,
        factor: round_up(band.factor.max(1.0)),
        error_band: round_up(band.error),
    }
}

/// Rounds up to three decimals.
fn round_up(value: f64) -> f64 {
    (value * 1000.0).ceil() / 1000.0
}

/// Replaces the entry for the same backend and version.
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
            "{samples} samples: peak ÷ (weights + cache) median {:.3}, {:.3} to {:.3}; \
             estimated peak within {:.1} %; {} above the total",
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
