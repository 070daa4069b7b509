//! `phi3`: Phi-3, Phi-3.5 and Phi-4-mini: llama's layout with fused projections and LongRoPE.
//!
//! The fused matrices are read as row ranges of the mapped file, so that no copy is made.

use serde::Deserialize;

use super::config::{HeadShape, Heads, RopeConfig, partial};
use super::dense::{Attention, Mlp, Model, Sizes};
use crate::Result;
use crate::loading::{Bias, Weights};

#[derive(Debug, Deserialize)]
pub(super) struct Config {
    #[serde(flatten)]
    sizes: Sizes,
    #[serde(flatten)]
    heads: Heads,
    #[serde(flatten)]
    rope: RopeConfig,
    partial_rotary_factor: Option<f64>,
    sliding_window: Option<usize>,
}

fn attention(w: &Weights, c: &Config, heads: HeadShape) -> Result<Attention> {
    let hidden = c.sizes.hidden_size;
    let rows = [heads.query_size(), heads.kv_size(), heads.kv_size()];
    let [q_proj, k_proj, v_proj] = w.fused_linear("qkv_proj", hidden, rows)?;
    Attention {
        q_proj,
        k_proj,
        v_proj,
        o_proj: w.linear("o_proj", heads.query_size(), hidden, Bias::None)?,
        qk_norm: None,
        rope: Some(c.rope.build(partial(heads.head_dim, c.partial_rotary_factor))?),
        spec: heads.attention(),
    }
    .windowed(c.sliding_window)
}

fn mlp(w: &Weights, s: &Sizes) -> Result<Mlp> {
    let rows = [s.intermediate_size, s.intermediate_size];
    let [gate_proj, up_proj] = w.fused_linear("gate_up_proj", s.hidden_size, rows)?;
    let down_proj = w.linear("down_proj", s.intermediate_size, s.hidden_size, Bias::None)?;
    Ok(Mlp { gate_proj, up_proj, down_proj })
}

pub(super) fn load(w: &Weights, c: &Config) -> Result<Model> {
    let heads = c.heads.shape(c.sizes.hidden_size)?;
    Model::load(w, &c.sizes, |w, _| attention(w, c, heads), |w| mlp(w, &c.sizes))
}
