//! Draws, penalties and filters against mlx-lm and against each other.

#![expect(clippy::cast_possible_truncation, reason = "expected values are computed in f64")]

use super::*;
use crate::sampling::SamplingOptions;

fn sampler(options: SamplingOptions, vocab_size: usize) -> Sampler {
    Sampler::new(&SamplingParams::new(options).unwrap(), vocab_size).unwrap()
}

fn sampled_options() -> SamplingOptions {
    SamplingOptions { temperature: 1.0, seed: Some(42), ..SamplingOptions::default() }
}

fn draws(options: SamplingOptions, logits: &[f32], count: usize) -> Vec<u32> {
    let mut sampler = sampler(options, logits.len());
    (0..count).map(|_| sampler.sample(logits, &[]).unwrap().token).collect()
}

/// Asserts that `draws` come from `probabilities` by Pearson's test, at the 99.9 % point of the
/// chi-squared distribution (Wilson–Hilferty). The seed is fixed, so it passes always or never.
fn assert_distributed(draws: &[u32], probabilities: &[f64]) {
    let possible = probabilities.iter().filter(|p| **p > 0.0).count();
    let mut statistic = 0.0;
    for (token, probability) in (0_u32..).zip(probabilities) {
        let found = draws.iter().filter(|drawn| **drawn == token).count() as f64;
        let expected = probability * draws.len() as f64;
        if *probability > 0.0 {
            statistic += (found - expected).powi(2) / expected;
        } else {
            assert!(found < 0.5, "token {token} is impossible, and was drawn {found} times");
        }
    }
    let freedom = possible as f64 - 1.0;
    let spread = 2.0 / (9.0 * freedom);
    let limit = freedom * (1.0 - spread + 3.09 * spread.sqrt()).powi(3);
    assert!(statistic < limit, "chi² is {statistic:.1}, limit {limit:.1}");
}

const PROBABILITIES: [f64; 6] = [0.05, 0.4, 0.0, 0.2, 0.3, 0.05];

fn logits() -> Vec<f32> {
    PROBABILITIES.iter().map(|p| p.ln() as f32 - 3.0).collect()
}

/// `PROBABILITIES` of the tokens `kept`, raised to 1/temperature and normalised.
fn reshaped(temperature: f64, kept: &[usize]) -> Vec<f64> {
    let weight = |(index, p): (usize, &f64)| match kept.contains(&index) {
        true => p.powf(1.0 / temperature),
        false => 0.0,
    };
    let weights: Vec<f64> = PROBABILITIES.iter().enumerate().map(weight).collect();
    let total: f64 = weights.iter().sum();
    weights.iter().map(|weight| weight / total).collect()
}

#[test]
fn draws_follow_the_softmax() {
    assert_distributed(&draws(sampled_options(), &logits(), 20_000), &PROBABILITIES);
}

#[test]
fn filters_apply_before_the_temperature() {
    for temperature in [0.5, 2.0] {
        let options = SamplingOptions {
            temperature: temperature as f32,
            // After a temperature of 2 the three likeliest would have less than 0.85 of the mass.
            top_p: Some(0.85),
            ..sampled_options()
        };
        let expected = reshaped(temperature, &[1, 3, 4]);
        assert_distributed(&draws(options, &logits(), 20_000), &expected);
    }
}

#[test]
fn top_k_and_min_p_limit_the_draw() {
    let top_k = SamplingOptions { top_k: Some(2), ..sampled_options() };
    assert_distributed(&draws(top_k, &logits(), 20_000), &reshaped(1.0, &[1, 4]));
    let min_p = SamplingOptions { min_p: Some(0.45), ..sampled_options() };
    assert_distributed(&draws(min_p, &logits(), 20_000), &reshaped(1.0, &[1, 3, 4]));
}

#[test]
fn temperature_0_takes_the_first_of_the_likeliest_tokens() {
    assert_eq!(draws(SamplingOptions::default(), &[0.0, 3.0, 3.0, 1.0], 3), [1, 1, 1]);
    let low_temperature = SamplingOptions { temperature: 1e-30, ..sampled_options() };
    assert_eq!(draws(low_temperature, &[0.0, 3.0, 2.999, 1.0], 3), [1, 1, 1]);
}

/// Pinned: another generator, or another mapping of its bits to tokens, invalidates stored seeds.
#[test]
fn the_tokens_of_a_seed_are_stable() {
    let logits: Vec<f32> = (0..1000_u16).map(|i| f32::from(i * 37 % 1000) / 250.0).collect();
    let options = SamplingOptions { seed: Some(7), top_p: Some(0.9), ..sampled_options() };
    assert_eq!(draws(options, &logits, 8), [158, 161, 697, 722, 590, 348, 81, 837]);
}

#[test]
fn seeds_differ_also_generated_ones() {
    let logits = vec![0.0; 1000];
    let with = |seed| draws(SamplingOptions { seed, ..sampled_options() }, &logits, 8);
    assert_ne!(with(Some(1)), with(Some(2)));
    assert_ne!(with(None), with(None));
}

#[test]
fn bias_and_penalties_change_the_choice() {
    let bias = SamplingOptions { logit_bias: vec![(2, 100.0)], ..sampled_options() };
    assert_eq!(draws(bias, &[0.0, 1.0, -5.0], 5), [2; 5]);
    let ban = SamplingOptions { logit_bias: vec![(1, -100.0)], ..SamplingOptions::default() };
    assert_eq!(draws(ban, &[0.0, 1.0, -5.0], 1), [0]);
    let options = SamplingOptions { presence_penalty: Some(2.0), ..SamplingOptions::default() };
    assert_eq!(sampler(options, 3).sample(&[0.0, 1.0, -5.0], &[1]).unwrap().token, 0);
}

#[test]
fn logprobs_are_of_the_penalised_logits() {
    let options = SamplingOptions {
        logit_bias: vec![(0, f32::ln(3.0))],
        logprobs: Some(1),
        ..SamplingOptions::default()
    };
    let sample = sampler(options, 2).sample(&[0.0, 0.0], &[]).unwrap();
    let logprobs = sample.logprobs.unwrap();
    assert_eq!((sample.token, logprobs.top[0].token), (0, 0));
    assert!((logprobs.chosen.logprob - 0.75_f32.ln()).abs() < 1e-6);
}

#[test]
fn invalid_logits_are_errors() {
    let mut sampler = sampler(sampled_options(), 3);
    let mut error = |logits: &[f32]| sampler.sample(logits, &[]).unwrap_err().to_string();
    assert!(error(&[0.0, f32::NAN, 1.0]).starts_with("the logit of token 1 is NaN"));
    assert!(error(&[0.0, 1.0, f32::INFINITY]).starts_with("the logit of token 2 is inf"));
    assert_eq!(error(&[f32::NEG_INFINITY; 3]), "no token is possible: every logit is -inf");
    assert_eq!(error(&[0.0; 2]), "expected 3 logits, found 2");
    let bias = SamplingOptions { logit_bias: vec![(3, 1.0)], ..sampled_options() };
    let error = Sampler::new(&SamplingParams::new(bias).unwrap(), 3).unwrap_err();
    assert_eq!(error.to_string(), "logit_bias names token 3, but the model has 3 tokens");
}
