//! Routing of tokens to experts: scores, limits to groups of experts, weights.
//!
//! The rules are those of mlx-lm: Qwen, Mixtral and OLMoE take the highest softmax scores,
//! DeepSeek V2 and V3 only look into the best groups of experts.
#![expect(clippy::cast_possible_truncation, reason = "no layer has 2^32 experts")]

use crate::error::{Result, check_len, wrong_dimension};

/// From router logits to scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scores {
    /// Over all experts.
    Softmax,
    /// Each expert for itself.
    Sigmoid,
    /// Over the chosen ones alone, which are those of the highest logits (gpt-oss).
    SoftmaxOfChosen,
}

/// Score of a group of experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupScore {
    /// Its best expert (DeepSeek V2).
    Best,
    /// Its two best experts together (DeepSeek V3).
    BestTwo,
}

/// Experts are chosen from the best groups only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupLimit {
    /// Groups, a divisor of the number of experts.
    pub groups: usize,
    /// Groups that experts are chosen from.
    pub active: usize,
    /// Score of a group.
    pub score: GroupScore,
}

/// Routing rule of a layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RouteRule {
    /// Experts of the layer.
    pub experts: usize,
    /// Experts of a token.
    pub active: usize,
    /// From logits to scores.
    pub scores: Scores,
    /// Limit to some groups, if there is one.
    pub limit: Option<GroupLimit>,
    /// Scales the weights of a token to sum to one.
    pub normalise: bool,
    /// Factor on the weights, after that.
    pub scale: f32,
}

impl RouteRule {
    /// The `active` of `experts` with the highest softmax, weights summing to one if `normalise`.
    #[must_use]
    pub fn softmax(experts: usize, active: usize, normalise: bool) -> Self {
        Self { experts, active, scores: Scores::Softmax, limit: None, normalise, scale: 1.0 }
    }

    /// Errors unless this rule can choose.
    ///
    /// # Errors
    /// [`crate::KernelError::Dimension`]: no experts, more active ones than there are to choose from,
    /// groups that do not divide the experts or are too small for their score.
    pub fn check(&self) -> Result<()> {
        if self.active == 0 || self.active > self.experts {
            let rule = "at least 1 and at most the number of experts";
            return wrong_dimension("number of active experts", self.active, rule);
        }
        let Some(limit) = self.limit else { return Ok(()) };
        if limit.groups == 0 || !self.experts.is_multiple_of(limit.groups) {
            return wrong_dimension(
                "number of expert groups",
                limit.groups,
                "a divisor of the experts",
            );
        }
        if limit.active == 0 || limit.active > limit.groups {
            let rule = "at least 1 and at most the number of groups";
            return wrong_dimension("number of active expert groups", limit.active, rule);
        }
        let size = self.experts / limit.groups;
        if self.active > limit.active * size {
            let rule = "at most the experts of the active groups";
            return wrong_dimension("number of active experts", self.active, rule);
        }
        if limit.score == GroupScore::BestTwo && size < 2 {
            return wrong_dimension("size of an expert group", size, "at least 2");
        }
        Ok(())
    }
}

/// Chooses for each row of `logits`, `[tokens, experts]`; `bias`, `[experts]`, is added to the
/// scores for the choice alone.
///
/// Returns experts and weights, both `[tokens, active]`, in no particular order within a token.
///
/// # Errors
/// Errors of [`RouteRule::check`], and [`crate::KernelError::Length`] for a bias of another length.
pub fn route(
    logits: &[f32],
    rule: &RouteRule,
    bias: Option<&[f32]>,
) -> Result<(Vec<u32>, Vec<f32>)> {
    rule.check()?;
    if let Some(bias) = bias {
        check_len("bias of the experts", bias.len(), rule.experts)?;
    }
    let slots = logits.len() / rule.experts * rule.active;
    let mut chosen = Vec::with_capacity(slots);
    let mut weights = Vec::with_capacity(slots);
    for row in logits.chunks_exact(rule.experts) {
        let scores = scores(row, rule.scores);
        let mut ranks = scores.clone();
        if let Some(bias) = bias {
            ranks.iter_mut().zip(bias).for_each(|(rank, bias)| *rank += bias);
        }
        if let Some(limit) = rule.limit {
            drop_groups(&mut ranks, limit);
        }
        let best = best(&ranks, rule.active);
        let chosen_scores: Vec<f32> = best.iter().map(|&expert| scores[expert as usize]).collect();
        let worth = match rule.scores {
            Scores::SoftmaxOfChosen => softmax(&chosen_scores),
            Scores::Softmax | Scores::Sigmoid => chosen_scores,
        };
        let total: f32 = worth.iter().sum();
        let factor = if rule.normalise { rule.scale / total } else { rule.scale };
        weights.extend(worth.iter().map(|worth| worth * factor));
        chosen.extend(best);
    }
    Ok((chosen, weights))
}

fn scores(logits: &[f32], scores: Scores) -> Vec<f32> {
    match scores {
        Scores::Sigmoid => logits.iter().map(|x| 1.0 / (1.0 + (-x).exp())).collect(),
        Scores::Softmax => softmax(logits),
        Scores::SoftmaxOfChosen => logits.to_vec(),
    }
}

