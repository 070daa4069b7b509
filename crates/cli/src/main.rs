//! The `mlxcel` command: arguments, exit codes, terminal output. Everything else lives in the library
//! crates, where other front ends can use it.

mod advice;
mod args;
mod bench;
mod chat;
mod completions;
mod convert;
mod eval;
mod flag_aliases;
mod generate;
mod inspect;
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
    Generate(generate::GenerateArgs),
    /// Chat with a model; the KV cache is kept between turns
    Chat(chat::ChatArgs),
    /// Download a model from the Hugging Face hub to the local cache
    Download(models::DownloadArgs),
    /// List the models in the local cache and whether they fit into memory
    List(models::ListArgs),
    /// Remove models from the local cache
    Rm(models::RemoveArgs),
    /// Estimate the memory of a model, context and batch, without loading it
    Inspect(inspect::InspectArgs),
    /// Measure prefill and decode speed
    Bench(bench::BenchArgs),
    /// Serve an OpenAI-compatible API over HTTP
    Serve(Box<serve::ServeArgs>),
    /// Measure the perplexity of a text, compare KV cache modes, or write logits
    Eval(eval::EvalArgs),
    /// Quantise a checkpoint to MLX's affine format, with 2 to 8 bits per weight
    Quantize(convert::QuantizeArgs),
    /// Convert a checkpoint to another float type and drop unused tensors
    Convert(convert::ConvertArgs),
    /// Print a shell completion script
    Completions(completions::CompletionsArgs),
    /// Write the manual pages
    Man(completions::ManArgs),
}

/// Exit code for an invalid command line, as in clap.
const USAGE: u8 = 2;

/// True for the error that only reports Ctrl-C, which is not printed.
fn is_interrupt(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(mlxcel_runtime::Error::Interrupted))
        || matches!(error.downcast_ref(), Some(mlxcel_hub::HubError::Interrupted))
}

fn main() -> ExitCode {
    let arguments = match flag_aliases::replace(std::env::args_os()) {
        Ok(arguments) => arguments,
        Err(message) => {
            eprintln!("error: {message}");
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
        Command::Completions(args) => completions::completions(&args, Cli::command()),
        Command::Man(args) => completions::man(&args, Cli::command()),
    };
    match result {
        Ok(code) => code,
        Err(error) if is_interrupt(&error) => ExitCode::from(terminal::INTERRUPTED),
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

    /// Flags with the same meaning in all commands. `-n` and `-c` have the same meaning but different
    /// defaults; `--json` prints different schemas.
    const SHARED: [&str; 5] =
        ["model", "kv_cache_mode", "cache_type_k", "cache_type_v", "prefill_chunk"];

    /// The visible properties of a flag.
    fn properties(arg: &Arg) -> String {
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
        let shared = |command: &str| -> Vec<String> {
            let command = cli.find_subcommand(command).expect("a command");
            let find = |id: &str| command.get_arguments().find(|arg| arg.get_id() == id);
            SHARED.map(|id| properties(find(id).expect(id))).to_vec()
        };
        assert_eq!(shared("inspect"), shared("generate"));
        assert_eq!(shared("serve"), shared("generate"));
        assert_eq!(shared("chat"), shared("generate"));
    }

    #[test]
    fn short_flags_for_lengths_are_the_same_everywhere() {
        let cli = Cli::command();
        for name in ["generate", "chat", "serve", "inspect"] {
            let command = cli.find_subcommand(name).expect("a command");
            let short = |flag: char| {
                let mut arguments = command.get_arguments();
                arguments.find(|arg| arg.get_short() == Some(flag)).and_then(Arg::get_long)
            };
            assert_eq!((short('n'), short('c')), (Some("max-tokens"), Some("ctx-size")), "{name}");
        }
    }
}
