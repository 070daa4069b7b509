//! `mllama`, Llama 3.2 Vision: Llama with an image encoder (`mllama_vit`) and layers of gated
//! cross-attention, which attend to the images. A sequence without images skips them. (Tokens before
//! the first image attend to all rows of all images, and skip only the feed-forward part of these
//! layers, as in transformers.)

use mlxcel_core::layers::{Embedding, Linear, RmsNorm};
use mlxcel_core::{Array, AttentionSpec, CrossImage, LayerLayout, Ops, Pass, Rope, SequenceCache};
use mlxcel_estimator::CrossShape;
use serde::Deserialize;

use super::config::{DecoderConfig, HeadShape, size};
use super::dense::{Attention, DecoderBlock, DecoderLayer as _, FeedForward, Mlp, ProjectionBias};
use super::layer_state::StateIndex;
use super::mllama_vit::{self, MllamaVisionTower};
use super::{ImageEncoder, LanguageModel};
use crate::Result;
use crate::loading::{Bias, NormKind, NormRule, Weights};

/// Tokens after the vocabulary, which are input only: `<|image|>` is one.
const EXTRA_TOKENS: usize = 8;

/// What the configuration has beside a decoder's.
#[derive(Debug, Deserialize)]
pub(super) struct MllamaConfig {
    vision_config: Option<mllama_vit::MllamaVitConfig>,
}

/// Paths of the decoder, the head, the encoder and `multi_modal_projector`: as published, as mlx-vlm
/// converts them, as transformers 5 writes them.
const PLACES: [[&str; 4]; 3] = [
    ["language_model.model", "language_model", "vision_model", ""],
    ["language_model.model", "language_model", "vision_tower", ""],
    ["model.language_model", "", "model.vision_model", "model"],
];

/// Attention of tokens to their sequence's images.
struct CrossAttention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    q_norm: RmsNorm,
    k_norm: RmsNorm,
    spec: AttentionSpec,
}

/// A layer of cross-attention; each part has a gate.
struct CrossBlock {
    input_layernorm: RmsNorm,
    cross_attn: CrossAttention,
    attn_gate: f32,
    post_attention_layernorm: RmsNorm,
    mlp: Mlp,
    mlp_gate: f32,
}

/// A layer of either kind.
enum MllamaLayer {
    Tokens(DecoderBlock),
    Images(Box<CrossBlock>),
}

/// The decoder, with the encoder where the configuration and the files have one.
pub(super) struct MllamaModel {
    embed_tokens: Embedding,
    layers: Vec<MllamaLayer>,
    norm: RmsNorm,
    lm_head: Option<Linear>,
    encoder: Option<MllamaVisionTower>,
}

impl CrossAttention {
    fn load(w: &Weights, hidden: usize, heads: HeadShape, norm: NormRule) -> Result<Self> {
        let queries = heads.query_size();
        let keys = heads.kv_size();
        Ok(Self {
            q_proj: w.linear("q_proj", hidden, queries, Bias::None)?,
            k_proj: w.linear("k_proj", hidden, keys, Bias::None)?,
            v_proj: w.linear("v_proj", hidden, keys, Bias::None)?,
            o_proj: w.linear("o_proj", queries, hidden, Bias::None)?,
            q_norm: w.rms_norm("q_norm", heads.head_dim, norm)?,
            k_norm: w.rms_norm("k_norm", heads.head_dim, norm)?,
            spec: heads.attention()?,
        })
    }

    fn forward(&self, pass: &mut Pass<'_>, layer: usize, x: &Array) -> Result<Array> {
        let q = pass.ops().rms_norm(&pass.ops().linear(x, &self.q_proj)?, &self.q_norm)?;
        let attended = pass.cross_attention(layer, &q, &self.spec)?;
        Ok(pass.ops().linear(&attended, &self.o_proj)?)
    }

    /// Keys and values of the images' rows.
    fn project(&self, ops: &Ops, rows: &Array) -> Result<[Array; 2]> {
        let [k, v] = ops.linears(rows, [&self.k_proj, &self.v_proj])?;
        Ok([ops.rms_norm(&k, &self.k_norm)?, v])
    }
}

impl CrossBlock {
    fn load(w: &Weights, d: &DecoderConfig, layer: usize, shape: &CrossShape) -> Result<Self> {
        let hidden = d.sizes.hidden_size;
        let norm = norm(d);
        let heads = HeadShape {
            query_heads: size(shape.query_heads),
            kv_heads: size(shape.kv_heads),
            head_dim: size(shape.key_dim),
            window: None,
        };
        Ok(Self {
            input_layernorm: w.rms_norm("input_layernorm", hidden, norm)?,
            cross_attn: CrossAttention::load(&w.at("cross_attn"), hidden, heads, norm)?,
            attn_gate: gate(w, "cross_attn_attn_gate")?,
            post_attention_layernorm: w.rms_norm("post_attention_layernorm", hidden, norm)?,
            mlp: Mlp::load(&w.at("mlp"), hidden, d.inner(layer)?, Bias::None)?,
            mlp_gate: gate(w, "cross_attn_mlp_gate")?,
        })
    }

