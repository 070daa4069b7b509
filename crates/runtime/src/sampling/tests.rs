//! Sampling compared with mlx-lm; `tests/golden/sampling.py` made the goldens.

#![expect(clippy::cast_possible_truncation, reason = "the goldens are f32, written in decimal")]

use serde::Deserialize;
use serde_json::Value;

use super::{SamplingOptions, filters::Cutoff, penalties};

#[derive(Deserialize)]
struct Goldens {
    filters: Vec<Filtered>,
    penalties: Vec<Penalised>,
}

#[derive(Deserialize)]
struct Filtered {
    logits: Vec<f32>,
    options: Value,
    kept: Vec<usize>,
}

#[derive(Deserialize)]
struct Penalised {
    logits: Vec<f32>,
    history: Vec<u32>,
    options: Value,
    penalised: Vec<f32>,
    logprobs: Vec<f32>,
}

fn goldens() -> Goldens {
    serde_json::from_str(include_str!("../../tests/golden/sampling.json")).unwrap()
}

/// Options of a golden, which have mlx-lm's names.
fn options(golden: &Value) -> SamplingOptions {
    let float = |key: &str| golden[key].as_f64().map(|value| value as f32);
    let count = |key: &str| golden[key].as_u64().map(|value| usize::try_from(value).unwrap());
    let bias = golden["logit_bias"].as_object().into_iter().flatten();
    SamplingOptions {
        top_k: count("top_k"),
        top_p: float("top_p"),
        min_p: float("min_p"),
        repetition_penalty: float("repetition_penalty"),
        repetition_context_tokens: count("repetition_context_size").unwrap_or(20),
        presence_penalty: float("presence_penalty"),
        frequency_penalty: float("frequency_penalty"),
        occurrence_context_tokens: count("presence_context_size").unwrap_or(20),
        logit_bias: bias
            .map(|(token, value)| (token.parse().unwrap(), value.as_f64().unwrap() as f32))
            .collect(),
        ..SamplingOptions::default()
    }
}

fn peak(logits: &[f32]) -> f32 {
    logits.iter().copied().fold(f32::NEG_INFINITY, f32::max)
}

#[test]
fn candidates_agree_with_mlx_lm() {
    let goldens = goldens().filters;
    assert_eq!(goldens.len(), 33);
    for golden in goldens {
        let logits = &golden.logits;
        let options = options(&golden.options);
        let mut cutoff = Cutoff::find(&options, logits, peak(logits), &mut Vec::new());
        let kept: Vec<usize> = (0..logits.len()).filter(|id| cutoff.keeps(logits[*id])).collect();
        assert_eq!(kept, golden.kept, "{}", golden.options);
    }
}

#[test]
fn penalised_logits_and_logprobs_agree_with_mlx_lm() {
    let goldens = goldens().penalties;
    assert_eq!(goldens.len(), 6);
    for golden in goldens {
        let mut logits = golden.logits;
        penalties::apply(&options(&golden.options), &golden.history, &mut logits).unwrap();
        // mlx-lm sums a frequency penalty in another order: a few units in the last place of 10.
        for (found, expected) in logits.iter().zip(&golden.penalised) {
            assert!(
                (found - expected).abs() <= 4e-6 * expected.abs().max(1.0),
                "{}",
                golden.options
            );
        }
        let top = super::TokenLogprobs::new(&logits, peak(&logits), 0, logits.len()).top;
        for found in top {
            let expected = golden.logprobs[found.token as usize];
            assert!((found.logprob - expected).abs() <= 1e-5 * expected.abs().max(1.0));
        }
    }
}
