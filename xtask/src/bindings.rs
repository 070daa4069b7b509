//! `cargo xtask bindgen`: the Rust declarations of the MLX shim's C ABI, `crates/mlx-ffi/src/bindings.rs`.
//!
//! They are generated from `shim/mlxcel_shim.h` and committed, so that users need no libclang. bindgen is
//! compiled on demand: without the feature `bindgen`, [`run`] builds and runs xtask with it.

use anyhow::Result;

/// Command-line options of `cargo xtask bindgen`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Change nothing; fail if the committed file differs
    #[arg(long)]
    check: bool,
}

/// Runs this task in an xtask built with bindgen.
///
/// # Errors
/// See the task.
#[cfg(not(feature = "bindgen"))]
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let mut command = std::process::Command::new("cargo");
    command.args(["run", "--quiet", "--locked", "--package", "xtask", "--features", "bindgen"]);
    command.args(["--", "bindgen"]).args(arguments.check.then_some("--check"));
    let status = command.current_dir(mlxcel_testing::paths::workspace_root()).status()?;
    if !status.success() {
        anyhow::bail!("bindgen: {status}");
    }
    Ok(())
}

/// Writes the declarations, or compares them with the committed ones.
///
/// # Errors
/// Missing libclang, a header that does not parse, or with `--check` a difference.
#[cfg(feature = "bindgen")]
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    use anyhow::{Context, bail};

    let root = mlxcel_testing::paths::workspace_root();
    let path = root.join("crates/mlx-ffi/src/bindings.rs");
    let made = generate(&root)?;
    if !arguments.check {
        return std::fs::write(&path, made).context("writing the bindings");
    }
    if std::fs::read_to_string(&path).context("reading the bindings")? != made {
        bail!("{} is outdated: run `cargo xtask bindgen`", path.display());
    }
    Ok(())
}

#[cfg(feature = "bindgen")]
fn generate(root: &std::path::Path) -> Result<String> {
    use anyhow::Context;

    const OPENING: &str = "//! The C ABI of the shim. Generated from `shim/mlxcel_shim.h` by \
                           `cargo xtask bindgen`; do not edit.";
    let header = root.join("crates/mlx-ffi/shim/mlxcel_shim.h");
    let bindings = bindgen::builder()
        .header(header.to_string_lossy())
        .disable_header_comment()
        .raw_line(OPENING)
        .allowlist_item("(mlxcel|MLXCEL)_.*")
        .no_copy("mlxcel_array")
        .use_core()
        .layout_tests(false)
        .generate_comments(false)
        .merge_extern_blocks(true)
        .rust_target(bindgen::RustTarget::stable(85, 0).expect("1.85 has the edition 2024"))
        .rust_edition(bindgen::RustEdition::Edition2024)
        .rustfmt_configuration_file(Some(root.join("rustfmt.toml")))
        .generate()
        .context("running bindgen")?;
    Ok(bindings.to_string())
}
