//! One cache block: 256 tokens of every KV head of one layer.

use super::format::KvFormat;
use super::layout::{BlockLayout, KV_BLOCK_TOKENS, ValueStore};
use super::store::{SideCoding, Work};
use crate::aligned::AlignedBuf;
use crate::error::{KernelError, Result, check_len};
use crate::pool::Pool;
use crate::slab::Slab;
use crate::turbo::{ScaleRule, Side};
use std::ops::Range;

pub use crate::turbo::Side as BlockSide;

/// The bytes of a block and their layout. The caller keeps the number of filled tokens;
/// a new block is all zeros, which reads as zero vectors (int8 keys excepted: no code is 0).
#[derive(Debug)]
pub struct KvBlock {
    layout: BlockLayout,
    data: AlignedBuf,
}

/// One head's codes and scales of one side, read-only.
#[derive(Clone, Copy)]
pub(crate) struct HeadView<'a> {
    pub(crate) coding: SideCoding,
    pub(crate) codes: &'a [u8],
    pub(crate) scales: &'a [u8],
}

/// One head's codes and scales of both sides, writable.
pub(crate) struct HeadViewMut<'a> {
    pub(crate) key_codes: &'a mut [u8],
    pub(crate) key_scales: &'a mut [u8],
    pub(crate) value_codes: &'a mut [u8],
    pub(crate) value_scales: &'a mut [u8],
}

impl BlockLayout {
    /// SideCoding of `side`; `None` for values that are a prefix of their keys.
    pub(crate) fn coding(&self, side: Side) -> Option<SideCoding> {
        let (format, dim, rule) = match (side, self.value()) {
            (Side::Key, _) => (self.key(), self.key_dim(), ScaleRule::Unbiased),
            (Side::Value, ValueStore::Own(format)) => {
                (format, self.value_dim(), self.value_scale())
            }
            (Side::Value, ValueStore::KeyPrefix) => return None,
        };
        Some(SideCoding { side, format, dim, rule })
    }
}

impl KvBlock {
    /// An empty block of exactly [`BlockLayout::bytes`].
    ///
    /// # Errors
    /// [`KernelError::OutOfMemory`].
    pub fn new(layout: BlockLayout) -> Result<Self> {
        Ok(Self { layout, data: AlignedBuf::zeroed(layout.bytes())? })
    }

    /// An empty block in memory of `slab`.
    ///
    /// # Errors
    /// [`KernelError::OutOfMemory`].
    pub fn new_in(slab: &mut Slab, layout: BlockLayout) -> Result<Self> {
        Ok(Self { layout, data: slab.zeroed(layout.bytes())? })
    }

    /// The layout.
    #[must_use]
    pub fn layout(&self) -> &BlockLayout {
        &self.layout
    }

