//! `/metrics`: counters and gauges in Prometheus' text format.

use std::fmt::Write;

use super::app::Served;
use super::shared::Metrics;
use super::watch::used_bytes;
use mlxcel_runtime::memory::MemoryUsage;

/// The page.
pub(super) fn text(served: &Served) -> String {
    let mut out = String::new();
    for (name, help, number) in counters(&served.shared.metrics) {
        let name = format!("mlxcel_{name}_total");
        let _ = write!(out, "# HELP {name} {help}.\n# TYPE {name} counter\n{name} {number}\n");
    }
    for (name, help, number) in gauges(served) {
        let name = format!("mlxcel_{name}");
        let _ = write!(out, "# HELP {name} {help}.\n# TYPE {name} gauge\n{name} {number}\n");
    }
    out
}

/// Name, help, value.
type Line = (&'static str, &'static str, u64);

fn counters(metrics: &Metrics) -> [Line; 11] {
    let lines = [
        ("answers_finished", "Answers completed", &metrics.finished),
        ("requests_failed", "Requests that failed", &metrics.failed),
        ("requests_refused", "Requests refused: too large, or a full queue", &metrics.refused),
        ("requests_cancelled", "Requests given up by their clients", &metrics.cancelled),
        ("requests_aborted", "Requests given up at the memory limit", &metrics.aborted),
        ("prompt_tokens", "Tokens of prompts", &metrics.prompt_tokens),
        ("cached_prompt_tokens", "Of those, found in the prompt cache", &metrics.cached_tokens),
        ("generated_tokens", "Tokens of answers", &metrics.generated_tokens),
        (
            "request_kv_estimated_bytes",
            "Cache bytes of completed answers by the estimate",
            &metrics.kv_estimated_bytes,
        ),
        (
            "request_kv_measured_bytes",
            "Cache bytes of completed answers as allocated",
            &metrics.kv_measured_bytes,
        ),
        (
            "first_token_microseconds",
            "Sum of the times to first tokens",
            &metrics.first_token_microseconds,
        ),
    ];
    lines.map(|(name, help, number)| (name, help, number.get()))
}

fn gauges(served: &Served) -> [Line; 11] {
    let snapshot = served.shared.snapshot();
    let usage = MemoryUsage::now();
    [
        ("requests_running", "Answers that run", snapshot.requests.len() as u64),
        ("requests_waiting", "Requests that wait", snapshot.waiting as u64),
        ("weights_bytes", "Bytes of weights", snapshot.weights_bytes),
        ("kv_used_bytes", "Cache bytes of running answers", snapshot.kv_used_bytes),
        (
            "kv_reserved_bytes",
            "Cache bytes that running answers may grow to",
            snapshot.kv_reserved_bytes,
        ),
        ("prompt_cache_bytes", "Bytes of cached prefixes", snapshot.prefix_bytes),
        ("intake_bytes", "What requests take before they run", served.shared.intake.held_bytes()),
        ("scratch_bytes", "What a pass needs for a moment", snapshot.scratch_bytes),
        ("memory_limit_bytes", "The limit", served.admission.limit_bytes().unwrap_or(0)),
        ("memory_used_bytes", "Measured bytes", used_bytes(&usage, served.baseline_bytes)),
        ("memory_peak_bytes", "Largest resident size", usage.peak_resident_bytes.unwrap_or(0)),
    ]
}
