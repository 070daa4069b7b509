//! A layer's cache as MLX arrays: contiguous, as MLX's attention wants it, grown in steps.
//!
//! What a mode quantises is held as codes and scales, and decoded as a whole layer when attention
//! reads it. Turbo's rows stay rotated: queries are rotated before, outputs rotated back behind.

mod coding;
mod rows;
mod values;

use std::num::NonZeroUsize;
use std::ops::Range;

use mlx_ffi::{Array, Dtype, ops};
use mlxcel_estimator::KvStorage;
use mlxcel_kernels::kv::{KV_BLOCK_TOKENS, KvFormat, ValueStore};

use self::coding::Rotation;
use self::rows::Rows;
use self::values::{Delegated, Values};
use super::modes::{KvSide, LayerFormat, dropped_by_window, sealed_block};
use super::saved::SavedLayer;
use crate::attention::LayerLayout;
use crate::ops::{ComputeDtype, Ops};
use crate::shape::{dims, int, ints, rows_cols};
use crate::{Error, Result};

/// Element types, by their number in saved caches.
const ELEMENTS: [Dtype; 3] = [Dtype::Float16, Dtype::Bfloat16, Dtype::Float32];

/// Keys and values of one layer of one sequence.
#[derive(Clone)]
pub(crate) struct ContiguousCache {
    window: Option<NonZeroUsize>,
    kv_heads: usize,
    /// Coordinates of what [`Self::append`] takes as a key, where the rows of keys hold more.
    key_dim: usize,
    keys: Rows,
    values: Values,
    /// Position of the first token that is held.
    first: usize,
    /// Tokens that are held.
    len: usize,
}

/// Keys and values `[1, kv_heads, tokens, dim]` of a sequence from position `first` on.
pub(crate) struct Held {
    pub(crate) keys: Array,
    pub(crate) values: Array,
    pub(crate) first: usize,
    /// Bytes of what was decoded from codes.
    pub(crate) decoded_bytes: usize,
    /// What keys, and with them queries, are rotated by.
    key_rotation: Option<Rotation>,
    /// What values, and with them outputs, are rotated by.
    value_rotation: Option<Rotation>,
}

impl Held {
    /// `queries`, `[…, key_dim]`, for the basis of the keys.
    pub(crate) fn rotate(&self, queries: Array) -> Result<Array> {
        self.key_rotation.as_ref().map_or(Ok(queries.clone()), |rotation| rotation.apply(&queries))
    }

    /// What attention made of the values, `[…, value_dim]`, in their own basis.
    pub(crate) fn rotate_back(&self, outputs: Array) -> Result<Array> {
        self.value_rotation.as_ref().map_or(Ok(outputs.clone()), |rotation| rotation.undo(&outputs))
    }
}

impl ContiguousCache {
    pub(super) fn new(layout: &LayerLayout, storage: KvStorage) -> Result<Self> {
        let format = LayerFormat::new(layout, storage)?;
        let LayerLayout { kv_heads, key_dim, value_dim, window, .. } = *layout;
        let rows = |side| Rows::new(kv_heads, side);
        let side = format.keys();
        let (keys, values) = match (format.open.value(), format.sealed) {
            // Floats of a latent and of the rotary part of its key lie apart.
            (ValueStore::KeyPrefix, _) if side.format != KvFormat::Int8 => {
                let part = |dim| rows(KvSide { dim, ..side });
                (part(value_dim)?, Values::Own(part(key_dim - value_dim)?))
            }
            (ValueStore::KeyPrefix, _) => (rows(side)?, Values::InKeys),
            (ValueStore::Own(open), None) => (rows(side)?, Values::Own(rows(format.values(open))?)),
            (ValueStore::Own(open), Some(sealed)) => {
                let (sealed, open) = (rows(format.values(sealed))?, rows(format.values(open))?);
                (rows(side)?, Values::Delegated(Delegated::new(sealed, open)))
            }
        };
        let key_dim = if layout.latent { value_dim } else { key_dim };
        Ok(Self { window, kv_heads, key_dim, keys, values, first: 0, len: 0 })
    }

    /// Whether [`Self::append`] takes no run that crosses the end of a block.
    pub(crate) fn breaks_at_blocks(&self) -> bool {
        matches!(self.values, Values::Delegated(_))
    }

    /// Appends `[1, kv_heads, tokens, dim]` keys and values (of a latent: itself and the rotary part
    /// of its key) and returns all that attention sees.
    pub(crate) fn append(&mut self, k: &Array, v: &Array) -> Result<Held> {
        let tokens = dims(k)[2];
        self.forget_unseen(tokens)?;
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
        self.held(0..self.len, k.dtype())
    }

