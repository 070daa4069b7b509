//! Rendering of `docs/calibration.md`.

use super::Band;
use super::sample::Sample;
use mlxcel_estimator::{CalibrationEntry, format_bytes};
use std::fmt::Write as _;

/// Renders method, summary and all samples; `matrix_samples` is the size of the complete matrix.
pub(super) fn render(
    entry: &CalibrationEntry,
    samples: &[Sample],
    band: &Band,
    matrix_samples: usize,
) -> String {
    let mut page = format!(
        "# Calibration\n\n\
         Written by `cargo xtask calibrate-headroom` on {}: backend {}, MLX {}, {} of the\n\
         matrix's {matrix_samples} samples.\n\n\
         Each sample is a process: `mlxcel bench` fills the cache with synthetic values, computes the\n\
         last prefill chunk of the context, and reports its peak resident memory, from which the\n\
         memory before the load is subtracted. `docs/memory-estimator.md` describes the estimate.\n\n\
         | | |\n|---|---|\n\
         | peak ÷ (weights + cache) | median {:.3}, {:.3} to {:.3} |\n\
         | estimated peak | within {:.1} % of every measured one |\n\
         | samples above the total (factor 1.20) | {} |\n\n\
         ![measured over estimated peak](calibration.svg)\n\n\
         | model | cache | context | chunk | weights + cache | estimated | measured | ratio | factor |\n\
         |---|---|---:|---:|---:|---:|---:|---:|---:|\n",
        entry.date,
        entry.backend.name(),
        entry.mlx_version,
        samples.len(),
        band.factor,
        band.factors.0,
        band.factors.1,
        band.error * 100.0,
        band.above_total,
    );
    for s in samples {
        let _ = writeln!(
            page,
            "| {} | {} | {} | {} | {} | {} | {} | {:.3} | {:.3} |",
            s.name,
            s.mode,
            s.context,
            s.chunk,
            format_bytes(s.base),
            format_bytes(s.expected),
            format_bytes(s.measured),
            s.ratio(),
            s.factor()
        );
    }
    page
}
