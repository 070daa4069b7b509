//! A prompt as the scheduler sees it: its tokens, and where its images are.
//!
//! Owns where prefill chunks and shared prefixes end. An image has chunks of its own, a single one
//! where its rows see each other, and no prefix ends within it; an image beside the tokens, for
//! cross-attention, divides nothing. Otherwise a prefix of keys and values may end anywhere, since
//! [`Engine::prefill_chunk`](mlxcel_runtime::engine::Engine::prefill_chunk) computes the same for a
//! token wherever chunks end. A recurrent state can only be saved at the end of a chunk; those ends
//! are therefore positions of the prompt, independent of what was cached before.

use std::ops::Range;

use mlxcel_estimator::KV_BLOCK_TOKENS;
use mlxcel_runtime::vision::{self, ImagePlacement};

/// Tokens, and the images that replace some of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Prompt {
    /// At least one, except in a prompt that is refused.
    pub(super) tokens: Vec<u32>,
    /// In order.
    pub(super) images: Vec<PromptImage>,
}

/// Position and identity of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PromptImage {
    /// The tokens that it replaces, at least one.
    pub(super) tokens: Range<usize>,
    /// SHA-256 of its file: the placeholder tokens of all images are equal.
    pub(super) digest: [u8; 32],
    /// Treatment of its rows by the decoder.
    pub(super) placement: ImagePlacement,
}

impl PromptImage {
    /// Rows beside the tokens, for cross-attention; 0 for an image among the tokens.
    fn cross_rows(&self) -> usize {
        match self.placement {
            ImagePlacement::CrossAttention { rows } => rows,
            ImagePlacement::Inline | ImagePlacement::InlineBidirectional => 0,
        }
    }
}

/// Images whose rows are among the tokens.
fn among_tokens(images: &[PromptImage]) -> impl Iterator<Item = &PromptImage> {
    images.iter().filter(|image| image.cross_rows() == 0)
}

/// Positions at which prefill chunks end, apart from images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ChunkEnds {
    /// A chunk's length after its start.
    Anywhere,
    /// Multiples of the chunk and [`Prompt::last_snapshot`], where recurrent states are saved.
    AtSnapshots,
}

impl Prompt {
    /// A prompt without images.
    pub(super) fn text(tokens: Vec<u32>) -> Self {
        Self { tokens, images: Vec::new() }
    }

    /// Number of tokens.
    pub(super) fn len(&self) -> usize {
        self.tokens.len()
    }

    /// The first token that is not below `vocab`; placeholders of images may be above it.
    pub(super) fn token_beyond(&self, vocab: u64) -> Option<u32> {
        let mut tokens = self.tokens.iter().enumerate();
        let beyond = tokens.find(|(position, token)| {
            u64::from(**token) >= vocab
                && !self.images.iter().any(|image| image.tokens.contains(position))
        });
        beyond.map(|(_, token)| *token)
    }

    /// Number of image tokens from token `from` on.
    pub(super) fn image_tokens(&self, from: usize) -> usize {
        let images = among_tokens(&self.images).filter(|image| image.tokens.start >= from);
        images.map(|image| image.tokens.len()).sum()
    }

    /// Rows of images beside the tokens that are still to be encoded after `cached` cached tokens:
    /// all of them, or none once any token is cached.
    pub(super) fn cross_rows(&self, cached: usize) -> usize {
        match cached {
            0 => self.images.iter().map(PromptImage::cross_rows).sum(),
            _ => 0,
        }
    }

    /// Tokens, or rows beside the tokens, of the largest image.
    pub(super) fn largest_image(&self) -> usize {
        let sizes = self.images.iter().map(|image| image.tokens.len().max(image.cross_rows()));
        sizes.max().unwrap_or(0)
    }

    /// Tokens of the largest image that chunks do not divide.
    pub(super) fn largest_undivided(&self) -> usize {
        self.undivided().map(|tokens| tokens.len()).max().unwrap_or(0)
    }