fn softmax(logits: &[f32]) -> Vec<f32> {
    let largest = logits.iter().fold(f32::NEG_INFINITY, |a, &x| a.max(x));
    let powers: Vec<f32> = logits.iter().map(|x| (x - largest).exp()).collect();
    let total: f32 = powers.iter().sum();
    powers.into_iter().map(|power| power / total).collect()
}

/// Sets the scores of all but the best groups to 0, as DeepSeek's code does.
fn drop_groups(ranks: &mut [f32], limit: GroupLimit) {
    let size = ranks.len() / limit.groups;
    let groups = ranks.chunks_exact(size);
    let group_scores: Vec<f32> = groups.map(|group| group_score(group, limit.score)).collect();
    let kept = best(&group_scores, limit.active);
    for (group, ranks) in ranks.chunks_exact_mut(size).enumerate() {
        if !kept.contains(&(group as u32)) {
            ranks.fill(0.0);
        }
    }
}

/// Score of a group of experts.
fn group_score(ranks: &[f32], score: GroupScore) -> f32 {
    let count = match score {
        GroupScore::Best => 1,
        GroupScore::BestTwo => 2,
    };
    best(ranks, count).iter().map(|&expert| ranks[expert as usize]).sum()
}

/// The indices of the `count` largest values; a NaN counts as the largest.
fn best(values: &[f32], count: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..values.len() as u32).collect();
    order.sort_by(|a, b| values[*b as usize].total_cmp(&values[*a as usize]));
    order.truncate(count);
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 8] = [1.0, 3.0, -1.0, 2.0, 0.0, 0.5, 4.0, -2.0];

    #[test]
    fn the_highest_scores_are_chosen_with_their_softmax() {
        let rule = RouteRule::softmax(8, 3, false);
        let (chosen, weights) = route(&LOGITS, &rule, None).unwrap();
        assert_eq!(chosen, [6, 1, 3]);
        let total: f64 = LOGITS.iter().map(|x| f64::from(*x).exp()).sum();
        for (weight, logit) in weights.iter().zip([4.0f64, 3.0, 2.0]) {
            assert!((f64::from(*weight) - logit.exp() / total).abs() < 1e-6);
        }
        let (_, weights) = route(&LOGITS, &RouteRule::softmax(8, 3, true), None).unwrap();
        assert!((weights.iter().sum::<f32>() - 1.0).abs() < 1e-6);
    }

    #[test]
    fn the_softmax_of_the_chosen_sums_to_one() {
        let rule = RouteRule { scores: Scores::SoftmaxOfChosen, ..RouteRule::softmax(8, 2, false) };
        let (chosen, weights) = route(&LOGITS, &rule, None).unwrap();
        assert_eq!(chosen, [6, 1]);
        let first = 1.0 / (1.0 + (-1.0f64).exp());
        assert!((f64::from(weights[0]) - first).abs() < 1e-6);
        assert!((weights.iter().sum::<f32>() - 1.0).abs() < 1e-6);
    }

    #[test]
    fn groups_are_limited_by_their_best_or_their_best_two() {
        let of = |score, active| {
            let limit = Some(GroupLimit { groups: 4, active: 1, score });
            let rule = RouteRule {
                limit,
                scores: Scores::Sigmoid,
                ..RouteRule::softmax(8, active, false)
            };
            route(&LOGITS, &rule, None).unwrap().0
        };
        assert_eq!(of(GroupScore::Best, 2), [6, 7]);
        // 1 and 3 together beat 4 and −2.
        assert_eq!(of(GroupScore::BestTwo, 2), [1, 0]);
    }

    #[test]
    fn a_bias_chooses_but_does_not_weigh() {
        let mut bias = [0.0; 8];
        bias[7] = 9.0;
        let rule =
            RouteRule { scores: Scores::Sigmoid, scale: 2.0, ..RouteRule::softmax(8, 1, false) };
        let (chosen, weights) = route(&LOGITS, &rule, Some(&bias)).unwrap();
        assert_eq!(chosen, [7]);
        assert!((weights[0] - 2.0 / (1.0 + 2f32.exp())).abs() < 1e-6);
    }

    #[test]
    fn rules_that_cannot_choose_are_refused() {
        let limit = |groups, active, score| Some(GroupLimit { groups, active, score });
        let base = RouteRule::softmax(8, 2, true);
        for (rule, what) in [
            (RouteRule::softmax(8, 9, true), "number of active experts is 9"),
            (RouteRule::softmax(8, 0, true), "number of active experts is 0"),
            (RouteRule { limit: limit(3, 1, GroupScore::Best), ..base }, "expert groups is 3"),
            (RouteRule { limit: limit(4, 5, GroupScore::Best), ..base }, "active expert groups"),
            (RouteRule { limit: limit(8, 1, GroupScore::Best), ..base }, "of the active groups"),
            (RouteRule { limit: limit(8, 4, GroupScore::BestTwo), ..base }, "group is 1"),
        ] {
            let error = route(&LOGITS, &rule, None).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
    }
}
