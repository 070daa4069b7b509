//! Sizes the model folder that the command line names.

use mlxcel_estimator::{AvailableSource, Backend, Machine, Workload, estimate_dir, verdict};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = std::env::args().nth(1).ok_or("usage: embedder DIR")?;
    let machine = Machine::new(Backend::Cpu).with_available(512 << 20, AvailableSource::WhatIf);
    let estimate = estimate_dir(dir.as_ref(), &Workload::uniform(14, 1), &machine)?;
    println!("{}", verdict(&estimate));
    Ok(())
}
