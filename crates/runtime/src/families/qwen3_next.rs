//! `qwen3_next`: Qwen3-Next: three gated delta nets to one attention whose output is gated; experts,
//! and one more with a gate of its own that every token passes. [`Qwen3NextConfig`] and its parts are also
//! Qwen 3.5's.

use mlxcel_core::experts::RouteRule;
use mlxcel_core::layers::{Linear, RmsNorm};
use mlxcel_core::{Activation, Array, AttentionSpec, Pass, Rope};
use mlxcel_estimator::Mixer as LayerMixer;
use serde::Deserialize;

use super::config::{DecoderConfig, HeadShape, Mixture, RopeDefaults};
use super::delta::{DeltaNet, DeltaShape, Projections};
use super::dense::{DecoderBlock, FeedForward, Mixer, Mlp, Model};
use super::layer_state::{LayerState, StateIndex};
use super::moe::{Moe, NAMES};
use crate::Result;
use crate::loading::{Bias, ExpertShape, NormKind, NormRule, Weights};

/// Configuration beyond [`DecoderConfig`].
#[derive(Debug, Deserialize)]
pub(super) struct Qwen3NextConfig {
    #[serde(default)]
    attention_bias: bool,
    norm_topk_prob: Option<bool>,
}

/// Attention whose output is gated, element by element, by a second half of each query head.
struct GatedAttention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    q_norm: RmsNorm,
    k_norm: RmsNorm,
    rope: Rope,
    spec: AttentionSpec,
}

impl GatedAttention {
    fn load(w: &Weights, hidden: usize, heads: HeadShape, f: &Frame<'_>) -> Result<Self> {
        let bias = Bias::when(f.c.attention_bias);
        let defaults = RopeDefaults { partial: 0.25, ..RopeDefaults::default() };
        Ok(Self {
            q_proj: w.linear("q_proj", hidden, 2 * heads.query_size(), bias)?,
            k_proj: w.linear("k_proj", hidden, heads.kv_size(), bias)?,
            v_proj: w.linear("v_proj", hidden, heads.kv_size(), bias)?,
            o_proj: w.linear("o_proj", heads.query_size(), hidden, bias)?,
            q_norm: w.rms_norm("q_norm", heads.head_dim, f.norm)?,
            k_norm: w.rms_norm("k_norm", heads.head_dim, f.norm)?,
            rope: f.d.rope.build_or(heads.head_dim, defaults)?,
            spec: heads.attention()?,
        })
    }
}

impl Mixer for GatedAttention {
    fn layer_state(&self) -> LayerState {
        self.spec.layout().into()
    }

    fn forward(&self, pass: &mut Pass<'_>, index: StateIndex, x: &Array) -> Result<Array> {
        let ops = pass.ops();
        let heads = self.spec.query_heads();
        let [mut q, mut k, v] = ops.linears(x, [&self.q_proj, &self.k_proj, &self.v_proj])?;
        let gate;
        [q, gate] = ops.split_heads(&q, heads, self.spec.layout().key_dim)?;
        q = ops.rms_norm(&q, &self.q_norm)?;
        q = pass.rope(&q, heads, &self.rope)?;
        k = ops.rms_norm(&k, &self.k_norm)?;
        k = pass.rope(&k, self.spec.kv_heads(), &self.rope)?;
        let attended = pass.attention(index.cache, &q, &k, &v, &self.spec)?;
        let gated = ops.gated(&gate, &attended, Activation::Sigmoid)?;
        Ok(ops.linear(&gated, &self.o_proj)?)
    }
}

/// Experts, and one that every token passes, weighted by a gate.
struct GatedMoe {
    moe: Moe,
    shared_expert: Mlp,
    shared_expert_gate: Linear,
}

impl GatedMoe {
    fn load(w: &Weights, hidden: usize, mixture: Mixture, c: &Qwen3NextConfig) -> Result<Self> {
        let normalise = c.norm_topk_prob.unwrap_or(true);
        let rule = RouteRule::softmax(mixture.experts, mixture.active, normalise);
        let shape = ExpertShape { hidden, inner: mixture.inner, names: NAMES };
        let moe = Moe {
            gate: w.linear("gate", hidden, mixture.experts, Bias::None)?,
            experts: w.fused_experts(shape, rule, ["experts.gate_up_proj", "experts.down_proj"])?,
            shared_experts: None,
        };
        let shared = w.at("shared_expert");
        Ok(Self {
            moe,
            shared_expert: Mlp::load(&shared, hidden, mixture.shared_inner, Bias::None)?,
            shared_expert_gate: w.linear("shared_expert_gate", hidden, 1, Bias::None)?,
        })
    }
}

