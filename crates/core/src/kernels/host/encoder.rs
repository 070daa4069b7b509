//! Attention of image encoders, without a cache: keys and values of one segment at a time are copied
//! into blocks.

use mlx_ffi::host::call_one;
use mlx_ffi::{Array, Dtype};
use mlxcel_kernels::attention::{self as kernel, AttentionRun, Mask};
use mlxcel_kernels::kv::{BlockLayout, KV_BLOCK_TOKENS, KvBlock, KvFormat, ValueStore, append};
use mlxcel_kernels::{Order, Pool};

use super::attention::params;
use crate::Result;
use crate::attention::AttentionSpec;
use crate::kernels::EncoderInputs;
use crate::shape::rows_cols;

/// Attention among the rows of each segment, one segment after the other.
pub(super) fn attention(
    pool: &Pool,
    inputs: EncoderInputs<'_>,
    segments: &[usize],
) -> Result<Array> {
    let (_, width) = rows_cols(inputs.q);
    let layout = block_layout(inputs)?;
    let output = (inputs.q.shape(), Dtype::Float32);
    call_one("encoder_attention", &inputs.arrays(), output, |inputs, mut outputs| {
        let all = [inputs.f32(0)?, inputs.f32(1)?, inputs.f32(2)?];
        let out = outputs.f32(0)?;
        let mut start = 0;
        for &len in segments {
            let elems = start * width..(start + len) * width;
            let segment = Segment { layout, qkv: all.map(|x| &x[elems.clone()]), real: len };
            segment.attend(pool, &mut out[elems])?;
            start += len;
        }
        Ok(())
    })
}

/// Attention among the rows of one image: the first `real` attend to all of them, the padding only
/// to those.
pub(super) fn padded_attention(
    pool: &Pool,
    inputs: EncoderInputs<'_>,
    real: usize,
) -> Result<Array> {
    let layout = block_layout(inputs)?;
    let output = (inputs.q.shape(), Dtype::Float32);
    call_one("encoder_attention", &inputs.arrays(), output, |inputs, mut outputs| {
        let qkv = [inputs.f32(0)?, inputs.f32(1)?, inputs.f32(2)?];
        Segment { layout, qkv, real }.attend(pool, outputs.f32(0)?)
    })
}

/// Blocks of fp32 keys and values.
fn block_layout(inputs: EncoderInputs<'_>) -> Result<BlockLayout> {
    let dim = rows_cols(inputs.q).1 / inputs.heads;
    let values = ValueStore::Own(KvFormat::F32);
    Ok(BlockLayout::new(inputs.heads, dim, dim, KvFormat::F32, values)?)
}

/// Rows that attend to each other.
struct Segment<'a> {
    layout: BlockLayout,
    /// Queries, keys and values, `[rows, heads · head_dim]` each.
    qkv: [&'a [f32]; 3],
    /// Number of rows, the first ones, that all rows attend to.
    real: usize,
}

impl Segment<'_> {
    fn attend(&self, pool: &Pool, out: &mut [f32]) -> Result<()> {
        let [q, k, v] = self.qkv;
        let heads = self.layout.kv_heads();
        let dim = self.layout.key_dim();
        let rows = q.len() / (heads * dim);
        let blocks = (0..rows.div_ceil(KV_BLOCK_TOKENS)).map(|_| KvBlock::new(self.layout));
        let mut blocks = blocks.collect::<std::result::Result<Vec<_>, _>>()?;
        let mut targets: Vec<&mut KvBlock> = blocks.iter_mut().collect();
        append(pool, &mut targets, 0, k, v)?;
        let blocks: Vec<&KvBlock> = blocks.iter().collect();
        let (real_q, padding_q) = q.split_at(self.real * heads * dim);
        let real = AttentionRun {
            q: real_q,
            first_position: 0,
            blocks: &blocks,
            first_block_position: 0,
            first_key: 0,
            kv_tokens: rows,
        };
        let padding = AttentionRun { q: padding_q, kv_tokens: self.real, ..real };
        let spec = AttentionSpec::causal(heads, heads, dim);
        let params = params(&spec, Mask::Full, Order::Fastest);
        Ok(kernel::attention(pool, &params, &[real, padding], out)?)
    }
}
