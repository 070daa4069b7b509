//! Parameters of recurrent layers, which are fp32 whatever their type in the files.

use mlxcel_core::layers::RmsNorm;
use mlxcel_core::recurrent::Convolution;
use mlxcel_core::{Activation, Array};

use super::Weights;
use super::checkpoint::Rows;
use crate::{Error, Result, TensorProblem};

impl Weights<'_> {
    /// The vector `name` in fp32.
    ///
    /// # Errors
    /// A missing or misshapen tensor, by name.
    pub(crate) fn exact_vector(&self, name: &str, len: usize) -> Result<Array> {
        array(&self.path(name), &self.values(name, len)?, &[len])
    }

    /// The rates of decay `−exp(a)` of the matrix `name`, `[rows, cols]`, in fp32.
    ///
    /// # Errors
    /// A missing or misshapen tensor, by name.
    pub(crate) fn decay_rates(&self, name: &str, rows: usize, cols: usize) -> Result<Array> {
        let stored = self.stored_tensor(name, &[rows, cols], Rows::all(rows))?;
        let values = self.ops().to_f32(&stored)?;
        let rates: Vec<f32> = values.iter().map(|value| -value.exp()).collect();
        array(&self.path(name), &rates, &[rows, cols])
    }

    /// An RMS norm over `dim` dimensions that has no weight.
    ///
    /// # Errors
    /// A dimension beyond 2³¹.
    pub(crate) fn unit_norm(&self, dim: usize, eps: f32) -> Result<RmsNorm> {
        let weight = array(&self.path("unit_norm"), &vec![1.0; dim], &[dim])?;
        let weight = self.ops().vector(weight)?;
        Ok(RmsNorm { weight, group: dim, eps })
    }

    /// A convolution with one filter of `kernel` taps per channel, and its bias where it has one.
    ///
    /// # Errors
    /// Missing or misshapen tensors, by name.
    pub fn convolution(
        &self,
        name: &str,
        channels: usize,
        kernel: usize,
        biased: bool,
        activation: Option<Activation>,
    ) -> Result<Convolution> {
        self.scaled_convolution(name, &vec![1.0; channels], kernel, biased, activation)
    }

    /// A convolution of which channel `i` reads its input times `factors[i]`.
    ///
    /// # Errors
    /// Errors of [`Self::convolution`].
    pub(crate) fn scaled_convolution(
        &self,
        name: &str,
        factors: &[f32],
        kernel: usize,
        biased: bool,
        activation: Option<Activation>,
    ) -> Result<Convolution> {
        let channels = factors.len();
        let bias = match biased {
            true => Some(self.at(name).exact_vector("bias", channels)?),
            false => None,
        };
        let mut taps = self.taps(name, channels, kernel)?;
        for taps in taps.chunks_exact_mut(channels) {
            taps.iter_mut().zip(factors).for_each(|(tap, factor)| *tap *= factor);
        }
        let taps = array(&self.at(name).path("weight"), &taps, &[kernel, channels])?;
        Ok(Convolution::new(taps, bias, activation)?)
    }

    /// Returns true if the filters of convolution `name` are `[channels, kernel, 1]`, as MLX's
    /// converters write them, which also fold factors and offsets into other tensors.
    #[must_use]
    pub(crate) fn is_converted(&self, name: &str, channels: usize, kernel: usize) -> bool {
        let shape = [channels, kernel, 1];
        kernel > 1 && self.at(name).stored_tensor("weight", &shape, Rows::all(channels)).is_ok()
    }

    /// The filters of a convolution with one filter per channel, `[kernel, channels]`.
    /// Files hold `[channels, 1, kernel]`, MLX's own `[channels, kernel, 1]`.
    fn taps(&self, name: &str, channels: usize, kernel: usize) -> Result<Vec<f32>> {
        let layer = self.at(name);
        let shapes = [[channels, 1, kernel], [channels, kernel, 1]];
        let [plain, own] =
            shapes.map(|shape| layer.stored_tensor("weight", &shape, Rows::all(channels)));
        let stored = match (plain, own) {
            (Ok(array), _)
            | (Err(Error::Tensor { problem: TensorProblem::Shape { .. }, .. }), Ok(array)) => array,
            (Err(error), _) => return Err(error),
        };
        let values = self.ops().to_f32(&stored)?;
        let by_tap =
            (0..kernel * channels).map(|at| values[at % channels * kernel + at / channels]);
        Ok(by_tap.collect())
    }
}

/// The array of the tensor `name`, for its error.
fn array(name: &str, values: &[f32], shape: &[usize]) -> Result<Array> {
    let dims: Vec<i32> = shape
        .iter()
        .map(|d| i32::try_from(*d))
        .collect::<std::result::Result<_, _>>()
        .map_err(|_| Error::tensor(name, TensorProblem::TooLarge { shape: shape.to_vec() }))?;
    Ok(Array::from_slice(values, &dims).map_err(mlxcel_core::Error::from)?)
}
