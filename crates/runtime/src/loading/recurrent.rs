//! The parameters of recurrent layers, which are fp32 whatever the files hold.

use mlxcel_core::Array;

use super::Weights;
use super::checkpoint::Rows;
use crate::{Error, Result};

impl Weights<'_> {
    /// The vector `name` in fp32.
    ///
    /// # Errors
    /// A missing or misshapen tensor, by name.
    pub fn exact_vector(&self, name: &str, len: usize) -> Result<Array> {
        array(&self.values(name, len)?, &[len])
    }

    /// The filters of a convolution with one filter per channel, `[kernel, channels]` in fp32.
    /// Files hold `[channels, 1, kernel]`, MLX's own `[channels, kernel, 1]`.
    ///
    /// # Errors
    /// A missing or misshapen tensor, by name.
    pub fn taps(&self, name: &str, channels: usize, kernel: usize) -> Result<Array> {
        let layer = self.at(name);
        let shapes = [[channels, 1, kernel], [channels, kernel, 1]];
        let [plain, own] =
            shapes.map(|shape| layer.stored_tensor("weight", &shape, Rows::all(channels)));
        let stored = match (plain, own) {
            (Ok(array), _) | (Err(Error::TensorShape { .. }), Ok(array)) => array,
            (Err(error), _) => return Err(error),
        };
        let values = self.ops().to_f32(&stored)?;
        let by_tap: Vec<f32> = (0..kernel * channels)
            .map(|at| values[at % channels * kernel + at / channels])
            .collect();
        array(&by_tap, &[kernel, channels])
    }
}

fn array(values: &[f32], shape: &[usize]) -> Result<Array> {
    let too_large = |_| Error::config("a dimension exceeds 2^31");
    let shape: Vec<i32> = shape
        .iter()
        .map(|d| i32::try_from(*d))
        .collect::<std::result::Result<_, _>>()
        .map_err(too_large)?;
    Ok(Array::from_slice(values, &shape).map_err(mlxcel_core::Error::from)?)
}
