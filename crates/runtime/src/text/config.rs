//! Text-related keys of `tokenizer_config.json`, `generation_config.json` and `config.json`: special
//! tokens, chat templates, end-of-sequence ids.

use serde::Deserialize;

use super::{TextError, TextFiles};

/// File with the names of special tokens and, in some checkpoints, chat templates.
pub(super) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";

/// `tokenizer_config.json`; empty for a checkpoint without the file.
#[derive(Debug, Default, Deserialize)]
pub(super) struct TokenizerConfig {
    bos_token: Option<TokenField>,
    eos_token: Option<TokenField>,
    unk_token: Option<TokenField>,
    sep_token: Option<TokenField>,
    pad_token: Option<TokenField>,
    cls_token: Option<TokenField>,
    mask_token: Option<TokenField>,
    pub(super) chat_template: Option<TemplateField>,
}

/// A special token: its text, or an object with the text under `content`.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum TokenField {
    Text(String),
    Object { content: String },
}

impl TokenField {
    fn text(&self) -> &str {
        match self {
            Self::Text(text) | Self::Object { content: text } => text,
        }
    }
}

/// Value of `chat_template`: one template, or a list of named ones.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum TemplateField {
    One(String),
    Named(Vec<NamedTemplate>),
}

/// A named template; the main one is called `default`.
#[derive(Debug, Deserialize)]
pub(super) struct NamedTemplate {
    pub(super) name: String,
    pub(super) template: String,
}

impl TokenizerConfig {
    pub(super) fn load(files: &TextFiles<'_>) -> Result<Self, TextError> {
        Ok(files.json(TOKENIZER_CONFIG)?.unwrap_or_default())
    }

    /// Named special tokens as `(key, text)`; templates receive them as variables.
    pub(super) fn special_tokens(&self) -> impl Iterator<Item = (&'static str, &str)> {
        [
            ("bos_token", &self.bos_token),
            ("eos_token", &self.eos_token),
            ("unk_token", &self.unk_token),
            ("sep_token", &self.sep_token),
            ("pad_token", &self.pad_token),
            ("cls_token", &self.cls_token),
            ("mask_token", &self.mask_token),
        ]
        .into_iter()
        .filter_map(|(key, field)| field.as_ref().map(|field| (key, field.text())))
    }

    /// Text of the special token `key`.
    pub(super) fn special_token(&self, key: &str) -> Option<&str> {
        self.special_tokens().find(|(name, _)| *name == key).map(|(_, text)| text)
    }
}

/// Value of `eos_token_id`: one id, or a list.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum EosField {
    One(u32),
    Many(Vec<u32>),
}

#[derive(Debug, Default, Deserialize)]
struct EosConfig {
    eos_token_id: Option<EosField>,
    text_config: Option<Box<EosConfig>>,
}

impl EosConfig {
    /// The ids of this level, or else of the nested text model.
    fn ids(self) -> Option<Vec<u32>> {
        match self.eos_token_id {
            Some(EosField::One(id)) => Some(vec![id]),
            Some(EosField::Many(ids)) => Some(ids),
            None => self.text_config.and_then(|nested| nested.ids()),
        }
    }
}

/// Reads the end-of-sequence ids: those of `generation_config.json`, or else of `config.json`, in
/// mlx-lm's order of precedence.
pub(super) fn eos_token_ids(files: &TextFiles<'_>) -> Result<Vec<u32>, TextError> {
    for name in ["generation_config.json", "config.json"] {
        let config: Option<EosConfig> = files.json(name)?;
        if let Some(ids) = config.and_then(EosConfig::ids) {
            return Ok(ids);
        }
    }
    Ok(Vec::new())
}
