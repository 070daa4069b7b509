//! Every format, shape, mask and instruction set against the oracle.

use super::*;

#[test]
fn decode_at_odd_lengths_in_every_format() {
    for format in KvFormat::ALL {
        for tokens in [1, 255, 256, 257, 4099] {
            check(&Case::new((8, 2), 64, format, &[(tokens - 1, 1)]));
        }
    }
}

/// However a prompt is cut into passes, and with any number of threads.
#[test]
fn a_fixed_order_gives_each_token_the_same_to_the_bit() {
    for format in KvFormat::ALL {
        for (heads, window) in [((4, 2), None), ((4, 4), Some(150)), ((12, 1), Some(7))] {
            let tokens = 600;
            let case = Case::new(heads, 64, format, &[(0, tokens)]);
            let case = Case { order: Order::Fixed, window, ..case };
            let setup = Setup::new(&case);
            let width = heads.0 * 64;
            let blocks: Vec<&KvBlock> = setup.blocks[0].iter().collect();
            for cpu in cpus() {
                let whole = setup.attention(&case, &Pool::with_cpu(1, cpu).unwrap());
                let pool = Pool::with_cpu(3, cpu).unwrap();
                for pass in [0..1, 0..9, 3..130, 254..259, 300..301, 511..600, 599..600] {
                    let rows = pass.start * width..pass.end * width;
                    let run = AttentionRun {
                        q: &setup.queries[0][rows.clone()],
                        first_position: pass.start,
                        blocks: &blocks[..pass.end.div_ceil(KV_BLOCK_TOKENS)],
                        first_block_position: 0,
                        first_key: 0,
                        kv_tokens: pass.end,
                    };
                    let mut out = vec![f32::NAN; rows.len()];
                    attention(&pool, &setup.params(&case), &[run], &mut out).unwrap();
                    assert!(out == whole[rows], "{cpu:?} {format} {heads:?} {window:?} {pass:?}");
                }
            }
        }
    }
}

#[test]
fn every_head_dimension() {
    for format in KvFormat::ALL {
        for dim in [32, 64, 80, 96, 112, 128, 256] {
            if format.check_dim(dim).is_ok() {
                check(&Case::new((4, 2), dim, format, &[(300, 1), (70, 41)]));
            }
        }
    }
}

#[test]
fn odd_head_dimensions_of_formats_that_allow_them() {
    for format in [KvFormat::F32, KvFormat::F16, KvFormat::Bf16, KvFormat::Int8] {
        for dims in [(8, 24), (7, 33), (72, 40), (20, 1)] {
            let case = Case { dims, ..Case::new((2, 1), 8, format, &[(33, 1), (5, 30)]) };
            check(&case);
        }
    }
}

#[test]
fn every_group_size() {
    for format in KvFormat::ALL {
        for group in 1..=16 {
            check(&Case::new((group, 1), 64, format, &[(500, 1), (13, 2)]));
        }
    }
}

/// Three sixteens of keys, and head dimensions that end with one or three sixteens.
#[test]
fn every_group_size_with_remainders_of_tiles() {
    for format in KvFormat::ALL {
        for dim in [64, 80, 112] {
            for group in 1..=8 {
                if format.check_dim(dim).is_ok() {
                    check(&Case::new((group, 1), dim, format, &[(40, 1)]));
                }
            }
        }
    }
}

#[test]
fn prefill_equals_oracle_and_decodes() {
    for format in KvFormat::ALL {
        let case = Case::new((8, 2), 64, format, &[(0, 300)]);
        check(&case);
        let setup = Setup::new(&case);
        let pool = Pool::new(2).unwrap();
        let prefill = setup.attention(&case, &pool);
        for token in [0, 1, 255, 256, 299] {
            let mut one = Setup::new(&case);
            one.queries[0] = setup.queries[0][token * 512..(token + 1) * 512].to_vec();
            let decode_case = Case { runs: vec![(token, 1)], ..case.clone() };
            let decode = one.attention(&decode_case, &pool);
            let prefill: Vec<f64> =
                prefill[token * 512..(token + 1) * 512].iter().map(|&x| f64::from(x)).collect();
            let error = worst(&case, &decode, &prefill);
            assert!(error <= case.tolerance(), "{format} {token}: {error}");
        }
    }
}

#[test]
fn a_run_gets_the_same_to_the_bit_alone_and_in_a_batch() {
    let runs = [(700, 1), (0, 5), (2000, 1), (250, 40), (0, 1), (511, 2)];
    for format in [KvFormat::F16, KvFormat::Int8, KvFormat::Turbo4] {
        // Few units that are split, and enough that are not.
        for heads in [(4, 1), (6, 3), (12, 12)] {
            let case = Case::new(heads, 64, format, &runs);
            let mut setup = Setup::new(&case);
            for cpu in cpus() {
                let pool = Pool::with_cpu(3, cpu).unwrap();
                let mut together = setup.attention(&case, &pool).into_iter();
                for run in runs {
                    let one = Case { runs: vec![run], ..case.clone() };
                    let alone = setup.attention(&one, &pool);
                    let same: Vec<f32> = together.by_ref().take(alone.len()).collect();
                    assert!(alone == same, "{cpu:?} {run:?} {case:?}");
                    setup.queries.rotate_left(1);
                    setup.blocks.rotate_left(1);
                }
            }
        }
    }
}

#[test]
fn ragged_batches() {
    for format in KvFormat::ALL {
        let runs = [(700, 1), (0, 5), (255, 1), (250, 40), (0, 1), (511, 2)];
        check(&Case::new((6, 3), 64, format, &runs));
    }
}

#[test]
fn windows_sinks_softcap_and_full_masks() {
    for format in KvFormat::ALL {
        let base = Case::new((4, 2), 64, format, &[(600, 1), (290, 30), (0, 70)]);
        for window in [1, 7, 128, 300, 10_000] {
            check(&Case { window: Some(window), ..base.clone() });
        }
        check(&Case { sinks: true, ..base.clone() });
        check(&Case { softcap: Some(2.0), ..base.clone() });
        check(&Case { mask: Mask::Full, ..base.clone() });
        for first_key in [3, 256, 300] {
            check(&Case { mask: Mask::Full, first_key, ..base.clone() });
            check(&Case { window: Some(100), first_key, ..base.clone() });
        }
        let all = Case { sinks: true, softcap: Some(30.0), window: Some(100), ..base };
        check(&all);
    }
}

#[test]
fn values_may_be_a_prefix_of_keys() {
    for format in [KvFormat::F32, KvFormat::F16, KvFormat::Bf16, KvFormat::Int8] {
        let base = Case::new((16, 1), 576, format, &[(300, 1), (20, 12)]);
        check(&Case { dims: (576, 512), value: ValueStore::KeyPrefix, ..base.clone() });
        check(&Case { dims: (40, 19), value: ValueStore::KeyPrefix, ..base });
    }
}

#[test]
fn mixed_formats_and_dims() {
    let pairs = [
        (KvFormat::F16, KvFormat::Turbo4),
        (KvFormat::F16, KvFormat::Turbo3),
        (KvFormat::Int8, KvFormat::Turbo4),
        (KvFormat::Turbo4, KvFormat::Int8),
    ];
    for (key, value) in pairs {
        let base = Case::new((8, 2), 64, key, &[(300, 1), (20, 50)]);
        let value = ValueStore::Own(value);
        check(&Case { dims: (128, 64), value, ..base.clone() });
        check(&Case { dims: (64, 256), value, ..base });
    }
}
