//! Decoding of single tokens to bytes.
//!
//! `tokenizer.json` describes how to decode a list of tokens. This module parses the description once
//! and applies it token by token, in constant time per token, so that text can be streamed. That
//! requires that each token maps to bytes independently of the others, except for a leading space
//! that is stripped; this holds for the decoders of language models. Others are rejected when the
//! tokenizer is loaded.

use serde::Deserialize;

/// Mapping of tokens to bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TokenDecoder {
    alphabet: Alphabet,
    /// Literal replacements, applied in order (SentencePiece: `▁` → space).
    replacements: Vec<(String, String)>,
    /// Decodes `<0x41>` to the byte 0x41.
    byte_fallback: bool,
    /// Characters to strip from the start of the text.
    leading: LeadingStrip,
}

/// Encoding of bytes in the characters of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Alphabet {
    /// UTF-8 text.
    Text,
    /// One character per byte, in GPT-2's printable alphabet.
    ByteLevel,
}

/// Characters to strip from the start of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LeadingStrip {
    /// None.
    None,
    /// Up to `count` times the character `content`.
    Characters { content: char, count: usize },
    /// Every `marker` in the first token.
    Markers { marker: char },
}

/// One step of `"decoder"` in `tokenizer.json`.
#[derive(Debug, Deserialize)]
#[serde(tag = "type")]
enum DecoderStep {
    ByteLevel,
    ByteFallback,
    Fuse,
    Replace { pattern: ReplacePattern, content: String },
    Strip { content: char, start: usize, stop: usize },
    Metaspace { replacement: char, prepend_scheme: Option<PrependScheme> },
    Sequence { decoders: Vec<serde_json::Value> },
}

#[derive(Debug, Deserialize)]
enum ReplacePattern {
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
    /// Parses the `"decoder"` object of a `tokenizer.json`.
    ///
    /// # Errors
    /// JSON of the step that cannot be applied token by token.
    pub(super) fn from_json(decoder: &serde_json::Value) -> Result<Self, String> {
        let mut this = Self {
            alphabet: Alphabet::Text,
            replacements: Vec::new(),
            byte_fallback: false,
            leading: LeadingStrip::None,
        };
        let mut fused = false;
        for step in flatten(decoder)? {
            this.add(&step, &mut fused).ok_or_else(|| step.to_string())?;
        }
        Ok(this)
    }

    /// Adds one step; `None` if it cannot be applied per token at this point.
    fn add(&mut self, step: &serde_json::Value, fused: &mut bool) -> Option<()> {
        match (DecoderStep::deserialize(step).ok()?, *fused) {
            (DecoderStep::Fuse, _) => *fused = true,
            (DecoderStep::ByteLevel, false) if !self.byte_fallback => {
                self.alphabet = Alphabet::ByteLevel
            }
            (DecoderStep::ByteFallback, false) if self.alphabet == Alphabet::Text => {
                self.byte_fallback = true;
            }
            (DecoderStep::Replace { pattern: ReplacePattern::String(from), content }, false)
                if self.alphabet == Alphabet::Text && !self.byte_fallback && !from.is_empty() =>
            {
                self.replacements.push((from, content));
            }
            (DecoderStep::Strip { content, start, stop: 0 }, true)
                if self.leading == LeadingStrip::None =>
            {
                self.leading = LeadingStrip::Characters { content, count: start };
            }
            (DecoderStep::Metaspace { replacement, prepend_scheme }, false)
                if self.alphabet == Alphabet::Text && !self.byte_fallback =>
            {
                if prepend_scheme != Some(PrependScheme::Never) {
                    self.leading = LeadingStrip::Markers { marker: replacement };
                }
                self.replacements.push((replacement.to_string(), " ".to_owned()));
            }
            _ => return None,
        }
        Some(())
    }

    /// Characters to strip from the start of a text.
    pub(super) fn leading(&self) -> LeadingStrip {
        self.leading
    }

    /// Appends the bytes of `token`, spelled as in the vocabulary, to `out`.
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

/// Flattens nested sequences of steps.
fn flatten(decoder: &serde_json::Value) -> Result<Vec<serde_json::Value>, String> {
    match DecoderStep::deserialize(decoder) {
        Ok(DecoderStep::Sequence { decoders }) => {
            decoders.iter().map(flatten).collect::<Result<Vec<_>, _>>().map(|steps| steps.concat())
        }
        Ok(_) => Ok(vec![decoder.clone()]),
        Err(_) => Err(decoder.to_string()),
    }
}

/// Byte of a token such as `<0x0A>`.
fn fallback_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

/// Appends the bytes of a token in GPT-2's byte alphabet. An added token, with characters outside of
/// the alphabet, is appended as UTF-8.
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

/// Byte of a character in GPT-2's alphabet: printable Latin-1 is encoded as itself, the other 68
/// bytes, in order, as U+0100 to U+0143.
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
    fn the_byte_alphabet_agrees_with_the_tokenizers_crate() {
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
    fn the_sentencepiece_sequence_is_supported() {
        let decoder = TokenDecoder::from_json(&json!({"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}))
        .unwrap();
        assert_eq!(decoder.leading(), LeadingStrip::Characters { content: ' ', count: 1 });
        assert_eq!(text_of(&decoder, "▁a▁b"), b" a b");
        assert_eq!(text_of(&decoder, "<0xE2>"), [0xE2]);
        assert_eq!(text_of(&decoder, "<0xZZ>"), b"<0xZZ>");
    }

    #[test]
    fn steps_that_need_the_whole_text_are_rejected() {
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
