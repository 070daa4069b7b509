//! Parameters of an attention layer: heads, scale, window, soft cap, sinks. [`crate::Pass`] runs it.

use std::num::NonZeroUsize;
use std::sync::Arc;

use crate::{Error, Result};

/// The shape of causal grouped-query attention.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionSpec {
    query_heads: usize,
    layout: LayerLayout,
    scale: f32,
    softcap: Option<f32>,
    sinks: Option<Arc<[f32]>>,
}

/// Keys and values that a layer stores per token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerLayout {
    /// Key-value heads.
    pub kv_heads: usize,
    /// Elements per key.
    pub key_dim: usize,
    /// Elements per value.
    pub value_dim: usize,
    /// Tokens that a query sees, itself included; `None` sees all.
    pub window: Option<NonZeroUsize>,
    /// True if a value is the first `value_dim` elements of its key, stored once (MLA).
    pub latent: bool,
}

impl AttentionSpec {
    /// Causal attention to everything, scores scaled by `1/√head_dim`.
    #[must_use]
    pub fn causal(query_heads: usize, kv_heads: usize, head_dim: usize) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "head dimensions are small")]
        let scale = (head_dim as f32).sqrt().recip();
        let layout = LayerLayout {
            kv_heads,
            key_dim: head_dim,
            value_dim: head_dim,
            window: None,
            latent: false,
        };
        Self { query_heads, layout, scale, softcap: None, sinks: None }
    }

    /// Multi-head latent attention in its absorbed form: every query head sees one key of
    /// `latent` elements, which are also the value, and `rotary` more. Scores are scaled by `scale`.
    #[must_use]
    pub fn latent(query_heads: usize, latent: usize, rotary: usize, scale: f32) -> Self {
        let layout = LayerLayout {
            kv_heads: 1,
            key_dim: latent + rotary,
            value_dim: latent,
            window: None,
            latent: true,
        };
        Self { query_heads, layout, scale, softcap: None, sinks: None }
    }

    /// Limits attention to a sliding window of `window` tokens.
    ///
    /// # Errors
    /// A window of 0 tokens.
    pub fn with_window(mut self, window: Option<usize>) -> Result<Self> {
        self.layout.window = match window {
            None => None,
            Some(tokens) => Some(NonZeroUsize::new(tokens).ok_or_else(|| Error::Value {
                name: "the sliding window",
                value: tokens.to_string(),
                expected: "at least 1 token",
            })?),
        };
        Ok(self)
    }

    /// Replaces the factor on the scores.
    #[must_use]
    pub fn with_scale(self, scale: f32) -> Self {
        Self { scale, ..self }
    }

    /// Applies `cap · tanh(score / cap)` to the scores.
    ///
    /// # Errors
    /// A cap that is not positive and finite.
    pub fn with_softcap(self, softcap: Option<f32>) -> Result<Self> {
        if let Some(cap) = softcap.filter(|cap| !(*cap > 0.0 && cap.is_finite())) {
            return Err(Error::Value {
                name: "the soft cap on attention scores",
                value: cap.to_string(),
                expected: "a positive number",
            });
        }
        Ok(Self { softcap, ..self })
    }

    /// Adds one extra logit per query head to the softmax.
    ///
    /// # Errors
    /// Another number of sinks than of query heads.
    pub fn with_sinks(self, sinks: Arc<[f32]>) -> Result<Self> {
        if sinks.len() != self.query_heads {
            return Err(Error::Length {
                list: "attention sinks, one per query head",
                found: sinks.len(),
                expected: self.query_heads,
            });
        }
        Ok(Self { sinks: Some(sinks), ..self })
    }

    /// Query heads, a multiple of the key-value heads.
    #[must_use]
    pub fn query_heads(&self) -> usize {
        self.query_heads
    }

    /// Key-value heads.
    #[must_use]
    pub fn kv_heads(&self) -> usize {
        self.layout.kv_heads
    }

    /// Factor on the scores.
    #[must_use]
    pub fn scale(&self) -> f32 {
        self.scale
    }

    /// `cap · tanh(score / cap)` on the scores, where the model has it.
    #[must_use]
    pub fn softcap(&self) -> Option<f32> {
        self.softcap
    }

    /// One extra logit per query head in the softmax, where the model has them.
    #[must_use]
    pub fn sinks(&self) -> Option<&Arc<[f32]>> {
        self.sinks.as_ref()
    }

    /// Keys and values that the layer stores per token.
    #[must_use]
    pub fn layout(&self) -> LayerLayout {
        self.layout
    }
}
