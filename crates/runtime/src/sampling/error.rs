//! Errors in sampling options and logits.

/// An invalid sampling option or row of logits.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SamplingError {
    /// An option has an invalid value.
    #[error("{name} is {value}, but must be {expected}")]
    InvalidOption {
        /// Name of the option in the API; the command line spells it with `-`.
        name: &'static str,
        /// Value found.
        value: f64,
        /// Accepted values.
        expected: &'static str,
    },
    /// A token id, of `logit_bias` or among the previous tokens, is outside the vocabulary.
    #[error("{origin} names token {token}, but the model has {vocab_size} tokens")]
    TokenOutOfVocabulary {
        /// Option or text that contains the id.
        origin: &'static str,
        /// Token id.
        token: u32,
        /// Number of logits in a row.
        vocab_size: usize,
    },
    /// A row of logits has the wrong width.
    #[error("expected {expected} logits, found {found}")]
    WrongWidth {
        /// Width that the sampler was created for.
        expected: usize,
        /// Width of the row.
        found: usize,
    },
    /// A logit is NaN or +∞, so that no probabilities exist.
    #[error("the logit of token {token} is {value}: the model's arithmetic has overflowed")]
    InvalidLogit {
        /// First such token.
        token: usize,
        /// Its logit.
        value: f32,
    },
    /// Every logit is −∞.
    #[error("no token is possible: every logit is -inf")]
    NoCandidates,
    /// The operating system provides no random seed.
    #[error("the operating system provides no random seed: pass one")]
    NoEntropy,
}
