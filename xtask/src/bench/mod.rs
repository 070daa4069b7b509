//! `cargo xtask bench`: benchmarks of whole models with random weights, recorded in the repository.
//!
//! Checkpoints of `benches/shapes/*.json` are created once. With `--peers`, the built `mlxcel` alternates
//! with llama.cpp (and mlx-lm on request); with `--kv-sweep`, its KV cache modes alternate. Medians and
//! ratios go to `benches/record/<machine>/<date>.md`. Only ratios within a run are comparable: on shared
//! machines, memory bandwidth changes from minute to minute.

mod peers;
mod sweep;

use anyhow::{Context, Result, bail};
use mlxcel_testing::paths::workspace_root;
use mlxcel_testing::synth::{self, Dtype, Options, Weights};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Command-line options of `cargo xtask bench`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Compare with the peers installed in this Python (llama-cpp-python, gguf, mlx-lm)
    #[arg(long, value_name = "PYTHON", required_unless_present = "kv_sweep")]
    peers: Option<PathBuf>,
    /// Compare KV cache modes: prefill and decode at each depth
    #[arg(long, conflicts_with = "peers")]
    kv_sweep: bool,
    /// Shapes in benches/shapes, with `:4` (affine 4-bit against Q4_0) or `:16` (bf16 against F16)
    #[arg(long, value_delimiter = ',', default_value = "llama-3.2-1b:4,qwen2.5-0.5b:4")]
    models: Vec<String>,
    /// Prompt lengths; a sweep takes one and measures it at every depth
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "512,16",
        default_value_if("kv_sweep", "true", "128")
    )]
    prompts: Vec<usize>,
    /// Tokens in the KV cache before decoding
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "0",
        default_value_if("kv_sweep", "true", "4096,16384,32768")
    )]
    depths: Vec<usize>,
    /// Decoded tokens per measurement
    #[arg(long, default_value_t = 24)]
    decode: usize,
    /// CPU threads of each program
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Measurements of each program or mode, in alternation
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Also measure mlx-lm, which takes minutes: its CPU kernels are a reference
    #[arg(long, conflicts_with = "kv_sweep")]
    mlx_lm: bool,
    /// Read weights into memory instead of mapping them, in each program
    #[arg(long)]
    no_mmap: bool,
    /// Name of this machine in benches/record
    #[arg(long, default_value = "linux-x86_64-2core")]
    machine: String,
    /// Date of the record, as YYYY-MM-DD
    #[arg(long)]
    date: String,
}

/// A benchmarked model: a shape in a storage format.
struct Model {
    label: String,
    config: PathBuf,
    folder: PathBuf,
    peer_type: &'static str,
}

/// Runs the benchmarks and writes the record.
///
/// # Errors
/// A missing release build of `mlxcel`, a Python without the peers, or a failed run.
pub(crate) fn run(args: &Arguments) -> Result<()> {
    let binary = workspace_root().join("target/release/mlxcel");
    if !binary.exists() {
        bail!("{} is not built: cargo build --release -p cli", binary.display());
    }
    let opening = heading(args)?;
    for (index, name) in args.models.iter().enumerate() {
        let model = Model::prepare(name)?;
        let record = match &args.peers {
            Some(python) => peers::record(args, python, &binary, &model)?,
            None => sweep::record(args, &binary, &model)?,
        };
        eprintln!("{record}");
        // Saved after each model, because a run takes many minutes.
        let opening = if index == 0 { opening.as_str() } else { "" };
        save(args, &format!("{opening}{record}"))?;
    }
    Ok(())
}

impl Model {
    fn prepare(name: &str) -> Result<Self> {
        let (shape, bits) = name.split_once(':').unwrap_or((name, "4"));
        let config = workspace_root().join(format!("benches/shapes/{shape}.json"));
        let (weights, peer_type) = match bits {
            "4" => (Weights::Affine { bits: 4, group_size: 64, scales: Dtype::Bf16 }, "q4_0"),
            "16" => (Weights::Plain(Dtype::Bf16), "f16"),
            other => bail!("`{name}`: {other} bits; only 4 and 16 can be compared"),
        };
        let folder = workspace_root().join(format!("target/bench-models/{shape}-{bits}"));
        if !folder.join("config.json").exists() {
            synth::checkpoint(&synth::read_config(&config)?, &Options::new(weights), &folder)?;
        }
        Ok(Self { label: format!("{shape}, {bits} bits"), config, folder, peer_type })
    }
}

/// The command `mlxcel bench` for `model`.
fn mlxcel_bench(args: &Arguments, binary: &Path, model: &Model) -> Command {
    let mut command = Command::new(binary);
    command.arg("bench").arg("-m").arg(&model.folder);
    command.args(args.no_mmap.then_some("--no-mmap"));
    command
}

fn json(command: &mut Command) -> Result<Value> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    serde_json::from_slice(&output.stdout)
        .with_context(|| format!("{command:?} printed invalid JSON"))
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn heading(args: &Arguments) -> Result<String> {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let isa =
        std::env::var("MLXCEL_ISA").map_or(String::new(), |isa| format!(" MLXCEL_ISA={isa}."));
    let commit = Command::new("git").args(["rev-parse", "--short", "HEAD"]).output()?;
    Ok(format!(
        "# {} on {}\n\nCPU: {}, {} threads.{isa} Commit {}. Medians of {} alternating turns, whole processes.\n\
         Command: `cargo xtask bench {}{} --models {} --prompts {} --depths {} --decode {} --date {}`\n\n",
        args.date,
        args.machine,
        cpu.map_or("unknown", |(_, name)| name),
        args.threads,
        String::from_utf8_lossy(&commit.stdout).trim(),
        args.rounds,
        if args.kv_sweep { "--kv-sweep" } else { "--peers PYTHON" },
        if args.no_mmap { " --no-mmap" } else { "" },
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

    #[derive(clap::Parser)]
    struct Parsed {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn parsed(line: &str) -> Result<Arguments, clap::Error> {
        let words = line.split_whitespace();
        <Parsed as clap::Parser>::try_parse_from(words).map(|parsed| parsed.arguments)
    }

    #[test]
    fn a_sweep_has_its_own_defaults_and_no_peers() {
        let sweep = parsed("bench --kv-sweep --date d").unwrap();
        assert_eq!((sweep.prompts, sweep.depths), (vec![128], vec![4096, 16384, 32768]));
        let peers = parsed("bench --peers python --date d").unwrap();
        assert_eq!((peers.prompts, peers.depths), (vec![512, 16], vec![0]));
        for line in ["", "--kv-sweep --peers python", "--kv-sweep --mlx-lm"] {
            assert!(parsed(&format!("bench --date d {line}")).is_err(), "{line}");
        }
    }

    #[test]
    fn the_median_is_the_middle() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        assert!(median(&[]).is_nan());
    }
}