impl FeedForward for GatedMoe {
    fn forward(&self, pass: &mut Pass<'_>, x: &Array) -> Result<Array> {
        let ops = pass.ops();
        let gate = ops.linear(x, &self.shared_expert_gate)?;
        let shared = self.shared_expert.forward(pass, x)?;
        let shared = ops.gated(&gate, &shared, Activation::Sigmoid)?;
        Ok(ops.add(&self.moe.forward(pass, x)?, &shared)?)
    }
}

/// Parameters that all layers are read with.
pub(super) struct Frame<'a> {
    pub(super) d: &'a DecoderConfig,
    pub(super) c: &'a Qwen3NextConfig,
    pub(super) norm: NormRule,
    pub(super) projections: Projections,
}

fn block(w: &Weights, f: &Frame<'_>, layer: usize) -> Result<DecoderBlock> {
    let hidden = f.d.sizes.hidden_size;
    let mixer: Box<dyn Mixer> = match f.d.mixer(layer)? {
        LayerMixer::GatedDelta(shape) => {
            // The norm of a delta net's output holds its weight itself in all files.
            let norm = NormRule { kind: NormKind::Rms, ..f.norm };
            let w = w.at("linear_attn");
            let shape = DeltaShape::new(&shape);
            Box::new(DeltaNet::load(&w, hidden, &shape, norm, f.projections)?)
        }
        _ => Box::new(GatedAttention::load(&w.at("self_attn"), hidden, f.d.heads(layer)?, f)?),
    };
    let mlp: Box<dyn FeedForward> = match f.d.experts(layer)? {
        Some(mixture) => Box::new(GatedMoe::load(&w.at("mlp"), hidden, mixture, f.c)?),
        None => Box::new(Mlp::load(&w.at("mlp"), hidden, f.d.inner(layer)?, Bias::None)?),
    };
    DecoderBlock::pre_norm(w, hidden, f.norm, mixer, mlp)
}

/// Paths of the decoder and of its head, which differ between published files of a model with an image
/// encoder, converted ones, and those of a language model alone.
fn places<'w>(w: &Weights<'w>) -> [Weights<'w>; 2] {
    let published = w.at("model.language_model");
    let converted = w.at("language_model.model");
    if published.has("embed_tokens.weight") {
        [published, w.root()]
    } else if converted.has("embed_tokens.weight") {
        [converted, w.at("language_model")]
    } else {
        [w.at("model"), w.root()]
    }
}

/// Reports whether the convolution of a delta net is converted; files of one tool are all alike.
fn is_converted(model: &Weights, d: &DecoderConfig) -> Result<bool> {
    for layer in 0..d.sizes.num_hidden_layers {
        if let LayerMixer::GatedDelta(shape) = d.mixer(layer)? {
            let shape = DeltaShape::new(&shape);
            let net = model.at(&format!("layers.{layer}.linear_attn"));
            return Ok(net.is_converted("conv1d", shape.channels(), shape.kernel()));
        }
    }
    Ok(false)
}

/// Reads the model; published files hold the weights of norms minus 1, converted ones themselves.
pub(super) fn load_with(
    w: &Weights,
    d: &DecoderConfig,
    c: &Qwen3NextConfig,
    projections: Projections,
) -> Result<Model> {
    let [model, head] = places(w);
    let kind = if is_converted(&model, d)? { NormKind::Rms } else { NormKind::RmsPlusOne };
    let norm = d.sizes.norm_or(kind, 1e-6);
    let frame = Frame { d, c, norm, projections };
    Model::load_with([&model, &head], &d.sizes, "norm", norm, |w, i| block(w, &frame, i))
}

pub(super) fn load(w: &Weights, d: &DecoderConfig, c: &Qwen3NextConfig) -> Result<Model> {
    load_with(w, d, c, Projections::ByKeyHead)
}
