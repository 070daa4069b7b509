//! Advice on quantisation and KV cache modes, with reasons. It is read, never applied.
//!
//! The entry point, [`advise`], takes a model (its [`ModelSpec`] and [`WeightFootprint`]), a machine
//! and a workload; [`Advice::to_text`] and [`Advice::to_json`] render the result. It is based on a rule
//! table keyed by architecture, model type, head width and [`ContextRange`]
//! ([`recommend_kv_cache_mode`]), and on measurements of the same model, which override the table
//! ([`recommend_measured`]).
//!
//! Invariants: every size comes from `mlxcel-estimator`, none is computed here; what is
//! recommended is among [`ADVISED_MODES`]; symmetric turbo4 only if it is allowlisted or
//! measured; a latent or recurrent cache never takes a turbo mode; nothing loads, applies or
//! changes a default; nothing panics.
//!
//! [`ModelSpec`]: mlxcel_estimator::ModelSpec
//! [`WeightFootprint`]: mlxcel_estimator::WeightFootprint

#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

mod advice;
mod cache;
mod error;
mod json;
mod measured;
mod range;
mod rules;
mod text;
mod weights;

pub use advice::{Advice, AdviceInputs, SCHEMA, advise};
pub use cache::{Class, ModeFigures, RangeAdvice};
pub use error::AdvisorError;
pub use measured::{
    MAX_MEAN_KL_NATS, MAX_PERPLEXITY_CHANGE, MIN_SCORED_TOKENS, MIN_TOP1_AGREEMENT, Measurements,
    ModeMeasurement, recommend_measured,
};
pub use range::{ContextRange, LONG_EXAMPLE_TOKENS, MEDIUM_TOKENS, SHORT_TOKENS};
pub use rules::{
    ADVISED_MODES, AllowlistEntry, Provenance, Recommendation, RecommendationSource,
    SYMMETRIC_TURBO4, admissible_modes, recommend_kv_cache_mode, symmetric_turbo4, takes_turbo,
};
pub use weights::{
    Alternatives, MIN_CHUNK_TOKENS, ModeFit, StoredPrecision, WeightAdvice, WidthFigures,
};
