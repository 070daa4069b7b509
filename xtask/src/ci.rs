//! Everything that a change must pass, in order of how soon it can fail.
//!
//! Each step is a command that a person can repeat alone; `cargo xtask ci --only NAME` does.

use crate::tidy;
use anyhow::{Context, Result, bail};
use mlxcel_testing::paths::{shared_folder, workspace_root};
use std::process::{Command, Stdio};
use std::time::Instant;

/// Command-line options of `cargo xtask ci`.
#[derive(clap::Args)]
pub struct Options {
    /// Run only these steps
    #[arg(long, value_name = "STEP", value_parser = step_names())]
    only: Vec<String>,
}

enum Outcome {
    Passed,
    /// With the reason.
    Skipped(&'static str),
}

struct Step {
    name: &'static str,
    run: fn() -> Result<Outcome>,
}

const STEPS: &[Step] = &[
    Step { name: "fmt", run: fmt },
    Step { name: "tidy", run: || tidy::run().map(|()| Outcome::Passed) },
    Step { name: "unused-dependencies", run: unused_dependencies },
    Step { name: "deny", run: deny },
    Step { name: "bindings", run: bindings },
    Step { name: "no-compiler", run: no_compiler },
    Step { name: "clippy", run: clippy },
    Step { name: "test", run: test },
    Step { name: "shared-tests", run: shared_tests },
    Step { name: "openai-client", run: openai_client },
    Step { name: "page", run: page },
    Step { name: "demo", run: demo },
    Step { name: "doc", run: doc },
    Step { name: "fuzz-targets", run: fuzz_targets },
];

fn step_names() -> Vec<&'static str> {
    STEPS.iter().map(|step| step.name).collect()
}

