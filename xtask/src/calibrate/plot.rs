//! The plot: measured over expected peak, by expected peak.

use super::sample::Sample;
use std::fmt::Write as _;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 360.0;
const MARGIN: f64 = 48.0;
/// Ratios at the bottom and the top.
const RATIOS: (f64, f64) = (0.85, 1.15);
const COLOURS: [&str; 6] = ["#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf"];

/// An SVG of `samples`: a dot each, a colour per model, lines at 1 and at ± 5 %.
pub(super) fn render(samples: &[Sample]) -> String {
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n"
    );
    for ratio in [0.90, 0.95, 1.0, 1.05, 1.10] {
        let y = height(ratio);
        let colour = if (0.94..1.06).contains(&ratio) { "#555" } else { "#ccc" };
        let right = WIDTH - MARGIN;
        let _ = writeln!(
            svg,
            "<line x1=\"{MARGIN}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"{colour}\"/>\
             <text x=\"8\" y=\"{:.1}\">{ratio:.2}</text>",
            y + 4.0
        );
    }
    let mut names: Vec<&str> = samples.iter().map(|s| s.name.as_str()).collect();
    names.dedup();
    let widest = samples.iter().map(|s| s.expected).max().unwrap_or(1);
    for sample in samples {
        let colour = colour(&names, &sample.name);
        let x = MARGIN + (WIDTH - 2.0 * MARGIN) * sample.expected as f64 / widest as f64;
        let y = height(sample.ratio());
        let _ = writeln!(
            svg,
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\" fill-opacity=\"0.6\"/>"
        );
    }
    legend(&mut svg, &names);
    let _ = writeln!(
        svg,
        "<text x=\"{MARGIN}\" y=\"{:.0}\">expected peak, 0 to {:.1} GiB; upwards: measured ÷ expected</text>\n</svg>",
        HEIGHT - 10.0,
        widest as f64 / f64::from(1 << 30)
    );
    svg
}

fn legend(svg: &mut String, names: &[&str]) {
    for (i, name) in names.iter().enumerate() {
        let x = MARGIN + 112.0 * i as f64;
        let fill = colour(names, name);
        let _ = writeln!(svg, "<text x=\"{x:.0}\" y=\"20\" fill=\"{fill}\">{name}</text>");
    }
}

fn colour(names: &[&str], name: &str) -> &'static str {
    let at = names.iter().position(|known| *known == name).unwrap_or(0);
    COLOURS[at % COLOURS.len()]
}

/// Where a ratio lies; one outside the plot lies at its edge.
fn height(ratio: f64) -> f64 {
    let (low, high) = RATIOS;
    let share = (ratio.clamp(low, high) - low) / (high - low);
    HEIGHT - MARGIN - share * (HEIGHT - 2.0 * MARGIN)
}
