//! The `mlxcel` command: arguments, exit codes, terminal output. Everything else is in the crates
//! below, where another front end can use it.

mod args;
mod bench;
mod eval;
mod generate;
mod inspect;
mod preflight;
mod prompt;
mod statistics;
mod terminal;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "mlxcel", version, about, max_term_width = 100, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Generate text from a prompt
    Generate(generate::Args),
    /// Say whether a model, a context and a batch fit, and what would; loads nothing
    Inspect(inspect::Args),
    /// Measure prefill and decode speed
    Bench(bench::Args),
    /// Perplexity of a text, and logits
    Eval(eval::Args),
}

/// Whether an error only says that Ctrl-C was pressed, which nobody needs to be told.
fn interrupted(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(mlxcel_runtime::Error::Interrupted))
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Generate(args) => generate::run(args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Eval(args) => eval::run(&args),
    };
    match result {
        Ok(code) => code,
        Err(error) if interrupted(&error) => ExitCode::from(terminal::INTERRUPTED),
        Err(error) => {
            terminal::print_error(&error);
            ExitCode::FAILURE
        }
    }
}
