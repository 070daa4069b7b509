//! `cargo xtask golden`: makes the goldens anew with the pinned mlx-lm. Their contents are described
//! in `mlxcel_testing::golden`.

use anyhow::{Context, Result, bail};
use mlxcel_testing::golden::{VARIANTS, checkpoint, configurations, tests_folder};
use mlxcel_testing::paths::workspace_root;
use mlxcel_testing::synth;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Command-line options of `cargo xtask golden`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// A Python in which xtask/golden/requirements.txt is installed
    #[arg(long, default_value = "python3")]
    python: PathBuf,
    /// Make only the logits of these configurations
    names: Vec<String>,
}

/// Makes all goldens anew, or the logits of some configurations.
///
/// # Errors
/// A name that is no configuration's; a Python without the pinned packages; a file that cannot be written.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let checkpoints = workspace_root().join("target/golden");
    let all = arguments.names.is_empty();
    let names = if all { configurations()? } else { arguments.names.clone() };
    for name in &names {
        for variant in &VARIANTS {
            checkpoint(name, variant, &checkpoints.join(name).join(variant.name))?;
        }
    }
    let scripts = workspace_root().join("xtask/golden");
    let python = |script: &str, folders: &[&Path], names: &[String]| -> Result<()> {
        let mut command = Command::new(&arguments.python);
        command.arg(scripts.join(script)).args(folders).args(names);
        let status =
            command.status().with_context(|| format!("running {}", arguments.python.display()))?;
        if !status.success() {
            bail!("{script}: {status}");
        }
        Ok(())
    };
    let goldens = tests_folder().join("golden");
    std::fs::create_dir_all(&goldens)?;
    python("logits.py", &[&checkpoints, &goldens], &names)?;
    for name in &names {
        if let Some(family) = family_with_images(name)? {
            let script = format!("vision_{family}.py");
            python(&script, &[&checkpoints, &goldens], std::slice::from_ref(name))?;
        }
    }
    if !all {
        return Ok(());
    }
    python("affine.py", &[], &[])?;
    python("convert.py", &[&checkpoints, &goldens], &[])?;
    python("demo.py", &[&workspace_root().join("models/demo"), &goldens], &[])
}

/// The `model_type` of configuration `name`, where it describes an image encoder.
fn family_with_images(name: &str) -> Result<Option<String>> {
    let config = synth::read_config(&tests_folder().join(format!("configs/{name}.json")))?;
    let family = config["model_type"].as_str().map(str::to_owned);
    Ok(family.filter(|_| config["vision_config"].is_object()))
}
