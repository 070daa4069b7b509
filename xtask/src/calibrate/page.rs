//! `docs/calibration.md`.

use super::Band;
use super::sample::Sample;
use mlxcel_estimator::{CalibrationEntry, format_bytes};
use std::fmt::Write as _;

/// The page: what was measured and how, and every sample of a matrix of `whole`.
pub(super) fn render(
    entry: &CalibrationEntry,
    samples: &[Sample],
    band: &Band,
    whole: usize,
) -> String {
    let mut page = format!(
        "# Calibration\n\n\
         Written by `cargo xtask calibrate-headroom` on {}: backend {}, MLX {}, {} of the\n\
         matrix's {whole} samples.\n\n\
         Each sample is a process of its own. `mlxcel bench` fills a cache synthetically, reads the\n\
         last prefill chunk of the context, and reports its largest resident size; what the process\n\
         held before the load is taken off. `docs/memory-estimator.md` says what is expected.\n\n\
         | | |\n|---|---|\n\
         | peak ÷ (weights + cache) | {:.3} in the middle, {:.3} to {:.3} |\n\
         | expected peak | within {:.1} % of every measured one |\n\
         | samples above the total (factor 1.20) | {} |\n\n\
         ![measured over expected peak](calibration.svg)\n\n\
         | model | cache | context | chunk | weights + cache | expected | measured | ratio | factor |\n\
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
