//! `phi3`: Phi-3, Phi-3.5 and Phi-4-mini: llama's layout with fused projections and LongRoPE.
//!
//! The fused matrices are read as row ranges of the mapped file, so that no copy is made.

use serde::Deserialize;

use super::config::{DecoderConfig, HeadShape};
use super::dense::{Attention, Mlp, Model};
use crate::Result;
use crate::loading::{Bias, Weights};

#[derive(Debug, Deserialize)]
pub(super) struct Config {
    #[serde(flatten)]
    decoder: DecoderConfig,
}

fn attention(w: &Weights, c: &Config, heads: HeadShape) -> Result<Attention> {
    let hidden = c.decoder.sizes.hidden_size;
    let rows = [heads.query_size(), heads.kv_size(), heads.kv_size()];
    let [q_proj, k_proj, v_proj] = w.fused_linear("qkv_proj", hidden, rows, Bias::None)?;
    Attention {
        q_proj,
        k_proj,
        v_proj,
        o_proj: w.linear("o_proj", heads.query_size(), hidden, Bias::None)?,
        qk_norm: None,
        rope: Some(c.decoder.rope.build(heads.head_dim)?),
        spec: heads.attention(),
    }
    .windowed(c.decoder.windows.everywhere())
}

pub(super) fn load(w: &Weights, c: &Config) -> Result<Model> {
    let heads = c.decoder.heads()?;
    Model::pre_norm(
        w,
        &c.decoder,
        |w, _| attention(w, c, heads),
        |w| Mlp::load_fused(w, &c.decoder.sizes),
    )
}
