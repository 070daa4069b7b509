//! Kernels touch no memory outside of what they are given: every slice here ends where a page
//! without access begins, or begins where one ends, and results are those of other memory.

use crate::elementwise::{Glu, Map, add_assign, glu, map};
use crate::matmul::{GatedPair, Precision, matmul, matmul_glu};
use crate::norm::{layer_norm, rms_norm};
use crate::pool::Pool;
use crate::simd::{Kernel, LANES, Simd, dispatch};
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
