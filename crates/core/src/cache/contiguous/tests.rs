//! Codes against the kernels' own quantisers, and arrays against a `Vec` of all rows ever appended.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::mpsc::{Sender, channel};
use std::sync::{LazyLock, Mutex};

use mlxcel_estimator::{
    Backend, KvMode, Machine, ModelSpec, WeightFootprint, Workload, estimate_total_memory,
};
use mlxcel_kernels::Pool;
use mlxcel_kernels::kv::{self, BlockLayout, KvBlock};
use mlxcel_kernels::turbo::{self, ScaleRule, Side};
use proptest::prelude::*;

use super::coding::Coding;
use super::*;
use crate::attention::AttentionSpec;
use crate::batch::Span;
use crate::cache::SequenceCache;
use crate::{KernelSet, Ops, OpsConfig, Pass, Precision, SequenceRun};

const HEADS: usize = 2;
const DIM: usize = 32;

/// Runs `body` on the one thread of this binary that owns MLX's streams, and fails as it does.
fn on_mlx(body: impl FnOnce() + Send + 'static) {
    type Job = Box<dyn FnOnce() + Send>;
    static MLX: LazyLock<Mutex<Sender<Job>>> = LazyLock::new(|| {
        let (jobs, queue) = channel::<Job>();
        std::thread::spawn(move || queue.into_iter().for_each(|job| job()));
        Mutex::new(jobs)
    });
    let (done, outcome) = channel();
    let job = Box::new(move || done.send(catch_unwind(AssertUnwindSafe(body))).unwrap());
    MLX.lock().unwrap_or_else(std::sync::PoisonError::into_inner).send(job).unwrap();
    if let Err(panic) = outcome.recv().unwrap() {
        resume_unwind(panic);
    }
}

/// A pseudo-random value in (−1, 1), determined by its place and the time of its writing.
fn value(place: [usize; 4], coord: usize) -> f32 {
    let seed = place.iter().chain([&coord]).fold(0x9E37_79B9_7F4A_7C15, |hash: u64, &n| {
        (hash ^ n as u64).wrapping_mul(0xBF58_476D_1CE4_E5B9).rotate_left(27)
    });
    (seed >> 40) as f32 / (1u64 << 23) as f32 - 1.0
}

/// Rows of `side` at the positions from `first` on, written at `times`, `[1, heads, tokens, dim]`.
fn rows(side: usize, first: usize, times: &[u16]) -> Array {
    let mut values = Vec::new();
    for head in 0..HEADS {
        for (position, &time) in (first..).zip(times) {
            let place = [head, position, side, time.into()];
            values.extend((0..DIM).map(|coord| value(place, coord)));
        }
    }
    Array::from_slice(&values, &ints([1, HEADS, times.len(), DIM]).unwrap()).unwrap()
}

/// `rows`, encoded and decoded by themselves.
fn coded(side: KvSide, rows: &Array) -> Array {
    let coding = Coding::new(&side).unwrap();
    coding.decode(&coding.encode(rows).unwrap(), Dtype::Float32).unwrap()
}

fn floats(array: &Array) -> Vec<f32> {
    array.to_vec().unwrap()
}

/// What a cache of one layout goes through, and all that it should hold.
struct Trial {
    format: LayerFormat,
    window: Option<NonZeroUsize>,
    cache: ContiguousCache,
    /// `written[position]` is the time at which it was written.
    written: Vec<u16>,
}

impl Trial {
    fn new(mode: KvMode, window: Option<usize>) -> Self {
        let window = window.and_then(NonZeroUsize::new);
        let (key_dim, value_dim) = (DIM, DIM);
        let layout = LayerLayout { kv_heads: HEADS, key_dim, value_dim, window, latent: false };
        let storage = KvStorage { mode, dtype: ComputeDtype::Fp32 };
        let format = LayerFormat::new(&layout, storage).unwrap();
        let cache = ContiguousCache::new(&layout, storage).unwrap();
        Self { format, window, cache, written: Vec::new() }
    }

