//! A layer's cache as MLX arrays: contiguous, as MLX's attention wants it, grown in steps.

use std::ops::Range;

use mlx_ffi::{Array, Dtype, ops};
use mlxcel_estimator::KvMode;
use mlxcel_kernels::kv::KV_BLOCK_TOKENS;

use super::saved::SavedLayer;
use crate::attention::LayerLayout;
use crate::ops::{Held, Ops};
use crate::shape::{dims, int, ints, rows_cols};
use crate::{Error, Result};

/// Element types, by their number in saved caches.
const ELEMENTS: [Dtype; 3] = [Dtype::Float16, Dtype::Bfloat16, Dtype::Float32];

/// Keys and values `[1, kv_heads, capacity, dim]` of one layer of one sequence.
#[derive(Clone)]
pub(crate) struct ContiguousCache {
    layout: LayerLayout,
    buffers: Option<[Array; 2]>,
    /// Position of the first token in the buffers.
    first: usize,
    /// Tokens in the buffers.
    len: usize,
}

impl ContiguousCache {
    pub(super) fn new(layout: &LayerLayout, mode: KvMode) -> Result<Self> {
        if mode != KvMode::Fp16 {
            let reason =
                "the mlx kernel set caches in fp16 only; MLXCEL_KERNELS=host runs it on the CPU";
            return Err(Error::KvMode { mode, reason: reason.into() });
        }
        // A latent and the rotary part of its key lie in buffers of their own.
        let (key_dim, value_dim) = match layout.latent {
            true => (layout.value_dim, layout.key_dim - layout.value_dim),
            false => (layout.key_dim, layout.value_dim),
        };
        let layout = LayerLayout { key_dim, value_dim, ..*layout };
        Ok(Self { layout, buffers: None, first: 0, len: 0 })
    }

    /// Appends `[1, kv_heads, tokens, dim]` keys and values and returns all that attention sees.
    pub(crate) fn append(&mut self, k: &Array, v: &Array) -> Result<Held> {
        let tokens = dims(k)[2];
        self.forget_unseen(tokens)?;
        let end = self.len + tokens;
        let [keys, values] = match self.buffers.take() {
            Some([keys, values]) => [self.grown(keys, end)?, self.grown(values, end)?],
            None => [self.empty(end, k)?, self.empty(end, v)?],
        };
        let keys = ops::slice_update(&keys, k, &ints([0, 0, self.len, 0])?, &region(k, end)?)?;
        let values = ops::slice_update(&values, v, &ints([0, 0, self.len, 0])?, &region(v, end)?)?;
        self.len = end;
        let held = Held {
            keys: ops::slice(&keys, &[0; 4], &region(k, end)?)?,
            values: ops::slice(&values, &[0; 4], &region(v, end)?)?,
            first: self.first,
        };
        self.buffers = Some([keys, values]);
        Ok(held)
    }

    /// Fills an empty cache with rows, `[tokens, kv_heads · dim]`, computed at once.
    pub(super) fn fill(&mut self, kv_heads: usize, k: &Array, v: &Array) -> Result<()> {
        let by_head = |x: &Array| -> Result<Array> {
            let (tokens, width) = rows_cols(x);
            let rows = ops::reshape(x, &ints([1, tokens, kv_heads, width / kv_heads.max(1)])?)?;
            Ok(ops::transpose(&rows, &[0, 2, 1, 3])?)
        };
        self.append(&by_head(k)?, &by_head(v)?)?;
        Ok(mlx_ffi::eval(&self.buffers.iter().flatten().collect::<Vec<_>>())?)
    }

    /// Keys and values of the tokens `tokens`.
    pub(crate) fn held(&self, tokens: Range<usize>) -> Result<[Array; 2]> {
        let (Some([keys, values]), true) = (&self.buffers, tokens.end <= self.len) else {
            let what = format!("tokens {tokens:?} of a cache of {}", self.len);
            return Err(Error::Cache { what });
        };
        let (first, end) = (int(tokens.start)?, int(tokens.end)?);
        Ok([ops::slice_axis(keys, 2, first, end)?, ops::slice_axis(values, 2, first, end)?])
    }

    /// Forgets everything, its memory too.
    pub(super) fn clear(&mut self) -> Result<()> {
        self.buffers = None;
        self.trim(0)
    }

    fn empty(&self, tokens: usize, like: &Array) -> Result<Array> {
        let shape =
            [1, self.layout.kv_heads, tokens.next_multiple_of(KV_BLOCK_TOKENS), dims(like)[3]];
        Ok(Array::zeros(&ints(shape)?, like.dtype())?)
    }

    fn grown(&self, buffer: Array, tokens: usize) -> Result<Array> {
        let capacity = dims(&buffer)[2];
        if tokens <= capacity {
            return Ok(buffer);
        }
        let more = tokens.next_multiple_of(KV_BLOCK_TOKENS) - capacity;
        let shape = [1, self.layout.kv_heads, more, dims(&buffer)[3]];
        let tail = Array::zeros(&ints(shape)?, buffer.dtype())?;
        Ok(ops::concatenate(&[&buffer, &tail], 2)?)
    }

