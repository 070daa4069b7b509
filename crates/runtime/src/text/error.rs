//! Errors of a checkpoint's text files, tokenisation and chat templates.

/// An error of a text file, the tokenizer, the chat template or a stop string.
///
/// `file` fields contain a path, or `built-in/<name>` for the model inside the program.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// A required file is missing.
    #[error("{file} is missing: the checkpoint cannot be used without it")]
    MissingFile {
        /// Path of the file.
        file: String,
    },
    /// A file exists but cannot be read.
    #[error("cannot read {file}: {source}")]
    Unreadable {
        /// Path of the file.
        file: String,
        /// Reason given by the operating system.
        source: std::io::Error,
    },
    /// A file is not the expected JSON.
    #[error("{file} is not valid: {source}")]
    InvalidJson {
        /// Path of the file.
        file: String,
        /// Reason and position.
        source: serde_json::Error,
    },
    /// `tokenizer.json` does not describe a tokenizer.
    #[error("{file} does not describe a tokenizer: {source}")]
    InvalidTokenizer {
        /// Path of the file.
        file: String,
        /// Reason given by the `tokenizers` crate.
        source: tokenizers::Error,
    },
    /// The tokenizer's decoder cannot be applied token by token.
    #[error("{file}: the decoder {decoder} is not supported")]
    UnsupportedDecoder {
        /// Path of the file.
        file: String,
        /// JSON of the unsupported step.
        decoder: String,
    },
    /// A named special token is not in the vocabulary.
    #[error("{file}: {key} is {token:?}, which is not in the vocabulary")]
    UnknownSpecialToken {
        /// File that names the token.
        file: String,
        /// Key that names the token, such as `eos_token`.
        key: &'static str,
        /// Text of the token.
        token: String,
    },
    /// The tokenizer failed to encode a text.
    #[error("cannot tokenise the text: {source}")]
    Encode {
        /// Reason given by the `tokenizers` crate.
        source: tokenizers::Error,
    },
    /// The model has no chat template.
    #[error(
        "{origin} has no chat template (looked for chat_template.jinja, chat_template.json and \
         \"chat_template\" in tokenizer_config.json): it is probably a base model; use plain completion"
    )]
    NoChatTemplate {
        /// Name of the checkpoint.
        origin: String,
    },
    /// The chat template is not valid Jinja.
    #[error("the chat template in {file} is not valid: {source:#}")]
    TemplateSyntax {
        /// File that contains the template.
        file: String,
        /// Reason and position.
        source: minijinja::Error,
    },
    /// The chat template failed on this conversation.
    #[error("the chat template cannot render these messages: {source:#}")]
    TemplateRender {
        /// Reason and position.
        source: minijinja::Error,
    },
    /// The chat template called `raise_exception`.
    #[error("the chat template refuses these messages: {message}")]
    TemplateRefused {
        /// Message of the template.
        message: String,
    },
    /// The conversation has no messages.
    #[error("a chat needs at least one message")]
    NoMessages,
    /// A stop string is empty, so that it would match at the start of every text.
    #[error("a stop string must not be empty")]
    EmptyStop,
}
