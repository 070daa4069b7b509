//! Conversion of checkpoints, compared with mlx-lm.
//!
//! References: `golden/convert.json`, hashes of the tensors that `mlx_lm.convert` made from the same
//! random-weights checkpoints (`xtask/golden/convert.py`), and the quantised checkpoints of
//! `mlxcel_testing::golden`, whose logits mlx-lm computed.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use crate::support::{Setup, on_engine};
use mlxcel_runtime::FloatType;
use mlxcel_runtime::convert::{self, ConvertOptions, ConvertSummary, MixedRecipe, WeightFormat};
use mlxcel_runtime::engine::ModelSource;
use mlxcel_runtime::{Error, Result};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use tempfile::TempDir;

const GOLDEN: &str = include_str!("../golden/convert.json");

fn source(config: &str, variant: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let variant = mlxcel_testing::golden::VARIANTS.iter().find(|v| v.name == variant).unwrap();
    mlxcel_testing::golden::checkpoint(config, variant, folder.path()).unwrap();
    folder
}

fn run(
    source: &Path,
    out: &Path,
    target: WeightFormat,
    dtype: Option<FloatType>,
) -> Result<ConvertSummary> {
    let options = ConvertOptions { format: target, dtype };
    convert::convert(source, out, &options, 3, &mut |_, _| ControlFlow::Continue(()))
}

fn affine(bits: u8, group_size: u16) -> WeightFormat {
    WeightFormat::Affine { bits, group_size, mixed: None }
}

/// Dtype, shape and checksum of every tensor, in the format of `convert.py`.
fn tensors(folder: &Path) -> BTreeMap<String, Value> {
    let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let entry = |(name, view): (String, safetensors::tensor::TensorView<'_>)| {
        let value = json!([view.dtype().to_string(), view.shape(), crc32fast::hash(view.data())]);
        (name, value)
    };
    file.tensors().into_iter().map(entry).collect()
}

fn config(folder: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(folder.join("config.json")).unwrap()).unwrap()
}

#[test]
fn tensors_and_configuration_agree_with_mlx_lm() {
    let golden: Value = serde_json::from_str(GOLDEN).unwrap();
    let cases = golden.as_object().unwrap();
    assert!(cases.len() >= 9);
    for (name, case) in cases {
        let source = source(case["config"].as_str().unwrap(), case["variant"].as_str().unwrap());
        let number = |key: &str| case[key].as_u64().and_then(|n| n.try_into().ok());
        let group_size = case["group_size"].as_u64().map_or(64, |n| n.try_into().unwrap());
        let mixed = case["mixed"].as_str().map(|name| MixedRecipe::parse(name).unwrap());
        let target = match (number("bits"), mixed) {
            (None, None) => WeightFormat::Float,
            (bits, mixed) => WeightFormat::Affine { bits: bits.unwrap_or(4), group_size, mixed },
        };
        let dtype = match case["dtype"].as_str() {
            Some("float16") => Some(FloatType::F16),
            Some("bfloat16") => Some(FloatType::Bf16),
            Some("float32") => Some(FloatType::F32),
            _ => None,
        };
        let out = source.path().join("out");
        run(source.path(), &out, target, dtype).unwrap();
        let expected: BTreeMap<String, Value> =
            serde_json::from_value(case["tensors"].clone()).unwrap();
        assert_eq!(tensors(&out), expected, "{name}");
        assert_eq!(config(&out)["quantization"], case["quantization"], "{name}");
    }
}

/// Quantising yields the checkpoint of the goldens, and therefore mlx-lm's logits.
#[test]
fn quantising_yields_the_checkpoints_of_the_goldens() {
    for name in ["llama", "phi3", "qwen3"] {
        let (plain, quantised) = (source(name, "bf16"), source(name, "q4"));
        let out = plain.path().join("deeper/out");
        let summary = run(plain.path(), &out, affine(4, 64), None).unwrap();
        assert_eq!(tensors(&out), tensors(quantised.path()), "{name}");
        assert!(summary.quantized > 0 && summary.dropped.is_empty());
        assert!(
            out.join("tokenizer.json").is_file() && out.join("generation_config.json").is_file()
        );
        let index = std::fs::read_to_string(out.join("model.safetensors.index.json")).unwrap();
        let index: Value = serde_json::from_str(&index).unwrap();
        assert_eq!(index["weight_map"].as_object().unwrap().len(), tensors(&out).len());
    }
}

