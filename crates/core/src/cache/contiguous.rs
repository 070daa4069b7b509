//! A layer's cache as MLX arrays: contiguous, as MLX's attention reads it, grown in steps.
//!
//! Quantised modes hold codes and scales, and decode a whole layer when attention reads it. Turbo's
//! rows stay rotated: queries are rotated before attention, outputs are rotated back after it.

mod coding;
mod rows;
mod values;

use std::num::NonZeroUsize;
use std::ops::Range;

use mlx_ffi::{Array, Dtype, ops};
use mlxcel_estimator::{ComputeDtype, KvStorage};
use mlxcel_kernels::Pool;
use mlxcel_kernels::kv::{KV_BLOCK_TOKENS, KvFormat, ValueStore};
use mlxcel_kernels::slab::Slab;

use self::coding::Rotation;
use self::rows::Rows;
use self::values::{Delegated, Values};
use super::formats::{KvSide, LayerFormat, dropped_by_window, sealed_block};
use super::saved::SavedLayer;
use super::storage::LayerCache;
use crate::attention::LayerLayout;
use crate::shape::{dims, int, ints, rows_cols};
use crate::{Error, Result};

/// Element types, by their number in saved caches.
const ELEMENTS: [Dtype; 3] = [Dtype::Float16, Dtype::Bfloat16, Dtype::Float32];

/// Keys and values of one layer of one sequence.
#[derive(Clone)]
pub(crate) struct ContiguousCache {
    window: Option<NonZeroUsize>,
    kv_heads: usize,
    /// Coordinates that [`Self::append`] takes as a key, where the rows of keys hold more.
    key_dim: usize,
    /// Type of floats in a synthetic fill.
    compute: ComputeDtype,
    keys: Rows,
    values: Values,
    /// Position of the first token that is held.
    first: usize,
    /// Tokens that are held.
    len: usize,
}

/// Keys and values `[1, kv_heads, tokens, dim]` of a sequence from position `first` on.
pub(crate) struct KvView {
    pub(crate) keys: Array,
    pub(crate) values: Array,
    pub(crate) first: usize,
    /// Bytes that were decoded from codes.
    pub(crate) decoded_bytes: usize,
    /// Rotation of the keys, and with them of queries.
    key_rotation: Option<Rotation>,
    /// Rotation of the values, and with them of outputs.
    value_rotation: Option<Rotation>,
}

impl KvView {
    /// `queries`, `[…, key_dim]`, in the basis of the keys.
    pub(crate) fn rotate(&self, queries: Array) -> Result<Array> {
        match &self.key_rotation {
            Some(rotation) => rotation.apply(&queries),
            None => Ok(queries),
        }
    }

    /// Outputs of attention, `[…, value_dim]`, rotated back from the basis of the values.
    pub(crate) fn rotate_back(&self, outputs: Array) -> Result<Array> {
        match &self.value_rotation {
            Some(rotation) => rotation.undo(&outputs),
            None => Ok(outputs),
        }
    }
}

impl ContiguousCache {
    /// Returns true if [`Self::append`] takes no run that crosses the end of a block.
    pub(crate) fn breaks_at_blocks(&self) -> bool {
        matches!(self.values, Values::Delegated(_))
    }

    /// Appends `[1, kv_heads, tokens, dim]` keys and values (of a latent: itself and the rotary part
    /// of its key) and returns everything that attention reads.
    pub(crate) fn append(&mut self, k: &Array, v: &Array) -> Result<KvView> {
        let tokens = dims(k)[2];
        self.drop_unseen(tokens)?;
        match &mut self.values {
            Values::InKeys => self.keys.write(self.len, &ops::concatenate(&[k, v], -1)?)?,
            Values::Own(values) => {
                self.keys.write(self.len, k)?;
                values.write(self.len, v)?;
            }
            Values::Delegated(values) => {
                self.keys.write(self.len, k)?;
                values.write(self.len, v)?;
            }
        }
        self.len += tokens;
        self.view(0..self.len, k.dtype())
    }

    /// Rows, `[tokens, kv_heads · dim]`, as `[1, kv_heads, tokens, dim]`.
    fn by_head(&self, rows: &Array) -> Result<Array> {
        let (tokens, width) = rows_cols(rows);
        let shape = ints([1, tokens, self.kv_heads, width / self.kv_heads.max(1)])?;
        Ok(ops::transpose(&ops::reshape(rows, &shape)?, &[0, 2, 1, 3])?)
    }

