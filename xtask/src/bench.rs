//! `cargo xtask bench`: this project beside its peers, in one run, on the same shapes and threads.
//!
//! Random-weights checkpoints of `benches/shapes/*.json` are made once; then the built `mlxcel` and
//! llama.cpp (and mlx-lm on request) take turns, and medians and ratios go to
//! `benches/record/<machine>/<date>.md`. Only ratios within one run mean anything: the machines
//! that this runs on are shared, and their bandwidth changes by the minute.

use crate::paths::workspace_root;
use crate::synth::{self, Dtype, Options, Weights};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Command-line options of `cargo xtask bench`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Compare with the peers in this Python (llama-cpp-python, gguf, mlx-lm installed)
    #[arg(long, value_name = "PYTHON")]
    peers: PathBuf,
    /// Shapes of benches/shapes, with `:4` (affine 4-bit against Q4_0) or `:16` (bf16 against F16)
    #[arg(long, value_delimiter = ',', default_value = "llama-3.2-1b:4,qwen2.5-0.5b:4")]
    models: Vec<String>,
    /// Prompt lengths
    #[arg(long, value_delimiter = ',', default_value = "512,16")]
    prompts: Vec<usize>,
    /// Tokens in the cache before decoding
    #[arg(long, value_delimiter = ',', default_value = "0")]
    depths: Vec<usize>,
    /// Decoded tokens per measurement
    #[arg(long, default_value_t = 24)]
    decode: usize,
    /// CPU threads of everybody
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Turns that each takes
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Time mlx-lm too: minutes, since its CPU kernels are a reference
    #[arg(long)]
    mlx_lm: bool,
    /// Name of this machine in benches/record
    #[arg(long, default_value = "linux-x86_64-2core")]
    machine: String,
    /// Date of the record, as YYYY-MM-DD
    #[arg(long)]
    date: String,
}

/// A shape in a storage format.
struct Model {
    label: String,
    config: PathBuf,
    folder: PathBuf,
    peer_type: &'static str,
}

/// What is compared: a test at a prompt length or depth.
#[derive(Clone, Copy)]
enum Test {
    Prefill { tokens: usize },
    Decode { depth: usize },
}

/// Tokens per second of one test, by turn.
struct Row {
    test: Test,
    ours: Vec<f64>,
    theirs: Vec<f64>,
    /// What the peer says of its build: version and instruction sets.
    peer: String,
}

/// Runs the comparison and writes the record.
///
/// # Errors
/// A release `mlxcel` that is not built, a Python without the peers, a run that fails.
pub fn run(args: &Arguments) -> Result<()> {
    let binary = workspace_root().join("target/release/mlxcel");
    if !binary.exists() {
        bail!("{} is not built: cargo build --release -p cli", binary.display());
    }
    let mut text = heading(args)?;
    for name in &args.models {
        let model = Model::prepare(name)?;
        let rows = tests(args).map(|test| compare(args, &binary, &model, test));
        let rows = rows.collect::<Result<Vec<_>>>()?;
        text.push_str(&table(&model, &rows));
        if args.mlx_lm {
            text.push_str(&mlx_lm(args, &binary, &model)?);
        }
        eprintln!("{}", table(&model, &rows));
    }
    save(args, &text)
}

fn tests(args: &Arguments) -> impl Iterator<Item = Test> + '_ {
    let prefill = args.prompts.iter().map(|&tokens| Test::Prefill { tokens });
    prefill.chain(args.depths.iter().map(|&depth| Test::Decode { depth }))
}

impl Model {
    fn prepare(name: &str) -> Result<Self> {
        let (shape, bits) = name.split_once(':').unwrap_or((name, "4"));
        let config = workspace_root().join(format!("benches/shapes/{shape}.json"));
        let (weights, peer_type) = match bits {
            "4" => (Weights::Affine { bits: 4, group_size: 64, scales: Dtype::Bf16 }, "q4_0"),
            "16" => (Weights::Plain(Dtype::Bf16), "f16"),
            other => bail!("`{name}`: {other} bits are not compared (4 or 16)"),
        };
        let folder = workspace_root().join(format!("target/bench-models/{shape}-{bits}"));
        if !folder.join("config.json").exists() {
            synth::checkpoint(&synth::read_config(&config)?, &Options::new(weights), &folder)?;
        }
        Ok(Self { label: format!("{shape}, {bits} bits"), config, folder, peer_type })
    }
}

