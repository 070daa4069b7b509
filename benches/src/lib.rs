//! Benchmarks; each is a file of `benches/`.
