//! Each operation of each instruction set against the portable one.

use super::tables::Places;
use super::{Kernel, LANES, Simd, dispatch};
use crate::isa::{Cpu, Isa};
use crate::testing::{Rng, pools};
use crate::weights::FloatType;

/// Runs most operations on the inputs and returns everything as numbers.
struct Everything<'a> {
    floats: &'a [f32; 2 * LANES],
    codes: &'a [u8],
    digits: &'a [u8; 128],
}

impl Everything<'_> {
    #[inline(always)]
    fn dot<S: Simd, const BITS: u32>(&self, simd: S, out: &mut Vec<f32>) {
        let len = 16 * BITS as usize;
        // The codes end where they must: reading further would be out of bounds.
        let codes = &self.codes[self.codes.len() - len..];
        // SAFETY: `codes` has 16·BITS bytes and `digits` 128.
        unsafe {
            let (even, odd) = simd.unpack::<BITS>(codes.as_ptr(), len);
            for (half, vector) in [even, odd].into_iter().enumerate() {
                let mut bytes = [0u8; 64];
                simd.store_bytes(bytes.as_mut_ptr(), vector);
                out.extend(bytes.map(f32::from));
                let digits = simd.load_bytes(self.digits.as_ptr().add(64 * half));
                push(simd, out, simd.to_float(simd.dot::<BITS>(simd.zero_int(), vector, digits)));
            }
        }
    }
}

impl Everything<'_> {
    /// The operations on bytes.
    #[inline(always)]
    fn bytes<S: Simd>(&self, simd: S, out: &mut Vec<f32>) {
        // SAFETY: `codes` has 64 bytes.
        let bytes = unsafe { simd.load_bytes(self.codes.as_ptr()) };
        let table = simd.byte_table(&std::array::from_fn(|i| self.digits[i]));
        let all = [
            simd.flip_sign(bytes),
            simd.bit_field::<0>(bytes, 3),
            simd.bit_field::<2>(bytes, 3),
            simd.bit_field::<4>(bytes, 15),
            simd.bit_field::<6>(bytes, 3),
            simd.add_where(bytes, 0x8000_0001_8765_4321, 4),
            simd.add_where(bytes, u64::MAX, 200),
            simd.lookup(table, simd.bit_field::<4>(bytes, 15)),
        ];
        for bytes in all {
            push(simd, out, simd.byte_to_float::<0>(bytes));
            push(simd, out, simd.byte_to_float::<1>(bytes));
            push(simd, out, simd.byte_to_float::<2>(bytes));
            push(simd, out, simd.byte_to_float::<3>(bytes));
        }
    }
}

#[inline(always)]
fn push<S: Simd>(simd: S, out: &mut Vec<f32>, value: S::F) {
    let mut lanes = [0.0; LANES];
    // SAFETY: 16 floats are writable.
    unsafe { simd.store(lanes.as_mut_ptr(), value) };
    out.extend(lanes);
}

impl Kernel for Everything<'_> {
    const INTEGER_DOTS: bool = true;
    type Output = Vec<f32>;
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Vec<f32> {
        let mut out = Vec::new();
        // SAFETY: all slices are as long as the loads need.
        unsafe {
            let a = simd.load(self.floats.as_ptr());
            let b = simd.load(self.floats.as_ptr().add(LANES));
            for value in [simd.add(a, b), simd.sub(a, b), simd.mul(a, b), simd.div(a, b)] {
                push(simd, &mut out, value);
            }
            for value in [simd.max(a, b), simd.min(a, b), simd.abs(a), simd.splat(3.5)] {
                push(simd, &mut out, value);
            }
            let big = simd.to_int(simd.mul(a, simd.splat(3e5)));
            let (high, low) = simd.split_digit(big);
            for value in [simd.to_float(big), simd.to_float(high), simd.to_float(low)] {
                push(simd, &mut out, value);
            }
            push(simd, &mut out, simd.pow2(simd.to_int(simd.mul(a, simd.splat(10.0)))));
            out.push(simd.max_lane(a));
            push(simd, &mut out, simd.load_f16(self.digits.as_ptr()));
            push(simd, &mut out, simd.load_bf16(self.digits.as_ptr().add(1)));
            for ty in [FloatType::F32, FloatType::F16, FloatType::Bf16] {
                for count in 0..=LANES {
                    // They end where the memory does.
                    let values = self.codes.as_ptr_range().end.sub(count * ty.bytes());
                    push(simd, &mut out, simd.load_some_floats(ty, values, count));
                }
            }
            push(simd, &mut out, simd.hadamard(a));
            for from in 0..=LANES + 1 {
                for to in [0, 1, from, 9, LANES - 1, LANES, LANES + 3] {
                    push(simd, &mut out, simd.select(from, to, a, b));
                }
            }
            self.bytes(simd, &mut out);
            let mut bytes = [0u8; LANES];
            simd.store_low_bytes(bytes.as_mut_ptr(), big);
            out.extend(bytes.map(f32::from));
            let table = simd.byte_table(&std::array::from_fn(|i| self.digits[i]));
            let (even, odd) = simd.unpack::<4>(self.codes.as_ptr(), 64);
            for nibbles in [even, odd] {
                let mut bytes = [0u8; 64];
                simd.store_bytes(bytes.as_mut_ptr(), simd.lookup(table, nibbles));
                out.extend(bytes.map(f32::from));
            }
            let quad = simd.splat_quad(self.digits.as_ptr().add(5));
            push(simd, &mut out, simd.to_float(simd.dot::<8>(simd.zero_int(), quad, quad)));
            let table = simd.table(a);
            for unit in 0..16 {
                push(simd, &mut out, simd.expand::<true>(&table, Places::of(32), unit % 4));
                push(simd, &mut out, simd.expand::<false>(&table, Places::of(64), unit % 8));
                push(simd, &mut out, simd.expand::<false>(&table, Places::of(128), unit));
            }
            let mut transposed = [0u32; 20 * LANES];
            let rows = std::array::from_fn(|row| self.codes.as_ptr().add(64 * row).cast());
            simd.transpose(&rows, transposed.as_mut_ptr(), 20);
            out.extend(transposed.map(|dword| (dword >> 8) as f32));
        }
        self.dot::<S, 2>(simd, &mut out);
        self.dot::<S, 3>(simd, &mut out);
        self.dot::<S, 4>(simd, &mut out);
        self.dot::<S, 5>(simd, &mut out);
        self.dot::<S, 6>(simd, &mut out);
        self.dot::<S, 8>(simd, &mut out);
        out
    }
}

