//! Products row by row: each weight is read once and meets up to three *planes* of activations
//! (tokens, or digits of a token). For decoding, where reading the weights is the bound.
#![expect(clippy::needless_range_loop, reason = "tiles of registers, indexed alike")]

use super::input::{Digits, Plane};
use super::task::{Out, RowRange};
use crate::isa::Cpu;
use crate::simd::{Kernel, LANES, Simd, UNIT, dispatch, tables};
use crate::weights::{Affine, FloatType};

/// Most planes that [`AffineDot`] takes at once.
pub(super) const MAX_PLANES: usize = 3;
/// How far ahead of the codes in use the processor is told to read.
const PREFETCH_BYTES: usize = 8192;
/// The same for scales and biases.
const GROUP_PREFETCH_BYTES: usize = 1024;
/// Most tokens that [`DenseDot`] takes at once.
pub(super) const MAX_TOKENS: usize = 4;

/// `out[token][row] = Σ w·x` for some rows of an affine matrix and a few tokens.
pub(super) struct AffineDot<'a> {
    pub(super) weights: &'a Affine<'a>,
    pub(super) input: &'a Digits<'a>,
    /// First token of the input; the number of tokens times digits is at most [`MAX_PLANES`].
    pub(super) first_token: usize,
    pub(super) tokens: usize,
    pub(super) rows: RowRange,
    pub(super) out: Out<'a>,
}

impl AffineDot<'_> {
    /// Computes the products. Every width and number of planes is a function of its own.
    pub(super) fn dispatch(&self, cpu: Cpu) {
        match self.weights.bits {
            2 => self.dispatch_bits::<2>(cpu),
            3 => self.dispatch_bits::<3>(cpu),
            4 => self.dispatch_bits::<4>(cpu),
            5 => self.dispatch_bits::<5>(cpu),
            6 => self.dispatch_bits::<6>(cpu),
            _ => self.dispatch_bits::<8>(cpu),
        }
    }

    fn dispatch_bits<const BITS: u32>(&self, cpu: Cpu) {
        for block in 0..self.input.layout.blocks() {
            match self.tokens * self.input.layout.digits {
                1 => dispatch(cpu, self.block::<BITS, 1>(block)),
                2 => dispatch(cpu, self.block::<BITS, 2>(block)),
                _ => dispatch(cpu, self.block::<BITS, 3>(block)),
            }
        }
    }

    /// The products within one column block.
    fn block<const BITS: u32, const P: usize>(&self, block: usize) -> BlockDot<'_, BITS, P> {
        let layout = self.input.layout;
        assert_eq!(P, self.tokens * layout.digits, "planes are tokens times digits");
        let planes = std::array::from_fn(|plane| {
            let (token, digit) = (plane / layout.digits, plane % layout.digits);
            self.input.plane(block, digit, self.first_token + token)
        });
        let (first_col, cols) = (layout.first_col(block), layout.block_cols(block));
        BlockDot { dot: self, planes, first_col, cols }
    }
}

/// [`AffineDot`] for one column block, one width of codes and `P` planes.
struct BlockDot<'a, const BITS: u32, const P: usize> {
    dot: &'a AffineDot<'a>,
    planes: [Plane; P],
    first_col: usize,
    cols: usize,
}

impl<const BITS: u32, const P: usize> Kernel for BlockDot<'_, BITS, P> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let AffineDot { input, first_token, rows, out, .. } = *self.dot;
        let digits = input.layout.digits;
        for row in rows.iter() {
            let sums = self.row(simd, row);
            for (token, sums) in sums.chunks_exact(digits).enumerate() {
                // SAFETY: this call owns these rows of the output.
                unsafe {
                    let target = out.at(first_token + token, row);
                    let before = if self.first_col > 0 { *target } else { 0.0 };
                    *target = sums.iter().fold(before, |total, sum| total + sum);
                }
            }
        }
    }
}

