//! The `mlxcel` command: arguments, exit codes, terminal output. Everything else is in the crates
//! below, where another front end can use it.

mod advice;
mod args;
mod bench;
mod chat;
mod convert;
mod eval;
mod generate;
mod inspect;
mod manners;
mod models;
mod plot;
mod preflight;
mod prompt;
mod serve;
mod statistics;
mod terminal;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

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
    /// Talk with a model: several turns, the cache kept between them
    Chat(chat::Args),
    /// Fetch a model from the Hugging Face hub into its local cache
    Download(models::DownloadArgs),
    /// List the models in the local cache, and whether they fit now
    List(models::ListArgs),
    /// Remove models from the local cache
    Rm(models::RemoveArgs),
    /// Say whether a model, a context and a batch fit, and what would; loads nothing
    Inspect(inspect::Args),
    /// Measure prefill and decode speed
    Bench(bench::Args),
    /// Serve OpenAI's API over HTTP
    Serve(Box<serve::Args>),
    /// Perplexity of a text, and logits
    Eval(eval::Args),
    /// Write a plain checkpoint anew in MLX's affine format, with 2 to 8 bits per weight
    Quantize(convert::QuantizeArgs),
    /// Write a plain checkpoint anew in another float type, without what its model does not use
    Convert(convert::ConvertArgs),
    /// Print a completion script for a shell
    Completions(manners::CompletionsArgs),
    /// Write the manual pages
    Man(manners::ManArgs),
}

/// Exit code of a command line that is wrong, as clap's own.
const USAGE: u8 = 2;

/// Whether an error only says that Ctrl-C was pressed, which nobody needs to be told.
fn interrupted(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(mlxcel_runtime::Error::Interrupted))
        || matches!(error.downcast_ref(), Some(mlxcel_hub::HubError::Interrupted))
}

fn main() -> ExitCode {
    let arguments = match manners::arguments(std::env::args_os()) {
        Ok(arguments) => arguments,
        Err(sentence) => {
            eprintln!("error: {sentence}");
            return ExitCode::from(USAGE);
        }
    };
    let result = match Cli::parse_from(arguments).command {
        Command::Generate(args) => generate::run(args),
        Command::Chat(args) => chat::run(&args),
        Command::Download(args) => models::download(&args),
        Command::List(args) => models::list(&args),
        Command::Rm(args) => models::remove(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Serve(args) => serve::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Quantize(args) => convert::quantize(&args),
        Command::Convert(args) => convert::convert(&args),
        Command::Completions(args) => manners::completions(&args, Cli::command()),
        Command::Man(args) => manners::man(&args, Cli::command()),
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
    use clap::Arg;

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
        assert_eq!(faces("chat"), faces("generate"));
    }
}
