//! A layer's cache as 256-token blocks: appended in place, never moved, shared copy on write.
//!
//! Behind a sliding window blocks rotate. What a pass over n tokens sees and writes spans
//! window + n − 1 tokens, which rarely start at a block boundary; the first and the last block of
//! the span then share one allocation: new tokens overwrite those that no query sees any more.
//! So a windowed layer takes the whole blocks of its span and no more, which is the estimator's
//! formula. (Delegated modes do not: a sealed block takes no tokens, so theirs is one block more.)

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use mlxcel_estimator::KvStorage;
use mlxcel_kernels::Pool;
use mlxcel_kernels::aligned::ALIGN_BYTES;
use mlxcel_kernels::kv::{self, KV_BLOCK_TOKENS, KvBlock, ValueStore};
use mlxcel_kernels::slab::Slab;

use super::modes::{LayerFormat, dropped_by_window, sealed_block};
use super::saved::SavedLayer;
use crate::attention::LayerLayout;
use crate::{Error, Result};

/// One layer's blocks. Cloning shares the blocks; a write to a shared one copies it first.
#[derive(Clone)]
pub(crate) struct BlockCache {
    format: LayerFormat,
    window: Option<usize>,
    blocks: VecDeque<Arc<KvBlock>>,
    /// Blocks dropped in front, behind the sliding window.
    dropped: usize,
    /// Whether the first block also holds the tokens that follow the last one.
    wrapped: bool,
    /// Positions before this one have been reserved, and perhaps written.
    end: usize,
    /// Positions before this one may have been overwritten by tokens that shared their block.
    lost: usize,
}

impl BlockCache {
    pub(super) fn new(layout: &LayerLayout, storage: KvStorage) -> Result<Self> {
        let format = LayerFormat::new(layout, storage)?;
        let window = layout.window.map(std::num::NonZeroUsize::get);
        Ok(Self {
            format,
            window,
            blocks: VecDeque::new(),
            dropped: 0,
            wrapped: false,
            end: 0,
            lost: 0,
        })
    }

    /// Drops what no query from `position` on sees, and says how many bytes the blocks take that are
    /// missing for tokens up to `end`.
    pub(super) fn make_room(&mut self, position: usize, end: usize) -> Result<usize> {
        if let Some(window) = self.window {
            self.drop_before((position + 1).saturating_sub(window) / KV_BLOCK_TOKENS);
        }
        let (_, blocks) = self.wanted(position, end);
        if self.wrapped && self.blocks.len() < blocks {
            self.unwrap_front()?;
        }
        let bytes = self.format.open.bytes().next_multiple_of(ALIGN_BYTES);
        Ok(blocks.saturating_sub(self.blocks.len()).saturating_mul(bytes))
    }

    /// Takes the missing blocks from `slab`; [`Self::make_room`] went before.
    pub(super) fn reserve(&mut self, slab: &mut Slab, position: usize, end: usize) -> Result<()> {
        let (wanted, blocks) = self.wanted(position, end);
        while self.blocks.len() < blocks {
            self.blocks.push_back(Arc::new(KvBlock::new_in(slab, self.format.open)?));
        }
        self.wrapped = wanted > self.blocks.len();
        if self.wrapped {
            let overwritten = (end - 1) % KV_BLOCK_TOKENS + 1;
            self.lost = self.lost.max(self.dropped * KV_BLOCK_TOKENS + overwritten);
        }
        self.end = end;
        Ok(())
    }

    /// Both, for this layer alone.
    pub(super) fn reserve_alone(&mut self, position: usize, end: usize) -> Result<()> {
        let mut slab = Slab::new(self.make_room(position, end)?)?;
        self.reserve(&mut slab, position, end)
    }

