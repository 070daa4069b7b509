//! One model on the thread that made it: loading with progress, forward passes, prefill in chunks.
//!
//! MLX's streams belong to the thread that created them, so an [`Engine`] is `!Send`; what else a
//! program does talks to its thread through channels.

mod completion;
mod generate;
mod text_stream;

use std::ops::Range;

use mlxcel_core::recurrent::StateLayout;
use mlxcel_core::{
    FEW_TOKENS, ImageAttention, ImageRows, LayerLayout, Ops, OpsConfig, Pass, SequenceCache,
    SequenceRun,
};
use mlxcel_estimator::KvMode;

pub use self::completion::{Completion, CompletionOptions, GeneratedToken};
pub(crate) use self::generate::generate_into;
pub use self::generate::{Finish, Generation, Outcome, generate, generate_with_images, room};
pub(crate) use self::text_stream::TextStream;
use crate::families::{self, ImageEncoder, LanguageModel};
use crate::loading::{Checkpoint, Residence, WeightSource};
pub use crate::progress::{NoProgress, Progress, Statistics};
pub use crate::source::ModelSource;
use crate::text::TextFiles;
use crate::vision::{
    self, EncodedImage, ImageError, ImageInput, ImageProcessor, Pixels, PlacedImage,
};
use crate::{Error, Result};

/// How an engine computes and caches.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Kernel set, threads, precision.
    pub ops: OpsConfig,
    /// How keys and values are stored.
    pub kv_mode: KvMode,
    /// Tokens per pass while prefilling, at least 1.
    pub prefill_chunk: usize,
    /// Where the weights lie.
    pub weights: Residence,
}

/// Which rows of a pass are turned into logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LogitRows {
    /// None: the pass only fills caches.
    None,
    /// The last row of each run.
    Last,
    /// Every row.
    All,
}

/// A loaded model and what it computes with.
pub struct Engine {
    model: Box<dyn LanguageModel>,
    ops: Ops,
    prompt_ops: Ops,
    layout: Vec<LayerLayout>,
    states: Vec<StateLayout>,
    cross: Vec<LayerLayout>,
    config: EngineConfig,
    vocab: usize,
    context: Option<usize>,
    /// The pictures that the model's encoder takes, where it has one.
    input: Option<ImageInput>,
}

impl Engine {
    /// Maps or reads the model's files, checks them, and builds its layers.
    ///
    /// # Errors
    /// Unreadable or inconsistent files, unsupported families, and modes that the model cannot run.
    pub fn load(
        source: &ModelSource,
        config: EngineConfig,
        progress: &mut dyn Progress,
    ) -> Result<Self> {
        let checkpoint = Checkpoint::open(
            source,
            families::read_config(source)?,
            config.weights,
            config.ops.kernels,
        )?;
        crate::memory::apply_limit()?;
        let ops = Ops::new(&config.ops)?;
        let weights = WeightSource::new(&checkpoint, &ops, progress)?;
        let model = families::load(&weights.root(), checkpoint.config())?;
        let layout = model.cache_layout();
        SequenceCache::check(&ops, &layout, config.kv_mode)?;
        let input =
            model.images().map(|_| ImageInput::from_config(checkpoint.config())).transpose()?;
        let engine = Self {
            input,
            states: model.state_layout(),
            cross: model.cross_layout(),
            model,
            layout,
            config,
            vocab: checkpoint.size("vocab_size").ok_or_else(|| Error::missing_key("vocab_size"))?,
            context: checkpoint.size("max_position_embeddings"),
            prompt_ops: ops.for_prefill(),
            ops,
        };
        progress.loaded();
        Ok(engine)
    }

    /// The operations that the engine runs on.
    #[must_use]
    pub fn ops(&self) -> &Ops {
        &self.ops
    }

    /// What each layer with attention keeps per sequence.
    #[must_use]
    pub fn layout(&self) -> &[LayerLayout] {
        &self.layout
    }

    /// How keys and values are stored.
    #[must_use]
    pub fn kv_mode(&self) -> KvMode {
        self.config.kv_mode
    }

    /// Prompt tokens per prefill pass.
    #[must_use]
    pub fn chunk_tokens(&self) -> usize {
        self.config.prefill_chunk.max(1)
    }

