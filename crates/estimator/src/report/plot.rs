//! Memory against context for every cache mode, with what is available as a line: an SVG.
//!
//! Contexts double from 1024 tokens to the longest that is asked about or that the model was made
//! for; every point is a whole estimate.

use std::fmt::Write as _;

use crate::bytes::format_bytes;
use crate::error::EstimatorError;
use crate::estimate::estimate_total_memory;
use crate::kv::KvMode;
use crate::machine::Machine;
use crate::spec::ModelSpec;
use crate::weights::WeightFootprint;
use crate::workload::Workload;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 440.0;
const LEFT: f64 = 90.0;
const RIGHT: f64 = 150.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 50.0;
/// The shortest context that is drawn.
const FIRST_TOKENS: u64 = 1024;
/// No model was made for more, and a plot needs an end.
const LAST_TOKENS: u64 = 1 << 24;
const COLOURS: [&str; 7] =
    ["#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b"];

/// One mode's totals, in bytes, in the order of the contexts.
struct Curve {
    mode: KvMode,
    totals: Vec<u64>,
}

/// Draws `spec` with `weights` on `machine`; batch, chunk and quantisation are those of `workload`.
/// A mode that the model cannot take has no curve.
///
/// # Errors
/// Sizes beyond 64 bits.
pub fn svg(
    name: &str,
    spec: &ModelSpec,
    weights: &WeightFootprint,
    workload: &Workload,
    machine: &Machine,
) -> Result<String, EstimatorError> {
    let contexts = contexts(workload.context_tokens().max(spec.max_context_tokens.unwrap_or(0)));
    let mut curves = Vec::new();
    for mode in KvMode::ALL {
        let total = |context: &u64| {
            let workload = workload.with_shape(*context, workload.batch()).with_kv_mode(mode);
            estimate_total_memory(spec, weights, &workload, machine).map(|e| e.total_bytes)
        };
        match contexts.iter().map(total).collect() {
            Ok(totals) => curves.push(Curve { mode, totals }),
            Err(EstimatorError::BadValue { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(render(name, &contexts, &curves, machine.available_bytes))
}

/// Powers of two from [`FIRST_TOKENS`] on, and `last`.
fn contexts(last: u64) -> Vec<u64> {
    let last = last.clamp(FIRST_TOKENS.saturating_mul(2), LAST_TOKENS);
    let powers = std::iter::successors(Some(FIRST_TOKENS), |n| n.checked_mul(2));
    powers.take_while(|n| *n < last).chain([last]).collect()
}

fn render(name: &str, contexts: &[u64], curves: &[Curve], available: Option<u64>) -> String {
    let largest = curves.iter().flat_map(|curve| &curve.totals).copied().max().unwrap_or(1);
    // A limit far above every curve would flatten them: it is named, not drawn.
    let limit = available.filter(|bytes| *bytes <= largest.saturating_mul(2));
    let axes = Axes {
        last_tokens: contexts.last().copied().unwrap_or(1),
        most_bytes: largest.max(limit.unwrap_or(0)).max(1) as f64 * 1.05,
    };
    let mut svg = axes.frame(name, contexts);
    if let Some(bytes) = available {
        axes.limit(&mut svg, bytes, limit.is_some());
    }
    for (place, curve) in curves.iter().enumerate() {
        axes.curve(&mut svg, place, contexts, curve);
    }
    svg + "</svg>\n"
}

/// Context to the right, logarithmically; bytes upwards.
struct Axes {
    last_tokens: u64,
    most_bytes: f64,
}

impl Axes {
    fn x(&self, tokens: u64) -> f64 {
        let place = |tokens: u64| (tokens as f64 / FIRST_TOKENS as f64).log2();
        LEFT + (WIDTH - LEFT - RIGHT) * place(tokens) / place(self.last_tokens).max(1.0)
    }

    fn y(&self, bytes: f64) -> f64 {
        HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * bytes / self.most_bytes
    }

    /// Title, grid and labels.
    fn frame(&self, name: &str, contexts: &[u64]) -> String {
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
             font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n\
             <text x=\"{LEFT}\" y=\"22\" font-size=\"15\">{}: memory against context</text>\n",
            escaped(name)
        );
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        for quarter in 0_u8..=4 {
            let bytes = self.most_bytes * f64::from(quarter) / 4.0;
            let y = self.y(bytes);
            let label = label(bytes);
            let _ = writeln!(
                svg,
                "<line x1=\"{LEFT}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#ddd\"/>\
                 <text x=\"8\" y=\"{:.1}\">{label}</text>",
                y + 4.0
            );
        }
        for tokens in contexts {
            let x = self.x(*tokens);
            let label =
                if *tokens >= 1024 { format!("{}k", tokens >> 10) } else { tokens.to_string() };
            let _ = writeln!(
                svg,
                "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{bottom}\" stroke=\"#eee\"/>\
                 <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{label}</text>",
                bottom + 18.0
            );
        }
        let _ = writeln!(svg, "<text x=\"{LEFT}\" y=\"{:.0}\">tokens</text>", HEIGHT - 12.0);
        svg
    }

    fn limit(&self, svg: &mut String, bytes: u64, drawn: bool) {
        let text = format!("available: {}", format_bytes(bytes));
        let right = WIDTH - RIGHT;
        let y = if drawn { self.y(bytes as f64) } else { TOP };
        if drawn {
            let _ = writeln!(
                svg,
                "<line class=\"available\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\" \
                 stroke=\"black\" stroke-width=\"1.5\" stroke-dasharray=\"6 4\"/>"
            );
        }
        let (x, y) = (LEFT + 6.0, y - 5.0);
        let _ = writeln!(svg, "<text x=\"{x:.0}\" y=\"{y:.1}\">{text}</text>");
    }

    fn curve(&self, svg: &mut String, place: usize, contexts: &[u64], curve: &Curve) {
        let colour = COLOURS.get(place).copied().unwrap_or("black");
        let points: Vec<String> = contexts
            .iter()
            .zip(&curve.totals)
            .map(|(tokens, bytes)| format!("{:.1},{:.1}", self.x(*tokens), self.y(*bytes as f64)))
            .collect();
        let (x, y) = (WIDTH - RIGHT + 10.0, TOP + 18.0 * (place as f64 + 1.0));
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\
             <text x=\"{x:.0}\" y=\"{y:.0}\" fill=\"{colour}\">{}</text>",
            points.join(" "),
            curve.mode
        );
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a size that was 64 bits wide before it was drawn"
)]
fn label(bytes: f64) -> String {
    format_bytes(bytes as u64)
}

/// A name as XML text.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::{AvailableSource, Backend};

    const CONFIG: &str = r#"{"model_type": "llama", "hidden_size": 512, "num_hidden_layers": 4,
        "num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 64,
        "intermediate_size": 128, "vocab_size": 1000, "max_position_embeddings": 131072}"#;

    fn plot(config: &str, available: u64) -> String {
        let spec = ModelSpec::from_config(config).unwrap();
        let weights = WeightFootprint::analytical(&spec).unwrap();
        let machine = Machine::new(Backend::Cpu).with_available(available, AvailableSource::WhatIf);
        svg("a<b", &spec, &weights, &Workload::uniform(8192, 1), &machine).unwrap()
    }

    /// The heights at the longest context, in the order of the modes.
    fn ends(svg: &str) -> Vec<f64> {
        let last = |line: &str| line.split('"').nth(1)?.rsplit(',').next()?.parse().ok();
        svg.lines().filter(|line| line.starts_with("<polyline")).filter_map(last).collect()
    }

    #[test]
    fn a_curve_per_mode_and_the_order_of_their_sizes() {
        let svg = plot(CONFIG, 1 << 30);
        assert!(
            svg.contains("a&lt;b") && svg.contains("class=\"available\"") && svg.contains("128k")
        );
        let ends = ends(&svg);
        assert_eq!(ends.len(), 7);
        // y grows downwards: fp16 takes more than int8, that more than turbo4.
        assert!(ends[0] < ends[1] && ends[1] < ends[5], "{ends:?}");
    }

    #[test]
    fn a_mode_that_cannot_be_has_no_curve_and_a_far_limit_no_line() {
        let odd = CONFIG.replace("\"head_dim\": 64", "\"head_dim\": 80");
        let svg = plot(&odd, 1 << 50);
        assert_eq!(ends(&svg).len(), 2, "fp16 and int8");
        assert!(!svg.contains("class=\"available\"") && svg.contains("available: "));
    }

    #[test]
    fn contexts_double_up_to_the_last() {
        assert_eq!(contexts(5000), [1024, 2048, 4096, 5000]);
        assert_eq!(contexts(0), [1024, 2048]);
        assert_eq!(contexts(u64::MAX).last(), Some(&LAST_TOKENS));
    }
}
