//! Streaming detokenisation.
//!
//! A token may end within a character. [`Detokenizer`] emits complete characters only, takes constant
//! time per token, and its output adds up to the text of all tokens. The `tokenizers` crate replaces a
//! whole run of byte tokens by U+FFFD if it contains one invalid byte; here only the invalid bytes
//! become U+FFFD, since emitted text cannot be revised.

use super::decoder::LeadingStrip;
use super::{SpecialTokens, Tokenizer};

/// Converts the tokens of one text to a stream of text.
#[derive(Debug, Clone)]
pub(crate) struct Detokenizer {
    tokenizer: Tokenizer,
    special: SpecialTokens,
    /// Characters still to be stripped from the start of the text.
    leading: LeadingStrip,
    /// Bytes of an incomplete character, at most three between calls.
    pending: Vec<u8>,
}

impl Detokenizer {
    /// Creates a detokeniser for the start of a text, where SentencePiece tokenizers strip a space.
    pub(crate) fn new(tokenizer: Tokenizer, special: SpecialTokens) -> Self {
        let leading = tokenizer.leading();
        Self { tokenizer, special, leading, pending: Vec::new() }
    }

    /// Keeps a leading space, for generated text that continues a prompt.
    #[must_use]
    pub(crate) fn continuing(mut self) -> Self {
        self.leading = LeadingStrip::None;
        self
    }

    /// Adds one token and returns the text that it completes, if any. Ids outside the vocabulary,
    /// such as a model's padding rows, have no text.
    pub(crate) fn push(&mut self, token: u32) -> Option<String> {
        if self.special == SpecialTokens::Skip && self.tokenizer.is_special(token) {
            return None;
        }
        let form = self.tokenizer.vocabulary_form(token)?;
        match self.leading {
            LeadingStrip::Markers { marker } => {
                self.leading = LeadingStrip::None;
                self.tokenizer.append_bytes(&form.replace(marker, ""), &mut self.pending);
            }
            _ => self.tokenizer.append_bytes(&form, &mut self.pending),
        }
        let mut text = String::new();
        let complete = take_complete(&self.pending, &mut text);
        self.pending.drain(..complete);
        self.strip_leading(&mut text);
        (!text.is_empty()).then_some(text)
    }

    /// Flushes an incomplete character as U+FFFD. Further tokens continue the text.
    pub(crate) fn finish(&mut self) -> String {
        let mut text = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        self.strip_leading(&mut text);
        text
    }

    fn strip_leading(&mut self, text: &mut String) {
        let LeadingStrip::Characters { content, count } = self.leading else { return };
        let stripped = text.chars().take(count).take_while(|found| *found == content).count();
        let still_leading = stripped == text.chars().count() && stripped < count;
        text.drain(..stripped * content.len_utf8());
        self.leading = match still_leading {
            true => LeadingStrip::Characters { content, count: count - stripped },
            false => LeadingStrip::None,
        };
    }
}

/// Appends the complete characters of `bytes` to `text`, with U+FFFD for invalid bytes, and returns
/// the number of bytes consumed.
fn take_complete(bytes: &[u8], text: &mut String) -> usize {
    let mut taken = 0;
    while let Some(rest) = bytes.get(taken..).filter(|rest| !rest.is_empty()) {
        let Some(chunk) = rest.utf8_chunks().next() else { break };
        text.push_str(chunk.valid());
        taken += chunk.valid().len();
        let invalid = chunk.invalid();
        if invalid.is_empty() || is_incomplete(&rest[chunk.valid().len()..]) {
            break;
        }
        text.push(char::REPLACEMENT_CHARACTER);
        taken += invalid.len();
    }
    taken
}

/// Returns `true` if `bytes` start with an incomplete but so far valid character.
fn is_incomplete(bytes: &[u8]) -> bool {
    matches!(std::str::from_utf8(bytes), Err(error) if error.valid_up_to() == 0 && error.error_len().is_none())
}

#[cfg(test)]
mod tests;
