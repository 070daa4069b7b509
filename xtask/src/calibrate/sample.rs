//! One measured load.

use super::matrix::Load;
use anyhow::{Context, Result, ensure};
use mlxcel_estimator::{Backend, Machine, Workload, estimate_dir, format_bytes};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

/// Estimated and measured memory of a load, in bytes.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Sample {
    pub(super) name: String,
    pub(super) mode: String,
    pub(super) context: u64,
    pub(super) chunk: u64,
    /// Weights and cache, scales included.
    pub(super) base: u64,
    pub(super) expected: u64,
    pub(super) total: u64,
    /// Peak resident memory minus that before the load.
    pub(super) measured: u64,
}

impl Sample {
    /// Estimates and runs `load`.
    pub(super) fn measure(program: &Path, backend: Backend, load: &Load) -> Result<Self> {
        let workload = Workload::uniform(load.context, 1)
            .with_kv_mode(load.mode)
            .with_prefill_chunk(load.chunk);
        let estimate = estimate_dir(&load.folder, &workload, &Machine::new(backend))?;
        let cache_bytes = estimate.kv_cache_bytes.zip(estimate.kv_scale_bytes);
        let (cache, scales) = cache_bytes.context("the estimator does not know this model")?;
        Ok(Self {
            name: load.name.clone(),
            mode: load.mode.name().to_owned(),
            context: load.context,
            chunk: load.chunk,
            base: estimate.weights.bytes + cache + scales,
            expected: estimate.expected_peak_bytes,
            total: estimate.total_bytes,
            measured: peak(program, load)?,
        })
    }

    /// True if this is a sample of `load`.
    pub(super) fn is_of(&self, load: &Load) -> bool {
        (self.name.as_str(), self.mode.as_str(), self.context, self.chunk)
            == (load.name.as_str(), load.mode.name(), load.context, load.chunk)
    }

    /// Measured over estimated peak.
    pub(super) fn ratio(&self) -> f64 {
        self.measured as f64 / self.expected.max(1) as f64
    }

    /// Measured peak over weights and cache, the quantity that the headroom factor bounds.
    pub(super) fn factor(&self) -> f64 {
        self.measured as f64 / self.base.max(1) as f64
    }

    pub(super) fn line(&self) -> String {
        format!(
            "{:18} {:16} context {:6} chunk {:5}: estimated {:>10}, measured {:>10}, ratio {:.3}, factor {:.3}",
            self.name,
            self.mode,
            self.context,
            self.chunk,
            format_bytes(self.expected),
            format_bytes(self.measured),
            self.ratio(),
            self.factor()
        )
    }
}

/// Peak memory of a process that computes the last chunk of the context.
fn peak(program: &Path, load: &Load) -> Result<u64> {
    let depth = load.context - load.chunk;
    let output = Command::new(program)
        .arg("bench")
        .arg("-m")
        .arg(&load.folder)
        .args(["-r", "1", "-n", "0", "--json", "--kv-cache-mode", load.mode.name()])
        .args(["-p", &load.chunk.to_string(), "-d", &depth.to_string()])
        .args(["--prefill-chunk", &load.chunk.to_string()])
        .output()
        .with_context(|| format!("running {}", program.display()))?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {}", load.name, complaint.trim());
    let rows: Value = serde_json::from_slice(&output.stdout)?;
    let peak = rows[0]["peak_resident_bytes"].as_u64();
    let baseline = rows[0]["memory_baseline_bytes"].as_u64();
    let (peak, before) = peak
        .zip(baseline)
        .context("this platform does not report resident memory, so peaks cannot be measured")?;
    Ok(peak.saturating_sub(before))
}
