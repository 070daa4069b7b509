//! Operations along an axis: reductions, scans, sorting, selection.

use super::{make, ops};
use crate::Result;
use crate::array::Array;

ops! {
    /// True if all elements along `axis` are true.
    all(a: array, axis: int, keep_dims: bool) => mlxcel_all;
    /// True if any element along `axis` is true.
    any(a: array, axis: int, keep_dims: bool) => mlxcel_any;
    /// The index of the greatest element along `axis`, ties to the first; `u32`.
    argmax(a: array, axis: int, keep_dims: bool) => mlxcel_argmax;
    /// The index of the least element along `axis`, ties to the first; `u32`.
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
    /// Sorts along `axis`, ascending.
    sort(a: array, axis: int) => mlxcel_sort;
    /// Indices that partition `axis`: the `k`-th is in its sorted place, lesser ones before it; `u32`.
    argpartition(a: array, k: int, axis: int) => mlxcel_argpartition;
    /// Partitions `axis`: the `k`-th element is in its sorted place, lesser ones before it.
    partition(a: array, k: int, axis: int) => mlxcel_partition;
    /// The `k` greatest elements along `axis`, unordered.
    topk(a: array, k: int, axis: int) => mlxcel_topk;
}

/// Precision of a softmax.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// The type of the operand.
    Operand,
    /// At least fp32; the result has the operand's type.
    Float32,
}

/// `e^a / sum(e^a)` along `axis`.
///
/// # Errors
/// MLX rejects the operand.
pub fn softmax(a: &Array, axis: i32, precision: Precision) -> Result<Array> {
    make!("softmax", mlxcel_softmax(a.raw(), axis, precision == Precision::Float32))
}
