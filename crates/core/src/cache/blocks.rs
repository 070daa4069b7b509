//! A layer's cache as 256-token blocks: appended in place, never moved, shared copy on write.
//!
//! Behind a sliding window blocks rotate. A pass over n tokens reads and writes a span of
//! window + n − 1 tokens, which rarely starts at a block boundary; the first and the last block of
//! the span then share one allocation: new tokens overwrite those that no query attends to any more.
//! So a windowed layer takes the whole blocks of its span and no more, which is the estimator's
//! formula. (Delegated modes do not: a sealed block takes no tokens, so theirs is one block more.)

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use mlx_ffi::Array;
use mlxcel_estimator::KvStorage;
use mlxcel_kernels::Pool;
use mlxcel_kernels::aligned::ALIGN_BYTES;
use mlxcel_kernels::kv::{self, KV_BLOCK_TOKENS, KvBlock, ValueStore};
use mlxcel_kernels::slab::Slab;

use super::formats::{LayerFormat, dropped_by_window, sealed_block};
use super::saved::SavedLayer;
use super::storage::LayerCache;
use crate::Result;
use crate::attention::LayerLayout;
use crate::shape::{rows_cols, to_f32};

/// One layer's blocks. Cloning shares the blocks; a write to a shared one copies it first.
#[derive(Clone)]
pub(crate) struct BlockCache {
    format: LayerFormat,
    window: Option<usize>,
    blocks: VecDeque<Arc<KvBlock>>,
    /// Blocks dropped in front, behind the sliding window.
    dropped: usize,
    /// True if the first block also holds the tokens after the last block.
    wrapped: bool,
    /// Positions before this one have been reserved, and perhaps written.
    end: usize,
    /// Positions before this one may have been overwritten by tokens that shared their block.
    lost: usize,
}

/// Numbers of blocks for the tokens of a pass, behind the dropped ones.
struct WantedBlocks {
    /// Blocks that the tokens span.
    spanned: usize,
    /// Blocks that are allocated: one less where the first and the last share an allocation.
    allocated: usize,
}

/// Elements of a token's keys and values in a layer.
#[derive(Clone, Copy)]
struct RowShape {
    heads: usize,
    /// Elements of a key.
    key_dim: usize,
    /// Elements of a value; 0 where a value is part of its key.
    value_dim: usize,
}

impl RowShape {
    fn key_elems(self) -> usize {
        self.heads * self.key_dim
    }

    fn value_elems(self) -> usize {
        self.heads * self.value_dim
    }
}

impl BlockCache {
    /// Reserves memory for tokens up to `end`, for this layer alone.
    fn reserve_alone(&mut self, position: usize, end: usize) -> Result<()> {
        let mut slab = Slab::new(self.make_room(position, end)?)?;
        self.reserve(&mut slab, position, end)
    }

    fn wanted(&self, position: usize, end: usize) -> WantedBlocks {
        let spanned = end.div_ceil(KV_BLOCK_TOKENS).saturating_sub(self.dropped);
        let most = match self.window {
            Some(window) if self.format.sealed.is_none() => {
                let span = window.saturating_add(end.saturating_sub(position).max(1) - 1);
                end.min(span).div_ceil(KV_BLOCK_TOKENS)
            }
            _ => usize::MAX,
        };
        WantedBlocks { spanned, allocated: spanned.min(most) }
    }

    /// Drops the blocks before block `first`; one that already holds new tokens becomes the last.
    fn drop_before(&mut self, first: usize) {
        while self.dropped < first {
            if std::mem::take(&mut self.wrapped) {
                self.blocks.rotate_left(1);
            } else {
                self.blocks.pop_front();
            }
            self.dropped += 1;
        }
    }

    /// Moves the tokens that share the first block to a block of their own.
    fn unwrap_front(&mut self) -> Result<()> {
        if let Some(front) = self.blocks.front() {
            let copy = Arc::new(front.duplicate()?);
            self.blocks.push_back(copy);
        }
        self.wrapped = false;
        Ok(())
    }