    /// Before a full buffer would grow, drops the tokens that no query sees any more.
    fn forget_unseen(&mut self, tokens: usize) -> Result<()> {
        let (Some(window), Some([keys, values])) = (self.layout.window, &self.buffers) else {
            return Ok(());
        };
        let unseen = (self.len + 1).saturating_sub(window.get());
        if self.len + tokens <= dims(keys)[2] || unseen == 0 {
            return Ok(());
        }
        let keep = |buffer: &Array| {
            let stop = ints([1, self.layout.kv_heads, self.len, dims(buffer)[3]])?;
            Ok::<_, Error>(ops::slice(buffer, &ints([0, 0, unseen, 0])?, &stop)?)
        };
        self.buffers = Some([keep(keys)?, keep(values)?]);
        self.first += unseen;
        self.len -= unseen;
        Ok(())
    }

    pub(super) fn allocated_bytes(&self) -> usize {
        self.buffers.iter().flatten().map(Array::nbytes).sum()
    }

    /// Whether [`Self::trim`] to `tokens` keeps what the next query sees.
    pub(super) fn check_trim(&self, tokens: usize) -> Result<()> {
        let window = self.layout.window.map_or(usize::MAX, std::num::NonZeroUsize::get);
        let seen_from = (tokens + 1).saturating_sub(window);
        if tokens > 0 && seen_from < self.first {
            let first = self.first;
            let what = format!(
                "cannot trim to {tokens} tokens: the sliding window has dropped the first {first}"
            );
            return Err(Error::Cache { what });
        }
        Ok(())
    }

    /// Forgets the tokens from `tokens` on.
    pub(super) fn trim(&mut self, tokens: usize) -> Result<()> {
        self.check_trim(tokens)?;
        if tokens == 0 {
            self.first = 0;
        }
        self.len = tokens - self.first;
        Ok(())
    }

    /// What is stored and how, as text; the element type is part of the state.
    pub(super) fn layout_text(&self) -> String {
        let LayerLayout { kv_heads, key_dim, value_dim, window, .. } = self.layout;
        let window = window.map_or(String::new(), |window| format!(" window {window}"));
        format!("arrays {kv_heads} x ({key_dim} + {value_dim}){window}")
    }

    /// State (`[first, tokens, element type]`), keys, then values, `[kv_heads, tokens, dim]`.
    pub(super) fn save(&self) -> Result<SavedLayer> {
        let (mut bytes, mut element) = (Vec::new(), 0);
        for buffer in self.buffers.iter().flatten() {
            let held = ops::slice(buffer, &[0; 4], &region(buffer, self.len)?)?;
            element = ELEMENTS.iter().position(|e| *e == held.dtype()).unwrap_or(ELEMENTS.len());
            bytes.extend(held.to_bytes()?);
        }
        let state = [self.first, self.len, element].map(|n| n as u64).to_vec();
        Ok(SavedLayer { state, bytes })
    }

    /// Takes over what [`Self::save`] gave for a sequence of `tokens`; `None` when it cannot be.
    pub(super) fn restore(&mut self, saved: &SavedLayer, tokens: usize) -> Result<Option<()>> {
        let state: Option<Vec<usize>> =
            saved.state.iter().map(|n| usize::try_from(*n).ok()).collect();
        let Some([first, len, element]) = state.as_deref() else { return Ok(None) };
        let Some(&dtype) = ELEMENTS.get(*element) else { return Ok(None) };
        if first.checked_add(*len) != Some(tokens) {
            return Ok(None);
        }
        let LayerLayout { kv_heads, key_dim, value_dim, .. } = self.layout;
        let shape = |dim| ints([1, kv_heads, *len, dim]);
        let sizes = dtype.nbytes(&shape(key_dim)?).zip(dtype.nbytes(&shape(value_dim)?));
        let Some((keys, values)) = sizes else { return Ok(None) };
        if keys.checked_add(values) != Some(saved.bytes.len()) {
            return Ok(None);
        }
        let (keys, values) = saved.bytes.split_at(keys);
        let capacity = len.next_multiple_of(KV_BLOCK_TOKENS);
        let buffers = [
            self.grown(Array::from_bytes(keys, &shape(key_dim)?, dtype)?, capacity)?,
            self.grown(Array::from_bytes(values, &shape(value_dim)?, dtype)?, capacity)?,
        ];
        (self.buffers, self.first, self.len) = ((*len > 0).then_some(buffers), *first, *len);
        Ok(Some(()))
    }

    pub(super) fn fill_synthetic(&mut self, ops: &Ops, tokens: usize) -> Result<()> {
        let dtype =
            if ops.dtype() == crate::ComputeDtype::Fp32 { Dtype::Float32 } else { Dtype::Bfloat16 };
        let fill = |dim: usize| {
            let shape = [1, self.layout.kv_heads, tokens.next_multiple_of(KV_BLOCK_TOKENS), dim];
            Ok::<_, Error>(Array::full(&ints(shape)?, 0.5, dtype)?)
        };
        let buffers = [fill(self.layout.key_dim)?, fill(self.layout.value_dim)?];
        mlx_ffi::eval(&[&buffers[0], &buffers[1]])?;
        self.buffers = (tokens > 0).then_some(buffers);
        self.len = tokens;
        Ok(())
    }
}

/// The end of a slice that covers `tokens` tokens of a buffer shaped like `x`.
fn region(x: &Array, tokens: usize) -> Result<[i32; 4]> {
    let dims = dims(x);
    ints([1, dims[1], tokens, dims[3]])
}

#[cfg(test)]
mod tests;