    /// Fills an empty cache with rows, `[tokens, kv_heads · dim]`, computed at once.
    pub(super) fn fill(&mut self, k: &Array, v: &Array) -> Result<()> {
        let by_head = |x: &Array| -> Result<Array> {
            let (tokens, width) = rows_cols(x);
            let shape = [1, tokens, self.kv_heads, width / self.kv_heads.max(1)];
            Ok(ops::transpose(&ops::reshape(x, &ints(shape)?)?, &[0, 2, 1, 3])?)
        };
        let (k, v) = (by_head(k)?, by_head(v)?);
        self.append(&k, &v)?;
        Ok(mlx_ffi::eval(&self.arrays())?)
    }

    /// Keys and values of the tokens `tokens` of those that are held, in `dtype` where they are codes.
    pub(crate) fn held(&self, tokens: Range<usize>, dtype: Dtype) -> Result<Held> {
        if tokens.end > self.len {
            let what = format!("tokens {tokens:?} of a cache of {}", self.len);
            return Err(Error::Cache { what });
        }
        let first = self.first + tokens.start;
        let keys = self.keys.read(tokens.clone(), dtype)?;
        let (keys, values, value_rotation) = match &self.values {
            Values::Own(values) => (keys, values.read(tokens, dtype)?, values.rotation().cloned()),
            Values::InKeys => {
                let (own, all) = (int(self.key_dim)?, int(dims(&keys)[3])?);
                let part = |from, to| ops::slice_axis(&keys, -1, from, to);
                (part(0, own)?, part(own, all)?, None)
            }
            Values::Delegated(values) => {
                let (values, rotation) = values.read(tokens, dtype)?;
                (keys, values, rotation)
            }
        };
        let key_rotation = self.keys.rotation().cloned();
        let coded = self.rows().into_iter().any(Rows::is_coded);
        let decoded_bytes = if coded { keys.nbytes() + values.nbytes() } else { 0 };
        Ok(Held { keys, values, first, decoded_bytes, key_rotation, value_rotation })
    }

    /// Forgets everything, its memory too.
    pub(super) fn clear(&mut self) -> Result<()> {
        self.keys.clear();
        match &mut self.values {
            Values::Own(values) => values.clear(),
            Values::InKeys => {}
            Values::Delegated(values) => values.clear(),
        }
        self.trim(0)
    }

    /// Before full arrays would grow, drops the tokens that no query sees any more.
    fn forget_unseen(&mut self, tokens: usize) -> Result<()> {
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
            Values::Delegated(values) => values.forget_before(unseen)?,
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

    pub(super) fn allocated_bytes(&self) -> usize {
        self.rows().into_iter().map(Rows::allocated_bytes).sum()
    }

    /// Whether [`Self::trim`] to `tokens` keeps what the next query sees, and can be written behind.
    pub(super) fn check_trim(&self, tokens: usize) -> Result<()> {
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

    /// Forgets the tokens from `tokens` on.
    pub(super) fn trim(&mut self, tokens: usize) -> Result<()> {
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

    /// What is stored and how, as text; the element type of floats is part of the state.
    pub(super) fn layout_text(&self) -> String {
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

    /// State (`[first, tokens, element type]`, behind them sealed tokens where values are), and the
    /// arrays of keys, then of values, `[kv_heads, tokens, width]` each.
    pub(super) fn save(&self) -> Result<SavedLayer> {
        let float = self.rows().into_iter().find_map(Rows::float);
        let number = |float| ELEMENTS.iter().position(|e| *e == float).unwrap_or(ELEMENTS.len());
        let (mut bytes, mut state) = (Vec::new(), vec![self.first, self.len]);
        state.push(float.map_or(0, number));
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

    /// Takes over what [`Self::save`] gave for a sequence of `tokens`; `None` when it cannot be.
    pub(super) fn restore(&mut self, saved: &SavedLayer, tokens: usize) -> Result<Option<()>> {
        let state: Option<Vec<usize>> =
            saved.state.iter().map(|n| usize::try_from(*n).ok()).collect();
        let Some([first, len, element, sealed @ ..]) = state.as_deref() else { return Ok(None) };
        let Some(&float) = ELEMENTS.get(*element) else { return Ok(None) };
        let (first, len, mut bytes) = (*first, *len, saved.bytes.as_slice());
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

    pub(super) fn fill_synthetic(&mut self, ops: &Ops, tokens: usize) -> Result<()> {
        let dtype =
            if ops.dtype() == ComputeDtype::Fp32 { Dtype::Float32 } else { Dtype::Bfloat16 };
        self.keys.fill(tokens, dtype)?;
        match &mut self.values {
            Values::Own(values) => values.fill(tokens, dtype)?,
            Values::InKeys => {}
            Values::Delegated(values) => values.fill(tokens, dtype)?,
        }
        self.len = tokens;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
