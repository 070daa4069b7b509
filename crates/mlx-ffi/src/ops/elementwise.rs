//! Operations on each element, comparisons, and types.

use super::{make, ops};
use crate::array::Array;
use crate::{Dtype, Result};

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
    /// Whether `a` is neither infinite nor NaN.
    isfinite(a: array) => mlxcel_isfinite;
    /// Whether `a` is NaN.
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
    /// The nearest integer, of two equally near ones the even one.
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
    /// `a`, of which no gradient is taken.
    stop_gradient(a: array) => mlxcel_stop_gradient;
    /// `a - b`.
    subtract(a: array, b: array) => mlxcel_subtract;
    /// `tanh(a)`.
    tanh(a: array) => mlxcel_tanh;
    /// `a` where `condition`, else `b`.
    select(condition: array, a: array, b: array) => mlxcel_where;
}

/// `a + value`, in the type of `a`.
///
/// # Errors
/// When MLX refuses the operands.
pub fn add_scalar(a: &Array, value: f64) -> Result<Array> {
    add(a, &Array::scalar(value, a.dtype())?)
}

/// `a * value`, in the type of `a`.
///
/// # Errors
/// When MLX refuses the operands.
pub fn multiply_scalar(a: &Array, value: f64) -> Result<Array> {
    multiply(a, &Array::scalar(value, a.dtype())?)
}

/// `a / value`, in the type of `a`, which is a float.
///
/// # Errors
/// When MLX refuses the operands.
pub fn divide_scalar(a: &Array, value: f64) -> Result<Array> {
    divide(a, &Array::scalar(value, a.dtype())?)
}

/// `a * sigmoid(a)`, as MLX's `nn.silu`.
///
/// # Errors
/// When MLX refuses the operand.
pub fn silu(a: &Array) -> Result<Array> {
    multiply(a, &sigmoid(a)?)
}

/// `log(1 + e^a)`, as MLX's `nn.softplus`.
///
/// # Errors
/// When MLX refuses the operand.
pub fn softplus(a: &Array) -> Result<Array> {
    logaddexp(a, &Array::scalar(0.0, a.dtype())?)
}

/// The elements converted to `dtype`.
///
/// # Errors
/// When MLX refuses the operand.
pub fn astype(a: &Array, dtype: Dtype) -> Result<Array> {
    let (a, number) = (a.raw(), dtype.number());
    make!("astype", mlxcel_astype(a, number))
}

/// The same bytes read as `dtype`; the last axis shrinks or grows with the size of the elements.
///
/// # Errors
/// When the last axis does not divide.
pub fn view(a: &Array, dtype: Dtype) -> Result<Array> {
    let (a, number) = (a.raw(), dtype.number());
    make!("view", mlxcel_view(a, number))
}

/// `start, start + step, …` up to but without `stop`: `[ceil((stop - start) / step)]`.
///
/// # Errors
/// When MLX refuses the numbers.
pub fn arange(start: f64, stop: f64, step: f64, dtype: Dtype) -> Result<Array> {
    let number = dtype.number();
    make!("arange", mlxcel_arange(start, stop, step, number))
}
