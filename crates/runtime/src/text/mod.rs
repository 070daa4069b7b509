//! Everything between text and token ids.
//!
//! Owns reading a checkpoint's text files ([`TextFiles`]), the tokenizer ([`Tokenizer`]), chat
//! templates ([`ChatTemplate`]), streaming detokenisation ([`Detokenizer`]) and stop strings
//! ([`StopMatcher`]).
//! Leaves to others: which tokens are drawn (`sampling`) and the wire formats (`server`).
//!
//! Invariants: nothing here touches MLX or the network; every text that leaves is valid UTF-8.

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
pub use stop::{StopMatcher, StopOutput};
pub use stream::Detokenizer;
pub use template::ChatTemplate;
pub use tokenizer::{SpecialTokens, Tokenizer};