#[test]
fn operations_agree_with_the_portable_ones() {
    let mut rng = Rng::fresh();
    let scalar = Cpu::with_isa(Isa::Scalar).unwrap();
    for _ in 0..20 {
        let floats: [f32; 2 * LANES] = std::array::from_fn(|_| rng.normal());
        let codes = rng.bytes(1024);
        let digits: [u8; 128] = std::array::from_fn(|_| rng.next().to_le_bytes()[0]);
        let run = |cpu| {
            let input = Everything { floats: &floats, codes: &codes, digits: &digits };
            dispatch(cpu, input)
        };
        let expected = run(scalar);
        for pool in pools() {
            let actual = run(pool.cpu());
            assert_eq!(actual.len(), expected.len());
            for (i, (a, e)) in actual.iter().zip(&expected).enumerate() {
                assert!(
                    a.to_bits() == e.to_bits() || a.is_nan() && e.is_nan(),
                    "{pool:?} {i}: {a} {e}"
                );
            }
        }
    }
}

/// The sum of the lanes and of the fused product, which may round differently.
struct Sums<'a>(&'a [f32; LANES]);

impl Kernel for Sums<'_> {
    type Output = [f32; 2];
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> [f32; 2] {
        // SAFETY: 16 floats are readable.
        let a = unsafe { simd.load(self.0.as_ptr()) };
        [simd.sum(a), simd.sum(simd.fma(a, a, a))]
    }
}

#[test]
fn sums_are_sums() {
    let mut rng = Rng::fresh();
    for pool in pools() {
        let floats: [f32; LANES] = std::array::from_fn(|_| rng.normal());
        let wide = floats.map(f64::from);
        let expected = [wide.iter().sum::<f64>(), wide.iter().map(|x| x * x + x).sum()];
        for (actual, expected) in dispatch(pool.cpu(), Sums(&floats)).into_iter().zip(expected) {
            assert!((f64::from(actual) - expected).abs() < 1e-5, "{pool:?}: {actual} {expected}");
        }
    }
}

/// 2ˣ of sixteen numbers, and the larger of each and 1 in both orders.
struct Powers<'a>(&'a [f32; LANES]);

impl Kernel for Powers<'_> {
    type Output = [[f32; LANES]; 3];
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> [[f32; LANES]; 3] {
        let mut all = [[0.0; LANES]; 3];
        // SAFETY: 16 floats are readable, and writable in each result.
        unsafe {
            let x = simd.load(self.0.as_ptr());
            let one = simd.splat(1.0);
            simd.store(all[0].as_mut_ptr(), simd.exp2(x));
            simd.store(all[1].as_mut_ptr(), simd.max(one, x));
            simd.store(all[2].as_mut_ptr(), simd.min(one, x));
        }
        all
    }
}

#[test]
fn powers_of_two_are_within_two_ulp_and_nan_stays() {
    let mut rng = Rng::fresh();
    for pool in pools() {
        for _ in 0..50 {
            let mut x: [f32; LANES] = std::array::from_fn(|_| 126.0 * rng.uniform());
            x[3] = 127.0;
            x[4] = 0.0;
            x[5] = -200.0;
            x[6] = -1e6;
            x[7] = f32::NAN;
            let [powers, larger, smaller] = dispatch(pool.cpu(), Powers(&x));
            for (x, power) in x.into_iter().zip(powers) {
                let expected = f64::from(x).exp2();
                let error = (f64::from(power) - expected).abs();
                let nan = x.is_nan() && power.is_nan();
                // Below −126 the result may be 2^−126, rounded.
                let tolerance = 2.4e-7 * expected + 1.001 * f64::from(2f32.powi(-126));
                assert!(nan || error <= tolerance, "{pool:?}: 2^{x} = {power}");
            }
            assert!(larger[7].is_nan() && smaller[7].is_nan(), "{pool:?}");
        }
    }
}
