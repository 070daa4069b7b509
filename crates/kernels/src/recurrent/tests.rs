//! Every instruction set against f64, in one pass and in parts.

use super::*;
use crate::elementwise::Glu;
use crate::testing::{Rng, pools};

fn close(actual: &[f32], expected: &[f64], what: &str) {
    assert_eq!(actual.len(), expected.len());
    for (actual, expected) in actual.iter().zip(expected) {
        // fp32 sums of some hundred terms of size 1.
        let tolerance = 2e-5 * (expected.abs() + 1.0);
        assert!((f64::from(*actual) - expected).abs() <= tolerance, "{what}: {actual} {expected}");
    }
}

fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

#[test]
fn convolutions_match_the_oracle_in_one_pass_and_in_parts() {
    let mut rng = Rng::fresh();
    for pool in pools() {
        for (tokens, channels, kernel) in [(1, 5, 4), (23, 33, 4), (40, 16, 2), (7, 19, 3)] {
            let x = rng.normals(tokens * channels);
            let taps = rng.normals(kernel * channels);
            let bias = rng.normals(channels);
            let at = |token: usize, k: usize, channel: usize| {
                (token + k + 1).checked_sub(kernel).map_or(0.0, |t| x[t * channels + channel])
            };
            let expected: Vec<f64> = (0..tokens * channels)
                .map(|i| {
                    let token = i / channels;
                    let channel = i % channels;
                    let term = |k| {
                        f64::from(taps[k * channels + channel]) * f64::from(at(token, k, channel))
                    };
                    silu((0..kernel).map(term).sum::<f64>() + f64::from(bias[channel]))
                })
                .collect();
            let activation = Some(Glu::Silu);
            let conv = Conv { taps: &taps, bias: Some(&bias), channels, activation };
            for part in [tokens, 1, 5] {
                let mut state = RecurrentState::new((kernel - 1) * channels, 0, WindowStore::Full);
                let mut out = vec![f32::NAN; x.len()];
                for (x, out) in x.chunks(part * channels).zip(out.chunks_mut(part * channels)) {
                    causal_conv(&pool, x, &conv, &mut state, out).unwrap();
                }
                close(&out, &expected, &format!("{pool:?} {tokens}x{channels} by {part}"));
            }
        }
    }
}

/// The scan in f64 from zero.
fn scan_oracle(scan: &Scan2<'_>, steps: &Steps2<'_>) -> Vec<f64> {
    let heads = scan.a_log.len();
    let dim = scan.head_dim;
    let size = scan.state_size;
    let width = heads * dim + 2 * scan.groups * size;
    let mut sums = vec![0.0f64; heads * dim * size];
    let mut out = Vec::new();
    for (xbc, dt) in steps.xbc.chunks_exact(width).zip(steps.dt.chunks_exact(heads)) {
        for i in 0..heads * dim {
            let head = i / dim;
            let group = head / (heads / scan.groups) * size;
            let dt = (f64::from(dt[head]) + f64::from(scan.dt_bias[head])).exp().ln_1p();
            let dt = dt.clamp(scan.limits.0.into(), scan.limits.1.into());
            let decay = (-f64::from(scan.a_log[head]).exp() * dt).exp();
            let x = f64::from(xbc[i]);
            let mut y = f64::from(scan.d[head]) * x;
            for n in 0..size {
                let b = f64::from(xbc[heads * dim + group + n]);
                let c = f64::from(xbc[heads * dim + scan.groups * size + group + n]);
                let sum = &mut sums[i * size + n];
                *sum = decay * *sum + dt * x * b;
                y += *sum * c;
            }
            out.push(y);
        }
    }
    out
}

#[test]
fn scans_match_the_oracle_in_one_pass_and_in_parts() {
    let mut rng = Rng::fresh();
    for pool in pools() {
        for (tokens, heads, dim, groups, size) in
            [(1, 1, 3, 1, 5), (30, 6, 8, 2, 32), (19, 4, 5, 4, 21), (9, 3, 16, 1, 128)]
        {
            let width = heads * dim + 2 * groups * size;
            let parameters = [(); 3].map(|()| rng.normals(heads));
            let [a_log, d, dt_bias] = &parameters;
            let limits = (0.001, 2.0);
            let scan = Scan2 { a_log, d, dt_bias, limits, head_dim: dim, groups, state_size: size };
            let xbc: Vec<f32> = rng.normals(tokens * width).iter().map(|x| 0.3 * x).collect();
            let dt = rng.normals(tokens * heads);
            let expected = scan_oracle(&scan, &Steps2 { xbc: &xbc, dt: &dt });
            for part in [tokens, 1, 4] {
                let mut sums = vec![0.0; heads * dim * size];
                let mut out = vec![f32::NAN; tokens * heads * dim];
                let steps = xbc.chunks(part * width).zip(dt.chunks(part * heads));
                for ((xbc, dt), out) in steps.zip(out.chunks_mut(part * heads * dim)) {
                    scan2(&pool, &scan, &Steps2 { xbc, dt }, &mut sums, out).unwrap();
                }
                close(&out, &expected, &format!("{pool:?} {tokens} tokens by {part}"));
            }
        }
    }
}

