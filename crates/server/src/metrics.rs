//! `/metrics`: counters and gauges in Prometheus' text format.

use std::fmt::Write;

use super::app::LoadedModel;
use super::memory_watch::used_bytes;
use super::status::Metrics;
use mlxcel_runtime::memory::MemoryUsage;

/// All metrics.
pub(super) fn text(model: &LoadedModel) -> String {
    let mut out = String::new();
    for (name, help, number) in counters(&model.status.metrics) {
        let name = format!("mlxcel_{name}_total");
        let _ = write!(out, "# HELP {name} {help}.\n# TYPE {name} counter\n{name} {number}\n");
    }
    for (name, help, number) in gauges(model) {
        let name = format!("mlxcel_{name}");
        let _ = write!(out, "# HELP {name} {help}.\n# TYPE {name} gauge\n{name} {number}\n");
    }
    out
}

/// Name, help, value.
type Line = (&'static str, &'static str, u64);

fn counters(metrics: &Metrics) -> [Line; 11] {
    let lines = [
        ("answers_finished", "Finished completions", &metrics.finished),
        ("requests_failed", "Failed requests", &metrics.failed),
        (
            "requests_refused",
            "Requests refused before queueing: too large, or a full queue",
            &metrics.refused,
        ),
        ("requests_cancelled", "Requests cancelled by their clients", &metrics.cancelled),
        ("requests_aborted", "Requests aborted at the memory limit", &metrics.aborted),
        ("prompt_tokens", "Prompt tokens", &metrics.prompt_tokens),
        ("cached_prompt_tokens", "Prompt tokens found in the prompt cache", &metrics.cached_tokens),
        ("generated_tokens", "Generated tokens", &metrics.generated_tokens),
        (
            "request_kv_estimated_bytes",
            "Estimated cache bytes of finished completions",
            &metrics.kv_estimated_bytes,
        ),
        (
            "request_kv_measured_bytes",
            "Allocated cache bytes of finished completions",
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

fn gauges(model: &LoadedModel) -> [Line; 11] {
    let snapshot = model.status.snapshot();
    let usage = MemoryUsage::now();
    [
        ("requests_running", "Running completions", snapshot.requests.len() as u64),
        ("requests_waiting", "Waiting requests", snapshot.waiting as u64),
        ("weights_bytes", "Bytes of weights", snapshot.weights_bytes),
        ("kv_used_bytes", "Cache bytes of running completions", snapshot.kv_used_bytes),
        (
            "kv_reserved_bytes",
            "Cache bytes reserved for the growth of running completions",
            snapshot.kv_reserved_bytes,
        ),
        ("prompt_cache_bytes", "Bytes of the prompt cache", snapshot.prefix_bytes),
        (
            "intake_bytes",
            "Bytes of requests before they run",
            model.status.request_budget.held_bytes(),
        ),
        ("scratch_bytes", "Peak transient memory of a pass", snapshot.scratch_bytes),
        ("memory_limit_bytes", "Memory limit", model.admission.limit_bytes().unwrap_or(0)),
        ("memory_used_bytes", "Measured memory", used_bytes(&usage, model.baseline_bytes)),
        ("memory_peak_bytes", "Largest resident size", usage.peak_resident_bytes.unwrap_or(0)),
    ]
}
