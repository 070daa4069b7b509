//! Operations on parts of heads, and products with one matrix per head.

use mlx_ffi::Array;

use super::Ops;
use crate::Result;
use crate::layers::Weight;
use crate::shape::{last_dim, rows_cols, shape_error};

impl Ops {
    /// Head `h` of each row of `x`, `[tokens, heads · cols]`, times its own rows of `weight`,
    /// `[heads · rows, cols]`: `[tokens, heads · rows]`.
    ///
    /// # Errors
    /// Shapes that do not match.
    pub fn linear_per_head(&self, x: &Array, weight: &Weight, heads: usize) -> Result<Array> {
        let (rows, cols) = weight.shape();
        if heads == 0 || !rows.is_multiple_of(heads) || last_dim(x) != heads * cols {
            let expected = format!("rows of {heads} heads of {cols}");
            return Err(shape_error("linear_per_head", "x", x, expected));
        }
        self.implementation().linear_per_head(x, weight, heads)
    }

    /// The first `at` elements of each head of `x`, `[rows, heads · dim]`, and the others.
    ///
    /// # Errors
    /// Heads of fewer elements.
    pub fn split_heads(&self, x: &Array, heads: usize, at: usize) -> Result<[Array; 2]> {
        let width = last_dim(x);
        if heads == 0 || !width.is_multiple_of(heads) || !(1..width / heads).contains(&at) {
            let expected = format!("rows of {heads} heads of more than {at}, which is not 0");
            return Err(shape_error("split_heads", "x", x, expected));
        }
        self.implementation().split_heads(x, heads, at)
    }

    /// The heads of `a` and `b`, `[rows, heads · dim]` each, one after the other within each head.
    ///
    /// # Errors
    /// Rows that are not heads, and another number of them.
    pub fn join_heads(&self, a: &Array, b: &Array, heads: usize) -> Result<Array> {
        let (rows, _) = rows_cols(a);
        if rows_cols(b).0 != rows {
            return Err(shape_error("join_heads", "b", b, format!("{rows} rows")));
        }
        for array in [a, b] {
            let width = last_dim(array);
            if heads == 0 || width == 0 || !width.is_multiple_of(heads) {
                let expected = format!("rows of {heads} heads");
                return Err(shape_error("join_heads", "operand", array, expected));
            }
        }
        self.implementation().join_heads(a, b, heads)
    }
}