    fn append(&mut self, time: u16, tokens: usize) {
        let run = Span { start: 0, len: tokens, position: self.written.len() };
        let parts = match self.cache.breaks_at_blocks() {
            true => run.by_blocks(),
            false => vec![run],
        };
        for Span { len, position, .. } in parts {
            let times = vec![time; len];
            let (k, v) = (rows(0, position, &times), rows(1, position, &times));
            let held = self.cache.append(&k, &v).unwrap();
            self.written.resize(position + len, time);
            let seen_from = self.window.map_or(0, |w| (position + 1).saturating_sub(w.get()));
            assert!(held.first <= seen_from, "{} of {seen_from}", held.first);
            self.check(&held, position / KV_BLOCK_TOKENS * KV_BLOCK_TOKENS);
        }
    }

    /// Checks all that is held; where values are sealed, those from position `open` on are not.
    fn check(&self, held: &KvView, open: usize) {
        let expected = |side, first: usize| rows(side, first, &self.written[first..]);
        let keys = coded(self.format.keys(), &expected(0, held.first));
        assert_eq!(floats(&held.keys), floats(&keys));
        let ValueStore::Own(format) = self.format.open.value() else { panic!("no latent") };
        let values = expected(1, held.first);
        let values = match (self.format.sealed, open > held.first) {
            (Some(sealed), true) => {
                let side = self.format.values(sealed);
                let coding = Coding::new(&side).unwrap();
                let open = coding.rotation().unwrap().apply(&expected(1, open)).unwrap();
                let all = coded(side, &values);
                let sealed = dims(&values)[2] - dims(&open)[2];
                let sealed = ops::slice_axis(&all, 2, 0, int(sealed).unwrap()).unwrap();
                ops::concatenate(&[&sealed, &open], 2).unwrap()
            }
            _ => coded(self.format.values(format), &values),
        };
        assert_eq!(floats(&held.values), floats(&values));
    }

    /// Trims to `to`, or to the start of its block where that is sealed.
    fn trim(&mut self, to: usize) {
        let done = [to, to - to % KV_BLOCK_TOKENS].into_iter().find(|&to| {
            let done = self.cache.trim(to).is_ok();
            assert!(done || self.window.is_some() || self.cache.breaks_at_blocks());
            done
        });
        self.written.truncate(done.unwrap_or(usize::MAX));
        assert_eq!(self.cache.first + self.cache.len, self.written.len());
    }

    /// Checks that a restored cache is equal, and that other bytes are refused.
    fn save(&self) {
        let saved = self.cache.save().unwrap();
        let mut fresh = self.cache.clone();
        fresh.clear();
        let tokens = self.written.len();
        assert!(fresh.restore(&saved, tokens + 1).unwrap().is_none());
        let longer = SavedLayer { bytes: [&saved.bytes[..], &[0]].concat(), ..saved.clone() };
        assert!(fresh.restore(&longer, tokens).unwrap().is_none());
        assert!(fresh.restore(&saved, tokens).unwrap().is_some());
        let all = 0..self.cache.len;
        if !all.is_empty() {
            let [a, b] =
                [&self.cache, &fresh].map(|cache| cache.view(all.clone(), Dtype::Float32).unwrap());
            assert_eq!(floats(&a.keys), floats(&b.keys));
            assert_eq!(floats(&a.values), floats(&b.values));
        }
    }
}

#[test]
fn arrays_hold_appended_rows() {
    on_mlx(|| {
        let config = ProptestConfig { cases: 96, ..ProptestConfig::default() };
        proptest!(config, |(
            mode in prop::sample::select(KvMode::ALL.to_vec()),
            window in prop::option::of(1..700usize),
            steps in prop::collection::vec((1..400usize, prop_oneof![Just(0), 0..300usize]), 1..9),
        )| {
            let mut trial = Trial::new(mode, window);
            for (time, &(tokens, back)) in (0u16..).zip(&steps) {
                trial.append(time, tokens);
                trial.trim(trial.written.len().saturating_sub(back));
            }
            trial.save();
        });
    });
}

