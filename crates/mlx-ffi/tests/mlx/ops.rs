//! Operations against values computed by hand or in f64.

use crate::common::{assert_close, on_engine};
use half::bf16;
use mlx_ffi::ops::{self, Conv, Gather, Mode, Orientation, Precision, Quantization};
use mlx_ffi::{Array, Dtype, Error, Result};

fn vector(values: &[f32]) -> Array {
    Array::from_slice(values, &[i32::try_from(values.len()).unwrap()]).unwrap()
}

fn matrix(rows: i32, cols: i32, value: impl Fn(i32, i32) -> f32) -> Array {
    let values: Vec<f32> =
        (0..rows).flat_map(|r| (0..cols).map(move |c| (r, c))).map(|(r, c)| value(r, c)).collect();
    Array::from_slice(&values, &[rows, cols]).unwrap()
}

fn floats(array: Result<Array>) -> Vec<f32> {
    array.unwrap().to_vec().unwrap()
}

#[test]
fn unary() {
    on_engine(|| {
        type Row = (fn(&Array) -> Result<Array>, fn(f64) -> f64);
        let table: [Row; 20] = [
            (ops::abs, f64::abs),
            (ops::ceil, f64::ceil),
            (ops::cos, f64::cos),
            (ops::exp, f64::exp),
            (ops::expm1, f64::exp_m1),
            (ops::floor, f64::floor),
            (ops::log, f64::ln),
            (ops::log1p, f64::ln_1p),
            (ops::negative, |x| -x),
            (ops::reciprocal, f64::recip),
            (ops::round, f64::round_ties_even),
            (ops::rsqrt, |x| 1.0 / x.sqrt()),
            (ops::sigmoid, |x| 1.0 / (1.0 + (-x).exp())),
            (ops::sign, f64::signum),
            (ops::sin, f64::sin),
            (ops::sqrt, f64::sqrt),
            (ops::square, |x| x * x),
            (ops::tanh, f64::tanh),
            (ops::silu, |x| x / (1.0 + (-x).exp())),
            (ops::softplus, |x| x.exp().ln_1p()),
        ];
        let inputs = [0.25_f32, 1.0, 1.75, 3.5];
        for (i, (op, oracle)) in table.iter().enumerate() {
            let expected: Vec<f32> = inputs.map(|x| oracle(f64::from(x)) as f32).to_vec();
            println!("row {i}");
            // fp32 rounding of values up to 33, with MLX's fast approximations of exp.
            assert_close(&floats(op(&vector(&inputs))), &expected, 2e-5);
        }
        assert_close(&floats(ops::erf(&vector(&[0.5]))), &[0.520_499_9], 1e-6);
        assert_eq!(floats(ops::stop_gradient(&vector(&[0.5]))), [0.5]);
        assert_eq!(floats(ops::round(&vector(&[0.5, 1.5, 2.5, -1.5]))), [0.0, 2.0, 2.0, -2.0]);
    });
}

#[test]
fn hadamard_transform() {
    on_engine(|| {
        // Row i of the matrix is −1 in the columns that share an odd number of bits with i.
        for dim in [2i32, 64, 512] {
            let x = matrix(3, dim, |r, c| ((r * 31 + c * 7) % 11 - 5) as f32);
            let size = f64::from(dim).sqrt();
            let expected: Vec<f32> = (0..3)
                .flat_map(|r| (0..dim).map(move |i| (r, i)))
                .map(|(r, i)| {
                    let term = |c: i32| {
                        let x = f64::from((r * 31 + c * 7) % 11 - 5);
                        if (i & c).count_ones().is_multiple_of(2) { x } else { -x }
                    };
                    ((0..dim).map(term).sum::<f64>() / size) as f32
                })
                .collect();
            assert_close(&floats(ops::hadamard_transform(&x)), &expected, 1e-4);
        }
    });
}

