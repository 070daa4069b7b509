//! Text ↔ token ids, by the checkpoint's `tokenizer.json`.
//!
//! Owns which special tokens a prompt gets and which tokens end a text. Encoding is the
//! `tokenizers` crate's; decoding goes through [`Detokenizer`], so that text decoded at once and
//! text streamed are the same text.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokenizers::AddedToken;

use super::config::{TOKENIZER_CONFIG, TokenizerConfig, eos_token_ids};
use super::decoder::{Leading, TokenDecoder};
use super::{Detokenizer, TextError, TextFiles};

/// What becomes of special tokens (`<|im_end|>`, `<s>`) in decoded text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpecialTokens {
    /// They are left out: what a reader wants.
    Skip,
    /// They are written out: what a debugger wants.
    Keep,
}

/// A checkpoint's tokenizer. Clones are cheap and share everything.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    tokenizer: tokenizers::Tokenizer,
    decoder: TokenDecoder,
    special: BTreeSet<u32>,
    bos_token: Option<String>,
    eos: BTreeSet<u32>,
}

impl Tokenizer {
    /// Reads `tokenizer.json`, and the special tokens from `tokenizer_config.json`,
    /// `generation_config.json` and `config.json` where those exist.
    ///
    /// # Errors
    /// A [`TextError`] naming the file that is missing, unreadable or wrong.
    pub fn load(files: &TextFiles<'_>) -> Result<Self, TextError> {
        const NAME: &str = "tokenizer.json";
        let mut tokenizer = parse(&files.require(NAME)?, &files.label(NAME))?;
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
        Ok(Self { inner: Arc::new(Inner { tokenizer, decoder, special, bos_token, eos }) })
    }

    /// The tokens of a plain prompt: with the special tokens that `tokenizer.json` puts around a
    /// text (its `post_processor`), unless the text already starts with the BOS token.
    ///
    /// This is what mlx-lm 0.32 over transformers 5 does. In particular `add_bos_token` in
    /// `tokenizer_config.json` has no say once there is a `tokenizer.json`.
    ///
    /// # Errors
    /// [`TextError::Encode`].
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>, TextError> {
        let has_bos = self.inner.bos_token.as_deref().is_some_and(|bos| text.starts_with(bos));
        self.encode(text, !has_bos)
    }

    /// The tokens of a text as it stands, nothing added: for a rendered chat template, which
    /// writes its special tokens itself. Special tokens spelled out in the text become tokens.
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

    /// The text of a whole list of tokens. Ids outside the vocabulary have no text; bytes that
    /// are not UTF-8 become U+FFFD.
    pub fn decode(&self, tokens: &[u32], special: SpecialTokens) -> String {
        let mut stream = Detokenizer::new(self.clone(), special);
        let mut text: String = tokens.iter().filter_map(|token| stream.push(*token)).collect();
        text.push_str(&stream.finish());
        text
    }

    /// The bytes that a token stands for (maybe a part of a character), special or not; `None`
    /// for an id outside the vocabulary. A leading space is kept.
    pub fn token_bytes(&self, token: u32) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        self.inner.decoder.append(&self.vocabulary_form(token)?, &mut bytes);
        Some(bytes)
    }

    /// A token as the vocabulary writes it (`Ġthe`, `▁the`, `<0x0A>`).
    pub fn vocabulary_form(&self, token: u32) -> Option<String> {
        self.inner.tokenizer.id_to_token(token)
    }

    /// The id of a token as the vocabulary writes it, special tokens included.
    pub fn token_id(&self, vocabulary_form: &str) -> Option<u32> {
        self.inner.tokenizer.token_to_id(vocabulary_form)
    }

    /// The number of tokens, added ones included. A model's logits may be wider (padding).
    pub fn vocab_size(&self) -> usize {
        self.inner.tokenizer.get_vocab_size(true)
    }

    /// Whether the token is a special one.
    pub fn is_special(&self, token: u32) -> bool {
        self.inner.special.contains(&token)
    }

    /// Whether the token ends a text.
    pub fn is_eos(&self, token: u32) -> bool {
        self.inner.eos.contains(&token)
    }

    /// The tokens that end a text, ascending: those of `generation_config.json` (or else
    /// `config.json`), and `eos_token` of `tokenizer_config.json`.
    pub fn eos_tokens(&self) -> impl Iterator<Item = u32> {
        self.inner.eos.iter().copied()
    }

    pub(super) fn leading(&self) -> Leading {
        self.inner.decoder.leading()
    }

    /// The `tokenizers` crate's own tokenizer, the oracle of the tests.
    #[cfg(test)]
    pub(super) fn reference(&self) -> &tokenizers::Tokenizer {
        &self.inner.tokenizer
    }

    pub(super) fn append_bytes(&self, vocabulary_form: &str, out: &mut Vec<u8>) {
        self.inner.decoder.append(vocabulary_form, out);
    }
}

/// Parses `tokenizer.json`. Truncation and padding that it may carry are settings of somebody's
/// training run; transformers switches both off, and so do we.
fn parse(bytes: &[u8], file: &str) -> Result<tokenizers::Tokenizer, TextError> {
    let invalid = |source| TextError::InvalidTokenizer { file: file.to_owned(), source };
    let mut tokenizer = tokenizers::Tokenizer::from_bytes(bytes).map_err(invalid)?;
    tokenizer.with_truncation(None).map_err(invalid)?;
    tokenizer.with_padding(None);
    Ok(tokenizer)
}

/// Makes the special tokens that `tokenizer_config.json` names special in the tokenizer too, as
/// transformers does. Names outside the vocabulary are left alone: the model has no row for them.
fn mark_special(tokenizer: &mut tokenizers::Tokenizer, config: &TokenizerConfig) {
    let known = special_ids(tokenizer);
    let added: Vec<AddedToken> = config
        .special_tokens()
        .filter(|(_, token)| tokenizer.token_to_id(token).is_some_and(|id| !known.contains(&id)))
        .map(|(_, token)| AddedToken::from(token, true))
        .collect();
    tokenizer.add_special_tokens(&added);
}

fn special_ids(tokenizer: &tokenizers::Tokenizer) -> BTreeSet<u32> {
    let added = tokenizer.get_added_tokens_decoder();
    added.iter().filter(|(_, token)| token.special).map(|(id, _)| *id).collect()
}

#[cfg(test)]
mod tests;
