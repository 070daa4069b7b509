//! Which tokens are candidates: min-p, top-k and top-p.
//!
//! Each keeps a head of the vocabulary sorted by logit, so all three together come down to one
//! threshold. It is found by partitioning, never by sorting: linear in the vocabulary.

#![expect(clippy::cast_precision_loss, reason = "a vocabulary has far fewer than 2⁵³ tokens")]

use super::SamplingOptions;
use super::exp::{exp, sum};

/// The candidates: every logit above `threshold`, and the first `ties` that equal it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Cut {
    threshold: f32,
    ties: usize,
}

impl Cut {
    /// Finds the cut of `logits` (`[vocab]`, no NaN, the largest being `peak`, which is finite).
    /// `scratch` is working memory that calls share.
    pub(super) fn find(
        options: &SamplingOptions,
        logits: &[f32],
        peak: f32,
        scratch: &mut Vec<f32>,
    ) -> Self {
        let min_p = options.min_p.map_or(f32::NEG_INFINITY, |min_p| peak + libm::logf(min_p));
        let mut cut = Self { threshold: min_p, ties: usize::MAX };
        let top_p = options.top_p.filter(|top_p| *top_p < 1.0);
        if options.top_k.is_none() && top_p.is_none() {
            return cut;
        }
        let total = if top_p.is_some() { mass(logits, peak) } else { 0.0 };
        let floor = min_p.max(top_p.map_or(f32::NEG_INFINITY, |top_p| {
            nucleus_floor(1.0 - f64::from(top_p), total / logits.len() as f64, peak)
        }));
        scratch.clear();
        scratch.extend(logits.iter().filter(|logit| **logit >= floor));
        if let Some(k) = options.top_k.filter(|k| *k < scratch.len()) {
            cut = Self::top_k(scratch, k);
            scratch.truncate(k);
        }
        if let Some(top_p) = top_p {
            let threshold = nucleus(scratch, peak, f64::from(top_p) * total);
            if threshold > cut.threshold {
                cut = Self { threshold, ties: usize::MAX };
            }
        }
        cut
    }

    /// The cut that leaves exactly `k` of `logits`, `1 ≤ k < logits.len()`; moves those to the
    /// front.
    fn top_k(logits: &mut [f32], k: usize) -> Self {
        let (above, threshold, _) = logits.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
        let threshold = *threshold;
        let ties = 1 + above.iter().filter(|logit| **logit <= threshold).count();
        Self { threshold, ties }
    }

    /// Whether `logit` is a candidate. To be asked of every logit once, in order of id.
    pub(super) fn keeps(&mut self, logit: f32) -> bool {
        if logit > self.threshold {
            return true;
        }
        let tie = logit >= self.threshold && self.ties > 0;
        self.ties -= usize::from(tie);
        tie
    }
}

/// The sum of e^(logit − peak), the probability mass of `logits` in units of the likeliest token.
pub(super) fn mass(logits: &[f32], peak: f32) -> f64 {
    sum(logits, |logit| exp(logit - peak))
}

/// A logit below every nucleus. Tokens that each have less than `outside` (1 − top-p) of the mean
/// mass cannot together make up the mass outside of the nucleus, so its edge is not among them.
/// The slack of 1 % is for rounding.
#[expect(clippy::cast_possible_truncation, reason = "rounded to the precision of a logit")]
fn nucleus_floor(outside: f64, mean_mass: f64, peak: f32) -> f32 {
    peak + libm::log(0.99 * outside * mean_mass) as f32
}

/// The largest threshold such that the logits from it upwards have at least `target` mass, or the
/// smallest logit where all together have less. Partitions the half that holds it, again and
/// again; `logits` is not empty and is left in another order.
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

    fn kept(options: &SamplingOptions, logits: &[f32]) -> Vec<usize> {
        let peak = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut cut = Cut::find(options, logits, peak, &mut Vec::new());
        (0..logits.len()).filter(|index| cut.keeps(logits[*index])).collect()
    }

    /// The definition, by sorting.
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
    fn each_filter_keeps_what_it_says() {
        let logits = [0.1_f32, 0.4, 0.2, 0.3].map(f32::ln);
        let options = |set: fn(&mut SamplingOptions)| {
            let mut options = SamplingOptions::default();
            set(&mut options);
            options
        };
        assert_eq!(kept(&options(|_| ()), &logits), [0, 1, 2, 3]);
        assert_eq!(kept(&options(|o| o.top_k = Some(2)), &logits), [1, 3]);
        assert_eq!(kept(&options(|o| o.top_k = Some(9)), &logits), [0, 1, 2, 3]);
        assert_eq!(kept(&options(|o| o.top_p = Some(0.69)), &logits), [1, 3]);
        assert_eq!(kept(&options(|o| o.top_p = Some(0.71)), &logits), [1, 2, 3]);
        assert_eq!(kept(&options(|o| o.top_p = Some(1e-9)), &logits), [1]);
        assert_eq!(kept(&options(|o| o.top_p = Some(1.0)), &logits), [0, 1, 2, 3]);
        assert_eq!(kept(&options(|o| o.min_p = Some(0.49)), &logits), [1, 2, 3]);
        assert_eq!(kept(&options(|o| o.min_p = Some(1.0)), &logits), [1]);
        assert_eq!(kept(&options(|o| o.min_p = Some(0.0)), &logits), [0, 1, 2, 3]);
    }

    #[test]
    fn of_equal_logits_top_k_keeps_the_first_and_top_p_all() {
        let logits = [1.0, 2.0, 2.0, 2.0, 0.0];
        let top_k = SamplingOptions { top_k: Some(2), ..SamplingOptions::default() };
        assert_eq!(kept(&top_k, &logits), [1, 2]);
        let top_p = SamplingOptions { top_p: Some(0.1), ..SamplingOptions::default() };
        assert_eq!(kept(&top_p, &logits), [1, 2, 3]);
        let both = SamplingOptions { top_p: Some(0.1), ..top_k };
        assert_eq!(kept(&both, &logits), [1, 2]);
    }

    #[test]
    fn impossible_tokens_are_no_candidates_of_top_k() {
        let none = f32::NEG_INFINITY;
        let options = SamplingOptions {
            top_k: Some(3),
            top_p: Some(0.999_999),
            ..SamplingOptions::default()
        };
        let logits = [none, 1.0, none, 0.5];
        let kept = kept(&options, &logits);
        assert!(kept.contains(&1) && kept.contains(&3), "{kept:?}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]
        // Logits on a grid, so that ties are frequent; probabilities off the grid's sums.
        #[test]
        fn the_cut_is_that_of_sorting(
            logits in prop::collection::vec((-20..20_i8).prop_map(|x| f32::from(x) / 4.0), 1..200),
            top_k in prop::option::of(1..250_usize),
            top_p in prop::option::of(0.001..0.999_f32),
            min_p in prop::option::of(0.000_1..1.0_f32),
        ) {
            let options = SamplingOptions { top_k, top_p, min_p, ..SamplingOptions::default() };
            prop_assert_eq!(kept(&options, &logits), naive(&options, &logits));
        }
    }
}
