//! `phi3`: Phi-3, Phi-3.5 and Phi-4-mini: llama's layout with fused projections and LongRoPE.
//!
//! The fused matrices are read as row ranges of the mapped file, so that no copy is made.

use serde::Deserialize;

use super::config::{DecoderConfig, HeadShape};
use super::dense::{Attention, Mlp, Model};
use crate::Result;
use crate::loading::{Bias, Weights};

/// Nothing: sizes say everything.
#[derive(Debug, Deserialize)]
pub(super) struct Phi3Config {}

fn attention(w: &Weights, d: &DecoderConfig, heads: HeadShape) -> Result<Attention> {
    let hidden = d.sizes.hidden_size;
    let rows = [heads.query_size(), heads.kv_size(), heads.kv_size()];
    let [q_proj, k_proj, v_proj] = w.fused_linear("qkv_proj", hidden, rows, Bias::None)?;
    Ok(Attention {
        q_proj,
        k_proj,
        v_proj,
        o_proj: w.linear("o_proj", heads.query_size(), hidden, Bias::None)?,
        qk_norm: None,
        rope: Some(d.rope.build(heads.head_dim)?),
        spec: heads.attention()?,
    })
}

pub(super) fn load(w: &Weights, d: &DecoderConfig, _: &Phi3Config) -> Result<Model> {
    Model::pre_norm(
        w,
        d,
        |w, layer| attention(w, d, d.heads(layer)?),
        |w, layer| Mlp::load_fused(w, d.sizes.hidden_size, d.inner(layer)?),
    )
}