#[test]
fn binary() {
    on_engine(|| {
        let (a, b) = (vector(&[7.0, -2.0, 0.5]), vector(&[2.0, 4.0, 0.5]));
        assert_eq!(floats(ops::add(&a, &b)), [9.0, 2.0, 1.0]);
        assert_eq!(floats(ops::subtract(&a, &b)), [5.0, -6.0, 0.0]);
        assert_eq!(floats(ops::multiply(&a, &b)), [14.0, -8.0, 0.25]);
        assert_eq!(floats(ops::divide(&a, &b)), [3.5, -0.5, 1.0]);
        assert_eq!(floats(ops::maximum(&a, &b)), [7.0, 4.0, 0.5]);
        assert_eq!(floats(ops::minimum(&a, &b)), [2.0, -2.0, 0.5]);
        assert_eq!(floats(ops::floor_divide(&a, &b)), [3.0, -1.0, 1.0]);
        assert_eq!(floats(ops::remainder(&a, &b)), [1.0, 2.0, 0.0]);
        assert_close(&floats(ops::power(&b, &a)), &[128.0, 0.0625, 0.707_106_77], 1e-5);
        assert_close(&floats(ops::logaddexp(&a, &b)), &[7.006_715, 4.002_475_7, 1.193_147_2], 1e-5);
        let bools = |array: Result<Array>| array.unwrap().to_bools().unwrap();
        assert_eq!(bools(ops::equal(&a, &b)), [false, false, true]);
        assert_eq!(bools(ops::not_equal(&a, &b)), [true, true, false]);
        assert_eq!(bools(ops::less(&a, &b)), [false, true, false]);
        assert_eq!(bools(ops::less_equal(&a, &b)), [false, true, true]);
        assert_eq!(bools(ops::greater(&a, &b)), [true, false, false]);
        assert_eq!(bools(ops::greater_equal(&a, &b)), [true, false, true]);
        let less = ops::less(&a, &b).unwrap();
        assert_eq!(floats(ops::select(&less, &a, &b)), [2.0, -2.0, 0.5]);
        let odd = vector(&[f32::NAN, f32::INFINITY, 1.0]);
        let (nan, finite) = (ops::isnan(&odd).unwrap(), ops::isfinite(&odd).unwrap());
        assert_eq!(bools(ops::logical_or(&nan, &finite)), [true, false, true]);
        assert_eq!(bools(ops::logical_and(&nan, &finite)), [false; 3]);
        assert_eq!(bools(ops::logical_not(&finite)), [true, true, false]);
    });
}

#[test]
fn integers_and_bits() {
    on_engine(|| {
        let a = Array::from_slice(&[0b1100_u32, 5], &[2]).unwrap();
        let b = Array::from_slice(&[0b1010_u32, 1], &[2]).unwrap();
        let words = |array: Result<Array>| array.unwrap().to_vec::<u32>().unwrap();
        assert_eq!(words(ops::bitwise_and(&a, &b)), [0b1000, 1]);
        assert_eq!(words(ops::bitwise_or(&a, &b)), [0b1110, 5]);
        assert_eq!(words(ops::bitwise_xor(&a, &b)), [0b0110, 4]);
        assert_eq!(words(ops::left_shift(&b, &b)), [0b1010 << 10, 2]);
        assert_eq!(words(ops::right_shift(&a, &b)), [0, 2]);
        assert_eq!(words(ops::add_scalar(&a, 2.0)), [14, 7]);
    });
}

#[test]
fn types() {
    on_engine(|| {
        let a = vector(&[1.5, -2.5]);
        let b = ops::astype(&a, Dtype::Bfloat16).unwrap();
        assert_eq!(b.to_vec::<bf16>().unwrap(), [bf16::from_f32(1.5), bf16::from_f32(-2.5)]);
        // A scalar in the array's own type does not promote it.
        assert_eq!(ops::multiply_scalar(&b, 0.1).unwrap().dtype(), Dtype::Bfloat16);
        assert_eq!(floats(ops::divide_scalar(&a, 2.0)), [0.75, -1.25]);
        let bits = ops::view(&a, Dtype::Uint32).unwrap();
        assert_eq!(bits.to_vec::<u32>().unwrap(), [1.5_f32.to_bits(), (-2.5_f32).to_bits()]);
        let bytes = ops::view(&a, Dtype::Uint8).unwrap();
        assert_eq!(bytes.shape(), [8]);
        let range = ops::arange(1.0, 6.0, 2.0, Dtype::Int32).unwrap();
        assert_eq!(range.to_vec::<i32>().unwrap(), [1, 3, 5]);
    });
}

