//! Kernels touch no memory outside of what they are given: every slice here ends where a page
//! without access begins, or begins where one ends, and results are those of other memory.

use crate::attention::{AttentionParams, AttentionRun, Mask, attention};
use crate::elementwise::{Glu, Map, add_assign, glu, map};
use crate::kv::{BlockLayout, KvBlock, KvFormat, ValueStore, append};
use crate::matmul::{GatedPair, Precision, matmul, matmul_glu};
use crate::norm::{layer_norm, rms_norm};
use crate::order::Order;
use crate::pool::Pool;
use crate::recurrent::{
    Conv, Delta, DeltaSteps, RecurrentState, Scan1, Scan2, Steps1, Steps2, WindowStore,
    causal_conv, gated_delta, scan1, scan2,
};
use crate::rope::{Pairing, Rotation, rope};
use crate::simd::{Kernel, LANES, Simd, dispatch};
use crate::slab::Slab;
use crate::testing::{Rng, pools, store};
use crate::weights::{Affine, FloatType, WeightMatrix};
use bytemuck::Pod;

const FLOATS: [FloatType; 3] = [FloatType::F32, FloatType::F16, FloatType::Bf16];
const PRECISIONS: [Precision; 3] = [Precision::Exact, Precision::Int16, Precision::Int8];
const PAGE: usize = 4096;

/// End at which the data of a [`Guarded`] touches a page without access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Edge {
    Front,
    Back,
}

/// Values between two pages without access, against one of them.
struct Guarded<T> {
    base: *mut libc::c_void,
    bytes: usize,
    first: *mut T,
    len: usize,
}

impl<T: Pod> Guarded<T> {
    fn new(values: &[T], edge: Edge) -> Self {
        let size = size_of_val(values);
        let inner = size.div_ceil(PAGE).max(1) * PAGE;
        let bytes = inner + 2 * PAGE;
        // SAFETY: a mapping of its own, of which the inner pages are made accessible.
        unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let base = libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_NONE, flags, -1, 0);
            assert_ne!(base, libc::MAP_FAILED);
            let data = base.cast::<u8>().add(PAGE);
            let access = libc::PROT_READ | libc::PROT_WRITE;
            assert_eq!(libc::mprotect(data.cast(), inner, access), 0);
            let first = if edge == Edge::Back { data.add(inner - size) } else { data };
            first.copy_from_nonoverlapping(values.as_ptr().cast(), size);
            Self { base, bytes, first: first.cast(), len: values.len() }
        }
    }

    fn get(&self) -> &[T] {
        // SAFETY: written by `new`, aligned like a page's end.
        unsafe { std::slice::from_raw_parts(self.first, self.len) }
    }

    fn get_mut(&mut self) -> &mut [T] {
        // SAFETY: written by `new`; `&mut self` is the only access.
        unsafe { std::slice::from_raw_parts_mut(self.first, self.len) }
    }
}

impl<T: Pod> AsRef<[T]> for Guarded<T> {
    fn as_ref(&self) -> &[T] {
        self.get()
    }
}

impl<T: Pod> AsMut<[T]> for Guarded<T> {
    fn as_mut(&mut self) -> &mut [T] {
        self.get_mut()
    }
}

