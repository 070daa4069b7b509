//! `mlxcel chat`: a conversation at a terminal, or with one message per line through a pipe.

use std::io::{self, BufRead, IsTerminal};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use clap::builder::NonEmptyStringValueParser;
use mlxcel_estimator::format_bytes;
use mlxcel_runtime::Processor;
use mlxcel_runtime::conversation::{AnswerOptions, Conversation, was_interrupted};
use mlxcel_runtime::engine::{Engine, EngineConfig, Outcome};
use mlxcel_runtime::loading::Residence;
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

use crate::args::{Activations, ComputeArgs, KvArgs, ModelArgs, context_size_or_default};
use crate::generate::{SamplingArgs, announce};
use crate::preflight::{self, Planned, PreflightArgs};
use crate::statistics::format_rate;
use crate::terminal::{Bars, INTERRUPTED, Interrupt, Stdout, note, print, print_error};

/// Output of `/help`.
const HELP: &str = "\
/clear       clear the conversation, except for the system message
/save FILE   save the conversation as JSON
/load FILE   load a saved conversation
/info        show the used context and the size of the KV cache
/help        list the commands
/exit        quit (also Ctrl-D)
Ctrl-C stops an answer. End a line with \\ to continue it on the next one.
";

/// Arguments of `mlxcel chat`.
#[derive(clap::Args)]
#[command(after_help = HELP)]
pub(crate) struct ChatArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// System message for the chat template
    #[arg(long, alias = "system-prompt", value_name = "TEXT")]
    system: Option<String>,
    /// Maximum number of tokens per answer [default: the rest of the context]
    #[arg(short = 'n', long, aliases = ["n-predict", "predict"], value_name = "N")]
    max_tokens: Option<usize>,
    /// Context size in tokens for the whole conversation; 0 is the model's own [default: 8192, or the
    /// model's own if smaller]
    #[arg(short, long, value_name = "N")]
    ctx_size: Option<usize>,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Stop an answer at this text, which is not printed (may be repeated)
    #[arg(long, value_name = "TEXT", value_parser = NonEmptyStringValueParser::new())]
    stop: Vec<String>,
    #[command(flatten)]
    kv: KvArgs,
    #[command(flatten)]
    compute: ComputeArgs,
    #[command(flatten)]
    preflight: PreflightArgs,
    /// Print only the answers
    #[arg(short, long)]
    quiet: bool,
}

/// Runs the command.
pub(crate) fn run(args: &ChatArgs) -> Result<ExitCode> {
    // The editor installs a SIGINT handler, which ours must replace.
    let lines = Lines::new()?;
    let interrupt = Interrupt::install()?;
    let source = args.model.source()?;
    let text = Processor::load(&source)?;
    let options = args.options(&text)?;
    let weights = args.compute.residence.or(Residence::Auto);
    let config = args.compute.engine(args.kv.mode()?, Activations::GENERATING)?;
    let config = EngineConfig { weights, ..config };
    if !args.quiet {
        announce(&source, &config);
        if text.template().is_none() {
            note("this model has no chat template: it continues your text");
        }
    }
    let planned = args.planned(&options, &config);
    if preflight::check(&args.preflight, &source, &planned)?.is_none() {
        return Ok(ExitCode::FAILURE);
    }
    let mut bars = Bars::new(interrupt.clone()).quiet(args.quiet).with_title(options.context);
    let engine = Engine::load(&source, config, &mut bars)?;
    let conversation = Conversation::new(&engine, &text, args.system.as_deref())?;
    Chat { conversation, options, interrupt, bars, quiet: args.quiet }.run(lines)
}

impl ChatArgs {
    fn options(&self, text: &Processor) -> Result<AnswerOptions> {
        if self.system.is_some() && text.template().is_none() {
            anyhow::bail!("--system needs a model with a chat template");
        }
        Ok(AnswerOptions {
            context: Some(context_size_or_default(self.ctx_size, text.context())?),
            max_tokens: self.max_tokens,
            sampling: self.sampling.params(text.sampling())?,
            stop: self.stop.clone(),
        })
    }

    /// The load of a conversation that fills the context.
    fn planned<'a>(&'a self, options: &AnswerOptions, config: &'a EngineConfig) -> Planned<'a> {
        let context = options.context.unwrap_or_default();
        let prompt_tokens = context.min(config.prefill_chunk);
        let max_tokens = context - prompt_tokens;
        Planned {
            model: &self.model,
            command: "chat",
            prompt_tokens,
            prompt: None,
            max_tokens,
            config,
        }
    }
}

/// A conversation and its display.
struct Chat<'a> {
    conversation: Conversation<'a>,
    options: AnswerOptions,
    interrupt: Interrupt,
    bars: Bars,
    quiet: bool,
}

/// Action after a line.
enum Next {
    /// Read the next line.
    Line,
    /// Exit with this code.
    Exit(u8),
}

