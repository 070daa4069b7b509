//! The tokenizer of a checkpoint, from its `tokenizer.json`.
//!
//! Owns the special tokens of a prompt and the end-of-sequence tokens. Encoding is done by the
//! `tokenizers` crate; decoding uses [`Detokenizer`], so that decoding at once and streaming give equal
//! text.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokenizers::AddedToken;

use super::config::{TOKENIZER_CONFIG, TokenizerConfig, eos_token_ids};
use super::decoder::{LeadingStrip, TokenDecoder};
use super::{Detokenizer, TextError, TextFiles};

/// Treatment of special tokens (`<|im_end|>`, `<s>`) in decoded text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpecialTokens {
    /// Omit them, for readers.
    Skip,
    /// Write them out, for debugging.
    Keep,
}

/// Tokenizer of a checkpoint. Clones share their data.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: Arc<TokenizerInner>,
}

#[derive(Debug)]
struct TokenizerInner {
    tokenizer: tokenizers::Tokenizer,
    decoder: TokenDecoder,
    special: BTreeSet<u32>,
    bos_token: Option<String>,
    eos: BTreeSet<u32>,
}

impl Tokenizer {
    /// Loads `tokenizer.json`, and the special tokens of `tokenizer_config.json`,
    /// `generation_config.json` and `config.json`, if these exist.
    ///
    /// # Errors
    /// A [`TextError`] that names the missing, unreadable or invalid file.
    pub fn load(files: &TextFiles<'_>) -> Result<Self, TextError> {
        const NAME: &str = "tokenizer.json";
        let mut tokenizer = parse(&files.require(NAME)?)
            .map_err(|source| TextError::InvalidTokenizer { file: files.label(NAME), source })?;
        let decoder = serde_json::to_value(tokenizer.get_decoder())
            .map_err(|error| error.to_string())
            .and_then(|json| TokenDecoder::from_json(&json))
            .map_err(|decoder| TextError::UnsupportedDecoder {
                file: files.label(NAME),
                decoder,
            })?;
        let config = TokenizerConfig::load(files)?;
        mark_special(&mut tokenizer, &config);
        let mut eos: BTreeSet<u32> = eos_token_ids(files)?.into_iter().collect();
        if let Some(token) = config.special_token("eos_token") {
            eos.insert(tokenizer.token_to_id(token).ok_or_else(|| {
                TextError::UnknownSpecialToken {
                    file: files.label(TOKENIZER_CONFIG),
                    key: "eos_token",
                    token: token.to_owned(),
                }
            })?);
        }
        let special = special_ids(&tokenizer);
        let bos_token = config.special_token("bos_token").map(str::to_owned);
        let inner = TokenizerInner { tokenizer, decoder, special, bos_token, eos };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Encodes a plain prompt, with the special tokens that the `post_processor` of
    /// `tokenizer.json` adds, unless the text already starts with the BOS token.
    ///
    /// With a `tokenizer.json`, `add_bos_token` in `tokenizer_config.json` has no effect, like in
    /// mlx-lm 0.32 with transformers 5.
    ///
    /// # Errors
    /// [`TextError::Encode`].
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>, TextError> {
        let has_bos = self.inner.bos_token.as_deref().is_some_and(|bos| text.starts_with(bos));
        self.encode(text, !has_bos)
    }

    /// Encodes a text without adding special tokens, for rendered chat templates, which contain
    /// theirs. Special tokens spelled out in the text become tokens.
    ///
    /// # Errors
    /// [`TextError::Encode`].
    pub fn encode_verbatim(&self, text: &str) -> Result<Vec<u32>, TextError> {
        self.encode(text, false)
    }

    fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TextError> {
        self.inner
            .tokenizer
            .encode_fast(text, add_special)
            .map(|encoding| encoding.get_ids().to_vec())
            .map_err(|source| TextError::Encode { source })
    }

    /// Decodes a list of tokens. Ids outside the vocabulary have no text; invalid UTF-8 becomes
    /// U+FFFD.
    pub fn decode(&self, tokens: &[u32], special: SpecialTokens) -> String {
        let mut stream = Detokenizer::new(self.clone(), special);
        let mut text: String = tokens.iter().filter_map(|token| stream.push(*token)).collect();
        text.push_str(&stream.finish());
        text
    }

    /// Bytes of a token, special or not, possibly a part of a character; `None` for an id outside
    /// the vocabulary. A leading space is kept.
    pub fn token_bytes(&self, token: u32) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        self.inner.decoder.append(&self.vocabulary_form(token)?, &mut bytes);
        Some(bytes)
    }

