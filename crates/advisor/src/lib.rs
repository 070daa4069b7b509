//! Which quantisation, which KV cache, and why: advice that is read, never applied.
//!
//! One entry point, [`advise`], answers for a model (its [`ModelSpec`] and [`WeightFootprint`]),
//! a machine and a workload; [`Advice::to_text`] and [`Advice::to_json`] render it. Under it lie
//! a rule table keyed by architecture, model type, head width and [`ContextRange`]
//! ([`recommend_kv_cache_mode`]), and measurements of this very model, which beat the table
//! ([`recommend_measured`]).
//!
//! Invariants: every size comes from `mlxcel-estimator`, none is computed here; what is
//! recommended is among [`ADVISED_MODES`]; symmetric turbo4 only where it is allowlisted or
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

pub use advice::{Advice, Asked, SCHEMA, advise};
pub use cache::{Class, ModeFigures, RangeAdvice};
pub use error::AdvisorError;
pub use measured::{
    MAX_MEAN_KL_NATS, MAX_PERPLEXITY_CHANGE, MIN_SCORED_TOKENS, MIN_TOP1_AGREEMENT, Measurements,
    ModeMeasurement, recommend_measured,
};
pub use range::{ContextRange, LONG_EXAMPLE_TOKENS, MEDIUM_TOKENS, SHORT_TOKENS};
pub use rules::{
    ADVISED_MODES, Allowed, Provenance, Recommendation, SYMMETRIC_TURBO4, Source, admissible_modes,
    recommend_kv_cache_mode, symmetric_turbo4, takes_turbo,
};
pub use weights::{Fit, MIN_CHUNK_TOKENS, Step, Stored, WeightAdvice, WouldFit};