impl Chat<'_> {
    fn run(mut self, mut lines: Lines) -> Result<ExitCode> {
        let interactive = lines.is_terminal();
        if interactive && !self.quiet {
            note("/help lists the commands; Ctrl-D quits");
        }
        while let Some(line) = lines.next()? {
            let next = match parse_command(&line) {
                _ if line.trim().is_empty() => Next::Line,
                Some((name, argument)) => self.command(name, argument)?,
                None => self.send(&line, interactive)?,
            };
            if let Next::Exit(code) = next {
                return Ok(ExitCode::from(code));
            }
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Sends a message and prints the answer. An error ends the program, except at a terminal.
    fn send(&mut self, message: &str, interactive: bool) -> Result<Next> {
        self.interrupt.reset();
        let mut out = Stdout::new();
        let outcome =
            self.conversation.answer(message, &self.options, &mut self.bars, &mut |piece: &str| {
                out.write(piece)
            });
        let _ = out.write("\n");
        out.check()?;
        let interrupted = was_interrupted(&outcome);
        match outcome {
            Ok(outcome) if !self.quiet => eprintln!("{}", self.statistics(&outcome)),
            Ok(_) => {}
            Err(_) if interrupted => {}
            Err(error) if interactive => print_error(&error.into()),
            Err(error) => return Err(error.into()),
        }
        let exit = interrupted && !interactive;
        Ok(if exit { Next::Exit(INTERRUPTED) } else { Next::Line })
    }

    fn command(&mut self, name: &str, argument: &str) -> Result<Next> {
        let result = match (name, argument) {
            ("exit" | "quit" | "bye", "") => return Ok(Next::Exit(0)),
            ("help" | "?", "") => return print(HELP).map(|()| Next::Line),
            ("clear", "") => {
                self.conversation.clear();
                Ok("the conversation is cleared".to_owned())
            }
            ("info", "") => Ok(self.usage()),
            ("save" | "load", "") => Err(anyhow::anyhow!("/{name} needs a file name")),
            ("save", file) => self.save(file),
            ("load", file) => self.load(file),
            _ => Err(anyhow::anyhow!(
                "there is no command /{name} of this form; /help lists the commands"
            )),
        };
        match result {
            Ok(text) => note(&text),
            Err(error) => print_error(&error),
        }
        Ok(Next::Line)
    }

    fn save(&self, file: &str) -> Result<String> {
        self.conversation.save(Path::new(file))?;
        Ok(format!("{} messages saved to {file}", self.conversation.messages().len()))
    }

    fn load(&mut self, file: &str) -> Result<String> {
        self.conversation.load(Path::new(file))?;
        Ok(format!("{} messages loaded from {file}", self.conversation.messages().len()))
    }

    /// Describes the used context and the KV cache.
    fn usage(&self) -> String {
        let context = self.options.context.map_or(String::new(), |most| format!("/{most}"));
        format!(
            "context {}{context} tokens | KV cache {}",
            self.conversation.cached_tokens(),
            format_bytes(self.conversation.cache_bytes() as u64)
        )
    }

    /// Formats the statistics that follow an answer.
    fn statistics(&self, outcome: &Outcome) -> String {
        let s = &outcome.statistics;
        format!(
            "[{} | prompt: {} tokens, {} cached, {} tok/s | generated: {} tokens, {} tok/s]",
            self.usage(),
            s.prompt_tokens - s.reused_tokens,
            s.reused_tokens,
            format_rate(s.prompt_rate()),
            s.generated_tokens,
            format_rate(s.decode_rate()),
        )
    }
}

/// Splits `/name argument`.
fn parse_command(line: &str) -> Option<(&str, &str)> {
    let (name, argument) = line
        .strip_prefix('/')
        .map(|rest| rest.split_once(char::is_whitespace).unwrap_or((rest, "")))?;
    Some((name, argument.trim()))
}

/// Source of the lines.
enum Lines {
    /// A terminal, with line editing.
    Editor(Box<DefaultEditor>),
    /// A pipe or a file.
    Pipe,
}

impl Lines {
    fn new() -> Result<Self> {
        Ok(if io::stdin().is_terminal() {
            Self::Editor(Box::new(DefaultEditor::new()?))
        } else {
            Self::Pipe
        })
    }

    fn is_terminal(&self) -> bool {
        matches!(self, Self::Editor(_))
    }

    /// Reads a line and its continuations after a `\`; `None` at the end.
    fn next(&mut self) -> Result<Option<String>> {
        let mut whole = String::new();
        loop {
            let Some(line) = self.read_line(whole.is_empty())? else {
                return Ok(Some(whole).filter(|text| !text.is_empty()));
            };
            match line.strip_suffix('\\') {
                Some(start) => whole += &format!("{start}\n"),
                None => return Ok(Some(whole + &line)),
            }
        }
    }

    fn read_line(&mut self, first: bool) -> Result<Option<String>> {
        match self {
            Self::Editor(editor) => loop {
                match editor.readline(if first { "> " } else { "… " }) {
                    Ok(line) => {
                        editor.add_history_entry(&line)?;
                        return Ok(Some(line));
                    }
                    Err(ReadlineError::Interrupted) => note("Ctrl-D quits"),
                    Err(ReadlineError::Eof) => return Ok(None),
                    Err(error) => return Err(error.into()),
                }
            },
            Self::Pipe => {
                let mut line = String::new();
                let count = io::stdin().lock().read_line(&mut line)?;
                line.truncate(line.trim_end_matches(['\n', '\r']).len());
                Ok((count > 0).then_some(line))
            }
        }
    }
}
