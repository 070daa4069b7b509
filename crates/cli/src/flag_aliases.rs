//! Completions and manual pages, generated from the definitions that `--help` shows; and what users of
//! llama.cpp type.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
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
    /// The shell
    shell: Shell,
}

/// Arguments of `mlxcel man`.
#[derive(clap::Args)]
pub(crate) struct ManArgs {
    /// The folder to write mlxcel.1, mlxcel-generate.1 and so on into
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

/// Runs `mlxcel completions`.
pub(crate) fn completions(args: &CompletionsArgs, mut command: Command) -> Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "mlxcel", &mut script);
    print(&String::from_utf8(script).context("a completion script is text")?)?;
    Ok(ExitCode::SUCCESS)
}

/// Runs `mlxcel man`.
pub(crate) fn man(args: &ManArgs, command: Command) -> Result<ExitCode> {
    let failed = |path: &Path| format!("cannot write {}", path.display());
    std::fs::create_dir_all(&args.folder).with_context(|| failed(&args.folder))?;
    clap_mangen::generate_to(command, &args.folder).with_context(|| failed(&args.folder))?;
    note(&format!("man pages written to {}", args.folder.display()));
    Ok(ExitCode::SUCCESS)
}

/// Flags of llama.cpp that have another name here.
const RENAMED: [(&str, &str); 3] =
    [("-ctk", "--cache-type-k"), ("-ctv", "--cache-type-v"), ("-sys", "--system")];

/// Flags of llama.cpp that have no meaning here, and what to do instead.
const MEANINGLESS: [(&[&str], &str); 5] = [
    (
        &["-ngl", "--gpu-layers", "--n-gpu-layers"],
        "the whole model runs on one device: MLX's GPU where there is one, else the CPU (MLXCEL_KERNELS chooses)",
    ),
    (&["-fa", "--flash-attn"], "attention is always computed without the whole matrix of scores"),
    (&["--mlock"], "weights stay in memory by use; --no-mmap reads them into memory of their own"),
    (&["-b", "--batch-size", "-ub", "--ubatch-size"], "--prefill-chunk sets the tokens per pass"),
    (
        &["-hf", "-hfr", "--hf-repo"],
        "-m ORG/NAME names a model of the hub, and `mlxcel download` fetches it",
    ),
];

/// Flags that mean something else to another command.
const KNOWN_ELSEWHERE: [(&str, &str); 1] = [("quantize", "-b")];

/// The command line with llama.cpp's names replaced.
///
/// # Errors
/// A flag that has no meaning here: the sentence says what to do instead.
pub(crate) fn arguments(given: impl Iterator<Item = OsString>) -> Result<Vec<OsString>, String> {
    let given: Vec<OsString> = given.collect();
    let command = given.get(1).and_then(|name| name.to_str()).unwrap_or_default().to_owned();
    let mut arguments = Vec::with_capacity(given.len());
    let mut value_follows = false;
    for argument in given {
        let text = argument.to_str().unwrap_or_default();
        let name = text.split('=').next().unwrap_or_default();
        let elsewhere = KNOWN_ELSEWHERE.contains(&(command.as_str(), name));
        let meaningless = MEANINGLESS.iter().find(|(names, _)| names.contains(&name));
        if let Some((_, instead)) = meaningless.filter(|_| !value_follows && !elsewhere) {
            return Err(format!("{name} is a flag of llama.cpp: {instead}"));
        }
        let renamed = RENAMED.iter().find(|(theirs, _)| *theirs == text && !value_follows);
        // Whatever a prompt says is not a flag.
        value_follows = matches!(text, "-p" | "--prompt" | "--system" | "--stop");
        arguments.push(renamed.map_or(argument.clone(), |(_, ours)| OsString::from(ours)));
    }
    Ok(arguments)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &str) -> Result<String, String> {
        let words = line.split(' ').map(OsString::from);
        let words =
            arguments(words)?.into_iter().map(|word| word.into_string().unwrap_or_default());
        Ok(words.collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn names_of_llama_cpp_work_or_are_explained() {
        let same = "mlxcel generate -ctk int8 -ctv turbo4 -p x";
        let ours = "mlxcel generate --cache-type-k int8 --cache-type-v turbo4 -p x";
        assert_eq!(check(same).as_deref(), Ok(ours));
        let error = check("mlxcel generate -ngl 99").unwrap_err();
        assert!(error.contains("-ngl is a flag of llama.cpp") && error.contains("one device"));
        assert!(check("mlxcel generate --n-gpu-layers=99").is_err());
        assert!(check("mlxcel bench -b 512").unwrap_err().contains("--prefill-chunk"));
    }

    #[test]
    fn what_is_no_flag_stays() {
        for line in ["mlxcel quantize -b 4", "mlxcel generate -p -ngl", "mlxcel list"] {
            assert_eq!(check(line).as_deref(), Ok(line));
        }
    }
}