impl<const BITS: u32, const P: usize> BlockDot<'_, BITS, P> {
    /// The products of one row with all planes.
    #[inline(always)]
    fn row<S: Simd>(&self, simd: S, row: usize) -> [f32; P] {
        let weights = self.dot.weights;
        let first = row * self.dot.input.layout.cols + self.first_col;
        // All groups are 32, 64 or 128: a shift instead of a division.
        let (shift, ty) = (weights.group.trailing_zeros(), weights.scale_type);
        let (groups, at) = (self.cols >> shift, (first >> shift) * ty.bytes());
        let codes = &weights.codes[first / 8 * BITS as usize..];
        let (scales, biases) = (&weights.scales[at..], &weights.biases[at..]);
        let mut acc = [simd.zero(); P];
        for chunk in (0..groups).step_by(LANES) {
            let count = (groups - chunk).min(LANES);
            let mut plane_scales = [simd.zero(); P];
            // SAFETY: the row has `count` more groups here; planes have scales and sums for
            // whole vectors, and digits for whole units.
            unsafe {
                let at = chunk * ty.bytes();
                simd.prefetch(scales.as_ptr().wrapping_add(at + GROUP_PREFETCH_BYTES));
                simd.prefetch(biases.as_ptr().wrapping_add(at + GROUP_PREFETCH_BYTES));
                let scale = simd.load_some_floats(ty, scales.as_ptr().add(at), count);
                let bias = simd.load_some_floats(ty, biases.as_ptr().add(at), count);
                for p in 0..P {
                    let plane = &self.planes[p];
                    acc[p] = simd.fma(bias, simd.load(plane.sums.add(chunk)), acc[p]);
                    plane_scales[p] = simd.mul(scale, simd.load(plane.scales.add(chunk)));
                }
                let (col, cols) = (chunk << shift, count << shift);
                let codes = codes.get_unchecked(col / 8 * BITS as usize..);
                self.units(simd, codes, (col, cols), &plane_scales, &mut acc);
            }
        }
        let mut sums = [0.0; P];
        for p in 0..P {
            sums[p] = simd.sum(acc[p]);
        }
        sums
    }

    /// Adds the products of `cols` columns, up to 16 groups, from column `col` of the block on.
    ///
    /// # Safety
    /// `codes` starts with their codes.
    #[inline(always)]
    unsafe fn units<S: Simd>(
        &self,
        simd: S,
        codes: &[u8],
        (col, cols): (usize, usize),
        scales: &[S::F; P],
        acc: &mut [S::F; P],
    ) {
        let expand = tables::expand_table(self.dot.weights.group);
        let whole = cols / UNIT;
        // SAFETY: a whole unit is 16·BITS bytes of codes; planes have whole units.
        unsafe {
            for unit in 0..whole {
                let start = unit * 16 * BITS as usize;
                let at = codes.as_ptr().add(start);
                simd.prefetch(at.wrapping_add(PREFETCH_BYTES));
                let unit_codes = simd.unpack::<BITS>(at, codes.len() - start);
                let lanes = expand.get_unchecked(unit);
                self.unit(simd, unit_codes, col + unit * UNIT, lanes, scales, acc);
            }
            if cols > whole * UNIT {
                let rest = codes.get_unchecked(whole * 16 * BITS as usize..);
                let unit_codes = unpack::<S, BITS>(simd, rest, cols - whole * UNIT);
                self.unit(simd, unit_codes, col + whole * UNIT, &expand[whole], scales, acc);
            }
        }
    }

    /// Adds the products of one unit.
    ///
    /// # Safety
    /// The planes have a unit of digits from column `col` of the block on.
    #[inline(always)]
    unsafe fn unit<S: Simd>(
        &self,
        simd: S,
        (even, odd): (S::B, S::B),
        col: usize,
        lanes: &[i32; LANES],
        scales: &[S::F; P],
        acc: &mut [S::F; P],
    ) {
        for p in 0..P {
            // SAFETY: by contract.
            unsafe {
                let x = self.planes[p].digits.add(col);
                let dot = simd.dot::<BITS>(simd.zero_int(), even, simd.load_bytes(x));
                let dot = simd.dot::<BITS>(dot, odd, simd.load_bytes(x.add(64)));
                acc[p] = simd.fma(simd.to_float(dot), simd.expand(scales[p], lanes), acc[p]);
            }
        }
    }
}

