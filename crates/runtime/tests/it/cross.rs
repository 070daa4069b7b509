//! Images for cross-attention layers (Llama 3.2 Vision): comparison with the references, and
//! invariants.
//!
//! `xtask/golden/vision_mllama.py` describes the goldens. One image covers one of four tiles, the other
//! three; with 65 rows per tile the rows of the second image start within a cache block.

use crate::support::images::{assert_rows, decode, prefill};
use crate::support::{Setup, on_engine, relative_difference};
use image::RgbImage;
use mlxcel_estimator::{ModelSpec, Phase, Workload, cache_bytes};
use mlxcel_runtime::engine::{Engine, EngineConfig, LogitRows, ModelSource, NoProgress};
use mlxcel_runtime::loading::Residence;
use mlxcel_runtime::vision::{Pixels, PlacedImage};
use mlxcel_runtime::{ComputeDtype, KernelSet, SequenceRun};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use tempfile::TempDir;

const NAME: &str = "mllama";
const KERNELS: [KernelSet; 2] = [KernelSet::Host, KernelSet::Mlx];
const PROMPTS: [&str; 2] = ["apart", "together"];
/// Placeholder token of an image, the first id after the vocabulary.
const IMAGE_TOKEN: u32 = 512;
/// Rows per image: four tiles of 8² patches and a class token each.
const ROWS: usize = 4 * 65;
/// Tolerance for another order of summation.
const ROUNDING: f32 = 2e-4;

/// A checkpoint and the reference results for it.
struct Golden {
    bytes: Vec<u8>,
    folder: TempDir,
    variant: &'static str,
}

impl Golden {
    fn load(variant: &'static str) -> Self {
        let folder = TempDir::new().unwrap();
        let known =
            mlxcel_testing::golden::VARIANTS.iter().find(|known| known.name == variant).unwrap();
        mlxcel_testing::golden::checkpoint(NAME, known, folder.path()).unwrap();
        let bytes = std::fs::read(mlxcel_testing::golden::images_path(NAME)).unwrap();
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let crc32 = &header.metadata().as_ref().unwrap()[&format!("{variant}.crc32")];
        let weights = std::fs::read(folder.path().join("model.safetensors")).unwrap();
        assert_eq!(*crc32, crc32fast::hash(&weights).to_string(), "another checkpoint");
        Self { bytes, folder, variant }
    }

    fn words(&self, name: &str) -> Vec<[u8; 4]> {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        let data = file.tensor(name).unwrap().data().to_vec();
        data.chunks_exact(4).map(|word| word.try_into().unwrap()).collect()
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        self.words(name).into_iter().map(f32::from_le_bytes).collect()
    }

    fn tokens(&self, prompt: &str) -> Vec<u32> {
        let words = self.words(&format!("{prompt}.tokens"));
        words.into_iter().map(u32::from_le_bytes).collect()
    }

    fn logits(&self, prompt: &str) -> Vec<f32> {
        self.floats(&format!("{}.{prompt}.logits", self.variant))
    }

    fn shape(&self, name: &str) -> Vec<usize> {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        file.tensor(name).unwrap().shape().to_vec()
    }

    fn picture(&self, index: usize) -> RgbImage {
        let name = format!("picture.{index}");
        let [height, width, 3] = self.shape(&name)[..] else { panic!("{name}") };
        let data =
            SafeTensors::deserialize(&self.bytes).unwrap().tensor(&name).unwrap().data().to_vec();
        let [width, height] = [width, height].map(|side| u32::try_from(side).unwrap());
        RgbImage::from_raw(width, height, data).unwrap()
    }

    fn pixels(&self, index: usize) -> Pixels {
        let name = format!("pixels.{index}");
        let [3, height, width] = self.shape(&name)[..] else { panic!("{name}") };
        Pixels { width, height, values: self.floats(&name) }
    }

    fn source(&self) -> ModelSource {
        ModelSource::Folder(self.folder.path().to_owned())
    }

    fn engine(&self, kernels: KernelSet, prefill_chunk: usize) -> Engine {
        Setup { kernels, prefill_chunk, ..Setup::default() }.engine(&self.source())
    }

    /// The images at their placeholders in a prompt.
    fn placed(&self, engine: &Engine, tokens: &[u32]) -> Vec<PlacedImage> {
        let starts = tokens.iter().enumerate().filter(|(_, token)| **token == IMAGE_TOKEN);
        let image = |(index, (start, _))| PlacedImage {
            start,
            image: engine.encode_image(&self.pixels(index)).unwrap(),
        };
        starts.enumerate().map(image).collect()
    }
}

