//! Images: preparation, encoder and decoder against the references, and what must hold without one.
//!
//! `xtask/golden/vision.py` says what the goldens are. The checkpoint's window (96 tokens) is shorter
//! than an image (256), so that what rows of an image see of each other shows in both kinds of layers.

#![cfg(test)]

mod support;

use image::RgbImage;
use mlxcel_estimator::KvMode;
use mlxcel_runtime::engine::{Engine, LogitRows, ModelSource, NoProgress};
use mlxcel_runtime::vision::{EncodedImage, Pixels, PlacedImage};
use mlxcel_runtime::{KernelSet, SequenceRun};
use safetensors::SafeTensors;
use support::{Setup, cosine, on_engine, relative_difference};
use tempfile::TempDir;

const NAME: &str = "gemma3-vision";
const KERNELS: [KernelSet; 2] = [KernelSet::Host, KernelSet::Mlx];
/// Rows of an image.
const ROWS: usize = 256;
/// Differences between orders of summation.
const ROUNDING: f32 = 2e-4;

/// The checkpoint and what the references say of it.
struct Golden {
    folder: TempDir,
    picture: RgbImage,
    pixels: Vec<f32>,
    embeddings: Vec<f32>,
    tokens: Vec<u32>,
    positions: Vec<usize>,
    logits: Vec<f32>,
}

impl Golden {
    fn load() -> Self {
        let folder = TempDir::new().unwrap();
        let variant = xtask::golden::VARIANTS.iter().find(|known| known.name == "f32").unwrap();
        xtask::golden::checkpoint(NAME, variant, folder.path()).unwrap();
        let bytes = std::fs::read(xtask::golden::images_path(NAME)).unwrap();
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let weights = std::fs::read(folder.path().join("model.safetensors")).unwrap();
        let crc32 = &header.metadata().as_ref().unwrap()["crc32"];
        assert_eq!(*crc32, crc32fast::hash(&weights).to_string(), "another checkpoint");
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let words = |name: &str| {
            let data = file.tensor(name).unwrap().data().to_vec();
            data.chunks_exact(4).map(|word| word.try_into().unwrap()).collect::<Vec<[u8; 4]>>()
        };
        let floats = |name: &str| words(name).into_iter().map(f32::from_le_bytes).collect();
        let ints = |name: &str| words(name).into_iter().map(u32::from_le_bytes);
        let picture = file.tensor("picture").unwrap();
        let [height, width, 3] = *picture.shape() else { panic!("{:?}", picture.shape()) };
        let size = [width, height].map(|side| u32::try_from(side).unwrap());
        Self {
            picture: RgbImage::from_raw(size[0], size[1], picture.data().to_vec()).unwrap(),
            pixels: floats("pixels"),
            embeddings: floats("embeddings"),
            tokens: ints("tokens").collect(),
            positions: ints("positions").map(|it| it as usize).collect(),
            logits: floats("logits"),
            folder,
        }
    }

    fn source(&self) -> ModelSource {
        ModelSource::Folder(self.folder.path().to_owned())
    }

    fn engine(&self, kernels: KernelSet, prefill_chunk: usize) -> Engine {
        Setup { kernels, prefill_chunk, ..Setup::default() }.engine(&self.source())
    }

    fn image(&self, engine: &Engine) -> EncodedImage {
        let side = (self.pixels.len() / 3).isqrt();
        engine.encode_image(&Pixels { side, values: self.pixels.clone() }).unwrap()
    }

    /// The image at both its places.
    fn placed(&self, engine: &Engine) -> Vec<PlacedImage> {
        let image = self.image(engine);
        let rows = self.tokens.iter().enumerate().filter(|(_, token)| **token == 507);
        let starts = rows.map(|(at, _)| at).step_by(ROWS);
        starts.map(|start| PlacedImage { start, image: image.clone() }).collect()
    }
}

