//! Attention against an f64 oracle over the same quantised values: the oracle and its cases.

mod edges;
mod formats;

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
    order: Order,
    first_key: usize,
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
            order: Order::Fastest,
            first_key: 0,
            runs: runs.to_vec(),
            sharpness: 1.0,
            seed: Rng::fresh().next(),
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
        let mut rng = Rng::seeded(case.seed);
        let layout = case.layout();
        let pool = Pool::new(1).unwrap();
        let mut queries = Vec::new();
        let mut blocks = Vec::new();
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
            order: case.order,
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
                first_key: case.first_key,
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
                let start = case.window.map_or(0, |w| (position + 1).saturating_sub(w));
                let start = start.max(case.first_key).min(end);
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

/// Largest relative error of a head vector, as a share of its length, or of a twentieth of the
/// typical length if that is more.
fn worst(case: &Case, out: &[f32], oracle: &[f64]) -> f64 {
    assert_eq!(out.len(), oracle.len());
    let dim = case.dims.1;
    let typical = oracle.iter().map(|x| x * x).sum::<f64>() / (oracle.len() / dim) as f64;
    let rows = out.chunks(dim).zip(oracle.chunks(dim));
    rows.map(|(out, oracle)| {
        let square = |x: f64| x * x;
        let error: f64 = out.iter().zip(oracle).map(|(a, b)| square(f64::from(*a) - b)).sum();
        let norm: f64 = oracle.iter().map(|b| square(*b)).sum();
        let relative = (error / norm.max(typical / 400.0)).sqrt();
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
