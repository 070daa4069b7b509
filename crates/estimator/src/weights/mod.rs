//! Size of the weights, and its source.
//!
//! Sources, in this order: the total of `model.safetensors.index.json` where its shards are there and
//! agree; the sum over the safetensors headers; a count from `config.json`; 7 B parameters of
//! 2 bytes, labelled as a fallback. [`WeightFootprint::requantised`] re-sizes only the
//! tensors that MLX's affine quantisation applies to.

mod checkpoint;

use crate::error::EstimatorError;
use crate::headers::Checkpoint;
use crate::quantization::{QuantFormat, QuantScope, Quantization};
use crate::spec::ModelSpec;
use crate::tensors::{QUANT_GROUP_ELEMS, TensorPart, TensorRole, TensorSpec};

/// Parameters that are assumed for an unknown model.
pub const FALLBACK_PARAMETERS: u64 = 7_000_000_000;

/// Bytes of an fp16 or bf16 element.
const HALF: u64 = 2;

/// Source of the weights' size. Names are those of the JSON report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum WeightSource {
    /// The index's total, and every header agrees.
    Index,
    /// The sum over the safetensors headers.
    Headers,
    /// Counted from `config.json`.
    Config,
    /// Stated by the caller.
    Stated,
    /// 7 B parameters of 2 bytes: nothing is known.
    Fallback,
}

/// Quantisation that `--quant` requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum WeightQuant {
    /// Unchanged from the checkpoint.
    #[default]
    Default,
    /// 16 bits everywhere.
    Fp16,
    /// 8 bits, group 64.
    Int8,
    /// 4 bits, group 64.
    Int4,
}

impl WeightQuant {
    /// Every choice.
    pub const ALL: [Self; 4] = [Self::Default, Self::Fp16, Self::Int8, Self::Int4];

    /// Name in `--quant`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Fp16 => "fp16",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        }
    }

    /// Parses the value of `--quant`.
    ///
    /// # Errors
    /// [`EstimatorError::BadValue`], listing the choices.
    pub fn parse(text: &str) -> Result<Self, EstimatorError> {
        let known = Self::ALL.into_iter().find(|quant| quant.name() == text);
        known.ok_or_else(|| EstimatorError::BadValue {
            name: "--quant".to_owned(),
            value: crate::error::shortened(text),
            reason: "one of default, fp16, int8, int4 is needed".to_owned(),
        })
    }

    /// Size of `elements` quantisable elements; `None` for [`WeightQuant::Default`].
    fn resized(self, elements: u64) -> Option<TensorBytes> {
        match self {
            Self::Default => None,
            Self::Fp16 => Some(TensorBytes::plain(elements, HALF)),
            Self::Int8 => Some(TensorBytes::affine(8, elements)),
            Self::Int4 => Some(TensorBytes::affine(4, elements)),
        }
    }
}

/// Size of a tensor in a checkpoint.
#[derive(Debug, Clone, Copy)]
struct TensorBytes {
    bytes: u64,
    /// Bytes of 16-bit floats among them.
    half_bytes: u64,
}

impl TensorBytes {
    /// Floats of `elem_bytes` each.
    fn plain(elements: u64, elem_bytes: u64) -> Self {
        let bytes = elements.saturating_mul(elem_bytes);
        Self { bytes, half_bytes: if elem_bytes == HALF { bytes } else { 0 } }
    }

    /// MLX's affine format of `bits` bits with groups of the usual size.
    fn affine(bits: u64, elements: u64) -> Self {
        Self::quantised(QuantFormat::affine(bits, QUANT_GROUP_ELEMS), elements)
    }

    /// Codes, with a scale and a bias of 16 bits per group in MLX's affine format.
    fn quantised(format: QuantFormat, elements: u64) -> Self {
        let bytes = format.bytes(elements);
        let codes = QuantFormat { group_bytes: 0, ..format }.bytes(elements);
        let affine = format.group_bytes == HALF.saturating_add(HALF);
        Self { bytes, half_bytes: if affine { bytes.saturating_sub(codes) } else { 0 } }
    }
}

/// The weights of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct WeightFootprint {
    /// Bytes of all tensors.
    pub bytes: u64,
    /// Bytes of those that belong to an image encoder.
    pub vision_bytes: u64,
    /// Source of `bytes`.
    pub source: WeightSource,
    /// Elements that the files hold; packed ones are counted unpacked, scales are not.
    pub stored_parameters: Option<u64>,
    /// Elements that quantisation applies to.
    pub quantisable_elements: u64,
    /// Bytes that those elements take now.
    pub quantisable_bytes: u64,
    /// Bytes of 16-bit floats, scales included, which double if weights are widened to fp32.
    pub half_bytes: u64,
    /// Part of `half_bytes` that belongs to `quantisable_elements`.
    pub quantisable_half_bytes: u64,
    /// Bytes of the float type, 2 or 4, that prevails in the files of the language model; `None` without
    /// files.
    pub float_bytes: Option<u64>,
    /// Assumptions that were made, a sentence each.
    pub assumptions: Vec<String>,
}

