//! Log-probabilities of chosen and alternative tokens.

use super::filters::mass;

/// A token and the logarithm of its probability.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenLogprob {
    /// Token id.
    pub token: u32,
    /// Natural logarithm of its probability: at most 0, and −∞ for an impossible token.
    pub logprob: f32,
}

/// Log-probabilities at one position: of the chosen token and of the likeliest ones.
///
/// Computed over the whole vocabulary at temperature 1, after bias and penalties and before the
/// filters, as in mlx-lm.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprobs {
    /// Chosen token.
    pub chosen: TokenLogprob,
    /// Likeliest tokens, in descending order of probability, then in ascending order of id.
    pub top: Vec<TokenLogprob>,
}

impl TokenLogprobs {
    /// Computes the log-probabilities for `logits`, `[vocab]` with maximum `peak`, including those
    /// of the `count` likeliest tokens.
    pub(super) fn new(logits: &[f32], peak: f32, chosen: u32, count: usize) -> Self {
        let softmax = LogSoftmax { peak, log_mass: libm::log(mass(logits, peak)) };
        let logit = logits.get(chosen as usize).copied().unwrap_or(f32::NEG_INFINITY);
        let top = top_logits(logits, count);
        Self {
            chosen: softmax.token(chosen, logit),
            top: top.into_iter().map(|(token, logit)| softmax.token(token, logit)).collect(),
        }
    }
}

/// Normalisation of one row of logits.
struct LogSoftmax {
    peak: f32,
    /// ln Σ e^(logit − peak).
    log_mass: f64,
}

impl LogSoftmax {
    #[expect(clippy::cast_possible_truncation, reason = "rounded to the precision of a logit")]
    fn token(&self, token: u32, logit: f32) -> TokenLogprob {
        TokenLogprob { token, logprob: (f64::from(logit - self.peak) - self.log_mass) as f32 }
    }
}

/// Returns the `count` largest logits with their token ids, in one pass with a sorted buffer.
fn top_logits(logits: &[f32], count: usize) -> Vec<(u32, f32)> {
    let mut best: Vec<(u32, f32)> = Vec::with_capacity(count + 1);
    for (token, logit) in (0_u32..).zip(logits.iter().copied()) {
        let full = best.len() == count;
        if full && best.last().is_none_or(|(_, worst)| logit <= *worst) {
            continue;
        }
        let rank = best.partition_point(|(_, other)| *other >= logit);
        best.insert(rank, (token, logit));
        best.truncate(count);
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn values_are_logarithms_of_the_softmax() {
        let logits = [0.1_f32, 0.4, 0.2, 0.3].map(|p| p.ln() + 7.0);
        let logprobs = TokenLogprobs::new(&logits, logits[1], 2, 2);
        let expected = [(2, 0.2_f32), (1, 0.4), (3, 0.3)];
        let found = std::iter::once(&logprobs.chosen).chain(&logprobs.top);
        for (found, (token, probability)) in found.zip(expected) {
            assert_eq!(found.token, token);
            assert!((found.logprob - probability.ln()).abs() < 1e-6, "{found:?}");
        }
        assert_eq!(logprobs.top.len(), 2);
    }

    #[test]
    fn an_impossible_token_has_logprob_minus_infinity() {
        let logprobs = TokenLogprobs::new(&[f32::NEG_INFINITY, 0.0], 0.0, 1, 5);
        assert_eq!(logprobs.chosen.logprob.to_bits(), 0.0_f32.to_bits());
        assert!(logprobs.top[1].logprob < f32::MIN);
    }

    proptest! {
        #[test]
        fn top_logits_agree_with_sorting(
            logits in prop::collection::vec((-9..9_i8).prop_map(f32::from), 0..60),
            count in 0..25_usize,
        ) {
            let mut sorted: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
            sorted.sort_by(|a, b| b.1.total_cmp(&a.1));
            sorted.truncate(count);
            prop_assert_eq!(top_logits(&logits, count), sorted);
        }
    }
}
