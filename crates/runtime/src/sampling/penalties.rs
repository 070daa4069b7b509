//! Changes of logits before sampling: `logit_bias` and the three penalties.

use super::{SamplingError, SamplingOptions};

/// Applies bias and penalties to `logits` (`[vocab]`), in mlx-lm's order.
///
/// `history` contains the previous tokens, prompt included. Tokens without a logit, such as image
/// placeholders, are skipped.
///
/// # Errors
/// [`SamplingError::TokenOutOfVocabulary`] for a token of `logit_bias` without a logit.
pub(super) fn apply(
    options: &SamplingOptions,
    history: &[u32],
    logits: &mut [f32],
) -> Result<(), SamplingError> {
    for (token, bias) in &options.logit_bias {
        *logit(logits, *token, "logit_bias")? += bias;
    }
    if let Some(penalty) = options.repetition_penalty {
        let vocab = logits.len();
        for (token, _) in token_counts(history, options.repetition_context_tokens, vocab) {
            let logit = logit(logits, token, "the text so far")?;
            *logit = if *logit < 0.0 { *logit * penalty } else { *logit / penalty };
        }
    }
    if options.presence_penalty.is_none() && options.frequency_penalty.is_none() {
        return Ok(());
    }
    let presence = options.presence_penalty.unwrap_or(0.0);
    let frequency = options.frequency_penalty.unwrap_or(0.0);
    for (token, count) in token_counts(history, options.occurrence_context_tokens, logits.len()) {
        *logit(logits, token, "the text so far")? -= presence + frequency * count;
    }
    Ok(())
}

fn logit<'a>(
    logits: &'a mut [f32],
    token: u32,
    origin: &'static str,
) -> Result<&'a mut f32, SamplingError> {
    let vocab_size = logits.len();
    usize::try_from(token)
        .ok()
        .and_then(|index| logits.get_mut(index))
        .ok_or(SamplingError::TokenOutOfVocabulary { origin, token, vocab_size })
}

/// Distinct tokens below `vocab` among the last `context_tokens`, each with its number of occurrences.
fn token_counts(history: &[u32], context_tokens: usize, vocab: usize) -> Vec<(u32, f32)> {
    let mut recent = history[history.len().saturating_sub(context_tokens)..].to_vec();
    recent.retain(|token| (*token as usize) < vocab);
    recent.sort_unstable();
    let equal_tokens = recent.chunk_by(|a, b| a == b);
    #[expect(clippy::cast_precision_loss, reason = "a count of tokens, far below 2²⁴")]
    equal_tokens.map(|tokens| (tokens[0], tokens.len() as f32)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn penalised(options: SamplingOptions, history: &[u32]) -> Vec<f32> {
        let mut logits = vec![2.0, -2.0, 0.0, 1.0];
        apply(&options, history, &mut logits).unwrap();
        logits
    }

    #[test]
    fn repetition_respects_its_context_and_counts_once() {
        let options = |context| SamplingOptions {
            repetition_penalty: Some(2.0),
            repetition_context_tokens: context,
            ..SamplingOptions::default()
        };
        assert_eq!(penalised(options(3), &[3, 0, 1, 0]), [1.0, -4.0, 0.0, 1.0]);
        assert_eq!(penalised(options(9), &[3, 0, 1, 0]), [1.0, -4.0, 0.0, 0.5]);
        assert_eq!(penalised(options(0), &[3, 0, 1, 0]), [2.0, -2.0, 0.0, 1.0]);
        assert_eq!(penalised(options(3), &[]), [2.0, -2.0, 0.0, 1.0]);
    }

    #[test]
    fn presence_counts_once_and_frequency_per_occurrence() {
        let options = SamplingOptions {
            presence_penalty: Some(0.5),
            frequency_penalty: Some(0.25),
            logit_bias: vec![(2, 10.0), (2, -1.0)],
            ..SamplingOptions::default()
        };
        assert_eq!(penalised(options, &[0, 0, 0, 3]), [0.75, -2.0, 9.0, 0.25]);
    }

    #[test]
    fn a_token_without_a_logit_is_skipped_except_in_a_bias() {
        let options = SamplingOptions {
            presence_penalty: Some(1.0),
            repetition_penalty: Some(2.0),
            ..SamplingOptions::default()
        };
        assert_eq!(penalised(options.clone(), &[4, 0]), penalised(options.clone(), &[0]));
        let options = SamplingOptions { logit_bias: vec![(4, 1.0)], ..options };
        let error = apply(&options, &[], &mut [0.0; 4]).unwrap_err();
        assert_eq!(error.to_string(), "logit_bias names token 4, but the model has 4 tokens");
    }
}
