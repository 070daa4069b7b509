//! Size of the weights from the headers of a checkpoint's files, tensor by tensor.
//!
//! A quantised matrix is several tensors: MLX stores `x.weight` (packed into U32), `x.scales`
//! and `x.biases`; other tools use other suffixes. They are one logical tensor here: its elements are
//! counted unpacked, its bytes are those of all parts.

use std::borrow::Cow;

use super::{TensorBytes, WeightFootprint, WeightSource};
use crate::dtype::Dtype;
use crate::headers::{Checkpoint, TensorInfo};
use crate::quantization::Quantization;
use crate::spec::ModelSpec;
use crate::tensors::{QUANT_GROUP_ELEMS, TensorPart};

/// Suffixes of the companions of a quantised matrix.
const COMPANIONS: [&str; 10] = [
    "scales",
    "biases",
    "weight_scale_inv",
    "weight_scale_2",
    "weight_scale",
    "input_scale",
    "weight_scales",
    "qzeros",
    "g_idx",
    "scale",
];

/// Words in the names of tensors that belong to an image encoder.
const VISION_WORDS: [&str; 7] =
    ["vision", "visual", "mm_projector", "multi_modal_projector", "image_", "img_", "patch_embed"];

/// The letters that those words begin with.
const VISION_LETTERS: &[u8] = b"vmip";

/// Reports whether one of [`VISION_WORDS`] is in a tensor's name, in one pass over the name.
fn is_of_vision(name: &str) -> bool {
    let mut rest = name.as_bytes();
    while let Some(at) = rest.iter().position(|letter| VISION_LETTERS.contains(letter)) {
        let (_, word) = rest.split_at(at);
        if VISION_WORDS.iter().any(|known| word.starts_with(known.as_bytes())) {
            return true;
        }
        rest = word.get(1..).unwrap_or_default();
    }
    false
}

/// Reports whether `wpe` is in a tensor's name: learned positions.
fn is_of_positions(name: &str) -> bool {
    name.split('w').skip(1).any(|behind| behind.starts_with("pe"))
}

/// Sums up a checkpoint.
pub(super) fn footprint(checkpoint: &Checkpoint, spec: &ModelSpec) -> WeightFootprint {
    let mut sum = WeightFootprint { source: WeightSource::Headers, ..WeightFootprint::empty() };
    let mut stored = 0_u64;
    let mut floats = FloatBytes::default();
    let quantization = spec.quantization.as_ref();
    for (name, info) in checkpoint.iter() {
        let (name, main) = match owner(name, checkpoint) {
            Some((owner, main)) => (Cow::Owned(owner), main),
            None => (Cow::Borrowed(name), info),
        };
        let bits = packed_bits(&name, main, checkpoint, quantization);
        let elements = if std::ptr::eq(main, info) { unpacked(info, bits) } else { 0 };
        stored = stored.saturating_add(elements);
        let vision = is_of_vision(&name);
        let part = if vision { TensorPart::Vision } else { TensorPart::Text };
        if part == TensorPart::Text {
            floats.add(info);
        }
        let quantisable = is_matrix(main, bits) && !vision && !is_of_positions(&name);
        // Sizes of files that exist cannot add up beyond 64 bits: the headers were checked.
        let _ = sum.add(elements, stored_as(info), quantisable, part);
    }
    sum.stored_parameters = Some(stored);
    sum.float_bytes = floats.most();
    match checkpoint.index_total_bytes {
        Some(total) if total == sum.bytes => sum.source = WeightSource::Index,
        Some(total) => sum.assumptions.push(format!(
            "the index states {total} bytes, the headers add up to {}: the headers are used",
            sum.bytes
        )),
        None => {}
    }
    sum
}

/// Bytes of a tensor, and whether they are floats of 16 bits.
fn stored_as(info: &TensorInfo) -> TensorBytes {
    let bytes = info.size_bytes();
    let half = matches!(info.dtype, Dtype::F16 | Dtype::BF16);
    TensorBytes { bytes, half_bytes: if half { bytes } else { 0 } }
}