    /// Blocks that tokens from `position` up to `end` lie in, behind those dropped: as many as they
    /// count, and as many as are allocated.
    fn wanted(&self, position: usize, end: usize) -> (usize, usize) {
        let wanted = end.div_ceil(KV_BLOCK_TOKENS).saturating_sub(self.dropped);
        let most = match self.window {
            Some(window) if self.format.sealed.is_none() => {
                let span = window.saturating_add(end.saturating_sub(position).max(1) - 1);
                end.min(span).div_ceil(KV_BLOCK_TOKENS)
            }
            _ => usize::MAX,
        };
        (wanted, wanted.min(most))
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

    /// Gives the tokens that share the first block one of their own.
    fn unwrap_front(&mut self) -> Result<()> {
        if let Some(front) = self.blocks.front() {
            let copy = Arc::new(front.duplicate()?);
            self.blocks.push_back(copy);
        }
        self.wrapped = false;
        Ok(())
    }

    /// Where attention must break a run so that each part sees its own block unsealed.
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
        let (heads, keys, values) = self.shape();
        let tokens = k.len() / (heads * keys);
        // Blocks may be one allocation twice, so those after the last are a call of their own.
        let last = (self.dropped + self.blocks.len()) * KV_BLOCK_TOKENS;
        let direct = last.saturating_sub(position).min(tokens);
        let (k, wrapped_k) = k.split_at(direct * heads * keys);
        let (v, wrapped_v) = v.split_at(direct * heads * values);
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

    /// Heads, elements of a key, elements of a value (0 where a value is part of its key).
    fn shape(&self) -> (usize, usize, usize) {
        let open = &self.format.open;
        let own = open.value() != ValueStore::KeyPrefix;
        (open.kv_heads(), open.key_dim(), if own { open.value_dim() } else { 0 })
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

    pub(super) fn allocated_bytes(&self) -> usize {
        self.blocks.iter().map(|block| block.bytes().len()).sum()
    }

    /// Every block's identity and bytes.
    pub(super) fn allocations(&self, visit: &mut dyn FnMut(usize, usize)) {
        self.blocks.iter().for_each(|block| visit(Arc::as_ptr(block).addr(), block.bytes().len()));
    }

    /// Whether [`Self::trim`] to `tokens` keeps what the next query sees.
    ///
    /// A place whose values are sealed cannot be written again, so a delegated mode is trimmed to
    /// the start of a block or within its open one.
    pub(super) fn check_trim(&self, tokens: usize) -> Result<()> {
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

    /// Forgets the tokens from `tokens` on, and the blocks that hold no others.
    pub(super) fn trim(&mut self, tokens: usize) -> Result<()> {
        self.check_trim(tokens)?;
        if tokens == 0 {
            (self.dropped, self.wrapped, self.lost) = (0, false, 0);
        }
        let keep = tokens.div_ceil(KV_BLOCK_TOKENS).saturating_sub(self.dropped);
        self.wrapped &= keep > self.blocks.len();
        self.blocks.truncate(keep);
        self.end = tokens;
        Ok(())
    }

    /// What is stored and how, as text: caches of equal texts have interchangeable bytes.
    pub(super) fn layout_text(&self) -> String {
        let (heads, keys, values) = self.shape();
        let open = &self.format.open;
        let key = open.key();
        let value = match open.value() {
            ValueStore::Own(format) => format.to_string(),
            ValueStore::KeyPrefix => "of the key".to_owned(),
        };
        let sealed = self.format.sealed.map_or(String::new(), |format| format!(" sealed {format}"));
        let window = self.window.map_or(String::new(), |window| format!(" window {window}"));
        format!("blocks {heads} x ({keys} {key} + {values} {value}{sealed}){window}")
    }

    /// State (`[dropped, wrapped, end, sealed blocks, lost]`) and the bytes of all blocks in order.
    pub(super) fn save(&self) -> SavedLayer {
        let is_sealed = |block: &&Arc<KvBlock>| *block.layout() != self.format.open;
        let sealed = self.blocks.iter().filter(is_sealed).count();
        let state = [self.dropped, usize::from(self.wrapped), self.end, sealed, self.lost];
        SavedLayer {
            state: state.map(|n| n as u64).to_vec(),
            bytes: self.blocks.iter().flat_map(|block| block.bytes()).copied().collect(),
        }
    }

    /// Takes over what [`Self::save`] gave for a sequence of `tokens`; `None` when it cannot be.
    pub(super) fn restore(&mut self, saved: &SavedLayer, tokens: usize) -> Result<Option<()>> {
        let state: Option<Vec<usize>> =
            saved.state.iter().map(|n| usize::try_from(*n).ok()).collect();
        let Some([dropped, wrapped, end, sealed, lost]) = state.as_deref() else { return Ok(None) };
        let (mut blocks, mut bytes) = (VecDeque::new(), saved.bytes.as_slice());
        let mut slab = Slab::new(bytes.len())?;
        while !bytes.is_empty() {
            let layout = match self.format.sealed {
                Some(format) if blocks.len() < *sealed => {
                    self.format.open.with_value_format(format)?
                }
                _ => self.format.open,
            };
            let Some((own, rest)) = bytes.split_at_checked(layout.bytes()) else { return Ok(None) };
            let mut block = KvBlock::new_in(&mut slab, layout)?;
            block.bytes_mut().copy_from_slice(own);
            blocks.push_back(Arc::new(block));
            bytes = rest;
        }
        let wrapped = *wrapped != 0;
        let capacity = dropped.checked_add(blocks.len() + usize::from(wrapped));
        let capacity = capacity.and_then(|blocks| blocks.checked_mul(KV_BLOCK_TOKENS));
        let fits = capacity.is_some_and(|most| tokens <= *end && *end <= most);
        let shares = !wrapped || (self.window.is_some() && !blocks.is_empty() && *end > 0);
        let (dropped, end, lost) = (*dropped, *end, *lost);
        let restored = Self { blocks, dropped, wrapped, end, lost, ..self.clone() };
        if !fits || !shares || restored.check_trim(tokens).is_err() {
            return Ok(None);
        }
        *self = restored;
        Ok(Some(()))
    }

    /// Fills an empty cache with copies of one block.
    pub(super) fn fill_synthetic(&mut self, pool: &Pool, tokens: usize) -> Result<()> {
        let (heads, keys, values) = self.shape();
        let (k, v) =
            (noise(KV_BLOCK_TOKENS * heads * keys, 1), noise(KV_BLOCK_TOKENS * heads * values, 2));
        let mut open = KvBlock::new(self.format.open)?;
        kv::append(pool, &mut [&mut open], 0, &k, &v)?;
        // Blocks are sealed before they are copied: no more of them are ever open than in a sequence.
        let seal = |format| open.with_values_as(pool, format, KV_BLOCK_TOKENS);
        let sealed = self.format.sealed.map(seal).transpose()?;

        self.make_room(tokens, tokens)?;
        let (_, blocks) = self.wanted(tokens, tokens);
        let full = (tokens / KV_BLOCK_TOKENS).saturating_sub(self.dropped);
        let pattern = |at| sealed.as_ref().filter(|_| at < full).unwrap_or(&open);
        let bytes = |at| pattern(at).layout().bytes().next_multiple_of(ALIGN_BYTES);
        let mut slab = Slab::new((0..blocks).map(bytes).sum())?;
        for at in 0..blocks {
            let mut block = KvBlock::new_in(&mut slab, *pattern(at).layout())?;
            block.copy_from(pattern(at))?;
            self.blocks.push_back(Arc::new(block));
        }
        self.reserve(&mut slab, tokens, tokens)
    }
}

/// The block for writing: a shared or sealed one is copied first.
fn exclusive<'a>(block: &'a mut Arc<KvBlock>, format: &LayerFormat) -> Result<&'a mut KvBlock> {
    if *block.layout() != format.open {
        return Err(Error::Cache {
            what: "a sealed block cannot take tokens: trim to its start first".into(),
        });
    }
    if Arc::get_mut(block).is_none() {
        *block = Arc::new(block.duplicate()?);
    }
    Arc::get_mut(block)
        .ok_or_else(|| Error::Cache { what: "a block is shared after its copy".into() })
}

/// Deterministic values of about unit variance.
#[expect(clippy::cast_precision_loss, reason = "noise")]
fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * 3.46
    };
    (0..len).map(|_| next()).collect()
}

#[cfg(test)]
mod tests;
