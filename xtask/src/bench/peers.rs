//! Comparison with llama.cpp and mlx-lm, in alternating measurements.

use super::{Arguments, Model, json, median, mlxcel_bench};
use anyhow::{Context, Result};
use mlxcel_testing::paths::workspace_root;
use serde_json::Value;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

/// A test at a prompt length or depth.
#[derive(Clone, Copy)]
enum Test {
    Prefill { tokens: usize },
    Decode { depth: usize },
}

/// Tokens per second in one test, by measurement.
struct Row {
    test: Test,
    ours: Vec<f64>,
    theirs: Vec<f64>,
    /// The peer's version and instruction sets.
    peer: String,
}

/// Runs all tests of one model and formats the record.
pub(super) fn record(
    args: &Arguments,
    python: &Path,
    binary: &Path,
    model: &Model,
) -> Result<String> {
    let rows = tests(args).map(|test| compare(args, python, binary, model, test));
    let rows = rows.collect::<Result<Vec<_>>>()?;
    let mut text = table(model, &rows);
    if args.mlx_lm {
        text.push_str(&mlx_lm(args, python, binary, model)?);
    }
    Ok(text)
}

fn tests(args: &Arguments) -> impl Iterator<Item = Test> + '_ {
    let prefill = args.prompts.iter().map(|&tokens| Test::Prefill { tokens });
    prefill.chain(args.depths.iter().map(|&depth| Test::Decode { depth }))
}

fn compare(
    args: &Arguments,
    python: &Path,
    binary: &Path,
    model: &Model,
    test: Test,
) -> Result<Row> {
    let mut row = Row { test, ours: Vec::new(), theirs: Vec::new(), peer: String::new() };
    for _ in 0..args.rounds {
        row.ours.push(ours(args, binary, model, test)?);
        let theirs = llama_cpp(args, python, model, test)?;
        row.theirs.push(rate(&theirs, test.key())?);
        let version = text(&theirs, "version");
        row.peer = format!("llama-cpp-python {version}: {}", text(&theirs, "system"));
    }
    Ok(row)
}

fn text<'a>(result: &'a Value, key: &str) -> &'a str {
    result.get(key).and_then(Value::as_str).unwrap_or("unknown")
}

fn ours(args: &Arguments, binary: &Path, model: &Model, test: Test) -> Result<f64> {
    let (prompt, decode, depth) = test.sizes(args);
    let mut command = mlxcel_bench(args, binary, model);
    let sizes = [("-p", prompt), ("-n", decode), ("-d", depth), ("-r", 1), ("-t", args.threads)];
    for (flag, value) in sizes {
        command.arg(flag).arg(value.to_string());
    }
    let rows = json(command.arg("--json"))?;
    let rate = rows.get(0).and_then(|row| row.get("tokens_per_second")).and_then(Value::as_f64);
    rate.context("mlxcel bench printed no rate")
}

fn llama_cpp(args: &Arguments, python: &Path, model: &Model, test: Test) -> Result<Value> {
    let (prompt, decode, depth) = test.sizes(args);
    let script = workspace_root().join("xtask/peers/peer_llama_cpp.py");
    let mut command = Command::new(python);
    command.arg(script).arg(&model.config).args(["--type", model.peer_type, "--repetitions", "1"]);
    let sizes = [
        ("--prompt", prompt),
        ("--decode", decode),
        ("--depth", depth),
        ("--threads", args.threads),
    ];
    for (flag, value) in sizes {
        command.arg(flag).arg(value.to_string());
    }
    json(command.args(args.no_mmap.then_some("--no-mmap")))
}

/// Compares with a single measurement of mlx-lm, whose speed makes noise irrelevant.
fn mlx_lm(args: &Arguments, python: &Path, binary: &Path, model: &Model) -> Result<String> {
    let mut command = Command::new(python);
    command.arg(workspace_root().join("xtask/peers/peer_mlx_lm.py")).arg(&model.folder);
    let theirs = json(command.args(["--prompt", "8", "--decode", "2"]))?;
    let mut text = String::new();
    for test in [Test::Prefill { tokens: 8 }, Test::Decode { depth: 0 }] {
        let ours = ours(args, binary, model, test)?;
        let theirs = rate(&theirs, test.key())?;
        writeln!(
            text,
            "- {}: {ours:.1} against mlx-lm's {theirs:.2} tok/s: {:.0}×",
            test.label(),
            ours / theirs
        )?;
    }
    text.push('\n');
    Ok(text)
}

fn rate(result: &Value, key: &str) -> Result<f64> {
    result.get(key).and_then(Value::as_f64).with_context(|| format!("a peer printed no `{key}`"))
}

impl Test {
    /// Prompt tokens, decoded tokens, depth.
    fn sizes(self, args: &Arguments) -> (usize, usize, usize) {
        match self {
            Self::Prefill { tokens } => (tokens, 0, 0),
            Self::Decode { depth } => (0, args.decode, depth),
        }
    }

    fn key(self) -> &'static str {
        match self {
            Self::Prefill { .. } => "pp",
            Self::Decode { .. } => "tg",
        }
    }

    fn label(self) -> String {
        match self {
            Self::Prefill { tokens } => format!("prefill {tokens}"),
            Self::Decode { depth: 0 } => "decode".to_owned(),
            Self::Decode { depth } => format!("decode at depth {depth}"),
        }
    }
}

fn table(model: &Model, rows: &[Row]) -> String {
    let mut text = format!(
        "## {}\n\n| test | mlxcel tok/s | llama.cpp {} tok/s | ratio | ratios by turn |\n|---|---|---|---|---|\n",
        model.label, model.peer_type
    );
    for row in rows {
        let ratios: Vec<f64> = row.ours.iter().zip(&row.theirs).map(|(a, b)| a / b).collect();
        let by_turn: Vec<String> = ratios.iter().map(|r| format!("{r:.2}")).collect();
        let line = format!(
            "| {} | {:.1} | {:.1} | {:.2}× | {} |\n",
            row.test.label(),
            median(&row.ours),
            median(&row.theirs),
            median(&ratios),
            by_turn.join(" ")
        );
        text.push_str(&line);
    }
    if let Some(row) = rows.first() {
        let _ = write!(text, "\n{}\n", row.peer);
    }
    text.push('\n');
    text
}
