//! Faults, bounds, rounding and the choice of the value scale.

use super::*;
use crate::turbo::ScaleRule;

/// Mean squared difference of outputs.
fn distance(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>() / a.len() as f64
}

/// KL divergence grows with the square of an error, so what the kernels' rounding adds to a
/// mode's own error is compared in squares.
#[test]
fn rounding_costs_less_than_a_hundredth_of_the_modes_own_error() {
    for format in [KvFormat::Int8, KvFormat::Turbo4, KvFormat::Turbo3] {
        for sharpness in [0.3, 1.0, 3.0] {
            for tokens in [200, 3000] {
                let mut case = Case::new((8, 2), 64, format, &[(tokens, 1)]);
                case.sharpness = sharpness;
                let exact = Case { key: KvFormat::F32, ..case.clone() };
                let exact = Case { value: ValueStore::Own(KvFormat::F32), ..exact };
                let truth = Setup::new(&exact).oracle(&exact);
                let setup = Setup::new(&case);
                let oracle = setup.oracle(&case);
                let own = distance(&oracle, &truth);
                for cpu in cpus() {
                    let pool = Pool::with_cpu(1, cpu).unwrap();
                    let out = setup.attention(&case, &pool);
                    let out: Vec<f64> = out.iter().map(|&x| f64::from(x)).collect();
                    let rounding = distance(&out, &oracle);
                    assert!(rounding < 0.01 * own, "{rounding} of {own} {cpu:?} {case:?}");
                }
            }
        }
    }
}

#[test]
fn dropped_blocks_of_a_window_change_nothing() {
    for format in KvFormat::ALL {
        let case = Case { window: Some(100), ..Case::new((4, 2), 64, format, &[(800, 3)]) };
        let setup = Setup::new(&case);
        let pool = Pool::new(1).unwrap();
        let all = setup.attention(&case, &pool);
        let blocks: Vec<&KvBlock> = setup.blocks[0][2..].iter().collect();
        let run = AttentionRun {
            q: &setup.queries[0],
            first_position: 800,
            blocks: &blocks,
            first_block_position: 512,
            first_key: 0,
            kv_tokens: 803 - 512,
        };
        let mut out = vec![f32::NAN; all.len()];
        attention(&pool, &setup.params(&case), &[run], &mut out).unwrap();
        assert_eq!(out, all, "{format}");
    }
}

#[test]
fn what_lies_beyond_the_valid_tokens_does_not_matter() {
    for format in KvFormat::ALL {
        for new in [1, 40] {
            let case = Case::new((4, 2), 64, format, &[(210, new)]);
            let mut setup = Setup::new(&case);
            for cpu in cpus() {
                let pool = Pool::with_cpu(1, cpu).unwrap();
                let clean = setup.attention(&case, &pool);
                let mut spoiled = Setup::new(&case);
                let faults = vec![f32::NAN; (256 - 250) * 2 * 64];
                append(&pool, &mut [&mut spoiled.blocks[0][0]], 250, &faults, &faults).unwrap();
                assert_eq!(spoiled.attention(&case, &pool), clean, "{format} {cpu:?}");
            }
            // But a fault in what is seen shows.
            let faults = vec![f32::NAN; 2 * 64];
            let pool = Pool::new(1).unwrap();
            let good = vec![0.1; 2 * 64];
            for (k, v) in [(&faults, &good), (&good, &faults)] {
                append(&pool, &mut [&mut setup.blocks[0][0]], 100, k, v).unwrap();
                for cpu in cpus() {
                    let pool = Pool::with_cpu(1, cpu).unwrap();
                    let out = setup.attention(&case, &pool);
                    assert!(out.iter().all(|x| x.is_nan()), "{format} {cpu:?}");
                }
            }
        }
    }
}

#[test]
fn a_run_may_mix_sealed_and_open_blocks() {
    let case = Case {
        value: ValueStore::Own(KvFormat::F16),
        ..Case::new((8, 2), 64, KvFormat::F16, &[(700, 1), (700, 60)])
    };
    let mut setup = Setup::new(&case);
    let pool = Pool::new(2).unwrap();
    for run in &mut setup.blocks {
        for (index, format) in [(0, KvFormat::Turbo4), (1, KvFormat::Turbo3)] {
            run[index] = run[index].with_values_as(&pool, format, 256).unwrap();
        }
    }
    let error = worst(&case, &setup.attention(&case, &pool), &setup.oracle(&case));
    assert!(error < 1e-3, "{error}");
}