impl WeightFootprint {
    /// From a checkpoint's headers.
    #[must_use]
    pub fn from_headers(checkpoint: &Checkpoint, spec: &ModelSpec) -> Self {
        checkpoint::footprint(checkpoint, spec)
    }

    /// From `config.json` alone: every tensor of the architecture in the stated element type and
    /// quantisation. Where the tensors are not known, the labelled fallback.
    ///
    /// # Errors
    /// [`EstimatorError::Overflow`] beyond 64 bits.
    pub fn analytical(spec: &ModelSpec) -> Result<Self, EstimatorError> {
        let Some(tensors) = &spec.tensors else { return Ok(Self::fallback()) };
        let mut sum = Self { source: WeightSource::Config, ..Self::empty() };
        for tensor in tensors {
            let elements = tensor.elements()?;
            let stored = analytical_bytes(tensor, elements, spec);
            sum.add(elements, stored, tensor.is_quantisable(), tensor.part)?;
        }
        sum.stored_parameters = spec.parameters()?;
        Ok(sum)
    }

    /// A size that the caller knows from elsewhere. Nothing in it can be re-sized.
    #[must_use]
    pub fn stated(bytes: u64) -> Self {
        Self { bytes, source: WeightSource::Stated, ..Self::empty() }
    }

    /// 7 B parameters of 2 bytes.
    #[must_use]
    pub fn fallback() -> Self {
        let bytes = FALLBACK_PARAMETERS.saturating_mul(HALF);
        let sentence = "the weights' size is unknown: 7 B parameters of 2 bytes are assumed";
        Self {
            bytes,
            quantisable_elements: FALLBACK_PARAMETERS,
            quantisable_bytes: bytes,
            half_bytes: bytes,
            quantisable_half_bytes: bytes,
            assumptions: vec![sentence.to_owned()],
            ..Self::empty()
        }
    }

    /// Applies `--quant`: re-sizes quantisable tensors and keeps the rest.
    #[must_use]
    pub fn requantised(&self, quant: WeightQuant) -> Self {
        let Some(resized) = quant.resized(self.quantisable_elements) else { return self.clone() };
        let rest = self.bytes.saturating_sub(self.quantisable_bytes);
        let rest_half = self.half_bytes.saturating_sub(self.quantisable_half_bytes);
        let mut footprint = self.clone();
        footprint.bytes = rest.saturating_add(resized.bytes);
        footprint.quantisable_bytes = resized.bytes;
        footprint.half_bytes = rest_half.saturating_add(resized.half_bytes);
        footprint.quantisable_half_bytes = resized.half_bytes;
        if quant == WeightQuant::Fp16 {
            footprint.float_bytes = Some(HALF);
        }
        footprint
    }

    /// Widens every 16-bit float to 32 bits.
    #[must_use]
    pub fn widened(&self) -> Self {
        Self {
            bytes: self.bytes.saturating_add(self.half_bytes),
            quantisable_bytes: self.quantisable_bytes.saturating_add(self.quantisable_half_bytes),
            half_bytes: 0,
            quantisable_half_bytes: 0,
            float_bytes: Some(4),
            ..self.clone()
        }
    }

    fn empty() -> Self {
        Self {
            bytes: 0,
            vision_bytes: 0,
            source: WeightSource::Fallback,
            stored_parameters: None,
            quantisable_elements: 0,
            quantisable_bytes: 0,
            half_bytes: 0,
            quantisable_half_bytes: 0,
            float_bytes: None,
            assumptions: Vec::new(),
        }
    }

    fn add(
        &mut self,
        elements: u64,
        stored: TensorBytes,
        quantisable: bool,
        part: TensorPart,
    ) -> Result<(), EstimatorError> {
        accumulate(&mut self.bytes, stored.bytes)?;
        accumulate(&mut self.half_bytes, stored.half_bytes)?;
        if part == TensorPart::Vision {
            accumulate(&mut self.vision_bytes, stored.bytes)?;
        }
        if quantisable {
            accumulate(&mut self.quantisable_elements, elements)?;
            accumulate(&mut self.quantisable_bytes, stored.bytes)?;
            accumulate(&mut self.quantisable_half_bytes, stored.half_bytes)?;
        }
        Ok(())
    }
}

