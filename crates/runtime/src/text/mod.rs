//! Conversion between text and token ids.
//!
//! Owns a checkpoint's text files ([`TextFiles`]), the tokenizer ([`Tokenizer`]), chat templates
//! ([`ChatTemplate`]), streaming detokenisation (`Detokenizer`) and stop strings (`StopMatcher`).
//! Leaves choosing tokens to `sampling`, and wire formats to the server.
//!
//! Invariants: no use of MLX or the network; all returned text is valid UTF-8.

mod chat;
mod config;
mod decoder;
mod error;
mod files;
mod stop;
mod stream;
mod template;
mod tokenizer;

pub use chat::{ChatMessage, ChatPrompt, Content, ContentPart};
pub use error::TextError;
pub use files::TextFiles;
pub(crate) use stop::StopMatcher;
pub(crate) use stream::Detokenizer;
pub use template::ChatTemplate;
pub use tokenizer::{SpecialTokens, Tokenizer};
