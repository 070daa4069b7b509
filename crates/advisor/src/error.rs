//! Errors of the advisor.

use mlxcel_estimator::EstimatorError;

/// An error while advising.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdvisorError {
    /// The estimator cannot size the model for this workload.
    #[error(transparent)]
    Estimator(#[from] EstimatorError),
    /// A text holds no measurements.
    #[error("these are no measurements of `mlxcel eval`: {reason}")]
    Measurements {
        /// Message of the parser.
        reason: String,
    },
    /// The advice cannot be written as JSON.
    #[error("the advice cannot be written as JSON")]
    Json(#[source] serde_json::Error),
}