    /// Returns true if attention must break a run at block boundaries, so that each part sees its own block
    /// unsealed.
    pub(crate) fn breaks_at_blocks(&self) -> bool {
        self.format.sealed.is_some()
    }

    /// Writes keys and values, `[tokens, heads · dim]` each, from position `position` on.
    pub(crate) fn append(
        &mut self,
        pool: &Pool,
        position: usize,
        k: &[f32],
        v: &[f32],
    ) -> Result<()> {
        let shape = self.shape();
        let tokens = k.len() / shape.key_elems();
        // Blocks may be one allocation twice, so those after the last are a call of their own.
        let last = (self.dropped + self.blocks.len()) * KV_BLOCK_TOKENS;
        let direct = last.saturating_sub(position).min(tokens);
        let (k, wrapped_k) = k.split_at(direct * shape.key_elems());
        let (v, wrapped_v) = v.split_at(direct * shape.value_elems());
        let first = position / KV_BLOCK_TOKENS - self.dropped;
        if direct > 0 {
            let end = first + (position % KV_BLOCK_TOKENS + direct).div_ceil(KV_BLOCK_TOKENS);
            self.write(pool, first..end, position, [k, v])?;
        }
        if direct < tokens {
            self.write(pool, 0..1, position + direct, [wrapped_k, wrapped_v])?;
        }
        Ok(())
    }

    /// Writes rows of keys and values from `position` on to the blocks `blocks`.
    fn write(
        &mut self,
        pool: &Pool,
        blocks: Range<usize>,
        position: usize,
        [k, v]: [&[f32]; 2],
    ) -> Result<()> {
        let mut targets = Vec::with_capacity(blocks.len());
        for block in self.blocks.range_mut(blocks) {
            targets.push(exclusive(block, &self.format)?);
        }
        Ok(kv::append(pool, &mut targets, position % KV_BLOCK_TOKENS, k, v)?)
    }

    fn shape(&self) -> RowShape {
        let open = &self.format.open;
        let value_dim = match open.value() {
            ValueStore::KeyPrefix => 0,
            ValueStore::Own(_) => open.value_dim(),
        };
        RowShape { heads: open.kv_heads(), key_dim: open.key_dim(), value_dim }
    }

    /// Re-codes the blocks before `position` that are still open, if this mode seals blocks.
    pub(crate) fn seal_before(&mut self, pool: &Pool, position: usize) -> Result<()> {
        let Some(format) = self.format.sealed else { return Ok(()) };
        let full = (position / KV_BLOCK_TOKENS).saturating_sub(self.dropped);
        for block in self.blocks.iter_mut().take(full) {
            if *block.layout() == self.format.open {
                *block = Arc::new(block.with_values_as(pool, format, KV_BLOCK_TOKENS)?);
            }
        }
        Ok(())
    }

    /// The blocks in order, and the position of the first token of the first one.
    pub(crate) fn view(&self) -> (Vec<&KvBlock>, usize) {
        let wrapped = self.blocks.front().filter(|_| self.wrapped);
        let blocks = self.blocks.iter().chain(wrapped).map(|block| &**block);
        (blocks.collect(), self.dropped * KV_BLOCK_TOKENS)
    }
}

impl LayerCache for BlockCache {
    fn new(layout: &LayerLayout, storage: KvStorage) -> Result<Self> {
        Ok(Self {
            format: LayerFormat::new(layout, storage)?,
            window: layout.window.map(std::num::NonZeroUsize::get),
            blocks: VecDeque::new(),
            dropped: 0,
            wrapped: false,
            end: 0,
            lost: 0,
        })
    }

    fn make_room(&mut self, position: usize, end: usize) -> Result<usize> {
        if let Some(window) = self.window {
            self.drop_before((position + 1).saturating_sub(window) / KV_BLOCK_TOKENS);
        }
        let blocks = self.wanted(position, end).allocated;
        if self.wrapped && self.blocks.len() < blocks {
            self.unwrap_front()?;
        }
        let bytes = self.format.open.bytes().next_multiple_of(ALIGN_BYTES);
        Ok(blocks.saturating_sub(self.blocks.len()).saturating_mul(bytes))
    }