/// Runs `check` on the golden of every variant, with both kernel sets.
fn each(check: impl Fn(&Golden, KernelSet) + Send + 'static) {
    on_engine(move || {
        for variant in ["f32", "q4"] {
            let golden = Golden::load(variant);
            KERNELS.into_iter().for_each(|kernels| check(&golden, kernels));
        }
    });
}

#[test]
fn tiles_agree_with_the_processor() {
    on_engine(|| {
        let golden = Golden::load("f32");
        let preprocessor =
            golden.engine(KernelSet::Host, 512).preprocessor(&golden.source()).unwrap();
        for (index, size) in [(0, (112, 112)), (1, (336, 112))] {
            let (ours, theirs) =
                (preprocessor.pixels(&golden.picture(index)).unwrap(), golden.pixels(index));
            assert_eq!((ours.width, ours.height), size);
            assert_eq!((theirs.width, theirs.height), size);
            let far = |(a, b): &(&f32, &f32)| (*a - *b).abs() > 1e-5;
            assert_eq!(ours.values.iter().zip(&theirs.values).filter(far).count(), 0, "{index}");
        }
    });
}

#[test]
fn rows_agree_with_mlx_vlm() {
    on_engine(|| {
        let golden = Golden::load("f32");
        for kernels in KERNELS {
            let engine = golden.engine(kernels, 512);
            for index in [0, 1] {
                let image = engine.encode_image(&golden.pixels(index)).unwrap();
                let ours = engine.ops().to_f32(&image.embeddings).unwrap();
                let theirs = golden.floats(&format!("f32.embeddings.{index}"));
                let what = format!("{kernels:?} image {index}");
                assert_rows(&what, &ours, &theirs, ours.len() / ROWS);
                let difference = relative_difference(&ours, &theirs);
                assert!(difference < 1e-3, "{what}: {difference}");
            }
        }
    });
}

/// All rows: before the first image, at, between and after the images.
#[test]
fn logits_agree_with_the_reference() {
    each(|golden, kernels| {
        let engine = golden.engine(kernels, 1024);
        for prompt in PROMPTS {
            let tokens = golden.tokens(prompt);
            let mut cache = engine.new_cache().unwrap();
            engine.show_images(&mut cache, &golden.placed(&engine, &tokens)).unwrap();
            let run = SequenceRun { tokens: &tokens, cache: &mut cache };
            let all = engine.forward(&mut [run], LogitRows::All).unwrap();
            let what = format!("{} {kernels:?} {prompt}", golden.variant);
            assert_rows(&what, &all, &golden.logits(prompt), engine.vocab());
        }
    });
}

#[test]
fn chunked_prefill_and_decode_equal_one_pass() {
    each(|golden, kernels| {
        for (prompt, chunk) in [("apart", 1), ("apart", 9), ("together", 2)] {
            let engine = golden.engine(kernels, chunk);
            let tokens = golden.tokens(prompt);
            let mut cache = engine.new_cache().unwrap();
            let images = golden.placed(&engine, &tokens);
            let (start, rest) = tokens.split_at(tokens.len() - 3);
            let mut logits = prefill(&engine, start, &images, &mut cache);
            logits.extend(decode(&engine, rest, &mut cache));
            let theirs = golden.logits(prompt);
            let theirs = &theirs[theirs.len() - 4 * engine.vocab()..];
            let what = format!("{} {kernels:?} {prompt} in chunks of {chunk}", golden.variant);
            assert_rows(&what, &logits, theirs, engine.vocab());
        }
    });
}

