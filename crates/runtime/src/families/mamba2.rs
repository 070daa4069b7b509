//! `mamba2`: Mamba 2: layers of a short convolution and a selective scan, no attention.

use mlxcel_core::layers::{Embedding, Linear, RmsNorm};
use mlxcel_core::recurrent::{self, StateLayout};
use mlxcel_core::{Array, Batch, LayerLayout, Ops};
use serde::Deserialize;
use serde_json::Value;

use super::LanguageModel;
use super::config::MAX_SIZE;
use crate::loading::{Bias, NormKind, NormRule, Weights};
use crate::{Error, Result};

#[derive(Debug, Deserialize)]
pub(super) struct Config {
    hidden_size: usize,
    num_hidden_layers: usize,
    vocab_size: usize,
    num_heads: usize,
    head_dim: usize,
    n_groups: usize,
    state_size: usize,
    conv_kernel: usize,
    layer_norm_epsilon: Option<f32>,
    #[serde(default)]
    use_bias: bool,
    use_conv_bias: Option<bool>,
    tie_word_embeddings: Option<bool>,
    time_step_limit: Option<[Value; 2]>,
}

impl Config {
    fn check(&self) -> Result<()> {
        let sizes = [
            ("num_heads", self.num_heads),
            ("head_dim", self.head_dim),
            ("n_groups", self.n_groups),
            ("state_size", self.state_size),
            ("conv_kernel", self.conv_kernel),
        ];
        match sizes.into_iter().find(|(_, size)| !(1..=MAX_SIZE).contains(size)) {
            Some((name, size)) => Err(Error::config(format!("{name} is {size}"))),
            None => Ok(()),
        }
    }

    fn norm(&self) -> NormRule {
        NormRule { kind: NormKind::Rms, eps: self.layer_norm_epsilon.unwrap_or(1e-5) }
    }

    /// Least and largest step; Python's tools write infinity as a bare word.
    fn limits(&self) -> Result<(f32, f32)> {
        #[expect(clippy::cast_possible_truncation, reason = "a limit of fp32 numbers")]
        let number = |value: &Value| match value {
            Value::String(word) if word == "Infinity" => Some(f32::INFINITY),
            value => value.as_f64().map(|number| number as f32),
        };
        match &self.time_step_limit {
            None => Ok((0.0, f32::INFINITY)),
            Some([least, largest]) => number(least)
                .zip(number(largest))
                .filter(|(least, largest)| least <= largest)
                .ok_or_else(|| Error::config(format!("time_step_limit is [{least}, {largest}]"))),
        }
    }
}

/// Projection, convolution, scan, gated norm, projection.
struct Mixer {
    gate_proj: Linear,
    conv_proj: Linear,
    dt_proj: Linear,
    scan: recurrent::Mamba2,
    norm: RmsNorm,
    out_proj: Linear,
}

impl Mixer {
    fn load(w: &Weights, c: &Config) -> Result<Self> {
        let (heads, inner) = (c.num_heads, c.num_heads * c.head_dim);
        let channels = inner + 2 * c.n_groups * c.state_size;
        let conv_bias = match c.use_conv_bias.unwrap_or(true) {
            true => Some(w.at("conv1d").exact_vector("bias", channels)?),
            false => None,
        };
        let scan = recurrent::Mamba2 {
            taps: w.taps("conv1d", channels, c.conv_kernel)?,
            conv_bias,
            a_log: w.exact_vector("A_log", heads)?,
            d: w.exact_vector("D", heads)?,
            dt_bias: w.exact_vector("dt_bias", heads)?,
            limits: c.limits()?,
            head_dim: c.head_dim,
            groups: c.n_groups,
            state_size: c.state_size,
        };
        let bias = Bias::when(c.use_bias);
        let rows = [inner, channels, heads];
        let [gate_proj, conv_proj, dt_proj] =
            w.fused_linear("in_proj", c.hidden_size, rows, bias)?;
        Ok(Self {
            gate_proj,
            conv_proj,
            dt_proj,
            scan: scan.checked()?,
            norm: w.rms_norm("norm", inner, c.norm())?,
            out_proj: w.linear("out_proj", inner, c.hidden_size, bias)?,
        })
    }

    fn forward(&self, cx: &Batch, layer: usize, x: &Array) -> Result<Array> {
        let ops = cx.ops();
        let projections = [&self.gate_proj, &self.conv_proj, &self.dt_proj];
        let [gate, xbc, dt] = ops.linears(x, projections)?;
        let y = cx.mamba2(layer, &xbc, &dt, &self.scan)?;
        let y = ops.rms_norm(&ops.gated(&gate, &y)?, &self.norm)?;
        Ok(ops.linear(&y, &self.out_proj)?)
    }
}

/// One layer: `x + mixer(norm(x))`.
struct Block {
    norm: RmsNorm,
    mixer: Mixer,
}

/// The whole model.
pub(super) struct Model {
    embeddings: Embedding,
    layers: Vec<Block>,
    norm_f: RmsNorm,
    lm_head: Option<Linear>,
}

pub(super) fn load(w: &Weights, c: &Config) -> Result<Model> {
    c.check()?;
    let backbone = w.at("backbone");
    let block = |w: &Weights, _| {
        let norm = w.rms_norm("norm", c.hidden_size, c.norm())?;
        Ok(Block { norm, mixer: Mixer::load(&w.at("mixer"), c)? })
    };
    Ok(Model {
        embeddings: backbone.embedding("embeddings", c.vocab_size, c.hidden_size)?,
        layers: backbone.layers("layers", c.num_hidden_layers, block)?,
        norm_f: backbone.rms_norm("norm_f", c.hidden_size, c.norm())?,
        lm_head: w.lm_head(c.tie_word_embeddings, c.hidden_size, c.vocab_size)?,
    })
}

impl LanguageModel for Model {
    fn cache_layout(&self) -> Vec<LayerLayout> {
        Vec::new()
    }

    fn state_layout(&self) -> Vec<StateLayout> {
        self.layers.iter().map(|layer| layer.mixer.scan.layout()).collect()
    }

    fn forward(&self, cx: &Batch) -> Result<Array> {
        let mut x = cx.ops().embed(cx.tokens(), &self.embeddings)?;
        for (i, layer) in self.layers.iter().enumerate() {
            let normed = cx.ops().rms_norm(&x, &layer.norm)?;
            x = cx.ops().add(&x, &layer.mixer.forward(cx, i, &normed)?)?;
            cx.ops().settle(&x)?;
        }
        Ok(cx.ops().rms_norm(&x, &self.norm_f)?)
    }

    fn logits(&self, ops: &Ops, hidden: &Array) -> Result<Array> {
        match &self.lm_head {
            Some(head) => Ok(ops.linear(hidden, head)?),
            None => Ok(ops.embedding_logits(hidden, &self.embeddings)?),
        }
    }
}
