//! Fused operations against their formulas in f64.

use crate::common::{assert_close, on_engine};
use mlx_ffi::fast::{self, Mask, Rope, RopeAngles, RopeLayout};
use mlx_ffi::{Array, ops};

const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const TOKENS: usize = 3;
const DIM: usize = 8;

fn wave(shape: [usize; 4], seed: f32) -> (Vec<f32>, Array) {
    let len: usize = shape.iter().product();
    let values: Vec<f32> = (0..len).map(|i| (seed + i as f32 * 0.7).sin()).collect();
    let array = Array::from_slice(&values, &shape.map(|d| i32::try_from(d).unwrap())).unwrap();
    (values, array)
}

#[test]
fn norms() {
    on_engine(|| {
        let (values, x) = wave([1, 1, 2, DIM], 0.3);
        let weight: Vec<f32> = (0..DIM).map(|i| 1.0 + i as f32).collect();
        let w = Array::from_slice(&weight, &[DIM as i32]).unwrap();
        let (mut rms, mut layer) = (Vec::new(), Vec::new());
        for row in values.chunks(DIM) {
            let mean = row.iter().map(|&v| f64::from(v)).sum::<f64>() / DIM as f64;
            let square = row.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / DIM as f64;
            let var = row.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / DIM as f64;
            for (&v, &w) in row.iter().zip(&weight) {
                rms.push((f64::from(v) / (square + 1e-5).sqrt() * f64::from(w)) as f32);
                layer.push(
                    ((f64::from(v) - mean) / (var + 1e-5).sqrt() * f64::from(w) + f64::from(w))
                        as f32,
                );
            }
        }
        let found = fast::rms_norm(&x, Some(&w), 1e-5).unwrap().to_vec::<f32>().unwrap();
        assert_close(&found, &rms, 1e-5);
        let found = fast::layer_norm(&x, Some(&w), Some(&w), 1e-5).unwrap();
        assert_close(&found.to_vec::<f32>().unwrap(), &layer, 1e-5);
        let plain = fast::rms_norm(&x, None, 1e-5).unwrap().to_vec::<f32>().unwrap();
        assert_close(&plain[1..2], &[rms[1] / 2.0], 1e-5);
    });
}

#[test]
fn ropes() {
    on_engine(|| {
        let (values, x) = wave([1, 1, TOKENS, DIM], 0.1);
        let (dims, offset, scale, base) = (6_usize, 5, 0.5_f32, 100_f32);
        let half = dims / 2;
        let freq = |i: usize| f64::from(base).powf(2.0 * i as f64 / dims as f64);
        let freqs: Vec<f32> = (0..half).map(|i| freq(i) as f32).collect();
        let freqs = Array::from_slice(&freqs, &[half as i32]).unwrap();
        for layout in [RopeLayout::Halves, RopeLayout::Pairs] {
            let mut expected = values.clone();
            for t in 0..TOKENS {
                for i in 0..half {
                    let angle = f64::from(scale) * (t + offset) as f64 / freq(i);
                    let (a, b) = match layout {
                        RopeLayout::Halves => (t * DIM + i, t * DIM + i + half),
                        RopeLayout::Pairs => (t * DIM + 2 * i, t * DIM + 2 * i + 1),
                    };
                    let (u, v) = (f64::from(values[a]), f64::from(values[b]));
                    expected[a] = (u * angle.cos() - v * angle.sin()) as f32;
                    expected[b] = (u * angle.sin() + v * angle.cos()) as f32;
                }
            }
            for angles in [RopeAngles::Base(base), RopeAngles::Freqs(&freqs)] {
                let rope = Rope { dims: dims as i32, layout, angles, scale };
                let found = fast::rope(&x, &rope, offset as i32).unwrap();
                assert_close(&found.to_vec::<f32>().unwrap(), &expected, 1e-5);
            }
        }
    });
}

/// Attention in f64; `seen(query, key)` is the mask.
fn attention(
    (q, k, v): (&[f32], &[f32], &[f32]),
    keys: usize,
    seen: impl Fn(usize, usize) -> bool,
    sink: Option<f64>,
) -> Vec<f32> {
    let mut out = vec![0.0; q.len()];
    for h in 0..HEADS {
        let kv = h / (HEADS / KV_HEADS);
        for t in 0..TOKENS {
            let at = (h * TOKENS + t) * DIM;
            let weights: Vec<f64> = (0..keys)
                .map(|j| {
                    let key = (kv * keys + j) * DIM;
                    let dot: f64 =
                        (0..DIM).map(|d| f64::from(q[at + d]) * f64::from(k[key + d])).sum();
                    if seen(t, j) { (dot * 0.5).exp() } else { 0.0 }
                })
                .collect();
            let sum = weights.iter().sum::<f64>() + sink.map_or(0.0, f64::exp);
            for d in 0..DIM {
                let mean = weights.iter().enumerate();
                let mean: f64 =
                    mean.map(|(j, w)| w * f64::from(v[(kv * keys + j) * DIM + d])).sum();
                out[at + d] = (mean / sum) as f32;
            }
        }
    }
    out
}

#[test]
fn attention_with_every_mask() {
    on_engine(|| {
        let keys = 5;
        let (q, queries) = wave([1, HEADS, TOKENS, DIM], 0.2);
        let (k, key_array) = wave([1, KV_HEADS, keys, DIM], 1.2);
        let (v, value_array) = wave([1, KV_HEADS, keys, DIM], 2.2);
        let run = |mask: Mask<'_>, sinks: Option<&Array>| {
            let out = fast::scaled_dot_product_attention(
                &queries,
                &key_array,
                &value_array,
                0.5,
                mask,
                sinks,
            );
            out.unwrap().to_vec::<f32>().unwrap()
        };
        let all = attention((&q, &k, &v), keys, |_, _| true, None);
        assert_close(&run(Mask::None, None), &all, 1e-5);
        let causal = |t: usize, j: usize| j <= t + (keys - TOKENS);
        let expected = attention((&q, &k, &v), keys, causal, None);
        assert_close(&run(Mask::Causal, None), &expected, 1e-5);
        let flags: Vec<bool> = (0..TOKENS * keys).map(|i| causal(i / keys, i % keys)).collect();
        let mask = Array::from_bools(&flags, &[TOKENS as i32, keys as i32]).unwrap();
        assert_close(&run(Mask::Array(&mask), None), &expected, 1e-5);
        let low = Array::scalar(-1e9, mlx_ffi::Dtype::Float32).unwrap();
        let zero = Array::scalar(0.0, mlx_ffi::Dtype::Float32).unwrap();
        let additive = ops::select(&mask, &zero, &low).unwrap();
        assert_close(&run(Mask::Array(&additive), None), &expected, 1e-5);
        let sinks = Array::from_slice(&[0.7_f32; HEADS], &[HEADS as i32]).unwrap();
        let expected = attention((&q, &k, &v), keys, causal, Some(f64::from(0.7_f32)));
        assert_close(&run(Mask::Causal, Some(&sinks)), &expected, 1e-5);
    });
}
