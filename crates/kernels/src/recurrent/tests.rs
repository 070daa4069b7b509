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
            let (x, taps) = (rng.normals(tokens * channels), rng.normals(kernel * channels));
            let bias = rng.normals(channels);
            let at = |token: usize, k: usize, channel: usize| {
                (token + k + 1).checked_sub(kernel).map_or(0.0, |t| x[t * channels + channel])
            };
            let expected: Vec<f64> = (0..tokens * channels)
                .map(|i| {
                    let (token, channel) = (i / channels, i % channels);
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
    let (heads, dim, size) = (scan.a_log.len(), scan.head_dim, scan.state_size);
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
}