    /// Spelling of a token in the vocabulary (`Ġthe`, `▁the`, `<0x0A>`).
    pub fn vocabulary_form(&self, token: u32) -> Option<String> {
        self.inner.tokenizer.id_to_token(token)
    }

    /// Id of a token, special or not, by its spelling in the vocabulary.
    #[cfg(test)]
    pub(super) fn token_id(&self, vocabulary_form: &str) -> Option<u32> {
        self.inner.tokenizer.token_to_id(vocabulary_form)
    }

    /// Number of tokens, added ones included. A model's logits may be padded to a larger width.
    pub fn vocab_size(&self) -> usize {
        self.inner.tokenizer.get_vocab_size(true)
    }

    /// Returns `true` for special tokens.
    pub(super) fn is_special(&self, token: u32) -> bool {
        self.inner.special.contains(&token)
    }

    /// Returns `true` for end-of-sequence tokens.
    pub(crate) fn is_eos(&self, token: u32) -> bool {
        self.inner.eos.contains(&token)
    }

    /// End-of-sequence tokens in ascending order: those of `generation_config.json` (or else
    /// `config.json`), and `eos_token` of `tokenizer_config.json`.
    #[cfg(test)]
    pub(super) fn eos_tokens(&self) -> impl Iterator<Item = u32> {
        self.inner.eos.iter().copied()
    }

    /// Characters to strip from the start of a decoded text.
    pub(super) fn leading(&self) -> LeadingStrip {
        self.inner.decoder.leading()
    }

    /// The wrapped tokenizer of the `tokenizers` crate, the reference in tests.
    #[cfg(test)]
    pub(super) fn reference(&self) -> &tokenizers::Tokenizer {
        &self.inner.tokenizer
    }

    /// Appends the bytes of a token, given its spelling in the vocabulary, to `out`.
    pub(super) fn append_bytes(&self, vocabulary_form: &str, out: &mut Vec<u8>) {
        self.inner.decoder.append(vocabulary_form, out);
    }
}

/// Parses `tokenizer.json` without truncation and padding, which are settings of a training run. Like
/// transformers, this ignores them.
fn parse(bytes: &[u8]) -> tokenizers::Result<tokenizers::Tokenizer> {
    let mut tokenizer = tokenizers::Tokenizer::from_bytes(bytes)?;
    tokenizer.with_truncation(None)?;
    tokenizer.with_padding(None);
    Ok(tokenizer)
}

/// Marks the special tokens of `tokenizer_config.json` as special in the tokenizer, as transformers
/// does. Tokens outside the vocabulary are skipped, since the model has no embedding for them.
fn mark_special(tokenizer: &mut tokenizers::Tokenizer, config: &TokenizerConfig) {
    let known = special_ids(tokenizer);
    let added: Vec<AddedToken> = config
        .special_tokens()
        .filter(|(_, token)| tokenizer.token_to_id(token).is_some_and(|id| !known.contains(&id)))
        .map(|(_, token)| AddedToken::from(token, true))
        .collect();
    tokenizer.add_special_tokens(&added);
}

/// Ids of the tokens that are marked as special.
fn special_ids(tokenizer: &tokenizers::Tokenizer) -> BTreeSet<u32> {
    let added = tokenizer.get_added_tokens_decoder();
    added.iter().filter(|(_, token)| token.special).map(|(id, _)| *id).collect()
}

#[cfg(test)]
mod tests;