/// Mamba 1's scan in f64 from zero.
fn scan1_oracle(scan: &Scan1<'_>, steps: &Steps1<'_>) -> Vec<f64> {
    let channels = scan.d.len();
    let size = scan.rates.len() / channels;
    let mut sums = vec![0.0f64; channels * size];
    let mut out = Vec::new();
    for (token, x) in steps.x.chunks_exact(channels).enumerate() {
        for (channel, x) in x.iter().enumerate() {
            let dt = f64::from(steps.dt[token * channels + channel]).exp().ln_1p();
            let mut y = f64::from(scan.d[channel]) * f64::from(*x);
            for n in 0..size {
                let sum = &mut sums[channel * size + n];
                let decay = (dt * f64::from(scan.rates[channel * size + n])).exp();
                *sum = decay * *sum + dt * f64::from(*x) * f64::from(steps.b[token * size + n]);
                y += *sum * f64::from(steps.c[token * size + n]);
            }
            out.push(y);
        }
    }
    out
}

#[test]
fn channel_scans_match_the_oracle_in_one_pass_and_in_parts() {
    let mut rng = Rng::fresh();
    for pool in pools() {
        for (tokens, channels, size) in [(1, 3, 5), (30, 64, 16), (19, 131, 21), (5, 200, 16)] {
            let rates: Vec<f32> =
                rng.normals(channels * size).iter().map(|x| -(0.7 * x).exp()).collect();
            let [d, x] = [channels, tokens * channels].map(|n| rng.normals(n));
            let dt: Vec<f32> = rng.normals(tokens * channels).iter().map(|x| 3.0 * x).collect();
            let [b, c] = [(); 2].map(|()| rng.normals(tokens * size));
            let scan = Scan1 { rates: &rates, d: &d };
            let expected = scan1_oracle(&scan, &Steps1 { x: &x, dt: &dt, b: &b, c: &c });
            for part in [tokens, 1, 4] {
                let mut sums = vec![0.0; channels * size];
                let mut out = vec![f32::NAN; tokens * channels];
                let inputs = x.chunks(part * channels).zip(dt.chunks(part * channels));
                let states = b.chunks(part * size).zip(c.chunks(part * size));
                let outputs = out.chunks_mut(part * channels);
                for (((x, dt), (b, c)), out) in inputs.zip(states).zip(outputs) {
                    scan1(&pool, &scan, &Steps1 { x, dt, b, c }, &mut sums, out).unwrap();
                }
                close(&out, &expected, &format!("{pool:?} {tokens}x{channels}x{size} by {part}"));
            }
        }
    }
}

/// The gated delta rule in f64 from zero.
fn delta_oracle(layer: &Delta<'_>, steps: &DeltaSteps<'_>) -> Vec<f64> {
    let heads = layer.a_log.len();
    let dim = layer.key_dim;
    let value_dim = layer.value_dim;
    let keys = layer.key_heads * dim;
    let width = 2 * keys + heads * value_dim;
    let unit = |x: &[f32]| -> Vec<f64> {
        let length = (x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() + 1e-6).sqrt();
        x.iter().map(|x| f64::from(*x) / length).collect()
    };
    let mut state = vec![0.0f64; heads * value_dim * dim];
    let mut out = Vec::new();
    for (token, qkv) in steps.qkv.chunks_exact(width).enumerate() {
        for head in 0..heads {
            let at = token * heads + head;
            let key = head / (heads / layer.key_heads) * dim;
            let q = unit(&qkv[key..key + dim]);
            let k = unit(&qkv[keys + key..keys + key + dim]);
            let step = (f64::from(steps.a[at]) + f64::from(layer.dt_bias[head])).exp().ln_1p();
            let decay = (-f64::from(layer.a_log[head]).exp() * step).exp();
            let beta = 1.0 / (1.0 + (-f64::from(steps.b[at])).exp());
            for i in 0..value_dim {
                let row = &mut state[(head * value_dim + i) * dim..][..dim];
                row.iter_mut().for_each(|s| *s *= decay);
                let known: f64 = row.iter().zip(&k).map(|(s, k)| s * k).sum();
                let v = f64::from(qkv[2 * keys + head * value_dim + i]);
                row.iter_mut().zip(&k).for_each(|(s, k)| *s += beta * (v - known) * k);
                let answer: f64 = row.iter().zip(&q).map(|(s, q)| s * q).sum();
                out.push(answer / (dim as f64).sqrt());
            }
        }
    }
    out
}