#[test]
fn shapes() {
    on_engine(|| {
        let a = matrix(2, 3, |r, c| (10 * r + c) as f32);
        assert_eq!(ops::reshape(&a, &[3, -1]).unwrap().shape(), [3, 2]);
        assert_eq!(floats(ops::swapaxes(&a, 0, 1)), [0.0, 10.0, 1.0, 11.0, 2.0, 12.0]);
        assert_eq!(floats(ops::transpose(&a, &[1, 0])), [0.0, 10.0, 1.0, 11.0, 2.0, 12.0]);
        assert_eq!(ops::expand_dims(&a, 1).unwrap().shape(), [2, 1, 3]);
        assert_eq!(ops::squeeze(&ops::expand_dims(&a, 0).unwrap(), 0).unwrap().shape(), [2, 3]);
        assert_eq!(ops::flatten(&a, 0, -1).unwrap().shape(), [6]);
        let cube = ops::reshape(&a, &[1, 2, 3]).unwrap();
        assert_eq!(ops::moveaxis(&cube, 0, 2).unwrap().shape(), [2, 3, 1]);
        assert_eq!(floats(ops::repeat(&vector(&[1.0, 2.0]), 2, 0)), [1.0, 1.0, 2.0, 2.0]);
        assert_eq!(floats(ops::tril(&a, 0)), [0.0, 0.0, 0.0, 10.0, 11.0, 0.0]);
        assert_eq!(floats(ops::triu(&a, 1)), [0.0, 1.0, 2.0, 0.0, 0.0, 12.0]);
        assert_eq!(floats(ops::concatenate(&[&a, &a], 0))[6..], floats(Ok(a.clone())));
        assert_eq!(ops::concatenate(&[&a, &a], -1).unwrap().shape(), [2, 6]);
        assert_eq!(ops::stack(&[&a, &a, &a], 0).unwrap().shape(), [3, 2, 3]);
        let parts = ops::split(&a, &[1], 1).unwrap();
        assert_eq!(floats(Ok(parts[0].clone())), [0.0, 10.0]);
        assert_eq!(floats(Ok(parts[1].clone())), [1.0, 2.0, 11.0, 12.0]);
        let padded = ops::pad(&vector(&[1.0]), &[1], &[2], -1.0);
        assert_eq!(floats(padded), [-1.0, 1.0, -1.0, -1.0]);
    });
}

#[test]
fn slices_and_indices() {
    on_engine(|| {
        let a = matrix(3, 4, |r, c| (10 * r + c) as f32);
        assert_eq!(floats(ops::slice(&a, &[1, 1], &[3, 3])), [11.0, 12.0, 21.0, 22.0]);
        assert_eq!(
            floats(ops::slice_strided(&a, &[0, 0], &[3, 4], &[2, 3])),
            [0.0, 3.0, 20.0, 23.0]
        );
        assert_eq!(floats(ops::slice_axis(&a, -1, 3, 4)), [3.0, 13.0, 23.0]);
        assert!(ops::slice_axis(&a, 2, 0, 1).is_err());
        assert!(ops::slice(&a, &[0], &[1]).is_err());
        let updated = ops::slice_update(&a, &matrix(1, 2, |_, _| 9.0), &[2, 0], &[3, 2]).unwrap();
        assert_eq!(floats(ops::slice_axis(&updated, 0, 2, 3)), [9.0, 9.0, 22.0, 23.0]);
        let rows = Array::from_slice(&[2_u32, 0], &[1, 2]).unwrap();
        let taken = ops::take(&a, &rows, 0).unwrap();
        assert_eq!(taken.shape(), [1, 2, 4]);
        assert_eq!(taken.to_vec::<f32>().unwrap(), [20.0, 21.0, 22.0, 23.0, 0.0, 1.0, 2.0, 3.0]);
        let columns = Array::from_slice(&[1_u32, 0, 3], &[3, 1]).unwrap();
        assert_eq!(floats(ops::take_along_axis(&a, &columns, 1)), [1.0, 10.0, 23.0]);
        let put = ops::put_along_axis(&a, &columns, &matrix(3, 1, |_, _| -1.0), 1).unwrap();
        assert_eq!(floats(ops::min(&put, 1, false)), [-1.0; 3]);
    });
}

