//! The rule table and the allowlist, as data, and the pure functions over them.
//!
//! No size is computed here: a rule is a judgement of quality and speed, and states its source.

use mlxcel_estimator::{Architecture, CacheType, KvMode, vector_bytes};

use crate::range::ContextRange;

/// Modes that are ever recommended, the smallest cache first.
pub const ADVISED_MODES: [KvMode; 5] =
    [KvMode::Turbo4, KvMode::Int8, KvMode::Fp16Turbo3, KvMode::Fp16Turbo4, KvMode::Fp16];

/// Source of a recommendation. Names are those of the JSON report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RecommendationSource {
    /// The rule table: a judgement of this kind of model.
    Table,
    /// The table, through an allowlist entry that was reported elsewhere and not measured here.
    ReportedUpstream,
    /// A measurement of the same model.
    Measured,
    /// The model cannot be classified: the default is recommended.
    CannotClassify,
}

/// A cache mode, and why.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct Recommendation {
    /// The mode.
    #[serde(serialize_with = "crate::json::mode")]
    pub mode: KvMode,
    /// Another mode that is worth a benchmark.
    #[serde(serialize_with = "crate::json::optional_mode")]
    pub alternative: Option<KvMode>,
    /// One sentence.
    pub reason: String,
    /// Source of the recommendation.
    pub source: RecommendationSource,
}

/// Provenance of an allowlist entry.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Provenance {
    /// Reported elsewhere to work.
    ReportedUpstream,
    /// Measured here against an fp16 cache.
    Measured {
        /// Perplexity relative to fp16, less 1.
        perplexity_change: f64,
        /// Mean KL divergence from fp16, nats.
        mean_kl_nats: f64,
        /// Share of positions with fp16's most likely token.
        top1_agreement: f64,
    },
}

/// A model type whose keys tolerate 4 bits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AllowlistEntry {
    /// The checkpoint's `model_type`; its text part (`…_text`) counts too.
    pub model_type: &'static str,
    /// Provenance of the entry.
    pub provenance: Provenance,
}

/// Model types to which symmetric turbo4 may be recommended without a measurement.
/// Their cache is that of a few attention layers among recurrent ones.
pub const SYMMETRIC_TURBO4: [AllowlistEntry; 3] = [
    AllowlistEntry { model_type: "qwen3_5", provenance: Provenance::ReportedUpstream },
    AllowlistEntry { model_type: "qwen3_5_moe", provenance: Provenance::ReportedUpstream },
    AllowlistEntry { model_type: "qwen3_next", provenance: Provenance::ReportedUpstream },
];

/// The allowlist's entry of a model type.
#[must_use]
pub fn symmetric_turbo4(model_type: &str) -> Option<&'static AllowlistEntry> {
    let stem = model_type.strip_suffix("_text").unwrap_or(model_type);
    SYMMETRIC_TURBO4.iter().find(|entry| entry.model_type == stem)
}

/// Models that a rule applies to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum RuleScope {
    AllModels,
    Allowlisted,
}

/// One row of the table.
struct Rule {
    architectures: &'static [Architecture],
    ranges: &'static [ContextRange],
    scope: RuleScope,
    mode: KvMode,
    alternative: Option<KvMode>,
    reason: &'static str,
}

const HEADS: &[Architecture] =
    &[Architecture::Standard, Architecture::SlidingWindow, Architecture::Hybrid];
const SHORT: &[ContextRange] = &[ContextRange::Short];
const MEDIUM: &[ContextRange] = &[ContextRange::Medium];
const LONG: &[ContextRange] = &[ContextRange::Long];

/// The rule table; the first row that applies counts.
const RULES: [Rule; 7] = [
    Rule {
        architectures: HEADS,
        ranges: SHORT,
        scope: RuleScope::AllModels,
        mode: KvMode::Fp16,
        alternative: None,
        reason: "at this length the cache is small beside the weights, and fp16 loses nothing",
    },
    Rule {
        architectures: HEADS,
        ranges: MEDIUM,
        scope: RuleScope::AllModels,
        mode: KvMode::Fp16Turbo4,
        alternative: Some(KvMode::Int8),
        reason: "values stand 4 bits better than keys, whose errors change what is attended to, so keys stay fp16",
    },
    Rule {
        architectures: HEADS,
        ranges: LONG,
        scope: RuleScope::Allowlisted,
        mode: KvMode::Turbo4,
        alternative: Some(KvMode::Fp16Turbo4),
        reason: "the cache outgrows the weights at this length, and this model type's keys stand 4 bits",
    },
    Rule {
        architectures: HEADS,
        ranges: LONG,
        scope: RuleScope::AllModels,
        mode: KvMode::Fp16Turbo4,
        alternative: Some(KvMode::Fp16Turbo3),
        reason: "the cache outgrows the weights at this length; values stand 4 bits better than keys, which stay fp16",
    },
    Rule {
        architectures: &[Architecture::Mla],
        ranges: SHORT,
        scope: RuleScope::AllModels,
        mode: KvMode::Fp16,
        alternative: None,
        reason: "a latent is small at this length, and fp16 loses nothing",
    },
    Rule {
        architectures: &[Architecture::Mla],
        ranges: &[ContextRange::Medium, ContextRange::Long],
        scope: RuleScope::AllModels,
        mode: KvMode::Int8,
        alternative: None,
        reason: "a latent is compressed already: 8 bits are as few as it takes, and turbo codes need separate heads",
    },
    Rule {
        architectures: &[Architecture::Ssm],
        ranges: &ContextRange::ALL,
        scope: RuleScope::AllModels,
        mode: KvMode::Fp16,
        alternative: None,
        reason: "a recurrent model keeps no keys or values, so there is nothing to quantise",
    },
];

