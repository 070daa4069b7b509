//! A model's text side in one value: tokenizer, chat template, default sampling.

use crate::engine::ModelSource;
use crate::sampling::SamplingParams;
use crate::text::{ChatMessage, ChatPrompt, ChatTemplate, TextError, TextFiles, Tokenizer};
use crate::{Result, builtin};

/// Everything that turns a person's text into a model's tokens and back.
pub struct ModelText {
    tokenizer: Tokenizer,
    template: std::result::Result<ChatTemplate, TextError>,
    sampling: SamplingParams,
}