/// Rows of every size that matters: ordinary, tiny, huge, zeros, and with a fault.
fn samples(dim: usize) -> Vec<Vec<f32>> {
    let mut rows: Vec<Vec<f32>> = (0..40)
        .map(|row| (0..dim).map(|coord| value([row, 0, 0, 0], coord) * 3.0).collect())
        .collect();
    for (row, factor) in [1e-9f32, 1e-5, 1e-3, 1e3, 1e9].into_iter().enumerate() {
        rows[row].iter_mut().for_each(|x| *x *= factor);
    }
    rows[5].fill(0.0);
    rows[6][dim - 1] = f32::NAN;
    rows[7][dim / 2] = f32::INFINITY;
    rows[8].fill(0.0);
    rows[8][1] = -2.0;
    rows
}

fn arrays(rows: &[Vec<f32>]) -> Array {
    Array::from_slice(&rows.concat(), &ints([rows.len(), rows[0].len()]).unwrap()).unwrap()
}

/// Fails unless `found` is `expected`, but for rows whose scale is not finite: those are not either.
fn assert_rows(what: &str, found: &Array, expected: &[Vec<f32>], tolerance: f32) {
    let found = floats(found);
    for (row, (found, expected)) in found.chunks(expected[0].len()).zip(expected).enumerate() {
        let size = expected.iter().fold(0.0f32, |size, x| size.max(x.abs()));
        if expected.iter().any(|x| !x.is_finite()) {
            assert!(found.iter().any(|x| !x.is_finite()), "{what}, row {row}: {found:?}");
            continue;
        }
        for (found, expected) in found.iter().zip(expected) {
            let far = (found - expected).abs() > tolerance * size;
            assert!(!far, "{what}, row {row}: {found}, expected {expected}");
        }
    }
}

/// `rows` as a block of the host kernels gives them back.
fn host(side: KvSide, rows: &[Vec<f32>]) -> Vec<Vec<f32>> {
    let KvSide { side, format, dim, rule } = side;
    let layout = BlockLayout::new(1, dim, dim, format, ValueStore::Own(format)).unwrap();
    let mut block = KvBlock::new(layout.with_value_scale(rule)).unwrap();
    let (pool, all) = (Pool::new(1).unwrap(), rows.concat());
    kv::append(&pool, &mut [&mut block], 0, &all, &all).unwrap();
    let mut out = vec![0.0; all.len()];
    block.dequantise(side, 0..rows.len(), &mut out).unwrap();
    out.chunks(dim).map(<[f32]>::to_vec).collect()
}

#[test]
fn int8_codes_match_the_kernels() {
    on_mlx(|| {
        let (rule, dim) = (ScaleRule::default(), 80);
        for side in [Side::Key, Side::Value] {
            let side = KvSide { side, format: KvFormat::Int8, dim, rule };
            let rows = samples(dim);
            assert_rows("int8", &coded(side, &arrays(&rows)), &host(side, &rows), 0.0);
        }
    });
}

#[test]
fn turbo_codes_match_the_kernels() {
    on_mlx(|| {
        let rules = [ScaleRule::Unbiased, ScaleRule::Renormalised, ScaleRule::Norm];
        let values = rules.map(|rule| (Side::Value, rule));
        let sides = values.into_iter().chain([(Side::Key, ScaleRule::Unbiased)]);
        for (side, rule) in sides {
            for (format, dim) in [KvFormat::Turbo4, KvFormat::Turbo3]
                .into_iter()
                .flat_map(|format| [32, 128, 512].map(|dim| (format, dim)))
            {
                let (side, rows) = (KvSide { side, format, dim, rule }, samples(dim));
                let rotation = Coding::new(&side).unwrap().rotation().unwrap().clone();
                let found = rotation.undo(&coded(side, &arrays(&rows))).unwrap();
                // Sums in another order: a scale may fall on fp16's next number.
                assert_rows(&format!("{side:?}"), &found, &host(side, &rows), 1e-3);
            }
        }
    });
}