/// Looks the cache mode for a kind of model and a range of context up in the table.
///
/// `head_dim` is in elements, 0 without heads; of heads of several widths, pass one that is not a
/// power of two if there is one. The mode is always among [`ADVISED_MODES`]. A model that cannot be
/// classified keeps the default, fp16, and the reason says so.
#[must_use]
pub fn recommend_kv_cache_mode(
    architecture: Architecture,
    model_type: &str,
    head_dim: u64,
    range: ContextRange,
) -> Recommendation {
    let allowed = symmetric_turbo4(model_type);
    let rule = RULES.iter().find(|rule| {
        rule.architectures.contains(&architecture)
            && rule.ranges.contains(&range)
            && (rule.scope == RuleScope::AllModels || allowed.is_some())
    });
    let Some(rule) = rule else { return cannot_classify() };
    let listed = allowed.filter(|_| rule.scope == RuleScope::Allowlisted);
    let tabled = Recommendation {
        mode: rule.mode,
        alternative: rule.alternative,
        reason: listed.map_or(rule.reason.to_owned(), |entry| cited(rule.reason, entry)),
        source: listed.map_or(RecommendationSource::Table, source),
    };
    if takes_turbo(head_dim) { tabled } else { without_turbo(tabled, head_dim) }
}

/// The modes that may be recommended for a model, the smallest cache first; symmetric turbo4 is
/// included, allowlisted or not.
#[must_use]
pub fn admissible_modes(architecture: Architecture, head_dim: u64) -> Vec<KvMode> {
    let admissible = ADVISED_MODES.into_iter().filter(|mode| match architecture {
        Architecture::Standard | Architecture::SlidingWindow | Architecture::Hybrid => {
            takes_turbo(head_dim) || !mode.is_turbo()
        }
        Architecture::Mla => !mode.is_turbo(),
        _ => *mode == KvMode::Fp16,
    });
    admissible.collect()
}

/// Reports whether heads of this width can be stored as turbo codes, by the estimator's formula.
#[must_use]
pub fn takes_turbo(head_dim: u64) -> bool {
    head_dim > 0 && vector_bytes(CacheType::Turbo4, head_dim).is_ok()
}

fn cannot_classify() -> Recommendation {
    Recommendation {
        mode: KvMode::Fp16,
        alternative: None,
        reason: "cannot classify: what this model caches is not known, so the default stays"
            .to_owned(),
        source: RecommendationSource::CannotClassify,
    }
}

/// Turbo codes rotate a whole head by a Walsh-Hadamard transform, which needs a power of two.
fn without_turbo(tabled: Recommendation, head_dim: u64) -> Recommendation {
    if !tabled.mode.is_turbo() {
        let alternative = tabled.alternative.filter(|mode| !mode.is_turbo());
        return Recommendation { alternative, ..tabled };
    }
    Recommendation {
        mode: KvMode::Int8,
        alternative: None,
        reason: format!(
            "heads of {head_dim} elements are no power of two, which turbo codes need; int8 halves the cache"
        ),
        source: RecommendationSource::Table,
    }
}

fn source(entry: &AllowlistEntry) -> RecommendationSource {
    match entry.provenance {
        Provenance::ReportedUpstream => RecommendationSource::ReportedUpstream,
        Provenance::Measured { .. } => RecommendationSource::Measured,
    }
}

fn cited(reason: &str, entry: &AllowlistEntry) -> String {
    match entry.provenance {
        Provenance::ReportedUpstream => {
            format!("{reason} (reported upstream, not measured here)")
        }
        Provenance::Measured { perplexity_change, mean_kl_nats, top1_agreement } => {
            let figures = crate::measured::figures(perplexity_change, mean_kl_nats, top1_agreement);
            format!("{reason} (measured here on {}: {figures})", entry.model_type)
        }
    }
}
