//! What can be wrong with a checkpoint's text files, or with a chat that is put through them.

/// An error in tokenizing, templating or stopping.
///
/// `file` fields name the file as a person would look for it: its path, or `built-in/<name>`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// A file that every checkpoint needs is not there.
    #[error("{file} is missing: this checkpoint cannot be used without it")]
    MissingFile {
        /// The file looked for.
        file: String,
    },
    /// A file is there but cannot be read.
    #[error("cannot read {file}: {source}")]
    Unreadable {
        /// The file.
        file: String,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A file is not the JSON that it should be.
    #[error("{file} is not valid: {source}")]
    InvalidJson {
        /// The file.
        file: String,
        /// Where and why parsing stopped.
        source: serde_json::Error,
    },
    /// `tokenizer.json` is JSON, but no tokenizer.
    #[error("{file} does not describe a tokenizer: {source}")]
    InvalidTokenizer {
        /// The file.
        file: String,
        /// What the `tokenizers` crate said.
        source: tokenizers::Error,
    },
    /// The tokenizer turns tokens into text in a way that cannot be streamed.
    #[error("{file}: the decoder {decoder} is not supported")]
    UnsupportedDecoder {
        /// The file.
        file: String,
        /// The offending part of `"decoder"`.
        decoder: String,
    },
    /// A special token is named that the vocabulary lacks.
    #[error("{file}: {key} is {token:?}, which is not in the vocabulary")]
    UnknownSpecialToken {
        /// The file that names it.
        file: String,
        /// The key that names it, such as `eos_token`.
        key: &'static str,
        /// The token.
        token: String,
    },
    /// The tokenizer refused a text.
    #[error("cannot tokenize the text: {source}")]
    Encode {
        /// What the `tokenizers` crate said.
        source: tokenizers::Error,
    },
    /// A chat was asked of a model without a chat template.
    #[error(
        "{origin} has no chat template (looked for chat_template.jinja, chat_template.json and \
         \"chat_template\" in tokenizer_config.json): it is probably a base model, use plain completion"
    )]
    NoChatTemplate {
        /// The checkpoint.
        origin: String,
    },
    /// The chat template is not valid Jinja.
    #[error("the chat template in {file} is not valid: {source:#}")]
    TemplateSyntax {
        /// The file that holds it.
        file: String,
        /// Where and why.
        source: minijinja::Error,
    },
    /// Rendering a chat failed.
    #[error("the chat template cannot render these messages: {source:#}")]
    TemplateRender {
        /// Where and why.
        source: minijinja::Error,
    },
    /// The template itself refused the chat through `raise_exception`.
    #[error("the chat template refuses these messages: {message}")]
    TemplateRefused {
        /// The template's own words.
        message: String,
    },
    /// A chat without messages.
    #[error("a chat needs at least one message")]
    NoMessages,
    /// A stop string without a character in it would end every text before it begins.
    #[error("a stop string must not be empty")]
    EmptyStop,
}
