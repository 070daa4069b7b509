//! Parameters of image encoders: patch kernels, positions, matrices that are stored transposed.

use mlxcel_core::Array;
use mlxcel_core::layers::{Linear, Weight};

use super::Weights;
use super::checkpoint::Rows;
use crate::vision::PatchShape;
use crate::{Error, Result, TensorProblem};

/// A convolution over squares that do not overlap, as a matrix.
pub struct Patches {
    /// `[hidden, values of a patch]`.
    pub weight: Weight,
    /// Layout of a patch's values.
    pub shape: PatchShape,
}

/// Number of frames that an encoder reads at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frames {
    /// A single image.
    One,
    /// Several frames of a video.
    Video(usize),
}

impl Weights<'_> {
    /// The kernel `NAME.weight` over squares of `size` × `size` pixels: files hold
    /// `[hidden, 3, (frames,) size, size]`, MLX's own `[hidden, (frames,) size, size, 3]`.
    ///
    /// # Errors
    /// A missing or misshapen tensor, by name.
    pub fn patches(
        &self,
        name: &str,
        hidden: usize,
        size: usize,
        frames: Frames,
    ) -> Result<Patches> {
        let layer = self.at(name);
        let mut inner = vec![size, size];
        let frames = match frames {
            Frames::One => 1,
            Frames::Video(frames) => {
                inner.insert(0, frames);
                frames
            }
        };
        let shapes = [[&[hidden, 3], &inner[..]].concat(), [&[hidden], &inner[..], &[3]].concat()];
        let [plain, own] =
            shapes.map(|shape| layer.stored_tensor("weight", &shape, Rows::all(hidden)));
        let (stored, channels_last) = match (plain, own) {
            (Ok(array), _) => (array, false),
            (Err(Error::Tensor { problem: TensorProblem::Shape { .. }, .. }), Ok(array)) => {
                (array, true)
            }
            (Err(error), _) => return Err(error),
        };
        let shape = PatchShape { size, frames, channels_last };
        Ok(Patches { weight: self.ops().flat_matrix(&stored)?, shape })
    }

    /// The vector `name` in the type that the kernel set reads.
    ///
    /// # Errors
    /// A missing or misshapen tensor, by name.
    pub(crate) fn float_vector(&self, name: &str, len: usize) -> Result<Array> {
        self.vector(name, Rows::all(len))
    }

    /// The matrix `name`, which is added to activations, in their type.
    ///
    /// # Errors
    /// A missing or misshapen tensor, by name.
    pub(crate) fn float_matrix(&self, name: &str, rows: usize, cols: usize) -> Result<Array> {
        Ok(self.ops().vector(self.stored_tensor(name, &[rows, cols], Rows::all(rows))?)?)
    }

    /// The projection whose matrix `name` is stored as `[cols, rows]`: a transposed copy.
    ///
    /// # Errors
    /// A missing or misshapen tensor, by name.
    pub fn transposed(&self, name: &str, cols: usize, rows: usize) -> Result<Linear> {
        let stored = self.stored_tensor(name, &[cols, rows], Rows::all(cols))?;
        let weight = Weight::Dense(self.ops().transposed(&stored, 0..rows)?);
        Ok(Linear { weight: self.ops().matrix(weight)?, bias: None })
    }
}
