//! All checks that a change must pass, fast ones first.
//!
//! Each step is a command that can be repeated by itself: `cargo xtask ci --only NAME`.

use crate::tidy;
use anyhow::{Context, Result, bail};
use mlxcel_testing::paths::{shared_folder, workspace_root};
use std::ffi::OsString;
use std::process::{Command, Stdio};
use std::time::Instant;

/// Command-line options of `cargo xtask ci`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Run only these steps
    #[arg(long, value_name = "STEP", value_parser = step_names())]
    only: Vec<String>,
}

enum Outcome {
    Passed,
    /// With the reason.
    Skipped(String),
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
    Step { name: "msrv", run: msrv },
    Step { name: "clippy", run: clippy },
    Step { name: "test", run: test },
    Step { name: "shared-tests", run: shared_tests },
    Step { name: "address-sanitizer", run: address_sanitizer },
    Step { name: "openai-client", run: openai_client },
    Step { name: "page", run: page },
    Step { name: "demo", run: demo },
    Step { name: "doc", run: doc },
    Step { name: "fuzz-targets", run: fuzz_targets },
];

fn step_names() -> Vec<&'static str> {
    STEPS.iter().map(|step| step.name).collect()
}

/// Runs the steps, prints the time of each, and stops at the first failure.
pub(crate) fn run(options: &Options) -> Result<()> {
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

/// Sizing must be embeddable without a C or C++ compiler: build scripts that ask for one get a program
/// that fails.
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
        bail!("`cargo {}` finds mlx-ffi below the estimator", inverse.join(" "));
    }
    Ok(Outcome::Passed)
}

fn test() -> Result<Outcome> {
    cargo(&["test", "--workspace", "--locked"], &[])
}

/// Tests that need `../shared` are ignored and named `shared_…`, as `tidy` enforces.
fn shared_tests() -> Result<Outcome> {
    if shared_folder().is_none() {
        return skipped("no folder ../shared");
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

/// OpenAI's Python client against the server; pip installs it into `target` once.
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
    let is_installed = BROWSERS.into_iter().any(|name| {
        let version = Command::new(name).arg("--version").stdout(Stdio::null()).status();
        version.is_ok_and(|status| status.success())
    });
    if !is_installed {
        return skipped("Chromium is not installed");
    }
    let test = ["test", "-p", "cli", "--locked", "--test", "it"];
    let tests =
        ["server::page::the_page_works_in_a_browser", "server::page::the_page_sends_images"];
    let browser = [&["--", "--ignored", "--exact"][..], &tests].concat();
    cargo(&[&test[..], &browser].concat(), &[])
}

/// The first command of the README, shortened and in the dev profile: it must print a text.
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

/// The fuzz targets are not in the workspace. Fuzzing needs nightly, compiling them does not.
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
        bail!("cargo-deny is missing: run .ci/run, or cargo install cargo-deny --locked");
    }
    cargo(&["deny", "--all-features", "check", "licenses", "bans", "sources"], &[])
}

/// The oldest supported Rust compiles everything, tests included.
fn msrv() -> Result<Outcome> {
    let version = env!("CARGO_PKG_RUST_VERSION");
    let Some(toolchain) = toolchain(version)? else {
        return skipped(&format!(
            "Rust {version} is not installed: rustup toolchain install {version}"
        ));
    };
    let toolchain = format!("+{toolchain}");
    let check =
        ["check", "--workspace", "--all-targets", "--locked", "--target-dir", "target/msrv"];
    cargo(&[&[toolchain.as_str()][..], &check].concat(), &[])
}

