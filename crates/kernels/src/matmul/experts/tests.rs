//! Every instruction set against an f64 oracle, and what is refused.

use super::super::Precision;
use super::*;
use crate::testing::{RandomAffine, RandomMxfp4, Rng, oracle, pools, store};
use crate::weights::FloatType;

const ACTIVE: usize = 3;
const EXPERTS: usize = 7;

/// Experts 1 and 4 are never chosen.
fn chosen(rng: &mut Rng, tokens: usize) -> Vec<u32> {
    let sets: [[u32; ACTIVE]; 4] = [[0, 2, 3], [6, 5, 0], [3, 6, 2], [5, 2, 6]];
    (0..tokens).flat_map(|_| sets[rng.below(4)]).collect()
}

fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// The layer in f64 of one token, and the size that rounding errors are relative to.
fn layer(x: &[f32], expert: &Expert<'_>) -> Vec<(f64, f64)> {
    let gate = oracle(x, &expert.gate.weights);
    let up = oracle(x, &expert.up.weights);
    let middle: Vec<f64> = gate.iter().zip(&up).map(|(g, u)| silu(g.0) * u.0).collect();
    let slack: Vec<f64> =
        gate.iter().zip(&up).map(|(g, u)| g.1 * u.0.abs() + u.1 * silu(g.0).abs()).collect();
    let mut w = vec![0.0; expert.down.weights.cols()];
    let row = |row| {
        expert.down.weights.dequantize_row(row, &mut w).unwrap();
        let sum = middle.iter().zip(&w).map(|(m, w)| m * f64::from(*w)).sum();
        let largest = middle.iter().fold(0.0, |a: f64, m| a.max(m.abs()));
        let size: f64 = slack.iter().zip(&w).map(|(s, w)| (s + largest) * f64::from(w.abs())).sum();
        (sum, size)
    };
    (0..expert.down.weights.rows()).map(row).collect()
}

