//! Appending, reading back, copying and sealing blocks of every format.

#![expect(clippy::float_cmp, reason = "these values are exact")]

use super::*;
use crate::isa::Cpu;
use crate::pool::Pool;
use crate::testing::Rng;
use crate::turbo::ScaleRule;
use half::{bf16, f16};

/// Relative rms error that reading back may have.
fn tolerance(format: KvFormat) -> f64 {
    match format {
        KvFormat::F32 => 0.0,
        KvFormat::F16 => 3e-4,
        KvFormat::Bf16 => 2.5e-3,
        KvFormat::Int8 => 1e-2,
        KvFormat::Turbo4 => 0.105,
        KvFormat::Turbo3 => 0.2,
    }
}

fn relative_error(a: &[f32], b: &[f32]) -> f64 {
    let square = |x: f64| x * x;
    let error: f64 = a.iter().zip(b).map(|(a, b)| square(f64::from(a - b))).sum();
    (error / a.iter().map(|a| square(f64::from(*a))).sum::<f64>()).sqrt()
}

fn read_all(blocks: &[KvBlock], side: BlockSide, tokens: usize) -> Vec<f32> {
    let mut out = Vec::new();
    for (i, block) in blocks.iter().enumerate() {
        let count = (tokens - i * KV_BLOCK_TOKENS).min(KV_BLOCK_TOKENS);
        let layout = block.layout();
        let dim = if side == BlockSide::Key { layout.key_dim() } else { layout.value_dim() };
        let mut part = vec![0.0; count * layout.kv_heads() * dim];
        block.dequantise(side, 0..count, &mut part).unwrap();
        out.extend(part);
    }
    out
}

#[test]
fn appended_tokens_read_back_in_every_format_and_isa() {
    let mut rng = Rng::fresh();
    for cpu in Cpu::all() {
        let pool = Pool::with_cpu(2, cpu).unwrap();
        for format in KvFormat::ALL {
            for (heads, key_dim, value_dim) in [(1, 32, 64), (3, 64, 128), (2, 80, 40)] {
                let own = ValueStore::Own(format);
                let Ok(layout) = BlockLayout::new(heads, key_dim, value_dim, format, own) else {
                    continue;
                };
                let tokens = 700;
                let k = rng.normals(tokens * heads * key_dim);
                let v = rng.normals(tokens * heads * value_dim);
                let mut blocks: Vec<_> = (0..3).map(|_| KvBlock::new(layout).unwrap()).collect();
                // Ragged steps, some of them across a block boundary.
                let mut at = 0;
                for step in [1, 254, 3, 200, 1, 1, 240] {
                    let first = at / 256;
                    let last = (at + step - 1) / 256;
                    let mut part: Vec<_> = blocks[first..=last].iter_mut().collect();
                    let rows = at..at + step;
                    let of = |x: &'_ Vec<f32>, dim: usize| {
                        x[rows.start * heads * dim..rows.end * heads * dim].to_vec()
                    };
                    append(&pool, &mut part, at % 256, &of(&k, key_dim), &of(&v, value_dim))
                        .unwrap();
                    at += step;
                }
                assert_eq!(at, tokens);
                for (side, x) in [(BlockSide::Key, &k), (BlockSide::Value, &v)] {
                    let error = relative_error(x, &read_all(&blocks, side, tokens));
                    assert!(error <= tolerance(format), "{format} {side:?} {key_dim}: {error}");
                }
            }
        }
    }
}

#[test]
fn floats_are_exactly_rounded_and_int8_is_within_half_a_step() {
    let pool = Pool::new(1).unwrap();
    let x = Rng::fresh().normals(5 * 2 * 72);
    for format in [KvFormat::F16, KvFormat::Bf16, KvFormat::Int8] {
        let layout = BlockLayout::new(2, 72, 72, format, ValueStore::Own(format)).unwrap();
        let mut block = KvBlock::new(layout).unwrap();
        append(&pool, &mut [&mut block], 100, &x, &x).unwrap();
        for side in [BlockSide::Key, BlockSide::Value] {
            let mut back = vec![0.0; x.len()];
            block.dequantise(side, 100..105, &mut back).unwrap();
            for (x, back) in x.chunks(72).zip(back.chunks(72)) {
                let largest = x.iter().fold(0f32, |a, x| a.max(x.abs()));
                for (x, back) in x.iter().zip(back) {
                    match format {
                        KvFormat::F16 => assert_eq!(*back, f16::from_f32(*x).to_f32()),
                        KvFormat::Bf16 => assert_eq!(*back, bf16::from_f32(*x).to_f32()),
                        _ => assert!((x - back).abs() <= largest / 127.0 * 0.502, "{x} {back}"),
                    }
                }
            }
        }
    }
}