fn accumulate(sum: &mut u64, bytes: u64) -> Result<(), EstimatorError> {
    *sum = sum.checked_add(bytes).ok_or_else(|| EstimatorError::Overflow {
        quantity: "the size of the weights".to_owned(),
    })?;
    Ok(())
}

/// Size of a tensor without a file: its quantised format, fp32 for a decay rate, or the
/// configuration's element type.
fn analytical_bytes(tensor: &TensorSpec, elements: u64, spec: &ModelSpec) -> TensorBytes {
    let format = spec.quantization.as_ref().and_then(|quant| format_of(tensor, quant));
    match format {
        Some(format) => TensorBytes::quantised(format, elements),
        None if tensor.name.ends_with("A_log") => TensorBytes::plain(elements, 4),
        None => TensorBytes::plain(elements, spec.elem_bytes),
    }
}

fn format_of(tensor: &TensorSpec, quant: &Quantization) -> Option<QuantFormat> {
    let module = tensor.name.strip_suffix(".weight").unwrap_or(&tensor.name);
    let applies = match quant.scope {
        QuantScope::All => true,
        QuantScope::Layers => tensor.role == TensorRole::Linear,
        QuantScope::Experts => tensor.name.contains(".experts."),
    };
    if applies && tensor.is_quantisable() { quant.format_of(module) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Qwen2.5-0.5B, by its published figures.
    const QWEN: &str = r#"{"model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864,
        "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
        "vocab_size": 151936, "tie_word_embeddings": true, "torch_dtype": "bfloat16"}"#;

    #[test]
    fn qwen_2_5_half_b() {
        let spec = ModelSpec::from_config(QWEN).unwrap();
        let weights = WeightFootprint::analytical(&spec).unwrap();
        assert_eq!(spec.parameters().unwrap(), Some(494_032_768));
        assert_eq!((weights.bytes, weights.source), (988_065_536, WeightSource::Config));
        assert_eq!(weights.bytes >> 20, 942);
        let int4 = weights.requantised(WeightQuant::Int4);
        let norms_and_biases = 49 * 896 + 24 * (896 + 2 * 128);
        let matrices = 494_032_768 - norms_and_biases;
        assert_eq!(int4.bytes, matrices / 2 + matrices / 16 + 2 * norms_and_biases);
        assert_eq!(int4.requantised(WeightQuant::Fp16).bytes, weights.bytes);
        assert_eq!(weights.requantised(WeightQuant::Default), weights);
    }

    #[test]
    fn fp32_doubles_floats_of_16_bits_and_no_codes() {
        let spec = ModelSpec::from_config(QWEN).unwrap();
        let weights = WeightFootprint::analytical(&spec).unwrap();
        assert_eq!(weights.widened().bytes, 2 * weights.bytes);
        let (int4, elements) =
            (weights.requantised(WeightQuant::Int4), weights.quantisable_elements);
        let norms_and_biases = weights.bytes - 2 * elements;
        let widened = elements / 2 + elements / 64 * 8 + 2 * norms_and_biases;
        assert_eq!(int4.widened().bytes, widened);
        assert_eq!(int4.widened().widened(), int4.widened());
        let back = int4.requantised(WeightQuant::Fp16);
        assert_eq!((back.bytes, back.half_bytes), (weights.bytes, weights.half_bytes));
        let single = QWEN.replace("bfloat16", "float32");
        let single = ModelSpec::from_config(&single).unwrap();
        let single = WeightFootprint::analytical(&single).unwrap();
        assert_eq!((single.bytes, single.widened().bytes), (2 * weights.bytes, 2 * weights.bytes));
    }

    /// Published totals of MLX 4-bit checkpoints (vision towers stay bf16, decay rates fp32).
    #[test]
    fn published_mlx_totals() {
        let qwen3_14b = r#"{"model_type": "qwen3", "hidden_size": 5120, "intermediate_size": 17408,
            "num_hidden_layers": 40, "num_attention_heads": 40, "num_key_value_heads": 8,
            "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": false,
            "quantization": {"group_size": 64, "bits": 4}}"#;
        let spec = ModelSpec::from_config(qwen3_14b).unwrap();
        assert_eq!(WeightFootprint::analytical(&spec).unwrap().bytes, 8_307_783_680);
    }

    #[test]
    fn nothing_known_is_labelled() {
        let spec = ModelSpec::from_config(r#"{"model_type": "what"}"#).unwrap();
        let weights = WeightFootprint::analytical(&spec).unwrap();
        assert_eq!((weights.bytes, weights.source), (14_000_000_000, WeightSource::Fallback));
        assert!(weights.assumptions.iter().any(|a| a.contains("7 B parameters")));
    }
}
