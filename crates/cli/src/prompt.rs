//! The prompt of `mlxcel generate`: its sources and its conversion to tokens.

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use mlxcel_runtime::engine::ModelSource;
use mlxcel_runtime::text::{ChatMessage, ChatPrompt, Content, ContentPart};
use mlxcel_runtime::vision::{self, MAX_IMAGE_BYTES, RgbImage};
use mlxcel_runtime::{EncodedPrompt, Processor, PromptInput};
use serde_json::Map;

use crate::args::{read_file, read_stdin};

/// Prompt for the built-in model if none is given.
const DEFAULT_PROMPT: &str = "Once upon a time";

/// Flags for the prompt.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct PromptArgs {
    /// Prompt; `-` reads standard input [default: standard input, unless it is a terminal]
    #[arg(short, long, value_name = "TEXT", conflicts_with = "file", allow_hyphen_values = true)]
    prompt: Option<String>,
    /// Read the prompt from a file
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// System message for the chat template
    #[arg(long, alias = "system-prompt", value_name = "TEXT")]
    system: Option<String>,
    /// Pass the prompt to the model without its chat template
    #[arg(long, alias = "ignore-chat-template")]
    raw: bool,
    /// Image in PNG, JPEG or WebP format (may be repeated). A chat template places images before the
    /// text; a raw prompt marks their positions
    #[arg(long, value_name = "FILE")]
    image: Vec<PathBuf>,
}

impl PromptArgs {
    /// Decodes the images of the flags.
    ///
    /// Fails for a model without an image encoder before any file is opened.
    pub(crate) fn pictures(&self, text: &Processor) -> Result<Vec<RgbImage>> {
        if self.image.is_empty() {
            return Ok(Vec::new());
        }
        text.image_placeholders()?;
        self.image.iter().map(|path| picture(path)).collect()
    }

    /// Reads the prompt of the flags.
    pub(crate) fn read(&self, source: &ModelSource, text: &Processor) -> Result<Prompt> {
        let chat = text.template().is_some() && !self.raw;
        if self.system.is_some() && !chat {
            bail!("--system needs a model with a chat template, and conflicts with --raw");
        }
        let prompt = match (&self.prompt, &self.file) {
            (Some(dash), _) if dash == "-" => read_stdin()?,
            (Some(prompt), _) => prompt.clone(),
            (None, Some(path)) => read_file(path)?,
            (None, None) => default_prompt(source)?,
        };
        if prompt.is_empty() {
            bail!("the prompt is empty: give one with -p, -f or standard input");
        }
        Ok(Prompt { text: prompt, system: self.system.clone(), chat, images: self.image.len() })
    }
}

/// Standard input unless it is a terminal, else the default prompt of the built-in model.
fn default_prompt(source: &ModelSource) -> Result<String> {
    if !io::stdin().is_terminal() {
        return read_stdin();
    }
    if *source == ModelSource::BuiltIn {
        return Ok(DEFAULT_PROMPT.to_owned());
    }
    bail!("no prompt: give one with -p TEXT, -f FILE or on standard input")
}

fn picture(path: &Path) -> Result<RgbImage> {
    let origin = path.display().to_string();
    let length = std::fs::metadata(path).with_context(|| origin.clone())?.len();
    if length > MAX_IMAGE_BYTES {
        bail!("{origin} has {length} bytes; the limit for images is {MAX_IMAGE_BYTES}");
    }
    let bytes = std::fs::read(path).with_context(|| origin.clone())?;
    Ok(vision::decode(&bytes, &origin)?)
}

/// A prompt, with or without the chat template.
pub(crate) struct Prompt {
    text: String,
    system: Option<String>,
    chat: bool,
    images: usize,
}

impl Prompt {
    /// Converts the prompt to tokens, with placeholders for the images.
    pub(crate) fn encode(&self, text: &Processor, pictures: &[RgbImage]) -> Result<EncodedPrompt> {
        let messages = self.messages();
        let chat = ChatPrompt::new(&messages);
        if self.images > 0 {
            let prompt =
                if self.chat { PromptInput::Chat(&chat) } else { PromptInput::Plain(&self.text) };
            return Ok(text.encode_with_images(prompt, pictures)?);
        }
        Ok(EncodedPrompt::text(match self.chat {
            true => text.encode_chat(&chat)?,
            false => text.tokenizer().encode_prompt(&self.text)?,
        }))
    }

    /// The conversation for the chat template, with the images before the text.
    fn messages(&self) -> Vec<ChatMessage> {
        let mut user = ChatMessage::text("user", &self.text);
        if self.images > 0 {
            let mut parts = vec![content_part("image", None); self.images];
            parts.push(content_part("text", Some(self.text.clone())));
            user.content = Some(Content::Parts(parts));
        }
        let system = self.system.iter().map(|text| ChatMessage::text("system", text));
        system.chain([user]).collect()
    }

    /// The text that a terminal shows before the continuation of a raw prompt.
    pub(crate) fn echo(&self) -> Option<&str> {
        (!self.chat).then_some(&self.text)
    }
}

fn content_part(kind: &str, text: Option<String>) -> ContentPart {
    ContentPart { kind: kind.into(), text, extra: Map::new() }
}
