//! Shared support of the engine tests: a thread for MLX, goldens, and engines over their checkpoints.
#![allow(dead_code, reason = "each test binary uses its own part")]

pub(crate) mod images;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::sync::{LazyLock, Mutex};

use mlxcel_estimator::KvMode;
use mlxcel_runtime::engine::{Engine, EngineConfig, ModelSource, NoProgress};
use mlxcel_runtime::loading::Residence;
use mlxcel_runtime::{ComputeDtype, KernelSet, OpsConfig, Precision};
use mlxcel_testing::golden::Variant;
use safetensors::SafeTensors;
use tempfile::TempDir;

/// Runs `body` on the thread of this binary that owns MLX, and propagates its panics.
pub(crate) fn on_engine(body: impl FnOnce() + Send + 'static) {
    type Job = Box<dyn FnOnce() + Send>;
    static ENGINE: LazyLock<Mutex<Sender<Job>>> = LazyLock::new(|| {
        let (jobs, queue) = channel::<Job>();
        std::thread::spawn(move || queue.into_iter().for_each(|job| job()));
        Mutex::new(jobs)
    });
    let (done, outcome) = channel();
    let job = Box::new(move || done.send(catch_unwind(AssertUnwindSafe(body))).unwrap());
    ENGINE.lock().unwrap().send(job).unwrap();
    if let Err(panic) = outcome.recv().unwrap() {
        resume_unwind(panic);
    }
}

/// Engine configuration of a test.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) kernels: KernelSet,
    pub(crate) dtype: ComputeDtype,
    pub(crate) precision: Precision,
    pub(crate) kv_mode: KvMode,
    pub(crate) prefill_chunk: usize,
    pub(crate) weights: Residence,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            kernels: KernelSet::Host,
            dtype: ComputeDtype::Fp32,
            precision: Precision::Exact,
            kv_mode: KvMode::Fp16,
            prefill_chunk: 512,
            weights: Residence::Auto,
        }
    }
}

impl Setup {
    /// Loads an engine for `source`.
    pub(crate) fn engine(&self, source: &ModelSource) -> Engine {
        let ops = OpsConfig {
            kernels: self.kernels,
            threads: Some(2),
            precision: self.precision,
            dtype: self.dtype,
        };
        let &Self { kv_mode, prefill_chunk, weights, .. } = self;
        let config = EngineConfig { ops, kv_mode, prefill_chunk, weights };
        Engine::load(source, config, &mut NoProgress).unwrap()
    }
}

/// One variant of a configuration: its checkpoint and mlx-lm's results.
pub(crate) struct Golden {
    folder: TempDir,
    pub(crate) tokens: Vec<u32>,
    pub(crate) positions: Vec<usize>,
    pub(crate) one: Vec<f32>,
    pub(crate) full: Vec<f32>,
    pub(crate) top1: Vec<usize>,
    pub(crate) decode: Vec<f32>,
}

impl Golden {
    /// Creates the checkpoint and reads the goldens.
    pub(crate) fn load(name: &str, variant: &Variant) -> Self {
        let folder = TempDir::new().unwrap();
        mlxcel_testing::golden::checkpoint(name, variant, folder.path()).unwrap();
        let bytes = std::fs::read(mlxcel_testing::golden::path(name)).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let floats = |tensor: &str| {
            let view = file.tensor(&format!("{}.{tensor}", variant.name)).unwrap();
            words(view.data()).map(f32::from_le_bytes).collect()
        };
        let ints = |tensor: &str| {
            let data = file.tensor(tensor).unwrap().data().to_vec();
            words(&data).map(i32::from_le_bytes).collect::<Vec<_>>()
        };
        let as_usize = |v: Vec<i32>| v.into_iter().map(|x| usize::try_from(x).unwrap()).collect();
        Self {
            tokens: ints("tokens").into_iter().map(|t| u32::try_from(t).unwrap()).collect(),
            positions: as_usize(ints("positions")),
            one: floats("one"),
            full: floats("full"),
            top1: as_usize(ints(&format!("{}.top1", variant.name))),
            decode: floats("decode"),
            folder,
        }
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn engine(&self, setup: &Setup) -> Engine {
        setup.engine(&ModelSource::Folder(self.folder.path().to_owned()))
    }
}

fn words(bytes: &[u8]) -> impl Iterator<Item = [u8; 4]> + '_ {
    bytes.chunks_exact(4).map(|word| word.try_into().unwrap())
}

/// Cosine of the angle between two rows, in f64.
pub(crate) fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |x: &[f32], y: &[f32]| {
        x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>()
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// Index of the largest element, the first among equal ones.
pub(crate) fn argmax(row: &[f32]) -> usize {
    let better = |best: usize, i: usize| if row[i] > row[best] { i } else { best };
    (0..row.len()).fold(0, better)
}

/// The largest difference, relative to the largest element of `b`.
pub(crate) fn relative_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let size = b.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    a.iter().zip(b).fold(0.0f32, |m, (x, y)| m.max((x - y).abs())) / size
}