#[test]
fn pixels_are_those_of_the_processor() {
    on_engine(|| {
        let golden = Golden::load();
        let preprocessor =
            golden.engine(KernelSet::Host, 512).preprocessor(&golden.source()).unwrap();
        let ours = preprocessor.pixels(&golden.picture).values;
        assert_eq!(ours.len(), golden.pixels.len());
        // One of 256 levels of a byte; Pillow rounds to bytes after each of its two passes.
        let level = 2.0 / 255.0;
        let differences: Vec<f32> =
            ours.iter().zip(&golden.pixels).map(|(a, b)| (a - b).abs() / level).collect();
        let largest = differences.iter().fold(0.0f32, |a, b| a.max(*b));
        let mean = differences.iter().sum::<f32>() / differences.len() as f32;
        assert!(largest <= 2.001 && mean < 0.25, "levels: {largest} at most, {mean} on average");
    });
}

#[test]
fn embeddings_are_those_of_mlx_vlm() {
    on_engine(|| {
        let golden = Golden::load();
        for kernels in KERNELS {
            let engine = golden.engine(kernels, 512);
            let ours = engine.ops().to_f32(&golden.image(&engine).embeddings).unwrap();
            let width = ours.len() / ROWS;
            let rows = ours.chunks_exact(width).zip(golden.embeddings.chunks_exact(width));
            for (row, (ours, theirs)) in rows.enumerate() {
                let cosine = cosine(ours, theirs);
                assert!(cosine > 0.9999, "{kernels:?}: row {row}: cosine {cosine}");
            }
            let difference = relative_difference(&ours, &golden.embeddings);
            assert!(difference < 1e-3, "{kernels:?}: {difference}");
        }
    });
}

/// All logits of the prompt at the golden's positions, read in one pass.
#[test]
fn logits_with_images_are_those_of_the_reference() {
    on_engine(|| {
        let golden = Golden::load();
        for kernels in KERNELS {
            let engine = golden.engine(kernels, 1024);
            let cache = engine.new_cache().unwrap();
            let run = SequenceRun { tokens: &golden.tokens, cache: &cache };
            let images = golden.placed(&engine).iter().map(|placed| placed.rows(0)).collect();
            let all = engine.forward_with_images(&[run], images, LogitRows::All).unwrap();
            let vocab = engine.vocab();
            let theirs = golden.logits.chunks_exact(vocab);
            for (position, theirs) in golden.positions.iter().zip(theirs) {
                let ours = &all[position * vocab..(position + 1) * vocab];
                let cosine = cosine(ours, theirs);
                assert!(cosine > 0.9999, "{kernels:?}: position {position}: cosine {cosine}");
            }
        }
    });
}

/// Passes of any length, of which none ends within an image, and decoding after them.
#[test]
fn chunks_change_nothing() {
    on_engine(|| {
        let golden = Golden::load();
        for (kernels, chunk) in KERNELS.into_iter().flat_map(|k| [(k, 1), (k, 100), (k, 300)]) {
            let engine = golden.engine(kernels, chunk);
            let images = golden.placed(&engine);
            let cache = engine.new_cache().unwrap();
            let (prompt, rest) = golden.tokens.split_at(golden.tokens.len() - 3);
            let mut logits =
                engine.prefill_with_images(prompt, &images, &cache, &mut NoProgress).unwrap();
            for token in rest {
                let run = SequenceRun { tokens: std::slice::from_ref(token), cache: &cache };
                logits.extend(engine.forward(&[run], LogitRows::Last).unwrap());
            }
            let vocab = engine.vocab();
            let theirs = &golden.logits[golden.logits.len() - 4 * vocab..];
            for (ours, theirs) in logits.chunks_exact(vocab).zip(theirs.chunks_exact(vocab)) {
                let cosine = cosine(ours, theirs);
                assert!(cosine > 0.9999, "{kernels:?}: chunks of {chunk}: cosine {cosine}");
            }
        }
    });
}

