//! Operations along an axis: reductions, scans, sorting, selection.

use super::{make, ops};
use crate::Result;
use crate::array::Array;

ops! {
    /// Whether all elements along `axis` are true.
    all(a: array, axis: int, keep_dims: bool) => mlxcel_all;
    /// Whether any element along `axis` is true.
    any(a: array, axis: int, keep_dims: bool) => mlxcel_any;
    /// The index of the greatest element along `axis`, the first of equals; `u32`.
    argmax(a: array, axis: int, keep_dims: bool) => mlxcel_argmax;
    /// The index of the least element along `axis`, the first of equals; `u32`.
    argmin(a: array, axis: int, keep_dims: bool) => mlxcel_argmin;
    /// `log(sum(e^a))` along `axis`.
    logsumexp(a: array, axis: int, keep_dims: bool) => mlxcel_logsumexp;
    /// The greatest element along `axis`.
    max(a: array, axis: int, keep_dims: bool) => mlxcel_max;
    /// The mean along `axis`.
    mean(a: array, axis: int, keep_dims: bool) => mlxcel_mean;
    /// The least element along `axis`.
    min(a: array, axis: int, keep_dims: bool) => mlxcel_min;
    /// The product along `axis`.
    prod(a: array, axis: int, keep_dims: bool) => mlxcel_prod;
    /// The sum along `axis`.
    sum(a: array, axis: int, keep_dims: bool) => mlxcel_sum;
    /// The (population) variance along `axis`.
    var(a: array, axis: int, keep_dims: bool) => mlxcel_var;
    /// The running greatest element along `axis`.
    cummax(a: array, axis: int, reverse: bool, inclusive: bool) => mlxcel_cummax;
    /// The running product along `axis`.
    cumprod(a: array, axis: int, reverse: bool, inclusive: bool) => mlxcel_cumprod;
    /// The running sum along `axis`.
    cumsum(a: array, axis: int, reverse: bool, inclusive: bool) => mlxcel_cumsum;
    /// The indices that sort along `axis`, ascending; `u32`.
    argsort(a: array, axis: int) => mlxcel_argsort;
    /// Sorted along `axis`, ascending.
    sort(a: array, axis: int) => mlxcel_sort;
    /// Indices such that the `k`-th along `axis` is in its sorted place, lesser ones before; `u32`.
    argpartition(a: array, k: int, axis: int) => mlxcel_argpartition;
    /// Rearranged such that the `k`-th along `axis` is in its sorted place, lesser ones before.
    partition(a: array, k: int, axis: int) => mlxcel_partition;
    /// The `k` greatest elements along `axis`, in no order.
    topk(a: array, k: int, axis: int) => mlxcel_topk;
}

/// In which type a softmax is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// The type of the operand.
    Operand,
    /// At least fp32; the result has the type of the operand.
    Float32,
}

/// `e^a / sum(e^a)` along `axis`.
///
/// # Errors
/// When MLX refuses the operand.
pub fn softmax(a: &Array, axis: i32, precision: Precision) -> Result<Array> {
    let (a, precise) = (a.raw(), precision == Precision::Float32);
    make!("softmax", mlxcel_softmax(a, axis, precise))
}