/// A sequence with images and one without, in one batch in either order, equal their single runs.
#[test]
fn a_ragged_batch_equals_its_single_runs() {
    each(|golden, kernels| {
        let engine = golden.engine(kernels, 1024);
        let text: Vec<u32> = (0..70).map(|i| i * 7919 % 500 + 1).collect();
        let tokens = golden.tokens("apart");
        let images = golden.placed(&engine, &tokens);
        let single = |tokens: &[u32], images: &[PlacedImage]| {
            let mut cache = engine.new_cache().unwrap();
            [prefill(&engine, tokens, images, &mut cache), decode(&engine, &[7], &mut cache)]
        };
        let alone = [single(&tokens, &images), single(&text, &[])];
        for order in [[0, 1], [1, 0]] {
            let mut caches = [engine.new_cache().unwrap(), engine.new_cache().unwrap()];
            engine.show_images(&mut caches[0], &images).unwrap();
            let passes: [[&[u32]; 2]; 2] = [[&tokens, &text], [&[7], &[7]]];
            for (step, pass) in passes.into_iter().enumerate() {
                let [first, second] = &mut caches;
                let mut runs = [
                    SequenceRun { tokens: pass[0], cache: first },
                    SequenceRun { tokens: pass[1], cache: second },
                ];
                if order == [1, 0] {
                    runs.reverse();
                }
                let both = engine.forward(&mut runs, LogitRows::Last).unwrap();
                let expected = order.map(|i| alone[i][step].clone()).concat();
                let difference = relative_difference(&both, &expected);
                let what = format!("{} {kernels:?} step {step}", golden.variant);
                assert!(difference < ROUNDING, "{what}: {difference}");
            }
        }
    });
}

/// Cache sizes equal the estimate, with and without images.
#[test]
fn cache_sizes_equal_the_estimate() {
    on_engine(|| {
        let golden = Golden::load("q4");
        let config = std::fs::read_to_string(golden.folder.path().join("config.json")).unwrap();
        let layers = ModelSpec::from_config(&config).unwrap().layers.unwrap();
        for kernels in KERNELS {
            let dtype = ComputeDtype::Checkpoint;
            let engine = Setup { kernels, dtype, ..Setup::default() }.engine(&golden.source());
            let tokens = golden.tokens("apart");
            let images = golden.placed(&engine, &tokens);
            for count in [0, 1, 2] {
                let mut cache = engine.new_cache().unwrap();
                prefill(&engine, &tokens, &images[..count], &mut cache);
                let workload = Workload::uniform(tokens.len() as u64, 1)
                    .with_images_beside(&vec![ROWS as u64; count]);
                let bytes = cache_bytes(&layers, &workload, Phase::Prefill).unwrap().kv.total();
                assert_eq!(cache.allocated_bytes() as u64, bytes, "{kernels:?} {count} images");
                let mut visited = 0;
                cache.allocations(&mut |_, bytes| visited += bytes as u64);
                assert_eq!(visited, bytes, "{kernels:?} {count} images");
            }
        }
    });
}

/// Forked and trimmed sequences still attend to the images; an emptied one does not.
#[test]
fn forked_and_trimmed_sequences_keep_their_images() {
    each(|golden, kernels| {
        let engine = golden.engine(kernels, 1024);
        let tokens = golden.tokens("apart");
        let images = golden.placed(&engine, &tokens);
        let mut cache = engine.new_cache().unwrap();
        let expected = prefill(&engine, &tokens, &images, &mut cache);
        let what = format!("{} {kernels:?}", golden.variant);
        for keep in [3, images[0].start + 1, images[1].start] {
            let mut fork = cache.fork();
            fork.trim(keep).unwrap();
            let again = prefill(&engine, &tokens[keep..], &[], &mut fork);
            let difference = relative_difference(&again, &expected);
            assert!(difference < ROUNDING, "{what} from {keep}: {difference}");
        }
        let mut fork = cache.fork();
        fork.trim(0).unwrap();
        let text = prefill(&engine, &tokens, &[], &mut fork);
        let mut alone = engine.new_cache().unwrap();
        assert_eq!(text, prefill(&engine, &tokens, &[], &mut alone), "{what}");
        assert_eq!(fork.allocated_bytes(), alone.allocated_bytes(), "{what}");
        assert!(relative_difference(&text, &expected) > 1e-2, "{what}");
        fork.trim(0).unwrap();
        assert_eq!(prefill(&engine, &tokens, &images, &mut fork), expected, "{what}: shown again");
        assert_eq!(decode(&engine, &[9], &mut cache), decode(&engine, &[9], &mut fork), "{what}");
    });
}

#[test]
fn logits_depend_on_the_image() {
    on_engine(|| {
        let golden = Golden::load("f32");
        let engine = golden.engine(KernelSet::Host, 512);
        let tokens = golden.tokens("apart");
        let mut images = golden.placed(&engine, &tokens);
        let last = |images: &[PlacedImage]| {
            prefill(&engine, &tokens, images, &mut engine.new_cache().unwrap())
        };
        let before = last(&images);
        let mut negative = golden.pixels(1);
        negative.values.iter_mut().for_each(|value| *value = -*value);
        images[1].image = engine.encode_image(&negative).unwrap();
        assert!(relative_difference(&last(&images), &before) > 1e-3);
    });
}

