//! Images: preprocessing, encoders and decoders, compared with the references, and invariants.
//!
//! `xtask/golden/vision_FAMILY.py` describes the goldens. Gemma's window (96 tokens) is shorter than its
//! images (256), so that attention within an image is tested in both kinds of layers. Qwen's images
//! differ in size, the second has 256 tokens, and their rows have grid positions.

use crate::support::images::{Golden, assert_rows, decode, prefill};
use crate::support::{Setup, cosine, on_engine, relative_difference};
use mlxcel_core::{SavedCache, SequenceCache};
use mlxcel_estimator::KvMode;
use mlxcel_runtime::engine::{LogitRows, ModelSource, NoProgress};
use mlxcel_runtime::vision::{Pixels, PlacedImage};
use mlxcel_runtime::{KernelSet, SequenceRun};

const KERNELS: [KernelSet; 2] = [KernelSet::Host, KernelSet::Mlx];
/// Configurations and variants that have goldens.
const CASES: [[&str; 2]; 3] =
    [["gemma3-vision", "f32"], ["qwen2_5_vl", "f32"], ["qwen2_5_vl", "q4"]];
/// Tolerance for another order of summation.
const ROUNDING: f32 = 2e-4;

/// Runs `check` on every case's golden, with both kernel sets.
fn each(check: impl Fn(&Golden, KernelSet) + Send + 'static) {
    on_engine(move || {
        for [name, variant] in CASES {
            let golden = Golden::load(name, variant);
            KERNELS.into_iter().for_each(|kernels| check(&golden, kernels));
        }
    });
}

#[test]
fn pixels_agree_with_the_processor() {
    on_engine(|| {
        for [name, variant] in CASES {
            let golden = Golden::load(name, variant);
            let engine = golden.engine(KernelSet::Host, 512);
            let preprocessor = engine.preprocessor(&golden.source()).unwrap();
            for (picture, theirs) in golden.pictures.iter().zip(&golden.pixels) {
                let ours = preprocessor.pixels(picture).unwrap();
                assert_eq!((ours.width, ours.height), (theirs.width, theirs.height), "{name}");
                // One of 256 levels is more than 0.007 here.
                let far = |(a, b): &(&f32, &f32)| (*a - *b).abs() > 1e-5;
                let different = ours.values.iter().zip(&theirs.values).filter(far).count();
                assert_eq!(different, 0, "{name}: of {}", ours.values.len());
            }
        }
    });
}

#[test]
fn embeddings_agree_with_mlx_vlm() {
    each(|golden, kernels| {
        let engine = golden.engine(kernels, 512);
        for (index, theirs) in golden.embeddings.iter().enumerate() {
            let image = golden.image(&engine, index);
            let width = usize::try_from(image.embeddings.shape()[1]).unwrap();
            let ours = engine.ops().to_f32(&image.embeddings).unwrap();
            let what = format!("{} {kernels:?} image {index}", golden.name);
            assert_rows(&what, &ours, theirs, width);
            let difference = relative_difference(&ours, theirs);
            assert!(difference < 1e-3, "{what}: {difference}");
        }
    });
}

/// Logits of the prompt at the golden's positions, computed in one pass.
#[test]
fn logits_with_images_agree_with_the_reference() {
    each(|golden, kernels| {
        let engine = golden.engine(kernels, 1024);
        let mut cache = engine.new_cache().unwrap();
        let run = SequenceRun { tokens: &golden.tokens, cache: &mut cache };
        let images = golden.placed(&engine).iter().map(|placed| placed.rows(0)).collect();
        let all = engine.forward_with_images(&mut [run], images, LogitRows::All).unwrap();
        let vocab = engine.vocab();
        let row = |at: &usize| all[at * vocab..(at + 1) * vocab].to_vec();
        let ours: Vec<f32> = golden.positions.iter().flat_map(row).collect();
        assert_rows(&format!("{} {kernels:?}", golden.name), &ours, &golden.logits, vocab);
    });
}

/// Chunks of any length, which divide only images with causal attention, and decoding after them.
#[test]
fn chunked_prefill_and_decode_equal_one_pass() {
    each(|golden, kernels| {
        for chunk in [1, 100, 300] {
            let engine = golden.engine(kernels, chunk);
            let images = golden.placed(&engine);
            let mut cache = engine.new_cache().unwrap();
            let (prompt, rest) = golden.tokens.split_at(golden.tokens.len() - 3);
            let mut logits = prefill(&engine, prompt, &images, &mut cache);
            logits.extend(decode(&engine, rest, &mut cache));
            let vocab = engine.vocab();
            let theirs = &golden.logits[golden.logits.len() - 4 * vocab..];
            let what = format!("{} {kernels:?} chunks of {chunk}", golden.name);
            assert_rows(&what, &logits, theirs, vocab);
        }
    });
}