    /// Keys and values of the held tokens `tokens`, in `dtype` where they are codes.
    pub(crate) fn view(&self, tokens: Range<usize>, dtype: Dtype) -> Result<KvView> {
        if tokens.end > self.len {
            let index = tokens.end;
            return Err(Error::OutOfRange {
                what: "the end of cached tokens",
                index,
                len: self.len,
            });
        }
        let first = self.first + tokens.start;
        let keys = self.keys.read(tokens.clone(), dtype)?;
        let (keys, values, value_rotation) = match &self.values {
            Values::Own(values) => (keys, values.read(tokens, dtype)?, values.rotation().cloned()),
            Values::InKeys => {
                let own = int(self.key_dim)?;
                let rotary = ops::slice_axis(&keys, -1, own, int(dims(&keys)[3])?)?;
                (ops::slice_axis(&keys, -1, 0, own)?, rotary, None)
            }
            Values::Delegated(values) => {
                let (values, rotation) = values.read(tokens, dtype)?;
                (keys, values, rotation)
            }
        };
        let key_rotation = self.keys.rotation().cloned();
        let coded = self.rows().into_iter().any(Rows::is_coded);
        let decoded_bytes = if coded { keys.nbytes() + values.nbytes() } else { 0 };
        Ok(KvView { keys, values, first, decoded_bytes, key_rotation, value_rotation })
    }

    /// Before full arrays would grow, drops the tokens that no query attends to any more.
    fn drop_unseen(&mut self, tokens: usize) -> Result<()> {
        let Some(window) = self.window else { return Ok(()) };
        let mut unseen = (self.len + 1).saturating_sub(window.get());
        if self.breaks_at_blocks() {
            unseen -= unseen % KV_BLOCK_TOKENS;
        }
        if self.len + tokens <= self.keys.capacity() || unseen == 0 {
            return Ok(());
        }
        self.keys.keep(unseen..self.len)?;
        match &mut self.values {
            Values::Own(values) => values.keep(unseen..self.len)?,
            Values::InKeys => {}
            Values::Delegated(values) => values.drop_before(unseen)?,
        }
        self.first += unseen;
        self.len -= unseen;
        Ok(())
    }

    /// All rows, keys first.
    fn rows(&self) -> Vec<&Rows> {
        let values = match &self.values {
            Values::Own(values) => vec![values],
            Values::InKeys => Vec::new(),
            Values::Delegated(values) => values.rows().to_vec(),
        };
        [&self.keys].into_iter().chain(values).collect()
    }

    fn arrays(&self) -> Vec<&Array> {
        self.rows().into_iter().flat_map(Rows::arrays).collect()
    }
}

impl LayerCache for ContiguousCache {
    fn new(layout: &LayerLayout, storage: KvStorage) -> Result<Self> {
        let format = LayerFormat::new(layout, storage)?;
        let LayerLayout { kv_heads, key_dim, value_dim, window, .. } = *layout;
        let side = format.keys();
        let mut own_keys = side;
        let values = match (format.open.value(), format.sealed) {
            // Floats of a latent and of the rotary part of its key lie apart.
            (ValueStore::KeyPrefix, _) if side.format != KvFormat::Int8 => {
                own_keys.dim = value_dim;
                let rotary = KvSide { dim: key_dim - value_dim, ..side };
                Values::Own(Rows::new(kv_heads, rotary)?)
            }
            (ValueStore::KeyPrefix, _) => Values::InKeys,
            (ValueStore::Own(open), None) => Values::Own(Rows::new(kv_heads, format.values(open))?),
            (ValueStore::Own(open), Some(sealed)) => {
                let sealed = Rows::new(kv_heads, format.values(sealed))?;
                let open = Rows::new(kv_heads, format.values(open))?;
                Values::Delegated(Delegated::new(sealed, open))
            }
        };
        Ok(Self {
            window,
            kv_heads,
            key_dim: if layout.latent { value_dim } else { key_dim },
            compute: storage.dtype,
            keys: Rows::new(kv_heads, own_keys)?,
            values,
            first: 0,
            len: 0,
        })
    }

    /// Arrays grow as they are appended to.
    fn make_room(&mut self, _: usize, _: usize) -> Result<usize> {
        Ok(0)
    }

    fn reserve(&mut self, _: &mut Slab, _: usize, _: usize) -> Result<()> {
        Ok(())
    }

    fn allocations(&self, visit: &mut dyn FnMut(usize, usize)) {
        let bytes = self.rows().into_iter().map(Rows::allocated_bytes).sum();
        visit(std::ptr::from_ref(self).addr(), bytes);
    }

