//! What can go wrong while advising.

use mlxcel_estimator::EstimatorError;

/// Why there is no advice.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdvisorError {
    /// The estimator cannot size what was asked for.
    #[error(transparent)]
    Estimator(#[from] EstimatorError),
    /// A text that should hold measurements does not.
    #[error("these are no measurements of `mlxcel eval`: {reason}")]
    Measurements {
        /// What the parser said.
        reason: String,
    },
    /// The advice cannot be written as JSON.
    #[error("the advice cannot be written as JSON")]
    Json(#[source] serde_json::Error),
}
