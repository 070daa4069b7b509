//! Statistics of one generation: one line of text, or JSON of the schema `mlxcel.generate/1`.
//!
//! `docs/generate.md` describes every field.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use mlxcel_runtime::engine::{Engine, Outcome};
use mlxcel_runtime::memory;
use serde::Serialize;

/// Statistics of a generation.
#[derive(Serialize)]
pub(crate) struct Report {
    schema: &'static str,
    finish: &'static str,
    kv_mode: String,
    prompt_tokens: usize,
    prompt_seconds: f64,
    prompt_tokens_per_second: Option<f64>,
    generated_tokens: usize,
    decode_seconds: f64,
    decode_tokens_per_second: Option<f64>,
    load_seconds: f64,
    first_token_seconds: f64,
    kv_cache_bytes: usize,
    memory: memory::MemoryUsage,
    memory_baseline_bytes: Option<u64>,
}

impl Report {
    /// `load_time` is the time from process start to a loaded model; `baseline` is the resident memory
    /// before the load, in bytes.
    pub(crate) fn new(
        engine: &Engine,
        outcome: &Outcome,
        load_time: Duration,
        baseline: Option<u64>,
    ) -> Self {
        let s = outcome.statistics;
        Self {
            schema: "mlxcel.generate/1",
            finish: outcome.finish.name(),
            kv_mode: engine.kv_mode().to_string(),
            prompt_tokens: s.prompt_tokens,
            prompt_seconds: s.prompt_time.as_secs_f64(),
            prompt_tokens_per_second: s.prompt_rate(),
            generated_tokens: s.generated_tokens,
            decode_seconds: s.decode_time.as_secs_f64(),
            decode_tokens_per_second: s.decode_rate(),
            load_seconds: load_time.as_secs_f64(),
            first_token_seconds: (load_time + s.prompt_time).as_secs_f64(),
            kv_cache_bytes: s.kv_cache_bytes,
            memory: memory::MemoryUsage::now(),
            memory_baseline_bytes: baseline,
        }
    }

    /// Formats the statistics as one line.
    pub(crate) fn line(&self) -> String {
        format!(
            "prompt: {} tokens, {} tok/s | generated: {} tokens, {} tok/s | load {:.2} s | peak memory {}",
            self.prompt_tokens,
            format_rate(self.prompt_tokens_per_second),
            self.generated_tokens,
            format_rate(self.decode_tokens_per_second),
            self.load_seconds,
            self.memory.peak_text(),
        )
    }

    /// Writes the statistics as JSON.
    pub(crate) fn save(&self, path: &Path) -> Result<()> {
        let json = serde_json::to_string_pretty(self)?;
        std::fs::write(path, json + "\n")
            .with_context(|| format!("cannot write {}", path.display()))
    }
}

/// Formats tokens per second; `-` if nothing was measured.
pub(crate) fn format_rate(tokens_per_second: Option<f64>) -> String {
    tokens_per_second.map_or("-".to_owned(), |rate| format!("{rate:.1}"))
}
