//! Elementwise operations, comparisons, and type conversions.

use super::{make, ops};
use crate::array::Array;
use crate::{Dtype, Error, Result};

ops! {
    /// `|a|`.
    abs(a: array) => mlxcel_abs;
    /// `a + b`.
    add(a: array, b: array) => mlxcel_add;
    /// `a & b`, bit by bit.
    bitwise_and(a: array, b: array) => mlxcel_bitwise_and;
    /// `a | b`, bit by bit.
    bitwise_or(a: array, b: array) => mlxcel_bitwise_or;
    /// `a ^ b`, bit by bit.
    bitwise_xor(a: array, b: array) => mlxcel_bitwise_xor;
    /// The least integer not below `a`.
    ceil(a: array) => mlxcel_ceil;
    /// `cos(a)`.
    cos(a: array) => mlxcel_cos;
    /// `a / b`; integers become floats.
    divide(a: array, b: array) => mlxcel_divide;
    /// `a == b`, boolean.
    equal(a: array, b: array) => mlxcel_equal;
    /// The error function.
    erf(a: array) => mlxcel_erf;
    /// `e^a`.
    exp(a: array) => mlxcel_exp;
    /// `e^a - 1`, exact near 0.
    expm1(a: array) => mlxcel_expm1;
    /// The greatest integer not above `a`.
    floor(a: array) => mlxcel_floor;
    /// `floor(a / b)`.
    floor_divide(a: array, b: array) => mlxcel_floor_divide;
    /// `a > b`, boolean.
    greater(a: array, b: array) => mlxcel_greater;
    /// `a >= b`, boolean.
    greater_equal(a: array, b: array) => mlxcel_greater_equal;
    /// True for elements that are neither infinite nor NaN.
    isfinite(a: array) => mlxcel_isfinite;
    /// True for NaN.
    isnan(a: array) => mlxcel_isnan;
    /// `a << b`.
    left_shift(a: array, b: array) => mlxcel_left_shift;
    /// `a < b`, boolean.
    less(a: array, b: array) => mlxcel_less;
    /// `a <= b`, boolean.
    less_equal(a: array, b: array) => mlxcel_less_equal;
    /// The natural logarithm.
    log(a: array) => mlxcel_log;
    /// `log(1 + a)`, exact near 0.
    log1p(a: array) => mlxcel_log1p;
    /// `log(e^a + e^b)`; with `b = 0` this is softplus.
    logaddexp(a: array, b: array) => mlxcel_logaddexp;
    /// `a && b`, boolean.
    logical_and(a: array, b: array) => mlxcel_logical_and;
    /// `!a`, boolean.
    logical_not(a: array) => mlxcel_logical_not;
    /// `a || b`, boolean.
    logical_or(a: array, b: array) => mlxcel_logical_or;
    /// The greater of `a` and `b`.
    maximum(a: array, b: array) => mlxcel_maximum;
    /// The lesser of `a` and `b`.
    minimum(a: array, b: array) => mlxcel_minimum;
    /// `a * b`.
    multiply(a: array, b: array) => mlxcel_multiply;
    /// `-a`.
    negative(a: array) => mlxcel_negative;
    /// `a != b`, boolean.
    not_equal(a: array, b: array) => mlxcel_not_equal;
    /// `a^b`.
    power(a: array, b: array) => mlxcel_power;
    /// `1 / a`.
    reciprocal(a: array) => mlxcel_reciprocal;
    /// `a - b * floor(a / b)`.
    remainder(a: array, b: array) => mlxcel_remainder;
    /// `a >> b`.
    right_shift(a: array, b: array) => mlxcel_right_shift;
    /// The nearest integer, ties to even.
    round(a: array) => mlxcel_round;
    /// `1 / sqrt(a)`.
    rsqrt(a: array) => mlxcel_rsqrt;
    /// `1 / (1 + e^-a)`.
    sigmoid(a: array) => mlxcel_sigmoid;
    /// -1, 0 or 1.
    sign(a: array) => mlxcel_sign;
    /// `sin(a)`.
    sin(a: array) => mlxcel_sin;
    /// The square root.
    sqrt(a: array) => mlxcel_sqrt;
    /// `a²`.
    square(a: array) => mlxcel_square;
    /// `a` as a constant for differentiation.
    stop_gradient(a: array) => mlxcel_stop_gradient;
    /// `a - b`.
    subtract(a: array, b: array) => mlxcel_subtract;
    /// `tanh(a)`.
    tanh(a: array) => mlxcel_tanh;
    /// `a` if `condition` holds, else `b`.
    select(condition: array, a: array, b: array) => mlxcel_where;
}

/// `a + value`, in the type of `a`.
///
/// # Errors
/// MLX rejects the operands.
pub fn add_scalar(a: &Array, value: f64) -> Result<Array> {
    add(a, &Array::scalar(value, a.dtype())?)
}

/// `a * value`, in the type of `a`.
///
/// # Errors
/// MLX rejects the operands.
pub fn multiply_scalar(a: &Array, value: f64) -> Result<Array> {
    multiply(a, &Array::scalar(value, a.dtype())?)
}

/// `a / value`, in the (floating-point) type of `a`.
///
/// # Errors
/// MLX rejects the operands.
pub fn divide_scalar(a: &Array, value: f64) -> Result<Array> {
    divide(a, &Array::scalar(value, a.dtype())?)
}

/// `a * sigmoid(a)`, as MLX's `nn.silu`.
///
/// # Errors
/// MLX rejects the operand.
pub fn silu(a: &Array) -> Result<Array> {
    multiply(a, &sigmoid(a)?)
}

/// `log(1 + e^a)`, as MLX's `nn.softplus`.
///
/// # Errors
/// MLX rejects the operand.
pub fn softplus(a: &Array) -> Result<Array> {
    logaddexp(a, &Array::scalar(0.0, a.dtype())?)
}

/// The elements converted to `dtype`.
///
/// # Errors
/// MLX rejects the operand.
pub fn astype(a: &Array, dtype: Dtype) -> Result<Array> {
    make!("astype", mlxcel_astype(a.raw(), dtype.number()))
}

/// Reinterprets the bytes as `dtype`; the last axis shrinks or grows with the element size.
///
/// # Errors
/// The last axis is not divisible.
pub fn view(a: &Array, dtype: Dtype) -> Result<Array> {
    make!("view", mlxcel_view(a.raw(), dtype.number()))
}

/// `start, start + step, …`, excluding `stop`: `[ceil((stop - start) / step)]`.
///
/// # Errors
/// MLX rejects the range.
pub fn arange(start: f64, stop: f64, step: f64, dtype: Dtype) -> Result<Array> {
    // MLX divides by the step without a check.
    if step == 0.0 || step.is_nan() {
        return Err(Error::BadArgument { op: "arange", argument: "step", value: step });
    }
    make!("arange", mlxcel_arange(start, stop, step, dtype.number()))
}
