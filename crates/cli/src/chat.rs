//! `mlxcel chat`: a conversation at a terminal, or line by line through a pipe.

use std::io::{self, BufRead, IsTerminal};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use clap::builder::NonEmptyStringValueParser;
use mlxcel_estimator::{DEFAULT_CONTEXT_TOKENS, format_bytes};
use mlxcel_runtime::ModelText;
use mlxcel_runtime::conversation::{AnswerOptions, Conversation, was_interrupted};
use mlxcel_runtime::engine::{Engine, EngineConfig, Outcome};
use mlxcel_runtime::loading::Residence;
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

use crate::args::{Activations, ComputeArgs, KvArgs, ModelArgs};
use crate::generate::{SamplingArgs, announce, context_size};
use crate::preflight::{self, Planned, PreflightArgs};
use crate::terminal::{Bars, INTERRUPTED, Interrupt, Stdout, note, print, print_error};

/// What `/help` shows.
const HELP: &str = "\
/clear       forget the conversation (the model's instructions stay)
/save FILE   write the conversation as JSON
/load FILE   go on with a conversation that was saved
/info        context used, size of the KV cache
/help        this list
/exit        end (so does Ctrl-D)
Ctrl-C breaks off an answer. A line that ends with \\ goes on in the next one.
";

/// Arguments of `mlxcel chat`.
#[derive(clap::Args)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// System message for the chat template
    #[arg(long, alias = "system-prompt", value_name = "TEXT")]
    system: Option<String>,
    /// Tokens that an answer may have [default: what is left of the context]
    #[arg(short = 'n', long, aliases = ["n-predict", "predict"], value_name = "N")]
    max_tokens: Option<usize>,
    /// Tokens that the conversation may have [default: 8192, or the model's context if shorter]
    #[arg(short, long, value_name = "N")]
    ctx_size: Option<usize>,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// End an answer before this text (may be repeated)
    #[arg(long, value_name = "TEXT", value_parser = NonEmptyStringValueParser::new())]
    stop: Vec<String>,
    #[command(flatten)]
    kv: KvArgs,
    #[command(flatten)]
    compute: ComputeArgs,
    #[command(flatten)]
    preflight: PreflightArgs,
    /// Print nothing but the answers
    #[arg(short, long)]
    quiet: bool,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    // The editor catches SIGINT when it is made; ours must be the later one.
    let lines = Lines::new()?;
    let interrupt = Interrupt::install()?;
    let source = args.model.source()?;
    let text = ModelText::load(&source)?;
    let options = args.options(&text)?;
    let weights = args.compute.residence.or(Residence::Auto);
    let config = args.compute.engine(args.kv.mode()?, Activations::GENERATING)?;
    let config = EngineConfig { weights, ..config };
    if !args.quiet {
        announce(&source, &config);
        if text.template().is_none() {
            note("this model has no chat template: it continues what you write");
        }
    }
    let Some(_) = preflight::check(&args.preflight, &source, &args.planned(&options, &config))?
    else {
        return Ok(ExitCode::FAILURE);
    };
    let mut bars = Bars::new(interrupt.clone()).quiet(args.quiet).with_title(options.context);
    let engine = Engine::load(&source, config, &mut bars)?;
    let conversation = Conversation::new(&engine, &text, args.system.as_deref())?;
    let quiet = args.quiet;
    Chat { conversation, options, interrupt, bars, quiet }.run(lines)
}

impl Args {
    fn options(&self, text: &ModelText) -> Result<AnswerOptions> {
        if self.system.is_some() && text.template().is_none() {
            anyhow::bail!("--system needs a model with a chat template");
        }
        let usual = usize::try_from(DEFAULT_CONTEXT_TOKENS)?;
        let context = match self.ctx_size {
            None => text.context().map_or(usual, |most| most.min(usual)),
            given => context_size(given, text)?.unwrap_or(usual),
        };
        Ok(AnswerOptions {
            context: Some(context),
            max_tokens: self.max_tokens,
            sampling: self.sampling.params(text.sampling())?,
            stop: self.stop.clone(),
        })
    }

    /// A conversation that fills the context.
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

/// A conversation and how it is shown.
struct Chat<'a> {
    conversation: Conversation<'a>,
    options: AnswerOptions,
    interrupt: Interrupt,
    bars: Bars,
    quiet: bool,
}

/// Whether to go on.
enum Next {
    Line,
    End(u8),
}

