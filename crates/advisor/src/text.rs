//! Advice as text, with the flags to type for following it.

use std::fmt::Write as _;

use mlxcel_estimator::{KvMode, WeightQuant, format_bytes};

use crate::advice::Advice;
use crate::cache::{ModeFigures, RangeAdvice};
use crate::rules::RecommendationSource;
use crate::weights::{Alternatives, ModeFit, WeightAdvice};

/// Renders the advice: inputs, weights, cache by range, notes.
pub(crate) fn render(advice: &Advice) -> String {
    let mut out = String::new();
    head(&mut out, advice);
    match &advice.weights {
        Some(weights) => weights_section(&mut out, weights),
        None => line(&mut out, "weights: cannot classify, their size is not known"),
    }
    line(&mut out, "");
    match &advice.cannot_classify {
        Some(why) => line(&mut out, &format!("KV cache: {why}; fp16, the default, stays")),
        None => cache_section(&mut out, advice),
    }
    if !advice.notes.is_empty() {
        line(&mut out, "\nnotes");
        advice.notes.iter().for_each(|note| line(&mut out, &format!("  - {note}")));
    }
    out
}

/// Writing to a `String` cannot fail.
fn line(out: &mut String, text: &str) {
    let _ = writeln!(out, "{text}");
}

fn head(out: &mut String, advice: &Advice) {
    let class = &advice.class;
    let inputs = &advice.inputs;
    let available = inputs
        .available_bytes
        .map_or("unknown memory".to_owned(), |bytes| format!("{} available", format_bytes(bytes)));
    line(out, &format!("{}: {} ({})", advice.model, class.model_type, class.architecture.name()));
    line(
        out,
        &format!("{} tokens × {} sequence(s), {available}", inputs.context_tokens, inputs.batch),
    );
    line(
        out,
        "This is advice: nothing is applied, no weight is touched, and the default cache stays fp16.\n",
    );
}

fn weights_section(out: &mut String, weights: &WeightAdvice) {
    let name = match weights.quant {
        WeightQuant::Default => "as they are",
        quant => quant.name(),
    };
    line(out, &format!("weights: {name} (these are {})", weights.stored.describe()));
    line(out, &format!("  why          {}", weights.reason));
    weights.considered.iter().for_each(|step| line(out, &format!("    {}", step.line())));
    for fit in &weights.wider_with_smaller_cache {
        line(
            out,
            &format!(
                "  or           {} weights fit with --kv-cache-mode {}",
                width(fit),
                fit.kv_mode
            ),
        );
    }
    if let Some(would) = &weights.would_fit {
        would_fit(out, would);
    }
}

fn width(fit: &ModeFit) -> &'static str {
    if fit.quant == WeightQuant::Default { "these" } else { fit.quant.name() }
}

fn would_fit(out: &mut String, would: &Alternatives) {
    line(out, "  what would fit");
    let nothing = would.max_context_tokens == Some(0);
    let context = if nothing {
        "no context: the weights alone leave no room".to_owned()
    } else {
        format!("a context of {}", tokens(would.max_context_tokens))
    };
    line(out, &format!("    {context}"));
    if let Some(chunk) = would.prefill_chunk_tokens {
        line(out, &format!("    --prefill-chunk {chunk}"));
    }
    let fits = would.kv_modes.iter().filter(|fit| fit.fits == Some(true));
    fits.for_each(|fit| line(out, &format!("    --kv-cache-mode {}", fit.kv_mode)));
    let short = would.kv_modes.iter().filter(|fit| fit.fits != Some(true));
    let longest = short.max_by_key(|fit| fit.max_context_tokens);
    if let Some(fit) = longest.filter(|fit| fit.max_context_tokens != Some(0)) {
        let reach = tokens(fit.max_context_tokens);
        line(out, &format!("    {reach} with --kv-cache-mode {}", fit.kv_mode));
    }
}

fn tokens(count: Option<u64>) -> String {
    count.map_or("any length".to_owned(), |count| format!("{count} tokens"))
}

fn cache_section(out: &mut String, advice: &Advice) {
    line(out, "KV cache, by length of context (* is what you asked for)");
    for range in &advice.kv_cache {
        range_lines(out, range);
    }
}

fn range_lines(out: &mut String, advice: &RangeAdvice) {
    let mark = if advice.wanted { '*' } else { ' ' };
    let beyond = if advice.within_model_limit == Some(false) {
        ", beyond the model's own limit"
    } else {
        ""
    };
    let recommendation = &advice.recommendation;
    let range = advice.range.name();
    let at = advice.context_tokens;
    line(out, &format!("{mark} {range}, at {at} tokens{beyond}: {}", recommendation.mode));
    line(out, &format!("    why        {}", recommendation.reason));
    if recommendation.mode != KvMode::Fp16 {
        line(out, &format!("    known by   {}", known_by(recommendation.source)));
        line(out, &format!("    gives      {}", gains(&advice.recommended, &advice.fp16)));
        line(out, &format!("    to try it  --kv-cache-mode {}", recommendation.mode));
    }
    if let Some(other) = &advice.alternative {
        let gives = gains(other, &advice.fp16);
        line(out, &format!("    benchmark  --kv-cache-mode {} too: {gives}", other.kv_mode));
    }
}

fn known_by(source: RecommendationSource) -> &'static str {
    match source {
        RecommendationSource::Table => "rule table; not measured on this model (mlxcel eval does)",
        RecommendationSource::ReportedUpstream => {
            "reported upstream, not measured here (mlxcel eval does)"
        }
        RecommendationSource::Measured => "measurement",
        RecommendationSource::CannotClassify => "nothing",
    }
}

/// Bytes saved and context bought.
fn gains(mode: &ModeFigures, fp16: &ModeFigures) -> String {
    let saved = mode.saved_bytes.map_or("unknown".to_owned(), format_bytes);
    let cache = mode.cache_bytes.map_or("unknown".to_owned(), format_bytes);
    let reach = match (mode.max_context_tokens, fp16.max_context_tokens) {
        (Some(0), _) => "; no context fits on this machine".to_owned(),
        (Some(with), Some(without)) => {
            format!("; at most {with} tokens on this machine instead of {without}")
        }
        _ => String::new(),
    };
    let short = if mode.fits == Some(false) { ", which does not fit" } else { "" };
    format!("a cache of {cache}{short}, {saved} less than fp16{reach}")
}
