//! Sampling options: as they are asked for, and checked.

use super::SamplingError;

/// The most alternatives that can be reported per token; OpenAI's API allows 20.
pub const MAX_TOP_LOGPROBS: usize = 20;

/// How tokens are to be chosen, unchecked. `None` switches a step off.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingOptions {
    /// Divides the logits of the candidates before the draw; 0 always takes the likeliest token.
    pub temperature: f32,
    /// Keeps the k likeliest tokens; 1 or more.
    pub top_k: Option<usize>,
    /// Keeps the likeliest tokens that together have at least this probability; in (0, 1].
    pub top_p: Option<f32>,
    /// Keeps tokens with at least this fraction of the likeliest token's probability; in [0, 1].
    pub min_p: Option<f32>,
    /// Divides positive and multiplies negative logits of recent tokens; above 0, 1 is neutral.
    pub repetition_penalty: Option<f32>,
    /// How many tokens back the repetition penalty looks, prompt included.
    pub repetition_context_tokens: usize,
    /// Subtracted once from the logit of every recent token.
    pub presence_penalty: Option<f32>,
    /// Subtracted from the logit of a recent token as often as it occurs.
    pub frequency_penalty: Option<f32>,
    /// How many tokens back the presence and frequency penalties look, prompt included.
    pub occurrence_context_tokens: usize,
    /// Added to the logits of single tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// Where random numbers start; `None` asks the operating system.
    pub seed: Option<u64>,
    /// Reports the log-probability of the chosen token and of this many likeliest ones.
    pub logprobs: Option<usize>,
}

impl Default for SamplingOptions {
    /// mlx-lm's defaults: greedy, nothing filtered, penalties off and 20 tokens back.
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: None,
            top_p: None,
            min_p: None,
            repetition_penalty: None,
            repetition_context_tokens: 20,
            presence_penalty: None,
            frequency_penalty: None,
            occurrence_context_tokens: 20,
            logit_bias: Vec::new(),
            seed: None,
            logprobs: None,
        }
    }
}

/// [`SamplingOptions`] whose every value is one that it can have.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams(SamplingOptions);

impl SamplingParams {
    /// Checks `options`. Whether the tokens of `logit_bias` exist is checked by
    /// [`Sampler::new`](super::Sampler::new), which knows the model.
    ///
    /// # Errors
    /// [`SamplingError::InvalidOption`] for the first option with an impossible value.
    pub fn new(options: SamplingOptions) -> Result<Self, SamplingError> {
        let o = &options;
        let at_least_0 = |value: f32| value.is_finite() && value >= 0.0;
        let share = |value: f32| value > 0.0 && value <= 1.0;
        let from_0_to_1 = |value: f32| (0.0..=1.0).contains(&value);
        let positive = |value: f32| value.is_finite() && value > 0.0;
        check("temperature", Some(o.temperature), "a number, 0 or more", at_least_0)?;
        check("top_p", o.top_p, "above 0 and at most 1", share)?;
        check("min_p", o.min_p, "from 0 to 1", from_0_to_1)?;
        check("repetition_penalty", o.repetition_penalty, "a number above 0", positive)?;
        check("presence_penalty", o.presence_penalty, "a number", f32::is_finite)?;
        check("frequency_penalty", o.frequency_penalty, "a number", f32::is_finite)?;
        for (_, bias) in &o.logit_bias {
            check("logit_bias", Some(*bias), "a number", f32::is_finite)?;
        }
        check("top_k", o.top_k, "1 or more", |k| k > 0)?;
        check("logprobs", o.logprobs, "at most 20", |n| n <= MAX_TOP_LOGPROBS)?;
        Ok(Self(options))
    }

    /// The options, all possible.
    pub fn options(&self) -> &SamplingOptions {
        &self.0
    }
}

/// Numbers of both kinds, for the message.
trait Shown: Copy {
    fn shown(self) -> f64;
}

impl Shown for f32 {
    /// The decimal that was typed, not the nearest binary fraction: 1.1, not 1.10000002….
    fn shown(self) -> f64 {
        self.to_string().parse().unwrap_or(f64::NAN)
    }
}

impl Shown for usize {
    #[expect(clippy::cast_precision_loss, reason = "shown to a person only")]
    fn shown(self) -> f64 {
        self as f64
    }
}

fn check<T: Shown>(
    name: &'static str,
    value: Option<T>,
    expected: &'static str,
    possible: impl Fn(T) -> bool,
) -> Result<(), SamplingError> {
    match value.filter(|value| !possible(*value)) {
        Some(value) => Err(SamplingError::InvalidOption { name, value: value.shown(), expected }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(change: impl Fn(&mut SamplingOptions)) -> String {
        let mut options = SamplingOptions::default();
        change(&mut options);
        SamplingParams::new(options).unwrap_err().to_string()
    }

    #[test]
    fn impossible_values_are_named() {
        assert_eq!(
            error(|o| o.temperature = -0.1),
            "temperature is -0.1, but must be a number, 0 or more"
        );
        assert_eq!(
            error(|o| o.top_p = Some(1.1)),
            "top_p is 1.1, but must be above 0 and at most 1"
        );
        assert_eq!(error(|o| o.top_k = Some(0)), "top_k is 0, but must be 1 or more");
        for nan in [f32::NAN, f32::INFINITY] {
            let all: [fn(&mut SamplingOptions, f32); 7] = [
                |o, x| o.temperature = x,
                |o, x| o.top_p = Some(x),
                |o, x| o.min_p = Some(x),
                |o, x| o.repetition_penalty = Some(x),
                |o, x| o.presence_penalty = Some(x),
                |o, x| o.frequency_penalty = Some(x),
                |o, x| o.logit_bias = vec![(0, x)],
            ];
            for set in all {
                error(|options| set(options, nan));
            }
        }
        error(|o| o.top_p = Some(0.0));
        error(|o| o.min_p = Some(-0.5));
        error(|o| o.repetition_penalty = Some(0.0));
        error(|o| o.logprobs = Some(21));
    }

    #[test]
    fn the_edges_are_possible() {
        let options = SamplingOptions {
            temperature: 0.0,
            top_k: Some(1),
            top_p: Some(1.0),
            min_p: Some(0.0),
            presence_penalty: Some(-2.0),
            logit_bias: vec![(0, -100.0)],
            logprobs: Some(20),
            ..SamplingOptions::default()
        };
        assert_eq!(SamplingParams::new(options.clone()).unwrap().options(), &options);
    }
}
