//! Candidate filters: min-p, top-k and top-p.
//!
//! Each keeps a prefix of the vocabulary sorted by logit, so that all three together reduce to one
//! threshold. It is found by partitioning, not by sorting, in time linear in the vocabulary.

#![expect(clippy::cast_precision_loss, reason = "a vocabulary has far fewer than 2⁵³ tokens")]

use super::SamplingOptions;
use super::exp::{exp, sum};

/// The candidates: all logits above `threshold` and the first `ties` that equal it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Cutoff {
    threshold: f32,
    ties: usize,
}

impl Cutoff {
    /// Computes the cutoff of `logits`, `[vocab]` without NaN, whose maximum `peak` is finite.
    /// `scratch` is working memory, reused between calls.
    pub(super) fn find(
        options: &SamplingOptions,
        logits: &[f32],
        peak: f32,
        scratch: &mut Vec<f32>,
    ) -> Self {
        let min_p = options.min_p.map_or(f32::NEG_INFINITY, |min_p| peak + libm::logf(min_p));
        let mut cutoff = Self { threshold: min_p, ties: usize::MAX };
        let top_p = options.top_p.filter(|top_p| *top_p < 1.0);
        if options.top_k.is_none() && top_p.is_none() {
            return cutoff;
        }
        let total = if top_p.is_some() { mass(logits, peak) } else { 0.0 };
        let floor = min_p.max(top_p.map_or(f32::NEG_INFINITY, |top_p| {
            nucleus_floor(1.0 - f64::from(top_p), total / logits.len() as f64, peak)
        }));
        scratch.clear();
        scratch.extend(logits.iter().filter(|logit| **logit >= floor));
        if let Some(k) = options.top_k.filter(|k| *k < scratch.len()) {
            cutoff = Self::top_k(scratch, k);
            scratch.truncate(k);
        }
        if let Some(top_p) = top_p {
            let threshold = nucleus(scratch, peak, f64::from(top_p) * total);
            if threshold > cutoff.threshold {
                cutoff = Self { threshold, ties: usize::MAX };
            }
        }
        cutoff
    }

    /// Computes the cutoff that keeps exactly `k` of `logits`, `1 ≤ k < logits.len()`, and moves
    /// them to the front.
    fn top_k(logits: &mut [f32], k: usize) -> Self {
        let (above, threshold, _) = logits.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
        let threshold = *threshold;
        let ties = 1 + above.iter().filter(|logit| **logit <= threshold).count();
        Self { threshold, ties }
    }

    /// Returns `true` if `logit` is a candidate. Must be called once per logit, in order of token id.
    pub(super) fn keeps(&mut self, logit: f32) -> bool {
        if logit > self.threshold {
            return true;
        }
        let tie = logit >= self.threshold && self.ties > 0;
        self.ties -= usize::from(tie);
        tie
    }
}

/// Sum of e^(logit − peak): the probability mass of `logits` in units of the likeliest token.
pub(super) fn mass(logits: &[f32], peak: f32) -> f64 {
    sum(logits, |logit| exp(logit - peak))
}

/// Lower bound of the top-p threshold. Tokens that each have less than `outside` (1 − top-p) times the
/// mean mass cannot add up to the mass outside the nucleus, so its edge is not among them. The slack
/// of 1 % allows for rounding.
#[expect(clippy::cast_possible_truncation, reason = "rounded to the precision of a logit")]
fn nucleus_floor(outside: f64, mean_mass: f64, peak: f32) -> f32 {
    peak + libm::log(0.99 * outside * mean_mass) as f32
}

