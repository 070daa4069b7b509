//! Every instruction set, format and way of computing against an f64 oracle.

use super::{FEW_TOKENS, GatedPair, Precision, Sums, matmul, matmul_glu};
use crate::elementwise::Glu;
use crate::order::Order;
use crate::pool::Pool;
use crate::testing::{RandomAffine, RandomMxfp4, Rng, oracle, pools, store};
use crate::weights::{FloatType, WeightMatrix};
use std::ops::Range;

const FLOATS: [FloatType; 3] = [FloatType::F32, FloatType::F16, FloatType::Bf16];
const PRECISIONS: [Precision; 3] = [Precision::Exact, Precision::Int16, Precision::Int8];

/// Standard deviation of the error that rounding the activations causes in one product: each
/// element is off by a uniform error of one step, `largest of the group / levels`.
fn rounding(x: &[f32], w: &[f32], group: usize, precision: Precision) -> f64 {
    let levels = match precision {
        Precision::Exact => 8_355_000.0,
        Precision::Int16 | Precision::Mixed => 32639.0,
        Precision::Int8 => 127.0,
    };
    let variance = |(x, w): (&[f32], &[f32])| {
        let largest = x.iter().fold(0.0f32, |a, x| a.max(x.abs()));
        let squares: f64 = w.iter().map(|&w| f64::from(w) * f64::from(w)).sum();
        (f64::from(largest) / levels).powi(2) / 12.0 * squares
    };
    x.chunks(group).zip(w.chunks(group)).map(variance).sum::<f64>().sqrt()
}

/// Checks a product of `tokens` random tokens; `group` 0 stands for dense weights.
fn check(
    pool: &Pool,
    rng: &mut Rng,
    weights: &WeightMatrix<'_>,
    group: usize,
    tokens: usize,
    precision: Precision,
) {
    let rows = weights.rows();
    let cols = weights.cols();
    let mut x = rng.normals(tokens * cols);
    x[0] = 30.0; // An outlier, as activations have them.
    let mut out = vec![f32::NAN; tokens * rows];
    matmul(pool, &x, &[*weights], &mut [&mut out], precision).unwrap();
    let expected = oracle(&x, weights);
    let mut w = vec![0.0; cols];
    for row in 0..rows {
        weights.dequantize_row(row, &mut w).unwrap();
        for token in 0..tokens {
            let (sum, size) = expected[token * rows + row];
            let x = &x[token * cols..][..cols];
            let noise = if group == 0 { 0.0 } else { rounding(x, &w, group, precision) };
            // Six standard deviations, and f32 sums: relative to the codes' own size, since the
            // bias is added apart (three times the size of the products, for centred codes).
            let tolerance = 6.0 * noise + 2e-6 * size + 1e-6;
            let actual = f64::from(out[token * rows + row]);
            assert!(
                (actual - sum).abs() <= tolerance,
                "{pool:?} {rows}x{cols} group {group} tokens {tokens} {precision:?} row {row} \
                 token {token}: {actual} instead of {sum} ± {tolerance}"
            );
        }
    }
}

