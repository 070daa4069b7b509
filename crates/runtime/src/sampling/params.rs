//! Sampling options, unchecked and validated.

use super::SamplingError;

/// Largest number of alternatives reported per token, that of OpenAI's API.
const MAX_TOP_LOGPROBS: usize = 20;

/// Unchecked sampling options. `None` disables a step.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingOptions {
    /// Divisor of the candidates' logits before the draw; 0 is greedy.
    pub temperature: f32,
    /// Keeps the k likeliest tokens, k ≥ 1.
    pub top_k: Option<usize>,
    /// Keeps the smallest set of likeliest tokens with at least this probability, in (0, 1].
    pub top_p: Option<f32>,
    /// Keeps tokens with at least this fraction of the likeliest token's probability, in [0, 1].
    pub min_p: Option<f32>,
    /// Divides positive and multiplies negative logits of recent tokens; above 0, and 1 is neutral.
    pub repetition_penalty: Option<f32>,
    /// Number of recent tokens, prompt included, that the repetition penalty considers.
    pub repetition_context_tokens: usize,
    /// Subtracted once from the logit of each recent token.
    pub presence_penalty: Option<f32>,
    /// Subtracted from the logit of a recent token once per occurrence.
    pub frequency_penalty: Option<f32>,
    /// Number of recent tokens, prompt included, that presence and frequency penalties consider.
    pub occurrence_context_tokens: usize,
    /// Token ids and values to add to their logits.
    pub logit_bias: Vec<(u32, f32)>,
    /// Seed of the random numbers; `None` takes one from the operating system.
    pub seed: Option<u64>,
    /// Reports log-probabilities: of the chosen token and of this many likeliest ones.
    pub logprobs: Option<usize>,
}

impl Default for SamplingOptions {
    /// mlx-lm's defaults: greedy, without filters and penalties, whose context is 20 tokens.
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

/// Validated [`SamplingOptions`].
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams(SamplingOptions);

impl SamplingParams {
    /// Validates `options`, except for the token ids of `logit_bias`: these depend on the model and
    /// are checked by [`Sampler::new`](super::Sampler::new).
    ///
    /// # Errors
    /// [`SamplingError::InvalidOption`] for the first option with an invalid value.
    pub fn new(options: SamplingOptions) -> Result<Self, SamplingError> {
        let o = &options;
        let temperature = Some(o.temperature);
        check("temperature", temperature, "a number, 0 or more", |x| x.is_finite() && x >= 0.0)?;
        check("top_p", o.top_p, "above 0 and at most 1", |x| x > 0.0 && x <= 1.0)?;
        check("min_p", o.min_p, "from 0 to 1", |x| (0.0..=1.0).contains(&x))?;
        let penalty = o.repetition_penalty;
        check("repetition_penalty", penalty, "a number above 0", |x| x.is_finite() && x > 0.0)?;
        check("presence_penalty", o.presence_penalty, "a number", f32::is_finite)?;
        check("frequency_penalty", o.frequency_penalty, "a number", f32::is_finite)?;
        for (_, bias) in &o.logit_bias {
            check("logit_bias", Some(*bias), "a number", f32::is_finite)?;
        }
        check("top_k", o.top_k, "1 or more", |k| k > 0)?;
        check("logprobs", o.logprobs, "at most 20", |n| n <= MAX_TOP_LOGPROBS)?;
        Ok(Self(options))
    }

    /// The validated options.
    pub fn options(&self) -> &SamplingOptions {
        &self.0
    }
}

/// Conversion of an option's value for an error message.
trait OptionValue: Copy {
    fn to_f64(self) -> f64;
}

impl OptionValue for f32 {
    /// Converts through the shortest decimal: 1.1 stays 1.1 instead of 1.10000002….
    fn to_f64(self) -> f64 {
        self.to_string().parse().unwrap_or(f64::NAN)
    }
}

impl OptionValue for usize {
    #[expect(clippy::cast_precision_loss, reason = "for display only")]
    fn to_f64(self) -> f64 {
        self as f64
    }
}

fn check<T: OptionValue>(
    name: &'static str,
    value: Option<T>,
    expected: &'static str,
    valid: impl Fn(T) -> bool,
) -> Result<(), SamplingError> {
    match value.filter(|value| !valid(*value)) {
        Some(value) => Err(SamplingError::InvalidOption { name, value: value.to_f64(), expected }),
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
    fn invalid_values_are_named() {
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
    fn the_limits_are_valid() {
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
