//! Token loop of one completion: sample, append, end of sequence, stop strings, length.
//!
//! Owns everything between a row of logits and text. Forward passes and caches stay with the
//! caller, so that one sequence (`generate`) and a batch of them (the server) share this loop.

use std::time::Instant;

use super::{Finish, TextStream};
use crate::Result;
use crate::sampling::{Sampler, SamplingParams, TokenLogprobs};
use crate::text::Tokenizer;

/// Limits and sampling of a completion.
#[derive(Clone, Copy, Debug)]
pub struct CompletionOptions<'a> {
    /// Sampling parameters.
    pub sampling: &'a SamplingParams,
    /// Texts that end the completion and are not part of it.
    pub stop: &'a [String],
    /// Maximum number of tokens to generate.
    pub max_tokens: usize,
    /// True if the end tokens of the model are ignored.
    pub ignore_eos: bool,
}

/// A prompt and the tokens generated after it.
#[derive(Debug)]
pub struct Completion {
    tokenizer: Tokenizer,
    sampler: Sampler,
    text: TextStream,
    /// Prompt and generated tokens.
    tokens: Vec<u32>,
    prompt_tokens: usize,
    max_tokens: usize,
    ignore_eos: bool,
    first_token: Option<Instant>,
    finish: Option<Finish>,
}

/// Result of one step of the loop.
#[derive(Clone, Debug, PartialEq)]
pub struct GeneratedToken {
    /// The sampled token.
    pub token: u32,
    /// Text that has become final, possibly empty.
    pub text: String,
    /// Log-probabilities, if requested; `None` for an end token, which has no text.
    pub logprobs: Option<TokenLogprobs>,
}

impl Completion {
    /// Starts a completion of `prompt` for a model with `vocab` logits per row. Without any tokens
    /// to generate it is finished at once.
    ///
    /// # Errors
    /// Sampling that does not fit the vocabulary, and empty stop strings.
    pub fn new(
        tokenizer: &Tokenizer,
        vocab: usize,
        prompt: &[u32],
        options: CompletionOptions<'_>,
    ) -> Result<Self> {
        Ok(Self {
            sampler: Sampler::new(options.sampling, vocab)?,
            text: TextStream::new(tokenizer, options.stop)?,
            tokenizer: tokenizer.clone(),
            tokens: prompt.to_vec(),
            prompt_tokens: prompt.len(),
            max_tokens: options.max_tokens,
            ignore_eos: options.ignore_eos,
            first_token: None,
            finish: (options.max_tokens == 0).then_some(Finish::Length),
        })
    }

    /// Samples the next token from `logits`, `[vocab]`, and decides whether the completion ends
    /// with it.
    ///
    /// # Errors
    /// Logits from which no token can be drawn.
    pub fn advance(&mut self, logits: &[f32]) -> Result<GeneratedToken> {
        debug_assert!(self.finish.is_none(), "a finished completion needs no more logits");
        let sample = self.sampler.sample(logits, &self.tokens)?;
        let token = sample.token;
        self.tokens.push(token);
        self.first_token.get_or_insert_with(Instant::now);
        if !self.ignore_eos && self.tokenizer.is_eos(token) {
            self.finish = Some(Finish::Stop);
            return Ok(GeneratedToken { token, text: String::new(), logprobs: None });
        }
        let text = self.text.push(token);
        if self.text.stopped() {
            self.finish = Some(Finish::Stop);
        } else if self.generated_tokens() >= self.max_tokens {
            self.finish = Some(Finish::Length);
        }
        Ok(GeneratedToken { token, text, logprobs: sample.logprobs })
    }

    /// Ends the completion early.
    pub fn interrupt(&mut self) {
        self.finish = Some(Finish::Interrupted);
    }

    /// Reason for the end; `None` while more tokens are to be generated.
    #[must_use]
    pub fn finish(&self) -> Option<Finish> {
        self.finish
    }

