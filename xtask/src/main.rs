//! The command line of the maintenance tasks: `cargo xtask <task>`.

use anyhow::Result;
use clap::{Parser, Subcommand};
use xtask::{ci, tidy};

/// Maintenance tasks of mlxcel. A user of mlxcel needs none of them.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Everything that a change must pass, in order; the first failure stops
    Ci(ci::Options),
    /// The invariants of the code base that no compiler checks
    Tidy,
}

fn main() -> Result<()> {
    match Args::parse().task {
        Task::Ci(options) => ci::run(&options),
        Task::Tidy => tidy::run(),
    }
}