fn compare(args: &Arguments, binary: &Path, model: &Model, test: Test) -> Result<Row> {
    let mut row = Row { test, ours: Vec::new(), theirs: Vec::new(), peer: String::new() };
    for _ in 0..args.rounds {
        row.ours.push(ours(args, binary, model, test)?);
        let theirs = llama_cpp(args, model, test)?;
        row.theirs.push(rate(&theirs, test.key())?);
        let text = |key: &str| theirs.get(key).and_then(Value::as_str).unwrap_or("unknown");
        row.peer = format!("llama-cpp-python {}: {}", text("version"), text("system"));
    }
    Ok(row)
}

fn ours(args: &Arguments, binary: &Path, model: &Model, test: Test) -> Result<f64> {
    let (prompt, decode, depth) = test.sizes(args);
    let mut command = Command::new(binary);
    command.arg("bench").arg("-m").arg(&model.folder);
    let sizes = [("-p", prompt), ("-n", decode), ("-d", depth), ("-r", 1), ("-t", args.threads)];
    for (flag, value) in sizes {
        command.arg(flag).arg(value.to_string());
    }
    let rows = json(command.arg("--json"))?;
    let rate = rows.get(0).and_then(|row| row.get("tokens_per_second")).and_then(Value::as_f64);
    rate.context("mlxcel bench printed no rate")
}

fn llama_cpp(args: &Arguments, model: &Model, test: Test) -> Result<Value> {
    let (prompt, decode, depth) = test.sizes(args);
    let script = workspace_root().join("xtask/peers/peer_llama_cpp.py");
    let mut command = Command::new(&args.peers);
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
    json(&mut command)
}

/// One turn of each beside mlx-lm, which is slow enough for that.
fn mlx_lm(args: &Arguments, binary: &Path, model: &Model) -> Result<String> {
    let mut command = Command::new(&args.peers);
    command.arg(workspace_root().join("xtask/peers/peer_mlx_lm.py")).arg(&model.folder);
    let theirs = json(command.args(["--prompt", "8", "--decode", "2"]))?;
    let mut text = String::new();
    for test in [Test::Prefill { tokens: 8 }, Test::Decode { depth: 0 }] {
        let (ours, theirs) = (ours(args, binary, model, test)?, rate(&theirs, test.key())?);
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

fn json(command: &mut Command) -> Result<Value> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    serde_json::from_slice(&output.stdout).with_context(|| format!("{command:?} printed no JSON"))
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn table(model: &Model, rows: &[Row]) -> String {
    let mut text = format!(
        "## {}\n\n| test | mlxcel tok/s | llama.cpp {} tok/s | ratio | ratios by turn |\n|---|---|---|---|---|\n",
        model.label, model.peer_type
    );
    for row in rows {
        let ratios: Vec<f64> = row.ours.iter().zip(&row.theirs).map(|(a, b)| a / b).collect();
        let by_turn: Vec<String> = ratios.iter().map(|r| format!("{r:.2}")).collect();
        let (ours, theirs) = (median(&row.ours), median(&row.theirs));
        let line = format!(
            "| {} | {ours:.1} | {theirs:.1} | {:.2}× | {} |\n",
            row.test.label(),
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

fn heading(args: &Arguments) -> Result<String> {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let isa =
        std::env::var("MLXCEL_ISA").map_or(String::new(), |isa| format!(" MLXCEL_ISA={isa}."));
    let commit = Command::new("git").args(["rev-parse", "--short", "HEAD"]).output()?;
    Ok(format!(
        "# {} on {}\n\nCPU: {}, {} threads.{isa} Commit {}. Medians of {} alternating turns, whole processes.\n\
         Command: `cargo xtask bench --peers PYTHON --models {} --prompts {} --depths {} --decode {} --date {}`\n\n",
        args.date,
        args.machine,
        cpu.map_or("unknown", |(_, name)| name),
        args.threads,
        String::from_utf8_lossy(&commit.stdout).trim(),
        args.rounds,
        args.models.join(","),
        list(&args.prompts),
        list(&args.depths),
        args.decode,
        args.date,
    ))
}

fn list(numbers: &[usize]) -> String {
    numbers.iter().map(usize::to_string).collect::<Vec<_>>().join(",")
}

fn save(args: &Arguments, text: &str) -> Result<()> {
    let folder = workspace_root().join("benches/record").join(&args.machine);
    std::fs::create_dir_all(&folder)?;
    let path = folder.join(format!("{}.md", args.date));
    let earlier = std::fs::read_to_string(&path).unwrap_or_default();
    std::fs::write(&path, format!("{earlier}{text}"))?;
    eprintln!("added to {}", path.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        assert!(median(&[]).is_nan());
    }
}
