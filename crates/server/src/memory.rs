//! `/v1/memory`: the current memory budget.

use serde_json::{Value, json};

use super::app::{AppState, LoadedModel};
use super::memory_watch::used_bytes;
use mlxcel_runtime::memory::MemoryUsage;

/// Use of memory by the estimate, by measurement, and the limit.
pub(super) fn budget(app: &AppState, model: &LoadedModel) -> Value {
    let snapshot = model.status.snapshot();
    let usage = MemoryUsage::now();
    let limit = model.admission.limit_bytes();
    let process_bytes = model.admission.process_bytes();
    let request_bytes = model.status.request_budget.held_bytes();
    let counted = process_bytes
        .saturating_add(request_bytes)
        .saturating_add(snapshot.weights_bytes)
        .saturating_add(snapshot.held_bytes)
        .saturating_add(snapshot.kv_reserved_bytes)
        .saturating_add(snapshot.scratch_bytes)
        .saturating_add(snapshot.headroom_bytes);
    json!({
        "system": { "memory_total_bytes": app.total_memory_bytes },
        "limit_bytes": limit,
        "process_bytes": process_bytes,
        "weights_bytes": snapshot.weights_bytes,
        "kv": {
            "used_bytes": snapshot.kv_used_bytes,
            "remodel_bytes": snapshot.kv_reserved_bytes,
            "shared_bytes": snapshot.held_bytes,
        },
        "prompt_cache": { "bytes": snapshot.prefix_bytes, "entries": snapshot.prefix_entries },
        "intake_bytes": request_bytes,
        "scratch_bytes": snapshot.scratch_bytes,
        "headroom_bytes": snapshot.headroom_bytes,
        "free_bytes": limit.map(|limit| limit.saturating_sub(counted)),
        "prefill_chunk_tokens": snapshot.prefill_chunk_tokens,
        "waiting": snapshot.waiting,
        "requests": snapshot.requests,
        "measured": { "used_bytes": used_bytes(&usage, model.baseline_bytes), "counters": usage },
    })
}