#[test]
fn affine_products_match_the_oracle() {
    let mut rng = Rng::fresh();
    for pool in pools() {
        for bits in [2, 3, 4, 5, 6, 8] {
            for group in [32, 64, 128] {
                for ty in FLOATS {
                    let shape = (1 + rng.below(40), group * (1 + rng.below(9)));
                    let weights = RandomAffine::new(&mut rng, shape, bits, group, ty);
                    for precision in PRECISIONS {
                        for tokens in [1, 2, 1 + rng.below(30)] {
                            check(&pool, &mut rng, &weights.matrix(), group, tokens, precision);
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn affine_products_span_column_blocks_and_panels() {
    let mut rng = Rng::fresh();
    for pool in pools() {
        for (rows, cols, group) in [(147, 2048 + 96, 32), (33, 4096 + 64, 64), (16, 2176, 128)] {
            let ty = FloatType::Bf16;
            let bits = [2, 3, 4, 5, 6, 8][rng.below(6)];
            let weights = RandomAffine::new(&mut rng, (rows, cols), bits, group, ty);
            for tokens in [1, 4, 27] {
                for precision in PRECISIONS {
                    check(&pool, &mut rng, &weights.matrix(), group, tokens, precision);
                }
            }
        }
    }
}

/// A thread takes more than 64 rows of these at once, in tiles of up to four times sixteen, and the
/// tokens make tiles of 12, 8, 6, 4, 2 and 1.
#[test]
fn tiles_of_every_width_match_the_oracle() {
    let mut rng = Rng::fresh();
    let rows = 4 * 80 + 11;
    for cpu in pools().iter().map(Pool::cpu) {
        let pool = Pool::with_cpu(1, cpu).unwrap();
        for tokens in [13, 16, 18] {
            for ty in FLOATS {
                let data = store(&rng.normals(rows * 77), ty);
                let weights = WeightMatrix::dense(rows, 77, ty, &data).unwrap();
                check(&pool, &mut rng, &weights, 0, tokens, Precision::Exact);
            }
            for (bits, group) in [(8, 32), (8, 64), (8, 128), (4, 32), (3, 64), (6, 128)] {
                let shape = (rows, 128 + group);
                let weights = RandomAffine::new(&mut rng, shape, bits, group, FloatType::Bf16);
                check(&pool, &mut rng, &weights.matrix(), group, tokens, Precision::Exact);
            }
            let weights = RandomMxfp4::new(&mut rng, (rows, 160));
            check(&pool, &mut rng, &weights.matrix(), 32, tokens, Precision::Int16);
        }
    }
}

/// The sixteen 4-bit floats of OCP's MX specification, and a few of its scales.
#[test]
fn mxfp4_codes_match_the_specification() {
    let codes: Vec<u8> = (0..8).map(|i| (2 * i) | ((2 * i + 1) << 4)).chain([0; 8]).collect();
    let magnitudes = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    for (scale, factor) in [(127, 1.0), (128, 2.0), (120, 0.007_812_5), (0, 2f32.powi(-127))] {
        let weights = WeightMatrix::mxfp4(1, 32, &codes, std::slice::from_ref(&scale)).unwrap();
        let mut row = [f32::NAN; 32];
        weights.dequantize_row(0, &mut row).unwrap();
        for (i, value) in row[..16].iter().enumerate() {
            let sign = if i < 8 { 1.0 } else { -1.0 };
            let expected = sign * magnitudes[i % 8] * factor;
            assert!((value - expected).abs() <= 0.0, "code {i}, scale {scale}: {value}");
        }
    }
}

#[test]
fn mxfp4_products_match_the_oracle() {
    let mut rng = Rng::fresh();
    for pool in pools() {
        for (rows, cols) in [(1, 32), (5, 96), (16, 128), (37, 416), (147, 2048 + 96)] {
            let weights = RandomMxfp4::new(&mut rng, (rows, cols));
            for precision in PRECISIONS {
                for tokens in [1, 2, 4, 1 + rng.below(30)] {
                    check(&pool, &mut rng, &weights.matrix(), 32, tokens, precision);
                }
            }
        }
    }
}

#[test]
fn interleaved_matrices_are_read_in_place() {
    let mut rng = Rng::fresh();
    for pool in pools() {
        let both = RandomMxfp4::new(&mut rng, (2 * 3 * 20, 2048 + 160));
        for part in 0..2 {
            let all = both.matrix().every_nth_row(part, 2).unwrap();
            let mut rows = [vec![0.0; all.cols()], vec![0.0; all.cols()]];
            for row in [0, 1, 59] {
                all.dequantize_row(row, &mut rows[0]).unwrap();
                both.matrix().dequantize_row(2 * row + part, &mut rows[1]).unwrap();
                assert_eq!(rows[0], rows[1]);
            }
            let expert = all.row_range(20, 20).unwrap();
            for tokens in [1, 3, 17] {
                check(&pool, &mut rng, &all, 32, tokens, Precision::Exact);
                check(&pool, &mut rng, &expert, 32, tokens, Precision::Exact);
            }
        }
    }
    let dense = store(&[0.0; 4], FloatType::F32);
    assert!(
        WeightMatrix::dense(2, 2, FloatType::F32, &dense).unwrap().every_nth_row(0, 2).is_err()
    );
    let odd = RandomMxfp4::new(&mut rng, (3, 32));
    assert!(odd.matrix().every_nth_row(0, 2).is_err());
    assert!(odd.matrix().every_nth_row(3, 3).is_err());
    assert!(WeightMatrix::mxfp4(1, 48, &[0; 24], &[0; 1]).is_err());
    assert!(WeightMatrix::mxfp4(1, 32, &[0; 16], &[0; 2]).is_err());
}

#[test]
fn dense_products_match_the_oracle() {
    let mut rng = Rng::fresh();
    for pool in pools() {
        for ty in FLOATS {
            for (rows, cols) in [(1, 1), (5, 31), (16, 32), (37, 515), (130, 1040)] {
                let data = store(&rng.normals(rows * cols), ty);
                let weights = WeightMatrix::dense(rows, cols, ty, &data).unwrap();
                for tokens in [1, 2, 3, 4, 5, 13, 29] {
                    check(&pool, &mut rng, &weights, 0, tokens, Precision::Exact);
                }
            }
        }
    }
}

#[test]
fn mixed_is_int8_into_a_gated_pair_and_int16_elsewhere() {
    let mut rng = Rng::fresh();
    for pool in pools() {
        for tokens in [1, FEW_TOKENS + 5] {
            let matrix = |rng: &mut Rng| RandomAffine::new(rng, (24, 256), 4, 64, FloatType::F16);
            let gate = matrix(&mut rng);
            let up = matrix(&mut rng);
            let x = rng.normals(tokens * 256);
            let gated = |precision| {
                let mut out = vec![f32::NAN; tokens * 24];
                let pair =
                    GatedPair { gate: gate.matrix(), up: up.matrix(), activation: Glu::Silu };
                matmul_glu(&pool, &x, pair, &mut out, precision).unwrap();
                out
            };
            let plain = |precision| {
                let mut out = vec![f32::NAN; tokens * 24];
                matmul(&pool, &x, &[gate.matrix()], &mut [&mut out], precision).unwrap();
                out
            };
            assert_eq!(gated(Precision::Mixed), gated(Precision::Int8));
            assert_ne!(gated(Precision::Mixed), gated(Precision::Int16));
            assert_eq!(plain(Precision::Mixed), plain(Precision::Int16));
            assert_ne!(plain(Precision::Mixed), plain(Precision::Int8));
        }
    }
}

/// The products of the rows `tokens` of `x`.
fn part(
    (pool, order): (&Pool, Order),
    x: &[f32],
    weights: &WeightMatrix<'_>,
    tokens: Range<usize>,
) -> Vec<f32> {
    let sums = Sums { precision: Precision::Int16, order };
    let mut out = vec![f32::NAN; tokens.len() * weights.rows()];
    let x = &x[tokens.start * weights.cols()..tokens.end * weights.cols()];
    matmul(pool, x, &[*weights], &mut [&mut out], sums).unwrap();
    out
}

#[test]
fn a_token_gets_the_same_to_the_bit_whatever_comes_with_it() {
    let mut rng = Rng::fresh();
    for pool in pools() {
        let rows = 37;
        let cols = 2048 + 128;
        let x = rng.normals(40 * cols);
        let bits = [2, 3, 4, 5, 6, 8][rng.below(6)];
        let affine = RandomAffine::new(&mut rng, (rows, cols), bits, 64, FloatType::F16);
        let data = store(&rng.normals(rows * cols), FloatType::Bf16);
        let dense = WeightMatrix::dense(rows, cols, FloatType::Bf16, &data).unwrap();
        for weights in [affine.matrix(), dense] {
            let part = |tokens| part((&pool, Order::Fastest), &x, &weights, tokens);
            let few = part(0..FEW_TOKENS);
            for (token, row) in few.chunks(rows).enumerate() {
                assert_eq!(part(token..token + 1), row, "{pool:?} {token}");
            }
            let many = part(0..40);
            for range in [0..FEW_TOKENS + 1, 3..19, 7..40] {
                let rows = range.start * rows..range.end * rows;
                assert_eq!(part(range), many[rows], "{pool:?}");
            }
        }
    }
}

#[test]
fn a_fixed_order_is_that_of_many_tokens_for_any_number() {
    let mut rng = Rng::fresh();
    for pool in pools() {
        let rows = 37;
        let cols = 2048 + 128;
        let x = rng.normals(40 * cols);
        let affine = RandomAffine::new(&mut rng, (rows, cols), 4, 64, FloatType::F16);
        let mxfp4 = RandomMxfp4::new(&mut rng, (rows, cols));
        let data = store(&rng.normals(rows * cols), FloatType::Bf16);
        let dense = WeightMatrix::dense(rows, cols, FloatType::Bf16, &data).unwrap();
        for weights in [affine.matrix(), mxfp4.matrix(), dense] {
            let many = part((&pool, Order::Fastest), &x, &weights, 0..40);
            for range in [0..1, 0..40, 2..4, 3..3 + FEW_TOKENS, 39..40, 20..33] {
                let rows = range.start * rows..range.end * rows;
                let part = part((&pool, Order::Fixed), &x, &weights, range);
                assert_eq!(part, many[rows], "{pool:?}");
            }
        }
    }
}

#[test]
fn several_matrices_of_several_kinds_share_the_activations() {
    let mut rng = Rng::fresh();
    for pool in pools() {
        let cols = 256;
        let four = RandomAffine::new(&mut rng, (48, cols), 4, 64, FloatType::F16);
        let eight = RandomAffine::new(&mut rng, (17, cols), 8, 64, FloatType::F16);
        let coarse = RandomAffine::new(&mut rng, (20, cols), 3, 128, FloatType::F32);
        let data = store(&rng.normals(9 * cols), FloatType::Bf16);
        let dense = WeightMatrix::dense(9, cols, FloatType::Bf16, &data).unwrap();
        let weights = [four.matrix(), dense, eight.matrix(), coarse.matrix()];
        for tokens in [0, 1, 7] {
            let x = rng.normals(tokens * cols);
            let mut together: Vec<Vec<f32>> =
                weights.iter().map(|w| vec![0.0; tokens * w.rows()]).collect();
            let mut outs: Vec<&mut [f32]> = together.iter_mut().map(Vec::as_mut_slice).collect();
            matmul(&pool, &x, &weights, &mut outs, Precision::Int8).unwrap();
            for (weights, together) in weights.iter().zip(&together) {
                let mut alone = vec![0.0; together.len()];
                matmul(&pool, &x, &[*weights], &mut [&mut alone], Precision::Int8).unwrap();
                assert_eq!(&alone, together);
            }
        }
    }
}

#[test]
fn gated_products_equal_two_products_and_a_gate() {
    let mut rng = Rng::fresh();
    for pool in pools() {
        for (rows, cols, group, up_group) in [(33, 128, 64, 64), (200, 256, 32, 128)] {
            let gate = RandomAffine::new(&mut rng, (rows, cols), 4, group, FloatType::F16);
            let up = RandomAffine::new(&mut rng, (rows, cols), 6, up_group, FloatType::F16);
            for tokens in [1, 21] {
                let x = rng.normals(tokens * cols);
                let pair =
                    GatedPair { gate: gate.matrix(), up: up.matrix(), activation: Glu::Silu };
                let mut fused = vec![0.0; tokens * rows];
                matmul_glu(&pool, &x, pair, &mut fused, Precision::Exact).unwrap();
                let gate = oracle(&x, &pair.gate);
                let up = oracle(&x, &pair.up);
                for ((fused, gate), up) in fused.iter().zip(gate).zip(up) {
                    let expected = gate.0 / (1.0 + (-gate.0).exp()) * up.0;
                    let tolerance = 1e-5 * (gate.1 + up.1 + gate.0.abs() * up.1 + 1.0);
                    assert!((f64::from(*fused) - expected).abs() <= tolerance, "{pool:?}");
                }
            }
        }
    }
}

#[test]
fn infinities_and_nans_reach_the_output() {
    let mut rng = Rng::fresh();
    for pool in pools() {
        let weights = RandomAffine::new(&mut rng, (3, 128), 4, 64, FloatType::F16);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for tokens in [1, 9] {
                let mut x = rng.normals(tokens * 128);
                x[77] = bad;
                let mut out = vec![0.0; tokens * 3];
                let weights = [weights.matrix()];
                matmul(&pool, &x, &weights, &mut [&mut out], Precision::Int8).unwrap();
                assert!(out[..3].iter().all(|y| y.is_nan()), "{pool:?} {out:?}");
                assert!(out[3..].iter().all(|y| y.is_finite()), "{pool:?} {out:?}");
            }
        }
    }
}

#[test]
fn tiny_and_zero_activations_give_zero() {
    let mut rng = Rng::fresh();
    for pool in pools() {
        let weights = RandomAffine::new(&mut rng, (3, 64), 4, 64, FloatType::F16);
        for tiny in [0.0, 1e-40] {
            let mut out = vec![f32::NAN; 3];
            let x = vec![tiny; 64];
            matmul(&pool, &x, &[weights.matrix()], &mut [&mut out], Precision::Exact).unwrap();
            assert_eq!(out, [0.0; 3]);
        }
    }
}
