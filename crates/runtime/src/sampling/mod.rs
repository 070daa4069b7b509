//! Sampling: chooses a token from a row of logits.
//!
//! Owns the sampling options and their validation ([`SamplingOptions`], [`SamplingParams`]), the
//! random numbers, and the order of the steps, which follows mlx-lm 0.32:
//!
//! 1. `logit_bias`, repetition penalty, presence penalty, frequency penalty;
//! 2. temperature 0 takes the largest logit, the lowest token id among equal ones;
//! 3. otherwise top-p, min-p and top-k select candidates, all at temperature 1, and the
//!    temperature applies only to the draw among the candidates. Each filter keeps a prefix of the
//!    vocabulary sorted by logit, so that their order affects only ties.
//!
//! Invariants: the cost is linear in the vocabulary; equal seed, options and logits give equal tokens
//! on every platform (own random generator, own `exp`); a NaN is an error, not a token. Leaves
//! computing the logits and ending a generation to `engine`.

mod error;
mod exp;
mod filters;
mod logprobs;
mod params;
mod penalties;
mod sampler;

pub use error::SamplingError;
pub use logprobs::{TokenLogprob, TokenLogprobs};
pub use params::{SamplingOptions, SamplingParams};
pub(crate) use sampler::Sampler;

#[cfg(test)]
mod tests;