impl Chat<'_> {
    fn run(mut self, mut lines: Lines) -> Result<ExitCode> {
        let interactive = lines.is_terminal();
        if interactive && !self.quiet {
            note("/help lists commands; Ctrl-D ends");
        }
        while let Some(line) = lines.next()? {
            let next = match command(&line) {
                _ if line.trim().is_empty() => Next::Line,
                Some((name, argument)) => self.command(name, argument)?,
                None => self.say(&line, interactive)?,
            };
            if let Next::End(code) = next {
                return Ok(ExitCode::from(code));
            }
        }
        Ok(ExitCode::SUCCESS)
    }

    /// One turn. What goes wrong in it ends a pipe, and at a terminal only the turn.
    fn say(&mut self, message: &str, interactive: bool) -> Result<Next> {
        self.interrupt.reset();
        let mut out = Stdout::new();
        let mut emit = |piece: &str| out.write(piece);
        let outcome = self.conversation.answer(message, &self.options, &mut self.bars, &mut emit);
        let _ = out.write("\n");
        out.check()?;
        let interrupted = was_interrupted(&outcome);
        match outcome {
            Ok(outcome) if !self.quiet => eprintln!("{}", self.figures(&outcome)),
            Ok(_) => {}
            Err(_) if interrupted => {}
            Err(error) if interactive => print_error(&error.into()),
            Err(error) => return Err(error.into()),
        }
        let end = interrupted && !interactive;
        Ok(if end { Next::End(INTERRUPTED) } else { Next::Line })
    }

    fn command(&mut self, name: &str, argument: &str) -> Result<Next> {
        let done = match (name, argument) {
            ("exit" | "quit" | "bye", "") => return Ok(Next::End(0)),
            ("help" | "?", "") => return print(HELP).map(|()| Next::Line),
            ("clear", "") => {
                self.conversation.clear();
                Ok("the conversation is forgotten".to_owned())
            }
            ("info", "") => Ok(self.state()),
            ("save" | "load", "") => Err(anyhow::anyhow!("/{name} needs the name of a file")),
            ("save", file) => self.saved(file),
            ("load", file) => self.loaded(file),
            _ => Err(anyhow::anyhow!("there is no command /{name} of this form; /help lists them")),
        };
        match done {
            Ok(text) => note(&text),
            Err(error) => print_error(&error),
        }
        Ok(Next::Line)
    }

    fn saved(&self, file: &str) -> Result<String> {
        self.conversation.save(Path::new(file))?;
        Ok(format!("{} messages saved to {file}", self.conversation.messages().len()))
    }

    fn loaded(&mut self, file: &str) -> Result<String> {
        self.conversation.load(Path::new(file))?;
        Ok(format!("{} messages loaded from {file}", self.conversation.messages().len()))
    }

    /// Context and cache.
    fn state(&self) -> String {
        let context = self.options.context.map_or(String::new(), |most| format!("/{most}"));
        format!(
            "context {}{context} tokens | KV cache {}",
            self.conversation.cached_tokens(),
            format_bytes(self.conversation.cache_bytes() as u64)
        )
    }

    /// One line after an answer.
    fn figures(&self, outcome: &Outcome) -> String {
        let s = &outcome.statistics;
        let rate = |rate: Option<f64>| rate.map_or("-".to_owned(), |rate| format!("{rate:.1}"));
        format!(
            "[{} | read {} tokens, {} kept, {} tok/s | wrote {} tokens, {} tok/s]",
            self.state(),
            s.prompt_tokens - s.reused_tokens,
            s.reused_tokens,
            rate(s.prompt_rate()),
            s.generated_tokens,
            rate(s.decode_rate()),
        )
    }
}

/// The name and the argument of `/name argument`.
fn command(line: &str) -> Option<(&str, &str)> {
    let (name, argument) = line
        .strip_prefix('/')
        .map(|rest| rest.split_once(char::is_whitespace).unwrap_or((rest, "")))?;
    Some((name, argument.trim()))
}

/// Where lines come from.
enum Lines {
    /// A person, who edits.
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

    /// The next line, with those that a `\` at its end joins to it; `None` at the end.
    fn next(&mut self) -> Result<Option<String>> {
        let mut whole = String::new();
        loop {
            let Some(line) = self.one(whole.is_empty())? else {
                return Ok(Some(whole).filter(|text| !text.is_empty()));
            };
            match line.strip_suffix('\\') {
                Some(start) => whole += &format!("{start}\n"),
                None => return Ok(Some(whole + &line)),
            }
        }
    }

    fn one(&mut self, first: bool) -> Result<Option<String>> {
        match self {
            Self::Editor(editor) => loop {
                match editor.readline(if first { "> " } else { "… " }) {
                    Ok(line) => {
                        editor.add_history_entry(&line)?;
                        return Ok(Some(line));
                    }
                    Err(ReadlineError::Interrupted) => note("Ctrl-D ends the conversation"),
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