impl<T> Drop for Guarded<T> {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`.
        unsafe { libc::munmap(self.base, self.bytes) };
    }
}

/// Storage of a matrix.
struct Parts {
    shape: (usize, usize),
    kind: Kind,
    codes: Vec<u8>,
    scales: Vec<u8>,
    biases: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Affine(u32, usize, FloatType),
    Mxfp4,
    Dense(FloatType),
}

impl Parts {
    fn new(rng: &mut Rng, shape: (usize, usize), kind: Kind) -> Self {
        let count = shape.0 * shape.1;
        let (codes, scales, biases) = match kind {
            Kind::Affine(bits, group, ty) => (
                rng.bytes(count / 8 * bits as usize),
                store(&rng.normals(count / group), ty),
                store(&rng.normals(count / group), ty),
            ),
            Kind::Mxfp4 => (
                rng.bytes(count / 2),
                (0..count / 32).map(|_| u8::try_from(120 + rng.below(9)).unwrap()).collect(),
                Vec::new(),
            ),
            Kind::Dense(ty) => (store(&rng.normals(count), ty), Vec::new(), Vec::new()),
        };
        Self { shape, kind, codes, scales, biases }
    }

    fn matrix<'a>(&self, codes: &'a [u8], scales: &'a [u8], biases: &'a [u8]) -> WeightMatrix<'a> {
        let (rows, cols) = self.shape;
        match self.kind {
            Kind::Affine(bits, group, scale_type) => {
                let affine = Affine { bits, group, codes, scales, biases, scale_type };
                WeightMatrix::affine(rows, cols, affine).unwrap()
            }
            Kind::Mxfp4 => WeightMatrix::mxfp4(rows, cols, codes, scales).unwrap(),
            Kind::Dense(ty) => WeightMatrix::dense(rows, cols, ty, codes).unwrap(),
        }
    }
}

fn check(pool: &Pool, rng: &mut Rng, shape: (usize, usize), kind: Kind, tokens: usize) {
    let (rows, cols) = shape;
    let parts = Parts::new(rng, shape, kind);
    let x = rng.normals(tokens * cols);
    for precision in PRECISIONS {
        let weights = parts.matrix(&parts.codes, &parts.scales, &parts.biases);
        let mut plain = vec![f32::NAN; tokens * rows];
        matmul(pool, &x, &[weights], &mut [&mut plain], precision).unwrap();
        let mut plain_glu = vec![f32::NAN; tokens * rows];
        matmul_glu(pool, &x, silu(weights), &mut plain_glu, precision).unwrap();
        for edge in [Edge::Back, Edge::Front] {
            let codes = Guarded::new(&parts.codes, edge);
            let scales = Guarded::new(&parts.scales, edge);
            let biases = Guarded::new(&parts.biases, edge);
            let weights = parts.matrix(codes.get(), scales.get(), biases.get());
            let x = Guarded::new(&x, edge);
            let mut out = Guarded::new(&vec![f32::NAN; tokens * rows], edge);
            matmul(pool, x.get(), &[weights], &mut [out.get_mut()], precision).unwrap();
            let what = format!("{pool:?} {shape:?} {kind:?} {tokens} {precision:?} {edge:?}");
            assert!(same(out.get(), &plain), "{what}");
            matmul_glu(pool, x.get(), silu(weights), out.get_mut(), precision).unwrap();
            assert!(same(out.get(), &plain_glu), "glu {what}");
        }
    }
}

/// A matrix as both halves of a gated pair.
fn silu(weights: WeightMatrix<'_>) -> GatedPair<'_> {
    GatedPair { gate: weights, up: weights, activation: Glu::Silu }
}

fn same(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits() && !a.is_nan())
}

/// Loads the first values of the slice, as many as there are.
struct LoadSome<'a>(FloatType, &'a [u8]);

impl Kernel for LoadSome<'_> {
    type Output = [f32; LANES];
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> [f32; LANES] {
        let mut lanes = [f32::NAN; LANES];
        // SAFETY: the slice has that many values, and `lanes` room for sixteen.
        unsafe {
            let count = self.1.len() / self.0.bytes();
            let value = simd.load_some_floats(self.0, self.1.as_ptr(), count);
            simd.store(lanes.as_mut_ptr(), value);
        }
        lanes
    }
}

#[test]
fn partial_loads() {
    let mut rng = Rng::fresh();
    for pool in pools() {
        for ty in FLOATS {
            for count in 0..=LANES {
                let values = rng.normals(count);
                let stored = store(&values, ty);
                let mut padded = stored.clone();
                padded.resize(LANES * ty.bytes(), 0);
                let expected = dispatch(pool.cpu(), LoadSome(ty, &padded));
                for edge in [Edge::Back, Edge::Front] {
                    let guarded = Guarded::new(&stored, edge);
                    let loaded = dispatch(pool.cpu(), LoadSome(ty, guarded.get()));
                    assert!(same(&loaded, &expected), "{pool:?} {ty:?} {count} {edge:?}");
                }
            }
        }
    }
}

#[test]
fn affine_products() {
    let mut rng = Rng::fresh();
    for pool in pools() {
        for bits in [2, 3, 4, 5, 6, 8] {
            for group in [32, 64, 128] {
                for (i, ty) in FLOATS.into_iter().enumerate() {
                    let shape = (1 + rng.below(9), group * (1 + rng.below(20)));
                    let tokens = [1, 2 + rng.below(7), 9 + rng.below(12)][i];
                    check(&pool, &mut rng, shape, Kind::Affine(bits, group, ty), tokens);
                    let shape = (1 + rng.below(40), group * (1 + rng.below(3)));
                    let tokens = [9 + rng.below(12), 1, 2 + rng.below(7)][i];
                    check(&pool, &mut rng, shape, Kind::Affine(bits, group, ty), tokens);
                }
            }
        }
    }
}

#[test]
fn mxfp4_products() {
    let mut rng = Rng::fresh();
    for pool in pools() {
        for tokens in [1, 2, 3, 4, 5, 9, 17, 25] {
            for _ in 0..3 {
                let shape = (1 + rng.below(40), 32 * (1 + rng.below(20)));
                check(&pool, &mut rng, shape, Kind::Mxfp4, tokens);
            }
        }
    }
}

#[test]
fn dense_products() {
    let mut rng = Rng::fresh();
    for pool in pools() {
        for ty in FLOATS {
            for tokens in [1, 2, 3, 4, 5, 9, 17, 25] {
                for _ in 0..3 {
                    let shape = (1 + rng.below(40), 1 + rng.below(200));
                    check(&pool, &mut rng, shape, Kind::Dense(ty), tokens);
                }
            }
        }
    }
}

#[test]
fn norms_and_functions_of_elements() {
    let mut rng = Rng::fresh();
    for pool in pools() {
        for len in (1..70).chain([127, 128, 129, 1000]) {
            let x = rng.normals(3 * len);
            let y = rng.normals(3 * len);
            let z = rng.normals(3 * len);
            let run = |x: &[f32], y: &[f32], z: &[f32], out: &mut [f32]| {
                let mut all = Vec::new();
                rms_norm(&pool, x, &y[..len], 1e-5, out).unwrap();
                all.extend_from_slice(out);
                rms_norm(&pool, x, &y[2 * len..], 1e-5, out).unwrap();
                all.extend_from_slice(out);
                layer_norm(&pool, x, &y[2 * len..], &z[2 * len..], 1e-5, out).unwrap();
                all.extend_from_slice(out);
                glu(&pool, Glu::Silu, out, y).unwrap();
                all.extend_from_slice(out);
                add_assign(&pool, out, z).unwrap();
                map(&pool, Map::Scale(0.5), out);
                all.extend_from_slice(out);
                all
            };
            let plain = run(&x, &y, &z, &mut vec![0.0; 3 * len]);
            for edge in [Edge::Back, Edge::Front] {
                let guard = |values: &[f32]| Guarded::new(values, edge);
                let mut out = guard(&vec![0.0; 3 * len]);
                let guarded = run(guard(&x).get(), guard(&y).get(), guard(&z).get(), out.get_mut());
                assert!(same(&plain, &guarded), "{pool:?} {len} {edge:?}");
            }
        }
    }
}

/// An empty block whose last byte is followed by a page without access.
fn guarded_block(layout: BlockLayout) -> KvBlock {
    // A slab's mapping is a huge page longer than the slab, and begins at a page.
    let mut slab = Slab::new(layout.bytes()).unwrap();
    let mut block = KvBlock::new_in(&mut slab, layout).unwrap();
    let end = block.bytes_mut().as_mut_ptr_range().end;
    assert_eq!(end as usize % PAGE, 0, "{layout:?}");
    // SAFETY: the page after the slab's only part belongs to its mapping, and nothing uses it.
    assert_eq!(unsafe { libc::mprotect(end.cast(), PAGE, libc::PROT_NONE) }, 0);
    block
}

/// Layouts of four heads, whose blocks are whole pages.
fn layouts() -> Vec<BlockLayout> {
    let dims = [(64, 64), (128, 32), (72, 40), (80, 112)];
    let formats = KvFormat::ALL.into_iter().flat_map(|format| dims.map(|dims| (format, dims)));
    let layouts = formats.map(|(format, (key_dim, value_dim))| {
        BlockLayout::new(4, key_dim, value_dim, format, ValueStore::Own(format))
    });
    layouts.flatten().collect()
}

#[test]
fn appends_and_attention() {
    let mut rng = Rng::fresh();
    for pool in pools() {
        for layout in layouts() {
            let key_dim = layout.key_dim();
            let value_dim = layout.value_dim();
            let tokens = 256 + [1 + rng.below(255), 256][rng.below(2)];
            let k = rng.normals(tokens * 4 * key_dim);
            let v = rng.normals(tokens * 4 * value_dim);
            let mut plain = [KvBlock::new(layout).unwrap(), KvBlock::new(layout).unwrap()];
            append(&pool, &mut plain.each_mut(), 0, &k, &v).unwrap();
            for edge in [Edge::Back, Edge::Front] {
                let what = format!("{pool:?} {layout:?} {tokens} {edge:?}");
                let mut blocks = [guarded_block(layout), guarded_block(layout)];
                let k = Guarded::new(&k, edge);
                let v = Guarded::new(&v, edge);
                append(&pool, &mut blocks.each_mut(), 0, k.get(), v.get()).unwrap();
                for (block, plain) in blocks.iter().zip(&plain) {
                    assert_eq!(block.bytes(), plain.bytes(), "{what}");
                }
                for new in [1, 2 + rng.below(30)] {
                    let q = rng.normals(new * 8 * key_dim);
                    let sinks = rng.normals(8);
                    let mut expected = vec![f32::NAN; new * 8 * value_dim];
                    let call = Call { pool: &pool, layout, tokens };
                    call.attend(&plain, &q, &sinks, &mut expected);
                    let q = Guarded::new(&q, edge);
                    let sinks = Guarded::new(&sinks, edge);
                    let mut out = Guarded::new(&vec![f32::NAN; expected.len()], edge);
                    call.attend(&blocks, q.get(), sinks.get(), out.get_mut());
                    assert!(same(out.get(), &expected), "{what} {new}");
                }
                let sealed = blocks[0].with_values_as(&pool, KvFormat::Int8, 256).unwrap();
                let expected = plain[0].with_values_as(&pool, KvFormat::Int8, 256).unwrap();
                assert_eq!(sealed.bytes(), expected.bytes(), "{what}");
            }
        }
    }
}

/// Attention of the last tokens of a cache.
struct Call<'a> {
    pool: &'a Pool,
    layout: BlockLayout,
    tokens: usize,
}

impl Call<'_> {
    fn attend(&self, blocks: &[KvBlock; 2], q: &[f32], sinks: &[f32], out: &mut [f32]) {
        let params = AttentionParams {
            query_heads: 8,
            kv_heads: 4,
            key_dim: self.layout.key_dim(),
            value_dim: self.layout.value_dim(),
            scale: 0.1,
            softcap: Some(20.0),
            sinks: Some(sinks),
            window: Some(self.tokens - 17),
            mask: Mask::Causal,
            order: Order::Fastest,
        };
        let run = AttentionRun {
            q,
            first_position: self.tokens - q.len() / 8 / self.layout.key_dim(),
            blocks: &blocks.each_ref(),
            first_block_position: 0,
            first_key: 0,
            kv_tokens: self.tokens,
        };
        attention(self.pool, &params, &[run], out).unwrap();
    }
}

#[test]
fn rotations() {
    let mut rng = Rng::fresh();
    for pool in pools() {
        for dim in [2, 3, 16, 33, 64, 80] {
            for pairing in [Pairing::Halves, Pairing::Neighbours] {
                let inverse = rng.normals(dim / 2);
                let before = rng.normals(5 * 3 * dim);
                let positions = [0, 1, 2, 300, 7];
                let turned = |inverse: &[f32], positions: &[i32], x: &mut [f32]| {
                    let rotation = Rotation { inverse, sections: &[], pairing, scale: 1.0 };
                    rope(&pool, x, dim, positions, &rotation).unwrap();
                };
                let mut plain = before.clone();
                turned(&inverse, &positions, &mut plain);
                for edge in [Edge::Back, Edge::Front] {
                    let inverse = Guarded::new(&inverse, edge);
                    let positions = Guarded::new(&positions, edge);
                    let mut x = Guarded::new(&before, edge);
                    turned(inverse.get(), positions.get(), x.get_mut());
                    assert!(same(x.get(), &plain), "{pool:?} {dim} {pairing:?} {edge:?}");
                }
            }
        }
    }
}

#[test]
fn recurrent_layers() {
    let mut rng = Rng::fresh();
    for pool in pools() {
        for size in [1, 15, 16, 17, 40] {
            let inputs: Vec<Vec<f32>> = (0..8).map(|_| rng.normals(3 * 64 * size)).collect();
            let plain = recurrent(&pool, size, &|count, which| inputs[which][..count].to_vec());
            for edge in [Edge::Back, Edge::Front] {
                let guard = |count, which: usize| Guarded::new(&inputs[which][..count], edge);
                let guarded = recurrent(&pool, size, &guard);
                assert!(same(&guarded, &plain), "{pool:?} {size} {edge:?}");
            }
        }
    }
}

/// All recurrent kernels over three tokens, with inputs made by `make(len, which)`; their outputs
/// and states. `size` is the state size, or the number of channels.
fn recurrent<T: AsRef<[f32]> + AsMut<[f32]>>(
    pool: &Pool,
    size: usize,
    make: &dyn Fn(usize, usize) -> T,
) -> Vec<f32> {
    const TOKENS: usize = 3;
    let mut all = Vec::new();

    let channels = 7;
    let rates = make(channels * size, 0);
    let d = make(channels, 1);
    let x = make(TOKENS * channels, 2);
    let dt = make(TOKENS * channels, 3);
    let b = make(TOKENS * size, 4);
    let c = make(TOKENS * size, 5);
    let mut sums = make(channels * size, 6);
    let mut out = make(TOKENS * channels, 7);
    let scan = Scan1 { rates: rates.as_ref(), d: d.as_ref() };
    let steps = Steps1 { x: x.as_ref(), dt: dt.as_ref(), b: b.as_ref(), c: c.as_ref() };
    scan1(pool, &scan, &steps, sums.as_mut(), out.as_mut()).unwrap();
    all.extend_from_slice(sums.as_ref());
    all.extend_from_slice(out.as_ref());

    let a_log = make(2, 0);
    let dt_bias = make(2, 3);
    let xbc = make(TOKENS * (2 * 5 + 2 * size), 2);
    let dt = make(TOKENS * 2, 4);
    let mut sums = make(2 * 5 * size, 6);
    let mut out = make(TOKENS * 2 * 5, 7);
    let scan = Scan2 {
        a_log: a_log.as_ref(),
        d: &[0.5, 0.25],
        dt_bias: dt_bias.as_ref(),
        limits: (0.0, 10.0),
        head_dim: 5,
        groups: 1,
        state_size: size,
    };
    let steps = Steps2 { xbc: xbc.as_ref(), dt: dt.as_ref() };
    scan2(pool, &scan, &steps, sums.as_mut(), out.as_mut()).unwrap();
    all.extend_from_slice(sums.as_ref());
    all.extend_from_slice(out.as_ref());

    let qkv = make(TOKENS * (2 * size + 2 * 5), 1);
    let b = make(TOKENS * 2, 5);
    let mut state = make(2 * 5 * size, 6);
    let mut out = make(TOKENS * 2 * 5, 7);
    let layer = Delta {
        a_log: a_log.as_ref(),
        dt_bias: dt_bias.as_ref(),
        key_heads: 1,
        key_dim: size,
        value_dim: 5,
    };
    let steps = DeltaSteps { qkv: qkv.as_ref(), a: dt.as_ref(), b: b.as_ref() };
    gated_delta(pool, &layer, &steps, state.as_mut(), out.as_mut()).unwrap();
    all.extend_from_slice(state.as_ref());
    all.extend_from_slice(out.as_ref());

    let taps = make(4 * size, 0);
    let bias = make(size, 1);
    let x = make(TOKENS * size, 2);
    let mut out = make(TOKENS * size, 7);
    let conv = Conv {
        taps: taps.as_ref(),
        bias: Some(bias.as_ref()),
        channels: size,
        activation: Some(Glu::Silu),
    };
    let mut state = RecurrentState::new(3 * size, 0, WindowStore::Full);
    causal_conv(pool, x.as_ref(), &conv, &mut state, out.as_mut()).unwrap();
    all.extend(state.window());
    all.extend_from_slice(out.as_ref());
    all
}
