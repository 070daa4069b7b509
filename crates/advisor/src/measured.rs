//! Measurements of one model's cache modes, and recommendations from them.
//!
//! `mlxcel eval` writes them (`mlxcel.measurement/1`); the caller looks them up by the model's
//! fingerprint. A measured mode is accepted or rejected; the accepted mode with the smallest cache is
//! recommended. Modes without a measurement keep the rating of the table.

use mlxcel_estimator::{Architecture, KvMode};
use serde::{Deserialize, Serialize};

use crate::error::AdvisorError;
use crate::range::ContextRange;
use crate::rules::{self, Recommendation, RecommendationSource};

/// The largest acceptable mean KL divergence from an fp16 cache, in nats.
///
/// By Pinsker's inequality the next token's distribution then moves by at most √(0.01 / 2) = 7 %
/// of its mass on average; by the same scale the loss rises by about a hundredth of a nat.
pub const MAX_MEAN_KL_NATS: f64 = 0.01;

/// The smallest acceptable share of positions whose most likely token is fp16's: of twenty
/// greedy tokens at most one differs, and most that do are near ties.
pub const MIN_TOP1_AGREEMENT: f64 = 0.95;

/// The largest acceptable rise of perplexity, relative to fp16: 1 %, which is 0.01 nats of loss,
/// the same scale as [`MAX_MEAN_KL_NATS`].
pub const MAX_PERPLEXITY_CHANGE: f64 = 0.01;

/// The fewest scored positions that count. A top-1 agreement of 0.95 then has a standard error
/// of √(0.05 × 0.95 / 1000) = 0.7 points.
pub const MIN_SCORED_TOKENS: u64 = 1000;

/// Measurements of one model. Missing fields take their defaults and unknown ones are ignored, so
/// that files of older and newer versions can be read.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Measurements {
    /// The model's fingerprint: its configuration and its weights' headers.
    pub fingerprint: String,
    /// Tokens per window of text.
    pub window: u64,
    /// Positions scored per mode.
    pub scored_tokens: u64,
    /// One row per mode.
    pub modes: Vec<ModeMeasurement>,
}

/// One mode's figures, against an fp16 cache on the same text. A figure that is `null` was not
/// measured.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ModeMeasurement {
    /// The mode, as `--kv-cache-mode` calls it.
    pub kv_mode: String,
    /// Perplexity relative to fp16, less 1.
    pub perplexity_change: Option<f64>,
    /// Mean KL(fp16 ‖ mode), nats.
    pub mean_kl_nats: Option<f64>,
    /// Share of positions with fp16's most likely token, 0 to 1.
    pub top1_agreement: Option<f64>,
}

/// Verdict of a measurement on a mode.
enum Verdict {
    Accepted(String),
    Rejected(String),
}

impl Measurements {
    /// Parses the JSON that `mlxcel eval` stores or prints with `--json`.
    ///
    /// # Errors
    /// [`AdvisorError::Measurements`] for other text.
    pub fn from_json(text: &str) -> Result<Self, AdvisorError> {
        serde_json::from_str(text)
            .map_err(|error| AdvisorError::Measurements { reason: error.to_string() })
    }

    /// Reports whether enough text was scored to count.
    #[must_use]
    pub fn are_enough(&self) -> bool {
        self.scored_tokens >= MIN_SCORED_TOKENS
    }

    /// Reports whether `mode` was measured and accepted.
    #[must_use]
    pub fn accept(&self, mode: KvMode) -> bool {
        matches!(self.verdict(mode), Some(Verdict::Accepted(_)))
    }

    /// Reports whether `mode` was measured and rejected.
    #[must_use]
    pub fn reject(&self, mode: KvMode) -> bool {
        matches!(self.verdict(mode), Some(Verdict::Rejected(_)))
    }

