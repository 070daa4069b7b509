//! Sizes a model folder: `cargo run -p mlxcel-estimator --example inspect -- DIR [TOKENS] [MEMORY]`.
#![expect(clippy::print_stdout, reason = "an example prints its result")]

use std::path::Path;

use mlxcel_estimator::report::Report;
use mlxcel_estimator::{AvailableSource, Backend, Machine, Workload, parse_bytes, read_dir};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().ok_or("usage: inspect DIR [TOKENS] [MEMORY]")?;
    let tokens = args.next().map_or(Ok(8192), |text| text.parse())?;
    let mut machine = Machine::new(Backend::Cpu);
    if let Some(text) = args.next() {
        machine = machine.with_available(parse_bytes("MEMORY", &text)?, AvailableSource::WhatIf);
    }
    let (spec, weights) = read_dir(Path::new(&dir))?;
    let report = Report::new(&dir, &spec, &weights, &Workload::uniform(tokens, 1), &machine)?;
    print!("{}", report.to_text());
    Ok(())
}