    fn reserve(&mut self, slab: &mut Slab, position: usize, end: usize) -> Result<()> {
        let wanted = self.wanted(position, end);
        while self.blocks.len() < wanted.allocated {
            self.blocks.push_back(Arc::new(KvBlock::new_in(slab, self.format.open)?));
        }
        self.wrapped = wanted.spanned > self.blocks.len();
        if self.wrapped {
            let overwritten = (end - 1) % KV_BLOCK_TOKENS + 1;
            self.lost = self.lost.max(self.dropped * KV_BLOCK_TOKENS + overwritten);
        }
        self.end = end;
        Ok(())
    }

    fn allocations(&self, visit: &mut dyn FnMut(usize, usize)) {
        self.blocks.iter().for_each(|block| visit(Arc::as_ptr(block).addr(), block.bytes().len()));
    }

    /// A place whose values are sealed cannot be written again, so a delegated mode is trimmed to
    /// the start of a block or within its open one.
    fn check_trim(&self, tokens: usize) -> Result<()> {
        let kept_from = self.lost.max(self.dropped * KV_BLOCK_TOKENS);
        let seen_from = self.window.map_or(0, |window| (tokens + 1).saturating_sub(window));
        if tokens > 0 && seen_from < kept_from {
            return Err(dropped_by_window(tokens, kept_from));
        }
        let last = (tokens / KV_BLOCK_TOKENS).checked_sub(self.dropped);
        let sealed = last.and_then(|last| self.blocks.get(last));
        let sealed = sealed.is_some_and(|block| *block.layout() != self.format.open);
        if sealed && !tokens.is_multiple_of(KV_BLOCK_TOKENS) {
            return Err(sealed_block(tokens));
        }
        Ok(())
    }

    fn trim(&mut self, tokens: usize) -> Result<()> {
        self.check_trim(tokens)?;
        if tokens == 0 {
            self.clear();
        }
        let keep = tokens.div_ceil(KV_BLOCK_TOKENS).saturating_sub(self.dropped);
        self.wrapped &= keep > self.blocks.len();
        self.blocks.truncate(keep);
        self.end = tokens;
        Ok(())
    }

    fn clear(&mut self) {
        self.blocks.clear();
        self.dropped = 0;
        self.wrapped = false;
        self.lost = 0;
        self.end = 0;
    }

    fn fill(&mut self, pool: &Pool, keys: &Array, values: &Array) -> Result<()> {
        self.reserve_alone(0, rows_cols(keys).0)?;
        self.append(pool, 0, &to_f32(keys)?, &to_f32(values)?)
    }

    /// Fills with copies of one block.
    fn fill_synthetic(&mut self, pool: &Pool, tokens: usize) -> Result<()> {
        let shape = self.shape();
        let k = noise(KV_BLOCK_TOKENS * shape.key_elems(), 1);
        let v = noise(KV_BLOCK_TOKENS * shape.value_elems(), 2);
        let mut open = KvBlock::new(self.format.open)?;
        kv::append(pool, &mut [&mut open], 0, &k, &v)?;
        // Blocks are sealed before they are copied: no more of them are ever open than in a sequence.
        let sealed = match self.format.sealed {
            Some(format) => Some(open.with_values_as(pool, format, KV_BLOCK_TOKENS)?),
            None => None,
        };

        self.make_room(tokens, tokens)?;
        let blocks = self.wanted(tokens, tokens).allocated;
        let full = (tokens / KV_BLOCK_TOKENS).saturating_sub(self.dropped);
        let mut patterns = Vec::with_capacity(blocks);
        for at in 0..blocks {
            patterns.push(sealed.as_ref().filter(|_| at < full).unwrap_or(&open));
        }
        let bytes = patterns.iter().map(|block| block.layout().bytes());
        let mut slab = Slab::new(bytes.map(|bytes| bytes.next_multiple_of(ALIGN_BYTES)).sum())?;
        for pattern in patterns {
            let mut block = KvBlock::new_in(&mut slab, *pattern.layout())?;
            block.copy_from(pattern)?;
            self.blocks.push_back(Arc::new(block));
        }
        self.reserve(&mut slab, tokens, tokens)
    }

