//! Plot of measured over estimated peaks, against the estimated peak.

use super::sample::Sample;
use anyhow::{Result, anyhow};
use plotters::prelude::*;

const SIZE: (u32, u32) = (820, 420);
/// Range of the ratios; values outside are drawn at the edge.
const RATIOS: (f64, f64) = (0.90, 1.10);
/// Target: within 5 %.
const BAND: [f64; 3] = [0.95, 1.0, 1.05];
const GIB: f64 = (1_u64 << 30) as f64;

/// Renders `samples` as SVG: one dot each, one colour per model, lines at 1 and ± 5 %.
pub(super) fn render(samples: &[Sample]) -> Result<String> {
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        draw(&area, samples).map_err(|e| anyhow!("cannot draw the plot: {e}"))?;
    }
    Ok(text)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn draw(area: &Area<'_>, samples: &[Sample]) -> Result<(), Box<dyn std::error::Error>> {
    area.fill(&WHITE)?;
    let largest = samples.iter().map(|s| s.expected).max().unwrap_or(1) as f64 / GIB * 1.02;
    let mut chart = ChartBuilder::on(area)
        .caption("measured over estimated peak", ("sans-serif", 17))
        .margin(14)
        .x_label_area_size(42)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..largest, RATIOS.0..RATIOS.1)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .x_desc("estimated peak, GiB")
        .y_label_formatter(&|ratio| format!("{ratio:.2}"))
        .draw()?;
    for ratio in BAND {
        chart.draw_series(LineSeries::new([(0.0, ratio), (largest, ratio)], BLACK.mix(0.6)))?;
    }
    let mut names: Vec<&str> = samples.iter().map(|s| s.name.as_str()).collect();
    names.dedup();
    for (place, name) in names.iter().enumerate() {
        let style = Palette99::pick(place).mix(0.6).filled();
        let dots = samples.iter().filter(|s| s.name == *name).map(|sample| {
            let ratio = sample.ratio().clamp(RATIOS.0, RATIOS.1);
            Circle::new((sample.expected as f64 / GIB, ratio), 3, style)
        });
        chart.draw_series(dots)?.label(*name).legend(move |at| Circle::new(at, 4, style));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.2))
        .draw()?;
    area.present()?;
    Ok(())
}