/// An image of 256 tokens and a text in one batch, in either order: both end as they do alone.
#[test]
fn an_image_and_a_text_in_one_batch_equal_their_single_runs() {
    on_engine(|| {
        let golden = Golden::load();
        let text: Vec<u32> = (0..70).map(|i| i * 7919 % 500 + 1).collect();
        for kernels in KERNELS {
            let engine = golden.engine(kernels, 1024);
            let images = golden.placed(&engine);
            let cache = engine.new_cache().unwrap();
            let alone = [
                engine
                    .prefill_with_images(&golden.tokens, &images, &cache, &mut NoProgress)
                    .unwrap(),
                engine.prefill(&text, &engine.new_cache().unwrap(), &mut NoProgress).unwrap(),
            ];
            for image_first in [true, false] {
                let caches = [engine.new_cache().unwrap(), engine.new_cache().unwrap()];
                let mut runs = vec![
                    SequenceRun { tokens: &golden.tokens, cache: &caches[0] },
                    SequenceRun { tokens: &text, cache: &caches[1] },
                ];
                let mut expected = alone.clone();
                let mut first = 0;
                if !image_first {
                    runs.reverse();
                    expected.reverse();
                    first = text.len();
                }
                let mut rows: Vec<_> = images.iter().map(|placed| placed.rows(0)).collect();
                rows.iter_mut().for_each(|image| image.start += first);
                let both = engine.forward_with_images(&runs, rows, LogitRows::Last).unwrap();
                let difference = relative_difference(&both, &expected.concat());
                assert!(difference < ROUNDING, "{kernels:?}: {difference}");
            }
        }
    });
}

#[test]
fn what_the_image_shows_matters() {
    on_engine(|| {
        let golden = Golden::load();
        let engine = golden.engine(KernelSet::Host, 512);
        let mut images = golden.placed(&engine);
        let side = (golden.pixels.len() / 3).isqrt();
        let negative = golden.pixels.iter().map(|value| -value).collect();
        let last = |images: &[PlacedImage]| {
            let cache = engine.new_cache().unwrap();
            engine.prefill_with_images(&golden.tokens, images, &cache, &mut NoProgress).unwrap()
        };
        let before = last(&images);
        images[0].image = engine.encode_image(&Pixels { side, values: negative }).unwrap();
        assert!(relative_difference(&last(&images), &before) > 1e-3);
    });
}

#[test]
fn every_cache_mode_takes_images_or_says_why_not() {
    on_engine(|| {
        let golden = Golden::load();
        let engine = golden.engine(KernelSet::Host, 512);
        let images = golden.placed(&engine);
        let run = |mode: KvMode| {
            let cache = engine.new_cache_in(mode).unwrap();
            engine.prefill_with_images(&golden.tokens, &images, &cache, &mut NoProgress)
        };
        let exact = run(KvMode::Fp16).unwrap();
        for mode in KvMode::ALL {
            match run(mode) {
                Ok(logits) => {
                    let cosine = cosine(&logits, &exact);
                    assert!(cosine > 0.8, "{mode}: cosine {cosine}");
                }
                Err(error) => {
                    let error = error.to_string();
                    assert_eq!(mode, KvMode::Turbo4Delegated, "{error}");
                    assert!(error.contains("turbo4-delegated cannot run: an image"), "{error}");
                }
            }
        }
        assert!(run(KvMode::Turbo4Delegated).is_err());
    });
}

#[test]
fn images_that_do_not_fit_are_refused() {
    on_engine(|| {
        let golden = Golden::load();
        let engine = golden.engine(KernelSet::Host, 512);
        let mut image = golden.placed(&engine).remove(0);
        image.start = golden.tokens.len() - ROWS + 1;
        let cache = engine.new_cache().unwrap();
        let refused = engine.prefill_with_images(&golden.tokens, &[image], &cache, &mut NoProgress);
        assert!(refused.unwrap_err().to_string().contains("not one run's own"));
        let small = Pixels { side: 8, values: vec![0.0; 3 * 64] };
        let refused = engine.encode_image(&small).err().unwrap().to_string();
        assert!(refused.contains("an image of 8² pixels for 64²"), "{refused}");
        let text = Setup::default().engine(&ModelSource::BuiltIn);
        let refused = text.encode_image(&small).err().unwrap().to_string();
        assert!(refused.contains("no image encoder"), "{refused}");
    });
}
