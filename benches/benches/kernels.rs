//! Criterion benches of single kernels, on shapes of Llama-3.2-1B, with GB/s or operations per
//! second. The first group is the machine's own bound: compare within one run.
//!
//! `cargo bench -p mlxcel-benches --bench kernels -- [FILTER]`; `MLXCEL_ISA` and `MLXCEL_THREADS`
//! apply.
#![expect(clippy::cast_precision_loss, reason = "sizes far below 2^52")]
#![expect(clippy::expect_used, reason = "a bench fails by panicking")]

use criterion::{BenchmarkId, Criterion, Throughput};
use mlxcel_benches::{Matrix, Storage};
use mlxcel_kernels::attention::{AttentionParams, AttentionRun, Mask, attention};
use mlxcel_kernels::elementwise::{Glu, glu};
use mlxcel_kernels::kv::{BlockLayout, KV_BLOCK_TOKENS, KvBlock, KvFormat, ValueStore, append};
use mlxcel_kernels::matmul::{Precision, matmul};
use mlxcel_kernels::norm::rms_norm;
use mlxcel_kernels::probe::read_seconds;
use mlxcel_kernels::rope::{Pairing, Rotation, rope};
use mlxcel_kernels::{AlignedBuf, FloatType, Order, Pool};
use std::time::Duration;

const HIDDEN: usize = 2048;
const INTERMEDIATE: usize = 8192;
const QUERY_HEADS: usize = 32;
const KV_HEADS: usize = 8;
const HEAD_DIM: usize = 64;
const DEPTH: usize = 16384;

const STORAGES: [(&str, Storage); 6] = [
    ("3-bit", Storage::Affine { bits: 3, group: 64 }),
    ("4-bit", Storage::Affine { bits: 4, group: 64 }),
    ("6-bit", Storage::Affine { bits: 6, group: 64 }),
    ("8-bit", Storage::Affine { bits: 8, group: 64 }),
    ("bf16", Storage::Dense(FloatType::Bf16)),
    ("f16", Storage::Dense(FloatType::F16)),
];

const PRECISIONS: [(&str, Precision); 3] =
    [("int8", Precision::Int8), ("int16", Precision::Int16), ("exact", Precision::Exact)];

const CACHES: [(&str, KvFormat, KvFormat); 6] = [
    ("fp16", KvFormat::F16, KvFormat::F16),
    ("int8", KvFormat::Int8, KvFormat::Int8),
    ("fp16+turbo4", KvFormat::F16, KvFormat::Turbo4),
    ("fp16+turbo3", KvFormat::F16, KvFormat::Turbo3),
    ("int8+turbo4", KvFormat::Int8, KvFormat::Turbo4),
    ("turbo4", KvFormat::Turbo4, KvFormat::Turbo4),
];

fn pool() -> Pool {
    let threads = std::env::var("MLXCEL_THREADS").ok().and_then(|text| text.parse().ok());
    Pool::new(threads.unwrap_or(2)).expect("threads")
}

/// Deterministic values between -1 and 1.
fn noise(count: usize) -> Vec<f32> {
    (0..count).map(|i| (i * 7919 % 1999) as f32 / 1000.0 - 1.0).collect()
}

fn bound(c: &mut Criterion) {
    let pool = pool();
    let data = AlignedBuf::zeroed_huge(512 << 20).expect("memory");
    let mut group = c.benchmark_group("bound");
    group.throughput(Throughput::Bytes(data.len() as u64));
    group.bench_function("read", |b| b.iter(|| read_seconds(&pool, data.bytes())));
    group.finish();
}

/// One token through copies of a matrix that no cache holds together.
fn decode(c: &mut Criterion) {
    const COPIES: usize = 32;
    let pool = pool();
    let mut group = c.benchmark_group("matmul, one token");
    for (name, storage) in STORAGES {
        let make = |_| Matrix::random(INTERMEDIATE, HIDDEN, storage).expect("memory");
        let copies: Vec<Matrix> = (0..COPIES).map(make).collect();
        let bytes: usize = copies.iter().map(|m| m.view().expect("a shape").bytes()).sum();
        group.throughput(Throughput::Bytes(bytes as u64));
        let x = noise(HIDDEN);
        let mut y = vec![0.0; INTERMEDIATE];
        for &(precision_name, precision) in precisions(storage) {
            group.bench_function(BenchmarkId::new(name, precision_name), |b| {
                b.iter(|| {
                    for matrix in &copies {
                        let weights = [matrix.view().expect("a shape")];
                        matmul(&pool, &x, &weights, &mut [&mut y], precision).expect("shapes");
                    }
                });
            });
        }
    }
    group.finish();
}

/// 512 tokens through one matrix; elements are multiply-adds.
fn prefill(c: &mut Criterion) {
    const TOKENS: usize = 512;
    let pool = pool();
    let mut group = c.benchmark_group("matmul, 512 tokens");
    group.throughput(Throughput::Elements((TOKENS * INTERMEDIATE * HIDDEN) as u64));
    for (name, storage) in STORAGES {
        let matrix = Matrix::random(INTERMEDIATE, HIDDEN, storage).expect("memory");
        let x = noise(TOKENS * HIDDEN);
        let mut y = vec![0.0; TOKENS * INTERMEDIATE];
        for &(precision_name, precision) in precisions(storage) {
            group.bench_function(BenchmarkId::new(name, precision_name), |b| {
                b.iter(|| {
                    let weights = [matrix.view().expect("a shape")];
                    matmul(&pool, &x, &weights, &mut [&mut y], precision).expect("shapes");
                });
            });
        }
    }
    group.finish();
}

