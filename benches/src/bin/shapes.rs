//! Times the matrix products of a whole model: one token (decode) and a prompt (prefill),
//! next to the read bandwidth and the arithmetic peak of the same run.
#![expect(clippy::print_stdout, reason = "a report for people")]
#![expect(clippy::cast_precision_loss, reason = "sizes far below 2^52")]

use anyhow::{Result, bail};
use clap::{Parser, ValueEnum};
use mlxcel_benches::{LLAMA_1B, Matrix, QWEN_05B, Shape, Storage, median_seconds};
use mlxcel_kernels::elementwise::Glu;
use mlxcel_kernels::matmul::{GatedPair, Precision, matmul, matmul_glu};
use mlxcel_kernels::probe::{Peak, multiply_adds_per_second, read_seconds};
use mlxcel_kernels::{AlignedBuf, FloatType, Pool};

/// Times the matrix products of a model's shape.
#[derive(Parser)]
struct Args {
    /// `llama-1b` or `qwen-0.5b`.
    #[arg(long, default_value = "llama-1b")]
    shape: String,
    /// Bits per weight; 16 is bf16.
    #[arg(long, default_value_t = 4)]
    bits: u32,
    /// Quantisation group size.
    #[arg(long, default_value_t = 64)]
    group: usize,
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Prompt lengths.
    #[arg(long, value_delimiter = ',', default_value = "16,512")]
    prompts: Vec<usize>,
    #[arg(long, value_enum, value_delimiter = ',', default_value = "int8,exact")]
    precision: Vec<Activations>,
    /// Leave out decoding.
    #[arg(long)]
    no_decode: bool,
    /// Measurements per figure.
    #[arg(long, default_value_t = 7)]
    times: usize,
}

#[derive(Clone, Copy, ValueEnum)]
enum Activations {
    Exact,
    Int16,
    Mixed,
    Int8,
}

struct Layer {
    q: Matrix,
    k: Matrix,
    v: Matrix,
    o: Matrix,
    gate: Matrix,
    up: Matrix,
    down: Matrix,
}

impl Layer {
    fn random(shape: Shape, storage: Storage) -> Result<Self> {
        let Shape { hidden, kv, intermediate, .. } = shape;
        Ok(Self {
            q: Matrix::random(hidden, hidden, storage)?,
            k: Matrix::random(kv, hidden, storage)?,
            v: Matrix::random(kv, hidden, storage)?,
            o: Matrix::random(hidden, hidden, storage)?,
            gate: Matrix::random(intermediate, hidden, storage)?,
            up: Matrix::random(intermediate, hidden, storage)?,
            down: Matrix::random(hidden, intermediate, storage)?,
        })
    }
}

struct Model {
    shape: Shape,
    layers: Vec<Layer>,
    head: Matrix,
}

impl Model {
    fn new(shape: Shape, storage: Storage) -> Result<Self> {
        let layers = (0..shape.layers).map(|_| Layer::random(shape, storage));
        Ok(Self {
            shape,
            layers: layers.collect::<Result<_>>()?,
            head: Matrix::random(shape.vocabulary, shape.hidden, storage)?,
        })
    }

    /// Weights of all layers and of the head, and bytes of both.
    fn size(&self) -> Result<[(usize, usize); 2]> {
        let mut layers = (0, 0);
        for l in &self.layers {
            for matrix in [&l.q, &l.k, &l.v, &l.o, &l.gate, &l.up, &l.down] {
                let view = matrix.view()?;
                layers = (layers.0 + view.rows() * view.cols(), layers.1 + view.bytes());
            }
        }
        let head = self.head.view()?;
        Ok([layers, (head.rows() * head.cols(), head.bytes())])
    }

