//! `mlxcel completions` and `mlxcel man`, generated from the definitions behind `--help`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Command;
use clap_complete::Shell;

use crate::terminal::{note, print};

/// Arguments of `mlxcel completions`.
#[derive(clap::Args)]
#[command(after_help = "For bash: mlxcel completions bash > \
    ~/.local/share/bash-completion/completions/mlxcel")]
pub(crate) struct CompletionsArgs {
    /// Shell to generate the script for
    shell: Shell,
}

/// Arguments of `mlxcel man`.
#[derive(clap::Args)]
pub(crate) struct ManArgs {
    /// Folder for mlxcel.1, mlxcel-generate.1 and so on
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

/// Runs `mlxcel completions`.
pub(crate) fn completions(args: &CompletionsArgs, mut command: Command) -> Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "mlxcel", &mut script);
    print(&String::from_utf8(script).context("a completion script is UTF-8")?)?;
    Ok(ExitCode::SUCCESS)
}

/// Runs `mlxcel man`.
pub(crate) fn man(args: &ManArgs, command: Command) -> Result<ExitCode> {
    let folder = args.folder.display();
    std::fs::create_dir_all(&args.folder).with_context(|| format!("cannot create {folder}"))?;
    clap_mangen::generate_to(command, &args.folder)
        .with_context(|| format!("cannot write to {folder}"))?;
    note(&format!("manual pages written to {folder}"));
    Ok(ExitCode::SUCCESS)
}