    /// Text held back until the end: the beginning of a stop string that did not come, or of a
    /// character.
    pub fn remaining_text(&mut self) -> String {
        self.text.finish()
    }

    /// Prompt and generated tokens.
    #[must_use]
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Generated tokens, an end token included.
    #[must_use]
    pub fn generated(&self) -> &[u32] {
        self.tokens.get(self.prompt_tokens..).unwrap_or_default()
    }

    /// Number of generated tokens.
    #[must_use]
    pub fn generated_tokens(&self) -> usize {
        self.tokens.len() - self.prompt_tokens
    }

    /// Time of the first sampled token.
    #[must_use]
    pub fn first_token(&self) -> Option<Instant> {
        self.first_token
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Processor;
    use crate::engine::ModelSource;
    use crate::sampling::SamplingOptions;

    const VOCAB: usize = 4096;

    fn text() -> Processor {
        Processor::load(&ModelSource::BuiltIn).unwrap()
    }

    /// Logits of which `token` is the largest.
    fn row(token: u32) -> Vec<f32> {
        let mut logits = vec![0.0; VOCAB];
        logits[token as usize] = 10.0;
        logits
    }

    fn completion(text: &Processor, max_tokens: usize, stop: &[&str]) -> Completion {
        let sampling = SamplingParams::new(SamplingOptions::default()).unwrap();
        let stop: Vec<String> = stop.iter().map(|stop| (*stop).to_owned()).collect();
        let options =
            CompletionOptions { sampling: &sampling, stop: &stop, max_tokens, ignore_eos: false };
        Completion::new(text.tokenizer(), VOCAB, &[1, 2], options).unwrap()
    }

    fn eos(text: &Processor) -> u32 {
        (0..VOCAB as u32).find(|token| text.tokenizer().is_eos(*token)).expect("an end token")
    }

    /// Feeds the tokens of `words` until the completion ends; returns its text and finish.
    fn run(completion: &mut Completion, tokens: &[u32]) -> (String, Option<Finish>) {
        let mut out = String::new();
        for token in tokens {
            if completion.finish().is_some() {
                break;
            }
            out.push_str(&completion.advance(&row(*token)).unwrap().text);
        }
        out.push_str(&completion.remaining_text());
        (out, completion.finish())
    }

    #[test]
    fn length_ends_a_completion() {
        let text = text();
        let words = text.tokenizer().encode_verbatim(" the king had a daughter").unwrap();
        let mut three = completion(&text, 3, &[]);
        assert_eq!(run(&mut three, &words).1, Some(Finish::Length));
        assert_eq!(three.generated(), &words[..3]);
        assert_eq!(three.tokens()[..2], [1, 2]);
        assert_eq!(completion(&text, 0, &[]).finish(), Some(Finish::Length));
    }

    #[test]
    fn an_end_token_ends_it_without_text_and_counts() {
        let text = text();
        let mut one = completion(&text, 9, &[]);
        let end = one.advance(&row(eos(&text))).unwrap();
        assert_eq!((end.text.as_str(), one.finish()), ("", Some(Finish::Stop)));
        assert_eq!(one.generated_tokens(), 1);
        let mut last = completion(&text, 1, &[]);
        last.advance(&row(eos(&text))).unwrap();
        assert_eq!(last.finish(), Some(Finish::Stop), "also as the last token allowed");
    }

    #[test]
    fn a_stop_string_cuts_the_text() {
        let text = text();
        let words = text.tokenizer().encode_verbatim(" the king had a daughter").unwrap();
        let (out, finish) = run(&mut completion(&text, 99, &["had a d"]), &words);
        assert_eq!(finish, Some(Finish::Stop));
        assert!(out.ends_with("the king "), "{out:?}");
        let held = run(&mut completion(&text, words.len(), &["daughters"]), &words);
        assert!(held.0.ends_with("daughter"), "{held:?}");
        assert_eq!(held.1, Some(Finish::Length));
    }
}