#[test]
fn unused_tensors_are_dropped_and_listed() {
    let source = source("llama", "bf16");
    let file = source.path().join("model.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    let old = SafeTensors::deserialize(&bytes).unwrap();
    let name = "model.layers.0.self_attn.rotary_emb.inv_freq";
    let data = [0u8; 8];
    let extra = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![2], &data);
    let all = old.tensors().into_iter().chain([(name.to_owned(), extra.unwrap())]);
    safetensors::serialize_to_file(all, None, &file).unwrap();
    let out = source.path().join("out");
    let summary = run(source.path(), &out, WeightFormat::Float, Some(FloatType::F16)).unwrap();
    assert_eq!(summary.dropped, [name]);
    let new = tensors(&out);
    assert!(!new.contains_key(name) && new.values().all(|tensor| tensor[0] == "F16"));
    assert_eq!(config(&out)["torch_dtype"], "float16");
}

fn refused(source: &Path, target: WeightFormat, expected: &str) {
    let out = source.join("out");
    let error = run(source, &out, target, None).unwrap_err().to_string();
    assert!(error.contains(expected), "{error}");
    assert!(!error.contains('\n') && !out.exists());
    let left = std::fs::read_dir(source).unwrap();
    let hidden =
        left.filter(|e| e.as_ref().unwrap().file_name().to_str().unwrap().starts_with('.'));
    assert_eq!(hidden.count(), 0, "something incomplete is left behind");
}

#[test]
fn a_rejected_conversion_leaves_no_files() {
    let plain = source("llama", "bf16");
    refused(plain.path(), affine(7, 64), "bits per weight is 7");
    refused(plain.path(), affine(4, 48), "the group size is 48");
    refused(source("llama", "q4").path(), affine(4, 64), "already quantised");
    let empty = tempfile::tempdir().unwrap();
    refused(empty.path(), affine(4, 64), "config.json");
    std::fs::copy(plain.path().join("config.json"), empty.path().join("config.json")).unwrap();
    refused(empty.path(), affine(4, 64), "holds no model.safetensors");
    let file = plain.path().join("model.safetensors");
    let whole = std::fs::read(&file).unwrap();
    std::fs::write(&file, &whole[..whole.len() - 1]).unwrap();
    refused(plain.path(), affine(4, 64), "model.safetensors");
}

#[test]
fn an_existing_folder_is_not_modified() {
    let source = source("llama", "bf16");
    let error = run(source.path(), source.path(), affine(4, 64), None).unwrap_err().to_string();
    assert!(error.contains("exists already"), "{error}");
}

#[test]
fn an_interrupted_conversion_leaves_no_files() {
    let source = source("llama", "bf16");
    let out = source.path().join("out");
    let options = ConvertOptions { format: affine(4, 64), dtype: None };
    let stop = &mut |_, _| ControlFlow::Break(());
    let error = convert::convert(source.path(), &out, &options, 1, stop).unwrap_err();
    assert!(matches!(error, Error::Interrupted), "{error}");
    let count = std::fs::read_dir(source.path()).unwrap().count();
    assert_eq!(
        count,
        std::fs::read_dir(source.path()).unwrap().flatten().filter(|e| e.path().is_file()).count()
    );
}

/// Every family is converted to a loadable checkpoint, or rejected by name.
#[test]
fn every_family_is_converted_or_rejected_by_name() {
    let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/configs");
    let names = std::fs::read_dir(configs)
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned());
    let (mut made, mut named) = (0, Vec::new());
    for name in names.filter(|name| !name.contains("mxfp4")) {
        let source = source(&name, "bf16");
        for target in [affine(4, 32), WeightFormat::Float] {
            let out = source.path().join("out");
            match run(source.path(), &out, target, None) {
                Ok(_) => {
                    made += 1;
                    let model = ModelSource::Folder(out.clone());
                    on_engine(move || drop(Setup::default().engine(&model)));
                    std::fs::remove_dir_all(out).unwrap();
                }
                Err(error) => {
                    let (error, family) = (error.to_string(), config(source.path()));
                    let family = family["model_type"].as_str().unwrap().to_owned();
                    let start = format!("model_type \"{family}\" is not converted: tensor ");
                    assert!(error.starts_with(&start), "{name}: {error}");
                    assert!(!out.exists());
                    named.push(family);
                }
            }
        }
    }
    named.sort();
    named.dedup();
    assert!(made > 40, "{made}");
    for family in ["deepseek_v3", "gpt2", "gpt_oss", "granitemoehybrid", "lfm2", "qwen3_5_moe"] {
        assert!(named.iter().any(|known| known == family), "{family} in {named:?}");
    }
}
