//! Attention against an f64 oracle over the same quantised values, for every format, shape and
//! instruction set.

use super::*;
use crate::isa::Cpu;
use crate::kv::{BlockSide, KvFormat, ValueStore, append};
use crate::testing::Rng;

/// A call: shapes, formats and runs of (cached tokens, new tokens).
#[derive(Clone, Debug)]
struct Case {
    heads: (usize, usize),
    dims: (usize, usize),
    key: KvFormat,
    value: ValueStore,
    softcap: Option<f32>,
    sinks: bool,
    window: Option<usize>,
    mask: Mask,
    runs: Vec<(usize, usize)>,
    /// Queries are this many times normal deviates: how peaked the softmax is.
    sharpness: f32,
    seed: u64,
}

impl Case {
    fn new(heads: (usize, usize), dim: usize, format: KvFormat, runs: &[(usize, usize)]) -> Self {
        Self {
            heads,
            dims: (dim, dim),
            key: format,
            value: ValueStore::Own(format),
            softcap: None,
            sinks: false,
            window: None,
            mask: Mask::Causal,
            runs: runs.to_vec(),
            sharpness: 1.0,
            seed: 1,
        }
    }

    fn layout(&self) -> BlockLayout {
        let (key_dim, value_dim) = self.dims;
        BlockLayout::new(self.heads.1, key_dim, value_dim, self.key, self.value).unwrap()
    }

    /// Floats differ by f32 sums only; int8 and Turbo kernels round queries and weights to 16 bits.
    fn tolerance(&self) -> f64 {
        let float = |format| matches!(format, KvFormat::F32 | KvFormat::F16 | KvFormat::Bf16);
        let value = match self.value {
            ValueStore::Own(format) => float(format),
            ValueStore::KeyPrefix => true,
        };
        if float(self.key) && value { 1e-4 } else { 1e-3 }
    }
}

/// The data of a case.
struct Setup {
    sinks: Vec<f32>,
    queries: Vec<Vec<f32>>,
    blocks: Vec<Vec<KvBlock>>,
}

impl Setup {
    fn new(case: &Case) -> Self {
        let (mut rng, layout) = (Rng::new(case.seed), case.layout());
        let pool = Pool::new(1).unwrap();
        let (mut queries, mut blocks) = (Vec::new(), Vec::new());
        for &(cached, new) in &case.runs {
            let tokens = cached + new;
            let k = rng.normals(tokens * case.heads.1 * case.dims.0);
            let v = match case.value {
                ValueStore::Own(_) => rng.normals(tokens * case.heads.1 * case.dims.1),
                ValueStore::KeyPrefix => Vec::new(),
            };
            let count = tokens.div_ceil(KV_BLOCK_TOKENS);
            let mut run: Vec<_> = (0..count).map(|_| KvBlock::new(layout).unwrap()).collect();
            append(&pool, &mut run.iter_mut().collect::<Vec<_>>(), 0, &k, &v).unwrap();
            blocks.push(run);
            let mut q = rng.normals(new * case.heads.0 * case.dims.0);
            q.iter_mut().for_each(|q| *q *= case.sharpness);
            queries.push(q);
        }
        let sinks = if case.sinks { rng.normals(case.heads.0) } else { Vec::new() };
        Self { sinks, queries, blocks }
    }

