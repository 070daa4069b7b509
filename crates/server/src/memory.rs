//! `/v1/memory`: the live budget.

use serde_json::{Value, json};

use super::app::{App, Served};
use super::watch::used_bytes;
use mlxcel_runtime::memory::MemoryUsage;

/// What memory is used for, next to what is measured and what there is.
pub(super) fn budget(app: &App, served: &Served) -> Value {
    let snapshot = served.shared.snapshot();
    let usage = MemoryUsage::now();
    let limit = served.admission.limit_bytes();
    let process = served.admission.process_bytes();
    let intake = served.shared.intake.held_bytes();
    let counted = process
        .saturating_add(intake)
        .saturating_add(snapshot.weights_bytes)
        .saturating_add(snapshot.held_bytes)
        .saturating_add(snapshot.kv_reserved_bytes)
        .saturating_add(snapshot.scratch_bytes)
        .saturating_add(snapshot.headroom_bytes);
    json!({
        "system": { "memory_total_bytes": app.total_memory_bytes },
        "limit_bytes": limit,
        "process_bytes": process,
        "weights_bytes": snapshot.weights_bytes,
        "kv": {
            "used_bytes": snapshot.kv_used_bytes,
            "reserved_bytes": snapshot.kv_reserved_bytes,
            "shared_bytes": snapshot.held_bytes,
        },
        "prompt_cache": { "bytes": snapshot.prefix_bytes, "entries": snapshot.prefix_entries },
        "intake_bytes": intake,
        "scratch_bytes": snapshot.scratch_bytes,
        "headroom_bytes": snapshot.headroom_bytes,
        "free_bytes": limit.map(|limit| limit.saturating_sub(counted)),
        "prefill_chunk_tokens": snapshot.prefill_chunk_tokens,
        "waiting": snapshot.waiting,
        "requests": snapshot.requests,
        "measured": { "used_bytes": used_bytes(&usage, served.baseline_bytes), "counters": usage },
    })
}
