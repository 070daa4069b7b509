//! The rule table and the allowlist, as data, and the pure function over them.
//!
//! Nothing here knows a size: a rule is an opinion about quality and speed, and every opinion
//! says where it comes from.

use mlxcel_estimator::{Architecture, CacheType, KvMode, vector_bytes};

use crate::range::ContextRange;

/// Modes that are ever recommended, the smallest cache first.
pub const ADVISED_MODES: [KvMode; 5] =
    [KvMode::Turbo4, KvMode::Int8, KvMode::Fp16Turbo3, KvMode::Fp16Turbo4, KvMode::Fp16];

/// How a recommendation is known. The names are those of the JSON report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Source {
    /// The rule table: an opinion about this kind of model.
    Table,
    /// The table, through an allowlist entry that others reported and nobody here measured.
    ReportedUpstream,
    /// A measurement of this very model.
    Measured,
    /// The configuration is not understood: the default is kept.
    CannotClassify,
}

/// A cache mode, and why.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct Recommendation {
    /// The mode.
    #[serde(serialize_with = "crate::json::mode")]
    pub mode: KvMode,
    /// Another one worth a benchmark.
    #[serde(serialize_with = "crate::json::optional_mode")]
    pub alternative: Option<KvMode>,
    /// One sentence.
    pub reason: String,
    /// How it is known.
    pub source: Source,
}

/// Where an allowlist entry comes from.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Provenance {
    /// Others say that it works.
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

/// A model type whose keys stand 4 bits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Allowed {
    /// The checkpoint's `model_type`; its text part (`…_text`) counts too.
    pub model_type: &'static str,
    /// How that is known.
    pub provenance: Provenance,
}

/// Model types to which symmetric turbo4 may be recommended without a measurement (DESIGN §6).
/// Their cache is that of a few attention layers among recurrent ones.
pub const SYMMETRIC_TURBO4: [Allowed; 3] = [
    Allowed { model_type: "qwen3_5", provenance: Provenance::ReportedUpstream },
    Allowed { model_type: "qwen3_5_moe", provenance: Provenance::ReportedUpstream },
    Allowed { model_type: "qwen3_next", provenance: Provenance::ReportedUpstream },
];

/// The allowlist's entry of a model type.
#[must_use]
pub fn symmetric_turbo4(model_type: &str) -> Option<&'static Allowed> {
    let stem = model_type.strip_suffix("_text").unwrap_or(model_type);
    SYMMETRIC_TURBO4.iter().find(|entry| entry.model_type == stem)
}

/// To whom a rule applies.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Who {
    Everybody,
    Allowlisted,
}

/// One row of the table.
struct Rule {
    architectures: &'static [Architecture],
    ranges: &'static [ContextRange],
    who: Who,
    mode: KvMode,
    alternative: Option<KvMode>,
    reason: &'static str,
}

const HEADS: &[Architecture] =
    &[Architecture::Standard, Architecture::SlidingWindow, Architecture::Hybrid];
const SHORT: &[ContextRange] = &[ContextRange::Short];
const MEDIUM: &[ContextRange] = &[ContextRange::Medium];
const LONG: &[ContextRange] = &[ContextRange::Long];

/// DESIGN §6's table; the first row that applies counts.
const RULES: [Rule; 7] = [
    Rule {
        architectures: HEADS,
        ranges: SHORT,
        who: Who::Everybody,
        mode: KvMode::Fp16,
        alternative: None,
        reason: "at this length the cache is small beside the weights, and fp16 loses nothing",
    },
    Rule {
        architectures: HEADS,
        ranges: MEDIUM,
        who: Who::Everybody,
        mode: KvMode::Fp16Turbo4,
        alternative: Some(KvMode::Int8),
        reason: "values stand 4 bits better than keys, whose errors change what is attended to, so keys stay fp16",
    },
    Rule {
        architectures: HEADS,
        ranges: LONG,
        who: Who::Allowlisted,
        mode: KvMode::Turbo4,
        alternative: Some(KvMode::Fp16Turbo4),
        reason: "the cache outgrows the weights at this length, and this model type's keys stand 4 bits",
    },
    Rule {
        architectures: HEADS,
        ranges: LONG,
        who: Who::Everybody,
        mode: KvMode::Fp16Turbo4,
        alternative: Some(KvMode::Fp16Turbo3),
        reason: "the cache outgrows the weights at this length; values stand 4 bits better than keys, which stay fp16",
    },
    Rule {
        architectures: &[Architecture::Mla],
        ranges: SHORT,
        who: Who::Everybody,
        mode: KvMode::Fp16,
        alternative: None,
        reason: "a latent is small at this length, and fp16 loses nothing",
    },
    Rule {
        architectures: &[Architecture::Mla],
        ranges: &[ContextRange::Medium, ContextRange::Long],
        who: Who::Everybody,
        mode: KvMode::Int8,
        alternative: None,
        reason: "a latent is compressed already: 8 bits are as few as it takes, and turbo codes need separate heads",
    },
    Rule {
        architectures: &[Architecture::Ssm],
        ranges: &ContextRange::ALL,
        who: Who::Everybody,
        mode: KvMode::Fp16,
        alternative: None,
        reason: "a recurrent model keeps no keys or values, so there is nothing to quantise",
    },
];

/// The table's cache mode for a kind of model and a range of context.
///
/// `head_dim` is in elements, 0 where there is no head; where a model has heads of several
/// widths, pass one that is no power of two if there is one. The mode is always among
/// [`ADVISED_MODES`]. A model that is not understood keeps the default, fp16, and the reason
/// says that it cannot be classified.
#[must_use]
pub fn recommend_kv_cache_mode(
    architecture: Architecture,
    model_type: &str,
    head_dim: u64,
    range: ContextRange,
) -> Recommendation {
    let allowed = symmetric_turbo4(model_type);
    let applies = |rule: &&Rule| {
        rule.architectures.contains(&architecture)
            && rule.ranges.contains(&range)
            && (rule.who == Who::Everybody || allowed.is_some())
    };
    let Some(rule) = RULES.iter().find(applies) else { return cannot_classify() };
    let listed = allowed.filter(|_| rule.who == Who::Allowlisted);
    let tabled = Recommendation {
        mode: rule.mode,
        alternative: rule.alternative,
        reason: listed.map_or(rule.reason.to_owned(), |entry| cited(rule.reason, entry)),
        source: listed.map_or(Source::Table, source),
    };
    if takes_turbo(head_dim) { tabled } else { without_turbo(tabled, head_dim) }
}

/// The modes that may be recommended to a model at all, the smallest cache first; symmetric
/// turbo4 is among them whether or not it is allowlisted.
#[must_use]
pub fn admissible_modes(architecture: Architecture, head_dim: u64) -> Vec<KvMode> {
    let admissible = |mode: &KvMode| match architecture {
        Architecture::Standard | Architecture::SlidingWindow | Architecture::Hybrid => {
            takes_turbo(head_dim) || !mode.is_turbo()
        }
        Architecture::Mla => !mode.is_turbo(),
        _ => *mode == KvMode::Fp16,
    };
    ADVISED_MODES.into_iter().filter(admissible).collect()
}

/// Whether heads of this width can be stored as turbo codes: the estimator's formula knows.
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
        source: Source::CannotClassify,
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
        source: Source::Table,
    }
}

fn source(entry: &Allowed) -> Source {
    match entry.provenance {
        Provenance::ReportedUpstream => Source::ReportedUpstream,
        Provenance::Measured { .. } => Source::Measured,
    }
}

fn cited(reason: &str, entry: &Allowed) -> String {
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
