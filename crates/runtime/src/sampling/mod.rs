//! From a row of logits to a token.
//!
//! Owns the options of sampling and their checks ([`SamplingOptions`], [`SamplingParams`]), the
//! random numbers, and the order in which things happen, which is that of mlx-lm 0.32:
//!
//! 1. on the logits: `logit_bias`, repetition penalty, presence penalty, frequency penalty;
//! 2. temperature 0 takes the largest logit, and of equal ones the lowest id;
//! 3. otherwise top-p, min-p and top-k choose candidates, all at temperature 1, and the
//!    temperature applies only to the draw among them. Each of the three keeps the head of the
//!    vocabulary sorted by logit, so that their order changes nothing but ties.
//!
//! Invariants: work is linear in the vocabulary; the same seed, options and logits give the same
//! tokens on every platform (own random generator, own `exp`); a NaN is an error, not a token.
//! Leaves to others: where logits come from, and when to stop.

mod error;
mod exp;
mod filters;
mod logprobs;
mod params;
mod penalties;
mod sampler;

pub use error::SamplingError;
pub use logprobs::{TokenLogprob, TokenLogprobs};
pub use params::{MAX_TOP_LOGPROBS, SamplingOptions, SamplingParams};
pub use sampler::{Sample, Sampler};

#[cfg(test)]
mod tests;
