//! Prints a model's tensors: `cargo run -p mlxcel-estimator --example inventory -- config.json`.
#![expect(clippy::print_stdout, reason = "an example prints its result")]

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("usage: inventory config.json")?;
    let mut total = 0_u64;
    for tensor in mlxcel_estimator::tensors(&std::fs::read_to_string(path)?)? {
        let quantised = if tensor.is_quantisable() { "quantisable" } else { "" };
        println!("{}\t{:?}\t{}\t{quantised}", tensor.name, tensor.shape, tensor.count);
        total = total.checked_add(tensor.parameters()?).ok_or("more than 2^64 elements")?;
    }
    println!("{total} parameters");
    Ok(())
}