    fn check_trim(&self, tokens: usize) -> Result<()> {
        let window = self.window.map_or(usize::MAX, NonZeroUsize::get);
        let seen_from = (tokens + 1).saturating_sub(window);
        if tokens > 0 && seen_from < self.first {
            return Err(dropped_by_window(tokens, self.first));
        }
        let sealed = match &self.values {
            Values::Delegated(values) => self.first + values.sealed_tokens(),
            Values::Own(_) | Values::InKeys => 0,
        };
        if tokens < sealed && !tokens.is_multiple_of(KV_BLOCK_TOKENS) {
            return Err(sealed_block(tokens));
        }
        Ok(())
    }

    fn trim(&mut self, tokens: usize) -> Result<()> {
        self.check_trim(tokens)?;
        if tokens == 0 {
            self.first = 0;
        }
        self.len = tokens - self.first;
        if let Values::Delegated(values) = &mut self.values {
            values.trim(self.len);
        }
        Ok(())
    }

    /// The element type of floats is part of the state.
    fn layout_text(&self) -> String {
        let values = match &self.values {
            Values::Own(values) => values.text(),
            Values::InKeys => "of the key".to_owned(),
            Values::Delegated(values) => {
                let [sealed, open] = values.rows();
                format!("{} sealed {}", open.text(), sealed.text())
            }
        };
        let window = self.window.map_or(String::new(), |window| format!(" window {window}"));
        format!("arrays {} x ({} + {values}){window}", self.kv_heads, self.keys.text())
    }

    /// The state is `[first, tokens, element type]`, followed by the sealed tokens where values are
    /// sealed; the bytes are the arrays of keys, then of values, `[kv_heads, tokens, width]` each.
    fn save(&self) -> Result<SavedLayer> {
        let element = match self.rows().into_iter().find_map(Rows::float) {
            Some(float) => ELEMENTS.iter().position(|e| *e == float).unwrap_or(ELEMENTS.len()),
            None => 0,
        };
        let mut state = vec![self.first, self.len, element];
        let mut bytes = Vec::new();
        self.keys.save(self.len, &mut bytes)?;
        match &self.values {
            Values::Own(values) => values.save(self.len, &mut bytes)?,
            Values::InKeys => {}
            Values::Delegated(values) => {
                values.save(self.len, &mut bytes)?;
                state.push(values.sealed_tokens());
            }
        }
        Ok(SavedLayer { state: state.into_iter().map(|n| n as u64).collect(), bytes })
    }

    fn restore(&mut self, saved: &SavedLayer, tokens: usize) -> Result<Option<()>> {
        let state: Option<Vec<usize>> =
            saved.state.iter().map(|n| usize::try_from(*n).ok()).collect();
        let Some([first, len, element, sealed @ ..]) = state.as_deref() else { return Ok(None) };
        let Some(&float) = ELEMENTS.get(*element) else { return Ok(None) };
        let first = *first;
        let len = *len;
        let mut bytes = saved.bytes.as_slice();
        if first.checked_add(len) != Some(tokens) {
            return Ok(None);
        }
        let mut restored = self.clone();
        let keys = restored.keys.restore(len, float, &mut bytes)?;
        let values = match (&mut restored.values, sealed) {
            (Values::Own(values), []) => values.restore(len, float, &mut bytes)?,
            (Values::InKeys, []) => Some(()),
            (Values::Delegated(values), [sealed]) if first.is_multiple_of(KV_BLOCK_TOKENS) => {
                values.restore([*sealed, len], float, &mut bytes)?
            }
            _ => None,
        };
        if keys.is_none() || values.is_none() || !bytes.is_empty() {
            return Ok(None);
        }
        *self = Self { first, len, ..restored };
        Ok(Some(()))
    }

    fn fill_synthetic(&mut self, _: &Pool, tokens: usize) -> Result<()> {
        let dtype = match self.compute {
            ComputeDtype::Fp32 => Dtype::Float32,
            ComputeDtype::Checkpoint => Dtype::Bfloat16,
        };
        self.keys.fill(tokens, dtype)?;
        match &mut self.values {
            Values::Own(values) => values.fill(tokens, dtype)?,
            Values::InKeys => {}
            Values::Delegated(values) => values.fill(tokens, dtype)?,
        }
        self.len = tokens;
        Ok(())
    }

    fn clear(&mut self) {
        self.keys.clear();
        match &mut self.values {
            Values::Own(values) => values.clear(),
            Values::InKeys => {}
            Values::Delegated(values) => values.clear(),
        }
        self.first = 0;
        self.len = 0;
    }

    fn fill(&mut self, _: &Pool, keys: &Array, values: &Array) -> Result<()> {
        self.append(&self.by_head(keys)?, &self.by_head(values)?)?;
        Ok(mlx_ffi::eval(&self.arrays())?)
    }
}

#[cfg(test)]
mod tests;