#[test]
fn rotations_match_the_kernels_and_are_invertible() {
    on_mlx(|| {
        let dim = 64;
        let rows = samples(dim)[9..].to_vec();
        let rule = ScaleRule::default();
        let side = KvSide { side: Side::Value, format: KvFormat::Turbo4, dim, rule };
        let coding = Coding::new(&side).unwrap();
        let rotation = coding.rotation().unwrap();
        let rotated = rotation.apply(&arrays(&rows)).unwrap();
        let expected: Vec<Vec<f32>> = rows
            .iter()
            .map(|row| {
                let mut x = row.clone();
                turbo::rotate(Side::Value, &mut x);
                x
            })
            .collect();
        assert_rows("rotated", &rotated, &expected, 1e-6);
        assert_rows("rotated back", &rotation.undo(&rotated).unwrap(), &rows, 1e-6);
    });
}

/// Bytes that MLX takes beyond what it held, at most, while `queries` tokens attend to `tokens` of a
/// cache in each of six layers, one after the other.
fn attention_peak(mode: KvMode, [queries, tokens]: [usize; 2]) -> usize {
    let ops = Ops::new(&OpsConfig {
        kernels: KernelSet::Mlx,
        threads: Some(1),
        precision: Precision::Exact,
        dtype: ComputeDtype::Checkpoint,
    })
    .unwrap();
    let spec = AttentionSpec::causal(8, 8, 64);
    let mut cache = SequenceCache::new(&ops, &[spec.layout(); 6], mode).unwrap();
    cache.fill_synthetic(&ops, tokens).unwrap();
    let mut run = [SequenceRun { tokens: &vec![1; queries], cache: &mut cache }];
    let mut pass = Pass::new(&ops, &mut run, Vec::new()).unwrap();
    let shape = ints([queries, 8 * 64]).unwrap();
    let mut x = Array::full(&shape, 0.5, Dtype::Bfloat16).unwrap();
    x.eval().unwrap();
    let before = mlx_ffi::memory::active_bytes().unwrap();
    mlx_ffi::memory::reset_peak().unwrap();
    for layer in 0..6 {
        x = pass.attention(layer, &x, &x, &x, &spec).unwrap();
    }
    x.eval().unwrap();
    mlx_ffi::memory::peak_bytes().unwrap() - before
}

/// The estimator's transient bytes of one token's decoding beyond those of fp16.
fn decoding_estimate(mode: KvMode, context: u64) -> usize {
    let config = r#"{"model_type": "llama", "vocab_size": 8, "hidden_size": 512, "head_dim": 64,
        "intermediate_size": 64, "num_hidden_layers": 6, "num_attention_heads": 8,
        "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "torch_dtype": "bfloat16"}"#;
    let spec = ModelSpec::from_config(config).unwrap();
    let weights = WeightFootprint::analytical(&spec).unwrap();
    let workload = Workload::uniform(context, 1).with_kv_mode(mode);
    let machine = Machine::new(Backend::Cpu).with_kernels(mlxcel_estimator::KernelSet::Mlx);
    let estimate = estimate_total_memory(&spec, &weights, &workload, &machine).unwrap();
    usize::try_from(estimate.decode_scratch.dequantised_bytes).unwrap()
}

#[test]
fn decoding_stays_within_the_estimate() {
    on_mlx(|| {
        for context in [2048, 16_384] {
            let [queries, cached] = [1, context - 1];
            let fp16 = attention_peak(KvMode::Fp16, [queries, cached]);
            assert_eq!(decoding_estimate(KvMode::Fp16, context as u64), 0);
            for mode in KvMode::ALL.into_iter().filter(|mode| *mode != KvMode::Fp16) {
                let measured = attention_peak(mode, [queries, cached]) - fp16;
                let estimate = decoding_estimate(mode, context as u64);
                let what =
                    format!("{mode} at {context}: {measured} measured, {estimate} estimated");
                assert!(measured <= estimate, "{what}");
                // Two more small layers are in the estimate, of which one or none is in the peak.
                assert!(3 * measured + measured / 4 > estimate, "{what}");
            }
        }
    });
}