fn check(pool: &Pool, rng: &mut Rng, stacks: &[WeightMatrix<'_>; 3], tokens: usize) {
    let [gate, up, down] = stacks;
    let inner = gate.rows() / EXPERTS;
    let hidden = gate.cols();
    let expert = |e: usize| Expert {
        gate: Layer::plain(gate.row_range(e * inner, inner).unwrap()),
        up: Layer::plain(up.row_range(e * inner, inner).unwrap()),
        down: Layer::plain(down.row_range(e * hidden, hidden).unwrap()),
    };
    let x = rng.normals(tokens * hidden);
    let chosen = chosen(rng, tokens);
    let weights: Vec<f32> = chosen.iter().map(|_| rng.uniform()).collect();
    let routes = Routes::new(&chosen, weights.clone(), ACTIVE, EXPERTS).unwrap();
    let used: Vec<Expert<'_>> = routes.used().map(expert).collect();
    let mut out = vec![f32::NAN; x.len()];
    experts(pool, &x, &routes, &used, Glu::Silu, &mut out, Precision::Exact).unwrap();
    for token in 0..tokens {
        let mut expected = vec![(0.0, 0.0); hidden];
        for slot in token * ACTIVE..(token + 1) * ACTIVE {
            let parts = layer(&x[token * hidden..][..hidden], &expert(chosen[slot] as usize));
            let weight = f64::from(weights[slot]);
            for (sum, (part, size)) in expected.iter_mut().zip(parts) {
                *sum = (sum.0 + weight * part, sum.1 + weight.abs() * size);
            }
        }
        for (got, (sum, size)) in out[token * hidden..].iter().zip(expected) {
            let tolerance = 1e-5 * (size + 1.0);
            assert!((f64::from(*got) - sum).abs() <= tolerance, "{pool:?} {tokens}: {got} {sum}");
        }
    }
}

#[test]
fn affine_experts_match_the_oracle() {
    let mut rng = Rng::fresh();
    for pool in pools() {
        for (bits, inner, hidden) in [(4, 64, 128), (8, 32, 64), (3, 96, 32), (6, 160, 96)] {
            let mut stack = |rows, cols| {
                RandomAffine::new(&mut rng, (EXPERTS * rows, cols), bits, 32, FloatType::Bf16)
            };
            let own = [stack(inner, hidden), stack(inner, hidden), stack(hidden, inner)];
            for tokens in [1, 2, 61] {
                check(&pool, &mut rng, &own.each_ref().map(RandomAffine::matrix), tokens);
            }
        }
    }
}

/// An expert's tokens are those of the pass that chose it: more or fewer of them change nothing.
#[test]
fn a_fixed_order_gives_each_token_the_same_to_the_bit() {
    let mut rng = Rng::fresh();
    for pool in pools() {
        let inner = 64;
        let hidden = 128;
        let tokens = 61;
        let mut stack = |rows, cols| {
            RandomAffine::new(&mut rng, (EXPERTS * rows, cols), 4, 32, FloatType::Bf16)
        };
        let own = [stack(inner, hidden), stack(inner, hidden), stack(hidden, inner)];
        let [gate, up, down] = own.each_ref().map(RandomAffine::matrix);
        let expert = |e: usize| Expert {
            gate: Layer::plain(gate.row_range(e * inner, inner).unwrap()),
            up: Layer::plain(up.row_range(e * inner, inner).unwrap()),
            down: Layer::plain(down.row_range(e * hidden, hidden).unwrap()),
        };
        let x = rng.normals(tokens * hidden);
        let chosen = chosen(&mut rng, tokens);
        let sums = Sums { precision: Precision::Int16, order: Order::Fixed };
        let pass = |part: Range<usize>| {
            let chosen = &chosen[part.start * ACTIVE..part.end * ACTIVE];
            let routes = Routes::new(chosen, vec![0.5; chosen.len()], ACTIVE, EXPERTS).unwrap();
            let used: Vec<Expert<'_>> = routes.used().map(expert).collect();
            let x = &x[part.start * hidden..part.end * hidden];
            let mut out = vec![f32::NAN; x.len()];
            experts(&pool, x, &routes, &used, Glu::Silu, &mut out, sums).unwrap();
            out
        };
        let whole = pass(0..tokens);
        for part in [0..1, 5..12, 20..61] {
            let rows = part.start * hidden..part.end * hidden;
            assert_eq!(pass(part), whole[rows], "{pool:?}");
        }
    }
}

#[test]
fn mxfp4_experts_match_the_oracle() {
    let mut rng = Rng::fresh();
    for pool in pools() {
        let inner = 96;
        let hidden = 160;
        let pair = RandomMxfp4::new(&mut rng, (2 * EXPERTS * inner, hidden));
        let down = RandomMxfp4::new(&mut rng, (EXPERTS * hidden, inner));
        let [gate, up] = [0, 1].map(|part| pair.matrix().every_nth_row(part, 2).unwrap());
        for tokens in [1, 2, 61] {
            check(&pool, &mut rng, &[gate, up, down.matrix()], tokens);
        }
    }
}

/// One expert whose matrices are zero: what is left are the biases.
#[test]
fn biases_are_those_of_the_rows() {
    let mut rng = Rng::fresh();
    let data = vec![0; 4 * 37 * 37];
    let zero = WeightMatrix::dense(37, 37, FloatType::F32, &data).unwrap();
    let [gate, up, down] = [(); 3].map(|()| rng.normals(37));
    let layer = |bias| Layer { weights: zero, bias: Some(bias) };
    let expert = Expert { gate: layer(&gate), up: layer(&up), down: layer(&down) };
    for pool in pools() {
        for tokens in [1, 9] {
            let routes = Routes::new(&vec![0; tokens], vec![2.0; tokens], 1, 1).unwrap();
            let mut out = vec![f32::NAN; tokens * 37];
            let x = rng.normals(out.len());
            let run = |expert, out: &mut [f32]| {
                experts(&pool, &x, &routes, &[expert], Glu::ClampedSwish, out, Precision::Exact)
            };
            run(expert, &mut out).unwrap();
            for out in out.chunks_exact(37) {
                assert!(out.iter().zip(&down).all(|(out, bias)| (out - 2.0 * bias).abs() < 1e-6));
            }
            // The middle shows through a down matrix that is not zero.
            let one = store(&[1.0; 37], FloatType::F32);
            let mut ones = data.clone();
            ones[..one.len()].copy_from_slice(&one);
            let sum = Layer::plain(WeightMatrix::dense(37, 37, FloatType::F32, &ones).unwrap());
            run(Expert { down: sum, ..expert }, &mut out).unwrap();
            let middle = |(gate, up): (&f32, &f32)| {
                let gate = f64::from(*gate).min(7.0);
                let up = f64::from(*up).clamp(-7.0, 7.0);
                gate / (1.0 + (-1.702 * gate).exp()) * (up + 1.0)
            };
            let expected: f64 = gate.iter().zip(&up).map(middle).sum();
            assert!((f64::from(out[0]) - 2.0 * expected).abs() < 1e-4, "{pool:?}");
        }
    }
    let short = Layer { bias: Some(&down[1..]), ..expert.down };
    let routes = Routes::new(&[0], vec![1.0], 1, 1).unwrap();
    let refused = experts(
        &pools()[0],
        &[0.0; 37],
        &routes,
        &[Expert { down: short, ..expert }],
        Glu::Silu,
        &mut [0.0; 37],
        Precision::Exact,
    );
    assert!(refused.unwrap_err().to_string().contains("biases of a layer"));
}

#[test]
fn dense_experts_match_the_oracle() {
    let mut rng = Rng::fresh();
    for pool in pools() {
        for ty in [FloatType::F32, FloatType::F16, FloatType::Bf16] {
            let inner = 37;
            let hidden = 50;
            let data = store(&rng.normals(EXPERTS * inner * hidden), ty);
            let wide = WeightMatrix::dense(EXPERTS * inner, hidden, ty, &data).unwrap();
            let down = WeightMatrix::dense(EXPERTS * hidden, inner, ty, &data).unwrap();
            for tokens in [1, 5, 40] {
                check(&pool, &mut rng, &[wide, wide, down], tokens);
            }
        }
    }
}

#[test]
fn heads_have_their_own_matrices() {
    let mut rng = Rng::fresh();
    for pool in pools() {
        let heads = 5;
        let rows = 33;
        let cols = 64;
        let own = RandomAffine::new(&mut rng, (heads * rows, cols), 4, 32, FloatType::F16);
        let data = store(&rng.normals(heads * rows * cols), FloatType::Bf16);
        let dense = WeightMatrix::dense(heads * rows, cols, FloatType::Bf16, &data).unwrap();
        for (weights, tokens) in [(own.matrix(), 1), (own.matrix(), 30), (dense, 1), (dense, 9)] {
            let x = rng.normals(tokens * heads * cols);
            let mut out = vec![f32::NAN; tokens * heads * rows];
            matmul_heads(&pool, &x, &weights, heads, &mut out, Precision::Exact).unwrap();
            for (slot, out) in out.chunks_exact(rows).enumerate() {
                let matrix = weights.row_range(slot % heads * rows, rows).unwrap();
                for (got, (sum, size)) in out.iter().zip(oracle(&x[slot * cols..][..cols], &matrix))
                {
                    assert!((f64::from(*got) - sum).abs() <= 1e-5 * (size + 1.0), "{pool:?}");
                }
            }
        }
    }
}

#[test]
fn only_used_experts_are_asked_for() {
    let routes = Routes::new(&[5, 2, 2, 6], vec![0.5; 4], 2, 7).unwrap();
    assert_eq!(routes.used().collect::<Vec<_>>(), [2, 5, 6]);
    assert_eq!(routes.used[0].1, 0..2);
    assert_eq!(routes.tokens, [0, 1, 0, 1]);
}

#[test]
fn impossible_routes_are_refused() {
    let refused = |chosen: &[u32], active| {
        Routes::new(chosen, vec![1.0; chosen.len()], active, 4).unwrap_err().to_string()
    };
    assert!(refused(&[0, 4], 2).contains("expert 4 is out of range for 4"));
    assert!(refused(&[0, 1, 2], 2).contains("active experts is 2"));
    assert!(refused(&[], 0).contains("active experts is 0"));
    assert!(Routes::new(&[1], vec![], 1, 4).is_err());
}
