//! The `mlxcel` command: arguments, exit codes, terminal output. Everything else is in the crates
//! below, where another front end can use it.

mod advice;
mod args;
mod bench;
mod eval;
mod generate;
mod inspect;
mod preflight;
mod prompt;
mod serve;
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
    /// Serve OpenAI's API over HTTP
    Serve(Box<serve::Args>),
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
        Command::Serve(args) => serve::run(&args),
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

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Arg, CommandFactory};

    /// Flags that mean the same wherever they are: `-n` does not (tokens of a context, or of an
    /// answer), nor `--json`.
    const SHARED: [&str; 5] =
        ["model", "kv_cache_mode", "cache_type_k", "cache_type_v", "prefill_chunk"];

    /// Everything that a person sees of a flag.
    fn face(arg: &Arg) -> String {
        let values = arg.get_possible_values();
        format!(
            "{:?} {:?} {:?} {:?} {:?} {:?} {values:?}",
            arg.get_short(),
            arg.get_long(),
            arg.get_all_aliases(),
            arg.get_value_names(),
            arg.get_default_values(),
            arg.get_help().map(ToString::to_string),
        )
    }

    #[test]
    fn shared_flags_are_the_same_everywhere() {
        let cli = Cli::command();
        let faces = |command: &str| -> Vec<String> {
            let command = cli.find_subcommand(command).expect("a command");
            let find = |id: &str| command.get_arguments().find(|arg| arg.get_id() == id);
            SHARED.map(|id| face(find(id).expect(id))).to_vec()
        };
        assert_eq!(faces("inspect"), faces("generate"));
        assert_eq!(faces("serve"), faces("generate"));
    }
}