    /// The raw bytes, for saving.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.data.bytes()
    }

    /// The raw bytes, for loading.
    #[must_use]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.data.bytes_mut()
    }

    /// A copy of this block (copy on write).
    ///
    /// # Errors
    /// [`KernelError::OutOfMemory`].
    pub fn duplicate(&self) -> Result<Self> {
        let mut copy = Self::new(self.layout)?;
        copy.data.bytes_mut().copy_from_slice(self.data.bytes());
        Ok(copy)
    }

    /// Takes over the bytes of `other`, a block of the same layout.
    ///
    /// # Errors
    /// [`KernelError::Length`] for a block of another size.
    pub fn copy_from(&mut self, other: &Self) -> Result<()> {
        check_len("block", other.data.len(), self.data.len())?;
        self.data.bytes_mut().copy_from_slice(other.data.bytes());
        Ok(())
    }

    /// This block with its values re-coded to `format` (sealing a `turbo4-delegated` block): the
    /// first `tokens` values are read, quantised and written; keys are copied as they are.
    ///
    /// # Errors
    /// [`KernelError::Dimension`] when the values are a key prefix or cannot be stored in
    /// `format`, or `tokens` exceeds the block; [`KernelError::OutOfMemory`].
    pub fn with_values_as(&self, pool: &Pool, format: KvFormat, tokens: usize) -> Result<Self> {
        check_tokens(&(0..tokens))?;
        let layout = self.layout.with_value_format(format)?;
        let (Some(from), Some(to)) = (self.layout.coding(Side::Value), layout.coding(Side::Value))
        else {
            let rule = "stored on its own to be re-coded";
            return Err(KernelError::Dimension { what: "value_dim", value: 0, rule });
        };
        let mut sealed = Self::new(layout)?;
        let key_bytes = layout.areas().key_codes + layout.areas().key_scales;
        sealed.data.bytes_mut()[..key_bytes].copy_from_slice(&self.data.bytes()[..key_bytes]);
        let mut heads = sealed.heads_mut();
        pool.for_rows_mut(&mut heads, 1, 1, |_, head, slots| {
            let view = self.head_of(from, head);
            let mut value = vec![0.0; to.dim];
            let mut work = Work::new(to.dim);
            for token in 0..tokens {
                view.coding.read(view.codes, view.scales, token, &mut value);
                let slots = &mut slots[0];
                to.write(slots.value_codes, slots.value_scales, token, &value, &mut work);
            }
        });
        Ok(sealed)
    }

    /// Reads `tokens` of `side` as f32 `[tokens, kv_heads, dim]`: what attention sees.
    ///
    /// # Errors
    /// [`KernelError::Dimension`] for tokens beyond the block, [`KernelError::Length`] for `out`.
    pub fn dequantise(&self, side: BlockSide, tokens: Range<usize>, out: &mut [f32]) -> Result<()> {
        check_tokens(&tokens)?;
        let heads = self.layout.kv_heads();
        let prefix = self.layout.coding(side).is_none();
        let dim = match side {
            Side::Key => self.layout.key_dim(),
            Side::Value => self.layout.value_dim(),
        };
        check_len("out", out.len(), tokens.len() * heads * dim)?;
        let mut vector = vec![0.0; if prefix { self.layout.key_dim() } else { dim }];
        for (row, out) in out.chunks_exact_mut(dim).enumerate() {
            let view = self.head(side, row % heads);
            view.coding.read(view.codes, view.scales, tokens.start + row / heads, &mut vector);
            out.copy_from_slice(&vector[..dim]);
        }
        Ok(())
    }

    /// View of the area that holds `side` of `head`: the keys, when values are a prefix of them.
    pub(crate) fn head(&self, side: Side, head: usize) -> HeadView<'_> {
        let coding = self.layout.coding(side).or_else(|| self.layout.coding(Side::Key));
        self.head_of(coding.expect("a layout always has a key coding"), head)
    }

    fn head_of(&self, coding: SideCoding, head: usize) -> HeadView<'_> {
        let (codes, scales) = match coding.side {
            Side::Key => (self.layout.key_codes(head), self.layout.key_scales(head)),
            Side::Value => (self.layout.value_codes(head), self.layout.value_scales(head)),
        };
        let bytes = self.data.bytes();
        HeadView { coding, codes: &bytes[codes], scales: &bytes[scales] }
    }

    /// The writable parts of every head.
    pub(crate) fn heads_mut(&mut self) -> Vec<HeadViewMut<'_>> {
        let heads = self.layout.kv_heads();
        let areas = self.layout.areas();
        let (key_codes, rest) = self.data.bytes_mut().split_at_mut(areas.key_codes);
        let (key_scales, rest) = rest.split_at_mut(areas.key_scales);
        let (value_codes, value_scales) = rest.split_at_mut(areas.value_codes);
        let mut areas = [key_codes, key_scales, value_codes, value_scales].map(|area| {
            let size = area.len() / heads;
            (area, size)
        });
        (0..heads)
            .map(|_| {
                let [key_codes, key_scales, value_codes, value_scales] =
                    areas.each_mut().map(|(area, size)| split_front(area, *size));
                HeadViewMut { key_codes, key_scales, value_codes, value_scales }
            })
            .collect()
    }
}

/// Takes the first `size` bytes off `area`.
fn split_front<'a>(area: &mut &'a mut [u8], size: usize) -> &'a mut [u8] {
    let (front, rest) = std::mem::take(area).split_at_mut(size);
    *area = rest;
    front
}

fn check_tokens(tokens: &Range<usize>) -> Result<()> {
    if tokens.start <= tokens.end && tokens.end <= KV_BLOCK_TOKENS {
        return Ok(());
    }
    let rule = "a range inside a block of 256";
    Err(KernelError::Dimension { what: "tokens", value: tokens.end, rule })
}