#[test]
fn invalid_images_are_rejected() {
    on_engine(|| {
        let golden = Golden::load("f32");
        let engine = golden.engine(KernelSet::Host, 512);
        let tokens = golden.tokens("apart");
        let images = golden.placed(&engine, &tokens);
        let mut cache = engine.new_cache().unwrap();
        prefill(&engine, &tokens, &images, &mut cache);
        let refused = |error: mlxcel_runtime::Error, expected: &str| {
            let error = error.to_string();
            assert!(error.contains(expected), "{error}");
        };
        let again = engine.show_images(&mut cache, &images).unwrap_err();
        refused(again, "attaching images needs an empty cache, not one of 25 tokens");
        let saved = cache.save("m").unwrap_err();
        refused(saved.into(), "saving a cache with cross-attention images is not supported");
        let rows = vec![images[0].rows(0)];
        let mut empty = engine.new_cache().unwrap();
        let run = SequenceRun { tokens: &[1], cache: &mut empty };
        let placed = engine.forward_with_images(&mut [run], rows, LogitRows::Last).unwrap_err();
        refused(placed, "is attached to the cache, not to a pass");
        let new = || engine.new_cache().unwrap();
        let beyond =
            engine.prefill_with_images(&tokens[..7], &images[..1], &mut new(), &mut NoProgress);
        refused(beyond.unwrap_err(), "an image at tokens 7..8 of a prompt of 7");
        let reversed: Vec<_> = images.iter().rev().cloned().collect();
        refused(
            engine.show_images(&mut new(), &reversed).unwrap_err(),
            "does not follow that of the image before it",
        );
        let small = Pixels { width: 112, height: 110, values: vec![0.0; 3 * 112 * 110] };
        let small = engine.encode_image(&small).err().unwrap();
        refused(small, "an image of 112 × 110 pixels, but the encoder takes up to 4 tiles of 112²");
        let text = Setup::default().engine(&ModelSource::BuiltIn);
        let text = text.show_images(&mut text.new_cache().unwrap(), &images).unwrap_err();
        refused(text, "attaching images with no cross-attention layers is not supported");
        let mut cache = new();
        let unknown = SequenceRun { tokens: &[520], cache: &mut cache };
        refused(engine.forward(&mut [unknown], LogitRows::Last).unwrap_err(), "520");
    });
}

/// Contradictory configurations.
#[test]
fn contradictory_configurations_are_rejected() {
    on_engine(|| {
        for (part, changes, why) in [
            ("text_config", json!({"cross_attention_layers": [1, 5]}), "names layer 5"),
            ("vision_config", json!({"intermediate_layers_indices": [0, 4]}), "names layer 4 of 4"),
            ("vision_config", json!({"vision_output_dim": 128}), "vision_output_dim is 128"),
            ("vision_config", json!({"supported_aspect_ratios": [[1, 1]]}), "for 4 tiles"),
            ("vision_config", json!({"max_num_tiles": 0}), "max_num_tiles is 0"),
            (
                "vision_config",
                json!({"attention_heads": 3}),
                "not a multiple of vision_config.attention_heads (3)",
            ),
            ("vision_config", json!({"image_size": 113}), "in whole patches of 14"),
            ("vision_config", json!({"num_channels": 4}), "num_channels is 4"),
        ] {
            let golden = Golden::load("f32");
            let path = golden.folder.path().join("config.json");
            let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            for (key, value) in changes.as_object().unwrap() {
                config[part][key] = value.clone();
            }
            std::fs::write(&path, config.to_string()).unwrap();
            let setup = Setup::default();
            let ops = mlxcel_runtime::OpsConfig {
                kernels: setup.kernels,
                threads: Some(1),
                precision: setup.precision,
                dtype: setup.dtype,
            };
            let (kv_mode, weights) = (setup.kv_mode, Residence::Auto);
            let config = EngineConfig { ops, kv_mode, prefill_chunk: 512, weights };
            let error = Engine::load(&golden.source(), config, &mut NoProgress).err();
            let error = error.map_or_else(String::new, |error| error.to_string());
            assert!(error.contains(why), "{changes}: {error}");
        }
    });
}
