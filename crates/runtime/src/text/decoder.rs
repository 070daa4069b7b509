//! Token → bytes, one token at a time.
//!
//! `tokenizer.json` describes how a whole list of tokens becomes text. This module reads that
//! description once and applies it per token, so that text can be streamed in constant time per
//! token. The decoders of language models are all of one shape: each token maps to bytes on its
//! own, and only the start of the text is special (a leading space is dropped). A decoder of any
//! other shape is refused when the tokenizer is loaded.

use serde::Deserialize;

/// How tokens become bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TokenDecoder {
    alphabet: Alphabet,
    /// Literal replacements, in order (SentencePiece: `▁` → space).
    replacements: Vec<(String, String)>,
    /// Whether `<0x41>` means the byte 0x41.
    byte_fallback: bool,
    /// What is removed from the start of the whole text.
    leading: Leading,
}

/// What a token's characters stand for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Alphabet {
    /// Themselves.
    Text,
    /// One byte each, in GPT-2's printable alphabet.
    ByteLevel,
}

/// What the start of a text loses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leading {
    /// Nothing.
    Kept,
    /// Up to `count` characters `content`.
    Stripped { content: char, count: usize },
    /// Every `marker` in the first token.
    MarkersDropped { marker: char },
}

/// One entry of `"decoder"` in `tokenizer.json`.
#[derive(Debug, Deserialize)]
#[serde(tag = "type")]
enum Step {
    ByteLevel,
    ByteFallback,
    Fuse,
    Replace { pattern: Pattern, content: String },
    Strip { content: char, start: usize, stop: usize },
    Metaspace { replacement: char, prepend_scheme: Option<PrependScheme> },
    Sequence { decoders: Vec<serde_json::Value> },
}

#[derive(Debug, Deserialize)]
enum Pattern {
    String(String),
    Regex(serde::de::IgnoredAny),
}

#[derive(Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum PrependScheme {
    First,
    Never,
    Always,
}

impl TokenDecoder {
    /// Reads the `"decoder"` object of a `tokenizer.json`.
    ///
    /// # Errors
    /// The JSON text of the step that cannot be applied token by token.
    pub(super) fn from_json(decoder: &serde_json::Value) -> Result<Self, String> {
        let mut this = Self {
            alphabet: Alphabet::Text,
            replacements: Vec::new(),
            byte_fallback: false,
            leading: Leading::Kept,
        };
        let mut fused = false;
        for step in flatten(decoder)? {
            this.add(&step, &mut fused).ok_or_else(|| step.to_string())?;
        }
        Ok(this)
    }

    /// Adds one step; `None` when it cannot be applied per token in this place.
    fn add(&mut self, step: &serde_json::Value, fused: &mut bool) -> Option<()> {
        match (Step::deserialize(step).ok()?, *fused) {
            (Step::Fuse, _) => *fused = true,
            (Step::ByteLevel, false) if !self.byte_fallback => self.alphabet = Alphabet::ByteLevel,
            (Step::ByteFallback, false) if self.alphabet == Alphabet::Text => {
                self.byte_fallback = true;
            }
            (Step::Replace { pattern: Pattern::String(from), content }, false)
                if self.alphabet == Alphabet::Text && !self.byte_fallback && !from.is_empty() =>
            {
                self.replacements.push((from, content));
            }
            (Step::Strip { content, start, stop: 0 }, true) if self.leading == Leading::Kept => {
                self.leading = Leading::Stripped { content, count: start };
            }
            (Step::Metaspace { replacement, prepend_scheme }, false)
                if self.alphabet == Alphabet::Text && !self.byte_fallback =>
            {
                if prepend_scheme != Some(PrependScheme::Never) {
                    self.leading = Leading::MarkersDropped { marker: replacement };
                }
                self.replacements.push((replacement.to_string(), " ".to_owned()));
            }
            _ => return None,
        }
        Some(())
    }

    /// What the start of a text loses.
    pub(super) fn leading(&self) -> Leading {
        self.leading
    }