    fn layout_text(&self) -> String {
        let RowShape { heads, key_dim, value_dim } = self.shape();
        let key = self.format.open.key();
        let value = match self.format.open.value() {
            ValueStore::Own(format) => format.to_string(),
            ValueStore::KeyPrefix => "of the key".to_owned(),
        };
        let sealed = self.format.sealed.map_or(String::new(), |format| format!(" sealed {format}"));
        let window = self.window.map_or(String::new(), |window| format!(" window {window}"));
        format!("blocks {heads} x ({key_dim} {key} + {value_dim} {value}{sealed}){window}")
    }

    /// The state is `[dropped, wrapped, end, sealed blocks, lost]`; the bytes are those of all blocks
    /// in order.
    fn save(&self) -> Result<SavedLayer> {
        let layouts = self.blocks.iter().map(|block| block.layout());
        let sealed = layouts.filter(|layout| **layout != self.format.open).count();
        let state = [self.dropped, usize::from(self.wrapped), self.end, sealed, self.lost];
        Ok(SavedLayer {
            state: state.map(|n| n as u64).to_vec(),
            bytes: self.blocks.iter().flat_map(|block| block.bytes()).copied().collect(),
        })
    }

    fn restore(&mut self, saved: &SavedLayer, tokens: usize) -> Result<Option<()>> {
        let state: Option<Vec<usize>> =
            saved.state.iter().map(|n| usize::try_from(*n).ok()).collect();
        let Some(&[dropped, wrapped, end, sealed, lost]) = state.as_deref() else {
            return Ok(None);
        };
        let Some(blocks) = self.restored_blocks(&saved.bytes, sealed)? else { return Ok(None) };
        let wrapped = wrapped != 0;
        let capacity = dropped.checked_add(blocks.len() + usize::from(wrapped));
        let capacity = capacity.and_then(|blocks| blocks.checked_mul(KV_BLOCK_TOKENS));
        let fits = capacity.is_some_and(|most| tokens <= end && end <= most);
        let shares = !wrapped || (self.window.is_some() && !blocks.is_empty() && end > 0);
        let restored = Self { blocks, dropped, wrapped, end, lost, ..self.clone() };
        if !fits || !shares || restored.check_trim(tokens).is_err() {
            return Ok(None);
        }
        *self = restored;
        Ok(Some(()))
    }
}

impl BlockCache {
    /// Blocks of saved bytes, the first `sealed` of them sealed; `None` where bytes are missing.
    fn restored_blocks(
        &self,
        mut bytes: &[u8],
        sealed: usize,
    ) -> Result<Option<VecDeque<Arc<KvBlock>>>> {
        let mut blocks = VecDeque::new();
        let mut slab = Slab::new(bytes.len())?;
        while !bytes.is_empty() {
            let layout = match self.format.sealed {
                Some(format) if blocks.len() < sealed => {
                    self.format.open.with_value_format(format)?
                }
                _ => self.format.open,
            };
            let Some((own, rest)) = bytes.split_at_checked(layout.bytes()) else {
                return Ok(None);
            };
            let mut block = KvBlock::new_in(&mut slab, layout)?;
            block.bytes_mut().copy_from_slice(own);
            blocks.push_back(Arc::new(block));
            bytes = rest;
        }
        Ok(Some(blocks))
    }
}

/// The block for writing: a shared one is copied first.
fn exclusive<'a>(block: &'a mut Arc<KvBlock>, format: &LayerFormat) -> Result<&'a mut KvBlock> {
    // `check_trim` lets no sequence go back into a sealed block, and a pass seals only full ones.
    assert!(*block.layout() == format.open, "a sealed block takes no tokens");
    if Arc::get_mut(block).is_none() {
        *block = Arc::new(block.duplicate()?);
    }
    Ok(Arc::get_mut(block).expect("a block that was just copied has one owner"))
}

/// Deterministic values of about unit variance.
#[expect(clippy::cast_precision_loss, reason = "noise")]
fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut values = Vec::with_capacity(len);
    for _ in 0..len {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        values.push(((state >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * 3.46);
    }
    values
}

#[cfg(test)]
mod tests;