    /// Tokens of the images that chunks do not divide.
    fn undivided(&self) -> impl Iterator<Item = Range<usize>> {
        let whole = self
            .images
            .iter()
            .filter(|image| image.placement == ImagePlacement::InlineBidirectional);
        whole.map(|image| image.tokens.clone())
    }

    /// Images, by index, that have to be encoded when the first `cached` tokens are cached.
    pub(super) fn images_after(&self, cached: usize) -> impl Iterator<Item = usize> {
        let images = self.images.iter().enumerate();
        let missing = images.filter(move |(_, image)| match image.placement {
            ImagePlacement::CrossAttention { .. } => cached == 0,
            ImagePlacement::Inline | ImagePlacement::InlineBidirectional => {
                image.tokens.start >= cached
            }
        });
        missing.map(|(index, _)| index)
    }

    /// Returns true if a chunk from token `next` on reads image `index`: one that contains the token, or one
    /// beside the tokens.
    pub(super) fn reads_image(&self, index: usize, next: usize) -> bool {
        let image = self.images.get(index);
        image.is_some_and(|image| image.cross_rows() > 0 || image.tokens.contains(&next))
    }

    /// Returns true if image `index` is still needed once the first `end` tokens, at least one, are read.
    pub(super) fn image_is_unread(&self, index: usize, end: usize) -> bool {
        let image = self.images.get(index);
        image.is_some_and(|image| image.cross_rows() == 0 && image.tokens.end > end)
    }

    /// The last position before the last token at which shared keys and values may end.
    pub(super) fn last_shareable(&self) -> usize {
        before_image(&self.images, self.len().saturating_sub(1))
    }

    /// The last position before the last token at which a recurrent state is saved for other prompts.
    pub(super) fn last_snapshot(&self) -> usize {
        block_end(&self.images, self.len().saturating_sub(1))
    }

    /// End of a chunk of up to `chunk_tokens` from token `start` on.
    pub(super) fn chunk_end(&self, start: usize, chunk_tokens: usize, ends: ChunkEnds) -> usize {
        let chunk = chunk_tokens.max(1);
        let end = match ends {
            ChunkEnds::Anywhere => start.saturating_add(chunk),
            ChunkEnds::AtSnapshots => {
                let multiple = (start / chunk + 1).saturating_mul(chunk);
                let snapshot = self.last_snapshot();
                if start < snapshot { multiple.min(snapshot) } else { multiple }
            }
        };
        // A chunk has tokens of one image, or none of any.
        let boundaries = among_tokens(&self.images).map(|image| {
            if start < image.tokens.start { image.tokens.start } else { image.tokens.end }
        });
        let next = boundaries.filter(|boundary| *boundary > start);
        let end = next.fold(end.min(self.len()), usize::min);
        vision::chunk_end(start, end, self.undivided())
    }
}

/// Number of tokens in whole blocks of `tokens` tokens.
fn whole_blocks(tokens: usize) -> usize {
    let rest = tokens as u64 % KV_BLOCK_TOKENS;
    tokens.saturating_sub(usize::try_from(rest).unwrap_or(0))
}

/// `tokens`, or the start of the image that the position lies within.
pub(super) fn before_image(images: &[PromptImage], tokens: usize) -> usize {
    let mut images = among_tokens(images);
    let within = images.find(|image| image.tokens.start < tokens && tokens < image.tokens.end);
    within.map_or(tokens, |image| image.tokens.start)
}

/// The last position within the first `tokens` tokens that ends a whole block or an image, and does
/// not lie within an image.
pub(super) fn block_end(images: &[PromptImage], tokens: usize) -> usize {
    let tokens = before_image(images, tokens);
    let ends = among_tokens(images).map(|image| image.tokens.end).filter(|end| *end <= tokens);
    ends.fold(whole_blocks(tokens), usize::max)
}

