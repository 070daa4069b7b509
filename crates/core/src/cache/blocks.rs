//! A layer's cache as 256-token blocks: appended in place, never moved, shared copy on write.

use std::collections::VecDeque;
use std::sync::Arc;

use mlxcel_estimator::KvMode;
use mlxcel_kernels::Pool;
use mlxcel_kernels::kv::{self, KV_BLOCK_TOKENS, KvBlock};

use super::modes::HostFormat;
use crate::attention::LayerLayout;
use crate::ops::ComputeDtype;
use crate::{Error, Result};

/// One layer's blocks. Cloning shares the blocks; a write to a shared one copies it first.
#[derive(Clone)]
pub(crate) struct BlockCache {
    format: HostFormat,
    window: Option<usize>,
    blocks: VecDeque<Arc<KvBlock>>,
    /// Blocks dropped in front, behind the sliding window.
    dropped: usize,
}

impl BlockCache {
    pub(super) fn new(layout: &LayerLayout, mode: KvMode, dtype: ComputeDtype) -> Result<Self> {
        let format = HostFormat::new(layout, mode, dtype)?;
        let window = layout.window.map(std::num::NonZeroUsize::get);
        Ok(Self { format, window, blocks: VecDeque::new(), dropped: 0 })
    }

    /// Makes room for tokens up to `end`, dropping what the window from `position` on cannot see.
    pub(super) fn reserve(&mut self, position: usize, end: usize) -> Result<()> {
        if let Some(window) = self.window {
            let visible = (position + 1).saturating_sub(window) / KV_BLOCK_TOKENS;
            while self.dropped < visible && self.blocks.pop_front().is_some() {
                self.dropped += 1;
            }
        }
        while self.dropped + self.blocks.len() < end.div_ceil(KV_BLOCK_TOKENS) {
            self.blocks.push_back(Arc::new(KvBlock::new(self.format.open)?));
        }
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
        let row = self.format.open.kv_heads() * self.format.open.key_dim();
        let tokens = k.len() / row.max(1);
        let first = position / KV_BLOCK_TOKENS - self.dropped;
        let last = (position + tokens).div_ceil(KV_BLOCK_TOKENS) - self.dropped;
        let mut targets = Vec::with_capacity(last - first);
        for block in self.blocks.range_mut(first..last) {
            targets.push(exclusive(block, &self.format)?);
        }
        Ok(kv::append(pool, &mut targets, position % KV_BLOCK_TOKENS, k, v)?)
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
        (self.blocks.iter().map(|block| &**block).collect(), self.dropped * KV_BLOCK_TOKENS)
    }

    pub(super) fn allocated_bytes(&self) -> usize {
        self.blocks.iter().map(|block| block.bytes().len()).sum()
    }

    /// Drops the blocks that hold only tokens from `tokens` on. A sealed block that becomes the
    /// last one again would lose its fp16 values, so it must be refilled: the caller trims to its
    /// start then.
    pub(super) fn trim(&mut self, tokens: usize) -> Result<()> {
        let keep = tokens.div_ceil(KV_BLOCK_TOKENS);
        if keep < self.dropped || (self.dropped > 0 && tokens < self.dropped * KV_BLOCK_TOKENS) {
            return Err(Error::Cache {
                what: format!(
                    "cannot trim to {tokens} tokens: the sliding window has dropped the first {}",
                    self.dropped * KV_BLOCK_TOKENS
                ),
            });
        }
        self.blocks.truncate(keep - self.dropped);
        Ok(())
    }

    pub(super) fn fill_synthetic(&mut self, pool: &Pool, tokens: usize) -> Result<()> {
        self.reserve(tokens, tokens)?;
        let Some(first) = self.blocks.front_mut() else { return Ok(()) };
        let (heads, keys, values) =
            (self.format.open.kv_heads(), self.format.open.key_dim(), self.format.open.value_dim());
        let (k, v) =
            (noise(KV_BLOCK_TOKENS * heads * keys, 1), noise(KV_BLOCK_TOKENS * heads * values, 2));
        kv::append(pool, &mut [exclusive(first, &self.format)?], 0, &k, &v)?;
        let pattern = Arc::clone(first);
        for block in self.blocks.iter_mut().skip(1) {
            *block = Arc::new(pattern.duplicate()?);
        }
        self.seal_before(pool, tokens)
    }
}

/// The block for writing: a shared or sealed one is copied first.
fn exclusive<'a>(block: &'a mut Arc<KvBlock>, format: &HostFormat) -> Result<&'a mut KvBlock> {
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
