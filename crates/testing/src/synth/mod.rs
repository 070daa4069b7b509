//! Random-weights checkpoints in the Hugging Face layout, with the tensors of any
//! `config.json` that the estimator knows.
//!
//! A checkpoint is a function of its configuration and the seed, bit for bit on every machine, so that
//! a small configuration and goldens are committed, and tests generate the weights.

mod converted;
mod fill;
mod gpt_oss;
mod layout;
mod random;
mod tokenizer;

use crate::{Result, TestingError};
use mlxcel_estimator::{TensorRole, TensorSpec};
use mlxcel_kernels::quantize::Quantizer;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use tokenizer::Specials;

/// A floating-point type of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// 8 bits of exponent, 7 of mantissa.
    Bf16,
    /// IEEE half precision.
    F16,
    /// IEEE single precision.
    F32,
}

impl Dtype {
    /// Every type.
    pub const ALL: [Self; 3] = [Self::Bf16, Self::F16, Self::F32];

    /// The name on a command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::F32 => "f32",
        }
    }

    /// The type called `name`.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.name() == name)
    }
}

/// Storage of matrices and embeddings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weights {
    /// All weights in this type.
    Plain(Dtype),
    /// MLX's affine format, where rows divide into groups.
    Affine {
        /// Bits per weight: 2, 3, 4, 5, 6 or 8.
        bits: u8,
        /// Weights that share a scale and a bias: 32, 64 or 128.
        group_size: u16,
        /// Type of scales, biases and weights that are not quantised.
        scales: Dtype,
    },
}

/// Options of a checkpoint.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Storage of the weights.
    pub weights: Weights,
    /// Seed of the random numbers.
    pub seed: u64,
    /// Maximum size of a file, unless a single tensor is larger.
    pub shard_bytes: u64,
}

impl Options {
    /// Seed 0, files of up to 5 GiB.
    pub fn new(weights: Weights) -> Self {
        Self { weights, seed: 0, shard_bytes: 5 << 30 }
    }

    fn check(&self) -> Result<()> {
        if let Weights::Affine { bits, group_size, scales } = self.weights {
            Quantizer::new(bits, group_size, scales.into())?;
        }
        Ok(())
    }
}

impl Weights {
    /// Type of all floats in the checkpoint.
    fn dtype(self) -> Dtype {
        match self {
            Self::Plain(dtype) | Self::Affine { scales: dtype, .. } => dtype,
        }
    }
}

/// Size of a checkpoint.
#[derive(Clone, Copy, Debug)]
pub struct Summary {
    /// Number of safetensors files.
    pub shards: usize,
    /// Their bytes, headers included.
    pub bytes: u64,
}

/// Writes a checkpoint of the model that `config` describes into `folder`, which is created;
/// files of a checkpoint that are there already are overwritten.
///
/// # Errors
/// An architecture whose tensors the estimator does not know, a bit width or group size that
/// MLX does not have, a vocabulary below 258 tokens, a file that cannot be written.
pub fn checkpoint(config: &Value, options: &Options, folder: &Path) -> Result<Summary> {
    options.check()?;
    let mut inventory = mlxcel_estimator::tensors(&config.to_string())?;
    if matches!(options.weights, Weights::Affine { .. }) && config["model_type"] == "gpt2" {
        convert_gpt2(&mut inventory);
    }
    let experts = gpt_oss::Experts::of(config, options.weights);
    if let Some(experts) = experts {
        inventory = experts.convert(inventory);
    }
    let inventory = converted::converted(&inventory, options.weights);
    let shards = layout::shards(&inventory, options)?;
    let vocab_size = config["vocab_size"].as_u64().ok_or(TestingError::NoVocabulary)?;
    let specials = Specials::of_config(config, vocab_size);
    let tokenizer = tokenizer::tokenizer(vocab_size, &specials)?;

    std::fs::create_dir_all(folder).map_err(|error| TestingError::io(folder, error))?;
    let mut stored = stored_config(config, options);
    if let Some(experts) = experts {
        experts.state(config, &inventory, options.weights, &mut stored);
    }
    write_json(folder, "config.json", &stored)?;
    write_json(folder, "tokenizer.json", &tokenizer)?;
    let tokenizer_config = tokenizer::tokenizer_config(config, &specials);
    write_json(folder, "tokenizer_config.json", &tokenizer_config)?;
    let generation = json!({ "bos_token_id": specials.bos, "eos_token_id": specials.eos });
    write_json(folder, "generation_config.json", &generation)?;
    if let Some(preprocessor) = preprocessor(config) {
        write_json(folder, "preprocessor_config.json", &preprocessor)?;
    }
    for shard in &shards {
        fill::write_shard(shard, folder, options.weights.dtype(), options.seed)?;
    }
    if shards.len() > 1 {
        write_json(folder, "model.safetensors.index.json", &layout::index(&shards))?;
    }
    let bytes = shards.iter().map(|shard| shard.file_bytes).sum();
    Ok(Summary { shards: shards.len(), bytes })
}

