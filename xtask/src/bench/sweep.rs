//! Comparison of all KV cache modes with fp16, at several depths, in alternating measurements.

use super::{Arguments, Model, json, median, mlxcel_bench};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

/// A mode and its size.
struct Mode {
    name: String,
    bytes_per_token: u64,
}

/// Tokens per second of a mode at a depth, by measurement.
#[derive(Default)]
struct Speeds {
    prefill: Vec<f64>,
    decode: Vec<f64>,
}

/// Measures all modes and depths of one model and formats the record.
pub(super) fn record(args: &Arguments, binary: &Path, model: &Model) -> Result<String> {
    let [prompt] = args.prompts[..] else { bail!("a sweep takes one prompt length") };
    let modes = modes(binary, model)?;
    let mut text = format!("## {}: KV cache modes\n\n", model.label);
    for &depth in &args.depths {
        let mut speeds: Vec<Speeds> = modes.iter().map(|_| Speeds::default()).collect();
        for _ in 0..args.rounds {
            for (mode, speeds) in modes.iter().zip(&mut speeds) {
                let mut command = mlxcel_bench(args, binary, model);
                command.args(["--kv-cache-mode", &mode.name]);
                let (prefill, decode) = measure(args, command, prompt, depth)?;
                speeds.prefill.push(prefill);
                speeds.decode.push(decode);
            }
        }
        text.push_str(&table(prompt, depth, &modes, &speeds));
    }
    Ok(text)
}

/// The modes that the model supports, fp16 first, from the estimator.
fn modes(binary: &Path, model: &Model) -> Result<Vec<Mode>> {
    let mut command = Command::new(binary);
    let report = json(command.arg("inspect").arg("-m").arg(&model.folder).arg("--json"))?;
    let modes = report.get("kv_modes").and_then(Value::as_array);
    let modes = modes.context("mlxcel inspect printed no `kv_modes`")?;
    modes
        .iter()
        .map(|mode| Mode::parse(mode).with_context(|| format!("not a KV cache mode: {mode}")))
        .collect()
}

impl Mode {
    fn parse(mode: &Value) -> Option<Self> {
        Some(Self {
            name: mode.get("mode")?.as_str()?.to_owned(),
            bytes_per_token: mode.get("kv_bytes_per_token")?.as_u64()?,
        })
    }
}

/// Measures prefill and decode in one process; tokens per second.
fn measure(
    args: &Arguments,
    mut command: Command,
    prompt: usize,
    depth: usize,
) -> Result<(f64, f64)> {
    let sizes =
        [("-p", prompt), ("-n", args.decode), ("-d", depth), ("-r", 1), ("-t", args.threads)];
    for (flag, value) in sizes {
        command.arg(flag).arg(value.to_string());
    }
    let rows = json(command.arg("--json"))?;
    Ok((rate(&rows, 0)?, rate(&rows, 1)?))
}

fn rate(rows: &Value, index: usize) -> Result<f64> {
    let rate = rows.get(index).and_then(|row| row.get("tokens_per_second"));
    rate.and_then(Value::as_f64).context("mlxcel bench printed no rate")
}

fn table(prompt: usize, depth: usize, modes: &[Mode], speeds: &[Speeds]) -> String {
    let mut text = format!(
        "At depth {depth}:\n\n| mode | KV bytes per token | prefill {prompt}, tok/s | of fp16 | decode, tok/s | of fp16 |\n|---|---|---|---|---|---|\n"
    );
    for (mode, own) in modes.iter().zip(speeds) {
        let first = speeds.first().unwrap_or(own);
        let line = format!(
            "| {} | {} | {:.1} | {:.2}× | {:.1} | {:.2}× |\n",
            mode.name,
            mode.bytes_per_token,
            median(&own.prefill),
            ratio(&own.prefill, &first.prefill),
            median(&own.decode),
            ratio(&own.decode, &first.decode),
        );
        text.push_str(&line);
    }
    text.push('\n');
    text
}

/// The median of the ratios of consecutive measurements, which saw the same load on the machine.
fn ratio(own: &[f64], first: &[f64]) -> f64 {
    median(&own.iter().zip(first).map(|(own, first)| own / first).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_compare_consecutive_measurements() {
        // A machine that slows down: twice as fast in each of three measurements.
        assert!((ratio(&[8.0, 4.0, 2.0], &[4.0, 2.0, 1.0]) - 2.0).abs() < f64::EPSILON);
        // The ratio of the medians would be 1.
        assert!((ratio(&[8.0, 4.0, 2.0], &[2.0, 8.0, 1.0]) - 2.0).abs() < f64::EPSILON);
    }
}
