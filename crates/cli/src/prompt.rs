//! The prompt of `mlxcel generate`: where it comes from, and how it becomes tokens.

use std::io::{self, IsTerminal};
use std::path::PathBuf;

use anyhow::{Result, bail};
use mlxcel_runtime::ModelText;
use mlxcel_runtime::engine::ModelSource;
use mlxcel_runtime::text::{ChatMessage, ChatPrompt};

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
}

impl PromptArgs {
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
        Ok(Prompt { text: prompt, system: self.system.clone(), chat })
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

/// The prompt and whether it goes through the chat template.
pub(crate) struct Prompt {
    text: String,
    system: Option<String>,
    chat: bool,
}

impl Prompt {
    /// The prompt as the model reads it.
    pub(crate) fn tokens(&self, text: &ModelText) -> Result<Vec<u32>> {
        if !self.chat {
            return Ok(text.tokenizer().encode_prompt(&self.text)?);
        }
        let system = self.system.iter().map(|s| ChatMessage::text("system", s));
        let messages: Vec<_> = system.chain([ChatMessage::text("user", &self.text)]).collect();
        Ok(text.encode_chat(&ChatPrompt::new(&messages))?)
    }

    /// What a terminal shows before the continuation of a bare prompt.
    pub(crate) fn echo(&self) -> Option<&str> {
        (!self.chat).then_some(&self.text)
    }
}
