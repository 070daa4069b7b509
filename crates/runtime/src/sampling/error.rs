//! What can be wrong with sampling options or with logits.

/// An error in sampling.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SamplingError {
    /// An option has a value that it cannot have.
    #[error("{name} is {value}, but must be {expected}")]
    InvalidOption {
        /// The option, as the command line and the API call it (with `_`).
        name: &'static str,
        /// Its value.
        value: f64,
        /// The values that it can have.
        expected: &'static str,
    },
    /// A token id (of `logit_bias`, or among the tokens so far) that the model does not have.
    #[error("{what} names token {token}, but the model has {vocab_size} tokens")]
    TokenOutOfVocabulary {
        /// Where the id stands.
        what: &'static str,
        /// The id.
        token: u32,
        /// The number of logits in a row.
        vocab_size: usize,
    },
    /// A row of logits of the wrong width.
    #[error("expected {expected} logits, found {found}")]
    WrongWidth {
        /// The width that the sampler was made for.
        expected: usize,
        /// The width of the row.
        found: usize,
    },
    /// A logit that is NaN or +∞: the model computed nonsense, and so would the sampler.
    #[error("the logit of token {token} is {value}: the model's arithmetic has overflowed")]
    NotANumber {
        /// The first such token.
        token: usize,
        /// Its logit.
        value: f32,
    },
    /// Every logit is −∞.
    #[error("no token is possible: every logit is -inf")]
    NoCandidate,
    /// The operating system has no random numbers to seed from.
    #[error("the operating system gave no random seed; pass a seed")]
    NoEntropy,
}