    /// Number of logits per row.
    #[must_use]
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    /// The model's own limit on tokens per sequence, where its configuration states one.
    #[must_use]
    pub fn context(&self) -> Option<usize> {
        self.context
    }

    /// An empty cache for one sequence.
    ///
    /// # Errors
    /// When the mode does not fit the model's layers.
    pub fn new_cache(&self) -> Result<SequenceCache> {
        self.new_cache_in(self.config.kv_mode)
    }

    /// The same in a mode of its own.
    ///
    /// # Errors
    /// As [`Self::new_cache`].
    pub fn new_cache_in(&self, mode: KvMode) -> Result<SequenceCache> {
        let cache = SequenceCache::new(&self.ops, &self.layout, mode)?;
        self.with_room(cache.with_states(&self.states))
    }

    /// `cache` with room for the images that cross-attention layers see.
    pub(crate) fn with_room(&self, cache: SequenceCache) -> Result<SequenceCache> {
        Ok(cache.with_cross(&self.cross)?)
    }

    /// One pass over a ragged batch; the caches then hold the runs' tokens.
    ///
    /// Returns fp32 logits, `rows × vocab`, rows in batch order.
    ///
    /// # Errors
    /// Tokens outside the vocabulary (nothing is computed then), and failed operations.
    pub fn forward(&self, runs: &mut [SequenceRun<'_>], rows: LogitRows) -> Result<Vec<f32>> {
        self.forward_with_images(runs, Vec::new(), rows)
    }

    /// [`Self::forward`] with images in place of some rows' tokens, in order.
    ///
    /// # Errors
    /// As [`Self::forward`], and images that do not lie within one run each.
    pub fn forward_with_images(
        &self,
        runs: &mut [SequenceRun<'_>],
        images: Vec<ImageRows>,
        rows: LogitRows,
    ) -> Result<Vec<f32>> {
        self.pass(&self.ops, runs, images, rows)
    }

    /// One decode step: a pass over the last token of each sequence. Returns fp32 logits,
    /// `runs × vocab`.
    ///
    /// Sums are ordered as is fastest for the number of rows, which is not the order of
    /// [`Self::prefill_chunk`]: a token that was decoded and the same token read as part of a prompt
    /// differ by rounding. A step of up to [`FEW_TOKENS`] sequences gives each, to the bit, what it
    /// would get alone.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn decode(&self, runs: &mut [SequenceRun<'_>]) -> Result<Vec<f32>> {
        self.pass(&self.ops, runs, Vec::new(), LogitRows::Last)
    }

    /// One prefill step: a pass over a part of a prompt, with images in place of some of its tokens.
    ///
    /// Sums have a fixed order. With host kernels the result for a token therefore does not depend
    /// on where chunks begin and end, to the bit, and a prompt continues from any place of another
    /// prompt's cache as if it had been read as a whole. Only a prompt of up to [`FEW_TOKENS`]
    /// tokens, which shares nothing with others, is read in the faster order of [`Self::decode`].
    ///
    /// # Errors
    /// As [`Self::forward_with_images`].
    pub fn prefill_chunk(
        &self,
        run: SequenceRun<'_>,
        images: Vec<ImageRows>,
        rows: LogitRows,
    ) -> Result<Vec<f32>> {
        let short = run.cache.tokens() == 0 && run.tokens.len() <= FEW_TOKENS;
        let ops = if short { &self.ops } else { &self.prompt_ops };
        self.pass(ops, &mut [run], images, rows)
    }

    fn pass(
        &self,
        ops: &Ops,
        runs: &mut [SequenceRun<'_>],
        images: Vec<ImageRows>,
        rows: LogitRows,
    ) -> Result<Vec<f32>> {
        let mut tokens = runs.iter().flat_map(|run| run.tokens);
        let known = self.vocab + self.model.extra_tokens();
        if let Some(&token) = tokens.find(|&&t| t as usize >= known) {
            return Err(Error::TokenOutOfRange { token, vocab: self.vocab });
        }
        let mut pass = Pass::new(ops, runs, images)?;
        let hidden = self.model.forward(&mut pass)?;
        let logits = match rows {
            LogitRows::None => {
                self.ops.evaluate(&hidden)?;
                Vec::new()
            }
            LogitRows::Last => {
                let hidden = self.ops.rows(&hidden, &pass.last_rows())?;
                self.ops.to_f32(&self.model.logits(&self.ops, &hidden)?)?
            }
            LogitRows::All => self.ops.to_f32(&self.model.logits(&self.ops, &hidden)?)?,
        };
        pass.commit();
        Ok(logits)
    }

    /// What prepares pictures for the model's image encoder; `files` are those of the model.
    ///
    /// # Errors
    /// A model without an encoder, and what [`ImageProcessor::load`] fails with.
    pub fn preprocessor(&self, source: &ModelSource) -> Result<ImageProcessor> {
        match (source, self.input) {
            (ModelSource::Folder(dir), Some(input)) => {
                ImageProcessor::load(&TextFiles::Folder(dir), input)
            }
            _ => Err(ImageError::NoEncoder.into()),
        }
    }

    fn encoder(&self) -> Result<&dyn ImageEncoder> {
        Ok(self.model.images().ok_or(ImageError::NoEncoder)?)
    }

    /// The rows that stand for an image in a pass, computed at once.
    ///
    /// # Errors
    /// A model without an encoder, and pixels that it does not take.
    pub fn encode_image(&self, pixels: &Pixels) -> Result<EncodedImage> {
        let image = self.encoder()?.encode(&self.ops, pixels)?;
        self.ops.evaluate(&image.embeddings)?;
        Ok(image)
    }

    /// Shows `cache`, before its first token, those of `images` that stand beside the tokens.
    ///
    /// # Errors
    /// A cache that holds tokens, a model without layers that see such images.
    pub fn show_images(&self, cache: &mut SequenceCache, images: &[PlacedImage]) -> Result<()> {
        let beside: Vec<_> = images.iter().filter_map(PlacedImage::cross_image).collect();
        if beside.is_empty() { Ok(()) } else { self.model.attach_images(&self.ops, cache, &beside) }
    }

    /// Fills `cache` with `tokens` in chunks and returns the logits of the last one, `[vocab]`.
    ///
    /// # Errors
    /// No token at all, or what [`Self::forward`] fails with.
    pub fn prefill(
        &self,
        tokens: &[u32],
        cache: &mut SequenceCache,
        progress: &mut dyn Progress,
    ) -> Result<Vec<f32>> {
        self.prefill_with_images(tokens, &[], cache, progress)
    }

    /// [`Self::prefill`] with images in place of some tokens or beside them, in order. No pass ends
    /// within an image whose rows see each other, so that one longer than a chunk makes the pass
    /// longer.
    ///
    /// # Errors
    /// As [`Self::prefill`], and images that overlap or end after the tokens.
    pub fn prefill_with_images(
        &self,
        tokens: &[u32],
        images: &[PlacedImage],
        cache: &mut SequenceCache,
        progress: &mut dyn Progress,
    ) -> Result<Vec<f32>> {
        if let Some(image) = images.iter().find(|image| image.tokens().end > tokens.len()) {
            let (image, tokens) = (image.tokens(), tokens.len());
            return Err(ImageError::OutsidePrompt { image, tokens }.into());
        }
        self.show_images(cache, images)?;
        let chunk = self.chunk_tokens();
        let mut done = 0;
        loop {
            let end = vision::chunk_end(done, (done + chunk).min(tokens.len()), undivided(images))
                .min(tokens.len());
            let last = end == tokens.len();
            let run = SequenceRun {
                tokens: tokens
                    .get(done..end)
                    .filter(|t| !t.is_empty())
                    .ok_or(Error::EmptyPrompt)?,
                cache: &mut *cache,
            };
            let within = images.iter().filter_map(|image| image.rows_in(done..end)).collect();
            let rows = if last { LogitRows::Last } else { LogitRows::None };
            let logits = self.prefill_chunk(run, within, rows)?;
            if progress.prefilled(end, tokens.len()).is_break() {
                return Err(Error::Interrupted);
            }
            if last {
                return Ok(logits);
            }
            done = end;
        }
    }
}

/// Tokens of the images that no pass divides.
fn undivided(images: &[PlacedImage]) -> impl Iterator<Item = Range<usize>> {
    images
        .iter()
        .filter(|placed| placed.image.attention == ImageAttention::Bidirectional)
        .map(PlacedImage::tokens)
}