/// Bytes of floats, by their width: plain tensors, and the scales of quantised ones.
#[derive(Default)]
struct FloatBytes {
    half: u64,
    single: u64,
}

impl FloatBytes {
    fn add(&mut self, info: &TensorInfo) {
        let sum = match info.dtype {
            Dtype::F16 | Dtype::BF16 => &mut self.half,
            Dtype::F32 => &mut self.single,
            _ => return,
        };
        *sum = sum.saturating_add(info.size_bytes());
    }

    /// Bytes of a float of the prevailing width.
    fn most(&self) -> Option<u64> {
        let single = self.single > self.half;
        (self.half.max(self.single) > 0).then_some(if single { 4 } else { 2 })
    }
}

/// The matrix that `name` accompanies: `x.weight` of `x.scales`, or of `x.weight.absmax`.
fn owner<'a>(name: &str, checkpoint: &'a Checkpoint) -> Option<(String, &'a TensorInfo)> {
    let (module, suffix) = name.rsplit_once('.')?;
    if suffix == "weight" {
        return None;
    }
    if let Some((module, _)) = name.split_once(".weight.") {
        return named(format!("{module}.weight"), checkpoint);
    }
    if !COMPANIONS.contains(&suffix) {
        return None;
    }
    ["weight", "qweight"].into_iter().find_map(|main| named(format!("{module}.{main}"), checkpoint))
}

fn named(name: String, checkpoint: &Checkpoint) -> Option<(String, &TensorInfo)> {
    let (_, info) = checkpoint.get(&name)?;
    Some((name, info))
}

/// Bits of an element of a packed tensor, or `None` if the tensor is not packed. Bits that the
/// configuration does not state follow from the scales, at MLX's usual group.
fn packed_bits(
    name: &str,
    info: &TensorInfo,
    checkpoint: &Checkpoint,
    quantization: Option<&Quantization>,
) -> Option<u64> {
    let words = matches!(info.dtype, Dtype::U32 | Dtype::I32 | Dtype::U8);
    if !words || info.shape.len() < 2 {
        return None;
    }
    let module = name.rsplit_once('.').map_or(name, |(module, _)| module);
    let stated = quantization.and_then(|quant| quant.format_of(module)).map(|f| f.bits);
    let bits = stated.or_else(|| implied_bits(module, info, checkpoint));
    bits.filter(|bits| (1..=16).contains(bits))
}

/// Bits of an element by the number of scales, at MLX's usual group.
fn implied_bits(module: &str, info: &TensorInfo, checkpoint: &Checkpoint) -> Option<u64> {
    let (_, scales) = checkpoint.get(&format!("{module}.scales"))?;
    let row = scales.shape.last()?.checked_mul(QUANT_GROUP_ELEMS)?;
    info.shape.last()?.checked_mul(32)?.checked_div(row)
}

fn unpacked(info: &TensorInfo, bits: Option<u64>) -> u64 {
    match bits {
        None => info.elements(),
        Some(bits) => info.size_bytes().saturating_mul(8).checked_div(bits).unwrap_or(0),
    }
}