/// Images of 256 tokens and a text, in one batch in either order, equal their single runs.
#[test]
fn images_and_a_text_in_one_batch_equal_their_single_runs() {
    each(|golden, kernels| {
        let text: Vec<u32> = (0..70).map(|i| i * 7919 % 500 + 1).collect();
        let engine = golden.engine(kernels, 1024);
        let images = golden.placed(&engine);
        let alone = [
            prefill(&engine, &golden.tokens, &images, &mut engine.new_cache().unwrap()),
            prefill(&engine, &text, &[], &mut engine.new_cache().unwrap()),
        ];
        for image_first in [true, false] {
            let mut caches = [engine.new_cache().unwrap(), engine.new_cache().unwrap()];
            let [with_images, without] = &mut caches;
            let mut runs = [
                SequenceRun { tokens: &golden.tokens, cache: with_images },
                SequenceRun { tokens: &text, cache: without },
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
            let both = engine.forward_with_images(&mut runs, rows, LogitRows::Last).unwrap();
            let difference = relative_difference(&both, &expected.concat());
            assert!(difference < ROUNDING, "{} {kernels:?}: {difference}", golden.name);
            // The next token of both sequences, of which only one has images before it.
            let mut next = caches.each_mut().map(|cache| SequenceRun { tokens: &[7], cache });
            let next = engine.forward(&mut next, LogitRows::Last).unwrap();
            let single = |tokens: &[u32], images: &[PlacedImage]| {
                let mut cache = engine.new_cache().unwrap();
                prefill(&engine, tokens, images, &mut cache);
                decode(&engine, &[7], &mut cache)
            };
            let expected = [single(&golden.tokens, &images), single(&text, &[])].concat();
            let difference = relative_difference(&next, &expected);
            assert!(difference < ROUNDING, "{} {kernels:?} next: {difference}", golden.name);
        }
    });
}

/// A prefix of a prompt with images equals a fresh prefill: trimmed after the first image, before it,
/// and in a fork.
#[test]
fn a_trimmed_cache_keeps_its_images() {
    each(|golden, kernels| {
        let engine = golden.engine(kernels, 1024);
        let images = golden.placed(&engine);
        let mut cache = engine.new_cache().unwrap();
        let expected = prefill(&engine, &golden.tokens, &images, &mut cache);
        let behind = images[0].tokens().end + 2;
        for keep in [behind, images[0].start, 3] {
            let mut fork = cache.fork();
            fork.trim(keep).unwrap();
            let rest: Vec<PlacedImage> = images
                .iter()
                .filter(|placed| placed.start >= keep)
                .map(|placed| PlacedImage { start: placed.start - keep, ..placed.clone() })
                .collect();
            let again = prefill(&engine, &golden.tokens[keep..], &rest, &mut fork);
            let difference = relative_difference(&again, &expected);
            let what = format!("{} {kernels:?} from {keep}", golden.name);
            assert!(difference < ROUNDING, "{what}: {difference}");
        }
        let next = decode(&engine, &[9], &mut cache.fork());
        assert_eq!(decode(&engine, &[9], &mut cache), next, "{} {kernels:?}", golden.name);
    });
}

/// A saved cache contains the positions of its images.
#[test]
fn a_restored_cache_continues_after_its_images() {
    each(|golden, kernels| {
        let engine = golden.engine(kernels, 1024);
        let images = golden.placed(&engine);
        let mut cache = engine.new_cache().unwrap();
        prefill(&engine, &golden.tokens, &images, &mut cache);
        let saved = cache.save("m").unwrap();
        let restore = |saved: &SavedCache| {
            SequenceCache::restore(engine.ops(), engine.layout(), KvMode::Fp16, "m", saved)
        };
        let mut restored = restore(&saved).unwrap();
        assert_eq!(decode(&engine, &[9], &mut cache), decode(&engine, &[9], &mut restored));
        let mut broken = saved.clone();
        broken.header.insert("images".to_owned(), "5 2 0 0".to_owned());
        let refused = restore(&broken).err().unwrap().to_string();
        assert!(refused.contains("images at \"5 2 0 0\""), "{refused}");
    });
}

#[test]
fn only_causal_images_can_be_trimmed_within() {
    on_engine(|| {
        for [name, variant] in CASES {
            let golden = Golden::load(name, variant);
            let engine = golden.engine(KernelSet::Host, 1024);
            let images = golden.placed(&engine);
            let mut cache = engine.new_cache().unwrap();
            let expected = prefill(&engine, &golden.tokens, &images, &mut cache);
            let keep = images[1].start + 100;
            if name.starts_with("gemma3") {
                let refused = cache.trim(keep).unwrap_err().to_string();
                assert!(refused.contains("within an image at"), "{refused}");
                assert_eq!(cache.tokens(), golden.tokens.len());
                continue;
            }
            cache.trim(keep).unwrap();
            let tokens = &golden.tokens[keep..];
            let rows = images[1].rows_in(keep..golden.tokens.len()).unwrap();
            assert_eq!((rows.start, rows.part.start), (0, 100));
            let run = SequenceRun { tokens, cache: &mut cache };
            let again =
                engine.forward_with_images(&mut [run], vec![rows], LogitRows::Last).unwrap();
            let difference = relative_difference(&again, &expected);
            assert!(difference < ROUNDING, "{name}: {difference}");
        }
    });
}

#[test]
fn logits_depend_on_the_image() {
    on_engine(|| {
        for [name, variant] in CASES {
            let golden = Golden::load(name, variant);
            let engine = golden.engine(KernelSet::Host, 512);
            let mut images = golden.placed(&engine);
            let last = |images: &[PlacedImage]| {
                prefill(&engine, &golden.tokens, images, &mut engine.new_cache().unwrap())
            };
            let before = last(&images);
            let mut negative = golden.pixels[0].clone();
            negative.values.iter_mut().for_each(|value| *value = -*value);
            images[0].image = engine.encode_image(&negative).unwrap();
            assert!(relative_difference(&last(&images), &before) > 1e-3, "{name}");
        }
    });
}

#[test]
fn every_cache_mode_supports_images_or_is_rejected() {
    on_engine(|| {
        for ([name, variant], kernels) in
            CASES.into_iter().flat_map(|case| KERNELS.map(|k| (case, k)))
        {
            let golden = Golden::load(name, variant);
            let engine = golden.engine(kernels, 512);
            let images = golden.placed(&engine);
            let run = |mode: KvMode| {
                let mut cache = engine.new_cache_in(mode).unwrap();
                engine.prefill_with_images(&golden.tokens, &images, &mut cache, &mut NoProgress)
            };
            let exact = run(KvMode::Fp16).unwrap();
            for mode in KvMode::ALL {
                match run(mode) {
                    Ok(logits) => {
                        let cosine = cosine(&logits, &exact);
                        assert!(cosine > 0.8, "{name} {mode} {kernels:?}: cosine {cosine}");
                    }
                    Err(error) => {
                        let error = error.to_string();
                        assert_eq!(mode, KvMode::Turbo4Delegated, "{error}");
                        assert!(error.contains("cannot run: an image"), "{error}");
                    }
                }
            }
            let sealed = run(KvMode::Turbo4Delegated);
            assert_eq!(sealed.is_err(), name.starts_with("gemma3"), "{name} {kernels:?}");
        }
    });
}

#[test]
fn invalid_images_are_rejected() {
    on_engine(|| {
        for ([name, variant], expected) in [
            (CASES[0], "an image of 9 × 8 pixels, but the encoder takes 64²"),
            (CASES[1], "an image of 9 × 8 pixels, but the encoder takes multiples of 8"),
        ] {
            let golden = Golden::load(name, variant);
            let engine = golden.engine(KernelSet::Host, 512);
            let mut image = golden.placed(&engine).remove(0);
            image.start = golden.tokens.len() - image.tokens().len() + 1;
            let mut cache = engine.new_cache().unwrap();
            let refused =
                engine.prefill_with_images(&golden.tokens, &[image], &mut cache, &mut NoProgress);
            assert!(refused.unwrap_err().to_string().contains("an image"), "{name}");
            let small = Pixels { width: 9, height: 8, values: vec![0.0; 3 * 72] };
            let refused = engine.encode_image(&small).err().unwrap().to_string();
            assert!(refused.contains(expected), "{refused}");
            let text = Setup::default().engine(&ModelSource::BuiltIn);
            let refused = text.encode_image(&small).err().unwrap().to_string();
            assert!(refused.contains("no image encoder"), "{refused}");
        }
    });
}
