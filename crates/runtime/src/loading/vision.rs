//! The parameters of image encoders: kernels of patches, positions, matrices that are stored turned.

use mlxcel_core::Array;
use mlxcel_core::layers::{Linear, Weight};

use super::Weights;
use super::checkpoint::Rows;
use crate::{Error, Result};

/// A convolution over squares that do not overlap, as a matrix.
pub struct Patches {
    /// `[hidden, 3 · patch · patch]`.
    pub weight: Weight,
    /// Whether a square's channels lie together, rather than its planes.
    pub channels_last: bool,
}

impl Weights<'_> {
    /// The kernel `NAME.weight` over squares of `patch` × `patch` pixels: files hold
    /// `[hidden, 3, patch, patch]`, MLX's own `[hidden, patch, patch, 3]`.
    ///
    /// # Errors
    /// A missing or misshapen tensor, by name.
    pub fn patches(&self, name: &str, hidden: usize, patch: usize) -> Result<Patches> {
        let layer = self.at(name);
        let shapes = [[hidden, 3, patch, patch], [hidden, patch, patch, 3]];
        let [plain, own] =
            shapes.map(|shape| layer.stored_tensor("weight", &shape, Rows::all(hidden)));
        let (stored, channels_last) = match (plain, own) {
            (Ok(array), _) => (array, false),
            (Err(Error::TensorShape { .. }), Ok(array)) => (array, true),
            (Err(error), _) => return Err(error),
        };
        Ok(Patches { weight: self.ops().flat_matrix(&stored)?, channels_last })
    }

    /// The vector `name` as this kernel set wants it.
    ///
    /// # Errors
    /// A missing or misshapen tensor, by name.
    pub fn float_vector(&self, name: &str, len: usize) -> Result<Array> {
        self.vector(name, Rows::all(len))
    }

    /// The matrix `name` as activations are: something that is added to them.
    ///
    /// # Errors
    /// A missing or misshapen tensor, by name.
    pub fn float_matrix(&self, name: &str, rows: usize, cols: usize) -> Result<Array> {
        Ok(self.ops().vector(self.stored_tensor(name, &[rows, cols], Rows::all(rows))?)?)
    }

    /// The projection whose matrix `name` is stored as `[cols, rows]`: a turned copy.
    ///
    /// # Errors
    /// A missing or misshapen tensor, by name.
    pub fn turned(&self, name: &str, cols: usize, rows: usize) -> Result<Linear> {
        let stored = self.stored_tensor(name, &[cols, rows], Rows::all(cols))?;
        let weight = Weight::Dense(self.ops().transposed(&stored, 0..rows)?);
        Ok(Linear { weight: self.ops().matrix(weight)?, bias: None })
    }
}