/// AddressSanitizer over the kernels' own memory management, the pool and the slab, and over the guarded
/// tests, which run every kernel of this machine's instruction sets on buffers that end at an inaccessible
/// page.
fn address_sanitizer() -> Result<Outcome> {
    let Some(nightly) = toolchain("nightly")? else {
        return skipped("nightly Rust is not installed: rustup toolchain install nightly");
    };
    let Some(target) = host(&nightly)? else {
        return skipped("AddressSanitizer is not available for this machine");
    };
    let toolchain = format!("+{nightly}");
    let test = ["test", "-p", "mlxcel-kernels", "--lib", "--locked", "--target", target.as_str()];
    let build = [
        "--target-dir",
        "target/asan",
        // Little optimisation compiles faster, and keeps more of the accesses that are checked.
        "--config",
        "profile.dev.package.mlxcel-kernels.opt-level=0",
        "--config",
        "profile.dev.package.mlxcel-kernels.debug-assertions=true",
        "--config",
        "profile.dev.package.mlxcel-kernels.overflow-checks=true",
    ];
    let filters = ["--", "pool::", "slab::", "aligned::", "scratch::", "allowance::", "guarded::"];
    cargo(
        &[&[toolchain.as_str()][..], &test, &build, &filters].concat(),
        &[("RUSTFLAGS", "-Zsanitizer=address")],
    )
}

/// The installed toolchain for `channel`, if any. Rust without rustup has a single, unnamed toolchain.
fn toolchain(channel: &str) -> Result<Option<String>> {
    let Ok(output) = Command::new("rustup").args(["toolchain", "list"]).output() else {
        return Ok(None);
    };
    let list = String::from_utf8(output.stdout).context("rustup's output is not UTF-8")?;
    Ok(find_toolchain(&list, channel).map(str::to_owned))
}

/// The name in rustup's `list` that is `channel`, `channel-HOST` or `channel.PATCH-HOST`.
fn find_toolchain<'a>(list: &'a str, channel: &str) -> Option<&'a str> {
    let mut names = list.lines().filter_map(|line| line.split_whitespace().next());
    names.find(|name| {
        let rest = name.strip_prefix(channel);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', '.']))
    })
}

/// The host of a toolchain if AddressSanitizer supports it.
fn host(toolchain: &str) -> Result<Option<String>> {
    const SUPPORTED: [&str; 3] =
        ["x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu", "aarch64-apple-darwin"];
    let output = Command::new("rustup")
        .args(["run", toolchain, "rustc", "-vV"])
        .output()
        .context("running rustup")?;
    let version = String::from_utf8(output.stdout).context("rustc's output is not UTF-8")?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.filter(|host| SUPPORTED.contains(host)).map(str::to_owned))
}

fn skipped(reason: &str) -> Result<Outcome> {
    Ok(Outcome::Skipped(reason.to_owned()))
}

/// Runs cargo in the root of the workspace with these variables.
fn cargo(arguments: &[&str], variables: &[(&str, &str)]) -> Result<Outcome> {
    let status =
        command(arguments).envs(variables.iter().copied()).status().context("running cargo")?;
    if !status.success() {
        bail!("`cargo {}`: {status}", arguments.join(" "));
    }
    Ok(Outcome::Passed)
}

/// True if cargo succeeds; discards its output.
fn quiet(arguments: &[&str]) -> Result<bool> {
    let status = command(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .context("running cargo")?;
    Ok(status.success())
}

/// Cargo with the environment of a shell: the variables about xtask's own package, set by the cargo that
/// runs it, confuse some subcommands.
fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new("cargo");
    command.args(arguments).current_dir(workspace_root()).env("PATH", path_with_tools());
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    command
}

/// `PATH` with the folder into which `.ci/run` installs cargo's subcommands.
fn path_with_tools() -> OsString {
    let mut path = workspace_root().join("target/tools/bin").into_os_string();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn toolchains_are_found_by_channel() {
        let list = "stable-x86_64-unknown-linux-gnu (active, default)\n\
            nightly-x86_64-unknown-linux-gnu\n1.90.1-x86_64-unknown-linux-gnu\n";
        let nightly = Some("nightly-x86_64-unknown-linux-gnu");
        assert_eq!(find_toolchain(list, "nightly"), nightly);
        assert_eq!(find_toolchain(list, "1.90"), Some("1.90.1-x86_64-unknown-linux-gnu"));
        assert_eq!(find_toolchain(list, "1.9"), None);
        assert_eq!(find_toolchain("", "nightly"), None);
    }

    #[test]
    fn step_names_are_unique() {
        let mut names = step_names();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), STEPS.len());
    }
}
