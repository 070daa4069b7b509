//! Tokens in, text out, as it comes.
//!
//! A token may be half a character, or a byte of one. [`Detokenizer`] never lets half a character
//! out, costs constant time per token, and what it lets out adds up to exactly the text of all
//! tokens. The `tokenizers` crate decodes a run of byte tokens with one invalid byte as U+FFFD
//! throughout; here only the invalid bytes become U+FFFD, since what has been shown to a reader
//! cannot be taken back.

use super::decoder::Leading;
use super::{SpecialTokens, Tokenizer};

/// A streaming detokeniser for one text.
#[derive(Debug, Clone)]
pub struct Detokenizer {
    tokenizer: Tokenizer,
    special: SpecialTokens,
    /// What is still to be removed from the start of the text.
    leading: Leading,
    /// The bytes of a character that is not complete yet: at most three between calls.
    pending: Vec<u8>,
}

impl Detokenizer {
    /// A detokeniser at the start of a text, where SentencePiece tokenizers drop a leading space.
    pub fn new(tokenizer: Tokenizer, special: SpecialTokens) -> Self {
        let leading = tokenizer.leading();
        Self { tokenizer, special, leading, pending: Vec::new() }
    }

    /// The same in the middle of a text: a leading space is kept, so that what a model writes
    /// joins on to its prompt.
    #[must_use]
    pub fn continuing(mut self) -> Self {
        self.leading = Leading::Kept;
        self
    }

    /// Takes one token and returns the text that it completes, if any. Ids outside the
    /// vocabulary (a model's padding rows) have no text.
    pub fn push(&mut self, token: u32) -> Option<String> {
        if self.special == SpecialTokens::Skip && self.tokenizer.is_special(token) {
            return None;
        }
        let form = self.tokenizer.vocabulary_form(token)?;
        match self.leading {
            Leading::MarkersDropped { marker } => {
                self.leading = Leading::Kept;
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

    /// Ends the text: a character that never became complete is returned as U+FFFD. Afterwards
    /// the detokeniser has nothing left to say, and more tokens continue the same text.
    pub fn finish(&mut self) -> String {
        let mut text = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        self.strip_leading(&mut text);
        text
    }

    fn strip_leading(&mut self, text: &mut String) {
        let Leading::Stripped { content, count } = self.leading else { return };
        let stripped = text.chars().take(count).take_while(|found| *found == content).count();
        let at_the_start = stripped == text.chars().count() && stripped < count;
        text.drain(..stripped * content.len_utf8());
        self.leading = match at_the_start {
            true => Leading::Stripped { content, count: count - stripped },
            false => Leading::Kept,
        };
    }
}

/// Appends the text of `bytes` up to the last complete character to `text`, with U+FFFD for bytes
/// that can never become one, and returns how many bytes that took.
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

/// Whether `bytes` are the beginning of a character that more bytes could complete.
fn is_incomplete(bytes: &[u8]) -> bool {
    matches!(std::str::from_utf8(bytes), Err(error) if error.valid_up_to() == 0 && error.error_len().is_none())
}

#[cfg(test)]
mod tests;
