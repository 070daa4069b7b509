//! The kernels of each instruction set behind one table of safe functions.
//!
//! The generic bodies are inlined here into functions compiled for their instruction set, and
//! [`Ops::of`] is the only way to them: it takes a [`Cpu`], which exists only for instructions
//! that this processor has.

use super::lanes::Portable;
use super::matmul::{Shape, matmul};
use super::rounding::{self, ByteScratch, Tile};
use super::softmax::{Cap, State, softmax};
use super::tiles::{self, Turn};
use crate::isa::{Cpu, Isa};
use crate::kv::block::HeadView;
use crate::turbo::Side;
use half::{bf16, f16};
use std::ops::Range;

/// The signature of [`matmul`].
type Product<T> = fn(&Shape, &[f32], &[T], &[u8], &mut [f32]);
/// The signature of [`softmax`].
type Softmax = fn(Cap, usize, &mut [f32], &[Range<usize>], &mut State<'_>);

/// The kernels of one instruction set.
pub(crate) struct Ops {
    pub(crate) matmul_f32: Product<f32>,
    pub(crate) matmul_f16: Product<f16>,
    pub(crate) matmul_bf16: Product<bf16>,
    pub(crate) softmax: Softmax,
    pub(crate) keys: fn(&HeadView<'_>, Range<usize>, &mut [f32]),
    pub(crate) values: fn(&HeadView<'_>, Range<usize>, &mut [f32]),
    pub(crate) rotate: fn(Turn, Side, usize, usize, &mut [f32]),
}

/// The kernels on integer dot products.
pub(crate) struct ByteOps {
    /// Coordinates of a key up to which sums fit.
    pub(crate) max_dim: usize,
    pub(crate) round_queries: fn(usize, &[f32], &mut ByteScratch<'_>),
    pub(crate) weigh: Weigh,
    pub(crate) scores: Scores,
    pub(crate) gather: Gather,
}

/// The signatures of the longer ones.
type Scores = fn(&HeadView<'_>, Range<usize>, &[u8], usize, &ByteScratch<'_>, &mut [f32]);
type Weigh = fn(Cap, &Tile<'_>, &mut [f32], &mut ByteScratch<'_>, &mut State<'_>);
type Gather = fn(&HeadView<'_>, Range<usize>, &[u8], usize, &ByteScratch<'_>, &mut State<'_>);

/// A static table whose entries call the bodies compiled for `$features`.
macro_rules! ops {
    ($(#[$attribute:meta])* $table:ident, $lanes:ty, $($feature:literal)?) => {
        $(#[$attribute])*
        static $table: Ops = {
            // Each pair: the body for these features, and a safe function for the table.
            ops!(@pair $($feature)?, product_f32, matmul::<$lanes, f32>,
                (s: &Shape, a: &[f32], b: &[f32], next: &[u8], c: &mut [f32]));
            ops!(@pair $($feature)?, product_f16, matmul::<$lanes, f16>,
                (s: &Shape, a: &[f32], b: &[f16], next: &[u8], c: &mut [f32]));
            ops!(@pair $($feature)?, product_bf16, matmul::<$lanes, bf16>,
                (s: &Shape, a: &[f32], b: &[bf16], next: &[u8], c: &mut [f32]));
            ops!(@pair $($feature)?, weights, softmax::<$lanes>,
                (cap: Cap, width: usize, scores: &mut [f32], visible: &[Range<usize>],
                 state: &mut State<'_>));
            ops!(@pair $($feature)?, keys, tiles::keys::<$lanes>,
                (view: &HeadView<'_>, tokens: Range<usize>, out: &mut [f32]));
            ops!(@pair $($feature)?, values, tiles::values::<$lanes>,
                (view: &HeadView<'_>, tokens: Range<usize>, out: &mut [f32]));
            ops!(@pair $($feature)?, rotate, tiles::rotate_rows::<$lanes>,
                (turn: Turn, side: Side, dim: usize, stride: usize, x: &mut [f32]));
            Ops {
                matmul_f32: product_f32,
                matmul_f16: product_f16,
                matmul_bf16: product_bf16,
                softmax: weights,
                keys,
                values,
                rotate,
            }
        };
    };
    (@pair $($feature:literal)?, $name:ident, $body:expr, ($($arg:ident: $type:ty),*)) => {
        fn $name($($arg: $type),*) {
            $(#[target_feature(enable = $feature)])?
            unsafe fn body($($arg: $type),*) {
                // SAFETY: the processor has the features that this function is compiled for.
                unsafe { $body($($arg),*) }
            }
            // SAFETY: this function is only reached through its table, which `Ops::of` gives out
            // for a `Cpu` with these features.
            unsafe { body($($arg),*) }
        }
    };
}

ops!(PORTABLE, Portable,);
ops!(
    #[cfg(target_arch = "x86_64")]
    AVX2,
    super::avx2::Avx2,
    "avx2,fma,f16c"
);
ops!(
    #[cfg(target_arch = "x86_64")]
    AVX512,
    super::avx512::Avx512,
    "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c"
);

/// A static table of the kernels on integer dot products: rounding compiled for the first features,
/// products for the second.
#[cfg(target_arch = "x86_64")]
macro_rules! byte_ops {
    ($table:ident, $lanes:ty, $module:ident, $max_dim:expr, $rounding:literal, $products:literal) => {
        static $table: ByteOps = {
    ops!(@pair $rounding, round_queries, rounding::round_queries::<$lanes>,
                (dim: usize, q: &[f32], to: &mut ByteScratch<'_>));
    ops!(@pair $rounding, weigh, rounding::weigh::<$lanes>,
                (cap: Cap, tile: &Tile<'_>, scores: &mut [f32], to: &mut ByteScratch<'_>,
                 state: &mut State<'_>));
    ops!(@pair $products, scores, super::$module::scores,
                (view: &HeadView<'_>, tokens: Range<usize>, next: &[u8], rows: usize,
                 from: &ByteScratch<'_>, out: &mut [f32]));
    ops!(@pair $products, gather, super::$module::gather,
                (view: &HeadView<'_>, tokens: Range<usize>, next: &[u8], rows: usize,
                 from: &ByteScratch<'_>, state: &mut State<'_>));
            ByteOps { max_dim: $max_dim, round_queries, weigh, scores, gather }
        };
    };
}

#[cfg(target_arch = "x86_64")]
byte_ops!(
    AVX512_VNNI,
    super::avx512::Avx512,
    vnni,
    usize::MAX,
    "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c",
    "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c"
);
#[cfg(target_arch = "x86_64")]
byte_ops!(
    AVX2_WORDS,
    super::avx2::Avx2,
    words256,
    super::words256::MAX_DIM,
    "avx2,fma,f16c",
    "avx2,fma,f16c"
);

impl ByteOps {
    /// The kernels for `cpu`, if it has integer dot products that we use.
    pub(crate) fn of(cpu: Cpu) -> Option<&'static Self> {
        match cpu.isa() {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 if cpu.has_vnni() => Some(&AVX512_VNNI),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => Some(&AVX2_WORDS),
            _ => None,
        }
    }
}

impl Ops {
    /// The kernels for `cpu`.
    pub(crate) fn of(cpu: Cpu) -> &'static Self {
        match cpu.isa() {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => &AVX512,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => &AVX2,
            _ => &PORTABLE,
        }
    }
}
