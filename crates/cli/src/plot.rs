//! `inspect --plot`: memory against context for every KV cache mode, with the available memory as a line.

use anyhow::{Result, anyhow};
use mlxcel_estimator::format_bytes;
use mlxcel_estimator::report::{Curves, FIRST_TOKENS};
use plotters::prelude::*;

const SIZE: (u32, u32) = (820, 480);
/// Largest multiple of the largest total at which the available memory is drawn. Beyond it, the line
/// would flatten every curve, so only the title states it.
const MAX_LIMIT_RATIO: u64 = 2;

/// Renders `curves` as SVG, titled with the model's name.
pub(crate) fn svg(name: &str, curves: &Curves, available: Option<u64>) -> Result<String> {
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        draw(&area, name, curves, available)
            .map_err(|error| anyhow!("cannot draw the plot: {error}"))?;
    }
    Ok(text)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type Drawn = Result<(), Box<dyn std::error::Error>>;

fn draw(area: &Area<'_>, name: &str, curves: &Curves, available: Option<u64>) -> Drawn {
    area.fill(&WHITE)?;
    let largest = curves.largest_bytes().max(1);
    let limit = available.filter(|bytes| *bytes <= largest.saturating_mul(MAX_LIMIT_RATIO));
    let last = curves.contexts.last().copied().unwrap_or(FIRST_TOKENS) as f64;
    let most = largest.max(limit.unwrap_or(0)) as f64 * 1.05;
    let title = match available {
        Some(bytes) => format!("{name}: memory by context; available: {}", format_bytes(bytes)),
        None => format!("{name}: memory by context"),
    };
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 17))
        .margin(14)
        .x_label_area_size(42)
        .y_label_area_size(86)
        .build_cartesian_2d((FIRST_TOKENS as f64..last).log_scale().base(2.0), 0.0..most)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .x_labels(curves.contexts.len())
        .x_label_formatter(&|tokens| tokens_label(*tokens))
        .x_desc("tokens of context")
        .y_label_formatter(&|bytes| bytes_label(*bytes))
        .draw()?;
    for (place, (mode, totals)) in curves.modes.iter().enumerate() {
        let style = Palette99::pick(place).stroke_width(2);
        let points = curves.contexts.iter().zip(totals).map(|(t, b)| (*t as f64, *b as f64));
        chart
            .draw_series(LineSeries::new(points, style))?
            .label(mode.name())
            .legend(move |place| legend_line(place, style));
    }
    if let Some(bytes) = limit {
        let ends = [FIRST_TOKENS as f64, last].map(|tokens| (tokens, bytes as f64));
        let style = BLACK.stroke_width(2);
        chart
            .draw_series(DashedLineSeries::new(ends, 7, 5, style))?
            .label("available")
            .legend(move |place| legend_line(place, style));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.2))
        .draw()?;
    area.present()?;
    Ok(())
}

/// The sample of a line in the legend, which starts at `place`.
fn legend_line(place: (i32, i32), style: ShapeStyle) -> PathElement<(i32, i32)> {
    let (x, y) = place;
    PathElement::new([(x, y), (x + 18, y)], style)
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a token count")]
fn tokens_label(tokens: f64) -> String {
    let tokens = tokens.round() as u64;
    if tokens >= 1024 { format!("{}k", tokens >> 10) } else { tokens.to_string() }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a size in bytes")]
fn bytes_label(bytes: f64) -> String {
    format_bytes(bytes as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mlxcel_estimator::KvMode;

    fn plot(available: u64) -> String {
        let contexts: Vec<u64> = (10..=17).map(|power| 1 << power).collect();
        let totals = |bytes_per_token: u64| contexts.iter().map(|t| t * bytes_per_token).collect();
        let modes = vec![(KvMode::Fp16, totals(65_536)), (KvMode::Int8, totals(32_768))];
        svg("a<b", &Curves { contexts, modes }, Some(available)).unwrap()
    }

    #[test]
    fn plots_a_line_per_mode_and_one_for_available_memory() {
        let near = plot(4 << 30);
        for word in ["a&lt;b", "fp16", "int8", "128k", "available"] {
            assert!(near.contains(word), "no {word} in {near}");
        }
        let far = plot(1 << 50);
        let has_line = |svg: &str| svg.lines().any(|line| line.trim() == "available");
        assert!(has_line(&near) && !has_line(&far) && far.contains("available: "), "{far}");
    }
}