/// Images that the first `tokens` tokens depend on: those among them, and all beside the tokens.
pub(super) fn images_within(images: &[PromptImage], tokens: usize) -> Vec<PromptImage> {
    let within = images.iter().filter(|image| image.tokens.end <= tokens || image.cross_rows() > 0);
    within.cloned().collect()
}

/// A sequence of tokens with the images among or beside them.
#[derive(Clone, Copy, Debug)]
pub(super) struct ImageTokens<'a> {
    /// The tokens.
    pub(super) tokens: &'a [u32],
    /// The images.
    pub(super) images: &'a [PromptImage],
}

impl ImageTokens<'_> {
    /// Number of tokens that two sequences have in common: equal tokens, up to the first image that
    /// differs. All tokens depend on images beside them, so that none is common if those differ.
    pub(super) fn common_prefix(self, other: Self) -> usize {
        let pairs = self.tokens.iter().zip(other.tokens);
        let tokens = pairs.take_while(|(one, another)| one == another).count();
        let has_cross_rows = |image: &PromptImage| image.cross_rows() > 0;
        let mut all = self.images.iter().chain(other.images);
        if self.images != other.images && all.any(has_cross_rows) {
            return 0;
        }
        let ours = self.images.iter().filter(|image| !other.images.contains(image));
        let theirs = other.images.iter().filter(|image| !self.images.contains(image));
        ours.chain(theirs).map(|image| image.tokens.start).fold(tokens, usize::min)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(tokens: Range<usize>, digest: u8) -> PromptImage {
        PromptImage { tokens, digest: [digest; 32], placement: ImagePlacement::InlineBidirectional }
    }

    fn ends_at(ends: ChunkEnds, prompt: &Prompt, from: usize, chunk: usize) -> Vec<usize> {
        let next = |done: &usize| Some(prompt.chunk_end(*done, chunk, ends)).filter(|e| e > done);
        std::iter::successors(Some(from), next).skip(1).collect()
    }

    fn chunk_ends(prompt: &Prompt, from: usize, chunk: usize) -> Vec<usize> {
        ends_at(ChunkEnds::AtSnapshots, prompt, from, chunk)
    }

    #[test]
    fn text_chunks_start_anywhere() {
        let text = Prompt::text(vec![0; 600]);
        let ends = |from| ends_at(ChunkEnds::Anywhere, &text, from, 128);
        assert_eq!(ends(0), [128, 256, 384, 512, 600]);
        assert_eq!(ends(301), [429, 557, 600]);
        assert_eq!((ends(599), ends(500), text.last_shareable()), (vec![600], vec![600], 599));
        let images = vec![image(4..260, 1), image(596..600, 2)];
        let prompt = Prompt { tokens: vec![0; 600], images };
        let ends = |from| ends_at(ChunkEnds::Anywhere, &prompt, from, 128);
        assert_eq!(ends(0), [4, 260, 388, 516, 596, 600]);
        assert_eq!((ends(590), prompt.last_shareable()), (vec![596, 600], 596));
    }

    #[test]
    fn chunks_end_at_the_last_snapshot() {
        let text = Prompt::text(vec![0; 600]);
        assert_eq!(chunk_ends(&text, 0, 128), [128, 256, 384, 512, 600]);
        assert_eq!(chunk_ends(&text, 256, 128), [384, 512, 600]);
        assert_eq!(chunk_ends(&text, 0, 100), [100, 200, 300, 400, 500, 512, 600]);
        assert_eq!(chunk_ends(&Prompt::text(vec![0; 1]), 0, 128), [1]);
    }

    #[test]
    fn an_image_has_chunks_of_its_own() {
        let tokens = vec![0; 700];
        let prompt = Prompt { tokens, images: vec![image(4..260, 1), image(300..556, 2)] };
        let all = [4, 260, 300, 556, 640, 700];
        assert_eq!(chunk_ends(&prompt, 0, 128), all);
        assert_eq!(chunk_ends(&prompt, 0, 512), [4, 260, 300, 556, 700]);
        // After every shareable prefix, the rest is read in the same chunks.
        for start in [260, 556] {
            let rest: Vec<_> = all.into_iter().filter(|end| *end > start).collect();
            assert_eq!(chunk_ends(&prompt, start, 128), rest);
        }
        assert_eq!((prompt.image_tokens(0), prompt.image_tokens(260)), (512, 256));
        assert_eq!((prompt.largest_undivided(), prompt.last_snapshot()), (256, 556));
        // An image with causal rows is divided by chunks.
        let images = vec![PromptImage { placement: ImagePlacement::Inline, ..image(4..260, 1) }];
        let prompt = Prompt { tokens: vec![0; 300], images };
        assert_eq!(chunk_ends(&prompt, 0, 128), [4, 128, 256, 260, 300]);
        assert_eq!((prompt.largest_image(), prompt.largest_undivided()), (256, 0));
    }

    fn cross_image(token: usize, digest: u8) -> PromptImage {
        PromptImage {
            placement: ImagePlacement::CrossAttention { rows: 900 },
            ..image(token..token + 1, digest)
        }
    }

    /// They take one token each, and are read before the first token.
    #[test]
    fn cross_attention_images_divide_nothing() {
        let prompt =
            Prompt { tokens: vec![0; 600], images: vec![cross_image(4, 1), cross_image(300, 2)] };
        assert_eq!(chunk_ends(&prompt, 0, 128), chunk_ends(&Prompt::text(vec![0; 600]), 0, 128));
        assert_eq!((prompt.image_tokens(0), prompt.largest_undivided()), (0, 0));
        let tokens = vec![0, 1, 2, 3, 9, 4, 9];
        let spelled = Prompt { tokens, images: prompt.images.clone() };
        assert_eq!([spelled.token_beyond(9), spelled.token_beyond(4)], [Some(9), Some(4)]);
        assert_eq!(Prompt { tokens: vec![0, 1, 2, 3, 9], ..spelled }.token_beyond(9), None);
        assert_eq!([prompt.cross_rows(0), prompt.cross_rows(256)], [1800, 0]);
        assert_eq!((prompt.largest_image(), block_end(&prompt.images, 400)), (900, 256));
        let tokens = [7; 600];
        let common = |ours: &[PromptImage], theirs: &[PromptImage]| {
            let ours = ImageTokens { tokens: &tokens, images: ours };
            ours.common_prefix(ImageTokens { tokens: &tokens[..590], images: theirs })
        };
        assert_eq!(common(&prompt.images, &prompt.images), 590);
        assert_eq!(common(&prompt.images, &prompt.images[..1]), 0);
        assert_eq!(common(&prompt.images[..1], &[]), 0);
    }

    #[test]
    fn prefixes_end_behind_blocks_and_images() {
        let images = [image(4..260, 1), image(500..520, 2)];
        for (tokens, expected) in
            [(3, 0), (256, 0), (259, 0), (260, 260), (499, 260), (511, 260), (520, 520), (900, 768)]
        {
            assert_eq!(block_end(&images, tokens), expected, "{tokens}");
        }
        assert_eq!(block_end(&[], 511), 256);
    }

    #[test]
    fn a_different_image_ends_the_common_prefix() {
        let tokens = [7; 600];
        let common = |ours: &[PromptImage], theirs: &[PromptImage]| {
            let ours = ImageTokens { tokens: &tokens, images: ours };
            ours.common_prefix(ImageTokens { tokens: &tokens[..590], images: theirs })
        };
        let both = [image(4..260, 1), image(300..556, 2)];
        assert_eq!(common(&both, &both), 590);
        assert_eq!(common(&both, &[image(4..260, 1), image(300..556, 3)]), 300);
        assert_eq!(common(&[image(4..260, 9)], &both), 4);
        assert_eq!(common(&both[..1], &both), 300);
        assert_eq!(common(&[], &both), 4);
    }
}
