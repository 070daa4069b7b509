//! llama.cpp's flags: renamed to mlxcel's, or answered with an explanation.

use std::ffi::OsString;

/// Flags of llama.cpp and their names in mlxcel.
const RENAMED: [(&str, &str); 3] =
    [("-ctk", "--cache-type-k"), ("-ctv", "--cache-type-v"), ("-sys", "--system")];

/// Flags of llama.cpp without an equivalent, and the advice to print.
const UNSUPPORTED: [(&[&str], &str); 5] = [
    (
        &["-ngl", "--gpu-layers", "--n-gpu-layers"],
        "the whole model runs on one device: the GPU if MLX supports it, else the CPU (set MLXCEL_KERNELS to choose)",
    ),
    (
        &["-fa", "--flash-attn"],
        "attention never materialises the matrix of scores, so there is nothing to turn on",
    ),
    (&["--mlock"], "use --no-mmap to read the weights into memory"),
    (
        &["-b", "--batch-size", "-ub", "--ubatch-size"],
        "use --prefill-chunk to set the prompt tokens per pass",
    ),
    (
        &["-hf", "-hfr", "--hf-repo"],
        "use -m ORG/NAME for a model of the Hugging Face hub, and `mlxcel download` to fetch it",
    ),
];

/// Commands with a flag of their own by one of these names.
const REDEFINED: [(&str, &str); 1] = [("quantize", "-b")];

/// Returns the command line `given` with llama.cpp's names replaced.
///
/// # Errors
/// A flag without an equivalent; the message says what to do instead.
pub(crate) fn replace(given: impl Iterator<Item = OsString>) -> Result<Vec<OsString>, String> {
    let given: Vec<OsString> = given.collect();
    let command = given.get(1).and_then(|name| name.to_str()).unwrap_or_default().to_owned();
    let mut arguments = Vec::with_capacity(given.len());
    let mut is_value = false;
    for argument in given {
        let text = argument.to_str().unwrap_or_default();
        let replacement = if is_value { None } else { replacement(&command, text)? };
        // The text of a prompt may look like a flag.
        is_value = matches!(text, "-p" | "--prompt" | "--system" | "--stop");
        arguments.push(replacement.map_or_else(|| argument.clone(), OsString::from));
    }
    Ok(arguments)
}

/// The name in mlxcel of the flag `text`, if it differs.
fn replacement(command: &str, text: &str) -> Result<Option<&'static str>, String> {
    let name = text.split('=').next().unwrap_or_default();
    let unsupported = UNSUPPORTED.iter().find(|(names, _)| names.contains(&name));
    if let Some((_, advice)) = unsupported
        && !REDEFINED.contains(&(command, name))
    {
        return Err(format!("{name} is a flag of llama.cpp: {advice}"));
    }
    Ok(RENAMED.iter().find(|(theirs, _)| *theirs == text).map(|(_, ours)| *ours))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &str) -> Result<String, String> {
        let words = line.split(' ').map(OsString::from);
        let words = replace(words)?.into_iter().map(|word| word.into_string().unwrap_or_default());
        Ok(words.collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn flags_of_llama_cpp_are_renamed_or_explained() {
        let theirs = "mlxcel generate -ctk int8 -ctv turbo4 -p x";
        let ours = "mlxcel generate --cache-type-k int8 --cache-type-v turbo4 -p x";
        assert_eq!(check(theirs).as_deref(), Ok(ours));
        let error = check("mlxcel generate -ngl 99").unwrap_err();
        assert!(error.contains("-ngl is a flag of llama.cpp") && error.contains("one device"));
        assert!(check("mlxcel generate --n-gpu-layers=99").is_err());
        assert!(check("mlxcel bench -b 512").unwrap_err().contains("--prefill-chunk"));
    }

    #[test]
    fn other_arguments_are_unchanged() {
        for line in ["mlxcel quantize -b 4", "mlxcel generate -p -ngl", "mlxcel list"] {
            assert_eq!(check(line).as_deref(), Ok(line));
        }
    }
}