#[test]
fn delta_nets_match_the_oracle_in_one_pass_and_in_parts() {
    let mut rng = Rng::fresh();
    for pool in pools() {
        for (tokens, heads, key_heads, key_dim, value_dim) in
            [(1, 1, 1, 3, 2), (40, 6, 2, 32, 8), (19, 4, 4, 21, 5), (33, 2, 1, 128, 16)]
        {
            let width = 2 * key_heads * key_dim + heads * value_dim;
            let [a_log, dt_bias] = [(); 2].map(|()| rng.normals(heads));
            let layer = Delta { a_log: &a_log, dt_bias: &dt_bias, key_heads, key_dim, value_dim };
            let qkv = rng.normals(tokens * width);
            let [a, b] = [(); 2].map(|()| rng.normals(tokens * heads));
            let expected = delta_oracle(&layer, &DeltaSteps { qkv: &qkv, a: &a, b: &b });
            for part in [tokens, 1, 7] {
                let mut state = vec![0.0; heads * value_dim * key_dim];
                let mut out = vec![f32::NAN; tokens * heads * value_dim];
                let gates = a.chunks(part * heads).zip(b.chunks(part * heads));
                let steps = qkv.chunks(part * width).zip(gates);
                for ((qkv, (a, b)), out) in steps.zip(out.chunks_mut(part * heads * value_dim)) {
                    let steps = DeltaSteps { qkv, a, b };
                    gated_delta(&pool, &layer, &steps, &mut state, out).unwrap();
                }
                close(&out, &expected, &format!("{pool:?} {tokens} tokens by {part}"));
            }
        }
    }
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let pool = &pools()[0];
    let mut state = RecurrentState::new(6, 0, WindowStore::Half);
    let conv = Conv { taps: &[1.0; 8], bias: None, channels: 2, activation: None };
    assert!(causal_conv(pool, &[0.0; 3], &conv, &mut state, &mut [0.0; 3]).is_err());
    assert!(causal_conv(pool, &[0.0; 4], &conv, &mut state, &mut [0.0; 2]).is_err());
    assert!(causal_conv(pool, &[0.0; 4], &conv, &mut state, &mut [0.0; 4]).is_ok());
    assert_eq!(state.bytes(), 12);
    let none = Conv { channels: 0, ..conv };
    assert!(causal_conv(pool, &[], &none, &mut state, &mut []).is_err());
    let one = [1.0f32];
    let scan = Scan2 {
        a_log: &one,
        d: &one,
        dt_bias: &one,
        limits: (0.0, 1.0),
        head_dim: 1,
        groups: 2,
        state_size: 1,
    };
    let steps = Steps2 { xbc: &[0.0; 5], dt: &one };
    assert!(scan2(pool, &scan, &steps, &mut [0.0], &mut [0.0]).is_err());
    let none = Scan1 { rates: &[], d: &[] };
    let wrong = Scan1 { rates: &one, d: &[1.0; 2] };
    let steps = Steps1 { x: &one, dt: &one, b: &one, c: &one };
    for scan in [none, wrong] {
        assert!(scan1(pool, &scan, &steps, &mut [0.0], &mut [0.0]).is_err());
    }
    let one_head = Delta { a_log: &one, dt_bias: &one, key_heads: 1, key_dim: 1, value_dim: 1 };
    let steps = DeltaSteps { qkv: &[1.0; 3], a: &one, b: &one };
    assert!(gated_delta(pool, &one_head, &steps, &mut [0.0], &mut [0.0]).is_ok());
    for layer in [
        Delta { key_heads: 2, ..one_head },
        Delta { key_heads: 0, ..one_head },
        Delta { key_dim: 0, ..one_head },
        Delta { value_dim: 2, ..one_head },
    ] {
        assert!(gated_delta(pool, &layer, &steps, &mut [0.0], &mut [0.0]).is_err());
    }
}