/// Runs the steps, prints what each took, and stops at the first that fails.
pub fn run(options: &Options) -> Result<()> {
    let start = Instant::now();
    for step in STEPS {
        if !options.only.is_empty() && !options.only.iter().any(|name| name == step.name) {
            continue;
        }
        eprintln!("\n── ci: {}", step.name);
        let start = Instant::now();
        let outcome = (step.run)().with_context(|| format!("ci step {} failed", step.name))?;
        let seconds = start.elapsed().as_secs_f64();
        match outcome {
            Outcome::Passed => eprintln!("── ci: {} passed in {seconds:.1} s", step.name),
            Outcome::Skipped(why) => eprintln!("── ci: {} skipped: {why}", step.name),
        }
    }
    eprintln!("\n── ci: all passed in {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}

fn fmt() -> Result<Outcome> {
    cargo(&["fmt", "--all", "--check"], &[])
}

fn clippy() -> Result<Outcome> {
    cargo(&["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"], &[])
}

fn bindings() -> Result<Outcome> {
    cargo(&["xtask", "bindgen", "--check"], &[])
}

/// Sizing must be embeddable where no C or C++ compiler is: a build script that asks for one
/// gets a program that fails.
fn no_compiler() -> Result<Outcome> {
    let build = ["check", "--lib", "-p", "mlxcel-estimator", "-p", "mlxcel-advisor", "--locked"];
    cargo(&build, &[("CC", "false"), ("CXX", "false")])?;
    const WASM: &str = "wasm32-unknown-unknown";
    let installed = Command::new("rustc")
        .args(["--print", "target-libdir", "--target", WASM])
        .output()
        .is_ok_and(|output| {
            let folder = String::from_utf8_lossy(&output.stdout).trim().to_string();
            output.status.success() && std::path::Path::new(&folder).is_dir()
        });
    if installed {
        let mut build = build.to_vec();
        build.extend(["--target", WASM]);
        cargo(&build, &[("CC", "false"), ("CXX", "false")])?;
    }
    let inverse = ["tree", "-p", "mlxcel-estimator", "-e", "normal", "-i", "mlx-ffi"];
    if quiet(&inverse)? {
        bail!("`cargo {}` finds an arrow that must not be there", inverse.join(" "));
    }
    Ok(Outcome::Passed)
}

fn test() -> Result<Outcome> {
    cargo(&["test", "--workspace", "--locked"], &[])
}

/// Tests that need `../shared` are ignored and named `shared_…`; `tidy` holds them to it.
fn shared_tests() -> Result<Outcome> {
    if shared_folder().is_none() {
        return Ok(Outcome::Skipped("there is no ../shared"));
    }
    cargo(
        &[
            "test",
            "--workspace",
            "--locked",
            "--lib",
            "--bins",
            "--tests",
            "--",
            "--ignored",
            "shared_",
        ],
        &[],
    )
}

/// OpenAI's Python client against the server; pip fetches it once, into `target`.
fn openai_client() -> Result<Outcome> {
    const PACKAGE: &str = "openai==3.52.0";
    let folder = workspace_root().join("target").join(PACKAGE);
    if !folder.join("openai").is_dir() {
        let status = Command::new("python3")
            .args(["-m", "pip", "install", "--quiet", "--target"])
            .arg(&folder)
            .arg(PACKAGE)
            .status()
            .context("running python3")?;
        if !status.success() {
            bail!("pip cannot install {PACKAGE}: {status}");
        }
    }
    let folder = folder.to_str().context("the path is not UTF-8")?;
    let tests = [
        "server::api::the_official_client_works",
        "server::images::the_official_client_sends_images",
    ];
    let client = [&["--", "--ignored", "--exact"][..], &tests].concat();
    let test = ["test", "-p", "cli", "--locked", "--test", "it"];
    cargo(&[&test[..], &client].concat(), &[("PYTHONPATH", folder)])
}

/// The server's page in a headless browser.
fn page() -> Result<Outcome> {
    const BROWSERS: [&str; 3] = ["chromium", "chromium-browser", "google-chrome"];
    let there = |name: &str| {
        let version = Command::new(name).arg("--version").stdout(Stdio::null()).status();
        version.is_ok_and(|status| status.success())
    };
    if !BROWSERS.into_iter().any(there) {
        return Ok(Outcome::Skipped("there is no chromium"));
    }
    let test = ["test", "-p", "cli", "--locked", "--test", "it"];
    let tests =
        ["server::page::the_page_works_in_a_browser", "server::page::the_page_sends_images"];
    let browser = [&["--", "--ignored", "--exact"][..], &tests].concat();
    cargo(&[&test[..], &browser].concat(), &[])
}

/// The first command of the README, in the dev profile and shorter: it must print a text.
fn demo() -> Result<Outcome> {
    let generate = ["run", "--locked", "-p", "cli", "--", "generate", "-p", "Once upon a time"];
    let output = command(&generate)
        .args(["-n", "32"])
        .stderr(Stdio::inherit())
        .output()
        .context("running cargo")?;
    let text = String::from_utf8(output.stdout).context("the text is not UTF-8")?;
    if !output.status.success() || text.split_whitespace().count() < 8 {
        bail!("`cargo {}`: {}, and prints {text:?}", generate.join(" "), output.status);
    }
    Ok(Outcome::Passed)
}

fn doc() -> Result<Outcome> {
    cargo(&["doc", "--workspace", "--no-deps", "--locked"], &[("RUSTDOCFLAGS", "-D warnings")])
}

/// They lie outside the workspace; fuzzing needs nightly, compiling them does not.
fn fuzz_targets() -> Result<Outcome> {
    cargo(&["check", "--manifest-path", "fuzz/Cargo.toml", "--target-dir", "target/fuzz"], &[])
}

fn unused_dependencies() -> Result<Outcome> {
    if !quiet(&["machete", "--version"])? {
        bail!("cargo-machete is missing: cargo install cargo-machete --locked");
    }
    cargo(&["machete"], &[])
}

fn deny() -> Result<Outcome> {
    if !quiet(&["deny", "--version"])? {
        return Ok(Outcome::Skipped("cargo-deny is not installed"));
    }
    cargo(&["deny", "--all-features", "check", "licenses", "bans", "sources"], &[])
}

/// Runs cargo in the root of the workspace with these variables; fails when it does.
fn cargo(arguments: &[&str], variables: &[(&str, &str)]) -> Result<Outcome> {
    let status =
        command(arguments).envs(variables.iter().copied()).status().context("running cargo")?;
    if !status.success() {
        bail!("`cargo {}`: {status}", arguments.join(" "));
    }
    Ok(Outcome::Passed)
}

/// Whether cargo succeeds, without its output.
fn quiet(arguments: &[&str]) -> Result<bool> {
    let status = command(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .context("running cargo")?;
    Ok(status.success())
}

/// Cargo as a person would call it: what the cargo that runs xtask says about xtask's package
/// confuses some subcommands.
fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new("cargo");
    command.args(arguments).current_dir(workspace_root());
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    command
}