    /// Appends the bytes of `token` (its form in the vocabulary) to `out`.
    pub(super) fn append(&self, token: &str, out: &mut Vec<u8>) {
        if self.alphabet == Alphabet::ByteLevel {
            return append_byte_level(token, out);
        }
        let mut text = std::borrow::Cow::Borrowed(token);
        for (from, to) in &self.replacements {
            if text.contains(from.as_str()) {
                text = text.replace(from.as_str(), to).into();
            }
        }
        match self.byte_fallback.then(|| fallback_byte(&text)).flatten() {
            Some(byte) => out.push(byte),
            None => out.extend_from_slice(text.as_bytes()),
        }
    }
}

/// The steps of a decoder, nested sequences unrolled.
fn flatten(decoder: &serde_json::Value) -> Result<Vec<serde_json::Value>, String> {
    match Step::deserialize(decoder) {
        Ok(Step::Sequence { decoders }) => {
            decoders.iter().map(flatten).collect::<Result<Vec<_>, _>>().map(|steps| steps.concat())
        }
        Ok(_) => Ok(vec![decoder.clone()]),
        Err(_) => Err(decoder.to_string()),
    }
}

/// The byte that a token such as `<0x0A>` stands for.
fn fallback_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

/// Appends a token written in GPT-2's byte alphabet; a token with a character outside of it (an
/// added token) stands for its own UTF-8 bytes.
fn append_byte_level(token: &str, out: &mut Vec<u8>) {
    let start = out.len();
    for character in token.chars() {
        let Some(byte) = byte_level_byte(character) else {
            out.truncate(start);
            out.extend_from_slice(token.as_bytes());
            return;
        };
        out.push(byte);
    }
}

/// The byte that a character of GPT-2's alphabet stands for: printable Latin-1 stands for itself,
/// and the other 68 bytes, in order, are written as U+0100 to U+0143.
fn byte_level_byte(character: char) -> Option<u8> {
    match u32::from(character) {
        code @ (0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) => u8::try_from(code).ok(),
        code @ 0x100..=0x120 => u8::try_from(code - 0x100).ok(),
        code @ 0x121..=0x142 => u8::try_from(code - 0x121 + 0x7F).ok(),
        0x143 => Some(0xAD),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn text_of(decoder: &TokenDecoder, token: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        decoder.append(token, &mut bytes);
        bytes
    }

    #[test]
    fn byte_alphabet_is_the_one_of_the_tokenizers_crate() {
        let oracle: std::collections::HashSet<char> =
            tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet().into_iter().collect();
        let ours: Vec<char> =
            ('\0'..='\u{2000}').filter(|c| byte_level_byte(*c).is_some()).collect();
        assert_eq!(ours.iter().copied().collect::<std::collections::HashSet<_>>(), oracle);
        let mut bytes: Vec<u8> = ours.iter().filter_map(|c| byte_level_byte(*c)).collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
        assert_eq!(byte_level_byte('Ġ'), Some(b' '));
        assert_eq!(byte_level_byte('Ċ'), Some(b'\n'));
    }

    #[test]
    fn reads_the_sentencepiece_sequence() {
        let decoder = TokenDecoder::from_json(&json!({"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}))
        .unwrap();
        assert_eq!(decoder.leading(), Leading::Stripped { content: ' ', count: 1 });
        assert_eq!(text_of(&decoder, "▁a▁b"), b" a b");
        assert_eq!(text_of(&decoder, "<0xE2>"), [0xE2]);
        assert_eq!(text_of(&decoder, "<0xZZ>"), b"<0xZZ>");
    }

    #[test]
    fn refuses_what_cannot_be_applied_per_token() {
        let strip = json!({"type": "Strip", "content": " ", "start": 1, "stop": 0});
        let cases = [
            json!({"type": "WordPiece", "prefix": "##", "cleanup": true}),
            json!({"type": "Replace", "pattern": {"Regex": "a+"}, "content": ""}),
            strip.clone(),
            json!({"type": "Sequence", "decoders": [strip, {"type": "Fuse"}]}),
            json!({"type": "Sequence", "decoders": [{"type": "Fuse"}, {"type": "ByteFallback"}]}),
            json!(null),
        ];
        for case in cases {
            TokenDecoder::from_json(&case).unwrap_err();
        }
    }
}