    fn params(&self, case: &Case) -> AttentionParams<'_> {
        AttentionParams {
            query_heads: case.heads.0,
            kv_heads: case.heads.1,
            key_dim: case.dims.0,
            value_dim: case.dims.1,
            scale: 1.0 / (case.dims.0 as f32).sqrt(),
            softcap: case.softcap,
            sinks: case.sinks.then_some(&self.sinks),
            window: case.window,
            mask: case.mask,
        }
    }

    fn attention(&self, case: &Case, pool: &Pool) -> Vec<f32> {
        let refs: Vec<Vec<&KvBlock>> = self.blocks.iter().map(|b| b.iter().collect()).collect();
        let runs: Vec<AttentionRun<'_>> = (case.runs.iter().zip(&self.queries).zip(&refs))
            .map(|((&(cached, new), q), blocks)| AttentionRun {
                q,
                first_position: cached,
                blocks,
                first_block_position: 0,
                kv_tokens: cached + new,
            })
            .collect();
        let tokens: usize = case.runs.iter().map(|run| run.1).sum();
        let mut out = vec![f32::NAN; tokens * case.heads.0 * case.dims.1];
        attention(pool, &self.params(case), &runs, &mut out).unwrap();
        out
    }

    /// Keys or values of a run in f64, `[tokens, kv_heads, dim]`.
    fn read(&self, case: &Case, run: usize, side: BlockSide) -> Vec<f64> {
        let dim = if side == BlockSide::Key { case.dims.0 } else { case.dims.1 };
        let mut all = Vec::new();
        for block in &self.blocks[run] {
            let mut part = vec![0.0; KV_BLOCK_TOKENS * case.heads.1 * dim];
            block.dequantise(side, 0..KV_BLOCK_TOKENS, &mut part).unwrap();
            all.extend(part.into_iter().map(f64::from));
        }
        all
    }

    /// The definition, in f64.
    fn oracle(&self, case: &Case) -> Vec<f64> {
        let mut out = Vec::new();
        for (run, &(cached, new)) in case.runs.iter().enumerate() {
            let k = self.read(case, run, BlockSide::Key);
            let v = self.read(case, run, BlockSide::Value);
            for token in 0..new {
                let position = cached + token;
                let end = if case.mask == Mask::Causal { position + 1 } else { cached + new };
                let start = case.window.map_or(0, |w| (position + 1).saturating_sub(w)).min(end);
                for head in 0..case.heads.0 {
                    let q = &self.queries[run][(token * case.heads.0 + head) * case.dims.0..];
                    out.extend(self.one(case, &q[..case.dims.0], head, (&k, &v), start..end));
                }
            }
        }
        out
    }

    fn one(
        &self,
        case: &Case,
        q: &[f32],
        head: usize,
        (k, v): (&[f64], &[f64]),
        keys: std::ops::Range<usize>,
    ) -> Vec<f64> {
        let kv_head = head / (case.heads.0 / case.heads.1);
        let row = |x: &[f64], token: usize, dim: usize| {
            x[(token * case.heads.1 + kv_head) * dim..][..dim].to_vec()
        };
        let mut logits: Vec<f64> = keys
            .clone()
            .map(|key| {
                let k = row(k, key, case.dims.0);
                let dot: f64 = q.iter().zip(&k).map(|(q, k)| f64::from(*q) * k).sum();
                let s = dot / (case.dims.0 as f64).sqrt();
                case.softcap.map_or(s, |cap| f64::from(cap) * (s / f64::from(cap)).tanh())
            })
            .collect();
        if case.sinks {
            logits.push(f64::from(self.sinks[head]));
        }
        let max = logits.iter().fold(f64::NEG_INFINITY, |a, &b| a.max(b));
        let sum: f64 = logits.iter().map(|s| (s - max).exp()).sum();
        let mut out = vec![0.0; case.dims.1];
        for (key, s) in keys.zip(&logits) {
            let weight = (s - max).exp() / sum;
            out.iter_mut().zip(row(v, key, case.dims.1)).for_each(|(o, v)| *o += weight * v);
        }
        out
    }
}

/// Largest relative error of a head vector.
fn worst(case: &Case, out: &[f32], oracle: &[f64]) -> f64 {
    assert_eq!(out.len(), oracle.len());
    let dim = case.dims.1;
    let rows = out.chunks(dim).zip(oracle.chunks(dim));
    rows.map(|(out, oracle)| {
        let square = |x: f64| x * x;
        let error: f64 = out.iter().zip(oracle).map(|(a, b)| square(f64::from(*a) - b)).sum();
        let norm: f64 = oracle.iter().map(|b| square(*b)).sum();
        let relative = (error / norm.max(1e-30)).sqrt();
        if relative.is_nan() { f64::INFINITY } else { relative }
    })
    .fold(0.0, f64::max)
}

/// Every instruction set of this machine, with and without its extensions.
fn cpus() -> Vec<Cpu> {
    let all = Cpu::all();
    let plain = all.iter().map(|cpu| cpu.without_extensions()).filter(|cpu| !all.contains(cpu));
    plain.collect::<Vec<_>>().into_iter().chain(all).collect()
}

fn check(case: &Case) {
    let setup = Setup::new(case);
    let oracle = setup.oracle(case);
    for cpu in cpus() {
        for threads in [1, 3] {
            let pool = Pool::with_cpu(threads, cpu).unwrap();
            let error = worst(case, &setup.attention(case, &pool), &oracle);
            assert!(error <= case.tolerance(), "{error} {cpu:?} {threads} threads {case:?}");
        }
    }
}

#[test]
fn decode_at_odd_lengths_in_every_format() {
    for format in KvFormat::ALL {
        for tokens in [1, 255, 256, 257, 4099] {
            check(&Case::new((8, 2), 64, format, &[(tokens - 1, 1)]));
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
        let (setup, pool) = (Setup::new(&case), Pool::new(1).unwrap());
        let all = setup.attention(&case, &pool);
        let blocks: Vec<&KvBlock> = setup.blocks[0][2..].iter().collect();
        let run = AttentionRun {
            q: &setup.queries[0],
            first_position: 800,
            blocks: &blocks,
            first_block_position: 512,
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
            let (pool, good) = (Pool::new(1).unwrap(), vec![0.1; 2 * 64]);
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
    let (mut setup, pool) = (Setup::new(&case), Pool::new(2).unwrap());
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
    let one = scratch_bytes(&params, 1);
    assert!(one < 1 << 20, "{one}");
    assert!(scratch_bytes(&params, 4) >= 4 * one);
}

#[test]
fn wrong_shapes_are_errors() {
    let case = Case::new((4, 2), 64, KvFormat::F16, &[(10, 2)]);
    let (setup, pool) = (Setup::new(&case), Pool::new(1).unwrap());
    let (blocks, good) = ([&setup.blocks[0][0]], setup.params(&case));
    let run = AttentionRun {
        q: &setup.queries[0],
        first_position: 10,
        blocks: &blocks,
        first_block_position: 0,
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