/// Largest threshold whose logits, itself and above, have at least `target` mass; the smallest logit
/// if all of them have less. Repeatedly partitions the half that contains it. `logits` must not be
/// empty and is reordered.
fn nucleus(logits: &mut [f32], peak: f32, target: f64) -> f32 {
    let mut rest = logits;
    let mut above = 0.0;
    while rest.len() > 1 {
        let middle = rest.len() / 2;
        rest.select_nth_unstable_by(middle, |a, b| b.total_cmp(a));
        let (larger, smaller) = rest.split_at_mut(middle);
        let with_larger = above + mass(larger, peak);
        if with_larger >= target {
            rest = larger;
        } else {
            above = with_larger;
            rest = smaller;
        }
    }
    rest[0]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn candidates(options: &SamplingOptions, logits: &[f32]) -> Vec<usize> {
        let peak = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut cutoff = Cutoff::find(options, logits, peak, &mut Vec::new());
        (0..logits.len()).filter(|index| cutoff.keeps(logits[*index])).collect()
    }

    /// Reference implementation, by sorting.
    fn naive(options: &SamplingOptions, logits: &[f32]) -> Vec<usize> {
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
        let peak = logits[order[0]];
        let total: f64 = logits.iter().map(|x| f64::from(x - peak).exp()).sum();
        if let Some(top_p) = options.top_p {
            let mut above = 0.0;
            let inside = order.iter().take_while(|index| {
                let keep = above < f64::from(top_p) * total;
                above += f64::from(logits[**index] - peak).exp();
                keep
            });
            let last = logits[*inside.last().unwrap()];
            order.retain(|index| logits[*index] >= last);
        }
        if let Some(min_p) = options.min_p {
            order.retain(|index| logits[*index] >= peak + min_p.ln());
        }
        order.truncate(options.top_k.unwrap_or(usize::MAX));
        order.sort_unstable();
        order
    }

    #[test]
    fn each_filter_keeps_its_candidates() {
        let logits = [0.1_f32, 0.4, 0.2, 0.3].map(f32::ln);
        let options = |set: fn(&mut SamplingOptions)| {
            let mut options = SamplingOptions::default();
            set(&mut options);
            options
        };
        assert_eq!(candidates(&options(|_| ()), &logits), [0, 1, 2, 3]);
        assert_eq!(candidates(&options(|o| o.top_k = Some(2)), &logits), [1, 3]);
        assert_eq!(candidates(&options(|o| o.top_k = Some(9)), &logits), [0, 1, 2, 3]);
        assert_eq!(candidates(&options(|o| o.top_p = Some(0.69)), &logits), [1, 3]);
        assert_eq!(candidates(&options(|o| o.top_p = Some(0.71)), &logits), [1, 2, 3]);
        assert_eq!(candidates(&options(|o| o.top_p = Some(1e-9)), &logits), [1]);
        assert_eq!(candidates(&options(|o| o.top_p = Some(1.0)), &logits), [0, 1, 2, 3]);
        assert_eq!(candidates(&options(|o| o.min_p = Some(0.49)), &logits), [1, 2, 3]);
        assert_eq!(candidates(&options(|o| o.min_p = Some(1.0)), &logits), [1]);
        assert_eq!(candidates(&options(|o| o.min_p = Some(0.0)), &logits), [0, 1, 2, 3]);
    }

    #[test]
    fn top_k_keeps_the_first_of_equal_logits_and_top_p_all() {
        let logits = [1.0, 2.0, 2.0, 2.0, 0.0];
        let top_k = SamplingOptions { top_k: Some(2), ..SamplingOptions::default() };
        assert_eq!(candidates(&top_k, &logits), [1, 2]);
        let top_p = SamplingOptions { top_p: Some(0.1), ..SamplingOptions::default() };
        assert_eq!(candidates(&top_p, &logits), [1, 2, 3]);
        let both = SamplingOptions { top_p: Some(0.1), ..top_k };
        assert_eq!(candidates(&both, &logits), [1, 2]);
    }

    #[test]
    fn top_k_does_not_keep_impossible_tokens() {
        let none = f32::NEG_INFINITY;
        let options = SamplingOptions {
            top_k: Some(3),
            top_p: Some(0.999_999),
            ..SamplingOptions::default()
        };
        let logits = [none, 1.0, none, 0.5];
        let found = candidates(&options, &logits);
        assert!(found.contains(&1) && found.contains(&3), "{found:?}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]
        // Logits on a grid, so that ties are frequent; top-p off the sums of the grid.
        #[test]
        fn the_cutoff_agrees_with_sorting(
            logits in prop::collection::vec((-20..20_i8).prop_map(|x| f32::from(x) / 4.0), 1..200),
            top_k in prop::option::of(1..250_usize),
            top_p in prop::option::of(0.001..0.999_f32),
            min_p in prop::option::of(0.000_1..1.0_f32),
        ) {
            let options = SamplingOptions { top_k, top_p, min_p, ..SamplingOptions::default() };
            prop_assert_eq!(candidates(&options, &logits), naive(&options, &logits));
        }
    }
}
