//! The causal convolution over time, one filter per channel.

use super::RecurrentState;
use crate::elementwise::{Glu, Map, map};
use crate::error::{KernelError, Result, check_len};
use crate::pool::Pool;

/// Tokens that a worker takes at once.
const CHUNK: usize = 8;

/// The filters of a convolution.
#[derive(Clone, Copy, Debug)]
pub struct Conv<'a> {
    /// `[kernel, channels]`, the oldest input's first.
    pub taps: &'a [f32],
    /// `[channels]`.
    pub bias: Option<&'a [f32]>,
    /// Channels.
    pub channels: usize,
    /// Function of the sums.
    pub activation: Option<Glu>,
}

/// `out[t] = activation(Σₖ taps[k] · x[t − kernel + 1 + k] + bias)` per channel, where inputs before
/// the first token are those of `state`, which then holds the last ones.
///
/// `x` and `out` are `[tokens, channels]`.
///
/// # Errors
/// [`KernelError::Length`] and [`KernelError::Dimension`] for shapes that do not fit.
pub fn causal_conv(
    pool: &Pool,
    x: &[f32],
    conv: &Conv<'_>,
    state: &mut RecurrentState,
    out: &mut [f32],
) -> Result<()> {
    let channels = conv.channels;
    if channels == 0 || conv.taps.is_empty() || !conv.taps.len().is_multiple_of(channels) {
        let rule = "a divisor of the number of filter taps";
        return Err(KernelError::Dimension { what: "channels", value: channels, rule });
    }
    if let Some(bias) = conv.bias {
        check_len("bias of a convolution", bias.len(), channels)?;
    }
    let kept = conv.taps.len() / channels - 1;
    let mut padded = state.window();
    check_len("window of a convolution", padded.len(), kept * channels)?;
    check_len("input of a convolution", x.len() % channels, 0)?;
    check_len("output of a convolution", out.len(), x.len())?;
    padded.extend_from_slice(x);
    pool.for_rows_mut(out, channels, CHUNK, |_, first, rows| {
        for (token, out) in (first..).zip(rows.chunks_exact_mut(channels)) {
            match conv.bias {
                Some(bias) => out.copy_from_slice(bias),
                None => out.fill(0.0),
            }
            let inputs = padded[token * channels..].chunks_exact(channels);
            for (taps, x) in conv.taps.chunks_exact(channels).zip(inputs) {
                for ((out, tap), x) in out.iter_mut().zip(taps).zip(x) {
                    *out += tap * x;
                }
            }
        }
    });
    if let Some(activation) = conv.activation {
        map(pool, Map::Activation(activation), out);
    }
    state.set_window(&padded[x.len()..])
}