const CLIP_MEAN: [f64; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const CLIP_DEVIATION: [f64; 3] = [0.268_629_54, 0.261_302_58, 0.275_777_11];

/// Image preprocessor of published checkpoints of the family.
fn preprocessor(config: &Value) -> Option<Value> {
    let vision = config.get("vision_config")?;
    match config["model_type"].as_str()? {
        "gemma3" => {
            let side = vision["image_size"].as_u64()?;
            Some(json!({
                "image_processor_type": "Gemma3ImageProcessor", "do_convert_rgb": null,
                "do_resize": true, "size": { "height": side, "width": side }, "resample": 2,
                "do_rescale": true, "rescale_factor": 0.003_921_568_627_450_98,
                "do_normalize": true, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
                "do_pan_and_scan": null,
            }))
        }
        "mllama" => {
            let side = vision["image_size"].as_u64()?;
            Some(json!({
                "image_processor_type": "MllamaImageProcessor", "do_convert_rgb": true,
                "do_resize": true, "size": { "height": side, "width": side }, "resample": 2,
                "do_rescale": true, "rescale_factor": 0.003_921_568_627_450_98,
                "do_normalize": true, "do_pad": true, "max_image_tiles": vision["max_num_tiles"].as_u64()?,
                "image_mean": CLIP_MEAN, "image_std": CLIP_DEVIATION,
            }))
        }
        "qwen2_5_vl" => {
            let patch = vision["patch_size"].as_u64()?;
            let merge = vision["spatial_merge_size"].as_u64()?;
            let square = (patch * merge).pow(2);
            Some(json!({
                "image_processor_type": "Qwen2VLImageProcessor",
                "min_pixels": 4 * square, "max_pixels": 1280 * square, "patch_size": patch,
                "temporal_patch_size": vision["temporal_patch_size"].as_u64()?, "merge_size": merge,
                "image_mean": CLIP_MEAN, "image_std": CLIP_DEVIATION,
            }))
        }
        _ => None,
    }
}

/// Transposes GPT-2's matrices. They are published as `[in, out]`, which has no rows to quantise; when
/// mlx-lm quantises, it stores `[out, in]`, and all tensors below `model.`.
fn convert_gpt2(inventory: &mut [TensorSpec]) {
    for tensor in inventory {
        tensor.name = format!("model.{}", tensor.name);
        if tensor.role == TensorRole::Linear {
            tensor.shape.reverse();
        }
    }
}

/// Reads `config.json`, given its path or its folder.
///
/// # Errors
/// A file that cannot be read or is not JSON.
pub fn read_config(path: &Path) -> Result<Value> {
    let path: PathBuf = if path.is_dir() { path.join("config.json") } else { path.to_path_buf() };
    let text = std::fs::read_to_string(&path).map_err(|error| TestingError::io(&path, error))?;
    serde_json::from_str(&text).map_err(|source| TestingError::Json { path, source })
}

/// The configuration, with the storage of this checkpoint in place of the published one.
fn stored_config(config: &Value, options: &Options) -> Value {
    let mut config = config.clone();
    let Some(fields) = config.as_object_mut() else {
        return config;
    };
    fields.remove("quantization");
    fields.remove("quantization_config");
    let dtype = match options.weights.dtype() {
        Dtype::Bf16 => "bfloat16",
        Dtype::F16 => "float16",
        Dtype::F32 => "float32",
    };
    fields.insert("torch_dtype".into(), json!(dtype));
    if let Weights::Affine { bits, group_size, .. } = options.weights {
        let quantization = json!({ "group_size": group_size, "bits": bits, "mode": "affine" });
        fields.insert("quantization".into(), quantization.clone());
        fields.insert("quantization_config".into(), quantization);
    }
    config
}

fn write_json(folder: &Path, name: &str, value: &Value) -> Result<()> {
    let path = folder.join(name);
    let text = format!("{value:#}\n");
    std::fs::write(&path, text).map_err(|error| TestingError::io(&path, error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use mlxcel_estimator::headers::Checkpoint;
    use std::collections::BTreeMap;

    const Q4: Weights = Weights::Affine { bits: 4, group_size: 64, scales: Dtype::Bf16 };

    fn config() -> Value {
        json!({
            "model_type": "llama", "hidden_size": 128, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 200,
            "vocab_size": 300, "tie_word_embeddings": false, "quantization_config": {"bits": 2},
        })
    }

    /// Every stored tensor: dtype, shape and bytes.
    fn contents(folder: &Path) -> BTreeMap<String, (String, Vec<u64>, Vec<u8>)> {
        let checkpoint = Checkpoint::open(folder).unwrap().unwrap();
        let read = |name: &str| {
            let (path, info) = checkpoint.get(name).unwrap();
            let file = std::fs::read(path).unwrap();
            let range = usize::try_from(info.file_range.start).unwrap()
                ..usize::try_from(info.file_range.end).unwrap();
            (format!("{:?}", info.dtype), info.shape.clone(), file[range].to_vec())
        };
        checkpoint.iter().map(|(name, _)| (name.to_string(), read(name))).collect()
    }

    #[test]
    fn plain_checkpoints_hold_the_estimators_inventory() {
        let folder = tempfile::tempdir().unwrap();
        checkpoint(&config(), &Options::new(Weights::Plain(Dtype::F16)), folder.path()).unwrap();
        let stored = contents(folder.path());
        let inventory = mlxcel_estimator::tensors(&config().to_string()).unwrap();
        assert_eq!(stored.len(), inventory.len());
        for spec in inventory {
            let (dtype, shape, _) = &stored[&spec.name];
            assert_eq!((dtype.as_str(), shape), ("F16", &spec.shape), "{}", spec.name);
        }
    }

    #[test]
    fn rows_that_do_not_divide_into_groups_stay_as_they_are() {
        let folder = tempfile::tempdir().unwrap();
        checkpoint(&config(), &Options::new(Q4), folder.path()).unwrap();
        let stored = contents(folder.path());
        let of = |name: &str| {
            let (dtype, shape, _) = &stored[&format!("model.layers.1.mlp.{name}")];
            (dtype.clone(), shape.clone())
        };
        assert_eq!(of("gate_proj.weight"), ("U32".into(), vec![200, 16]));
        assert_eq!(of("gate_proj.scales"), ("BF16".into(), vec![200, 2]));
        assert_eq!(of("down_proj.weight"), ("BF16".into(), vec![128, 200]));
        let config = read_config(folder.path()).unwrap();
        assert_eq!(config["quantization"]["bits"], 4);
        assert_eq!(config["quantization_config"], config["quantization"]);
    }

    #[test]
    fn quantised_experts_are_one_tensor() {
        let mut config = config();
        let experts = json!({
            "model_type": "mixtral", "num_local_experts": 4, "intermediate_size": 192,
        });
        config.as_object_mut().unwrap().extend(experts.as_object().unwrap().clone());
        let shape = |weights, name: &str| {
            let folder = tempfile::tempdir().unwrap();
            checkpoint(&config, &Options::new(weights), folder.path()).unwrap();
            let name = format!("model.layers.1.block_sparse_moe.{name}");
            contents(folder.path()).get(&name).map(|(_, shape, _)| shape.clone())
        };
        assert_eq!(shape(Q4, "switch_mlp.gate_proj.weight"), Some(vec![4, 192, 16]));
        assert_eq!(shape(Q4, "switch_mlp.down_proj.scales"), Some(vec![4, 128, 3]));
        assert_eq!(shape(Q4, "experts.0.w1.weight"), None);
        let plain = Weights::Plain(Dtype::F16);
        assert_eq!(shape(plain, "experts.3.w2.weight"), Some(vec![128, 192]));
    }

    #[test]
    fn shards_hold_what_one_file_holds() {
        let (one, many) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let options = Options::new(Q4);
        assert_eq!(checkpoint(&config(), &options, one.path()).unwrap().shards, 1);
        let options = Options { shard_bytes: 40_000, ..options };
        let summary = checkpoint(&config(), &options, many.path()).unwrap();
        assert!(summary.shards > 3, "{summary:?}");
        assert!(many.path().join("model.safetensors.index.json").is_file());
        assert_eq!(contents(one.path()), contents(many.path()));
    }

    #[test]
    fn another_seed_makes_other_weights() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let options = Options::new(Weights::Plain(Dtype::Bf16));
        checkpoint(&config(), &options, a.path()).unwrap();
        checkpoint(&config(), &Options { seed: 1, ..options }, b.path()).unwrap();
        assert_ne!(contents(a.path()), contents(b.path()));
    }

    #[test]
    fn what_cannot_be_made_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let affine = |bits, group_size| {
            let weights = Weights::Affine { bits, group_size, scales: Dtype::F16 };
            checkpoint(&config(), &Options::new(weights), folder.path()).unwrap_err().to_string()
        };
        assert!(affine(7, 64).starts_with("bits per weight is 7"));
        assert!(affine(4, 48).starts_with("the group size is 48"));
        let unknown = json!({ "model_type": "abacus", "vocab_size": 300 });
        let plain = Options::new(Weights::Plain(Dtype::F32));
        assert!(checkpoint(&unknown, &plain, folder.path()).is_err());
        assert!(std::fs::read_dir(folder.path()).unwrap().next().is_none());
    }
}
