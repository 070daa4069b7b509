//! Advice about a folder or a `config.json`:
//! `cargo run -p mlxcel-advisor --example advise -- PATH [TOKENS [MEMORY [MEASUREMENTS.json]]]`.
#![expect(clippy::print_stdout, reason = "an example prints")]

use std::path::Path;

use mlxcel_advisor::{Measurements, advise};
use mlxcel_estimator::{AvailableSource, Backend, Machine, Workload, parse_bytes, read_dir};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let path = arguments.first().map_or(".", String::as_str);
    let context = arguments.get(1).map_or("8192", String::as_str).parse()?;
    let memory = arguments.get(2).map_or("24GiB", String::as_str);
    let available = parse_bytes("MEMORY", memory)?;
    let found = arguments.get(3).map(std::fs::read_to_string).transpose()?;
    let found = found.map(|text| Measurements::from_json(&text)).transpose()?;
    let (spec, weights) = read_dir(Path::new(path))?;
    let machine = Machine::new(Backend::Metal).with_available(available, AvailableSource::WhatIf);
    let workload = Workload::uniform(context, 1);
    let advice = advise(&spec, &weights, &machine, &workload, found.as_ref())?;
    println!("{}", advice.named(path).to_text());
    Ok(())
}