#[test]
fn reductions_and_order() {
    on_engine(|| {
        let a = matrix(2, 3, |r, c| [[3.0, 1.0, 2.0], [-1.0, 5.0, 4.0]][r as usize][c as usize]);
        assert_eq!(floats(ops::sum(&a, -1, false)), [6.0, 8.0]);
        assert_eq!(ops::sum(&a, 0, true).unwrap().shape(), [1, 3]);
        assert_eq!(floats(ops::mean(&a, 0, false)), [1.0, 3.0, 3.0]);
        assert_eq!(floats(ops::max(&a, 1, false)), [3.0, 5.0]);
        assert_eq!(floats(ops::min(&a, 1, false)), [1.0, -1.0]);
        assert_eq!(floats(ops::prod(&a, 1, false)), [6.0, -20.0]);
        assert_close(&floats(ops::var(&a, 1, false)), &[0.666_666_7, 6.888_889], 1e-5);
        assert_close(&floats(ops::logsumexp(&a, 1, false)), &[3.407_606, 5.315_079], 1e-5);
        let indices = |array: Result<Array>| array.unwrap().to_vec::<u32>().unwrap();
        assert_eq!(indices(ops::argmax(&a, 1, false)), [0, 1]);
        assert_eq!(indices(ops::argmin(&a, 1, false)), [1, 0]);
        assert_eq!(indices(ops::argsort(&a, 1)), [1, 2, 0, 0, 2, 1]);
        assert_eq!(floats(ops::sort(&a, 1)), [1.0, 2.0, 3.0, -1.0, 4.0, 5.0]);
        assert_eq!(indices(ops::argpartition(&a, 1, 1))[1], 2);
        assert_eq!(floats(ops::partition(&a, 1, 1))[1], 2.0);
        let mut top = floats(ops::topk(&a, 2, 1));
        top[..2].sort_by(f32::total_cmp);
        assert_eq!(top[..2], [2.0, 3.0]);
        assert_eq!(floats(ops::cumsum(&a, 1, false, true)), [3.0, 4.0, 6.0, -1.0, 4.0, 8.0]);
        assert_eq!(floats(ops::cumsum(&a, 1, false, false)), [0.0, 3.0, 4.0, 0.0, -1.0, 4.0]);
        assert_eq!(floats(ops::cumsum(&a, 1, true, true)), [6.0, 3.0, 2.0, 8.0, 9.0, 4.0]);
        assert_eq!(floats(ops::cumprod(&a, 1, false, true))[2], 6.0);
        assert_eq!(floats(ops::cummax(&a, 1, false, true))[3..], [-1.0, 5.0, 5.0]);
        let high = ops::greater(&a, &Array::scalar(0.0, Dtype::Float32).unwrap()).unwrap();
        assert_eq!(ops::all(&high, 1, false).unwrap().to_bools().unwrap(), [true, false]);
        assert_eq!(ops::any(&high, 1, false).unwrap().to_bools().unwrap(), [true, true]);
        for precision in [Precision::Operand, Precision::Float32] {
            let soft = floats(ops::softmax(&a, -1, precision));
            assert_close(&soft[..3], &[0.665_241, 0.090_031, 0.244_728], 1e-5);
        }
    });
}