    /// All products of a forward pass of `tokens` tokens; the head sees the last one.
    fn forward(&self, pool: &Pool, tokens: usize, precision: Precision) -> Result<()> {
        let Shape { hidden, kv, intermediate, vocabulary, .. } = self.shape;
        let x: Vec<f32> = (0..tokens * hidden).map(|i| (i % 97) as f32 * 0.02 - 1.0).collect();
        let mut q = x.clone();
        let mut k = vec![0.0; tokens * kv];
        let mut v = vec![0.0; tokens * kv];
        let mut out = x.clone();
        let mut wide = vec![0.0; tokens * intermediate];
        for l in &self.layers {
            let qkv = [l.q.view()?, l.k.view()?, l.v.view()?];
            matmul(pool, &x, &qkv, &mut [&mut q, &mut k, &mut v], precision)?;
            matmul(pool, &x, &[l.o.view()?], &mut [&mut out], precision)?;
            let gate = l.gate.view()?;
            let pair = GatedPair { gate, up: l.up.view()?, activation: Glu::Silu };
            matmul_glu(pool, &x, pair, &mut wide, precision)?;
            matmul(pool, &wide, &[l.down.view()?], &mut [&mut out], precision)?;
        }
        let mut logits = vec![0.0; vocabulary];
        let last = &x[(tokens - 1) * hidden..];
        matmul(pool, last, &[self.head.view()?], &mut [&mut logits], precision)?;
        Ok(())
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    let Some(shape) = [LLAMA_1B, QWEN_05B].into_iter().find(|s| s.name == args.shape) else {
        bail!("--shape {} is neither llama-1b nor qwen-0.5b", args.shape);
    };
    let storage = match args.bits {
        16 => Storage::Dense(FloatType::Bf16),
        bits => Storage::Affine { bits, group: args.group },
    };
    let pool = Pool::new(args.threads)?;
    let model = Model::new(shape, storage)?;
    println!("{} {storage:?} on {} threads of {:?}", shape.name, pool.threads(), pool.cpu());
    let data = AlignedBuf::zeroed_huge(512 << 20)?;
    let rates = (0..5).map(|_| data.len() as f64 / read_seconds(&pool, data.bytes()) / 1e9);
    let bandwidth = rates.fold(0.0, f64::max);
    let int8 = multiply_adds_per_second(&pool, Peak::Int8) / 1e9;
    let float = multiply_adds_per_second(&pool, Peak::F32) / 1e9;
    println!("read {bandwidth:.1} GB/s, int8 {int8:.0} GMAC/s, f32 {float:.0} GMAC/s");
    for activations in args.precision {
        let (name, precision) = match activations {
            Activations::Exact => ("exact", Precision::Exact),
            Activations::Int16 => ("int16", Precision::Int16),
            Activations::Mixed => ("mixed", Precision::Mixed),
            Activations::Int8 => ("int8", Precision::Int8),
        };
        if !args.no_decode {
            report_decode(&pool, &model, name, precision, bandwidth, args.times)?;
        }
        report_prefill(&pool, &model, name, precision, &args.prompts, args.times)?;
    }
    Ok(())
}

fn report_decode(
    pool: &Pool,
    model: &Model,
    name: &str,
    precision: Precision,
    bandwidth: f64,
    times: usize,
) -> Result<()> {
    let [(_, layer_bytes), (_, head_bytes)] = model.size()?;
    model.forward(pool, 1, precision)?;
    let seconds = median_seconds(times, || drop(model.forward(pool, 1, precision)));
    let rate = (layer_bytes + head_bytes) as f64 / seconds / 1e9;
    println!(
        "{name:>6} decode       {:8.1} tok/s  {rate:5.1} GB/s = {:3.0} % of read",
        1.0 / seconds,
        100.0 * rate / bandwidth
    );
    Ok(())
}

fn report_prefill(
    pool: &Pool,
    model: &Model,
    name: &str,
    precision: Precision,
    prompts: &[usize],
    times: usize,
) -> Result<()> {
    let [(layer_weights, _), (head_weights, _)] = model.size()?;
    for &tokens in prompts {
        model.forward(pool, tokens, precision)?;
        let peak = if precision == Precision::Int8 { Peak::Int8 } else { Peak::F32 };
        let seconds =
            median_seconds(times.div_ceil(3), || drop(model.forward(pool, tokens, precision)));
        let rate = (layer_weights * tokens + head_weights) as f64 / seconds;
        println!(
            "{name:>6} prefill {tokens:4} {:8.1} tok/s  {:5.0} GMAC/s = {:3.0} % of {peak:?}",
            tokens as f64 / seconds,
            rate / 1e9,
            100.0 * rate / multiply_adds_per_second(pool, peak),
        );
    }
    Ok(())
}