#[test]
fn tiny_int8_vectors_do_not_clip() {
    let pool = Pool::new(1).unwrap();
    let layout =
        BlockLayout::new(1, 32, 32, KvFormat::Int8, ValueStore::Own(KvFormat::Int8)).unwrap();
    for magnitude in [0.0f32, 2e-5, 1.3e-4, 1e-3, 6e4] {
        let x: Vec<f32> = (0..32).map(|i| (i as f32 / 31.0 - 0.5) * 2.0 * magnitude).collect();
        let mut block = KvBlock::new(layout).unwrap();
        append(&pool, &mut [&mut block], 0, &x, &x).unwrap();
        let mut back = vec![0.0; 32];
        block.dequantise(BlockSide::Key, 0..1, &mut back).unwrap();
        for (x, back) in x.iter().zip(&back) {
            // Half a step, where a step is at least the smallest fp16.
            let step = (magnitude / 127.0 * 1.01).max(6e-8 + magnitude / 127.0);
            assert!((x - back).abs() <= step / 2.0 * 1.01, "{magnitude}: {x} {back}");
        }
    }
}

#[test]
fn copies_are_independent_and_keep_every_byte() {
    let pool = Pool::new(1).unwrap();
    let own = ValueStore::Own(KvFormat::Turbo3);
    let layout = BlockLayout::new(2, 64, 64, KvFormat::Turbo4, own).unwrap();
    let mut block = KvBlock::new(layout).unwrap();
    let x = Rng::fresh().normals(256 * 2 * 64);
    append(&pool, &mut [&mut block], 0, &x, &x).unwrap();
    let before = block.bytes().to_vec();
    assert_eq!(before.len(), layout.bytes());
    let mut copy = block.duplicate().unwrap();
    append(&pool, &mut [&mut copy], 7, &x[..128], &x[128..256]).unwrap();
    assert_eq!(block.bytes(), before);
    // Only token 7 changed: all other tokens of the copy read as before.
    for side in [BlockSide::Key, BlockSide::Value] {
        let mut a = vec![0.0; 256 * 128];
        let mut b = vec![0.0; 256 * 128];
        block.dequantise(side, 0..256, &mut a).unwrap();
        copy.dequantise(side, 0..256, &mut b).unwrap();
        for (token, (a, b)) in a.chunks(128).zip(b.chunks(128)).enumerate() {
            assert_eq!(a == b, token != 7, "{token}");
        }
    }
    let mut loaded = KvBlock::new(layout).unwrap();
    loaded.bytes_mut().copy_from_slice(&before);
    assert_eq!(loaded.bytes(), block.bytes());
}

#[test]
fn sealing_recodes_values_and_leaves_keys() {
    let pool = Pool::new(2).unwrap();
    let own = ValueStore::Own(KvFormat::F16);
    let layout = BlockLayout::new(2, 64, 64, KvFormat::F16, own)
        .unwrap()
        .with_value_scale(ScaleRule::Renormalised);
    let mut open = KvBlock::new(layout).unwrap();
    let mut rng = Rng::fresh();
    let k = rng.normals(256 * 128);
    let v = rng.normals(256 * 128);
    append(&pool, &mut [&mut open], 0, &k, &v).unwrap();
    let sealed = open.with_values_as(&pool, KvFormat::Turbo4, 256).unwrap();
    // The same as quantising the fp16 values directly.
    let rounded: Vec<f32> = v.iter().map(|&x| f16::from_f32(x).to_f32()).collect();
    let mut direct = KvBlock::new(layout.with_value_format(KvFormat::Turbo4).unwrap()).unwrap();
    append(&pool, &mut [&mut direct], 0, &k, &rounded).unwrap();
    assert_eq!(sealed.bytes(), direct.bytes());
    assert!(open.with_values_as(&pool, KvFormat::Turbo4, 257).is_err());
}

#[test]
fn wrong_shapes_are_errors() {
    let pool = Pool::new(1).unwrap();
    let layout =
        BlockLayout::new(2, 32, 32, KvFormat::F16, ValueStore::Own(KvFormat::F16)).unwrap();
    let mut block = KvBlock::new(layout).unwrap();
    let x = vec![0.0; 64 * 4];
    assert!(append(&pool, &mut [], 0, &x, &x).is_err());
    assert!(append(&pool, &mut [&mut block], 256, &x, &x).is_err());
    assert!(append(&pool, &mut [&mut block], 253, &x, &x).is_err());
    assert!(append(&pool, &mut [&mut block], 0, &x[1..], &x).is_err());
    assert!(append(&pool, &mut [&mut block], 0, &x, &x[64..]).is_err());
    assert!(block.dequantise(BlockSide::Key, 0..257, &mut []).is_err());
    assert!(block.dequantise(BlockSide::Key, 0..4, &mut [0.0; 3]).is_err());
}