#[test]
fn products() {
    on_engine(|| {
        let (a, b) = (matrix(2, 3, |r, c| (r + c) as f32), matrix(3, 2, |r, c| (2 * r - c) as f32));
        // [0 1 2; 1 2 3] · [0 -1; 2 1; 4 3]
        assert_eq!(floats(ops::matmul(&a, &b)), [10.0, 7.0, 16.0, 10.0]);
        let c = matrix(1, 2, |_, c| (c + 1) as f32);
        assert_eq!(floats(ops::addmm(&c, &a, &b)), [11.0, 9.0, 17.0, 12.0]);
        let experts = ops::stack(&[&b, &ops::negative(&b).unwrap()], 0).unwrap();
        let rhs = Array::from_slice(&[1_u32, 0], &[2]).unwrap();
        let x = ops::reshape(&a, &[2, 1, 3]).unwrap();
        let gather = Gather { rhs: Some(&rhs), ..Gather::default() };
        let out = ops::gather_mm(&x, &experts, gather).unwrap();
        assert_eq!(out.shape(), [2, 1, 2]);
        assert_eq!(out.to_vec::<f32>().unwrap(), [-10.0, -7.0, 16.0, 10.0]);
        let signal = Array::from_slice(&[1_f32, 2.0, 3.0, 4.0], &[1, 4, 1]).unwrap();
        let kernel = Array::from_slice(&[1_f32, 10.0], &[1, 2, 1]).unwrap();
        let conv = Conv { padding: 1, ..Conv::default() };
        assert_eq!(floats(ops::conv1d(&signal, &kernel, conv)), [10.0, 21.0, 32.0, 43.0, 4.0]);
    });
}

/// MLX's affine quantisation of a group, from its definition in the documentation of
/// `mlx.core.quantize` and its CPU kernel, in fp32 as there.
///
/// The scale is first the range over the number of steps. It is then stretched or shrunk so that 0 is a
/// point of the grid, counted from the extreme of larger magnitude. Shrinking moves the other extreme
/// off the grid, by up to one step: those weights are clamped, all others are within half a step.
fn rounded_to_affine(group: &[f32], bits: i32) -> Vec<f32> {
    let least = group.iter().copied().fold(f32::INFINITY, f32::min);
    let greatest = group.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let steps = 2_f32.powi(bits) - 1.0;
    let range_step = (greatest - least) / steps;
    let (edge, sign) = if least.abs() > greatest.abs() { (least, 1.0) } else { (greatest, -1.0) };
    let zero = (edge / (sign * range_step)).round_ties_even();
    let scale = edge / zero;
    let end = edge + steps * scale;
    let round = |&weight: &f32| {
        let place = ((weight - edge) / scale).round_ties_even().clamp(0.0, steps);
        let rounded = edge + place * scale;
        let beyond = (weight - end) * scale.signum();
        assert!((rounded - weight).abs() <= 0.5 * scale.abs() + 1e-6 || beyond > 0.0);
        assert!(beyond <= range_step, "only the far extreme is clamped, by one step at most");
        rounded
    };
    group.iter().map(round).collect()
}