/// Dense weights meet fp32 activations only.
fn precisions(storage: Storage) -> &'static [(&'static str, Precision)] {
    if matches!(storage, Storage::Dense(_)) { &PRECISIONS[2..] } else { &PRECISIONS }
}

/// One token's attention in one layer, per cache mode.
fn attend(c: &mut Criterion) {
    const LAYERS: usize = 16;
    let pool = pool();
    let params = AttentionParams {
        query_heads: QUERY_HEADS,
        kv_heads: KV_HEADS,
        key_dim: HEAD_DIM,
        value_dim: HEAD_DIM,
        scale: 0.125,
        softcap: None,
        sinks: None,
        window: None,
        mask: Mask::Causal,
        order: Order::Fastest,
    };
    let mut group = c.benchmark_group("attention, one token at 16384");
    for (name, key, value) in CACHES {
        let layout = BlockLayout::new(KV_HEADS, HEAD_DIM, HEAD_DIM, key, ValueStore::Own(value));
        let layout = layout.expect("a layout");
        let layers: Vec<Vec<KvBlock>> = (0..LAYERS).map(|_| cache(&pool, layout)).collect();
        group.throughput(Throughput::Bytes(
            (LAYERS * DEPTH / KV_BLOCK_TOKENS * layout.bytes()) as u64,
        ));
        let q = noise(QUERY_HEADS * HEAD_DIM);
        let mut out = vec![0.0; QUERY_HEADS * HEAD_DIM];
        let blocks: Vec<Vec<&KvBlock>> =
            layers.iter().map(|layer| layer.iter().collect()).collect();
        group.bench_function(name, |b| {
            b.iter(|| {
                for blocks in &blocks {
                    let run = AttentionRun {
                        q: &q,
                        first_position: DEPTH - 1,
                        blocks,
                        first_block_position: 0,
                        first_key: 0,
                        kv_tokens: DEPTH,
                    };
                    attention(&pool, &params, &[run], &mut out).expect("shapes");
                }
            });
        });
    }
    group.finish();
}

/// One layer's cache of [`DEPTH`] tokens: copies of one block.
fn cache(pool: &Pool, layout: BlockLayout) -> Vec<KvBlock> {
    let mut first = KvBlock::new(layout).expect("memory");
    let rows = noise(KV_HEADS * HEAD_DIM * KV_BLOCK_TOKENS);
    append(pool, &mut [&mut first], 0, &rows, &rows).expect("shapes");
    (0..DEPTH / KV_BLOCK_TOKENS).map(|_| first.duplicate().expect("memory")).collect()
}

/// Storing a chunk of keys and values, which is where turbo modes rotate and encode.
fn store(c: &mut Criterion) {
    let pool = pool();
    let rows = noise(KV_HEADS * HEAD_DIM * KV_BLOCK_TOKENS);
    let mut group = c.benchmark_group("append, 256 tokens");
    group.throughput(Throughput::Elements(KV_BLOCK_TOKENS as u64));
    for (name, key, value) in CACHES {
        let layout = BlockLayout::new(KV_HEADS, HEAD_DIM, HEAD_DIM, key, ValueStore::Own(value));
        let mut block = KvBlock::new(layout.expect("a layout")).expect("memory");
        group.bench_function(name, |b| {
            b.iter(|| append(&pool, &mut [&mut block], 0, &rows, &rows).expect("shapes"));
        });
    }
    group.finish();
}

/// What lies between the products, for a chunk of 512 tokens.
fn between(c: &mut Criterion) {
    const TOKENS: usize = 512;
    let pool = pool();
    let mut group = c.benchmark_group("512 tokens");
    let x = noise(TOKENS * HIDDEN);
    let weight = noise(HIDDEN);
    let mut out = x.clone();
    group.throughput(Throughput::Bytes((2 * 4 * TOKENS * HIDDEN) as u64));
    group.bench_function("rms_norm", |b| {
        b.iter(|| rms_norm(&pool, &x, &weight, 1e-5, &mut out).expect("shapes"));
    });
    let positions: Vec<i32> = (0..512).collect();
    let inverse: Vec<f32> = (0..HEAD_DIM / 2).map(|i| 1.0 / (1 + i) as f32).collect();
    let pairing = Pairing::Halves;
    let rotation = Rotation { inverse: &inverse, sections: &[], pairing, scale: 1.0 };
    group.bench_function("rope", |b| {
        b.iter(|| rope(&pool, &mut out, HEAD_DIM, &positions, &rotation).expect("shapes"));
    });
    let up = noise(TOKENS * INTERMEDIATE);
    let mut gate = up.clone();
    group.throughput(Throughput::Bytes((3 * 4 * TOKENS * INTERMEDIATE) as u64));
    group.bench_function("swiglu", |b| {
        b.iter(|| glu(&pool, Glu::Silu, &mut gate, &up).expect("shapes"));
    });
    group.finish();
}

/// Few samples: a token through 32 matrices takes milliseconds.
fn config() -> Criterion {
    let measure = Duration::from_secs(2);
    let warm_up = Duration::from_millis(300);
    Criterion::default().sample_size(10).measurement_time(measure).warm_up_time(warm_up)
}

fn main() {
    let mut criterion = config().configure_from_args();
    for bench in [bound, decode, prefill, attend, store, between] {
        bench(&mut criterion);
    }
    criterion.final_summary();
}
