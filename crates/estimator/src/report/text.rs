//! The report for people.

use std::fmt::Write as _;

use super::{ModeReport, Report};
use crate::bytes::format_bytes;
use crate::estimate::Term;

/// Characters of the bar.
const BAR_WIDTH: u64 = 60;

/// Renders a report: identity, breakdown, bar, verdict, what would fit, modes, assumptions.
pub(super) fn render(report: &Report) -> String {
    let mut out = String::new();
    identity(&mut out, report);
    breakdown(&mut out, report);
    bar(&mut out, report);
    line(&mut out, &report.verdict);
    what_fits(&mut out, report);
    modes(&mut out, &report.kv_modes);
    if !report.assumptions.is_empty() {
        line(&mut out, "\nassumptions");
        report.assumptions.iter().for_each(|a| line(&mut out, &format!("  - {a}")));
    }
    out
}

/// Writing to a `String` cannot fail.
fn line(out: &mut String, text: &str) {
    let _ = writeln!(out, "{text}");
}

fn identity(out: &mut String, report: &Report) {
    let vision = if report.vision { ", vision" } else { "" };
    let parameters = report.parameters.map_or("size unknown".to_owned(), count);
    let architecture = report.architecture.name();
    line(
        out,
        &format!("{}: {} ({architecture}{vision}), {parameters}", report.model, report.model_type),
    );
    let inputs = &report.inputs;
    line(
        out,
        &format!(
            "{} tokens × {} sequence(s), weights {}, keys {}, values {}, chunks of {}, {}\n",
            inputs.context_tokens,
            inputs.batch,
            inputs.quant.name(),
            inputs.cache_type_k,
            inputs.cache_type_v,
            inputs.prefill_chunk,
            inputs.backend.name()
        ),
    );
}

/// A count with the unit that people use for parameters.
fn count(parameters: u64) -> String {
    let (unit, name) =
        if parameters >= 1_000_000_000 { (1_000_000_000_u64, "B") } else { (1_000_000, "M") };
    let hundredths = u128::from(parameters).saturating_mul(100).checked_div(u128::from(unit));
    let hundredths = hundredths.unwrap_or(0);
    let whole = hundredths.checked_div(100).unwrap_or(0);
    let part = hundredths.checked_rem(100).unwrap_or(0);
    format!("{whole}.{part:02} {name} parameters")
}

fn breakdown(out: &mut String, report: &Report) {
    let per_token =
        report.kv_bytes_per_token.map(|bytes| format!("{} per token", format_bytes(bytes)));
    let factor =
        report.headroom_factor.map_or("none".to_owned(), |factor| format!("factor {factor:.2}"));
    let band = report.error_band * 100.0;
    let rows = [
        ("weights", format_bytes(report.weights_bytes), word(&report.weights_source)),
        ("KV cache", known_bytes(report.kv_cache_bytes), per_token.unwrap_or_default()),
        ("KV scales", known_bytes(report.kv_scale_bytes), String::new()),
        ("recurrent state", known_bytes(report.recurrent_state_bytes), String::new()),
        ("prefill scratch", format_bytes(report.prefill_scratch_bytes), "transient".to_owned()),
        (
            "runtime headroom",
            format_bytes(report.runtime_headroom_bytes),
            format!("{factor}, {}", word(&report.headroom_source)),
        ),
        (
            "expected peak",
            format_bytes(report.expected_peak_bytes),
            format!("in {}, ± {band:.0} %", word(&report.peak_phase)),
        ),
        ("total", format_bytes(report.total_bytes), "must be available".to_owned()),
        ("available", known_bytes(report.available_bytes), word(&report.available_source)),
    ];
    for (name, bytes, source) in rows {
        line(out, format!("  {name:<17}{bytes:>13}   {source}").trim_end());
    }
    line(out, "");
}

fn known_bytes(bytes: Option<u64>) -> String {
    bytes.map_or("unknown".to_owned(), format_bytes)
}

/// A bar of the parts of the total, over the larger of total and available memory.
fn bar(out: &mut String, report: &Report) {
    let kv = report.kv_cache_bytes.unwrap_or(0).saturating_add(report.kv_scale_bytes.unwrap_or(0));
    let state = report.recurrent_state_bytes.unwrap_or(0);
    let counted = [report.weights_bytes, kv, state].into_iter().fold(0, u64::saturating_add);
    let parts = [
        ('W', "weights", report.weights_bytes),
        ('K', "KV cache", kv),
        ('R', "recurrent state", state),
        ('+', "headroom or scratch", report.total_bytes.saturating_sub(counted)),
    ];
    let whole = report.total_bytes.max(report.available_bytes.unwrap_or(0)).max(1);
    let mut drawn = String::new();
    for (letter, _, bytes) in parts {
        drawn.extend(std::iter::repeat_n(letter, bar_cells(bytes, whole)));
    }
    let width = bar_cells(whole, whole);
    let shown: String = drawn.chars().chain(std::iter::repeat('.')).take(width).collect();
    let legend: Vec<_> = parts
        .iter()
        .filter(|(.., bytes)| *bytes > 0)
        .map(|(letter, name, _)| format!("{letter} {name}"))
        .collect();
    line(out, &format!("  [{shown}]\n   {}\n", legend.join(", ")));
}

/// Characters of a bar for `bytes` of `whole`, rounded up.
fn bar_cells(bytes: u64, whole: u64) -> usize {
    let scaled = u128::from(bytes).saturating_mul(u128::from(BAR_WIDTH));
    usize::try_from(scaled.div_ceil(u128::from(whole))).unwrap_or(0)
}

fn what_fits(out: &mut String, report: &Report) {
    if report.binding_term != Term::None {
        line(out, &format!("the largest part: {}", word(&report.binding_term)));
    }
    if report.available_bytes.is_none() {
        return;
    }
    let own = report.model_max_context_tokens.map(|n| format!(" (the model was made for {n})"));
    let context = bound(report.max_context_tokens, "tokens of context");
    let batch = bound(report.max_batch, "sequences of this length");
    let chunk = bound(report.max_prefill_chunk, "tokens in a chunk");
    line(out, &format!("would fit: {context}{}, {batch}, {chunk}", own.unwrap_or_default()));
}

fn bound(largest: Option<u64>, of: &str) -> String {
    match largest {
        None => format!("any number of {of}"),
        Some(0) => format!("no {of}"),
        Some(n) => format!("up to {n} {of}"),
    }
}

fn modes(out: &mut String, modes: &[ModeReport]) {
    if modes.is_empty() {
        return;
    }
    line(out, "\n  cache mode         per token         total   fits   longest context");
    for mode in modes {
        let per_token = mode.kv_bytes_per_token.map_or("unknown".to_owned(), format_bytes);
        let fits = match mode.fits {
            Some(true) => "yes",
            Some(false) => "no",
            None => "?",
        };
        let longest = mode.max_context_tokens.map_or("-".to_owned(), |n| n.to_string());
        let total = format_bytes(mode.total_bytes);
        line(out, &format!("  {:<17}{per_token:>11}{total:>14}{fits:>7}{longest:>18}", mode.mode));
    }
}

/// A closed value as the JSON has it, with spaces.
fn word(value: &impl serde::Serialize) -> String {
    let json = serde_json::to_value(value).unwrap_or_default();
    json.as_str().unwrap_or_default().replace('_', " ")
}