/// The nearest 4-bit floats (E2M1, ties to even) under the group's shared power-of-two scale.
fn rounded_to_mxfp4(group: &[f32]) -> Vec<f32> {
    const MAGNITUDES: [f64; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    let greatest = group.iter().map(|weight| f64::from(weight.abs())).fold(0.0, f64::max);
    let scale = (greatest / 6.0).log2().ceil().exp2();
    let round = |&weight: &f32| {
        let magnitude = f64::from(weight.abs()) / scale;
        let distance = |index: &usize| (MAGNITUDES[*index] - magnitude).abs();
        let nearest = (0..MAGNITUDES.len())
            .min_by(|a, b| distance(a).total_cmp(&distance(b)).then((a % 2).cmp(&(b % 2))))
            .unwrap();
        (MAGNITUDES[nearest] * scale).copysign(f64::from(weight)) as f32
    };
    group.iter().map(round).collect()
}

#[test]
fn indices_beyond_the_axis_are_clamped() {
    on_engine(|| {
        let a = matrix(3, 2, |r, c| (10 * r + c) as f32);
        let rows = |indices: Array| floats(ops::take(&a, &indices, 0));
        let expected = [20.0, 21.0, 0.0, 1.0];
        assert_eq!(rows(Array::from_slice(&[u32::MAX, 0], &[2]).unwrap()), expected);
        assert_eq!(rows(Array::from_slice(&[u64::MAX, 0], &[2]).unwrap()), expected);
        assert_eq!(rows(Array::from_slice(&[255_u8, 0], &[2]).unwrap()), expected);
        assert_eq!(rows(Array::from_slice(&[i32::MAX, i32::MIN], &[2]).unwrap()), expected);
        assert_eq!(rows(Array::from_slice(&[i64::MAX, i64::MIN], &[2]).unwrap()), expected);
        assert_eq!(rows(Array::from_slice(&[-1_i8, -3], &[2]).unwrap()), expected);
        let bytes = Array::from_slice(&[255_u8], &[1]).unwrap();
        let long = ops::arange(0.0, 300.0, 1.0, Dtype::Float32).unwrap();
        assert_eq!(floats(ops::take(&long, &bytes, 0)), [255.0]);
        let columns = Array::from_slice(&[9_u32, 1, 0], &[3, 1]).unwrap();
        assert_eq!(floats(ops::take_along_axis(&a, &columns, 1)), [1.0, 11.0, 20.0]);
        let put = ops::put_along_axis(&a, &columns, &matrix(3, 1, |_, _| -1.0), 1);
        assert_eq!(floats(put), [0.0, -1.0, 10.0, -1.0, -1.0, 21.0]);
    });
}

#[test]
fn matrix_indices_beyond_the_batch_are_clamped() {
    on_engine(|| {
        let stack = Array::from_slice(&[1_f32, 2.0, 3.0], &[3, 1, 1]).unwrap();
        let x = Array::from_slice(&[10_f32], &[1, 1, 1]).unwrap();
        let far = Array::from_slice(&[u32::MAX], &[1]).unwrap();
        let gather = Gather { lhs: Some(&far), rhs: Some(&far), sorted: true };
        assert_eq!(floats(ops::gather_mm(&x, &stack, gather)), [30.0]);
        let weights = Array::from_slice(&[[1.0_f32; 64], [2.0; 64]].concat(), &[2, 1, 64]).unwrap();
        let quantization = Quantization { mode: Mode::Affine, group_size: 64, bits: 8 };
        let quantized = ops::quantize(&weights, quantization).unwrap();
        let ones = Array::full(&[1, 1, 64], 1.0, Dtype::Float32).unwrap();
        let product = ops::gather_qmm(&ones, &quantized, Orientation::Transposed, gather);
        assert_close(&floats(product), &[128.0], 1e-3);
    });
}

#[test]
fn arguments_outside_their_domain_are_errors() {
    on_engine(|| {
        let a = matrix(2, 3, |r, c| (r + c) as f32);
        let half = vector(&[0.5]);
        assert!(matches!(ops::take(&a, &half, 0), Err(Error::BadIndices { .. })));
        let empty = Array::zeros(&[0, 3], Dtype::Float32).unwrap();
        let first = Array::from_slice(&[0_u32], &[1]).unwrap();
        assert!(matches!(ops::take(&empty, &first, 0), Err(Error::BadIndices { len: 0, .. })));
        assert!(matches!(ops::take(&a, &first, 2), Err(Error::NoAxis { axis: 2, .. })));
        assert!(matches!(ops::take(&a, &first, i32::MIN), Err(Error::NoAxis { .. })));
        assert!(matches!(ops::slice(&a, &[0], &[1]), Err(Error::AxisCount { axes: 2, .. })));
        assert!(matches!(ops::pad(&a, &[1], &[1], 0.0), Err(Error::AxisCount { .. })));
        assert!(ops::pad(&a, &[-3, 0], &[0, 0], 0.0).is_err());
        let signal = Array::zeros(&[1, 4, 2], Dtype::Float32).unwrap();
        let kernel = Array::zeros(&[2, 2, 2], Dtype::Float32).unwrap();
        let usual = Conv::default();
        for conv in [
            Conv { stride: 0, ..usual },
            Conv { stride: -1, ..usual },
            Conv { padding: -1, ..usual },
            Conv { dilation: 0, ..usual },
            Conv { groups: 0, ..usual },
        ] {
            let refused = ops::conv1d(&signal, &kernel, conv);
            assert!(matches!(refused, Err(Error::BadArgument { op: "conv1d", .. })), "{conv:?}");
        }
        assert!(ops::conv1d(&signal, &kernel, Conv { groups: 3, ..usual }).is_err());
        assert!(ops::conv1d(&signal, &kernel, Conv { dilation: 100, ..usual }).is_err());
        assert!(ops::arange(0.0, 0.0, 0.0, Dtype::Int32).is_err());
        assert!(ops::arange(0.0, f64::NAN, 1.0, Dtype::Int32).is_err());
        assert!(ops::arange(0.0, 1e300, 1.0, Dtype::Int32).is_err());
        assert!(ops::repeat(&a, -1, 0).is_err());
        for k in [-9, 4, i32::MAX, i32::MIN] {
            assert!(ops::topk(&a, k, 1).is_err(), "topk {k}");
            assert!(ops::partition(&a, k, 1).is_err(), "partition {k}");
            assert!(ops::argpartition(&a, k, 1).is_err(), "argpartition {k}");
        }
        let w = matrix(2, 64, |_, c| c as f32);
        for (group_size, bits) in [(0, 4), (-64, 4), (64, 0), (64, 7), (64, -4), (1, 4), (64, 99)] {
            let quantization = Quantization { mode: Mode::Affine, group_size, bits };
            assert!(ops::quantize(&w, quantization).is_err(), "{quantization:?}");
        }
        assert!(ops::sum(&a, 5, false).is_err());
        assert!(ops::cumsum(&a, -5, false, true).is_err());
        assert!(ops::swapaxes(&a, 0, 9).is_err());
        assert!(ops::split(&a, &[1], 7).is_err());
        assert_eq!(ops::split(&a, &[99, -99], 1).map(|parts| parts.len()).ok(), Some(3));
        assert!(ops::view(&a, Dtype::Float64).is_err());
        assert!(ops::hadamard_transform(&matrix(1, 7, |_, _| 1.0)).is_ok());
    });
}

#[test]
fn quantised_products_agree_with_the_dequantised_matrix() {
    on_engine(|| {
        let w = matrix(8, 128, |r, c| ((r * 37 + c * 11) % 101) as f32 / 50.0 - 1.0);
        let x = matrix(3, 128, |r, c| ((r * 13 + c * 7) % 29) as f32 / 14.0 - 1.0);
        let modes = [
            (Mode::Affine, 64, 4),
            (Mode::Affine, 32, 3),
            (Mode::Affine, 128, 8),
            (Mode::Mxfp4, 32, 4),
        ];
        for (mode, group_size, bits) in modes {
            let q = ops::quantize(&w, Quantization { mode, group_size, bits }).unwrap();
            assert_eq!(q.weight.shape(), [8, 128 * bits / 32]);
            assert_eq!(q.biases.is_some(), mode == Mode::Affine);
            let plain = ops::dequantize(&q, Some(Dtype::Float32)).unwrap();
            let weights = w.to_vec::<f32>().unwrap();
            let expected: Vec<f32> = weights
                .chunks(group_size as usize)
                .flat_map(|group| match mode {
                    Mode::Mxfp4 => rounded_to_mxfp4(group),
                    _ => rounded_to_affine(group, bits),
                })
                .collect();
            // The grid is at most 2/7 coarse: this is 1e-5 of a step, for fp32 sums in another order.
            assert_close(&plain.to_vec::<f32>().unwrap(), &expected, 2e-6);
            let t = ops::transpose(&plain, &[1, 0]).unwrap();
            let expected = floats(ops::matmul(&x, &t));
            let found = floats(ops::quantized_matmul(&x, &q, Orientation::Transposed));
            assert_close(&found, &expected, 1e-3);
            let experts = ops::quantize(
                &ops::stack(&[&w, &ops::negative(&w).unwrap()], 0).unwrap(),
                q.quantization,
            )
            .unwrap();
            let rhs = Array::from_slice(&[0_u32], &[1]).unwrap();
            let gather = Gather { rhs: Some(&rhs), ..Gather::default() };
            let xs = ops::reshape(&x, &[1, 3, 128]).unwrap();
            let found = ops::gather_qmm(&xs, &experts, Orientation::Transposed, gather);
            assert_close(&floats(found), &expected, 1e-3);
        }
    });
}
