//! The prompt of `mlxcel generate`: where it comes from, and how it becomes tokens.

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use mlxcel_runtime::engine::ModelSource;
use mlxcel_runtime::text::{ChatMessage, ChatPrompt, Content, ContentPart};
use mlxcel_runtime::vision::{self, MAX_IMAGE_BYTES, RgbImage};
use mlxcel_runtime::{ImagePrompt, ModelText, Unexpanded};
use serde_json::Map;

use crate::args::{read_file, read_stdin};

/// What the built-in model continues when it is given nothing.
const DEFAULT_PROMPT: &str = "Once upon a time";

/// Flags that give a prompt.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct PromptArgs {
    /// The prompt; `-` reads standard input [default: standard input, when that is not a terminal]
    #[arg(short, long, value_name = "TEXT", conflicts_with = "file", allow_hyphen_values = true)]
    prompt: Option<String>,
    /// Read the prompt from a file
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// System message for the chat template
    #[arg(long, alias = "system-prompt", value_name = "TEXT")]
    system: Option<String>,
    /// Give the model the bare prompt, without its chat template
    #[arg(long, alias = "ignore-chat-template")]
    raw: bool,
    /// Show the model an image: PNG, JPEG or WebP (may be repeated). A chat template puts them before
    /// the text; a bare prompt says itself where they go
    #[arg(long, value_name = "FILE")]
    image: Vec<PathBuf>,
}

impl PromptArgs {
    /// Decodes the images that the flags name; none where there are no such flags.
    ///
    /// A model that reads no images is refused before any file is opened.
    pub(crate) fn pictures(&self, text: &ModelText) -> Result<Vec<RgbImage>> {
        if self.image.is_empty() {
            return Ok(Vec::new());
        }
        text.image_places()?;
        self.image.iter().map(|path| picture(path)).collect()
    }

    /// Reads the prompt that the flags name.
    pub(crate) fn read(&self, source: &ModelSource, text: &ModelText) -> Result<Prompt> {
        let chat = text.template().is_some() && !self.raw;
        if self.system.is_some() && !chat {
            bail!("--system needs a model with a chat template, and no --raw");
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

/// Standard input where something is connected to it, else the built-in model's own prompt.
fn default_prompt(source: &ModelSource) -> Result<String> {
    if !io::stdin().is_terminal() {
        return read_stdin();
    }
    if *source == ModelSource::BuiltIn {
        return Ok(DEFAULT_PROMPT.to_owned());
    }
    bail!("there is no prompt: give one with -p TEXT, -f FILE or on standard input")
}

fn picture(path: &Path) -> Result<RgbImage> {
    let origin = path.display().to_string();
    let length = std::fs::metadata(path).with_context(|| origin.clone())?.len();
    if length > MAX_IMAGE_BYTES {
        bail!(
            "{origin} has {length} bytes, more than the {MAX_IMAGE_BYTES} that are read of an image"
        );
    }
    let bytes = std::fs::read(path).with_context(|| origin.clone())?;
    Ok(vision::decode(&bytes, &origin)?)
}

/// The prompt and whether it goes through the chat template.
pub(crate) struct Prompt {
    text: String,
    system: Option<String>,
    chat: bool,
    images: usize,
}

impl Prompt {
    /// The prompt as the model reads it, with room for the images.
    pub(crate) fn encode(&self, text: &ModelText, pictures: &[RgbImage]) -> Result<ImagePrompt> {
        let messages = self.messages();
        let chat = ChatPrompt::new(&messages);
        if self.images > 0 {
            let prompt =
                if self.chat { Unexpanded::Chat(&chat) } else { Unexpanded::Plain(&self.text) };
            return Ok(text.encode_with_images(prompt, pictures)?);
        }
        Ok(ImagePrompt::text(match self.chat {
            true => text.encode_chat(&chat)?,
            false => text.tokenizer().encode_prompt(&self.text)?,
        }))
    }

    /// The conversation that a chat template is given: images stand before the text.
    fn messages(&self) -> Vec<ChatMessage> {
        let mut user = ChatMessage::text("user", &self.text);
        if self.images > 0 {
            let image = ContentPart { kind: "image".into(), text: None, extra: Map::new() };
            let mut parts = vec![image; self.images];
            let text = Some(self.text.clone());
            parts.push(ContentPart { kind: "text".into(), text, extra: Map::new() });
            user.content = Some(Content::Parts(parts));
        }
        let system = self.system.iter().map(|text| ChatMessage::text("system", text));
        system.chain([user]).collect()
    }

    /// What a terminal shows before the continuation of a bare prompt.
    pub(crate) fn echo(&self) -> Option<&str> {
        (!self.chat).then_some(&self.text)
    }
}
