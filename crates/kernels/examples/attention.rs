//! Times attention of Llama-3.2-1B's shape per cache mode, against the read bandwidth that the
//! same process measures in the same run.
//!
//! `cargo run --release -p mlxcel-kernels --example attention -- [threads] [depth …]`
#![expect(clippy::print_stdout, reason = "a command-line tool")]

use mlxcel_kernels::attention::{AttentionParams, AttentionRun, Mask, attention};
use mlxcel_kernels::kv::{BlockLayout, KV_BLOCK_TOKENS, KvBlock, KvFormat, ValueStore, append};
use mlxcel_kernels::{AlignedBuf, Pool, Result};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

const LAYERS: usize = 16;
const KV_HEADS: usize = 8;
const QUERY_HEADS: usize = 32;
const HEAD_DIM: usize = 64;
/// Bytes of the 4-bit weights that a decoded token reads besides the cache.
const WEIGHT_BYTES: f64 = 695e6;
const PREFILL_TOKENS: usize = 512;
const PREFILL_DEPTH: usize = 8192;

const MODES: [(&str, KvFormat, KvFormat); 8] = [
    ("fp16", KvFormat::F16, KvFormat::F16),
    ("bf16", KvFormat::Bf16, KvFormat::Bf16),
    ("int8", KvFormat::Int8, KvFormat::Int8),
    ("fp16+turbo4", KvFormat::F16, KvFormat::Turbo4),
    ("fp16+turbo3", KvFormat::F16, KvFormat::Turbo3),
    ("int8+turbo4", KvFormat::Int8, KvFormat::Turbo4),
    ("turbo4", KvFormat::Turbo4, KvFormat::Turbo4),
    ("turbo3", KvFormat::Turbo3, KvFormat::Turbo3),
];

/// Deterministic noise, roughly normal.
fn noise(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut uniform = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32) / (1u64 << 24) as f32 - 0.5
    };
    (0..count).map(|_| (0..6).map(|_| uniform()).sum::<f32>() * 1.4).collect()
}

/// Sum over `parts` of the fastest of `repeats` calls each, in seconds. All parts take turns, so
/// that each finds the caches as the others left them; on a busy machine a short part still has
/// an undisturbed call.
fn fastest(repeats: usize, parts: usize, mut body: impl FnMut(usize)) -> f64 {
    let mut best = vec![f64::INFINITY; parts];
    for _ in 0..repeats {
        for (part, best) in best.iter_mut().enumerate() {
            let start = Instant::now();
            body(part);
            *best = best.min(start.elapsed().as_secs_f64());
        }
    }
    best.iter().sum()
}

/// Bytes per second when all threads of the pool read a buffer far larger than the caches.
fn read_bandwidth(pool: &Pool, buffer: &AlignedBuf) -> f64 {
    let words: &[[u64; 8]] = buffer.as_slice();
    let total = AtomicU64::new(0);
    let part = words.len() / LAYERS;
    let seconds = fastest(6, LAYERS, |index| {
        let words = &words[index * part..(index + 1) * part];
        pool.for_chunks(words.len(), 1 << 14, |_, range| {
            let mut sums = [0u64; 8];
            for line in &words[range] {
                sums.iter_mut().zip(line).for_each(|(sum, word)| *sum |= word);
            }
            total.fetch_or(sums.iter().fold(0, |a, b| a | b), Ordering::Relaxed);
        });
    });
    assert_ne!(total.into_inner(), 1, "the buffer holds zeros");
    buffer.len() as f64 / seconds
}

fn params() -> AttentionParams<'static> {
    AttentionParams {
        query_heads: QUERY_HEADS,
        kv_heads: KV_HEADS,
        key_dim: HEAD_DIM,
        value_dim: HEAD_DIM,
        scale: 0.125,
        softcap: None,
        sinks: None,
        window: None,
        mask: Mask::Causal,
    }
}

/// One layer's cache of `tokens` tokens: copies of one random block.
fn cache(pool: &Pool, layout: BlockLayout, tokens: usize) -> Result<Vec<KvBlock>> {
    let mut first = KvBlock::new(layout)?;
    let row = KV_HEADS * HEAD_DIM * KV_BLOCK_TOKENS;
    append(pool, &mut [&mut first], 0, &noise(row, 1), &noise(row, 2))?;
    (0..tokens.div_ceil(KV_BLOCK_TOKENS)).map(|_| first.duplicate()).collect()
}