/// Reports whether MLX would quantise the tensor: rows of whole groups, at least two dimensions.
fn is_matrix(info: &TensorInfo, bits: Option<u64>) -> bool {
    let row = info.shape.last().copied().unwrap_or(0);
    let whole = bits.is_some() || row.checked_rem(QUANT_GROUP_ELEMS) == Some(0);
    info.shape.len() >= 2 && whole && row > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint(tensors: &[(&str, &str, &[u64])]) -> (tempfile::TempDir, Checkpoint) {
        let dir = tempfile::tempdir().unwrap();
        let mut at = 0;
        let entries: Vec<_> = tensors
            .iter()
            .map(|(name, dtype, shape)| {
                let elements: u64 = shape.iter().product();
                let begin = at;
                at += Dtype::from_name(dtype).unwrap().bytes_of(elements).unwrap();
                format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{begin},{at}]}}"#)
            })
            .collect();
        let json = format!("{{{}}}", entries.join(","));
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(json.as_bytes());
        bytes.resize(bytes.len() + usize::try_from(at).unwrap(), 0);
        let path = dir.path().join("model.safetensors");
        std::fs::write(&path, bytes).unwrap();
        let checkpoint = Checkpoint::open(dir.path()).unwrap().unwrap();
        (dir, checkpoint)
    }

    #[test]
    fn a_packed_matrix_counts_what_it_unpacks_to() {
        let (_dir, checkpoint) = checkpoint(&[
            ("a.weight", "U32", &[64, 16]),
            ("a.scales", "BF16", &[64, 2]),
            ("a.biases", "BF16", &[64, 2]),
            ("norm.weight", "BF16", &[128]),
            ("visual.b.weight", "BF16", &[64, 64]),
        ]);
        let spec = ModelSpec::from_config("{}").unwrap();
        let weights = footprint(&checkpoint, &spec);
        assert_eq!(weights.stored_parameters, Some(64 * 128 + 128 + 64 * 64));
        assert_eq!(weights.bytes, 4 * 64 * 16 + 2 * 2 * 64 * 2 + 256 + 2 * 64 * 64);
        assert_eq!(
            (weights.quantisable_elements, weights.quantisable_bytes),
            (64 * 128, 4096 + 512)
        );
        assert_eq!((weights.vision_bytes, weights.source), (2 * 64 * 64, WeightSource::Headers));
        assert_eq!(weights.float_bytes, Some(2));
        let halves = 2 * 2 * 64 * 2 + 256 + 2 * 64 * 64;
        assert_eq!((weights.half_bytes, weights.quantisable_half_bytes), (halves, 512));
        let fp16 = weights.requantised(crate::WeightQuant::Fp16);
        assert_eq!(fp16.bytes, 2 * 64 * 128 + 256 + 2 * 64 * 64);
    }

    #[test]
    fn files_say_what_is_computed_in() {
        let (_dir, checkpoint) = checkpoint(&[
            ("a.weight", "F32", &[64, 64]),
            ("norm.weight", "BF16", &[64]),
            ("visual.b.weight", "BF16", &[640, 64]),
        ]);
        let weights = footprint(&checkpoint, &ModelSpec::from_config("{}").unwrap());
        assert_eq!(weights.float_bytes, Some(4));
        assert_eq!(weights.requantised(crate::WeightQuant::Fp16).float_bytes, Some(2));
    }

    #[test]
    fn names_of_an_encoder() {
        for word in VISION_WORDS {
            assert!(VISION_LETTERS.contains(&word.as_bytes()[0]), "{word}");
            assert!(is_of_vision(&format!("model.{word}x")) && is_of_vision(&format!("mi{word}")));
            assert!(!is_of_vision(&word[1..]) || word.contains("mm_"), "{word}");
        }
        for name in ["model.layers.0.mlp.experts.3.up_proj.weight", "", "lm_head.weight", "é.vi"] {
            assert!(!is_of_vision(name), "{name}");
        }
    }

    #[test]
    fn the_configuration_beats_the_usual_group() {
        let (_dir, checkpoint) =
            checkpoint(&[("a.weight", "U32", &[64, 32]), ("a.scales", "BF16", &[64, 4])]);
        let config = r#"{"quantization": {"bits": 8, "group_size": 32}}"#;
        let weights = footprint(&checkpoint, &ModelSpec::from_config(config).unwrap());
        assert_eq!(weights.stored_parameters, Some(64 * 128));
    }

    #[test]
    fn scales_of_other_tools_are_no_parameters() {
        let (_dir, checkpoint) = checkpoint(&[
            ("a.weight", "F8_E4M3", &[128, 128]),
            ("a.weight_scale_inv", "F32", &[1, 1]),
            ("b.weight", "BF16", &[128, 128]),
            ("b.weight.absmax", "F32", &[128]),
        ]);
        let weights = footprint(&checkpoint, &ModelSpec::from_config("{}").unwrap());
        assert_eq!(weights.stored_parameters, Some(2 * 128 * 128));
        assert_eq!(weights.bytes, 3 * 128 * 128 + 4 + 4 * 128);
    }
}