#[test]
fn scratch_does_not_grow_with_the_context_and_bounds_a_threads_buffer() {
    let case = Case::new((32, 8), 64, KvFormat::F16, &[(1, 1)]);
    let setup = Setup::new(&case);
    let params = setup.params(&case);
    let one = scratch_bytes(&params, 1, 1);
    assert!(one < 1 << 20, "{one}");
    assert!(scratch_bytes(&params, 4, 1) >= 4 * one);
    assert_eq!(scratch_bytes(&params, 1, 9), one, "one thread splits nothing");
}

#[test]
fn wrong_shapes_are_errors() {
    let case = Case::new((4, 2), 64, KvFormat::F16, &[(10, 2)]);
    let setup = Setup::new(&case);
    let pool = Pool::new(1).unwrap();
    let blocks = [&setup.blocks[0][0]];
    let good = setup.params(&case);
    let run = AttentionRun {
        q: &setup.queries[0],
        first_position: 10,
        blocks: &blocks,
        first_block_position: 0,
        first_key: 0,
        kv_tokens: 12,
    };
    let mut out = vec![0.0; 2 * 4 * 64];
    let mut call = |params, run| attention(&pool, &params, &[run], &mut out).is_err();
    assert!(!call(good, run));
    assert!(call(AttentionParams { query_heads: 3, ..good }, run));
    assert!(call(AttentionParams { kv_heads: 0, ..good }, run));
    assert!(call(AttentionParams { kv_heads: 4, ..good }, run));
    assert!(call(AttentionParams { value_dim: 32, ..good }, run));
    assert!(call(AttentionParams { window: Some(0), ..good }, run));
    assert!(call(AttentionParams { softcap: Some(f32::NAN), ..good }, run));
    assert!(call(AttentionParams { sinks: Some(&[0.0; 3]), ..good }, run));
    assert!(call(good, AttentionRun { q: &setup.queries[0][1..], ..run }));
    assert!(call(good, AttentionRun { kv_tokens: 257, ..run }));
    assert!(call(good, AttentionRun { first_position: usize::MAX, ..run }));
    assert!(attention(&pool, &good, &[run], &mut [0.0; 3]).is_err());
    assert!(attention(&pool, &good, &[], &mut []).is_ok());
}

/// What decides the default scale rule of Turbo values. A weighted mean of many values keeps what
/// they have in common and averages their errors away, so a bias of the reconstruction shows; for
/// values with nothing in common the smallest squared error of each is best, by little.
#[test]
fn unbiased_value_scales_win_where_values_share_a_mean_and_lose_little_elsewhere() {
    for (format, bias, loss) in [(KvFormat::Turbo4, 1.0, 1.02), (KvFormat::Turbo3, 1.0, 1.06)] {
        for shared in [0.0, 2.0] {
            let error = |rule| value_error(format, rule, shared);
            let unbiased = error(ScaleRule::Unbiased);
            for other in [ScaleRule::Renormalised, ScaleRule::Norm] {
                let ratio = unbiased / error(other);
                assert!(
                    ratio < if shared > 0.0 { bias } else { loss },
                    "{format} {other:?} {ratio}"
                );
            }
        }
    }
}

/// Mean squared error of attention outputs that comes from storing values in `format`; values are
/// normal deviates plus `shared` times a common vector.
fn value_error(format: KvFormat, rule: ScaleRule, shared: f32) -> f64 {
    let pool = Pool::new(1).unwrap();
    let tokens = 1024;
    let dim = 64;
    let mut rng = Rng::seeded(11);
    let k = rng.normals(tokens * dim);
    let mut v = rng.normals(tokens * dim);
    let mean = rng.normals(dim);
    v.iter_mut().zip(mean.iter().cycle()).for_each(|(v, mean)| *v += shared * mean);
    let q = rng.normals(64 * dim);
    let outputs = |format| {
        let layout = BlockLayout::new(1, dim, dim, KvFormat::F32, ValueStore::Own(format)).unwrap();
        let layout = layout.with_value_scale(rule);
        let mut blocks: Vec<_> = (0..4).map(|_| KvBlock::new(layout).unwrap()).collect();
        append(&pool, &mut blocks.iter_mut().collect::<Vec<_>>(), 0, &k, &v).unwrap();
        let params = AttentionParams {
            query_heads: 64,
            kv_heads: 1,
            key_dim: dim,
            value_dim: dim,
            scale: 0.125,
            softcap: None,
            sinks: None,
            window: None,
            mask: Mask::Full,
            order: Order::Fastest,
        };
        let run = AttentionRun {
            q: &q,
            first_position: tokens,
            blocks: &blocks.iter().collect::<Vec<_>>(),
            first_block_position: 0,
            first_key: 0,
            kv_tokens: tokens,
        };
        let mut out = vec![0.0; 64 * dim];
        attention(&pool, &params, &[run], &mut out).unwrap();
        out.into_iter().map(f64::from).collect::<Vec<_>>()
    };
    distance(&outputs(format), &outputs(KvFormat::F32))
}