    fn forward(&self, pass: &mut Pass<'_>, layer: usize, x: &Array) -> Result<Array> {
        let ops = pass.ops();
        let seen = ops.rms_norm(x, &self.input_layernorm)?;
        let seen = self.cross_attn.forward(pass, layer, &seen)?;
        let x = ops.add(x, &ops.map(&seen, mlxcel_core::Map::Scale(self.attn_gate))?)?;
        let y = self.mlp.forward(pass, &ops.rms_norm(&x, &self.post_attention_layernorm)?)?;
        Ok(ops.add(&x, &pass.scale_after_images(&y, self.mlp_gate)?)?)
    }
}

/// Factor of the gate `name`: the hyperbolic tangent of the stored value.
pub(super) fn gate(w: &Weights, name: &str) -> Result<f32> {
    Ok(w.values(name, 1)?.first().copied().unwrap_or(0.0).tanh())
}

/// The decoder, with the encoder where the configuration and the files have one.
pub(super) fn load(w: &Weights, d: &DecoderConfig, c: &MllamaConfig) -> Result<MllamaModel> {
    let at = |name: &str| if name.is_empty() { w.root() } else { w.at(name) };
    let encodes = |[_, _, vision, _]: &&[&str; 4]| at(vision).has("layernorm_post.weight");
    let decodes = |[model, ..]: &&[&str; 4]| at(model).has("norm.weight");
    let place = PLACES.iter().find(encodes).or_else(|| PLACES.iter().find(decodes));
    let [model, head, vision, projector] = place.unwrap_or(&PLACES[0]).map(at);
    let sizes = &d.sizes;
    let hidden = sizes.hidden_size;
    let rope = d.rope.build(d.head_dim()?)?;
    let described = c.vision_config.as_ref().filter(|_| vision.has("layernorm_post.weight"));
    Ok(MllamaModel {
        embed_tokens: model.embedding("embed_tokens", sizes.vocab_size + EXTRA_TOKENS, hidden)?,
        layers: model
            .layers("layers", sizes.num_hidden_layers, |w, index| layer(w, d, &rope, index))?,
        norm: model.rms_norm("norm", hidden, norm(d))?,
        lm_head: head.lm_head(Some(false), hidden, sizes.vocab_size)?,
        encoder: described
            .map(|c| MllamaVisionTower::load([&vision, &projector], c, hidden))
            .transpose()?,
    })
}

fn norm(d: &DecoderConfig) -> NormRule {
    d.sizes.norm_or(NormKind::Rms, 1e-5)
}

fn layer(w: &Weights, d: &DecoderConfig, rope: &Rope, index: usize) -> Result<MllamaLayer> {
    if let Some(shape) = d.layer(index)?.cross_attention() {
        let block = CrossBlock::load(w, d, index, shape)?;
        return Ok(MllamaLayer::Images(Box::new(block)));
    }
    let hidden = d.sizes.hidden_size;
    let bias = ProjectionBias::all(Bias::None);
    let rope = Some(rope.clone());
    let attention = Attention::load(&w.at("self_attn"), hidden, d.heads(index)?, bias, rope)?;
    let mlp = Mlp::load(&w.at("mlp"), hidden, d.inner(index)?, Bias::None)?;
    DecoderBlock::pre_norm(w, hidden, norm(d), attention, mlp).map(MllamaLayer::Tokens)
}

impl MllamaModel {
    fn cross_layers(&self) -> impl Iterator<Item = &CrossAttention> {
        self.layers.iter().filter_map(|layer| match layer {
            MllamaLayer::Images(block) => Some(&block.cross_attn),
            MllamaLayer::Tokens(_) => None,
        })
    }
}

impl LanguageModel for MllamaModel {
    fn cache_layout(&self) -> Vec<LayerLayout> {
        self.layers
            .iter()
            .filter_map(|layer| match layer {
                MllamaLayer::Tokens(block) => block.layer_state().cache,
                MllamaLayer::Images(_) => None,
            })
            .collect()
    }

    fn cross_layout(&self) -> Vec<LayerLayout> {
        self.cross_layers().map(|layer| layer.spec.layout()).collect()
    }

    fn extra_tokens(&self) -> usize {
        EXTRA_TOKENS
    }

    fn forward(&self, pass: &mut Pass<'_>) -> Result<Array> {
        let mut x = pass.embed_tokens(&self.embed_tokens)?;
        let mut index = StateIndex::default();
        let mut cross = 0;
        for layer in &self.layers {
            match layer {
                MllamaLayer::Tokens(block) => {
                    x = block.forward(pass, index, &x)?;
                    index = index.after(block.layer_state());
                }
                MllamaLayer::Images(block) => {
                    if pass.has_cross_images() {
                        x = block.forward(pass, cross, &x)?;
                    }
                    cross += 1;
                }
            }
            pass.ops().eval_layer(&x)?;
        }
        Ok(pass.ops().rms_norm(&x, &self.norm)?)
    }

    fn logits(&self, ops: &Ops, hidden: &Array) -> Result<Array> {
        match &self.lm_head {
            Some(head) => Ok(ops.linear(hidden, head)?),
            None => Ok(ops.embedding_logits(hidden, &self.embed_tokens)?),
        }
    }

    fn images(&self) -> Option<&dyn ImageEncoder> {
        self.encoder.as_ref().map(|encoder| encoder as &dyn ImageEncoder)
    }

    fn attach_images(
        &self,
        ops: &Ops,
        cache: &mut SequenceCache,
        images: &[CrossImage],
    ) -> Result<()> {
        let layers: Vec<_> = self.cross_layers().collect();
        cache.attach_images(ops, images, |index, rows| layers[index].project(ops, rows))
    }
}
