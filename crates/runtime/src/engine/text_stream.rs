//! From the tokens of one answer to its text: whole characters, nothing of a stop string.

use crate::text::{Detokenizer, SpecialTokens, StopMatcher, TextError, Tokenizer};

/// The text of one answer as it comes.
#[derive(Debug)]
pub(crate) struct TextStream {
    stream: Detokenizer,
    stops: StopMatcher,
    stopped: bool,
}

impl TextStream {
    /// The text after a prompt, up to the first of `stops`.
    ///
    /// # Errors
    /// [`TextError::EmptyStop`].
    pub(crate) fn new(tokenizer: &Tokenizer, stops: &[String]) -> Result<Self, TextError> {
        Ok(Self {
            stream: Detokenizer::new(tokenizer.clone(), SpecialTokens::Skip).continuing(),
            stops: StopMatcher::new(stops.to_vec())?,
            stopped: false,
        })
    }

    /// Feeds one token; returns the text that is certain now, maybe none.
    pub(crate) fn push(&mut self, token: u32) -> String {
        let Some(piece) = self.stream.push(token) else { return String::new() };
        let found = self.stops.push(&piece);
        self.stopped = found.stop.is_some();
        found.text
    }

    /// Whether a stop string has ended the text.
    pub(crate) fn stopped(&self) -> bool {
        self.stopped
    }

    /// Ends the text and returns what was held back; nothing after a stop string.
    pub(crate) fn finish(&mut self) -> String {
        if self.stopped {
            return String::new();
        }
        let mut rest = self.stops.push(&self.stream.finish()).text;
        rest.push_str(&self.stops.finish());
        rest
    }
}
