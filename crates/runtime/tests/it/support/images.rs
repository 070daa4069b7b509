//! Goldens with images, and their images at the placeholders of the prompt.

use image::RgbImage;
use mlxcel_runtime::engine::{Engine, LogitRows, ModelSource, NoProgress};
use mlxcel_runtime::vision::{EncodedImage, Pixels, PlacedImage};
use mlxcel_runtime::{KernelSet, SequenceCache, SequenceRun};
use safetensors::SafeTensors;
use tempfile::TempDir;

use super::{Setup, argmax, cosine};

/// Placeholder token of an image row in every configuration.
const IMAGE_TOKEN: u32 = 507;

/// A checkpoint and the reference results for it.
pub(crate) struct Golden {
    pub(crate) name: &'static str,
    pub(crate) pictures: Vec<RgbImage>,
    pub(crate) pixels: Vec<Pixels>,
    pub(crate) embeddings: Vec<Vec<f32>>,
    pub(crate) tokens: Vec<u32>,
    pub(crate) positions: Vec<usize>,
    pub(crate) logits: Vec<f32>,
    folder: TempDir,
}

impl Golden {
    /// Loads the golden of configuration `name`. A golden with one image, whose tensors have neither
    /// number nor variant, uses it for both placeholders.
    pub(crate) fn load(name: &'static str, variant: &str) -> Self {
        let folder = TempDir::new().unwrap();
        let known =
            mlxcel_testing::golden::VARIANTS.iter().find(|known| known.name == variant).unwrap();
        mlxcel_testing::golden::checkpoint(name, known, folder.path()).unwrap();
        let bytes = std::fs::read(mlxcel_testing::golden::images_path(name)).unwrap();
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let one = file.tensor("picture").is_ok();
        let of_variant =
            |name: &str| if one { name.to_owned() } else { format!("{variant}.{name}") };
        let numbered =
            |name: &str, i: usize| if one { name.to_owned() } else { format!("{name}.{i}") };
        let weights = std::fs::read(folder.path().join("model.safetensors")).unwrap();
        let crc32 = &header.metadata().as_ref().unwrap()[&of_variant("crc32")];
        assert_eq!(*crc32, crc32fast::hash(&weights).to_string(), "another checkpoint");
        let words = |name: &str| {
            let data = file.tensor(name).unwrap().data().to_vec();
            data.chunks_exact(4).map(|word| word.try_into().unwrap()).collect::<Vec<[u8; 4]>>()
        };
        let floats = |name: &str| words(name).into_iter().map(f32::from_le_bytes).collect();
        let ints = |name: &str| words(name).into_iter().map(u32::from_le_bytes);
        let picture = |i| {
            let picture = file.tensor(&numbered("picture", i)).unwrap();
            let [height, width, 3] = *picture.shape() else { panic!("{:?}", picture.shape()) };
            let size = [width, height].map(|side| u32::try_from(side).unwrap());
            RgbImage::from_raw(size[0], size[1], picture.data().to_vec()).unwrap()
        };
        let pixels = |i| {
            let name = numbered("pixels", i);
            let [3, height, width] = *file.tensor(&name).unwrap().shape() else { panic!("{name}") };
            Pixels { width, height, values: floats(&name) }
        };
        let count = if one { 1 } else { 2 };
        Self {
            name,
            pictures: (0..count).map(picture).collect(),
            pixels: (0..count).map(pixels).collect(),
            embeddings: (0..count)
                .map(|i| floats(&numbered(&of_variant("embeddings"), i)))
                .collect(),
            tokens: ints("tokens").collect(),
            positions: ints("positions").map(|it| it as usize).collect(),
            logits: floats(&of_variant("logits")),
            folder,
        }
    }

    pub(crate) fn source(&self) -> ModelSource {
        ModelSource::Folder(self.folder.path().to_owned())
    }

    pub(crate) fn engine(&self, kernels: KernelSet, prefill_chunk: usize) -> Engine {
        Setup { kernels, prefill_chunk, ..Setup::default() }.engine(&self.source())
    }

    /// Encodes image `index`.
    pub(crate) fn image(&self, engine: &Engine, index: usize) -> EncodedImage {
        engine.encode_image(&self.pixels[index]).unwrap()
    }

    /// The images at both placeholders.
    pub(crate) fn placed(&self, engine: &Engine) -> Vec<PlacedImage> {
        let mut placed: Vec<PlacedImage> = Vec::new();
        for index in [0, self.pixels.len() - 1] {
            let free = placed.last().map_or(0, |image| image.tokens().end);
            let next = self.tokens[free..].iter().position(|token| *token == IMAGE_TOKEN).unwrap();
            placed.push(PlacedImage { start: free + next, image: self.image(engine, index) });
        }
        placed
    }
}

/// Logits of `tokens`, decoded one after the other after the contents of `cache`.
pub(crate) fn decode(engine: &Engine, tokens: &[u32], cache: &mut SequenceCache) -> Vec<f32> {
    let mut logits = Vec::new();
    for token in tokens {
        let run = SequenceRun { tokens: std::slice::from_ref(token), cache: &mut *cache };
        logits.extend(engine.forward(&mut [run], LogitRows::Last).unwrap());
    }
    logits
}

/// Reads `tokens` with `images` into `to`; logits of the last token.
pub(crate) fn prefill(
    engine: &Engine,
    tokens: &[u32],
    images: &[PlacedImage],
    to: &mut SequenceCache,
) -> Vec<f32> {
    engine.prefill_with_images(tokens, images, to, &mut NoProgress).unwrap()
}

/// Asserts that each row of `width` logits has the direction and the largest element of the golden's.
#[track_caller]
pub(crate) fn assert_rows(what: &str, ours: &[f32], theirs: &[f32], width: usize) {
    assert_eq!(ours.len(), theirs.len(), "{what}");
    for (row, (ours, theirs)) in
        ours.chunks_exact(width).zip(theirs.chunks_exact(width)).enumerate()
    {
        let cosine = cosine(ours, theirs);
        assert!(cosine > 0.9999, "{what}: row {row}: cosine {cosine}");
        assert_eq!(argmax(ours), argmax(theirs), "{what}: row {row}");
    }
}