/// Seconds of attention for one token through all layers at `depth`, and bytes read.
fn decode(pool: &Pool, layout: BlockLayout, depth: usize) -> Result<(f64, f64)> {
    let layers = (0..LAYERS).map(|_| cache(pool, layout, depth)).collect::<Result<Vec<_>>>()?;
    let views: Vec<Vec<&KvBlock>> = layers.iter().map(|blocks| blocks.iter().collect()).collect();
    let q = noise(QUERY_HEADS * HEAD_DIM, 3);
    let mut out = vec![0.0; QUERY_HEADS * HEAD_DIM];
    let seconds = fastest(8, LAYERS, |layer| {
        let run = AttentionRun {
            q: &q,
            first_position: depth - 1,
            blocks: &views[layer],
            first_block_position: 0,
            kv_tokens: depth,
        };
        attention(pool, &params(), &[run], &mut out).expect("shapes agree");
    });
    let bytes = LAYERS * depth.div_ceil(KV_BLOCK_TOKENS) * layout.bytes();
    Ok((seconds, bytes as f64))
}

/// GFLOP/s of one prefill chunk in one layer.
fn prefill(pool: &Pool, layout: BlockLayout) -> Result<f64> {
    let blocks = cache(pool, layout, PREFILL_DEPTH)?;
    let views: Vec<&KvBlock> = blocks.iter().collect();
    let q = noise(PREFILL_TOKENS * QUERY_HEADS * HEAD_DIM, 4);
    let mut out = vec![0.0; q.len()];
    let run = AttentionRun {
        q: &q,
        first_position: PREFILL_DEPTH - PREFILL_TOKENS,
        blocks: &views,
        first_block_position: 0,
        kv_tokens: PREFILL_DEPTH,
    };
    let seconds = fastest(3, 1, |_| {
        attention(pool, &params(), &[run], &mut out).expect("shapes agree");
    });
    let pairs = PREFILL_TOKENS * (PREFILL_DEPTH - PREFILL_TOKENS / 2);
    Ok(4.0 * (pairs * QUERY_HEADS * HEAD_DIM) as f64 / seconds / 1e9)
}

/// Microseconds to append one token, and a prefill chunk, to one layer's cache.
fn appends(pool: &Pool, layout: BlockLayout) -> Result<(f64, f64)> {
    let mut blocks = (0..2).map(|_| KvBlock::new(layout)).collect::<Result<Vec<_>>>()?;
    let mut blocks: Vec<&mut KvBlock> = blocks.iter_mut().collect();
    let row = KV_HEADS * HEAD_DIM;
    let rows = noise(PREFILL_TOKENS * row, 5);
    let one = fastest(200, 1, |_| {
        let part = &rows[..row];
        append(pool, &mut blocks[..1], 77, part, part).expect("shapes agree");
    });
    let chunk = fastest(20, 1, |_| {
        append(pool, &mut blocks, 0, &rows, &rows).expect("shapes agree");
    });
    Ok((one * 1e6, chunk * 1e6))
}

fn main() -> Result<()> {
    let numbers: Vec<usize> = std::env::args().skip(1).filter_map(|arg| arg.parse().ok()).collect();
    let threads = numbers.first().copied().unwrap_or(2);
    let depths = if numbers.len() > 1 { &numbers[1..] } else { &[8192, 16384, 32768] };
    let pool = Pool::new(threads)?;
    let buffer = AlignedBuf::zeroed_huge(1 << 30)?;
    let bandwidth = read_bandwidth(&pool, &buffer);
    println!("{threads} threads, {:?}, read bandwidth {:.1} GB/s", pool.cpu(), bandwidth / 1e9);
    drop(buffer);
    println!("mode          depth  ms/token   GB/s  of bound  whole model ms  vs fp16");
    for &depth in depths {
        let mut fp16 = 0.0;
        for (name, key, value) in MODES {
            let own = ValueStore::Own(value);
            let layout = BlockLayout::new(KV_HEADS, HEAD_DIM, HEAD_DIM, key, own)?;
            let (seconds, bytes) = decode(&pool, layout, depth)?;
            let whole = seconds + WEIGHT_BYTES / bandwidth;
            if name == "fp16" {
                fp16 = whole;
            }
            println!(
                "{name:12} {depth:6} {:9.2} {:6.1} {:8.0}% {:15.2} {:8.2}",
                seconds * 1e3,
                bytes / seconds / 1e9,
                bytes / bandwidth / seconds * 100.0,
                whole * 1e3,
                fp16 / whole
            );
        }
    }
    for (name, key, value) in MODES {
        let own = ValueStore::Own(value);
        let layout = BlockLayout::new(KV_HEADS, HEAD_DIM, HEAD_DIM, key, own)?;
        let speed = prefill(&pool, layout)?;
        let (one, chunk) = appends(&pool, layout)?;
        println!(
            "{name:12} prefill {PREFILL_TOKENS} over {PREFILL_DEPTH}: {speed:.0} GFLOP/s; \
             append per layer: 1 token {one:.1} us, {PREFILL_TOKENS} tokens {chunk:.0} us"
        );
    }
    Ok(())
}