/// Unpacks the first `cols` ≤ 128 codes of `codes`; the others count as zero.
///
/// # Safety
/// `codes` holds at least `cols` codes of `BITS` bits; `cols` is a multiple of 32.
#[inline(always)]
pub(super) unsafe fn unpack<S: Simd, const BITS: u32>(
    simd: S,
    codes: &[u8],
    cols: usize,
) -> (S::B, S::B) {
    // SAFETY: a whole unit is read from `codes`, a part from a padded copy.
    unsafe {
        if cols == UNIT {
            return simd.unpack::<BITS>(codes.as_ptr(), codes.len());
        }
        let mut copy = [0u8; 2 * UNIT];
        let bytes = cols / 8 * BITS as usize;
        codes.as_ptr().copy_to_nonoverlapping(copy.as_mut_ptr(), bytes);
        simd.unpack::<BITS>(copy.as_ptr(), copy.len())
    }
}

/// `out[token][row] = Σ w·x` for some rows of a dense matrix and up to [`MAX_TOKENS`] tokens.
pub(super) struct DenseDot<'a> {
    pub(super) ty: FloatType,
    /// `[rows, cols]` of `ty`.
    pub(super) weights: &'a [u8],
    /// One row of `cols` activations per token.
    pub(super) x: &'a [&'a [f32]],
    /// Token of the output that the first row of `x` belongs to.
    pub(super) first_token: usize,
    pub(super) rows: RowRange,
    pub(super) out: Out<'a>,
}

impl DenseDot<'_> {
    /// Computes the products. Every number of tokens is a function of its own.
    pub(super) fn dispatch(&self, cpu: Cpu) {
        match self.x.len() {
            1 => dispatch(cpu, TokenDot::<1>(self)),
            2 => dispatch(cpu, TokenDot::<2>(self)),
            3 => dispatch(cpu, TokenDot::<3>(self)),
            _ => dispatch(cpu, TokenDot::<4>(self)),
        }
    }
}

/// [`DenseDot`] for `T` tokens.
struct TokenDot<'a, const T: usize>(&'a DenseDot<'a>);

impl<const T: usize> Kernel for TokenDot<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let this = self.0;
        for row in this.rows.iter() {
            let sums = match this.ty {
                FloatType::F32 => this.row::<S, T>(simd, FloatType::F32, row),
                FloatType::F16 => this.row::<S, T>(simd, FloatType::F16, row),
                FloatType::Bf16 => this.row::<S, T>(simd, FloatType::Bf16, row),
            };
            for (token, sum) in sums.into_iter().enumerate() {
                // SAFETY: this call owns these rows of the output.
                unsafe { this.out.write(this.first_token + token, row, sum) };
            }
        }
    }
}

impl DenseDot<'_> {
    /// The products of one row with all tokens.
    #[inline(always)]
    fn row<S: Simd, const T: usize>(&self, simd: S, ty: FloatType, row: usize) -> [f32; T] {
        let cols = self.x[0].len();
        let weights = &self.weights[row * cols * ty.bytes()..][..cols * ty.bytes()];
        // Two accumulators per token hide the latency of the additions.
        let mut acc = [[simd.zero(); 2]; T];
        let whole = cols - cols % (2 * LANES);
        for col in (0..whole).step_by(2 * LANES) {
            // SAFETY: columns `col..col + 32` exist in the row and in every `x`.
            unsafe {
                let at = weights.as_ptr().add(col * ty.bytes());
                let first = simd.load_floats(ty, at);
                let second = simd.load_floats(ty, at.add(LANES * ty.bytes()));
                for t in 0..T {
                    let x = self.x.get_unchecked(t).as_ptr().add(col);
                    acc[t][0] = simd.fma(first, simd.load(x), acc[t][0]);
                    acc[t][1] = simd.fma(second, simd.load(x.add(LANES)), acc[t][1]);
                }
            }
        }
        let mut sums = [0.0; T];
        for t in 0..T {
            let tail = (whole..cols).map(|col| ty.get(weights, col) * self.x[t][col]);
            sums[t] = simd.sum(simd.add(acc[t][0], acc[t][1])) + tail.sum::<f32>();
        }
        sums
    }
}