    /// `None` if the mode was not measured completely and on enough text.
    fn verdict(&self, mode: KvMode) -> Option<Verdict> {
        let row = self.modes.iter().find(|row| row.kv_mode == mode.name())?;
        let change = row.perplexity_change?;
        let kl = row.mean_kl_nats?;
        let top1 = row.top1_agreement?;
        if mode == KvMode::Fp16 || !self.are_enough() {
            return None;
        }
        let figures = figures(change, kl, top1);
        let good =
            kl <= MAX_MEAN_KL_NATS && top1 >= MIN_TOP1_AGREEMENT && change <= MAX_PERPLEXITY_CHANGE;
        Some(if good { Verdict::Accepted(figures) } else { Verdict::Rejected(figures) })
    }

    /// Amount of text, and a warning if its windows are shorter than the range.
    fn extent(&self, range: ContextRange) -> String {
        let Self { scored_tokens, window, .. } = self;
        let shorter = ContextRange::of(*window) < range;
        let caveat = if shorter { ", shorter than this range" } else { "" };
        format!("over {scored_tokens} tokens in windows of {window}{caveat}")
    }
}

/// Formats figures for text.
pub(crate) fn figures(perplexity_change: f64, mean_kl_nats: f64, top1_agreement: f64) -> String {
    let change = 100.0 * perplexity_change;
    let top1 = 100.0 * top1_agreement;
    format!("perplexity {change:+.2} %, mean KL {mean_kl_nats:.2e} nats, top-1 {top1:.2} %")
}

/// [`rules::recommend_kv_cache_mode`], overridden by measurements of the same model.
///
/// Measurements decide wherever the table recommends a quantised cache: the smallest accepted mode
/// that the model can take or, if the mode of the table was rejected and none is accepted, the
/// alternative and then fp16. If the table recommends fp16 there is little to save, whatever was
/// measured.
#[must_use]
pub fn recommend_measured(
    architecture: Architecture,
    model_type: &str,
    head_dim: u64,
    range: ContextRange,
    measurements: &Measurements,
) -> Recommendation {
    let tabled = rules::recommend_kv_cache_mode(architecture, model_type, head_dim, range);
    if tabled.mode == KvMode::Fp16 {
        return tabled;
    }
    let admissible = rules::admissible_modes(architecture, head_dim);
    let accepted: Vec<KvMode> =
        admissible.into_iter().filter(|mode| measurements.accept(*mode)).collect();
    match accepted.first() {
        Some(mode) => by_measurement(*mode, accepted.get(1).copied(), &tabled, range, measurements),
        None => without_rejected(tabled, range, measurements),
    }
}

/// Recommends a mode that was measured and accepted. The alternative is another accepted mode, else
/// one of the table that was not measured.
fn by_measurement(
    mode: KvMode,
    second: Option<KvMode>,
    tabled: &Recommendation,
    range: ContextRange,
    measurements: &Measurements,
) -> Recommendation {
    let tabled = [Some(tabled.mode), tabled.alternative].into_iter().flatten();
    let untried = tabled.into_iter().find(|o| *o != mode && measurements.verdict(*o).is_none());
    let figures = match measurements.verdict(mode) {
        Some(Verdict::Accepted(figures) | Verdict::Rejected(figures)) => figures,
        None => String::new(),
    };
    let reason = format!(
        "the smallest cache that measured well on this model: {figures} against fp16, {}",
        measurements.extent(range)
    );
    Recommendation {
        mode,
        alternative: second.or(untried),
        reason,
        source: RecommendationSource::Measured,
    }
}

/// The recommendation of the table without rejected modes.
fn without_rejected(
    tabled: Recommendation,
    range: ContextRange,
    measurements: &Measurements,
) -> Recommendation {
    let alternative = tabled.alternative.filter(|mode| !measurements.reject(*mode));
    let Some(Verdict::Rejected(figures)) = measurements.verdict(tabled.mode) else {
        return Recommendation { alternative, ..tabled };
    };
    let extent = measurements.extent(range);
    let rejected =
        format!("{} measured too far from fp16 on this model ({figures}, {extent})", tabled.mode);
    let (mode, rest) = match alternative {
        Some(mode) => (mode, format!("{mode} was not measured")),
        None => (KvMode::Fp16, "nothing smaller than fp16 is left to advise".to_owned()),
    };
    Recommendation {
        mode,
        alternative: None,
        reason: format!("{rejected}; {rest}"),
        source: RecommendationSource::Measured,
    }
}
